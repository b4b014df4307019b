"""A database with mailboxes and writers on it, for tests of what is stored."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from mailgate.storage import literal
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.mailbox import MailboxWriter, instance_setup, writer_setup
from mailgate.storage.pool import Connection
from tests.support import postgres, stored_mail
from tests.support.waiting import reactor


class WritingTestCase(TestCase):
    """A fresh database with the mailboxes alice, bob and carol at example.test."""

    def setUp(self) -> None:
        self.dsn = postgres.fresh_database()
        self.addCleanup(postgres.drop_database, self.dsn)
        self.make_mailboxes()

    def make_mailboxes(self) -> None:
        self.alice, self.bob, self.carol = (
            stored_mail.add_mailbox(self.dsn, name) for name in ("alice", "bob", "carol")
        )

    def query(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:  # Any: typed by the statement
        with closing(psycopg2.connect(self.dsn)) as database:
            database.autocommit = True
            with database.cursor() as cursor:
                cursor.execute("SET search_path = mailgate")
                cursor.execute(sql, parameters)
                return cursor.fetchall() if cursor.description else []

    def count(self, table: str) -> int:
        return int(self.query(f"SELECT count(*) FROM {table}")[0][0])

    async def connection(self, setup: Any, dsn: str | None = None) -> Connection:  # Any: any setup
        connection = Connection(reactor, dsn or self.dsn, name="test", setup=setup)
        self.addCleanup(lambda: Deferred.fromCoroutine(connection.stop()))
        connection.start()
        await connection.connected(10)
        return connection

    async def settled(self) -> Connection:
        """A connection for the journal or for retention."""
        return await self.connection(literal.settle)

    async def living(self, instance: int) -> Connection:
        """The connection by which an instance is seen to live."""
        return await self.connection(instance_setup(instance))

    async def writer(self, *, instance: int = 1, dsn: str | None = None, **keywords: Any) -> MailboxWriter:
        """A writer; `keywords` as for MailboxWriter."""
        self.used: dict[int, int] = {}
        connection = await self.connection(writer_setup, dsn)
        big = [await self.connection(writer_setup, dsn) for _ in range(2)]
        writer = MailboxWriter(
            reactor, connection, big=big, instance=instance, node="mx1", usage=self.used.__setitem__, **keywords
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(writer.stop()))
        return writer

    async def unavailable(self, stored: Any) -> StorageUnavailable:  # Any: whatever can be awaited
        try:
            answer = await stored
        except StorageUnavailable as error:
            return error
        raise AssertionError(f"it was answered: {answer!r}")
