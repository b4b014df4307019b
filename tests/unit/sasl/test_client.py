"""SASL on the client's side."""

from __future__ import annotations

import pytest

from mailgate.sasl.client import (
    MAX_ITERATIONS,
    ExchangeError,
    Login,
    Mechanism,
    Plain,
    ScramSha256,
    mechanisms,
)
from mailgate.sasl.scram import Proof as ScramProof
from mailgate.sasl.scram import make_verifier, parse_client_final, parse_client_first

NONCE = b"rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
CLIENT_FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def scram() -> ScramSha256:
    return ScramSha256("user", "pencil", NONCE)


def test_scram_says_what_the_example_of_the_standard_says() -> None:
    """RFC 7677 section 3."""
    exchange = scram()
    assert exchange.initial() == b"n,,n=user,r=" + NONCE
    assert exchange.respond(SERVER_FIRST) == CLIENT_FINAL
    assert not exchange.is_complete
    assert exchange.respond(SERVER_FINAL) == b""
    assert exchange.is_complete


def test_our_own_server_takes_our_proof_for_a_name_that_needs_escapes() -> None:
    """RFC 5802 section 5.1: "," and "=" in a name; SASLprep on the password."""
    exchange = ScramSha256("a,b=c", "p\u00e4ss\u00a0word", NONCE)
    initial = exchange.initial()
    assert initial is not None
    first = parse_client_first(initial)
    assert first.name == "a,b=c"
    server_first = b"r=" + NONCE + b"x,s=c2FsdHNhbHQ=,i=4096"
    final = parse_client_final(exchange.respond(server_first))
    verifier = make_verifier("päss word".encode(), b"saltsalt", 4096)
    proof = ScramProof(final.proof, b",".join((first.bare, server_first, final.without_proof)))
    assert proof.matches(verifier)
    exchange.respond(proof.answer(verifier))
    assert exchange.is_complete


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"nonsense",
        SERVER_FIRST.replace(b"rOprN", b"xOprN"),  # not our nonce
        SERVER_FIRST.replace(b"i=4096", b"i=4095"),
        SERVER_FIRST.replace(b"i=4096", b"i=%d" % (MAX_ITERATIONS + 1)),
        SERVER_FIRST.replace(b"i=4096", b"i=-1"),
        SERVER_FIRST.replace(b"i=4096", b"i=" + b"9" * 5000),  # more digits than Python turns into a number
        SERVER_FIRST.replace(b",i=4096", b""),
        SERVER_FIRST.replace(b"s=W22ZaJ0SNY7soEsUEjb6gQ==", b"s=W22"),
        SERVER_FIRST.replace(b"s=W22ZaJ0SNY7soEsUEjb6gQ==", b"s="),
        b"m=ext," + SERVER_FIRST,
        b"e=unknown-user",
        b"\xff=\xff",
    ],
)
def test_scram_answers_no_first_message_that_is_not_right(challenge: bytes) -> None:
    """RFC 5802 section 5.1; RFC 7677 section 4 for the iterations."""
    with pytest.raises(ExchangeError):
        scram().respond(challenge)


@pytest.mark.parametrize(
    "challenge", [b"", b"e=invalid-proof", b"v=", b"v=****", SERVER_FINAL.replace(b"6rri", b"7rri"), b"x=y"]
)
def test_scram_believes_no_server_that_does_not_know_the_password(challenge: bytes) -> None:
    """RFC 5802 section 5: the client must check the server's signature."""
    exchange = scram()
    exchange.respond(SERVER_FIRST)
    with pytest.raises(ExchangeError):
        exchange.respond(challenge)
    assert not exchange.is_complete


def test_plain_and_login_send_utf_8() -> None:
    """RFC 4616 section 2."""
    plain: Mechanism = Plain("jürgen", "päss")
    assert plain.initial() == "\0jürgen\0päss".encode()
    assert plain.respond(b"") == "\0jürgen\0päss".encode()
    with pytest.raises(ExchangeError):
        plain.respond(b"more")
    login = Login("jürgen", "päss")
    assert login.initial() is None
    assert [login.respond(b"Username:"), login.is_complete, login.respond(b"?"), login.is_complete] == [
        "jürgen".encode(),
        False,
        "päss".encode(),
        True,
    ]
    with pytest.raises(ExchangeError):
        login.respond(b"Again:")


@pytest.mark.parametrize(
    ("offered", "is_private", "names"),
    [
        ({"PLAIN", "LOGIN", "SCRAM-SHA-256", "CRAM-MD5"}, True, ["SCRAM-SHA-256", "PLAIN", "LOGIN"]),
        ({"PLAIN", "LOGIN", "SCRAM-SHA-256"}, False, ["SCRAM-SHA-256"]),
        ({"LOGIN"}, True, ["LOGIN"]),
        ({"PLAIN", "LOGIN"}, False, []),
        (set(), True, []),
    ],
)
def test_the_password_is_shown_only_where_nobody_listens(offered: set[str], is_private: bool, names: list[str]) -> None:
    """RFC 4954 section 4; and SCRAM, which doesn't show it, comes first."""
    usable = mechanisms(offered, "user", "pencil", lambda: NONCE, is_private=is_private)
    assert [mechanism.name for mechanism in usable] == names


def test_a_password_that_scram_cannot_take_goes_by_another_mechanism() -> None:
    """RFC 4013 section 2.3 prohibits some characters."""
    usable = mechanisms({"PLAIN", "SCRAM-SHA-256"}, "user", "bell\a", lambda: NONCE, is_private=True)
    assert [mechanism.name for mechanism in usable] == ["PLAIN"]
