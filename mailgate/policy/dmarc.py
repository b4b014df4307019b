"""The policy `dmarc`: does what the author's domain asks for with a message that is not from it.

Asked at the end of data, once `dkim` and `arc` have answered; SPF was found at MAIL. What the domain asks for is done
by default: refuse (p=reject), keep in Junk (p=quarantine), nothing (p=none). Config may do less, or more.

A message that names no single author's domain (no From, two of them, no mailbox-list) can't be asked about, and would
pass every check that rests on the domain: it is refused, or kept in Junk if config says so.

Sessions with AUTH are not asked about: the client is known, and what it hands in is signed behind us.

An override is recorded with its reason in the words of RFC 9990: `trusted_forwarder` for a network or an ARC sealer
that config trusts, `local_policy` for a domain for which config knows better, `policy_test_mode` for t=y.

Standards: RFC 9989 sections 5.3 and 5.4 (the receiver's part), RFC 9990 section 3.1.1 (reasons), RFC 7372 and RFC 8601
(5.7.26).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailgate.auth.author import author_domain, authors_of
from mailgate.auth.dmarc import evaluate
from mailgate.auth.results import (
    AuthorFault,
    DkimResult,
    DmarcResult,
    PolicyOverride,
    Result,
    SpfResult,
    TrustedForwarder,
)
from mailgate.auth.tag_list import MalformedTags, name_value
from mailgate.dns.settle import settle
from mailgate.interfaces import IPolicy
from mailgate.policy.limits import is_in
from mailgate.policy.stage import Request, Stage
from mailgate.policy.verdict import Continue, Defer, Quarantine, Reject, Verdict
from mailgate.smtp.reply import reply
from mailgate.toml import ByName, IpNetwork, ListOf, Network, OneOf, Reader, Wrong

if TYPE_CHECKING:
    from mailgate.dns.answer import Answers
    from mailgate.dns.settle import Resolver

_CONTINUE = Continue()

Action = Literal["continue", "quarantine", "reject"]
_ACTION = OneOf(("continue", "quarantine", "reject"))


@dataclass(frozen=True, slots=True)
class AuthorDomain:
    """An author's domain in a configuration file."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The domain in A-form and lower case, as it is looked for."""
        try:
            return name_value(value.encode() if isinstance(value, str) else b"")
        except MalformedTags:
            raise Wrong(f"{value!r} is not a domain name", 'use the form "example.org"') from None


@dataclass(frozen=True, slots=True, kw_only=True)
class DmarcOptions:
    """The keys of a `[[policy]]` that uses `dmarc`."""

    # What is done where the domain asks for it: with mail that fails under p=reject, p=quarantine and p=none.
    on_reject: Annotated[Action, _ACTION] = "reject"
    on_quarantine: Annotated[Action, _ACTION] = "quarantine"
    on_none: Annotated[Action, _ACTION] = "continue"
    # With mail of which From names no author's domain, or more than one.
    on_no_author: Annotated[Action, _ACTION] = "reject"
    # With mail that can't be judged because the DNS does not answer: "defer" (451) or "continue".
    on_temperror: Annotated[Literal["defer", "continue"], OneOf(("defer", "continue"))] = "defer"
    # Clients that forward mail for our people: what fails from there is not held against it.
    trusted_forwarders: Annotated[tuple[Network, ...], ListOf(IpNetwork())] = ()
    # What is done with failing mail of some authors' domains, whatever they ask for: { "example.org" = "continue" }.
    overrides: Annotated[tuple[tuple[str, Action], ...], ByName(_ACTION, AuthorDomain())] = ()


@implementer(IPolicy)
class DmarcPolicy:
    """Evaluates DMARC, and acts on it."""

    name = "dmarc"
    stages = frozenset({Stage.END_OF_DATA})
    after = ("spf", "dkim", "arc")
    waits_for_dns = True

    def __init__(self, options: DmarcOptions, resolver: Resolver) -> None:
        self._options = options
        self._resolver = resolver
        self._overrides = dict(options.overrides)

    def decide(self, request: Request) -> Verdict | Deferred[Verdict]:
        """A verdict at once where all records are known, else a Deferred of one."""
        content = request.content
        if content is None:
            raise ValueError("DMARC is evaluated at the end of data")
        if request.session.authenticated is not None:
            return _CONTINUE
        authors = authors_of(content.header())
        domain = authors if isinstance(authors, AuthorFault) else author_domain(authors)
        if isinstance(domain, AuthorFault):
            return self._no_author(domain)
        spf = next((n for n in request.notes if isinstance(n, SpfResult) and n.identity == "mailfrom"), None)
        dkim = [note for note in request.notes if isinstance(note, DkimResult)]

        def evaluation(answers: Answers) -> DmarcResult:
            return evaluate(domain, spf, dkim, answers)

        result = settle(evaluation, self._resolver)
        if isinstance(result, DmarcResult):
            return self._verdict(result, request, spf, dkim)
        return result.addCallback(self._verdict, request, spf, dkim)

    def _verdict(
        self, result: DmarcResult, request: Request, spf: SpfResult | None, dkim: Sequence[DkimResult]
    ) -> Verdict:
        match result.result:
            case Result.TEMPERROR if self._options.on_temperror == "defer":
                return Defer(
                    reply(
                        451,
                        "4.7.26",
                        f"The DMARC policy of {result.author_domain} can't be looked up now; try again later",
                    ),
                    (result,),
                )
            case Result.FAIL:
                return self._failed(result, request, spf, dkim)
            case _:
                return Continue((result,))

    def _failed(
        self, result: DmarcResult, request: Request, spf: SpfResult | None, dkim: Sequence[DkimResult]
    ) -> Verdict:
        wanted: Action = {
            "reject": self._options.on_reject,
            "quarantine": self._options.on_quarantine,
            "none": self._options.on_none,
        }[result.policy]
        override = self._override(result, request)
        notes: tuple[object, ...] = (result,) if override is None else (result, override)
        if override is not None:
            wanted = override.action if override.action is not None else wanted
        match wanted:
            case "continue":
                return Continue(notes)
            case "quarantine":
                return Quarantine(f"DMARC fails for {result.author_domain}, which asks for {result.policy}", notes)
            case "reject":
                return Reject(
                    reply(
                        550,
                        "5.7.26",
                        f"This message is not authenticated as from {result.author_domain}, "
                        f"whose DMARC policy is {result.policy}.",
                        _what_was_found(spf, dkim),
                        f"To be accepted, mail from {result.author_domain} needs a DKIM signature of that domain, or "
                        "SPF to pass for it (RFC 9989)",
                    ),
                    notes,
                )

    def _override(self, result: DmarcResult, request: Request) -> PolicyOverride | None:
        forwarder = next((note for note in request.notes if isinstance(note, TrustedForwarder)), None)
        if forwarder is not None:
            return PolicyOverride("trusted_forwarder", f"ARC chain sealed by {forwarder.sealer}", "continue")
        if is_in(request.session.client_address, self._options.trusted_forwarders):
            return PolicyOverride("trusted_forwarder", f"client {request.session.client_address}", "continue")
        for domain in (result.author_domain, result.organizational_domain):
            action = self._overrides.get(domain)
            if action is not None:
                return PolicyOverride("local_policy", f"overrides has {domain}", action)
        if result.is_testing and result.policy != result.published_policy:
            return PolicyOverride("policy_test_mode", "t=y", None)
        return None

    def _no_author(self, fault: AuthorFault) -> Verdict:
        match self._options.on_no_author:
            case "continue":
                return Continue((fault,))
            case "quarantine":
                return Quarantine(f"DMARC finds no author: {fault.problem}", (fault,))
            case "reject":
                return Reject(
                    reply(550, "5.7.1", f"The author of this message can't be told: {fault.problem} (RFC 5322)"),
                    (fault,),
                )


def _what_was_found(spf: SpfResult | None, dkim: Sequence[DkimResult]) -> str:
    parts = [f"SPF: {spf.result.value} for {spf.domain}" if spf is not None else "SPF: not checked"]
    signatures = [
        f"{each.result.value} for {each.domain or 'a signature of nobody'}"
        for each in dkim
        if each.result is not Result.NONE
    ]
    parts.append("DKIM: " + (", ".join(signatures[:3]) if signatures else "no signature"))
    return "; ".join(parts) + "."
