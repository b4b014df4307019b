"""The queue in the database, as one instance works on it: claims, settlements, leases.

Mail for elsewhere is a row for each recipient, written in the transaction that accepted its message. A row belongs to
nobody, or is leased to one instance, which alone may say what becomes of it. The last instant counts: until a
settlement is committed, the row is there, and whoever comes next tries again.

    state       where the row is                    what a crash does                       the recipient has it
    ready       nobody's                            nothing                                 no
    leased      leased, under way                   the lease ends; it is tried again       no
    sent        leased, the host has said 250       the lease ends; it is sent again        yes, and then twice
    ambiguous   leased, the connection was lost     it is tried again, as without one       perhaps, and then twice
                behind the final dot
    settled     gone, or waiting for its time       nothing                                 yes, or not yet

So a message is never lost, and it is sent twice only where an instance died between the host's 250 and the COMMIT, or
where a connection was lost behind the final dot (RFC 5321 section 6.1, RFC 1047). A database that went away for a while
costs nothing: what an instance has to say waits in its memory, and its lease with it. Meanwhile it sends nothing new:
should it alone be cut off from the database, the others take it for dead, and what it could not write of is sent again.

A lease lasts for `LEASE_SECONDS` by the server's clock, and is renewed while the instance is at it. Others end it when
that time is over, or when the instance has been seen dead twice: its advisory lock is gone (`instance_is_alive`). Each
claim has a number, which every word about its rows carries. So a word that comes late, or is repeated because the
answer to it was lost, changes nothing.

Not here: when a row is due again, and whether its sender is told (`mailgate.outbound.schedule`); what is sent where
(`mailgate.outbound.delivery`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mailgate.storage import literal
from mailgate.storage.queries import QUERIES
from mailgate.storage.settlement import settle_statement

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mailgate.storage.pool import Connection, Execute, Pool
    from mailgate.storage.settlement import Settlement

CHANNEL = "queue"  # is notified when there is something to claim, or an operator has changed something
LEASE_SECONDS = 300.0
INLINE_OCTETS = 256 * 1024  # a content of that size at most comes with its claim
PIECE_OCTETS = 256 * 1024
_CLAIM_OCTETS = 8 * 1024 * 1024
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class QueuedRow:
    """A row that is leased to us. Times are seconds since the epoch."""

    id: int
    message_id: int
    recipient: str
    domain: str
    reverse_path: str  # as it is sent out
    original_path: str  # the message's own: whom to tell; "" for the null path
    sender: str
    notify: str | None  # words, a blank between them
    orcpt: str | None
    ret: str | None
    envid: str | None
    is_eight_bit: bool
    is_smtputf8: bool
    requires_tls: bool
    tls_is_optional: bool
    deliver_by: float | None
    deliver_by_mode: Literal["N", "R"] | None
    size_octets: int
    done: Literal["delivered", "expanded", "returned"] | None
    created_at: float
    starts_at: float
    is_delayed: bool
    attempts: int
    last_attempt_at: float | None
    last_status: str | None
    last_reply: str | None
    trace: bytes | memoryview | None  # of the first row of each message in a claim
    content: bytes | memoryview | None  # likewise, where it is small


@dataclass(frozen=True, slots=True)
class DestinationState:
    """A destination that is left alone, or was in trouble."""

    name: str  # a domain, or a smarthost as routes name it
    is_paused: bool
    backed_off_until: float | None  # seconds since the epoch
    failures: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settlement has come to."""

    disowned: tuple[int, ...] = ()  # notices that were not made: their rows are another's now
    usage: tuple[tuple[int, int], ...] = ()  # mailboxes and the octets that they hold now


async def queue_setup(execute: Execute) -> None:
    """The `setup` of the connections that a Queue uses."""
    await literal.settle(execute)
    # As for the writer: the plans don't depend on what a statement carries.
    await execute("SET plan_cache_mode = force_generic_plan; SET jit = off")


class Queue:
    """Claims rows, and settles them."""

    def __init__(
        self,
        claiming: Pool | Connection,
        settling: Connection,
        *,
        instance: int,
        node: str,
        time: Callable[[], float],
        server_grace_seconds: float = 30.0,
    ) -> None:
        """`settling` is ours alone; the setup of both is `queue_setup`. `time` gives seconds since the epoch.

        For `server_grace_seconds` after a start of the server nobody is held to be dead: all have to connect again.
        """
        self._claiming = claiming
        self._settling = settling
        self._instance = instance
        self._node = node
        self._time = time
        self._server_grace_seconds = server_grace_seconds

    async def claim(
        self,
        claim: int,
        *,
        at_most: int,
        per_destination: int,
        skipped: Collection[str] = (),
        skipped_senders: Collection[str] = (),
        after_sender: str = "",
        after_domains: Mapping[str, str] | None = None,
    ) -> list[QueuedRow]:
        """Lease some rows that are ready. `claim` is a number that this instance has never used.

        Senders and their destinations take turns: `after_sender` is the last one of the claim before, and
        `after_domains` the last destination of each sender. Nothing for `skipped` destinations and senders is taken.

        @raises StorageUnavailable: it is unknown whether rows were leased; `renew` without this claim lets them go.
        """
        after = after_domains or {}
        return await self._leased(
            "claim_queue",
            claim,
            at_most=str(at_most),
            octets=str(_CLAIM_OCTETS),
            per_destination=str(per_destination),
            skipped=literal.text_array(skipped),
            skipped_senders=literal.text_array(skipped_senders),
            after_sender=literal.text(after_sender),
            senders=literal.text_array(after),
            after_domains=literal.text_array(after.values()),
        )

    async def claim_overdue(
        self, claim: int, *, delay_seconds: float, give_up_seconds: float, at_most: int
    ) -> list[QueuedRow]:
        """Lease some rows whose senders are to be told something, whatever becomes of an attempt; as `claim`."""
        return await self._leased(
            "claim_overdue",
            claim,
            delay_seconds=repr(delay_seconds),
            give_up_seconds=repr(give_up_seconds),
            at_most=str(at_most),
        )

    async def settle(self, settlement: Settlement) -> Settled:
        """Write what came of some rows; repeating it changes nothing.

        @raises StorageUnavailable: it is unknown whether it was written.
        """
        statement = settle_statement(settlement, instance=self._instance, node=self._node, now=self._time())
        ((disowned, mailboxes, octets),) = await self._settling.execute(statement, timeout_seconds=_TIMEOUT_SECONDS)
        return Settled(tuple(disowned), tuple(zip(mailboxes or (), octets or (), strict=True)))

    async def renew(self, claims: Collection[int], dead: Collection[int], *, is_steady: bool) -> list[int]:
        """Keep the leases of these claims, let go of all others of ours, and of those that others have left behind.

        `dead` are instances that the last call gave: what seems dead twice is. `is_steady`: that call was a short
        while ago. After a longer one the database may have been away for all, so that no lease could be renewed, and
        those of others are let alone.

        @raises StorageUnavailable: it is unknown whether that was done.
        """
        rows = await self._claiming.execute(
            _statement(
                "renew_leases",
                instance=str(self._instance),
                claims=literal.number_array(claims),
                now=repr(self._time()),
                lease_seconds=repr(LEASE_SECONDS),
                dead=literal.number_array(dead),
                is_steady=repr(is_steady),
                grace_seconds=repr(self._server_grace_seconds),
            ),
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        return list(rows[0][0])

    async def destinations(self) -> list[DestinationState]:
        """What is left alone, or was in trouble. @raises StorageUnavailable: the database can't be asked now."""
        rows = await self._claiming.execute(QUERIES["list_destinations"], timeout_seconds=_TIMEOUT_SECONDS)
        return [DestinationState(*row) for row in rows]

    async def piece(self, message_id: int, number: int) -> bytes:
        """Piece 0, 1, 2 and so on of a content; b"" behind the last."""
        rows = await self._claiming.execute(
            _statement(
                "queued_piece", message_id=str(message_id), position=str(number), piece_octets=str(PIECE_OCTETS)
            ),
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        return bytes(rows[0][0] or b"")

    async def _leased(self, query: str, claim: int, **values: str) -> list[QueuedRow]:
        statement = _statement(
            query,
            instance=str(self._instance),
            claim=str(claim),
            now=repr(self._time()),
            lease_seconds=repr(LEASE_SECONDS),
            inline_octets=str(INLINE_OCTETS),
            **values,
        )
        return [QueuedRow(*row) for row in await self._claiming.execute(statement, timeout_seconds=_TIMEOUT_SECONDS)]


def _statement(name: str, **values: str) -> bytes:
    return QUERIES[name] % {key.encode("ascii"): literal.encoded(value) for key, value in values.items()}
