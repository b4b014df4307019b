"""The policy `results`: writes what authentication found into the message, and takes out what claims to be that.

It objects to nothing, and is always the last to be asked at the end of data. No configuration can leave it out:
a field that claims to be ours must not stand, whoever brings the message.

Standards: RFC 8601 sections 4 and 5; RFC 7208 section 9.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zope.interface import implementer

from mailgate.auth.authentication_results import authentication_results, claims, received_spf
from mailgate.auth.results import ArcResult, AuthorFault, DkimResult, DmarcResult, SpfResult
from mailgate.interfaces import IPolicy
from mailgate.policy.stage import RemovedFields, Request, Stage, TraceFields
from mailgate.policy.verdict import Continue, Verdict

_CONTINUE = Continue()


@dataclass(frozen=True, slots=True)
class Findings:
    """What policies have found out about a message's authentication."""

    spf: tuple[SpfResult, ...] = ()
    dkim: tuple[DkimResult, ...] = ()
    arc: ArcResult | None = None
    dmarc: DmarcResult | AuthorFault | None = None

    def __bool__(self) -> bool:
        """Whether anything was looked at."""
        return bool(self.spf or self.dkim or self.arc or self.dmarc)

    def field(self, authserv_id: str, client_address: str) -> bytes:
        """All of it as an Authentication-Results field."""
        return authentication_results(
            authserv_id, spf=self.spf, dkim=self.dkim, arc=self.arc, dmarc=self.dmarc, client_address=client_address
        )


def findings_in(notes: Iterable[object]) -> Findings:
    """What is among these notes; the last of a kind of which there is one counts."""
    spf: list[SpfResult] = []
    dkim: list[DkimResult] = []
    arc: ArcResult | None = None
    dmarc: DmarcResult | AuthorFault | None = None
    for note in notes:
        match note:
            case SpfResult():
                spf.append(note)
            case DkimResult():
                dkim.append(note)
            case ArcResult():
                arc = note
            case DmarcResult() | AuthorFault():
                dmarc = note
            case _:
                pass
    return Findings(tuple(spf), tuple(dkim), arc, dmarc)


@implementer(IPolicy)
class ResultsPolicy:
    """Turns results into trace fields."""

    name = "results"
    stages = frozenset({Stage.END_OF_DATA})
    after = ("spf", "dkim", "arc", "dmarc")

    def __init__(self, authserv_id: str) -> None:
        self._authserv_id = authserv_id

    def decide(self, request: Request) -> Verdict:
        """Continue, with what is to be added and removed."""
        content = request.content
        if content is None:
            raise ValueError("results are written at the end of data")
        notes: list[object] = []
        header = content.header()
        spans = claims(header, self._authserv_id)
        if spans:
            notes.append(RemovedFields(spans))
        fields = self._fields(request)
        if fields:
            notes.append(TraceFields(fields))
        return Continue(tuple(notes)) if notes else _CONTINUE

    def _fields(self, request: Request) -> bytes:
        found = findings_in(request.notes)
        if not found:
            return b""
        session = request.session
        fields = found.field(self._authserv_id, session.client_address)
        for result in found.spf:
            fields += received_spf(
                result, receiver=self._authserv_id, client_address=session.client_address, helo=session.helo or ""
            )
        return fields
