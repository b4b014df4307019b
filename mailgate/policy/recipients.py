"""The policy `recipients`: whether a forward-path is one that we take mail for, and what it leads to.

It leaves a `Resolution` as its note. It relays for nobody but sessions that have authenticated; the shapes in which
relaying is tried (`a%b@ours`, `b!a@ours`, `"a@b"@ours`, a source route, a trailing dot, address literals that aren't
ours) all end in the same refusal. Doubt on our side is a 4xx.

Standards: RFC 5321 sections 3.3, 3.6 and 4.1.1.3, RFC 3463 (status codes), RFC 1870 section 6.1 (SIZE against what
is left of a quota).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailgate.envelope import Address, ForwardDestination, Resolution
from mailgate.interfaces import IPolicy
from mailgate.policy.stage import Stage
from mailgate.policy.verdict import Continue, Defer, Reject
from mailgate.smtp.grammar import GrammarError, domain_key, has_routing
from mailgate.smtp.reply import reply
from mailgate.storage.directory import Answer, Directory, Outcome
from mailgate.storage.errors import StorageUnavailable

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from mailgate.policy.stage import Request
    from mailgate.policy.verdict import Verdict

_UNKNOWN = Reject(reply(550, "5.1.1", "No such recipient here"))
_RELAYING = Reject(reply(550, "5.7.1", "Relaying denied"))
_DISABLED = Reject(reply(550, "5.2.1", "This mailbox is disabled"))
_OVER_QUOTA = Defer(reply(452, "4.2.2", "The mailbox is full, try again later"))
_SUSPENDED = Defer(reply(450, "4.2.1", "This domain takes no mail at present, try again later"))
_MISCONFIGURED = Defer(reply(451, "4.3.5", "This recipient leads nowhere at present, try again later"))
_UNAVAILABLE = Defer(reply(451, "4.3.0", "Can't look up recipients at present, try again later"))


@implementer(IPolicy)
class RecipientsPolicy:
    """Accepts recipients that are ours, and any for who has authenticated."""

    name = "recipients"
    stages = frozenset({Stage.RCPT})

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def decide(self, request: Request) -> Verdict | Deferred[Verdict]:
        """A verdict at once where the directory knows the recipient, else a Deferred of one."""
        if request.forward_path is None:
            raise ValueError("recipients are decided on at RCPT")
        answer = self._directory.resolve(request.forward_path.address)
        if isinstance(answer, Answer):
            return _verdict(answer, request, request.forward_path.address)
        return answer.addCallbacks(_verdict, _failed, callbackArgs=(request, request.forward_path.address))


def _verdict(answer: Answer, request: Request, address: Address) -> Verdict:
    match answer.outcome:
        case Outcome.DELIVERABLE:
            free = answer.quota_free_octets
            if free is not None and request.transaction is not None:
                size = request.transaction.reverse_path.parameters.size_octets
                if size is not None and size > free:
                    return _OVER_QUOTA
            return Continue((answer.resolution,))
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


def _elsewhere(address: Address) -> Verdict:
    try:
        target = Address(address.local, domain_key(address.domain))
    except GrammarError:
        return _RELAYING
    return Continue((Resolution((ForwardDestination(str(target)),)),))


def _failed(failure: Failure) -> Verdict:
    failure.trap(StorageUnavailable)
    return _UNAVAILABLE
