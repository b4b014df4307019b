"""The writer: makes accepted messages ours, many in one transaction.

A message is ours at the instant at which the COMMIT of the transaction that holds it has reached the disks that
PostgreSQL's synchronous_commit names; only after PostgreSQL has said so does `store` fire, and only then may the client
hear 250.

    state          where the message is                what a crash of ours does      what the client has heard
    waiting        in our memory                       it is gone                     nothing: it sends again
    written        in an uncommitted transaction       PostgreSQL rolls back          nothing: it sends again
    committed      in message, delivery, unconfirmed   nothing                        nothing, or 250 on its way
    confirmed      in message, delivery                nothing                        250: it has gone on
    lost           as committed, unconfirmed.is_lost   nothing                        perhaps nothing: it may send again

From *committed* on, a second copy must not appear:

- We don't know whether COMMIT was done (its answer was lost): the same batch is written again on a new connection. The
  transaction id is the key: what is there already counts as stored, the rest is stored now. The new attempt waits for
  the old one's end, because both hold a lock on the resend key. Without an answer within `wait_seconds` the clients
  hear 451.
- The client doesn't know of our 250 (the connection or the process ended before its next command, or we said 451 and
  the COMMIT was done after all): it sends the same message again as a new transaction. Within an hour that is answered
  with the first one's id and not stored. A client that went on after its 250 knows, and the same message from it is a
  new one. One that has gone while its message waits may be back before that is committed: what it brings then waits
  until the first is answered, and for the news that its client doesn't know.

Not here: what a message's destinations are (policies say so), nor the quota (it is checked at RCPT; a batch may exceed
it by what was on its way at the same time).

Standards: RFC 5321 section 4.2.5 (250 means responsibility), section 6.1 (reliable delivery), RFC 1047 (duplicates).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import psycopg2
from twisted.internet.defer import Deferred, DeferredLock, fail
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from mailgate.ids import encode_id
from mailgate.interfaces import IMailboxWriter
from mailgate.storage import literal
from mailgate.storage.acceptance import accept_statement, resend_key
from mailgate.storage.errors import StorageUnavailable, reason_of
from mailgate.storage.evidence import Evidence, KnownAnswers, evidence_of
from mailgate.storage.queries import QUERIES
from mailgate.storage.records import IncomingMessage, Stored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from mailgate.storage.pool import Connection, Execute, Row

MAX_BATCH_MESSAGES = 100
MAX_BATCH_OCTETS = 4 * 1024 * 1024
PIECE_OCTETS = 256 * 1024

NOTES_SECONDS = 0.05  # how long a confirmation waits for a batch to carry it
_ATTEMPT_SECONDS = 1.0  # the least time for a batch on a connection that looks well
_FIRST_PAUSE_SECONDS = 0.05
_LAST_PAUSE_SECONDS = 0.5
_RESEND_SECONDS = 3600.0
_MAX_NOTES = 100_000
_MAX_DOUBTFUL = 10_000
_MAX_REPEATS = 10_000
_MAX_NAMED = 3  # recipients, in a line of the log

log = Logger()


async def writer_setup(execute: Execute) -> None:
    """The `setup` of the connections that a MailboxWriter uses."""
    await literal.settle(execute)
    # The plans of accept_messages don't depend on what is in a batch. Left to itself, PostgreSQL makes some of them
    # anew for every batch, and that takes longer than to run them.
    await execute("SET plan_cache_mode = force_generic_plan; SET jit = off")


async def draw_instance(execute: Execute) -> int:
    """A number for this process that no living one has: what its ids are made with."""
    while True:
        ((number, is_taken),) = await execute(QUERIES["draw_instance"])
        if not is_taken:
            return int(number)


def instance_setup(instance: int) -> Callable[[Execute], Awaitable[None]]:
    """A `setup` for the Connection by which the other nodes see that this process lives."""

    async def hold(execute: Execute) -> None:
        await execute(QUERIES["hold_instance_lock"] % {b"instance": str(instance).encode("ascii")})

    return hold


class _Waiting:
    """A message that waits for its COMMIT."""

    __slots__ = ("deadline", "is_abandoned", "key", "message", "stored")

    def __init__(self, message: IncomingMessage, key: bytes, deadline: float) -> None:
        self.message = message
        self.key = key
        self.deadline = deadline
        self.is_abandoned = False  # the client has gone, and may bring the same again at any moment
        self.stored: Deferred[Stored] = Deferred()


class _Notes:
    """What clients let us know of our 250s, on its way to the database. Bounded: the oldest go first."""

    __slots__ = ("confirmed", "lost")

    def __init__(self) -> None:
        self.confirmed: dict[int, None] = {}
        self.lost: dict[int, None] = {}

    def __bool__(self) -> bool:
        return bool(self.confirmed or self.lost)

    def put_back(self, other: _Notes) -> None:
        """Take over what could not be written; later news prevail."""
        self.confirmed = _newest(other.confirmed | self.confirmed)
        self.lost = _newest(other.lost | self.lost)


def _newest(notes: dict[int, None]) -> dict[int, None]:
    return notes if len(notes) <= _MAX_NOTES else dict.fromkeys(list(notes)[-_MAX_NOTES:])


@implementer(IMailboxWriter)
class MailboxWriter:
    """Writes messages in batches on a connection of its own; large ones each by itself on one of `big`."""

    def __init__(
        self,
        reactor: IReactorTime,
        connection: Connection,
        *,
        big: Sequence[Connection],
        instance: int,
        node: str,
        usage: Callable[[int, int], object],
        wait_seconds: float = 5.0,
        large_octets: int = 1024 * 1024,
        max_waiting_messages: int = 10_000,
        max_waiting_octets: int = 256 * 1024 * 1024,
    ) -> None:
        """Nobody else may use `connection` and those of `big`, whose setup is `writer_setup`.

        `usage` is called with mailbox id and octets used after each commit. A content of more than `large_octets` is
        large. Beyond `max_waiting_...` a message is refused for now at once.
        """
        self._reactor = reactor
        self._connection = connection
        self._idle_big = deque(big)
        self._instance = instance
        self._node = node
        self._usage = usage
        self._wait_seconds = wait_seconds
        self._large_octets = large_octets
        self._max_waiting_messages = max_waiting_messages
        self._max_waiting_octets = max_waiting_octets

        self._waiting: deque[_Waiting] = deque()
        self._waiting_large: deque[_Waiting] = deque()
        self._unanswered: dict[int, _Waiting] = {}  # by transaction: those two, and what is being written
        self._large: set[_Waiting] = set()  # what is being written
        self._messages = 0  # waiting or being written, large ones included
        self._octets = 0
        self._notes = _Notes()
        self._repeats: dict[int, int] = {}  # transactions that were resends: the message that they repeated
        self._known_answers = KnownAnswers(reactor.seconds)
        self._doubtful: dict[bytes, tuple[float, tuple[int, ...]]] = {}  # by resend key: since when, which messages
        self._notes_lock = DeferredLock()  # nothing may be decided while notes are on their way without it
        self._is_writing = False
        self._is_stopping = False
        self._timer: IDelayedCall | None = None
        self._stopped: list[Deferred[None]] = []

    # ------------------------------------------------------------------ IMailboxWriter

    def store(self, message: IncomingMessage) -> Deferred[Stored]:
        """Write a message; see the interface."""
        size = message.content.size_octets
        if self._is_stopping:
            return fail(StorageUnavailable("shutting down"))
        if self._messages >= self._max_waiting_messages or self._octets + size > self._max_waiting_octets:
            return fail(StorageUnavailable("too many messages wait for the database"))
        waiting = _Waiting(message, resend_key(message), self._reactor.seconds() + self._wait_seconds)
        self._messages += 1
        self._octets += size
        self._unanswered[message.transaction.id] = waiting
        if size > self._large_octets:
            self._waiting_large.append(waiting)
            self._write_large()
        else:
            self._waiting.append(waiting)
            self._start(0)
        return waiting.stored

    def confirm(self, transaction_ids: Iterable[int]) -> None:
        """The clients know."""
        for identifier in transaction_ids:
            self._notes.confirmed[self._repeats.pop(identifier, identifier)] = None
        self._start(NOTES_SECONDS)

    def connection_lost(self, transaction_ids: Iterable[int]) -> None:
        """The clients may not know. Written at once: they may come back by another node."""
        for identifier in transaction_ids:
            unanswered = self._unanswered.get(identifier)
            if unanswered is not None:
                unanswered.is_abandoned = True
            else:
                self._notes.lost[self._repeats.pop(identifier, identifier)] = None
        self._start(0)

    async def stop(self) -> None:
        """Refuse what comes from now on, and return when all that waits has been answered and noted.

        The time is bounded by `wait_seconds`, twice where a batch was just under way.
        """
        self._is_stopping = True
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        self._start(0)
        await stopped

    # ------------------------------------------------------------------ batches

    def _start(self, delay_seconds: float) -> None:
        """Write what waits: in this delay at the latest, and after what the reactor has to do in this turn."""
        if self._is_writing:
            return
        timer = self._timer
        if timer is None:
            self._timer = self._reactor.callLater(delay_seconds, self._timed)
        elif timer.getTime() > self._reactor.seconds() + delay_seconds:
            timer.reset(delay_seconds)

    def _timed(self) -> None:
        self._timer = None
        self._is_writing = True
        Deferred.fromCoroutine(self._write_all()).addErrback(self._failed)

    async def _write_all(self) -> None:
        """Write batches until nothing waits."""
        try:
            while self._waiting:
                await self._write(self._take_batch())
            try:
                await self._write_notes()
            except (StorageUnavailable, psycopg2.Error) as error:
                log.warn("what clients confirmed waits for the database: {reason}", reason=error)
        finally:
            self._is_writing = False
            if self._waiting:
                self._start(0)
            elif self._notes and not self._is_stopping:
                self._start(NOTES_SECONDS if self._connection.is_connected else self._wait_seconds)
            self._check_idle()

    def _take_batch(self) -> list[_Waiting]:
        """The next messages, at least one; none of them may be the resend of another."""
        batch: list[_Waiting] = []
        abandoned: set[bytes] = set()
        put_off: list[_Waiting] = []
        octets = 0
        while self._waiting and len(batch) < MAX_BATCH_MESSAGES:
            waiting = self._waiting[0]
            if waiting.key in abandoned:
                put_off.append(self._waiting.popleft())
                continue
            octets += waiting.message.content.size_octets
            if batch and octets > MAX_BATCH_OCTETS:
                break
            batch.append(self._waiting.popleft())
            if waiting.is_abandoned:
                abandoned.add(waiting.key)
        self._waiting.extendleft(reversed(put_off))
        return batch

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        """Write a batch and answer each of its messages, whatever happens."""
        try:
            row = await self._accept(batch)
        except StorageUnavailable as error:
            for waiting in batch:
                self._doubt(waiting)
            self._answer_failed(batch, error)
        except Exception as error:
            # One of them can't be written, as when its mailbox was removed a moment ago. The others must be.
            if len(batch) == 1:
                self._refuse(batch[0], error)
            else:
                middle = len(batch) // 2
                await self._write(batch[:middle])
                await self._write(batch[middle:])
        else:
            self._answer(batch, row)

    async def _accept(self, batch: Sequence[_Waiting]) -> Row:
        """The answer to `accept_messages` for the batch, tried again until its time is over.

        @raises StorageUnavailable: it is unknown whether they are stored.
        @raises Exception: none of them is.
        """
        await self._notes_lock.acquire()
        try:
            return await self._accept_with_notes(batch)
        finally:
            self._notes_lock.release()

    async def _accept_with_notes(self, batch: Sequence[_Waiting]) -> Row:
        deadline = min([waiting.deadline for waiting in batch])
        if self._connection.is_connected:
            deadline = max(deadline, self._reactor.seconds() + _ATTEMPT_SECONDS)
        self._recall_doubtful(batch)
        notes, self._notes = self._notes, _Notes()
        try:
            pause = _FIRST_PAUSE_SECONDS
            while True:
                evidence = self._evidence(batch)
                statement = self._statement(batch, evidence, notes)
                try:
                    left = max(deadline - self._reactor.seconds(), 0.0)
                    row = (await self._connection.execute(statement, timeout_seconds=left))[0]
                    self._known_answers.are_committed(evidence.answers)
                    return row
                except StorageUnavailable:
                    self._known_answers.forget()
                    if self._reactor.seconds() + pause >= deadline:
                        raise
                await deferLater(self._reactor, pause)
                pause = min(pause * 2, _LAST_PAUSE_SECONDS)
        except Exception:
            self._notes.put_back(notes)
            raise

    def _evidence(self, batch: Sequence[_Waiting]) -> Evidence:
        transactions = [waiting.message.transaction for waiting in batch]
        return evidence_of([(each.notes, each.recipients) for each in transactions], self._known_answers)

    def _statement(
        self, batch: Sequence[_Waiting], evidence: Evidence, notes: _Notes, *, is_in_pieces: bool = False
    ) -> bytes:
        return accept_statement(
            [waiting.message for waiting in batch],
            [waiting.key for waiting in batch],
            evidence,
            instance=self._instance,
            node=self._node,
            confirmed=notes.confirmed,
            lost=notes.lost,
            is_in_pieces=is_in_pieces,
        )

    async def _write_notes(self) -> None:
        """Write what clients let us know, without a batch. What can't be written now is kept.

        @raises StorageUnavailable, psycopg2.Error: it could not be written.
        """
        await self._notes_lock.acquire()
        notes, self._notes = self._notes, _Notes()
        try:
            if notes:
                statement = QUERIES["settle_unconfirmed"] % {
                    b"confirmed": literal.encoded(literal.number_array(notes.confirmed)),
                    b"lost": literal.encoded(literal.number_array(notes.lost)),
                }
                await self._connection.execute(statement, timeout_seconds=self._wait_seconds)
        except Exception:
            self._notes.put_back(notes)
            raise
        finally:
            self._notes_lock.release()

    # ------------------------------------------------------------------ large messages

    def _write_large(self) -> None:
        """Write large messages on the connections that are free; none beside one that it may be the resend of."""
        put_off: list[_Waiting] = []
        while self._waiting_large and self._idle_big:
            waiting = self._waiting_large.popleft()
            if any(other.is_abandoned and other.key == waiting.key for other in self._large):
                put_off.append(waiting)
                continue
            self._large.add(waiting)
            writing = self._write_one_large(self._idle_big.popleft(), waiting)
            Deferred.fromCoroutine(writing).addErrback(self._failed)
        self._waiting_large.extendleft(reversed(put_off))

    async def _write_one_large(self, connection: Connection, waiting: _Waiting) -> None:
        """Write a large message and answer it, whatever happens."""
        try:
            row = await self._accept_large(connection, waiting)
        except StorageUnavailable as error:
            self._doubt(waiting)
            self._answer_failed([waiting], error)
        except Exception as error:
            self._refuse(waiting, error)
        else:
            self._answer([waiting], row)
        finally:
            self._large.discard(waiting)
            self._idle_big.append(connection)
            self._write_large()
            self._check_idle()

    async def _accept_large(self, connection: Connection, waiting: _Waiting) -> Row:
        """The answer to `accept_messages`, after COMMIT. The whole transaction is tried again until its time is over.

        That time begins with the first attempt; a round trip that is under way at its end has a second more.

        If the connection is replaced half-way, the rest runs outside of the transaction. That does no harm: a piece
        without its message breaks a constraint, and so does a message without all of its pieces. It is tried again.
        """
        now = self._reactor.seconds()
        deadline = max(waiting.deadline, now + self._wait_seconds) if connection.is_connected else waiting.deadline
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._transaction(connection, waiting, deadline)
            except psycopg2.Error:
                if pause > _FIRST_PAUSE_SECONDS:
                    raise
            except StorageUnavailable:
                if self._reactor.seconds() + pause >= deadline:
                    raise
            await deferLater(self._reactor, pause)
            pause = min(pause * 2, _LAST_PAUSE_SECONDS)

    async def _transaction(self, connection: Connection, waiting: _Waiting, deadline: float) -> Row:
        """One attempt. A round trip a piece, so that never more than a piece of the content is held twice."""

        async def execute(statement: bytes) -> list[Row]:
            left = max(deadline - self._reactor.seconds(), _ATTEMPT_SECONDS if connection.is_connected else 0.0)
            return await connection.execute(statement, timeout_seconds=left)

        message_id = str(waiting.message.transaction.id).encode("ascii")
        try:
            await execute(QUERIES["begin"])
            for position, piece in enumerate(pieces_of(waiting.message.content.pieces, PIECE_OCTETS)):
                await execute(
                    QUERIES["insert_piece"]
                    % {
                        b"message_id": message_id,
                        b"position": str(position).encode("ascii"),
                        b"octets": literal.octets(piece),
                    }
                )
            # Whether it is a resend is decided after all that clients have let us know, the batch under way included.
            self._recall_doubtful([waiting])
            try:
                await self._write_notes()
            except StorageUnavailable:  # of the other connection: this one is as it was, with a transaction open
                await execute(QUERIES["rollback"])
                raise
            evidence = self._evidence([waiting])
            row = (await execute(self._statement([waiting], evidence, _Notes(), is_in_pieces=True)))[0]
            await execute(QUERIES["commit"])
            self._known_answers.are_committed(evidence.answers)
        except StorageUnavailable:
            self._known_answers.forget()
            raise
        except Exception:
            await execute(QUERIES["rollback"])
            raise
        return row

    # ------------------------------------------------------------------ answers

    def _answer(self, batch: Sequence[_Waiting], row: Row) -> None:
        """Tell everyone concerned that the batch is committed."""
        resends, mailboxes, octets = row
        for mailbox_id, octets_used in zip(mailboxes or (), octets or (), strict=True):
            try:
                self._usage(mailbox_id, octets_used)
            except Exception:
                log.failure("nobody heard how much mailbox {mailbox_id} holds", mailbox_id=mailbox_id)
        first_ids: dict[int, int] = dict(resends or ())
        for waiting in batch:
            self._forget(waiting)
            identifier = waiting.message.transaction.id
            first_id = first_ids.get(identifier)
            if first_id is None:
                waiting.stored.callback(Stored(identifier))
            else:
                self._repeats[identifier] = first_id
                waiting.stored.callback(Stored(first_id, is_resend=True))
        while len(self._repeats) > _MAX_REPEATS:
            del self._repeats[next(iter(self._repeats))]

    def _answer_failed(self, batch: Sequence[_Waiting], error: StorageUnavailable) -> None:
        for waiting in batch:
            self._forget(waiting)
            waiting.stored.errback(error)

    def _refuse(self, waiting: _Waiting, error: Exception) -> None:
        """The message is surely not stored, and trying again would not help."""
        transaction = waiting.message.transaction
        accepted = [str(recipient.forward_path) for recipient in transaction.recipients if recipient.accepted]
        more = f" and {len(accepted) - _MAX_NAMED} more" if len(accepted) > _MAX_NAMED else ""
        log.error(
            "message {transaction} for {recipients} can't be written: {reason}",
            transaction=encode_id(transaction.id),
            recipients=", ".join(accepted[:_MAX_NAMED]) + more,
            reason=reason_of(error),
        )
        self._answer_failed([waiting], StorageUnavailable("the database refused the message"))

    def _forget(self, waiting: _Waiting) -> None:
        self._unanswered.pop(waiting.message.transaction.id, None)
        self._messages -= 1
        self._octets -= waiting.message.content.size_octets

    def _check_idle(self) -> None:
        """Let `stop` go on once there is nothing more to write."""
        if self._is_stopping and not self._messages and not self._is_writing and self._timer is None:
            waiters, self._stopped = self._stopped, []
            for waiter in waiters:
                waiter.callback(None)

    def _failed(self, failure: Failure) -> None:
        log.failure("the writer failed", failure)

    # ------------------------------------------------------------------ doubt

    def _doubt(self, waiting: _Waiting) -> None:
        """The client hears 451, and yet the message may be stored: then its resend must be recognised."""
        identifier = waiting.message.transaction.id
        self._notes.lost[identifier] = None
        since, identifiers = self._reactor.seconds(), self._doubtful.pop(waiting.key, (0.0, ()))[1]
        self._doubtful[waiting.key] = (since, (*identifiers, identifier))
        while len(self._doubtful) > _MAX_DOUBTFUL:
            del self._doubtful[next(iter(self._doubtful))]

    def _recall_doubtful(self, batch: Sequence[_Waiting]) -> None:
        """Say again of messages that may be stored that their client doesn't know, together with what may repeat them.

        When it was said first, the attempt to store them may still have been under way.
        """
        if not self._doubtful:
            return
        oldest = self._reactor.seconds() - _RESEND_SECONDS
        for waiting in batch:
            since, identifiers = self._doubtful.pop(waiting.key, (0.0, ()))
            if since > oldest:
                self._notes.lost.update(dict.fromkeys(identifiers))


def pieces_of(pieces: Iterable[bytes], octets: int) -> Iterator[bytes]:
    """The same octets in pieces of that size, the last one excepted."""
    parts: list[memoryview] = []
    missing = octets
    for piece in pieces:
        rest = memoryview(piece)
        while len(rest) >= missing:
            parts.append(rest[:missing])
            rest = rest[missing:]
            yield b"".join(parts)
            parts = []
            missing = octets
        if rest:
            parts.append(rest)
            missing -= len(rest)
    if parts:
        yield b"".join(parts)
