"""The policy `spf`: asks the domains named in HELO and MAIL whether they know the client.

Asked when either is spoken; the results are notes. Domains forward, and mailing lists send, under names that SPF can't
vouch for, so that by default a result only informs DMARC, which also looks at signatures. One thing SPF refuses by
itself: a name whose record is nothing but `v=spf1 -all`. Such a domain says that it sends no mail at all, and that it
is in HELO or MAIL is forgery whoever forwards it.

A temporary error is left to DMARC as well: a signature may still prove where the message is from, and mail should not
wait for a DNS that nobody needs in the end. Where DMARC comes to need it, DMARC defers.

Sessions with AUTH are not checked: the client is known, and writes from wherever it is. On a listener for submission,
HELO is therefore asked about together with MAIL, when it is clear that nobody logged in.

Standards: RFC 7208 sections 2.3, 2.4 and 8; RFC 7372 section 3.2 (5.7.23, 5.7.24); RFC 7489 section 10.1 (why a
receiver should wait for DMARC).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailgate.auth.results import Result, SpfResult
from mailgate.auth.spf import Identity, check, domain_of
from mailgate.dns.settle import settle
from mailgate.interfaces import IPolicy
from mailgate.policy.stage import Request, Role, Stage
from mailgate.policy.verdict import Continue, Defer, Reject, Verdict
from mailgate.smtp.reply import reply
from mailgate.toml import Boolean, OneOf

if TYPE_CHECKING:
    from mailgate.dns.answer import Answers
    from mailgate.dns.settle import Resolver

_CONTINUE = Continue()

_SENDS_NO_MAIL = ["v=spf1", "-all"]

Refusal = Literal["continue", "reject"]
_REFUSAL = OneOf(("continue", "reject"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpfOptions:
    """The keys of a `[[policy]]` that uses `spf`."""

    # Whether a name is refused, in HELO or MAIL, whose whole record is "v=spf1 -all".
    refuses_domains_that_send_no_mail: Annotated[bool, Boolean()] = True
    # What is done with other results, for either name: "continue" leaves it to DMARC.
    on_fail: Annotated[Refusal, _REFUSAL] = "continue"
    on_softfail: Annotated[Refusal, _REFUSAL] = "continue"
    on_permerror: Annotated[Refusal, _REFUSAL] = "continue"
    on_temperror: Annotated[Literal["continue", "defer"], OneOf(("continue", "defer"))] = "continue"


@implementer(IPolicy)
class SpfPolicy:
    """Evaluates SPF, and leaves most of what follows to DMARC."""

    name = "spf"
    stages = frozenset({Stage.HELO, Stage.MAIL})
    waits_for_dns = True

    def __init__(self, options: SpfOptions, resolver: Resolver, receiver: str, time: Callable[[], float]) -> None:
        """`receiver` is our name, `time` seconds since the epoch."""
        self._options = options
        self._resolver = resolver
        self._receiver = receiver
        self._time = time

    def decide(self, request: Request) -> Verdict | Deferred[Verdict]:
        """A verdict at once where all records are known, else a Deferred of one."""
        identities = _identities(request)
        if not identities:
            return _CONTINUE
        session = request.session
        sender = str(request.transaction.reverse_path) if request.transaction is not None else ""
        helo = session.helo or ""
        now = self._time()

        def evaluation(answers: Answers) -> tuple[SpfResult, ...]:
            return tuple(
                check(identity, session.client_address, sender, helo, self._receiver, answers, now)
                for identity in identities
            )

        results = settle(evaluation, self._resolver)
        if isinstance(results, Deferred):
            return results.addCallback(self._verdict, session.client_address)
        return self._verdict(results, session.client_address)

    def _verdict(self, results: tuple[SpfResult, ...], client_address: str) -> Verdict:
        for result in results:
            verdict = self._objection(result, client_address, results)
            if verdict is not None:
                return verdict
        return Continue(results)

    def _objection(self, result: SpfResult, client: str, notes: tuple[SpfResult, ...]) -> Verdict | None:
        options = self._options
        domain = result.domain
        match result.result:
            case Result.FAIL:
                if options.refuses_domains_that_send_no_mail and result.record.lower().split() == _SENDS_NO_MAIL:
                    lines: tuple[str, ...] = (
                        f"{domain} sends no mail: its SPF record is {result.record}.",
                        f"Should it send mail after all, its record must allow {client} (RFC 7208)",
                    )
                elif options.on_fail == "reject":
                    lines = (
                        f"{domain} does not allow {client} to send mail for it: SPF fails at {result.mechanism}.",
                        *_explained(result),
                        f"Its SPF record must allow {client}, or the mail must take the way that it allows (RFC 7208)",
                    )
                else:
                    return None
                return Reject(reply(550, "5.7.23", *lines), notes)
            case Result.SOFTFAIL if options.on_softfail == "reject":
                return Reject(
                    reply(
                        550,
                        "5.7.23",
                        f"{domain} probably does not allow {client} to send mail for it: SPF softfails at "
                        f"{result.mechanism}, which is not taken here (RFC 7208)",
                    ),
                    notes,
                )
            case Result.PERMERROR if options.on_permerror == "reject":
                return Reject(
                    reply(550, "5.7.24", f"The SPF record of {domain} is broken: {result.problem} (RFC 7208)"), notes
                )
            case Result.TEMPERROR if options.on_temperror == "defer":
                return Defer(
                    reply(451, "4.7.24", f"SPF of {domain} can't be checked: {result.problem}; try again later"), notes
                )
            case _:
                return None


def _identities(request: Request) -> tuple[Identity, ...]:
    """What is to be checked now."""
    session = request.session
    if session.authenticated is not None:
        return ()
    has_name = session.helo is not None and domain_of(session.helo) is not None
    if request.stage is Stage.HELO:
        return ("helo",) if has_name and session.role is Role.MX else ()
    is_known = any(isinstance(note, SpfResult) and note.identity == "helo" for note in request.notes)
    return ("helo", "mailfrom") if has_name and not is_known else ("mailfrom",)


def _explained(result: SpfResult) -> tuple[str, ...]:
    """What the domain has to say, as its own words (RFC 7208 section 6.2)."""
    return (f"{result.domain} explains: {result.explanation}",) if result.explanation else ()
