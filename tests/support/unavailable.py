"""That a program of others can't be had, or can't run, on this machine: the reason for which a test skips itself."""

from __future__ import annotations


class Unavailable(Exception):
    """The text says what is missing."""
