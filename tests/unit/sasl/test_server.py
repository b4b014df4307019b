"""The server's side of SASL: PLAIN, LOGIN, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.sasl.scram import Verifier, make_verifier, parse_verifier
from mailgate.sasl.server import (
    Authenticated,
    Challenge,
    CheckPassword,
    CheckProof,
    Exchange,
    Failed,
    FindVerifier,
    Reason,
    Scram,
    begin,
)
from tests.support.scram_client import ScramClient

SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
BINDING = b"\x01" * 32


# ------------------------------------------------------------ PLAIN, LOGIN


@pytest.mark.parametrize(
    ("response", "name", "password"),
    [
        (b"\0alice@example.test\0secret", "alice@example.test", b"secret"),
        (b"alice\0alice\0secret", "alice", b"secret"),
        ("\0b\u00fccher\0p\u00a0w".encode(), "b\u00fccher", b"p w"),
    ],
)
def test_plain_gives_name_and_password_prepared(response: bytes, name: str, password: bytes) -> None:
    """RFC 4616 section 2; both are prepared by SASLprep."""
    assert begin("PLAIN").respond(response) == CheckPassword(name, password)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"", Reason.MALFORMED),
        (b"alice\0secret", Reason.MALFORMED),
        (b"\0alice\0sec\0ret", Reason.MALFORMED),
        (b"\0\xff\0secret", Reason.MALFORMED),
        (b"\0" + b"a" * 1025 + b"\0secret", Reason.MALFORMED),
        (b"\0\0secret", Reason.REFUSED),
        (b"\0alice\0", Reason.REFUSED),
        (b"\0alice\0\xff", Reason.REFUSED),
        (b"\0alice\0\xc2\xad", Reason.REFUSED),
        (b"\0alice\0a\x07", Reason.REFUSED),
        (b"bob\0alice\0secret", Reason.REFUSED),
        (b"\0alice\0" + b"x" * 1025, Reason.REFUSED),
    ],
)
def test_what_is_no_plain_and_what_is_nobodys_password_ends_it(response: bytes, reason: Reason) -> None:
    """RFC 4616 section 2: an empty password fails, and so does whoever wants to be somebody else."""
    step = begin("PLAIN").respond(response)
    assert isinstance(step, Failed)
    assert step.reason is reason


def test_plain_without_an_initial_response_is_asked_for_it() -> None:
    """RFC 4954 section 4: an empty challenge."""
    exchange = begin("PLAIN")
    assert exchange.respond(None) == Challenge(b"")
    assert exchange.respond(b"\0a\0b") == CheckPassword("a", b"b")


@pytest.mark.parametrize("has_initial", [True, False])
def test_login_asks_for_the_name_and_then_for_the_password(has_initial: bool) -> None:
    """draft-murchison-sasl-login; some clients send the name as an initial response."""
    exchange = begin("LOGIN")
    if not has_initial:
        assert exchange.respond(None) == Challenge(b"Username:")
    assert exchange.respond(b"alice") == Challenge(b"Password:")
    assert exchange.respond(b"secret") == CheckPassword("alice", b"secret")


def test_a_step_shows_no_password() -> None:
    """A step may end up in a log or in a traceback."""
    assert "secret" not in repr(begin("PLAIN").respond(b"\0alice\0secret"))


# ------------------------------------------------------------ SCRAM


def test_the_example_of_rfc_7677_is_followed_octet_by_octet() -> None:
    """RFC 7677 section 3."""
    exchange = Scram(make_nonce=lambda: b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    verifier = make_verifier(b"pencil", SALT, 4096)
    assert exchange.respond(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO") == FindVerifier("user")
    assert exchange.found(SALT, 4096) == Challenge(
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    step = exchange.respond(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert isinstance(step, CheckProof)
    assert step.name == "user"
    assert step.proof.matches(verifier)
    assert not step.proof.matches(make_verifier(b"pencils", SALT, 4096))
    assert exchange.proved(verifier) == Challenge(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    assert exchange.respond(b"") == Authenticated("user")


def run(exchange: Scram, client: ScramClient, verifier: Verifier) -> object:
    """The last step of the exchange with that client, which has not checked the server yet."""
    step = exchange.respond(client.first())
    if not isinstance(step, FindVerifier):
        return step
    step = exchange.respond(client.final(exchange.found(verifier.salt, verifier.iterations).octets))
    if not isinstance(step, CheckProof):
        return step
    if not step.proof.matches(verifier):
        return None
    assert client.accepts(exchange.proved(verifier).octets)
    return exchange.respond(b"")


VERIFIER = make_verifier(b"secret", SALT, 4096)


@pytest.mark.parametrize("name", ["alice", "a,b", "a=b", "=2C,=3D", "b\u00fccher@example.test"])
def test_a_client_is_authenticated_and_the_server_proves_itself(name: str) -> None:
    """RFC 5802 section 5.1: commas and equals signs in a name are escaped."""
    assert run(Scram(), ScramClient(name, "secret"), VERIFIER) == Authenticated(name)


def test_a_wrong_password_makes_another_proof() -> None:
    """RFC 5802 section 3."""
    assert run(Scram(), ScramClient("alice", "Secret"), VERIFIER) is None


def test_plus_is_bound_to_the_connection() -> None:
    """RFC 9266 section 2; what somebody in between passes on belongs to another connection."""
    gs2 = "p=tls-exporter,,"
    exchange = Scram(binding=BINDING, is_plus=True)
    assert run(exchange, ScramClient("alice", "secret", gs2=gs2, binding=BINDING), VERIFIER) == Authenticated("alice")
    step = run(
        Scram(binding=BINDING, is_plus=True), ScramClient("alice", "secret", gs2=gs2, binding=b"\x02" * 32), VERIFIER
    )
    assert isinstance(step, Failed)
    assert step.reason is Reason.REFUSED


@pytest.mark.parametrize(
    ("gs2", "is_plus", "binding", "reason"),
    [
        ("y,,", False, BINDING, Reason.REFUSED),
        ("p=tls-exporter,,", False, BINDING, Reason.MALFORMED),
        ("n,,", True, BINDING, Reason.MALFORMED),
        ("y,,", True, BINDING, Reason.MALFORMED),
        ("p=tls-unique,,", True, BINDING, Reason.MALFORMED),
        ("n,a=bob,", False, None, Reason.REFUSED),
    ],
)
def test_a_flag_that_is_not_the_mechanisms_ends_it(
    gs2: str, is_plus: bool, binding: bytes | None, reason: Reason
) -> None:
    """RFC 5802 section 6: "y" where channel binding was offered means that somebody has hidden the offer."""
    step = Scram(binding=binding, is_plus=is_plus).respond(ScramClient("alice", "secret", gs2=gs2).first())
    assert isinstance(step, Failed)
    assert step.reason is reason


@pytest.mark.parametrize(("gs2", "binding"), [("y,,", None), ("n,,", BINDING), ("n,a=alice,", None)])
def test_a_client_that_could_bind_is_welcome_where_that_is_not_offered(gs2: str, binding: bytes | None) -> None:
    """RFC 5802 section 6; and whoever asks to act as itself asks for nothing."""
    assert run(Scram(binding=binding), ScramClient("alice", "secret", gs2=gs2), VERIFIER) == Authenticated("alice")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"x,,n=alice,r=abc",
        b"p=\xff,,n=alice,r=abc",
        b"n,b=bob,n=alice,r=abc",
        b"n,,m=extension,n=alice,r=abc",
        b"n,,r=abc,n=alice",
        b"n,,n=alice",
        b"n,,n=,r=abc",
        b"n,,n=a=b,r=abc",
        b"n,,n=\xff,r=abc",
        b"n,,n=alice,r=",
        b"n,,n=alice,r=a b",
    ],
)
def test_what_is_no_first_message_is_malformed(message: bytes) -> None:
    """RFC 5802 section 7."""
    step = Scram().respond(message)
    assert isinstance(step, Failed)
    assert step.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda final: final.replace(b"c=", b"x="), Reason.MALFORMED),
        (lambda final: final.partition(b",p=")[0], Reason.MALFORMED),
        (lambda final: final.partition(b",p=")[0] + b",p=AAAA", Reason.MALFORMED),
        (lambda final: final.partition(b",p=")[0] + b",p=!", Reason.MALFORMED),
        (lambda final: final.replace(b"c=biws", b"c=eSws"), Reason.REFUSED),
        (lambda final: final.replace(b",r=client", b",r=Client"), Reason.REFUSED),
    ],
)
def test_what_is_no_final_message_of_this_exchange_ends_it(change: object, reason: Reason) -> None:
    """RFC 5802 section 5.1: c= repeats the GS2 header, r= both nonces."""
    exchange, client = Scram(), ScramClient("alice", "secret")
    exchange.respond(client.first())
    assert callable(change)
    step = exchange.respond(change(client.final(exchange.found(SALT, 4096).octets)))
    assert isinstance(step, Failed)
    assert step.reason is reason


def test_the_last_response_is_empty() -> None:
    """RFC 4954 section 4: the server's last word is a challenge, and nothing is left to say to it."""
    exchange, client = Scram(), ScramClient("alice", "secret")
    exchange.respond(client.first())
    exchange.respond(client.final(exchange.found(SALT, 4096).octets))
    exchange.proved(VERIFIER)
    assert isinstance(exchange.respond(b"more"), Failed)


def test_each_exchange_has_a_nonce_of_its_own() -> None:
    """RFC 5802 section 5.1."""
    nonces = set()
    for _ in range(20):
        exchange = Scram()
        exchange.respond(b"n,,n=alice,r=abc")
        nonces.add(exchange.found(SALT, 4096).octets)
    assert len(nonces) == 20


def test_a_verifier_is_read_back_as_it_was_written() -> None:
    """RFC 5803 section 3, in PostgreSQL's form; what is none is refused."""
    assert parse_verifier(VERIFIER.text()) == VERIFIER
    for text in ("", "SCRAM-SHA-256$4096:$:", "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", VERIFIER.text() + "x"):
        with pytest.raises(ValueError):
            parse_verifier(text)


# ------------------------------------------------------------ anything at all

MECHANISMS = st.sampled_from(["PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"])
PIECES = st.sampled_from(
    [b"n,,", b"y,,", b"p=tls-exporter,,", b"n=alice,", b"r=", b"client-nonce", b"c=biws,", b",p=", b"=", b",", b"\0"]
)
RESPONSES = st.one_of(st.none(), st.binary(max_size=200), st.lists(PIECES, max_size=8).map(b"".join))


@given(MECHANISMS, st.sampled_from([None, BINDING]), st.lists(RESPONSES, min_size=1, max_size=6))
def test_whatever_a_client_sends_leads_to_a_step(
    mechanism: str, binding: bytes | None, responses: list[bytes | None]
) -> None:
    """A stranger's octets are no exception."""
    exchange: Exchange = begin(mechanism, binding)
    for response in responses:
        step = exchange.respond(response)
        if isinstance(step, FindVerifier):
            assert isinstance(exchange, Scram)
            exchange.found(SALT, 4096)
        elif isinstance(step, CheckProof):
            assert not step.proof.matches(VERIFIER)
            return
        elif not isinstance(step, Challenge):
            assert not isinstance(step, Authenticated)
            return
