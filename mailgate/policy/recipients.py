"""The policy `recipients`: whether a forward-path is one that we take mail for, and what it leads to.

It leaves a `Resolution` as its note. It relays for nobody but sessions that have authenticated; the shapes in which
relaying is tried (`a%b@ours`, `b!a@ours`, `"a@b"@ours`, a source route, a trailing dot, address literals that aren't
ours) all end in the same refusal. Doubt on our side is a 4xx.

Where an alias leads elsewhere, the reverse-path that the message goes on with is rewritten to one at the alias' domain
(`mailgate.auth.srs`), unless it is ours anyway or null; and a bounce to such a path leads to whom it was.

Standards: RFC 5321 sections 3.3, 3.6 and 4.1.1.3, RFC 3463 (status codes), RFC 1870 section 6.1 (SIZE against what
is left of a quota), RFC 4865 (held mail).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailgate.auth.srs import NamedTransaction, Srs, SrsFault, is_srs
from mailgate.envelope import Address, ForwardDestination, MailboxDestination, Resolution
from mailgate.interfaces import IPolicy
from mailgate.policy.stage import Stage
from mailgate.policy.verdict import Continue, Defer, Reject
from mailgate.smtp.grammar import GrammarError, domain_key, has_routing, parse_mailbox
from mailgate.smtp.reply import reply
from mailgate.storage.directory import Answer, Directory, Outcome
from mailgate.storage.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.python.failure import Failure

    from mailgate.policy.stage import Request
    from mailgate.policy.verdict import Verdict

_UNKNOWN = Reject(reply(550, "5.1.1", "No such recipient here"))
_RELAYING = Reject(reply(550, "5.7.1", "Relaying denied"))
_DISABLED = Reject(reply(550, "5.2.1", "This mailbox is disabled"))
_OVER_QUOTA = Defer(reply(452, "4.2.2", "The mailbox is full, try again later"))
_NOT_HELD = Reject(reply(550, "5.3.3", "Mail for a mailbox here can't be held: send it without HOLDFOR or HOLDUNTIL"))
_SUSPENDED = Defer(reply(450, "4.2.1", "This domain takes no mail at present, try again later"))
_MISCONFIGURED = Defer(reply(451, "4.3.5", "This recipient leads nowhere at present, try again later"))
_UNAVAILABLE = Defer(reply(451, "4.3.0", "Can't look up recipients at present, try again later"))
_NOT_A_BOUNCE = Reject(reply(550, "5.7.1", "This address takes back what could not be delivered, and nothing else"))
_NOT_REWRITTEN = Reject(reply(550, "5.1.1", "No such recipient here: nobody has forwarded mail with this address"))
_EXPIRED = Reject(reply(550, "5.1.1", "No such recipient here any more: this address has expired"))

# Of a domain that is ours, and takes mail.
_ELSEWHERE = frozenset({Outcome.NOT_OURS, Outcome.SUSPENDED})


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What reverse-paths of forwarded mail are rewritten with."""

    srs: Srs
    # The reverse-path of a transaction of ours, None where it is not on record. @raises StorageUnavailable.
    reverse_path_of: Callable[[int], Awaitable[str | None]]
    time: Callable[[], float]  # seconds since the epoch


@implementer(IPolicy)
class RecipientsPolicy:
    """Accepts recipients that are ours, and any for who has authenticated."""

    name = "recipients"
    stages = frozenset({Stage.RCPT})

    def __init__(self, directory: Directory, rewriting: Rewriting | None = None) -> None:
        """Without `rewriting`, mail is forwarded with the reverse-path that it came with."""
        self._directory = directory
        self._rewriting = rewriting

    def decide(self, request: Request) -> Verdict | Deferred[Verdict]:
        """A verdict at once where the directory knows the recipient, else a Deferred of one."""
        if request.forward_path is None:
            raise ValueError("recipients are decided on at RCPT")
        address = request.forward_path.address
        if self._rewriting is not None and is_srs(address.local):
            return Deferred.fromCoroutine(self._returned(self._rewriting, request, address))
        answer = self._directory.resolve(address)
        if isinstance(answer, Answer):
            return self._decided(answer, request, address)
        return answer.addCallbacks(self._decided, _failed, callbackArgs=(request, address))

    def _decided(self, answer: Answer, request: Request, address: Address) -> Verdict | Deferred[Verdict]:
        verdict = _verdict(answer, request, address)
        if self._rewriting is None or type(verdict) is not Continue or not _is_forwarded(answer):
            return verdict
        reverse_path = request.transaction.reverse_path.address if request.transaction is not None else None
        if reverse_path is None or request.transaction is None:
            return verdict
        try:
            home, there = domain_key(address.domain), domain_key(reverse_path.domain)
        except GrammarError:  # the bare <Postmaster>, which has no domain that a bounce could come back to
            return verdict
        now = self._rewriting.time()
        path = self._rewriting.srs.rewrite(Address(reverse_path.local, there), home, now, request.transaction.id)

        def decided(of_reverse_path: Answer) -> Verdict:
            if of_reverse_path.outcome is not Outcome.NOT_OURS:
                return verdict  # our own domain lets our hosts send
            return Continue((_with_reverse_path(answer.resolution, str(path)),))

        found = self._directory.resolve(reverse_path)
        return decided(found) if isinstance(found, Answer) else found.addCallbacks(decided, _failed)

    async def _returned(self, rewriting: Rewriting, request: Request, address: Address) -> Verdict:
        """What becomes of mail to a path that we have rewritten, or that looks like one."""
        try:
            answer = await self._resolved(address)
            if answer.outcome in _ELSEWHERE:
                return _verdict(answer, request, address)
            if request.transaction is not None and request.transaction.reverse_path.address is not None:
                return _NOT_A_BOUNCE
            found = rewriting.srs.read(address.local, rewriting.time())
            if isinstance(found, NamedTransaction):
                found = _on_record(await rewriting.reverse_path_of(found.transaction_id))
            if isinstance(found, SrsFault):
                return _EXPIRED if found.is_expired else _NOT_REWRITTEN
            answer = await self._resolved(found)
            # Its domain may have become ours since.
            return _elsewhere(found) if answer.outcome is Outcome.NOT_OURS else _verdict(answer, request, found)
        except StorageUnavailable:
            return _UNAVAILABLE

    async def _resolved(self, address: Address) -> Answer:
        answer = self._directory.resolve(address)
        return answer if isinstance(answer, Answer) else await answer


def _is_forwarded(answer: Answer) -> bool:
    return any(isinstance(each, ForwardDestination) for each in answer.resolution.destinations)


def _with_reverse_path(resolution: Resolution, reverse_path: str) -> Resolution:
    return Resolution(
        tuple(
            replace(each, reverse_path=reverse_path) if isinstance(each, ForwardDestination) else each
            for each in resolution.destinations
        )
    )


def _on_record(reverse_path: str | None) -> Address | SrsFault:
    try:
        return parse_mailbox(reverse_path or "")
    except GrammarError:
        return SrsFault("its transaction is not on record any more", is_expired=True)


def _verdict(answer: Answer, request: Request, address: Address) -> Verdict:
    match answer.outcome:
        case Outcome.DELIVERABLE:
            return _objection(answer, request) or Continue((answer.resolution,))
        case Outcome.UNKNOWN:
            # A name of ours would have been found; so it asks us to pass the message on.
            return _RELAYING if has_routing(address.local) else _UNKNOWN
        case Outcome.NOT_OURS:
            if request.session.authenticated is None:
                return _RELAYING
            return _elsewhere(address)
        case Outcome.DISABLED:
            return _DISABLED
        case Outcome.OVER_QUOTA:
            return _OVER_QUOTA
        case Outcome.SUSPENDED:
            return _SUSPENDED
        case Outcome.MISCONFIGURED:
            return _MISCONFIGURED
        case _:
            assert_never(answer.outcome)


def _objection(answer: Answer, request: Request) -> Verdict | None:
    """Why this message can't go where its recipient leads; None if it can."""
    if request.transaction is None:
        return None
    parameters, free = request.transaction.reverse_path.parameters, answer.quota_free_octets
    if free is not None and parameters.size_octets is not None and parameters.size_octets > free:
        return _OVER_QUOTA
    # The queue holds mail, and only what leaves goes through it. To deliver at once would be what was not asked for.
    if parameters.hold_until is not None and any(
        isinstance(each, MailboxDestination) for each in answer.resolution.destinations
    ):
        return _NOT_HELD
    return None


def _elsewhere(address: Address) -> Verdict:
    try:
        target = Address(address.local, domain_key(address.domain))
    except GrammarError:
        return _RELAYING
    return Continue((Resolution((ForwardDestination(str(target)),)),))


def _failed(failure: Failure) -> Verdict:
    failure.trap(StorageUnavailable)
    return _UNAVAILABLE
