"""The directory: what a recipient address leads to, asked of the database and remembered for a short while.

The rules (aliases, plus-addressing, catch-all, postmaster) are the SQL function `mailgate.resolve`: one round trip
resolves an address completely. This module folds the address, makes the rows an answer, and keeps answers.

An answer is forgotten 60 seconds after the question was put, when the database tells of a change (`NOTIFY directory`;
all answers go then), and whenever the connection that listens was lost or is back, since a notification may have been
missed. An answer that was under way when things changed is given to those who wait for it, and not kept.

Standards: RFC 5321 sections 2.4 (case), 4.1.3 (address literals) and 4.5.1 (postmaster), RFC 2142 (abuse), RFC 5233
(detail), RFC 5891 with UTS #46 (domains in U-form).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mailgate.envelope import Address, ForwardDestination, MailboxDestination, Resolution
from mailgate.interfaces import IDirectory
from mailgate.smtp.grammar import GrammarError, domain_key, local_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from mailgate.storage.pool import Connection, Pool, Row

CHANNEL = "directory"

_RESOLVE = (
    "SELECT kind, mailbox_id, local_part, domain_name, detail, is_enabled, quota_octets, octets"
    " FROM mailgate.resolve(%s, %s, %s, %s)"
)
_TIMEOUT_SECONDS = 5.0

log = Logger()


class Outcome(Enum):
    """What the directory says of an address."""

    DELIVERABLE = "deliverable"
    UNKNOWN = "unknown"  # the domain is ours, and there is no such recipient in it
    NOT_OURS = "not ours"
    DISABLED = "disabled"  # every mailbox that it leads to is switched off
    OVER_QUOTA = "over quota"
    SUSPENDED = "suspended"  # the domain is ours and not enabled
    MISCONFIGURED = "misconfigured"  # our aliases lead nowhere, or in circles


@dataclass(frozen=True, slots=True)
class Answer:
    """What an address leads to. Destinations are there only where the outcome is DELIVERABLE or OVER_QUOTA."""

    outcome: Outcome
    resolution: Resolution = field(default=Resolution())
    quota_free_octets: int | None = None  # the least that any of the mailboxes has left; None: no bound


@dataclass(slots=True)
class _Entry:
    """A kept answer, and what is needed to keep its quota up to date."""

    answer: Answer
    expires_at: float
    free_octets: dict[int, int]  # of the mailboxes that have a quota
    quota_octets: dict[int, int]


@implementer(IDirectory)
class Directory:
    """Knows the domains, mailboxes and aliases that are ours."""

    def __init__(
        self,
        clock: IReactorTime,
        pool: Pool,
        listener: Connection,
        *,
        postmaster: str | None = None,
        max_age_seconds: float = 60.0,
        max_entries: int = 20_000,
    ) -> None:
        """`listener` hears of changes; `postmaster` is the address that gets postmaster's mail if nobody else does."""
        self._clock = clock
        self._pool = pool
        self._postmaster = postmaster
        self._max_age_seconds = max_age_seconds
        self._max_entries = max_entries
        self._entries: OrderedDict[Address, _Entry] = OrderedDict()
        self._waiting: dict[Address, list[Deferred[Answer]]] = {}
        self._with_quota: dict[int, set[Address]] = {}  # by mailbox: the entries that depend on its usage
        listener.listen(CHANNEL, lambda _: self.forget())
        listener.on_reconnect(self.forget)
        listener.on_lost(self.forget)

    def resolve(self, address: Address) -> Answer | Deferred[Answer]:
        """What the address leads to: at once where it is known, else a Deferred that may be cancelled.

        The Deferred fails with StorageUnavailable where the database can't be asked.
        """
        entry = self._entries.get(address)
        if entry is not None:
            if self._clock.seconds() < entry.expires_at:
                self._entries.move_to_end(address)
                return entry.answer
            self._remove(address)
        try:
            domain = domain_key(address.domain) if address.domain else ""
        except GrammarError:
            return Answer(Outcome.NOT_OURS)
        waiter: Deferred[Answer] = Deferred()
        waiters = self._waiting.get(address)
        if waiters is not None:
            waiters.append(waiter)
            return waiter
        waiters = self._waiting[address] = [waiter]
        expires_at = self._clock.seconds() + self._max_age_seconds
        asked = Deferred.fromCoroutine(
            self._pool.execute(
                _RESOLVE,
                (local_key(address.local), domain, address.local, self._postmaster),
                timeout_seconds=_TIMEOUT_SECONDS,
            )
        )
        asked.addCallback(self._answered, address, waiters, expires_at)
        asked.addErrback(self._failed, address, waiters)
        return waiter

    def note_usage(self, mailbox_id: int, octets_used: int) -> None:
        """A commit has brought that mailbox to so many octets."""
        addresses = self._with_quota.get(mailbox_id)
        if addresses is None:
            return
        for address in addresses:
            entry = self._entries[address]
            entry.free_octets[mailbox_id] = entry.quota_octets[mailbox_id] - octets_used
            free = min(entry.free_octets.values())
            outcome = Outcome.DELIVERABLE if free > 0 else Outcome.OVER_QUOTA
            entry.answer = replace(entry.answer, outcome=outcome, quota_free_octets=free)

    def forget(self) -> None:
        """Ask the database again for everything, what is under way included."""
        self._entries.clear()
        self._with_quota.clear()
        self._waiting.clear()  # those who wait are still answered; whoever comes now asks anew

    def _answered(
        self, rows: Sequence[Row], address: Address, waiters: list[Deferred[Answer]], expires_at: float
    ) -> None:
        answer, quotas = _answer_of(rows, address)
        if self._waiting.get(address) is waiters:
            del self._waiting[address]
            self._keep(address, answer, quotas, expires_at)
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(answer)

    def _failed(self, failure: Failure, address: Address, waiters: list[Deferred[Answer]]) -> None:
        if self._waiting.get(address) is waiters:
            del self._waiting[address]
        for waiter in waiters:
            if not waiter.called:
                waiter.errback(failure.value)

    def _keep(self, address: Address, answer: Answer, quotas: dict[int, tuple[int, int]], expires_at: float) -> None:
        while len(self._entries) >= self._max_entries:
            self._remove(next(iter(self._entries)))
        self._entries[address] = _Entry(
            answer,
            expires_at,
            {mailbox_id: quota - used for mailbox_id, (quota, used) in quotas.items()},
            {mailbox_id: quota for mailbox_id, (quota, _) in quotas.items()},
        )
        for mailbox_id in quotas:
            self._with_quota.setdefault(mailbox_id, set()).add(address)

    def _remove(self, address: Address) -> None:
        entry = self._entries.pop(address)
        for mailbox_id in entry.quota_octets:
            addresses = self._with_quota[mailbox_id]
            addresses.discard(address)
            if not addresses:
                del self._with_quota[mailbox_id]


def _answer_of(rows: Sequence[Row], address: Address) -> tuple[Answer, dict[int, tuple[int, int]]]:
    """The answer that the rows of `mailgate.resolve` make, and quota and usage of its mailboxes by id."""
    mailboxes: dict[int, MailboxDestination] = {}
    forwards: dict[str, ForwardDestination] = {}
    quotas: dict[int, tuple[int, int]] = {}
    is_disabled = False
    kinds = set()
    for kind, mailbox_id, local_part, domain, detail, is_enabled, quota_octets, octets in rows:
        kinds.add(kind)
        if kind == "forward":
            target = str(Address(local_part, domain))
            forwards.setdefault(target, ForwardDestination(target))
        elif kind == "mailbox" and not is_enabled:
            is_disabled = True
        elif kind == "mailbox" and mailbox_id not in mailboxes:
            mailboxes[mailbox_id] = MailboxDestination(mailbox_id, str(Address(local_part, domain)), detail or "")
            if quota_octets is not None:
                quotas[mailbox_id] = (quota_octets, octets or 0)
        elif kind == "dangling":
            log.warn("{recipient} leads to {target}, which leads nowhere", recipient=str(address), target=local_part)
    if "not_ours" in kinds:
        return Answer(Outcome.NOT_OURS), {}
    if "too_deep" in kinds:
        log.error("{recipient}: aliases of aliases, more than we follow", recipient=str(address))
        return Answer(Outcome.MISCONFIGURED), {}
    if mailboxes or forwards:
        # One mailbox without room is enough to ask the client to wait: what is taken has to reach all of them.
        free = min((quota - used for quota, used in quotas.values()), default=None)
        outcome = Outcome.DELIVERABLE if free is None or free > 0 else Outcome.OVER_QUOTA
        return Answer(outcome, Resolution((*mailboxes.values(), *forwards.values())), free), quotas
    if "suspended" in kinds:
        return Answer(Outcome.SUSPENDED), {}
    if is_disabled:
        return Answer(Outcome.DISABLED), {}
    if "unknown" in kinds:
        return Answer(Outcome.UNKNOWN), {}
    return Answer(Outcome.MISCONFIGURED), {}
