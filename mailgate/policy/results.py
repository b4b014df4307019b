"""The policy `results`: writes what authentication found into the message, and takes out what claims to be that.

It objects to nothing, and is always the last to be asked at the end of data. No configuration can leave it out:
a field that claims to be ours must not stand, whoever brings the message.

Standards: RFC 8601 sections 4 and 5; RFC 7208 section 9.1.
"""

from __future__ import annotations

from zope.interface import implementer

from mailgate.auth.authentication_results import authentication_results, claims, received_spf
from mailgate.auth.results import ArcResult, AuthorFault, DkimResult, DmarcResult, SpfResult
from mailgate.interfaces import IPolicy
from mailgate.policy.stage import RemovedFields, Request, Stage, TraceFields
from mailgate.policy.verdict import Continue, Verdict

_CONTINUE = Continue()


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
        spf: list[SpfResult] = []
        dkim: list[DkimResult] = []
        arc: ArcResult | None = None
        dmarc: DmarcResult | AuthorFault | None = None
        for note in request.notes:
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
        if not (spf or dkim or arc or dmarc):
            return b""
        session = request.session
        fields = authentication_results(
            self._authserv_id, spf=spf, dkim=dkim, arc=arc, dmarc=dmarc, client_address=session.client_address
        )
        for result in spf:
            fields += received_spf(
                result, receiver=self._authserv_id, client_address=session.client_address, helo=session.helo or ""
            )
        return fields
