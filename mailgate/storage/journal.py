"""The record of what happened: every session, and every transaction that brought no message.

Written behind the reply, in batches, on a connection of its own, and without waiting for the disk: accepted mail never
waits for it. It is bounded, and loses records rather than memory: what comes while it is full is counted in `dropped`.
Records of the last half second may be lost when a database server crashes; mail is not written here.

It also keeps how the policies are configured, which verdicts refer to.

Accepted transactions are written with their messages, in `mailgate.storage.mailbox`.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mailgate.interfaces import IJournal
from mailgate.storage import literal
from mailgate.storage.acceptance import client_addresses, recipient_columns, transaction_columns
from mailgate.storage.errors import StorageUnavailable, reason_of
from mailgate.storage.evidence import Evidence, KnownAnswers, evidence_of
from mailgate.storage.queries import QUERIES
from mailgate.storage.records import SessionRecord, TransactionRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from mailgate.policy.fingerprint import PolicyConfiguration
    from mailgate.storage.pool import Connection, Pool

FLUSH_SECONDS = 0.25
FLUSH_RECORDS = 200
_RETRY_SECONDS = 1.0
_COMPLAINT_SECONDS = 60.0
_RECORD_OCTETS = 2000  # what a record keeps in memory besides its dialogue, recipients and notes, roughly
_RECIPIENT_OCTETS = 500
_NOTE_OCTETS = 1000

log = Logger()


@implementer(IJournal)
class Journal:
    """Keeps records for a moment and writes them together."""

    def __init__(
        self,
        clock: IReactorTime,
        pool: Pool | Connection,
        *,
        node: str,
        max_records: int = 10_000,
        max_octets: int = 64 * 1024 * 1024,
    ) -> None:
        """`pool` is not the writer's connection, and its setup is `literal.settle`. The bounds are on what waits."""
        self.dropped = 0
        self._clock = clock
        self._pool = pool
        self._node = node
        self._max_records = max_records
        self._max_octets = max_octets
        self._records: deque[SessionRecord | TransactionRecord] = deque()
        self._policies: tuple[PolicyConfiguration, ...] = ()  # that are not written yet
        self._octets = 0
        self._known_answers = KnownAnswers(clock.seconds)
        self._timer: IDelayedCall | None = None
        self._writing: Deferred[None] | None = None
        self._complained_at = 0.0
        self._dropped_before = 0
        self._is_stopped = False

    # ------------------------------------------------------------------ IJournal

    def transaction_ended(self, record: TransactionRecord) -> None:
        """Keep a transaction."""
        self._keep(record)

    def session_ended(self, record: SessionRecord) -> None:
        """Keep a session."""
        self._keep(record)

    def policies_configured(self, configurations: Iterable[PolicyConfiguration]) -> None:
        """Keep how policies are configured from now on."""
        self._policies += tuple(configurations)
        if self._policies and self._writing is None and self._timer is None and not self._is_stopped:
            self._timer = self._clock.callLater(0, self._flush)

    async def stop(self, timeout_seconds: float = 5.0) -> None:
        """Write what is kept, for so long; the rest is given up. Nothing is kept from now on."""
        self._is_stopped = True
        deadline = self._clock.seconds() + timeout_seconds
        self._cancel_timer()
        if self._writing is not None:
            await _end_of(self._writing)
        if self._policies:
            await self._write_policies(timeout_seconds)
        while self._records and self._clock.seconds() < deadline:
            if not await self._write_some(deadline - self._clock.seconds()):
                break
        self.dropped += len(self._records)
        self._records.clear()
        self._complain()

    # ------------------------------------------------------------------ keeping

    def _keep(self, record: SessionRecord | TransactionRecord) -> None:
        octets = _octets_of(record)
        if len(self._records) >= self._max_records or self._octets + octets > self._max_octets or self._is_stopped:
            self.dropped += 1
            if self._clock.seconds() - self._complained_at >= _COMPLAINT_SECONDS:
                self._complain()
            return
        self._records.append(record)
        self._octets += octets
        if self._writing is not None:
            return
        if self._timer is None:
            self._timer = self._clock.callLater(FLUSH_SECONDS, self._flush)
        elif len(self._records) == FLUSH_RECORDS:
            self._timer.reset(0)

    def _complain(self) -> None:
        dropped = self.dropped - self._dropped_before
        if dropped:
            self._complained_at = self._clock.seconds()
            self._dropped_before = self.dropped
            log.warn("{dropped} records of sessions and transactions were not kept", dropped=dropped)

    # ------------------------------------------------------------------ writing

    def _flush(self) -> None:
        self._timer = None
        self._writing = Deferred.fromCoroutine(self._write_all())
        self._writing.addErrback(self._failed)

    async def _write_all(self) -> None:
        """Write all that is kept, or try again in a moment."""
        delay_seconds = FLUSH_SECONDS
        try:
            if self._policies and not await self._write_policies(10.0):
                delay_seconds = _RETRY_SECONDS
                return
            while len(self._records) and not self._is_stopped:
                if not await self._write_some(10.0):
                    delay_seconds = _RETRY_SECONDS
                    break
        finally:
            self._writing = None
            if (self._records or self._policies) and not self._is_stopped:
                self._timer = self._clock.callLater(delay_seconds, self._flush)

    async def _write_some(self, timeout_seconds: float) -> bool:
        """Whether the oldest records are done with: written, or impossible to write."""
        records = list(islice(self._records, FLUSH_RECORDS))
        try:
            await self._write(records, timeout_seconds)
        except StorageUnavailable:
            return False
        for record in records:
            self._records.popleft()
            self._octets -= _octets_of(record)
        return True

    async def _write_policies(self, timeout_seconds: float) -> bool:
        """Whether the policies' configurations are done with: written, or impossible to write."""
        policies = self._policies
        statement = QUERIES["record_policies"] % {
            b"fingerprint": literal.encoded(literal.text_array([each.fingerprint for each in policies])),
            b"policy": literal.encoded(literal.text_array([each.policy for each in policies])),
            b"options": literal.encoded(literal.text_array([each.options for each in policies])),
        }
        try:
            await self._pool.execute(statement, timeout_seconds=timeout_seconds)
        except StorageUnavailable:
            return False
        except Exception as error:
            self._refuse(error)
        self._policies = self._policies[len(policies) :]
        return True

    async def _write(self, records: Sequence[SessionRecord | TransactionRecord], timeout_seconds: float) -> None:
        """Write these records; one that can't be written is dropped.

        @raises StorageUnavailable: perhaps none is written. Writing them again does no harm.
        """
        sessions = [record for record in records if isinstance(record, SessionRecord)]
        transactions = [record for record in records if isinstance(record, TransactionRecord)]
        evidence = evidence_of(
            [
                *((record.notes, ()) for record in sessions),
                *((record.transaction.notes, record.transaction.recipients) for record in transactions),
            ],
            self._known_answers,
        )
        try:
            await self._pool.execute(
                record_statement(sessions, transactions, evidence, node=self._node), timeout_seconds=timeout_seconds
            )
            self._known_answers.are_committed(evidence.answers)
        except StorageUnavailable:
            self._known_answers.forget()
            raise
        except Exception as error:
            # Whatever is wrong with one record, the others must be written.
            if len(records) == 1:
                self._refuse(error)
                return
            middle = len(records) // 2
            await self._write(records[:middle], timeout_seconds)
            await self._write(records[middle:], timeout_seconds)

    def _refuse(self, error: Exception) -> None:
        self.dropped += 1
        log.error("a record can't be written: {reason}", reason=reason_of(error))

    def _failed(self, failure: Failure) -> None:
        log.failure("the journal failed", failure)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def record_statement(
    sessions: Sequence[SessionRecord], transactions: Sequence[TransactionRecord], evidence: Evidence, *, node: str
) -> bytes:
    """The statement that writes these records; `evidence` is of the sessions, then of the transactions. Pure."""
    middle = len(sessions)
    of_sessions = Evidence(evidence.results[:middle], evidence.verdicts[:middle], {})
    of_transactions = Evidence(evidence.results[middle:], evidence.verdicts[middle:], {})
    values = {
        "node": literal.text(node),
        **_session_values(sessions, of_sessions),
        **_transaction_values(transactions, of_transactions),
        **evidence.answer_columns(),
    }
    return QUERIES["record"] % {name.encode("ascii"): literal.encoded(value) for name, value in values.items()}


def _session_values(records: Sequence[SessionRecord], evidence: Evidence) -> dict[str, str]:
    sessions = [record.session for record in records]
    tls = [session.tls for session in sessions]
    columns = {
        "id": literal.number_array([session.id for session in sessions]),
        "listener": literal.text_array([session.listener for session in sessions]),
        "role": literal.text_array([session.role.value for session in sessions]),
        "client_address": client_addresses(sessions),
        "client_port": literal.number_array([session.client_port for session in sessions]),
        "server_address": literal.text_array(
            [session.server_address.partition("%")[0] or None for session in sessions]
        ),
        "server_port": literal.number_array([session.server_port for session in sessions]),
        "helo": literal.text_array([session.helo for session in sessions]),
        "is_esmtp": literal.number_array([session.is_esmtp for session in sessions]),
        "tls_version": literal.text_array([state.version if state else None for state in tls]),
        "tls_cipher": literal.text_array([state.cipher if state else None for state in tls]),
        "tls_server_name": literal.text_array([state.server_name if state else None for state in tls]),
        "client_certificate": literal.text_array([state.client_certificate if state else None for state in tls]),
        "authenticated": literal.text_array([session.authenticated for session in sessions]),
        "started_at": literal.number_array([session.started_at for session in sessions]),
        "ended_at": literal.number_array([record.ended_at for record in records]),
        "ending": literal.text_array([record.ending for record in records]),
        "transactions": literal.number_array([record.transactions for record in records]),
        "errors": literal.number_array([record.errors for record in records]),
        "dialogue": literal.text_array([record.dialogue for record in records]),
        "results": literal.text_array(evidence.results),
        "verdicts": literal.text_array(evidence.verdicts),
    }
    return {f"session_{name}": value for name, value in columns.items()}


def _transaction_values(records: Sequence[TransactionRecord], evidence: Evidence) -> dict[str, str]:
    sessions = [record.session for record in records]
    transactions = [record.transaction for record in records]
    columns = {
        **transaction_columns(sessions, transactions, evidence),
        "session_id": literal.number_array([session.id for session in sessions]),
        "disposition": literal.text_array([record.disposition.value for record in records]),
        "stage": literal.text_array([record.stage for record in records]),
        "policy": literal.text_array([record.policy or None for record in records]),
        "reason": literal.text_array([record.reason or None for record in records]),
        "reply": literal.text_array([record.reply for record in records]),
        "size_octets": literal.number_array([record.size_octets for record in records]),
        "sha256": literal.short_octets_array([record.sha256 for record in records]),
        "ended_at": literal.number_array([record.ended_at for record in records]),
    }
    return {f"transaction_{name}": value for name, value in columns.items()} | recipient_columns(transactions)


def _octets_of(record: SessionRecord | TransactionRecord) -> int:
    if isinstance(record, SessionRecord):
        return _RECORD_OCTETS + len(record.dialogue) + _NOTE_OCTETS * len(record.notes)
    transaction = record.transaction
    notes = len(transaction.notes) + sum([len(recipient.notes) for recipient in transaction.recipients])
    return _RECORD_OCTETS + _RECIPIENT_OCTETS * len(transaction.recipients) + _NOTE_OCTETS * notes


async def _end_of(running: Deferred[None]) -> None:
    """Wait until that Deferred has fired, without taking its result."""
    ended: Deferred[None] = Deferred()

    def note(result: None) -> None:
        ended.callback(None)
        return result

    running.addBoth(note)
    await ended
