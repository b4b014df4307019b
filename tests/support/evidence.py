"""Results of every kind, verdicts, and the answers that they rest on."""

from __future__ import annotations

from mailgate.auth.results import (
    ArcResult,
    AuthorFault,
    DkimResult,
    DmarcResult,
    PolicyOverride,
    Result,
    SpfResult,
    TrustedForwarder,
)
from mailgate.dns.answer import Answer, Outcome, Question, RecordType
from mailgate.policy.verdict import Opinion

ANSWERED_AT = 1_795_000_000.25


def answer(
    name: str,
    record_type: RecordType = RecordType.TXT,
    *records: bytes | str | tuple[int, str] | tuple[int, int, int, bytes],
    outcome: Outcome = Outcome.ANSWER,
    answered_at: float = ANSWERED_AT,
    detail: str = "",
) -> Answer:
    """An answer from a trusted resolver."""
    rcode = {Outcome.NXDOMAIN: "NXDOMAIN", Outcome.FAILURE: ""}.get(outcome, "NOERROR")
    return Answer(Question(name, record_type), outcome, records, rcode, 3600, True, answered_at, detail)


SPF_RECORD = answer("example.org", RecordType.TXT, b"v=spf1 mx -all")
SPF_MX = answer("example.org", RecordType.MX, (10, "mx.example.org"))
SPF_ADDRESS = answer("mx.example.org", RecordType.A, "192.0.2.7")
KEY_RECORD = answer("s1._domainkey.example.org", RecordType.TXT, b"v=DKIM1; p=MIIB")
DMARC_RECORD = answer("_dmarc.example.org", RecordType.TXT, b"v=DMARC1; p=reject")
NO_DMARC_RECORD = answer("_dmarc.org", outcome=Outcome.NXDOMAIN)

SPF = SpfResult(
    "mailfrom",
    "example.org",
    "carol@example.org",
    Result.PASS,
    mechanism="mx",
    record="v=spf1 mx -all",
    evidence=(SPF_RECORD, SPF_MX, SPF_ADDRESS),
)
DKIM = DkimResult(
    0,
    Result.PASS,
    domain="example.org",
    selector="s1",
    identity="@example.org",
    algorithm="rsa-sha256",
    key_bits=2048,
    signed_fields=("from", "to", "subject"),
    body_length_octets=0,
    notes=("the body goes on behind l=",),
    signature="dGVzdA==",
    evidence=(KEY_RECORD,),
)
ARC = ArcResult(
    Result.PASS,
    sealers=("list.example.net", "relay.example.net"),
    oldest_pass=1,
    sealed_results=("list.example.net; dmarc=pass", "relay.example.net; dmarc=fail"),
    evidence=(answer("a._domainkey.list.example.net", RecordType.TXT, b"p=AAAA"),),
)
DMARC = DmarcResult(
    Result.FAIL,
    author_domain="example.org",
    organizational_domain="example.org",
    policy_domain="example.org",
    policy="reject",
    published_policy="reject",
    aligned_spf=False,
    record="v=DMARC1; p=reject",
    problem="neither SPF nor DKIM passed for example.org",
    evidence=(DMARC_RECORD, NO_DMARC_RECORD),
)
AUTHOR_FAULT = AuthorFault("two From fields")
FORWARDER = TrustedForwarder("relay.example.net", "list.example.net")
OVERRIDE = PolicyOverride("trusted_forwarder", "sealed by list.example.net", "continue")
OPINION = Opinion("end_of_data", "dmarc", "0123456789ab", "reject", "550 5.7.26 example.org says so")

RESULTS = (SPF, DKIM, ARC, DMARC, AUTHOR_FAULT, FORWARDER, OVERRIDE)
