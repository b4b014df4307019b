"""A database connection that ends must not take the next client's connection with it.

Standards: POSIX `open` (the lowest number that is free), epoll(7) (a closed descriptor leaves the set by itself).
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing

import pytest
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from mailgate.storage.pool import Connection, StorageUnavailable
from tests.support import postgres
from tests.support.relay import Relay
from tests.support.waiting import reactor, until


class _Reader:
    """What any connection is to the reactor."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._has_read = False

    def fileno(self) -> int:
        return self._end.fileno()

    def doRead(self) -> None:
        self._end.recv(100)
        self._has_read = True

    def was_called(self) -> bool:
        return self._has_read

    def logPrefix(self) -> str:
        return "reader"

    def connectionLost(self, reason: object) -> None:
        """Only to be complete."""


class ReusedDescriptorTests(TestCase):
    async def test_a_query_that_finds_the_server_gone_leaves_its_descriptor_to_others(self) -> None:
        """libpq closes the socket inside of the call; the reactor must not go on believing that it watches it."""
        dsn = postgres.fresh_database()
        self.addCleanup(postgres.drop_database, dsn)
        relay = Relay(dsn)
        self.addCleanup(relay.close)
        connection = Connection(reactor, relay.dsn, name="test")
        self.addCleanup(lambda: Deferred.fromCoroutine(connection.stop()))
        connection.start()
        assert await connection.execute("SELECT 1") == [(1,)]
        relay.shut()  # and no turn of the reactor until the query
        with pytest.raises(StorageUnavailable):
            await connection.execute("SELECT length(%s)", ("x" * 100_000,))  # so long that it is sent at once
        relay.open()
        with ExitStack() as stack:
            # One of them has the number of the connection that has ended: the lowest free numbers are given out first.
            for _ in range(8):
                ends = [stack.enter_context(closing(end)) for end in socket.socketpair()]
                for end, other in (ends, reversed(ends)):
                    reader = _Reader(end)
                    reactor.addReader(reader)
                    other.send(b"?")
                    await until(reactor, reader.was_called, what="the reactor watches a new socket")
                    reactor.removeReader(reader)
        assert await connection.execute("SELECT 2") == [(2,)]
