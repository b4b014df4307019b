"""The client's side of a dialogue, against a host that does as it is told."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from mailgate.outbound.plan import (
    Credentials,
    Delivery,
    Endpoint,
    OutgoingMessage,
    Result,
    TlsDemand,
    TlsLevel,
    TlsUsed,
    TroubleKind,
)
from mailgate.smtp.client import CHUNKED_FROM_OCTETS, ClientSession
from mailgate.smtp.client_state import Awaited, Phase
from tests.support.host import EXTENSIONS, Host
from tests.support.outgoing import LINES, outgoing

ENDPOINT = Endpoint("host.test", "192.0.2.25", 25)
PLAIN_TEXT = TlsDemand(TlsLevel.NONE)
USED = TlsUsed("TLSv1.3", "TLS_AES_128_GCM_SHA256", False, "default")
ONE_BY_ONE = tuple(extension for extension in EXTENSIONS if extension != "PIPELINING")
SMALL = 1 << 30


def session_of(**options: Any) -> ClientSession:
    return ClientSession(
        endpoint=ENDPOINT,
        protocol=options.pop("protocol", "smtp"),
        helo="mail.example.test",
        tls_demand=options.pop("tls_demand", PLAIN_TEXT),
        time=lambda: 1_000_000.0,
        **options,
    )


class Talk:
    """A session and a host, and what each has said; the host's octets go over in parts of a size, as far as a limit."""

    def __init__(self, session: ClientSession, host: Host, *, part_octets: int = SMALL, limit: int = SMALL) -> None:
        self.session = session
        self.host = host
        self.deliveries: list[Delivery] = []
        self.writes: list[bytes] = []
        self.left = limit
        self.heard_octets = 0
        self.later: list[OutgoingMessage] = []  # to hand over when a message has ended
        self._part_octets = part_octets
        self._waiting = b""

    def run(self, said: bytes = b"") -> None:
        """Go on until both wait, or the limit is reached."""
        self._waiting += said
        while True:
            self._exchange()
            part, self._waiting = self._waiting[: self._part_octets], self._waiting[self._part_octets :]
            part = part[: self.left]
            if not part:
                return
            self.left -= len(part)
            self.heard_octets += len(part)
            self.session.receive(part)

    def _exchange(self) -> None:
        session = self.session
        while True:
            while deliveries := session.take_deliveries():
                for _, delivery in deliveries:
                    self.deliveries.append(delivery)
                    if self.later:
                        session.send(self.later.pop(0))
            wanted = session.wanted
            if wanted is None:
                break
            piece = wanted[0].piece(wanted[1])
            assert isinstance(piece, bytes)
            session.content(piece)
        output = session.take_output()
        if output:
            self.writes.append(output)
            self._waiting += self.host.receive(output)

    def outcomes(self) -> dict[int, tuple[Result, str]]:
        return {
            outcome.queue_id: (outcome.result, outcome.status)
            for delivery in self.deliveries
            for outcome in delivery.outcomes
        }


def ready(host: Host, **options: Any) -> Talk:
    talk = Talk(session_of(**options), host)
    talk.run(host.greeting)
    assert talk.session.phase is Phase.READY, talk.session.trouble
    talk.writes.clear()
    host.commands.clear()
    return talk


def exchange(host: Host, *messages: OutgoingMessage, **options: Any) -> Talk:
    talk = ready(host, **options)
    for message in messages:
        talk.session.send(message)
    talk.run()
    return talk


# ---------------------------------------------------------------- the opening


def test_ehlo_comes_first_and_the_session_is_ready() -> None:
    """RFC 5321 section 3.2."""
    host = Host()
    talk = Talk(session_of(), host)
    assert talk.session.awaited is Awaited.GREETING
    talk.run(b"220-host.test\r\n220 ESMTP\r\n")
    assert host.commands == [b"EHLO mail.example.test"]
    assert talk.session.phase is Phase.READY
    assert talk.session.has_pipelining


def test_helo_is_for_hosts_that_refuse_ehlo() -> None:
    """RFC 5321 section 3.2."""
    host = Host(says={"EHLO": b"502 What?\r\n", "HELO": b"250 host.test\r\n"})
    talk = exchange(Host(says=host.says), outgoing())
    assert talk.outcomes() == {100: (Result.DELIVERED, "2.0.0")}
    assert talk.host.commands == [b"MAIL FROM:<alice@example.test>", b"RCPT TO:<carol@host.test>", b"DATA"]


@pytest.mark.parametrize(
    ("says", "kind", "status", "is_remote"),
    [
        ({"GREETING": b"554 5.7.1 Go away\r\n"}, TroubleKind.GREETING, "5.7.1", True),
        ({"GREETING": b"450 Later\r\n"}, TroubleKind.GREETING, "4.2.0", True),
        ({"GREETING": b"421 4.7.0 Too many\r\n"}, TroubleKind.SHUTDOWN, "4.7.0", True),
        ({"GREETING": b"HTTP/1.1 400 Bad\r\n"}, TroubleKind.PROTOCOL, "4.5.0", False),
        ({"GREETING": b"354 Go on\r\n"}, TroubleKind.PROTOCOL, "4.5.0", False),
        ({"EHLO": b"450 4.7.1 Later\r\n"}, TroubleKind.GREETING, "4.7.1", True),
        ({"EHLO": b"421 Bye\r\n"}, TroubleKind.SHUTDOWN, "4.3.2", True),
        ({"EHLO": b"550 No\r\n", "HELO": b"550 5.7.1 No\r\n"}, TroubleKind.GREETING, "5.7.1", True),
    ],
)
def test_a_host_that_will_not_have_us_is_in_trouble(
    says: dict[str, Any], kind: TroubleKind, status: str, is_remote: bool
) -> None:
    """No recipient is to blame: whoever has the route decides whether another host is tried."""
    greeting = says.pop("GREETING", b"220 host.test\r\n")
    talk = Talk(session_of(), Host(says=says))
    talk.run(greeting)
    trouble = talk.session.trouble
    assert trouble is not None
    assert (trouble.kind, trouble.status, trouble.is_remote) == (kind, status, is_remote)
    assert talk.session.phase is Phase.CLOSED
    if kind is TroubleKind.GREETING:
        assert talk.writes[-1].endswith(b"QUIT\r\n")


# ---------------------------------------------------------------- TLS


def test_what_was_said_before_tls_counts_no_more() -> None:
    """RFC 3207 section 4.2: the client must discard what it knew; EHLO comes again."""
    host = Host(extensions=("STARTTLS", "SIZE 10"), says={"STARTTLS": b"220 Go on\r\n"})
    talk = Talk(session_of(tls_demand=TlsDemand()), host)
    talk.run(host.greeting)
    assert talk.session.phase is Phase.HANDSHAKE
    assert talk.session.awaited is Awaited.HANDSHAKE
    host.extensions = ("PIPELINING",)
    talk.session.tls_started(USED)
    talk.run()
    assert host.commands == [b"EHLO mail.example.test", b"STARTTLS", b"EHLO mail.example.test"]
    assert talk.session.extensions.max_size_octets is None
    assert talk.session.tls is USED


@pytest.mark.parametrize("behind", [b"250 Injected\r\n", b"2", b"\n"])
def test_octets_behind_the_reply_to_starttls_end_the_session(behind: bytes) -> None:
    """RFC 3207 section 5, CVE-2011-0411: nothing that came in plain text may count inside TLS."""
    host = Host(extensions=("STARTTLS",), says={"STARTTLS": b"220 Go on\r\n" + behind})
    talk = Talk(session_of(tls_demand=TlsDemand()), host)
    talk.run(host.greeting)
    assert talk.session.trouble is not None
    assert talk.session.trouble.kind is TroubleKind.PROTOCOL


@pytest.mark.parametrize(("extensions", "says"), [((), {}), (("STARTTLS",), {"STARTTLS": b"454 4.7.0 Not now\r\n"})])
def test_without_tls_mail_goes_only_where_it_may(extensions: tuple[str, ...], says: dict[str, Any]) -> None:
    """RFC 8461 section 5, RFC 7672 section 2.2: a demand is not met by asking."""
    for level in TlsLevel:
        talk = Talk(session_of(tls_demand=TlsDemand(level)), Host(extensions=extensions, says=dict(says)))
        talk.run(b"220 host.test\r\n")
        if level in (TlsLevel.NONE, TlsLevel.OPPORTUNISTIC):
            assert talk.session.phase is Phase.READY
            assert talk.session.tls_result == ("" if level is TlsLevel.NONE else "starttls-not-supported")
        else:
            trouble = talk.session.trouble
            assert trouble is not None
            assert (trouble.kind, trouble.status, trouble.tls_result) == (
                TroubleKind.TLS,
                "4.7.4",
                "starttls-not-supported",
            )


def test_implicit_tls_comes_before_the_greeting() -> None:
    """RFC 8314 section 3."""
    session = session_of(tls_demand=TlsDemand(TlsLevel.VERIFY, is_implicit=True))
    assert session.phase is Phase.HANDSHAKE
    session.tls_started(USED)
    assert session.awaited is Awaited.GREETING
    talk = Talk(session, Host())
    talk.run(b"220 host.test\r\n")
    assert talk.session.is_usable


def test_a_host_without_requiretls_is_passed_over() -> None:
    """RFC 8689 section 4.2.1: another host of the route may have it."""
    talk = Talk(session_of(needs_requiretls=True), Host())
    talk.run(b"220 host.test\r\n")
    assert talk.session.trouble is not None
    assert talk.session.trouble.status == "5.7.30"


# ---------------------------------------------------------------- AUTH

ALICE = Credentials("alice", "secret")


def authenticate(says: list[bytes], *, mechanisms: str = "AUTH PLAIN LOGIN", is_local: bool = True) -> Talk:
    host = Host(extensions=(mechanisms,), says={"AUTH": says, "*": b"501 Cancelled\r\n"})
    for response in (b"YWxpY2U=", b"c2VjcmV0", b"AGFsaWNlAHNlY3JldA=="):
        host.says[response.decode().upper()] = says
    talk = Talk(session_of(credentials=ALICE, is_local=is_local), host)
    talk.run(host.greeting)
    return talk


@pytest.mark.parametrize(
    ("mechanisms", "says", "commands"),
    [
        ("AUTH PLAIN LOGIN", [b"235 In\r\n"], [b"AUTH PLAIN AGFsaWNlAHNlY3JldA=="]),
        ("AUTH PLAIN", [b"334 \r\n", b"235 In\r\n"], [b"AUTH PLAIN AGFsaWNlAHNlY3JldA==", b"AGFsaWNlAHNlY3JldA=="]),
        ("AUTH LOGIN", [b"334 VXNlcm5hbWU6\r\n", b"334 UGFzc3dvcmQ6\r\n", b"235 In\r\n"],
         [b"AUTH LOGIN", b"YWxpY2U=", b"c2VjcmV0"]),
        ("AUTH PLAIN LOGIN", [b"504 Not that\r\n", b"334 \r\n", b"334 \r\n", b"235 In\r\n"],
         [b"AUTH PLAIN AGFsaWNlAHNlY3JldA==", b"AUTH LOGIN", b"YWxpY2U=", b"c2VjcmV0"]),
    ],
)  # fmt: skip
def test_we_say_who_we_are(mechanisms: str, says: list[bytes], commands: list[bytes]) -> None:
    """RFC 4954 section 4."""
    talk = authenticate(says, mechanisms=mechanisms)
    assert talk.session.phase is Phase.READY, talk.session.trouble
    assert talk.host.commands[1:] == commands


@pytest.mark.parametrize(
    ("mechanisms", "says"),
    [
        ("AUTH PLAIN", [b"535 5.7.8 No\r\n"]),
        ("AUTH PLAIN", [b"334 ****\r\n"]),
        ("AUTH LOGIN", [b"235 In\r\n"]),  # without having asked
        ("AUTH CRAM-MD5", []),
        ("SIZE", []),
    ],
)
def test_without_authentication_no_mail_goes(mechanisms: str, says: list[bytes]) -> None:
    """A smarthost that does not take our word is in trouble; the password is in no text."""
    talk = authenticate(says, mechanisms=mechanisms)
    trouble = talk.session.trouble
    assert trouble is not None
    assert trouble.kind is TroubleKind.GREETING
    assert "secret" not in trouble.reply


def test_no_password_goes_in_plain_text() -> None:
    """RFC 4954 section 4: not without TLS, unless the connection does not leave the machine."""
    talk = authenticate([b"235 In\r\n"], is_local=False)
    assert talk.session.trouble is not None
    assert not any(command.startswith(b"AUTH") for command in talk.host.commands)
    assert "secret" not in repr(ALICE)


# ---------------------------------------------------------------- one message


def test_an_envelope_and_data_go_in_one_write() -> None:
    """RFC 2920 section 3.1."""
    talk = exchange(Host(), outgoing("carol@host.test", "dave@host.test"))
    assert talk.writes[0].count(b"\r\n") == 4
    assert len(talk.writes) == 2
    assert talk.outcomes() == {100: (Result.DELIVERED, "2.0.0"), 101: (Result.DELIVERED, "2.0.0")}
    assert talk.host.messages == [LINES]
    (delivery,) = talk.deliveries
    assert (delivery.endpoint, delivery.trouble, delivery.tls) == (ENDPOINT, None, None)
    assert all(outcome.relays_dsn and outcome.is_remote for outcome in delivery.outcomes)


@pytest.mark.parametrize("extensions", [EXTENSIONS, ONE_BY_ONE])
@pytest.mark.parametrize(
    ("says", "first", "second"),
    [
        ({"MAIL": b"550 5.1.7 No\r\n"}, (Result.FAILED, "5.1.7"), (Result.FAILED, "5.1.7")),
        ({"MAIL": b"451 4.3.0 Later\r\n"}, (Result.DEFERRED, "4.3.0"), (Result.DEFERRED, "4.3.0")),
        ({"RCPT": [b"550 5.1.1 No\r\n", b"250 Ok\r\n"]}, (Result.FAILED, "5.1.1"), (Result.DELIVERED, "2.0.0")),
        ({"RCPT": [b"450 Grey\r\n", b"250 Ok\r\n"]}, (Result.DEFERRED, "4.2.0"), (Result.DELIVERED, "2.0.0")),
        ({"RCPT": [b"450 Grey\r\n", b"551 No\r\n"]}, (Result.DEFERRED, "4.2.0"), (Result.FAILED, "5.1.6")),
        ({"RCPT": b"550 No\r\n", "DATA": b"354 Go on\r\n"}, (Result.FAILED, "5.1.0"), (Result.FAILED, "5.1.0")),
        ({"DATA": b"451 4.3.2 No\r\n"}, (Result.DEFERRED, "4.3.2"), (Result.DEFERRED, "4.3.2")),
        ({"DATA": b"554 5.7.1 No\r\n"}, (Result.FAILED, "5.7.1"), (Result.FAILED, "5.7.1")),
        ({"END": b"554 5.7.1 Spam\r\n"}, (Result.FAILED, "5.7.1"), (Result.FAILED, "5.7.1")),
        ({"END": b"451 Later\r\n"}, (Result.DEFERRED, "4.3.0"), (Result.DEFERRED, "4.3.0")),
        ({"MAIL": b"550 No\r\n", "RCPT": b"250 Ok\r\n", "DATA": b"354 Go on\r\n"},
         (Result.FAILED, "5.0.0"), (Result.FAILED, "5.0.0")),
    ],
)  # fmt: skip
def test_each_recipient_has_what_the_host_said_of_it_and_the_next_message_goes_well(
    says: dict[str, Any], first: tuple[Result, str], second: tuple[Result, str], extensions: tuple[str, ...]
) -> None:
    """RFC 5321 section 4.2.1; whatever a transaction came to, the next begins anew."""
    host = Host(
        extensions=extensions,
        says={verb: list(said) if isinstance(said, list) else said for verb, said in says.items()},
    )
    talk = exchange(host, outgoing("carol@host.test", "dave@host.test"))
    assert talk.outcomes() == {100: first, 101: second}
    assert talk.session.trouble is None
    host.says.clear()
    talk.session.send(outgoing(message_id=2))
    talk.run()
    assert talk.outcomes()[200] == (Result.DELIVERED, "2.0.0")
    assert talk.host.messages[-1] == LINES
    # Content goes only where somebody is to have it.
    assert host.messages[:-1] in ([], [LINES], [b""])
    assert (host.messages[:-1] == [LINES]) == (Result.DELIVERED in (first[0], second[0]) or "END" in says)


def test_two_outstanding_messages_cost_one_write_each() -> None:
    """RFC 2920 section 3.1: content may be the first of a group of commands."""
    host = Host()
    talk = ready(host)
    talk.later = [outgoing(message_id=number) for number in range(3, 7)]
    talk.session.send(outgoing(message_id=1))
    talk.session.send(outgoing(message_id=2))
    talk.run()
    assert [delivery.message_id for delivery in talk.deliveries] == [1, 2, 3, 4, 5, 6]
    assert all(result is Result.DELIVERED for result, _ in talk.outcomes().values())
    # The first envelope, then each content with the envelope behind it.
    assert len(talk.writes) == 7
    assert all(b"\r\n.\r\nMAIL FROM" in write for write in talk.writes[1:-1])


def test_without_pipelining_one_command_goes_at_a_time() -> None:
    """RFC 5321 section 2.1: a client waits for the reply."""
    host = Host(extensions=ONE_BY_ONE)
    talk = exchange(host, outgoing(message_id=1), outgoing(message_id=2))
    assert [write.count(b"\r\n") for write in talk.writes if b"Subject" not in write] == [1] * 6
    assert len(talk.deliveries) == 2


def test_what_the_host_cannot_take_is_refused_without_a_word_to_it() -> None:
    """Rather than mangled; and the session goes on."""
    talk = exchange(Host(extensions=("PIPELINING",)), outgoing(is_eight_bit=True), outgoing(message_id=2))
    assert talk.outcomes() == {100: (Result.FAILED, "5.6.3"), 200: (Result.DELIVERED, "2.0.0")}
    assert not talk.deliveries[0].outcomes[0].is_remote
    assert len([command for command in talk.host.commands if command.startswith(b"MAIL")]) == 1


# ---------------------------------------------------------------- many recipients


def test_the_rest_goes_in_another_transaction_where_the_host_says_how_many_it_takes() -> None:
    """RFC 9422 section 4.2: RCPTMAX."""
    host = Host(extensions=(*EXTENSIONS, "LIMITS RCPTMAX=2"))
    talk = exchange(host, outgoing(*(f"user{number}@host.test" for number in range(5))))
    assert len(talk.host.messages) == 3
    assert set(talk.outcomes().values()) == {(Result.DELIVERED, "2.0.0")}
    assert len(talk.deliveries) == 1


@pytest.mark.parametrize("extensions", [EXTENSIONS, ONE_BY_ONE])
@pytest.mark.parametrize("too_many", [b"452 4.5.3 Too many\r\n", b"552 Too many recipients\r\n"])
def test_the_rest_goes_in_another_transaction_where_there_were_too_many(
    too_many: bytes, extensions: tuple[str, ...]
) -> None:
    """RFC 5321 section 4.5.3.1.10."""
    host = Host(extensions=extensions, says={"RCPT": [b"250 Ok\r\n", too_many, too_many, b"250 Ok\r\n"]})
    talk = exchange(host, outgoing(*(f"user{number}@host.test" for number in range(3))))
    assert len(host.messages) == 2
    assert set(talk.outcomes().values()) == {(Result.DELIVERED, "2.0.0")}


def test_too_many_for_a_host_that_took_nobody_are_deferred() -> None:
    """Or it would be asked for ever."""
    talk = exchange(Host(says={"RCPT": b"452 4.5.3 Too many\r\n"}), outgoing())
    assert talk.outcomes() == {100: (Result.DEFERRED, "4.5.3")}


def test_no_more_messages_go_than_the_host_takes() -> None:
    """RFC 9422 section 4.1: MAILMAX; what is left over has no outcome and nobody is to blame."""
    host = Host(extensions=(*EXTENSIONS, "LIMITS MAILMAX=2"))
    talk = ready(host)
    for number in range(1, 3):
        assert talk.session.is_usable
        talk.session.send(outgoing(message_id=number))
        talk.run()
    assert not talk.session.is_usable
    talk.session.send(outgoing(message_id=3))
    talk.run()
    assert [len(delivery.outcomes) for delivery in talk.deliveries] == [1, 1, 0]
    assert talk.deliveries[-1].trouble is None


# ---------------------------------------------------------------- LMTP


def test_lmtp_has_a_reply_for_each_accepted_recipient() -> None:
    """RFC 2033 section 4.2."""
    host = Host(
        is_lmtp=True,
        says={
            "RCPT": [b"250 Ok\r\n", b"550 5.1.1 No\r\n", b"250 Ok\r\n"],
            "END": [b"250 2.1.5 Kept\r\n", b"452 4.2.2 Full\r\n", b"250 2.1.5 Kept\r\n"],
        },
    )
    talk = exchange(
        host, outgoing("a@host.test", "b@host.test", "c@host.test"), outgoing(message_id=2), protocol="lmtp"
    )
    assert talk.outcomes() == {
        100: (Result.DELIVERED, "2.1.5"),
        101: (Result.FAILED, "5.1.1"),
        102: (Result.DEFERRED, "4.2.2"),
        200: (Result.DELIVERED, "2.1.5"),
    }


def test_lmtp_says_lhlo_and_knows_no_helo() -> None:
    """RFC 2033 section 4.1."""
    host = Host(says={"LHLO": b"500 What?\r\n"})
    talk = Talk(session_of(protocol="lmtp"), host)
    talk.run(host.greeting)
    assert host.commands[0] == b"LHLO mail.example.test"
    assert talk.session.trouble is not None


def test_some_replies_of_lmtp_lost_are_ambiguous_for_the_others_alone() -> None:
    """Who has a reply has an outcome."""
    host = Host(is_lmtp=True, says={"END": [b"250 2.1.5 Kept\r\n", b""]})
    talk = exchange(host, outgoing("a@host.test", "b@host.test"), protocol="lmtp")
    talk.session.connection_lost("reset")
    talk.run()
    first, second = talk.deliveries[0].outcomes
    assert (first.result, first.is_ambiguous) == (Result.DELIVERED, False)
    assert (second.result, second.is_ambiguous) == (Result.DEFERRED, True)


def test_requiretls_is_for_what_goes_over_a_network() -> None:
    """RFC 8689 section 1: it is about mail on its way; LMTP hosts on the same machine have neither it nor STARTTLS."""
    message = outgoing(requires_tls=True)
    assert exchange(Host(is_lmtp=True), message, protocol="lmtp", is_local=True).outcomes() == {
        100: (Result.DELIVERED, "2.0.0")
    }
    for options in ({"protocol": "lmtp"}, {"protocol": "smtp", "is_local": True}):
        host = Host(is_lmtp=options["protocol"] == "lmtp")
        assert exchange(host, message, **options).outcomes() == {100: (Result.FAILED, "5.7.30")}


# ---------------------------------------------------------------- CHUNKING

LARGE = (b"x" * 70 + b"\r\n.\r\n") * (CHUNKED_FROM_OCTETS // 75 + 1)
CHUNKING = (*EXTENSIONS, "CHUNKING")


@pytest.mark.parametrize("cut", [len(LARGE), 65536, 75 * 1000 + 71])
def test_large_content_goes_in_chunks(cut: int) -> None:
    """RFC 3030 section 2; a chunk may end anywhere, even within CRLF."""
    pieces = tuple(LARGE[place : place + cut] for place in range(0, len(LARGE), cut))
    talk = exchange(Host(extensions=CHUNKING), outgoing(pieces=pieces), outgoing(message_id=2))
    assert talk.outcomes() == {100: (Result.DELIVERED, "2.0.0"), 200: (Result.DELIVERED, "2.0.0")}
    assert talk.host.messages == [LARGE, LINES]
    assert b"BDAT 0 LAST" in talk.host.commands


@pytest.mark.parametrize("taken", [0, 1])
def test_a_chunk_refused_is_the_end_of_it(taken: int) -> None:
    """RFC 3030 section 2: the rest need not be heard; and a message of which a chunk is missing is never ended."""
    refused = b"552 5.3.4 Too large\r\n"
    host = Host(extensions=CHUNKING, says={"BDAT": [*[b"250 Ok\r\n"] * taken, refused]})
    talk = exchange(host, outgoing(pieces=(LARGE, LARGE)), outgoing(message_id=2))
    assert talk.outcomes() == {100: (Result.FAILED, "5.3.4"), 200: (Result.DELIVERED, "2.0.0")}
    assert not any(command.endswith(b"LAST") for command in host.commands)


@pytest.mark.parametrize("says", [{"MAIL": b"550 No\r\n"}, {"RCPT": b"550 No\r\n"}])
def test_no_chunk_goes_to_nobody(says: dict[str, Any]) -> None:
    """Content is not sent before somebody is to have it."""
    talk = exchange(Host(extensions=CHUNKING, says=says), outgoing(pieces=(LARGE,)))
    assert talk.outcomes()[100][0] is Result.FAILED
    assert not any(command.startswith(b"BDAT") for command in talk.host.commands)


# ---------------------------------------------------------------- trouble in the middle


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "END"])
@pytest.mark.parametrize("extensions", [EXTENSIONS, ONE_BY_ONE])
def test_421_is_heard_by_all_who_wait(verb: str, extensions: tuple[str, ...]) -> None:
    """RFC 5321 section 4.2.1: the host shuts down; the second message has not been tried."""
    host = Host(extensions=extensions, says={verb: b"421 4.3.2 Closing\r\n"})
    talk = exchange(host, outgoing("a@host.test", "b@host.test"), outgoing(message_id=2))
    assert talk.outcomes() == {100: (Result.DEFERRED, "4.3.2"), 101: (Result.DEFERRED, "4.3.2")}
    assert not any(outcome.is_ambiguous for outcome in talk.deliveries[0].outcomes)
    for delivery in talk.deliveries:
        assert delivery.trouble is not None
        assert delivery.trouble.kind is TroubleKind.SHUTDOWN
    assert [delivery.message_id for delivery in talk.deliveries] == [1, 2]


def test_421_between_messages_ends_the_session() -> None:
    """Nobody has an outcome by it."""
    talk = ready(Host())
    talk.run(b"421 4.4.2 Idle\r\n")
    assert not talk.session.is_usable
    assert talk.session.trouble is not None
    assert talk.session.trouble.kind is TroubleKind.SHUTDOWN
    talk.session.send(outgoing())
    talk.run()
    assert talk.deliveries[0].outcomes == ()


@pytest.mark.parametrize("is_used_again", [False, True])
def test_a_host_that_leaves_between_messages_is_in_no_trouble(is_used_again: bool) -> None:
    """RFC 5321 section 4.5.3.2.7: a server may time out; a message that comes just then has not been tried."""
    host = Host()
    talk = exchange(host, outgoing())
    host.says["MAIL"] = host.says["RCPT"] = host.says["DATA"] = b""
    if is_used_again:
        talk.session.send(outgoing(message_id=2))
        talk.session.send(outgoing(message_id=3))
        talk.run()
    talk.session.connection_lost("closed")
    talk.run()
    assert not talk.session.is_usable
    assert talk.session.trouble is None
    rest = [(delivery.message_id, delivery.outcomes, delivery.trouble) for delivery in talk.deliveries[1:]]
    assert rest == ([(2, (), None), (3, (), None)] if is_used_again else [])


def test_a_host_that_leaves_in_the_first_message_or_in_the_middle_is_in_trouble() -> None:
    """Else it would be tried for ever."""
    first = exchange(Host(says={"MAIL": b"", "RCPT": b"", "DATA": b""}), outgoing())
    middle = exchange(Host(), outgoing())
    middle.host.says.update({"RCPT": b"", "DATA": b""})
    middle.session.send(outgoing(message_id=2))
    middle.run()
    for talk in (first, middle):
        talk.session.connection_lost("closed")
        talk.run()
        assert talk.deliveries[-1].trouble is not None


@pytest.mark.parametrize(
    ("says", "is_ambiguous"),
    [
        ({"MAIL": b"354 What\r\n"}, None),
        ({"RCPT": b"hello\r\n"}, None),
        ({"DATA": b"250 Ok\r\n"}, None),
        ({"END": b"354 More\r\n"}, True),
        ({"END": b"What\r\n"}, True),
    ],
)
def test_a_host_that_makes_no_sense_is_in_trouble(says: dict[str, Any], is_ambiguous: bool | None) -> None:
    """RFC 5321 section 4.2: what it has done with the message is known only if its end was not sent."""
    talk = exchange(Host(says=says), outgoing())
    (delivery,) = talk.deliveries
    assert delivery.trouble is not None
    assert delivery.trouble.kind is TroubleKind.PROTOCOL
    assert [outcome.is_ambiguous for outcome in delivery.outcomes] == ([] if is_ambiguous is None else [is_ambiguous])


def test_nothing_is_kept_of_what_comes_when_all_is_over() -> None:
    """A host may go on sending until the connection is gone, and inside TLS it is read so long."""
    talk = ready(Host())
    talk.session.quit()
    talk.run()
    assert talk.session.phase is Phase.CLOSED
    tracemalloc.start()
    for _ in range(100):
        talk.session.receive(b"x" * 65536)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000


def dialogue(limit: int, part_octets: int, extensions: tuple[str, ...], protocol: str) -> tuple[Talk, bytes]:
    """Three messages, mixed replies, and the connection cut when so many octets of the host have come."""
    replies = [
        b"250 2.1.5 Ok\r\n",
        b"550-5.1.1 No\r\n550 5.1.1 such\r\n",
        b"250 Ok\r\n",
        b"450 4.2.1 Grey\r\n",
        b"250 Ok\r\n",
    ]
    host = Host(extensions=extensions, says={"RCPT": replies}, is_lmtp=protocol == "lmtp")
    talk = Talk(session_of(protocol=protocol), host, part_octets=part_octets, limit=limit)
    talk.run(host.greeting)
    if talk.session.phase is Phase.READY:
        talk.later = [outgoing("e@host.test", message_id=3)]
        talk.session.send(outgoing("a@host.test", "b@host.test", message_id=1))
        talk.session.send(outgoing("c@host.test", "d@host.test", message_id=2))
        talk.run()
    wire = b"".join(talk.writes)
    if talk.left == 0:
        talk.session.connection_lost("reset by peer")
        talk.run()
    return talk, wire


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
@pytest.mark.parametrize("extensions", [EXTENSIONS, ONE_BY_ONE])
def test_a_connection_cut_at_any_octet_loses_nothing(extensions: tuple[str, ...], protocol: str) -> None:
    """RFC 5321 section 4.5.4.1: who was answered has the answer; ambiguous is only what the end was sent of."""
    whole, _ = dialogue(SMALL, SMALL, extensions, protocol)
    right = whole.outcomes()
    assert right == {
        100: (Result.DELIVERED, "2.0.0"),
        101: (Result.FAILED, "5.1.1"),
        200: (Result.DELIVERED, "2.0.0"),
        201: (Result.DEFERRED, "4.2.1"),
        300: (Result.DELIVERED, "2.0.0"),
    }
    for part_octets in (1, SMALL):
        for limit in range(whole.heard_octets):
            talk, wire = dialogue(limit, part_octets, extensions, protocol)
            ended = wire.count(b"\r\n.\r\n")
            handed_over = 0 if b"MAIL" not in wire else 3 - len(talk.later)
            assert [delivery.message_id for delivery in talk.deliveries] == list(range(1, handed_over + 1))
            assert talk.session.trouble is not None
            assert talk.session.trouble.kind is TroubleKind.LOST
            ambiguous = 0
            for delivery in talk.deliveries:
                for outcome in delivery.outcomes:
                    if outcome.is_ambiguous:
                        ambiguous += 1
                        assert (outcome.result, outcome.status) == (Result.DEFERRED, "4.4.2")
                    else:
                        assert (outcome.result, outcome.status) == right[outcome.queue_id], (limit, outcome)
            delivered = sum(result is Result.DELIVERED for result, _ in talk.outcomes().values())
            assert delivered + ambiguous == ended == len(talk.host.messages)


@pytest.mark.parametrize("part_octets", [1, 2, 3, 7])
def test_how_the_replies_are_cut_changes_nothing(part_octets: int) -> None:
    """A read may end anywhere."""
    whole, wire = dialogue(SMALL, SMALL, EXTENSIONS, "smtp")
    talk, cut_wire = dialogue(SMALL, part_octets, EXTENSIONS, "smtp")
    assert talk.outcomes() == whole.outcomes()
    assert cut_wire == wire


def test_content_that_cannot_be_read_never_ends() -> None:
    """Half a message must not pass for a whole one: the connection is broken off, the message waits."""
    talk = ready(Host())
    talk.session.send(outgoing())
    talk._exchange()
    talk.session.receive(talk._waiting)
    assert talk.session.wanted is not None
    talk.session.content(b"Half")
    talk.session.content_failed()
    assert talk.session.take_output() == b""
    ((_, delivery),) = talk.session.take_deliveries()
    assert (delivery.outcomes[0].result, delivery.outcomes[0].is_remote) == (Result.DEFERRED, False)
    assert delivery.trouble is None
    assert talk.session.is_broken_off


def test_quit_waits_for_what_is_outstanding() -> None:
    """RFC 5321 section 4.1.1.10."""
    talk = ready(Host())
    talk.session.send(outgoing())
    talk.session.quit()
    talk.run()
    assert talk.host.commands[-1] == b"QUIT"
    assert talk.session.phase is Phase.CLOSED
    assert talk.session.trouble is None
    assert talk.outcomes() == {100: (Result.DELIVERED, "2.0.0")}


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "END"])
def test_a_host_that_stalls_is_waited_for_by_name(verb: str) -> None:
    """RFC 5321 section 4.5.3.2: each has a time-out of its own."""
    talk = exchange(Host(extensions=ONE_BY_ONE, says={verb: b""}), outgoing())
    assert talk.session.awaited is Awaited[verb]
    talk.session.time_out()
    talk.run()
    (delivery,) = talk.deliveries
    assert delivery.trouble is not None
    assert delivery.trouble.kind is TroubleKind.TIMEOUT
    assert [outcome.is_ambiguous for outcome in delivery.outcomes] == ([True] if verb == "END" else [])
