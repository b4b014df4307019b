"""Return-Path and Received: what stands in them, and that nothing of the client's can break them."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.envelope import Address, ForwardPath, MailParameters, ReversePath
from mailgate.policy.stage import RecipientView, Role, SessionView, TlsState, TransactionView
from mailgate.smtp.grammar import GrammarError, parse_path
from mailgate.smtp.reply import reply
from mailgate.smtp.trace import protocol_word, trace_fields

OK, NO = reply(250, "2.1.5", "Recipient ok"), reply(550, "5.1.1", "No such mailbox here")
TLS = TlsState("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
ALICE = Address("alice", "client.example")
NOON = 1_790_078_400.0


def session(
    helo: str | None = "client.example",
    *,
    is_esmtp: bool = True,
    tls: TlsState | None = None,
    authenticated: str | None = None,
    address: str = "192.0.2.7",
) -> SessionView:
    return SessionView(1, "mx", Role.MX, address, 1, "", "192.0.2.25", 25, NOON, helo, is_esmtp, tls, authenticated)


def transaction(
    *recipients: tuple[str, bool], reverse_path: Address | None = ALICE, smtputf8: bool = False
) -> TransactionView:
    return TransactionView(
        889876958412801026,
        NOON,
        ReversePath(reverse_path, MailParameters(smtputf8=smtputf8)),
        tuple(
            RecipientView(ForwardPath(Address(local, "example.test")), accepted, OK if accepted else NO)
            for local, accepted in recipients
        ),
    )


def test_the_fields_of_a_usual_message() -> None:
    """RFC 5321 section 4.4."""
    assert trace_fields(session(), transaction(("bob", True)), "mx.example.test", NOON) == (
        b"Return-Path: <alice@client.example>\r\n"
        b"Received: from client.example ([192.0.2.7])\r\n"
        b"\tby mx.example.test (mailgate) with ESMTP\r\n"
        b"\tid 0rpbtc4000102\r\n"
        b"\tfor <bob@example.test>;\r\n"
        b"\tTue, 22 Sep 2026 12:00:00 +0000\r\n"
    )


def test_the_null_path_and_tls() -> None:
    fields = trace_fields(session(tls=TLS), transaction(("bob", True), reverse_path=None), "mx.example.test", NOON)
    assert fields.startswith(b"Return-Path: <>\r\n")
    assert b"with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n" in fields


@pytest.mark.parametrize(
    ("recipients", "expected"),
    [
        ([("bob", True)], True),
        ([("bob", True), ("nobody", False)], True),
        ([("bob", True), ("carol", True)], False),
    ],
)
def test_no_recipient_is_told_of_another(recipients: list[tuple[str, bool]], expected: bool) -> None:
    """RFC 5321 section 7.6."""
    fields = trace_fields(session(), transaction(*recipients), "mx.example.test", NOON)
    assert (b"for <bob@example.test>" in fields) is expected
    assert b"carol" not in fields
    assert b"nobody" not in fields


@pytest.mark.parametrize(
    ("view", "is_smtputf8", "word"),
    [
        (session(is_esmtp=False), False, "SMTP"),
        (session(), False, "ESMTP"),
        (session(tls=TLS), False, "ESMTPS"),
        (session(authenticated="alice"), False, "ESMTPA"),
        (session(tls=TLS, authenticated="alice"), False, "ESMTPSA"),
        (session(), True, "UTF8SMTP"),
        (session(tls=TLS), True, "UTF8SMTPS"),
        (session(authenticated="alice"), True, "UTF8SMTPA"),
        (session(tls=TLS, authenticated="alice"), True, "UTF8SMTPSA"),
    ],
)
def test_the_protocol_word(view: SessionView, is_smtputf8: bool, word: str) -> None:
    """RFC 3848 and RFC 6531 section 4.3."""
    assert protocol_word(view, is_smtputf8=is_smtputf8) == word


@pytest.mark.parametrize(
    ("address", "literal"), [("192.0.2.7", b"([192.0.2.7])"), ("2001:db8::1", b"([IPv6:2001:db8::1])")]
)
def test_the_client_is_named_by_its_address(address: str, literal: bytes) -> None:
    assert literal in trace_fields(session(address=address), transaction(("bob", True)), "mx.example.test", NOON)


@pytest.mark.parametrize("helo", [None, "", "a b", "a(b", "a;b", "a\r\nX: y", "bücher.example", "x" * 256, "a\0"])
def test_a_name_that_could_do_harm_is_not_repeated(helo: str | None) -> None:
    fields = trace_fields(session(helo), transaction(("bob", True)), "mx.example.test", NOON)
    assert b"Received: from unknown ([192.0.2.7])\r\n" in fields


@given(st.integers(0, 4_000_000_000), st.floats(0, 0.999))
def test_the_date_is_the_time_of_arrival(seconds: int, fraction: float) -> None:
    """RFC 5322 section 3.3, in UTC."""
    fields = trace_fields(session(), transaction(("bob", True)), "mx.example.test", seconds + fraction)
    date = fields.rpartition(b"\t")[2].decode().removesuffix("\r\n")
    assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000", date)
    assert parsedate_to_datetime(date).timestamp() == seconds
    assert date == time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(seconds))


@given(st.text(max_size=40), st.text(max_size=60), st.booleans())
def test_every_path_that_is_let_in_leaves_the_fields_whole(helo: str, path: str, smtputf8: bool) -> None:
    """Two fields, each line of them at most 998 octets long, and no control among them."""
    try:
        address, _ = parse_path(f"<{path}@example.test>")
    except GrammarError:
        address = None
    view = transaction(("bob", True), reverse_path=address, smtputf8=smtputf8)
    fields = trace_fields(session(helo), view, "mx.example.test", NOON)
    assert re.fullmatch(
        rb"Return-Path: <[^\x00-\x1f\x7f]*>\r\nReceived: (?:[^\x00-\x08\x0a-\x1f\x7f]+\r\n\t?)+", fields
    )
    assert all(len(line) <= 998 for line in fields.split(b"\r\n"))
    assert fields.count(b"\r\n") == 6
