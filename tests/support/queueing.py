"""A queue with mail in it, and hosts that do as they are told: for tests of delivery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from mailgate.outbound.connection import HostUnusable
from mailgate.outbound.delivery import Limits
from mailgate.outbound.plan import (
    Delivery,
    Endpoint,
    Host,
    NoRoute,
    RecipientOutcome,
    Result,
    Route,
    Trouble,
    TroubleKind,
)
from mailgate.outbound.runner import QueueRunner, RunnerSettings
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.queue import DestinationState, QueuedRow, Settled

if TYPE_CHECKING:
    from mailgate.outbound.plan import OutgoingMessage
    from mailgate.storage.settlement import Attempt, Lease, Notice, Settlement

REFUSED = Trouble(TroubleKind.CONNECT, "Connection refused", "4.4.1")
STALLED = Trouble(TroubleKind.TIMEOUT, "Timed out while waiting for the greeting", "4.4.2")
CLOSING = Trouble(TroubleKind.SHUTDOWN, "421 4.3.2 Closing", "4.3.2", is_remote=True)
NO_SERVICE = Trouble(TroubleKind.GREETING, "554 5.3.2 No SMTP service here", "5.3.2", is_remote=True)

TAKEN = (Result.DELIVERED, "250 2.0.0 Ok", "2.0.0")
UNKNOWN = (Result.FAILED, "550 5.1.1 No such user", "5.1.1")
GREYLISTED = (Result.DEFERRED, "451 4.7.1 Greylisted, try again", "4.7.1")
FULL = (Result.DEFERRED, "452 4.2.2 Mailbox full", "4.2.2")

Answer = tuple[Result, str, str] | Trouble | None  # of a message or a recipient; Trouble: the connection ends


@dataclass
class FakeHost:
    """What a host does. Everything may be changed at any time."""

    refuses: Trouble | None = None  # connections
    answers: dict[str, Answer] = field(default_factory=dict)  # by recipient
    answer: Answer = TAKEN  # for all others; None: when `finish` is called
    max_connections: int | None = None
    relays_dsn: bool = False
    seen: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # reverse-path and recipients
    contents: list[bytes] = field(default_factory=list)
    senders: list[FakeSender] = field(default_factory=list)
    connects: int = 0

    @property
    def open(self) -> list[FakeSender]:
        """The connections that there are."""
        return [sender for sender in self.senders if sender.is_usable]

    @property
    def served(self) -> list[str]:
        """Whom it has had mail for, in order."""
        return [recipient for _, recipients in self.seen for recipient in recipients]


class FakeSender:
    """A connection to a FakeHost."""

    def __init__(self, host: FakeHost, endpoint: Endpoint, time: Callable[[], float]) -> None:
        self.endpoint = endpoint
        self.tls = None
        self.is_usable = True
        self.max_outstanding = 2
        self.waiting: list[tuple[OutgoingMessage, Deferred[Delivery]]] = []
        self.has_quit = False
        self._host = host
        self._time = time

    @property
    def outstanding(self) -> int:
        return len(self.waiting)

    def send(self, message: OutgoingMessage) -> Deferred[Delivery]:
        ended: Deferred[Delivery] = Deferred()
        self.waiting.append((message, ended))
        piece = message.content.piece(0)
        if isinstance(piece, bytes):
            self._host.contents.append(piece)
        if self._host.answer is not None:
            self.finish()
        return ended

    def finish(self, answer: Answer = None) -> None:
        """Answer what waits longest."""
        message, ended = self.waiting.pop(0)
        host = self._host
        host.seen.append((message.reverse_path, tuple(each.address for each in message.recipients)))
        outcomes = []
        trouble: Trouble | None = None
        for recipient in message.recipients:
            said = host.answers.get(recipient.address, answer or host.answer or TAKEN)
            if isinstance(said, Trouble):
                trouble = said
            elif said is not None:
                result, reply, status = said
                outcomes.append(RecipientOutcome(recipient.queue_id, result, reply, status, relays_dsn=host.relays_dsn))
        if trouble is not None:
            self.is_usable = False
        now = self._time()
        ended.callback(Delivery(message.message_id, self.endpoint, None, now, now, tuple(outcomes), trouble))

    async def quit(self) -> None:
        self.has_quit = True
        self.is_usable = False

    def abort(self) -> None:
        self.is_usable = False
        while self.waiting:
            self.finish(Trouble(TroubleKind.LOST, "given up by this side", "4.4.2"))


class FakeNet:
    """Hosts by address, and routes by domain. A domain without a route has one host, `mx.` and its name."""

    def __init__(self, time: Callable[[], float]) -> None:
        self.hosts: dict[str, FakeHost] = {}
        self.routes: dict[str, Route | NoRoute] = {}
        self.tried: list[str] = []
        self._time = time

    def host(self, name: str) -> FakeHost:
        return self.hosts.setdefault(name, FakeHost())

    def route_by(self, domain: str, *names: str, key: str | None = None, **more: Any) -> None:
        """Send mail for a domain to these hosts, in order."""
        self.routes[domain] = Route(key or domain, tuple(Host(name, (name,)) for name in names), **more)

    async def route(self, domain: str, *, requires_tls: bool = False, tls_is_optional: bool = False) -> Route | NoRoute:
        if domain not in self.routes:
            self.route_by(domain, f"mx.{domain}")
        return self.routes[domain]

    async def connect(self, route: Route, host: Host, address: str) -> FakeSender:
        self.tried.append(address)
        found = self.host(address)
        found.connects += 1
        endpoint = Endpoint(host.name, address, host.port)
        if found.refuses is not None:
            raise HostUnusable(found.refuses, endpoint)
        if found.max_connections is not None and len(found.open) >= found.max_connections:
            raise HostUnusable(CLOSING, endpoint)
        sender = FakeSender(found, endpoint, self._time)
        found.senders.append(sender)
        return sender


@dataclass
class FakeTelling:
    """Keeps what would be told."""

    told: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    async def notice(
        self, original: Any, recipients: Any, about: tuple[Lease, ...], *, is_of_success: bool
    ) -> Notice | None:
        self.told.append((original.reverse_path, tuple(recipients)))
        return None


class Counter:
    """Numbers of claims."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        return self.last


def runner_on(clock: Any, rows: Any, net: FakeNet, time: Callable[[], float], **more: Any) -> QueueRunner:
    """A runner with these hosts; not started."""
    given: dict[str, Any] = {
        "router": net,
        "connect": net.connect,
        "telling": FakeTelling(),
        "claims": Counter(),
        "limits": lambda _route: Limits(),
        "settings": RunnerSettings(),
        "random": Random(1),
        "time": time,
    }
    return QueueRunner(clock, rows, **(given | more))


@dataclass
class FakeRow:
    """A row of the queue."""

    row: QueuedRow
    due_at: float
    claim: int | None = None


class FakeRows:
    """The queue in memory, without the turns of senders."""

    def __init__(self, time: Callable[[], float]) -> None:
        self.rows: dict[int, FakeRow] = {}
        self.attempts: list[Attempt] = []
        self.settlements: list[Settlement] = []
        self.away: dict[str, DestinationState] = {}
        self.claims = 0
        self.is_away = False  # the database is
        self._time = time

    def add(self, recipient: str, **more: Any) -> int:
        """The id of a new row."""
        identifier = len(self.rows) + len(self.attempts) + 1
        now = self._time()
        given: dict[str, Any] = {
            "id": identifier,
            "message_id": identifier,
            "recipient": recipient,
            "domain": recipient.rpartition("@")[2],
            "reverse_path": "carol@example.org",
            "original_path": "carol@example.org",
            "sender": "carol",
            "notify": None,
            "orcpt": None,
            "ret": None,
            "envid": None,
            "is_eight_bit": False,
            "is_smtputf8": False,
            "requires_tls": False,
            "tls_is_optional": False,
            "deliver_by": None,
            "deliver_by_mode": None,
            "size_octets": 30,
            "done": None,
            "created_at": now,
            "starts_at": now,
            "is_delayed": False,
            "attempts": 0,
            "last_attempt_at": None,
            "last_status": None,
            "last_reply": None,
            "trace": b"",
            "content": b"Subject: Hello\r\n\r\nIt's here.\r\n",
        }
        row = QueuedRow(**(given | more))
        self.rows[row.id] = FakeRow(row, row.starts_at)
        return row.id

    def _is_away(self, domain: str) -> bool:
        state = self.away.get(domain)
        return state is not None and (state.is_paused or (state.backed_off_until or 0.0) > self._time())

    async def claim(
        self, claim: int, *, at_most: int, per_destination: int, skipped: Any = (), **_more: Any
    ) -> list[QueuedRow]:
        self._check()
        self.claims += 1
        free = [
            each
            for each in self.rows.values()
            if each.claim is None
            and each.due_at <= self._time()
            and each.row.domain not in skipped
            and not self._is_away(each.row.domain)
        ]
        return self._take(claim, free[:at_most])

    async def claim_overdue(
        self, claim: int, *, delay_seconds: float, give_up_seconds: float, at_most: int
    ) -> list[QueuedRow]:
        self._check()
        now = self._time()

        def is_overdue(row: QueuedRow) -> bool:
            return (
                (row.deliver_by is not None and row.deliver_by <= now)
                or (not row.is_delayed and row.starts_at <= now - delay_seconds)
                or (row.is_delayed and row.starts_at <= now - give_up_seconds and self._is_away(row.domain))
            )

        free = [each for each in self.rows.values() if each.claim is None and is_overdue(each.row)]
        return self._take(claim, free[:at_most])

    def _take(self, claim: int, rows: list[FakeRow]) -> list[QueuedRow]:
        for each in rows:
            each.claim = claim
        return [each.row for each in rows]

    async def settle(self, settlement: Settlement) -> Settled:
        self._check()
        now = self._time()
        self.settlements.append(settlement)
        self.attempts += settlement.attempts
        for ended in settlement.ended:
            del self.rows[ended.lease.queue_id]
        for kept in settlement.kept:
            each = self.rows[kept.lease.queue_id]
            each.claim = None
            row = each.row
            each.row = replace(
                row,
                attempts=row.attempts + kept.is_attempt,
                last_attempt_at=now if kept.is_attempt else row.last_attempt_at,
                last_status=kept.status or row.last_status,
                last_reply=kept.reply or row.last_reply,
                is_delayed=row.is_delayed or kept.is_delayed,
                deliver_by=None if kept.is_deliver_by_over else row.deliver_by,
            )
            if kept.due_at is not None:
                each.due_at = kept.due_at
        for news in settlement.destinations.values():
            before = self.away.get(news.name)
            if news.reason is None:
                self.away.pop(news.name, None)
            else:
                failures = 1 if before is None else before.failures + 1
                seconds = min(news.first_seconds * 2.0 ** (failures - 1), news.longest_seconds)
                self.away[news.name] = DestinationState(news.name, False, now + seconds, failures, news.reason)
        return Settled()

    async def renew(self, claims: Any, dead: Any, *, is_steady: bool) -> list[int]:
        self._check()
        return []

    async def destinations(self) -> list[DestinationState]:
        self._check()
        return list(self.away.values())

    async def piece(self, message_id: int, number: int) -> bytes:
        return b""

    def _check(self) -> None:
        if self.is_away:
            raise StorageUnavailable("no database")
