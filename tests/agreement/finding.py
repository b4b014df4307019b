"""What is compared: the word that each method comes to, and what DMARC asks for and where."""

from __future__ import annotations

import re
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailgate.auth.arc import ArcOptions
from mailgate.auth.dkim import DkimOptions
from mailgate.auth.results import ArcResult, AuthorFault, DkimResult, DmarcResult, Result, SpfResult
from mailgate.dns.settle import Resolver
from mailgate.envelope import Address, ReversePath
from mailgate.message import MessageContent
from mailgate.policy.arc import ArcPolicy
from mailgate.policy.dkim import DkimPolicy
from mailgate.policy.dmarc import DmarcOptions, DmarcPolicy
from mailgate.policy.spf import SpfOptions, SpfPolicy
from mailgate.policy.stage import Request, Role, SessionView, Stage, TransactionView
from tests.agreement.case import Case

_Policy = SpfPolicy | DkimPolicy | ArcPolicy | DmarcPolicy


@dataclass(frozen=True, slots=True)
class Finding:
    """The words, with a blank between those for several signatures."""

    spf: str
    dkim: str
    arc: str
    dmarc: str  # result, policy that applies, domain where it was found; or "no author"


METHODS = ("spf", "dkim", "arc", "dmarc")


class Judge:
    """mailgate's own policies, one behind the other as the chain asks them."""

    def __init__(self, resolver: Resolver, receiver: str, now: float) -> None:
        clock = Clock()
        clock.advance(now)
        self._now = now
        self._spf = SpfPolicy(SpfOptions(), resolver, receiver, lambda: now)
        self._at_end: tuple[_Policy, ...] = (
            DkimPolicy(DkimOptions(), resolver, clock),
            ArcPolicy(ArcOptions(), resolver, clock),
            DmarcPolicy(DmarcOptions(), resolver),
        )

    def finding(self, case: Case) -> Finding:
        """What they find."""
        session = SessionView(
            id=1,
            listener="smtp",
            role=Role.MX,
            client_address=case.client_address,
            client_port=1025,
            client_network=case.client_address,
            server_address="192.0.2.254",
            server_port=25,
            started_at=self._now,
            helo=case.helo,
        )
        transaction = TransactionView(1, self._now, _reverse_path(case.reverse_path))
        notes = _notes(self._spf, Request(Stage.MAIL, session, transaction))
        content = MessageContent([case.message], len(case.message), b"")
        for policy in self._at_end:
            request = Request(Stage.END_OF_DATA, session, transaction, content=content, notes=notes)
            notes += _notes(policy, request)
        spf = next(note for note in notes if isinstance(note, SpfResult) and note.identity == "mailfrom")
        signatures = [note for note in notes if isinstance(note, DkimResult) and note.result is not Result.NONE]
        arc = next(note for note in notes if isinstance(note, ArcResult))
        return Finding(
            spf=spf.result.value,
            dkim=" ".join(note.result.value for note in signatures) or "none",
            arc=arc.result.value,
            dmarc=next(_dmarc_words(note) for note in notes if isinstance(note, DmarcResult | AuthorFault)),
        )


def _dmarc_words(note: DmarcResult | AuthorFault) -> str:
    if isinstance(note, AuthorFault):
        return "no author"
    return " ".join(filter(None, (note.result.value, note.policy, note.policy_domain)))


def _notes(policy: _Policy, request: Request) -> tuple[object, ...]:
    verdict = policy.decide(request)
    assert not isinstance(verdict, Deferred)  # the zone answers at once
    return verdict.notes


def _reverse_path(text: str) -> ReversePath:
    if not text:
        return ReversePath(None)
    local, _, domain = text.rpartition("@")
    if local.startswith('"'):
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return ReversePath(Address(local, domain))
