"""The policy `arc`: verifies the chain of those who handled a message, and objects to nothing.

What the chain proves is `mailgate.auth.arc`. Its notes are the ArcResult and, where somebody whom config trusts vouches
for the author, a TrustedForwarder, on which the policy `dmarc` lets a message through that it would refuse.

Standards: RFC 8617 section 7.2 (what a receiver makes of a chain).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailgate.auth.arc import ArcOptions, read, verify
from mailgate.auth.author import author_domain, authors_of
from mailgate.auth.forwarder import trusted_forwarder
from mailgate.auth.results import ArcResult, AuthorFault, TrustedForwarder
from mailgate.interfaces import IPolicy
from mailgate.policy.body_hashing import settle_with_body
from mailgate.policy.stage import Request, Stage
from mailgate.policy.verdict import Continue, Verdict

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mailgate.dns.settle import Resolver
    from mailgate.message import MessageContent

_CONTINUE = Continue()


@implementer(IPolicy)
class ArcPolicy:
    """Verifies chains."""

    name = "arc"
    stages = frozenset({Stage.END_OF_DATA})
    waits_for_dns = True

    def __init__(self, options: ArcOptions, resolver: Resolver, clock: IReactorTime) -> None:
        self.options = options
        self._resolver = resolver
        self._clock = clock

    def decide(self, request: Request) -> Verdict | Deferred[Verdict]:
        """Continue, with an ArcResult as a note; at once where the keys are known and the body is small."""
        content = request.content
        if content is None:
            return _CONTINUE
        chain = read(content, self.options)
        if chain.settled is not None:
            return Continue((chain.settled,))
        result = settle_with_body(
            content,
            chain.forms,
            lambda answers, now, hashes: verify(chain, answers, self.options, now, hashes),
            self._resolver,
            self._clock,
        )
        if isinstance(result, Deferred):
            return result.addCallback(self._verdict, content)
        return self._verdict(result, content)

    def _verdict(self, result: ArcResult, content: MessageContent) -> Verdict:
        forwarder = self._forwarder(result, content)
        return Continue((result,) if forwarder is None else (result, forwarder))

    def _forwarder(self, result: ArcResult, content: MessageContent) -> TrustedForwarder | None:
        if not self.options.trusted_sealers:
            return None
        authors = authors_of(content.header())
        domain = authors if isinstance(authors, AuthorFault) else author_domain(authors)
        if isinstance(domain, AuthorFault):
            return None
        return trusted_forwarder(result, self.options.trusted_sealers, domain)
