"""The policy results: what is written on top of a message, and what is taken out of it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from mailgate.auth.results import ArcResult, AuthorFault, DkimResult, DmarcResult, Result, SpfResult
from mailgate.envelope import Address, ReversePath
from mailgate.message import MessageContent
from mailgate.policy.results import ResultsPolicy
from mailgate.policy.stage import RemovedFields, Request, Role, SessionView, Stage, TraceFields, TransactionView
from mailgate.policy.verdict import Continue

OURS = "mail.example.test"
SESSION = SessionView(
    1, "mx", Role.MX, "192.0.2.7", 40000, "192.0.2.7/32", "192.0.2.25", 25, 0.0, helo="client.example.org"
)
TRANSACTION = TransactionView(2, 0.0, ReversePath(Address("bob", "example.org")))
CLAIM = b"authentication-results: (x) MAIL.example.test; dmarc=pass\r\n"
HEADER = b"From: bob@example.org\r\nSubject: Hello\r\n"


def decide(header: bytes, *notes: object) -> tuple[object, ...]:
    octets = header + b"\r\nHello.\r\n" + CLAIM
    content = MessageContent([octets], len(octets), hashlib.sha256(octets).digest())
    request = Request(Stage.END_OF_DATA, SESSION, TRANSACTION, content=content, notes=notes)
    verdict = ResultsPolicy(OURS).decide(request)
    assert isinstance(verdict, Continue)
    return verdict.notes


def trace(*notes: object) -> str:
    (fields,) = decide(HEADER, *notes)
    assert isinstance(fields, TraceFields)
    return fields.octets.decode().replace("\r\n\t", " ")


def test_where_nothing_was_checked_nothing_is_written() -> None:
    """A message from this machine, or one without these policies."""
    assert decide(HEADER) == ()
    assert decide(HEADER, "a note of somebody else's", AuthorFault) == ()


def test_every_result_is_in_one_field_with_the_spf_fields_below() -> None:
    written = trace(
        SpfResult("helo", "client.example.org", "postmaster@client.example.org", Result.NONE),
        SpfResult("mailfrom", "example.org", "bob@example.org", Result.PASS),
        DkimResult(0, Result.PASS, "example.org"),
        DkimResult(1, Result.FAIL, "example.net"),
        ArcResult(Result.NONE),
        DmarcResult(Result.PASS, "example.org"),
    )
    lines = written.split("\r\n")
    assert [line.partition(":")[0] for line in lines] == [
        "Authentication-Results",
        "Received-SPF",
        "Received-SPF",
        "",
    ]
    for part in (
        "spf=none (client 192.0.2.7) smtp.helo=client.example.org;",
        "spf=pass (client 192.0.2.7) smtp.mailfrom=bob@example.org;",
        "dkim=pass header.d=example.org;",
        "dkim=fail header.d=example.net;",
        "arc=none;",
        "dmarc=pass header.from=example.org",
    ):
        assert part in lines[0]
    assert lines[1].startswith("Received-SPF: none identity=helo; client-ip=192.0.2.7; helo=client.example.org;")
    assert lines[2].startswith("Received-SPF: pass identity=mailfrom;")


@pytest.mark.parametrize(
    "note",
    [
        SpfResult("mailfrom", "example.org", "bob@example.org", Result.PASS),
        DkimResult(0, Result.NONE),
        ArcResult(Result.FAIL),
        DmarcResult(Result.NONE, "example.org"),
        AuthorFault("no From field"),
    ],
)
def test_what_was_not_checked_is_not_spoken_of(note: Any) -> None:
    """Any: one of the results."""
    written = trace(note)
    assert written.startswith(f"Authentication-Results: {OURS}; ")
    assert sum(f" {method}=" in written for method in ("spf", "dkim", "arc", "dmarc")) == 1


@pytest.mark.parametrize("notes", [(), (DkimResult(0, Result.NONE),)])
def test_what_claims_to_be_ours_is_taken_out_whatever_was_checked(notes: tuple[object, ...]) -> None:
    """RFC 8601 section 5. In the header section only."""
    (removed, *written) = decide(CLAIM + HEADER + CLAIM, *notes)
    assert removed == RemovedFields(((0, len(CLAIM)), (len(CLAIM) + len(HEADER), 2 * len(CLAIM) + len(HEADER))))
    assert len(written) == len(notes)
