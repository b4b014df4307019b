"""Who may send as whom, and how much an account has sent today: asked of the database, remembered for a short while.

The rule (a mailbox's own address, aliases, details, grants) is the SQL function `mailgate.sender_rights`: one round
trip for an account and an address. What is remembered is forgotten 60 seconds after the question was put, when the
database tells of a change (`NOTIFY directory`), and whenever the connection that listens was lost or is back.

The count of a day (UTC) is kept in the database for all nodes, and decided there: `count` counts a message or says that
it would be too much. What is remembered of it only tells a client earlier, before it has sent a message in vain.

Standards: none; RFC 6409 section 6.1 lets a submission server enforce who sends as whom.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from mailgate.envelope import Address
from mailgate.smtp.grammar import GrammarError, domain_key, local_key, parse_mailbox
from mailgate.storage import literal
from mailgate.storage.directory import CHANNEL
from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mailgate.storage.pool import Connection, Pool, Row

_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SendingLimits:
    """What an account may send in a day (UTC), unless it has a limit of its own."""

    messages: int = 500
    recipients: int = 1000


@dataclass(frozen=True, slots=True)
class Sent:
    """What an account has sent on a day (UTC)."""

    day: date
    messages: int
    recipients: int


@dataclass(frozen=True, slots=True)
class Rights:
    """What an account may do with one address."""

    mailbox_id: int
    is_enabled: bool
    is_own: bool  # it may send as that address
    limits: SendingLimits


class Senders:
    """Knows what accounts may send."""

    def __init__(
        self,
        pool: Pool,
        listener: Connection,
        limits: SendingLimits,
        time: Callable[[], float],
        *,
        max_age_seconds: float = 60.0,
        max_entries: int = 20_000,
    ) -> None:
        """`listener` hears of changes; `time` gives seconds since the epoch."""
        self.limits = limits  # for questions that are put from now on
        self._pool = pool
        self._time = time
        self._max_age_seconds = max_age_seconds
        self._max_entries = max_entries
        self._known: OrderedDict[tuple[str, Address | None], tuple[Rights | None, float]] = OrderedDict()
        self._sent: OrderedDict[int, Sent] = OrderedDict()
        self._changes = 0
        listener.listen(CHANNEL, lambda _: self.forget())
        listener.on_reconnect(self.forget)
        listener.on_lost(self.forget)

    def rights(self, account: str, address: Address | None) -> Rights | Deferred[Rights | None] | None:
        """What the account may do with the address (None: with no address at all); None where there is no such account.

        At once where it is known, else a Deferred that may be cancelled; it fails with StorageUnavailable.
        """
        known = self._known.get((account, address))
        if known is not None and self._time() < known[1]:
            self._known.move_to_end((account, address))
            return known[0]
        try:
            name = parse_mailbox(account)
            account_local, account_domain = local_key(name.local), domain_key(name.domain)
        except GrammarError:
            return None
        folded = _folded(address)
        return Deferred.fromCoroutine(self._ask(account, address, Address(account_local, account_domain), folded))

    async def _ask(self, account: str, address: Address | None, name: Address, folded: Address | None) -> Rights | None:
        changes, expires_at = self._changes, self._time() + self._max_age_seconds
        values = {
            "account_local": name.local,
            "account_domain": name.domain,
            "address_local": None if folded is None else folded.local,
            "address_domain": None if folded is None else folded.domain,
            "address": None if folded is None else str(folded),
        }
        statement = QUERIES["sender_rights"] % {
            key.encode("ascii"): literal.encoded(literal.text(value)) for key, value in values.items()
        }
        rights = self._rights_of(await self._pool.execute(statement, timeout_seconds=_TIMEOUT_SECONDS))
        if changes == self._changes:
            _keep(self._known, (account, address), (rights, expires_at), self._max_entries)
        return rights

    def _rights_of(self, rows: Sequence[Row]) -> Rights | None:
        if not rows:
            return None
        ((mailbox_id, is_enabled, own_limit, is_own, day, messages, recipients),) = rows
        self._note(mailbox_id, Sent(day, messages, recipients))
        limits = self.limits if own_limit is None else SendingLimits(own_limit, own_limit)
        return Rights(mailbox_id, is_enabled, is_own, limits)

    def sent_today(self, mailbox_id: int) -> Sent:
        """What the account has sent today, as far as is known here."""
        today = datetime.fromtimestamp(self._time(), UTC).date()
        sent = self._sent.get(mailbox_id)
        return sent if sent is not None and sent.day >= today else Sent(today, 0, 0)

    async def count(self, rights: Rights, recipients: int) -> bool:
        """Count a message to so many recipients; False, and nothing is counted, where it would be over a limit.

        @raises StorageUnavailable: whether it was counted is unknown.
        """
        limits = rights.limits
        values = {
            "mailbox_id": rights.mailbox_id,
            "recipients": recipients,
            "messages_limit": limits.messages,
            "recipients_limit": limits.recipients,
        }
        statement = QUERIES["count_sending"] % {
            key.encode("ascii"): str(value).encode("ascii") for key, value in values.items()
        }
        rows = await self._pool.execute(statement, timeout_seconds=_TIMEOUT_SECONDS)
        if rows:
            ((day, messages, all_recipients),) = rows
            self._note(rights.mailbox_id, Sent(day, messages, all_recipients))
        return bool(rows)

    def forget(self) -> None:
        """Ask the database again for everything; what is under way is not kept."""
        self._known.clear()
        self._sent.clear()
        self._changes += 1

    def _note(self, mailbox_id: int, sent: Sent) -> None:
        _keep(self._sent, mailbox_id, sent, self._max_entries)


def _folded(address: Address | None) -> Address | None:
    """What an address is compared by; None for one that can't be anybody's."""
    if address is None or not address.domain:
        return None
    try:
        return replace(address, local=local_key(address.local), domain=domain_key(address.domain))
    except GrammarError:
        return None


def _keep(kept: OrderedDict, key: object, value: object, max_entries: int) -> None:  # type: ignore[type-arg]  # any
    kept.pop(key, None)
    while len(kept) >= max_entries:
        kept.popitem(last=False)
    kept[key] = value
