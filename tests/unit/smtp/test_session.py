"""What the session asks, keeps and records, as far as a transcript can't say it; see tests/scenario for the rest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest

from mailgate.envelope import ForwardDestination, MailboxDestination, Resolution
from mailgate.ids import IdGenerator, encode_id
from mailgate.message import MAX_HEADER_OCTETS
from mailgate.policy.stage import Request, Role, SessionView, Stage, TlsState
from mailgate.policy.verdict import Continue, Decision, Defer, Discard, Fate, Quarantine, Reject
from mailgate.smtp.actions import Action, Authenticate, Close, Decide, StartTls, Store, Yield
from mailgate.smtp.reply import reply
from mailgate.smtp.session import Limits, Session, Settings, State
from mailgate.storage.records import Disposition, IncomingMessage, SessionRecord, TransactionRecord

NOW = 1_790_000_000.0
GO_ON = Decision(Continue())
TLS = TlsState("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
ENVELOPE = b"MAIL FROM:<alice@client.example>\r\nRCPT TO:<bob@example.test>\r\n"


@dataclass(frozen=True)
class Note:
    text: str


class Driver:
    """Steps through a session, one action at a time."""

    def __init__(self, settings: Settings | None = None, limits: Limits | None = None) -> None:
        ids = IdGenerator(1, lambda: NOW)
        view = SessionView(ids.next(), "mx", Role.MX, "192.0.2.7", 1, "192.0.2.7/32", "192.0.2.25", 25, NOW)
        self.session = Session(view, settings or Settings("mx.example.test", limits or Limits()), ids, lambda: NOW)
        self.requests: list[Request] = []
        self.session.start()

    def next(self, octets: bytes = b"") -> Action | None:
        if octets:
            self.session.receive(octets)
        action = self.session.next_action()
        if isinstance(action, Decide):
            self.requests.append(action.request)
        return action

    def run(self, octets: bytes = b"", decisions: dict[Stage, Decision] | None = None) -> Action | None:
        """Let the session decide as told, up to an action that is no decision."""
        action = self.next(octets)
        while isinstance(action, Decide):
            self.session.decided((decisions or {}).get(action.request.stage, GO_ON))
            action = self.next()
        return action

    def greeted(self) -> Driver:
        assert self.run(b"EHLO client.example\r\n") is None
        self.session.take_output()
        return self

    def codes(self) -> list[int]:
        return [int(line[:3]) for line in self.session.take_output().splitlines() if line[3:4] == b" "]

    def message(self, content: bytes, decisions: dict[Stage, Decision] | None = None) -> IncomingMessage:
        action = self.run(ENVELOPE + b"DATA\r\n" + content + b".\r\n", decisions)
        assert isinstance(action, Store)
        return action.message

    def records(self) -> tuple[list[TransactionRecord], list[SessionRecord]]:
        records = self.session.take_records()
        return (
            [record for record in records if isinstance(record, TransactionRecord)],
            [record for record in records if isinstance(record, SessionRecord)],
        )


# ------------------------------------------------------------ what is asked


def test_each_stage_is_asked_with_what_is_known_then() -> None:
    driver = Driver()
    assert driver.run(b"EHLO client.example\r\n") is None
    driver.message(b"Subject: x\r\n")
    connect, helo, mail, rcpt, data, end_of_data = driver.requests
    assert [request.stage for request in driver.requests] == list(Stage)
    assert connect.session.helo is None
    assert (helo.session.helo, helo.session.is_esmtp, helo.transaction) == ("client.example", True, None)
    assert mail.transaction is not None
    assert str(mail.transaction.reverse_path) == "alice@client.example"
    assert rcpt.transaction is not None
    assert (str(rcpt.forward_path), rcpt.transaction.recipients) == ("bob@example.test", ())
    assert data.transaction is not None
    assert [recipient.accepted for recipient in data.transaction.recipients] == [True]
    assert (data.forward_path, data.content) == (None, None)
    assert end_of_data.content is not None
    assert end_of_data.content.joined() == b"Subject: x\r\n"
    assert len({request.session.id for request in driver.requests}) == 1


def test_no_policy_is_asked_of_a_message_at_fault() -> None:
    driver = Driver().greeted()
    assert driver.run(ENVELOPE + b"DATA\r\nbare\nline\r\n.\r\n") is None
    assert [request.stage for request in driver.requests][-1] is Stage.DATA


def test_notes_reach_later_stages_of_their_session_and_transaction_only() -> None:
    driver = Driver()
    noting = {stage: Decision(Continue(), "", (Note(stage.value),)) for stage in Stage}
    driver.run(b"EHLO client.example\r\n", noting)
    message = driver.message(b"x\r\n", noting)
    notes = {
        request.stage: [note.text for note in request.notes if isinstance(note, Note)] for request in driver.requests
    }
    assert notes == {
        Stage.CONNECT: [],
        Stage.HELO: ["connect"],
        Stage.MAIL: ["connect", "helo"],
        Stage.RCPT: ["connect", "helo", "mail"],
        Stage.DATA: ["connect", "helo", "mail"],
        Stage.END_OF_DATA: ["connect", "helo", "mail", "data"],
    }
    assert message.transaction.recipients[0].note(Note) == Note("rcpt")
    driver.session.stored(message.transaction.id)
    driver.run(b"EHLO again.example\r\nMAIL FROM:<>\r\n")
    helo, mail = driver.requests[-2:]
    assert [note for note in helo.notes if isinstance(note, Note)][:1] == [Note("connect")]
    assert Note("mail") not in mail.notes
    assert Note("data") not in mail.notes


def test_after_a_handshake_only_the_connection_is_remembered() -> None:
    """RFC 3207 section 4.2."""
    driver = Driver(Settings("mx.example.test", offers_starttls=True))
    noting = {stage: Decision(Continue(), "", (Note(stage.value),)) for stage in (Stage.CONNECT, Stage.HELO)}
    driver.run(b"EHLO client.example\r\n", noting)
    assert isinstance(driver.run(b"STARTTLS\r\n"), StartTls)
    assert driver.session.state is State.TLS
    driver.session.tls_started(TLS)
    driver.run(b"EHLO client.example\r\n")
    assert driver.requests[-1].notes == (Note("connect"),)
    assert driver.requests[-1].session.tls == TLS


# ------------------------------------------------------------ what is stored


def test_what_is_stored_is_whole() -> None:
    driver = Driver().greeted()
    content = b"Subject: x\r\n\r\n" + b"line\r\n" * 3
    message = driver.message(content)
    assert message.content.joined() == content
    assert message.content.sha256 == hashlib.sha256(content).digest()
    assert message.trace.startswith(b"Return-Path: <alice@client.example>\r\nReceived: from client.example ")
    assert message.reply == f"250 2.0.0 Accepted as {encode_id(message.transaction.id)}"
    assert encode_id(message.transaction.id).encode() in message.trace
    assert message.received_at == NOW


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.DATA, Stage.END_OF_DATA])
def test_a_quarantine_of_any_stage_is_that_of_the_message(stage: Stage) -> None:
    driver = Driver()
    decisions = {stage: Decision(Quarantine("odd"), "suspicious")}
    driver.run(b"EHLO client.example\r\n", decisions)
    message = driver.message(b"x\r\n", decisions)
    assert (message.disposition, message.policy, message.reason) == (Disposition.QUARANTINED, "suspicious", "odd")


def test_a_quarantine_is_for_one_transaction_only() -> None:
    driver = Driver().greeted()
    first = driver.message(b"x\r\n", {Stage.MAIL: Decision(Quarantine("odd"), "suspicious")})
    driver.session.stored(first.transaction.id)
    assert driver.message(b"x\r\n").disposition is Disposition.ACCEPTED


def test_a_discard_stores_nothing_and_is_recorded_with_its_reason() -> None:
    driver = Driver().greeted()
    discarding = {Stage.END_OF_DATA: Decision(Discard("a known sender"), "known")}
    assert driver.run(ENVELOPE + b"DATA\r\nx\r\n.\r\n", discarding) is None
    assert driver.codes() == [250, 250, 354, 250]
    ((record,), _) = driver.records()
    assert (record.disposition, record.policy, record.reason) == (Disposition.DISCARDED, "known", "a known sender")
    assert record.sha256 == hashlib.sha256(b"x\r\n").digest()


def fates(*verdicts: Quarantine | Discard) -> Decision:
    """A decision at the end of data about single recipients, in their order."""
    own = tuple((position, Fate(verdict, "picky")) for position, verdict in enumerate(verdicts))
    return Decision(Continue(), fates=own)


TWO_RECIPIENTS = ENVELOPE + b"RCPT TO:<carol@example.test>\r\nDATA\r\nx\r\n.\r\n"


def test_a_message_that_is_discarded_for_each_of_its_recipients_is_discarded() -> None:
    """There is nothing to store, and the client hears 250 all the same."""
    driver = Driver().greeted()
    decisions = {Stage.END_OF_DATA: fates(Discard("first"), Discard("second"))}
    assert driver.run(TWO_RECIPIENTS, decisions) is None
    assert driver.codes() == [250, 250, 250, 354, 250]
    ((record,), _) = driver.records()
    assert (record.disposition, record.policy, record.reason) == (Disposition.DISCARDED, "picky", "first")
    assert [recipient.fate for recipient in record.transaction.recipients] == [
        Fate(Discard("first"), "picky"),
        Fate(Discard("second"), "picky"),
    ]


ELSEWHERE = ForwardDestination("carl@elsewhere.example")
HERE = MailboxDestination(1, "bob@example.test")


@pytest.mark.parametrize("fate", [Decision(Quarantine("odd"), "picky"), None], ids=["all", "each"])
def test_junk_that_nobody_here_would_keep_is_refused(fate: Decision | None) -> None:
    """It is never forwarded, and must not be answered with 250 and forgotten."""
    driver = Driver().greeted()
    decision = fate or fates(Discard("no"), Quarantine("odd"))
    leads = Decision(Continue(), notes=(Resolution((ELSEWHERE,)),))
    assert driver.run(TWO_RECIPIENTS, {Stage.RCPT: leads, Stage.END_OF_DATA: decision}) is None
    assert driver.codes()[-1] == 550
    (record,) = driver.records()[0]
    assert (record.disposition, record.policy, record.reply[:9]) == (Disposition.REFUSED, "picky", "550 5.7.1")


@pytest.mark.parametrize("destinations", [(ELSEWHERE, HERE), (HERE,)])
def test_junk_that_somebody_here_keeps_is_taken(
    destinations: tuple[ForwardDestination | MailboxDestination, ...],
) -> None:
    """It goes into Junk there."""
    driver = Driver().greeted()
    leads = Decision(Continue(), notes=(Resolution(destinations),))
    message = driver.message(b"x\r\n", {Stage.RCPT: leads, Stage.END_OF_DATA: Decision(Quarantine("odd"), "taste")})
    assert message.disposition is Disposition.QUARANTINED


def test_a_message_that_each_recipient_has_in_junk_or_not_at_all_is_quarantined() -> None:
    driver = Driver().greeted()
    action = driver.run(TWO_RECIPIENTS, {Stage.END_OF_DATA: fates(Discard("no"), Quarantine("odd"))})
    assert isinstance(action, Store)
    assert (action.message.disposition, action.message.reason) == (Disposition.QUARANTINED, "odd")


def test_a_message_that_one_recipient_has_as_usual_is_accepted() -> None:
    driver = Driver().greeted()
    action = driver.run(TWO_RECIPIENTS, {Stage.END_OF_DATA: fates(Discard("no"))})
    assert isinstance(action, Store)
    assert (action.message.disposition, action.message.policy) == (Disposition.ACCEPTED, "")
    assert [recipient.fate is None for recipient in action.message.transaction.recipients] == [False, True]


def test_what_was_found_before_a_refused_greeting_is_recorded_with_the_session() -> None:
    """There is no transaction that could have it."""
    for decisions in (
        {Stage.CONNECT: Decision(Reject(reply(554, "5.7.1", "No")), "list", (Note("no"),))},
        {Stage.HELO: Decision(Reject(reply(550, "5.7.23", "No")), "spf", (Note("no"),))},
    ):
        driver = Driver()
        driver.run(b"EHLO client.example\r\n", decisions)
        driver.session.connection_lost()
        (_, (record,)) = driver.records()
        assert record.notes == (Note("no"),)


def test_what_was_found_before_mail_is_recorded_once() -> None:
    """With the session where it began no transaction, else with the transactions."""
    found = {Stage.HELO: Decision(Continue(), notes=(Note("helo"),))}
    driver = Driver()
    driver.run(b"EHLO client.example\r\n", found)
    driver.session.connection_lost()
    (_, (record,)) = driver.records()
    assert record.notes == (Note("helo"),)
    driver = Driver()
    driver.run(b"EHLO client.example\r\n" + ENVELOPE + b"RSET\r\n", found)
    driver.session.connection_lost()
    ((transaction,), (record,)) = driver.records()
    assert (transaction.transaction.notes, record.notes) == ((Note("helo"),), ())


def test_a_header_section_that_does_not_end_is_refused() -> None:
    """No search of it may hold the others up."""
    driver = Driver().greeted()
    driver.run(ENVELOPE + b"DATA\r\n")
    for _ in range(MAX_HEADER_OCTETS // 62_000 + 1):
        assert driver.run(b"X-Long: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n" * 1000) is None
    assert driver.run(b".\r\n") is None
    assert driver.codes() == [250, 250, 354, 552]


# ------------------------------------------------------------ what is recorded


def test_a_refused_transaction_is_recorded_with_envelope_and_reason() -> None:
    driver = Driver().greeted()
    refusing = {Stage.END_OF_DATA: Decision(Reject(reply(550, "5.7.1", "Spam")), "spam")}
    driver.run(ENVELOPE + b"DATA\r\nx\r\n.\r\n", refusing)
    ((record,), _) = driver.records()
    assert record.disposition is Disposition.REFUSED
    assert (record.stage, record.policy, record.size_octets) == ("end_of_data", "spam", 3)
    assert str(record.transaction.reverse_path) == "alice@client.example"
    assert [str(recipient.forward_path) for recipient in record.transaction.recipients] == ["bob@example.test"]
    assert record.reply == f"550 5.7.1 Spam [{encode_id(record.transaction.id)}]"
    assert driver.session.take_output().endswith(record.reply.encode() + b"\r\n")


def test_a_message_with_a_fault_is_recorded_with_its_size() -> None:
    driver = Driver().greeted()
    driver.run(ENVELOPE + b"DATA\r\nbare\nline\r\n.\r\n")
    ((record,), _) = driver.records()
    assert (record.size_octets, record.sha256) == (11, None)


def test_refused_recipients_are_kept_up_to_a_bound() -> None:
    driver = Driver(limits=Limits(recipients=10, errors=10_000)).greeted()
    refusing = {Stage.RCPT: Decision(Reject(reply(550, "5.1.1", "Nobody")), "recipients")}
    driver.run(b"MAIL FROM:<>\r\n")
    for _ in range(500):
        assert driver.run(b"RCPT TO:<nobody@example.test>\r\n", refusing) is None
        driver.session.take_output()
    driver.run(b"RCPT TO:<bob@example.test>\r\nRSET\r\n")
    ((record,), _) = driver.records()
    assert len(record.transaction.recipients) == 21
    assert record.transaction.recipients[-1].accepted


def test_the_dialogue_is_bounded_in_lines_and_octets() -> None:
    driver = Driver(limits=Limits(errors=10_000)).greeted()
    for _ in range(1000):
        driver.run(b"X" * 2000 + b"\r\n")
        driver.session.take_output()
    driver.session.connection_lost()
    (_, (record,)) = driver.records()
    assert len(record.dialogue.splitlines()) < 250
    assert len(record.dialogue) < 200 * 520
    assert record.dialogue.endswith("\n(and more)")


def test_a_long_reply_is_recorded_as_the_servers() -> None:
    driver = Driver().greeted()
    refusing = {Stage.MAIL: Decision(Reject(reply(550, "5.7.1", *["x" * 100] * 9)), "wordy")}
    driver.run(b"MAIL FROM:<>\r\n", refusing)
    driver.session.connection_lost()
    (_, (record,)) = driver.records()
    assert all(line.startswith(("S: ", "C: ")) for line in record.dialogue.splitlines())


def test_no_credential_is_recorded_or_shown() -> None:
    driver = Driver(Settings("mx.example.test", mechanisms=lambda _session: ("PLAIN",)))
    driver.greeted()
    action = driver.run(b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n")
    assert isinstance(action, Authenticate)
    assert "secret" not in repr(action)
    driver.session.auth_challenge(b"and?")
    action = driver.run(b"c2VjcmV0\r\n")
    assert isinstance(action, Authenticate)
    assert (action.mechanism, action.response) == (None, b"secret")
    assert "secret" not in repr(action)
    driver.session.auth_refused(reply(535, "5.7.8", "Wrong"))
    driver.run(b"auth plain AGFsaWNlAHNlY3JldA==x\r\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\n")
    driver.session.connection_lost()
    (_, (record,)) = driver.records()
    for secret in ("AGFsaWNl", "c2VjcmV0", "secret"):
        assert secret not in record.dialogue


@pytest.mark.parametrize(
    "lines",
    [
        b"AUTH LOGIN\r\nYWxpY2U=\r\nc2VjcmV0\r\n",  # does not wait to hear that there is no AUTH
        b"AUTH\r\nYWxpY2U=\r\nc2VjcmV0\r\n",
        b" AUTH PLAIN c2VjcmV0\r\n",
        b"\tauth PLAIN c2VjcmV0\r\n",
    ],
)
def test_no_credential_is_recorded_where_there_is_no_exchange(lines: bytes) -> None:
    """A client that does not wait says its password as a command."""
    driver = Driver(Settings("mx.example.test", offers_auth_in_tls=True)).greeted()
    driver.run(lines + b"NOOP\r\nWHAT\r\n")
    driver.session.connection_lost()
    (_, (record,)) = driver.records()
    assert "c2VjcmV0" not in record.dialogue
    assert "YWxpY2U" not in record.dialogue
    assert "C: NOOP" in record.dialogue


def test_what_is_no_command_is_recorded_where_it_is_no_credential() -> None:
    """The record is there to see what a client does wrong."""
    driver = Driver(Settings("mx.example.test", mechanisms=lambda _session: ("PLAIN",))).greeted()
    driver.run(b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n")
    driver.session.authenticated("alice@example.test")
    driver.run(b"MALI FROM:<x>\r\nAUTH X\r\nNOOP\r\nWHAT\r\n")
    driver.session.connection_lost()
    (_, (record,)) = driver.records()
    assert "C: MALI FROM:<x>" in record.dialogue
    assert "C: WHAT" in record.dialogue


def test_a_session_is_recorded_once() -> None:
    driver = Driver().greeted()
    assert isinstance(driver.run(b"QUIT\r\n"), Close)
    assert driver.records() == ([], [])
    driver.session.connection_lost()
    (_, (record,)) = driver.records()
    assert (record.ending, record.transactions, record.errors) == ("quit", 0, 0)
    assert driver.records() == ([], [])


# ------------------------------------------------------------ answers that come too late


def test_no_answer_wakes_a_session_that_has_ended() -> None:
    driver = Driver().greeted()
    assert isinstance(driver.next(b"MAIL FROM:<>\r\n"), Decide)
    driver.session.connection_lost()
    driver.session.decided(GO_ON)
    driver.session.tls_started(TLS)
    driver.session.auth_challenge(b"")
    driver.session.authenticated("alice")
    driver.session.auth_refused(reply(535, "5.7.8", "Wrong"))
    driver.session.time_out()
    driver.session.shut_down()
    assert driver.session.state is State.CLOSED
    assert driver.session.take_output() == b""
    assert driver.next(b"NOOP\r\n") is None


@pytest.mark.parametrize("succeeds", [True, False])
def test_a_message_that_is_being_stored_outlives_the_connection(succeeds: bool) -> None:
    driver = Driver().greeted()
    message = driver.message(b"x\r\n")
    driver.session.take_output()
    driver.session.connection_lost()
    assert driver.records()[0] == []
    if succeeds:
        driver.session.stored(message.transaction.id)
        assert driver.session.unconfirmed == [message.transaction.id]
        assert driver.records() == ([], [])
    else:
        driver.session.storage_failed()
        assert [record.disposition for record in driver.records()[0]] == [Disposition.DEFERRED]
    assert driver.session.take_output() == b""


# ------------------------------------------------------------ bounds


def test_commands_that_bring_no_mail_are_bounded() -> None:
    """A client that says NOOP for ever is not served for ever; each message gives it a new start."""
    driver = Driver(limits=Limits(idle_commands=3)).greeted()
    for _ in range(3):
        driver.run(b"NOOP\r\nRSET\r\n")
        driver.session.stored(driver.message(b"x\r\n").transaction.id)
    driver.session.take_output()
    assert isinstance(driver.run(b"NOOP\r\nHELP\r\nVRFY bob\r\nRSET\r\nNOOP\r\n"), Close)
    assert driver.codes() == [250, 214, 252, 421]


def test_chunks_are_no_idle_commands() -> None:
    driver = Driver(limits=Limits(idle_commands=3)).greeted()
    driver.run(ENVELOPE)
    for _ in range(100):
        assert driver.run(b"BDAT 3\r\nx\r\n") is None
        driver.session.take_output()
    assert isinstance(driver.run(b"BDAT 0 LAST\r\n"), Store)


# ------------------------------------------------------------ memory and turns


@pytest.mark.parametrize("end", [b"", b"\r", b"BDAT "], ids=repr)
def test_an_endless_line_is_not_kept(end: bytes) -> None:
    driver = Driver(limits=Limits(command_octets=100)).greeted()
    for _ in range(100):
        assert driver.next(end + b"x" * 1000 + end) is None
        assert driver.session.waiting_octets == 0


def test_a_session_gives_way_after_many_replies() -> None:
    driver = Driver().greeted()
    driver.session.receive(b"NOOP\r\n" * 200)
    turns = []
    while isinstance(driver.session.next_action(), Yield):
        turns.append(driver.session.take_output().count(b"\r\n"))
    assert turns == [64, 64, 64]
    assert driver.session.take_output().count(b"\r\n") == 8


def test_without_input_only_what_was_decided_is_done() -> None:
    driver = Driver().greeted()
    driver.session.receive(b"MAIL FROM:<>\r\n")
    assert driver.session.next_action(takes_input=False) is None
    assert isinstance(driver.session.next_action(), Decide)
    driver.session.decided(Decision(Defer(reply(421, "4.7.0", "Enough")), "limits"))
    assert isinstance(driver.session.next_action(takes_input=False), Close)


def test_held_octets_are_those_of_the_message() -> None:
    driver = Driver().greeted()
    driver.run(ENVELOPE + b"DATA\r\n")
    assert driver.session.held_octets == 0
    driver.run(b"x" * 98 + b"\r\n")
    assert driver.session.held_octets == 100
    assert isinstance(driver.run(b".\r\n"), Store)
    assert driver.session.held_octets == 100
    assert driver.session.being_stored is not None
    driver.session.stored(driver.session.being_stored)
    assert driver.session.held_octets == 0
    assert driver.session.being_stored is None


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", True),
        (ENVELOPE, True),
        (ENVELOPE + b"DA", True),
        (ENVELOPE + b"DATA\r\n", False),
        (ENVELOPE + b"DATA\r\nx\r\n.\r\n", False),
        (ENVELOPE + b"BDAT 10\r\n", False),
        (ENVELOPE + b"BDAT 3\r\nx\r\n", False),
    ],
)
def test_no_message_is_cut_off_by_a_shutdown(octets: bytes, expected: bool) -> None:
    driver = Driver().greeted()
    driver.run(octets)
    assert driver.session.may_be_shut_down is expected


def test_many_recipients_are_held_octets_too() -> None:
    """Their memory is bounded with that of messages."""
    driver = Driver().greeted()
    driver.run(b"MAIL FROM:<>\r\n")
    for _ in range(30):
        driver.run(b"RCPT TO:<bob@example.test>\r\n")
        driver.session.take_output()
    assert driver.session.held_octets == 20 * 1024
