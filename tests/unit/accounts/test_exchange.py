"""An exchange of AUTH, whatever the client sends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailgate.accounts.authenticator import Authenticator, Offer
from mailgate.accounts.bans import Guard
from mailgate.accounts.checker import ScramProof, ScramStart, account_name
from mailgate.interfaces import IScramProof
from mailgate.sasl.scram import make_verifier
from mailgate.smtp.reply import Reply
from mailgate.storage.credentials import Bounds
from tests.support.accounts import NoFailures, view
from tests.support.scram_client import ScramClient

VERIFIER = make_verifier(b"secret", b"salt" * 4, 4096)


class OneAccount:
    """Knows one password, whoever asks."""

    credentialInterfaces = (IUsernamePassword, IScramProof)

    def requestAvatarId(self, credentials: object) -> Deferred[bytes]:
        if isinstance(credentials, ScramProof) and credentials.proof.matches(VERIFIER):
            credentials.matched = VERIFIER
            return defer.succeed(credentials.username)
        return defer.fail(UnauthorizedLogin())

    def start_scram(self, name: str) -> Deferred[ScramStart]:
        return defer.succeed(ScramStart(VERIFIER.salt, VERIFIER.iterations, ((VERIFIER, 1),)))


PIECES = st.sampled_from(
    [
        b"n,,",
        b"y,,",
        b"p=tls-exporter,,",
        b"n=alice@example.test,",
        b"r=",
        b"nonce",
        b"c=biws,",
        b",p=",
        b"=",
        b",",
        b"\0",
    ]
)
RESPONSES = st.one_of(st.none(), st.binary(max_size=300), st.lists(PIECES, max_size=8).map(b"".join))


def settled(clock: Clock, answer: object) -> object:
    if not isinstance(answer, Deferred):
        return answer
    found: list[object] = []
    answer.addBoth(found.append)
    clock.advance(16.0)
    return found[0]


def authenticator(clock: Clock) -> Authenticator:
    return Authenticator(clock, OneAccount(), Guard(clock, NoFailures(), Bounds()), {"submission": Offer.TLS})


@given(
    st.sampled_from(["PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"]),
    st.lists(RESPONSES, min_size=1, max_size=5),
)
def test_whatever_a_client_sends_has_an_answer(mechanism: str, responses: list[bytes | None]) -> None:
    """A challenge or a refusal: nothing raises, nothing is let in, and no call is left behind."""
    clock = Clock()
    exchange = authenticator(clock).begin(mechanism, view())
    for response in responses:
        answer = settled(clock, exchange.step(response))
        assert isinstance(answer, bytes | Reply)
        assert clock.getDelayedCalls() == []
        if isinstance(answer, Reply):
            assert answer.code in (454, 501, 535)
            return


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_octet_of_a_right_proof_lets_nobody_in(position: int, octet: int) -> None:
    """Wherever it is changed."""
    clock = Clock()
    client, exchange = ScramClient("alice@example.test", "secret"), authenticator(clock).begin("SCRAM-SHA-256", view())
    first = settled(clock, exchange.step(client.first()))
    assert isinstance(first, bytes)
    final = bytearray(client.final(first))
    position %= len(final) - 2  # the last octet of base64 before its "=" has bits that mean nothing
    is_changed = final[position] != octet
    final[position] = octet
    answer = settled(clock, exchange.step(bytes(final)))
    assert isinstance(answer, Reply) == is_changed


@given(st.text())
def test_every_text_names_an_account_or_nobody(text: str) -> None:
    """And the name that comes of it is its own name."""
    name = account_name(text)
    assert account_name(name) == name or "@" not in text


def test_the_name_of_an_account_is_its_mailboxs_key() -> None:
    """As the directory folds recipients."""
    assert account_name("Alice@EXAMPLE.Test.") == "alice@example.test"
    assert account_name('"alice"@b\u00fccher.example') == "alice@xn--bcher-kva.example"
    assert account_name("Gr\u00dc\u00dfe@example.test") == "gr\u00fcsse@example.test"
    assert account_name("Nobody") == "nobody"
