"""The policy `dkim`: verifies the signatures of a message, and objects to nothing.

What a signature proves is `mailgate.auth.dkim`; whether it matters is DMARC's business. The results are notes, one for
each signature that was tried, or one that says `none`.

Standards: RFC 6376 section 6 (the verifier); RFC 6376 section 6.3 (a verifier should not refuse mail by itself).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailgate.auth.dkim import DkimOptions, read, verify
from mailgate.interfaces import IPolicy
from mailgate.policy.body_hashing import settle_with_body
from mailgate.policy.stage import Request, Stage
from mailgate.policy.verdict import Continue, Verdict

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mailgate.dns.settle import Resolver

_CONTINUE = Continue()


@implementer(IPolicy)
class DkimPolicy:
    """Verifies signatures."""

    name = "dkim"
    stages = frozenset({Stage.END_OF_DATA})
    waits_for_dns = True

    def __init__(self, options: DkimOptions, resolver: Resolver, clock: IReactorTime) -> None:
        self.options = options
        self._resolver = resolver
        self._clock = clock

    def decide(self, request: Request) -> Verdict | Deferred[Verdict]:
        """Continue, with a DkimResult for each signature as notes; at once where keys are known and the body small."""
        content = request.content
        if content is None:
            return _CONTINUE
        message = read(content, self.options)
        if not message.candidates:
            return Continue(message.settled)
        results = settle_with_body(
            content,
            message.forms,
            lambda answers, now, hashes: verify(message, answers, self.options, now, hashes),
            self._resolver,
            self._clock,
        )
        return results.addCallback(Continue) if isinstance(results, Deferred) else Continue(results)
