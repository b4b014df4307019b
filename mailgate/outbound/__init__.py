"""Delivery to other hosts: the queue's runner, routes, connections, notifications."""
