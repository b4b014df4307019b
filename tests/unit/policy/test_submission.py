"""What an account may send: MAIL FROM, From and Sender, a day's limits, and what is done to the header."""

from __future__ import annotations

import hashlib
from datetime import date
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface.verify import verifyObject

from mailgate.envelope import Address, ForwardPath, ReversePath
from mailgate.interfaces import IPolicy
from mailgate.message import MessageContent
from mailgate.policy.signing import Signed
from mailgate.policy.stage import (
    AddedFields,
    RecipientView,
    RemovedFields,
    Request,
    Role,
    SessionView,
    Stage,
    TraceFields,
    TransactionView,
)
from mailgate.policy.submission import SubmissionPolicy
from mailgate.policy.verdict import Continue, Defer, Reject, Verdict
from mailgate.smtp.replies import RECIPIENT_OK
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.senders import Rights, Senders, SendingLimits, Sent

ALICE = "alice@example.test"
OWN = {ALICE, "team@example.test", "alice+lists@example.test"}
NOW = 1_790_000_000.0
GOOD = b"From: Alice <alice@example.test>\r\nDate: Mon, 21 Sep 2026 14:13:20 +0000\r\nMessage-ID: <1@example.test>\r\n"


class KnownSenders:
    """Alice, who may send as three addresses, three messages to five recipients a day."""

    def __init__(self, *, sent: tuple[int, int] = (0, 0), is_enabled: bool = True, away: bool = False) -> None:
        self.sent = sent
        self.counted: list[int] = []
        self._is_enabled = is_enabled
        self._away = away

    def rights(self, account: str, address: Address | None) -> Rights | Deferred[Rights | None] | None:
        if self._away:
            return fail(StorageUnavailable("away"))
        if account != ALICE:
            return None
        return Rights(1, self._is_enabled, str(address) in OWN, SendingLimits(3, 5))

    def sent_today(self, mailbox_id: int) -> Sent:
        return Sent(date(2026, 9, 21), *self.sent)

    async def count(self, rights: Rights, recipients: int) -> bool:
        if self.sent[0] + 1 > 3 or self.sent[1] + recipients > 5:
            return False
        self.counted.append(recipients)
        return True


class NamesTheHeader:
    """A signer whose signature names the header that it was given."""

    def sign(self, content: MessageContent, header: bytes | None = None) -> Deferred[Signed]:
        assert header is not None
        return succeed(Signed(b"DKIM-Signature: " + hashlib.sha256(header).hexdigest().encode() + b"\r\n"))


def content_of(octets: bytes) -> MessageContent:
    return MessageContent([octets], len(octets), hashlib.sha256(octets).digest())


def decide(
    stage: Stage,
    *,
    account: str | None = ALICE,
    reverse_path: Address | None = Address("alice", "example.test"),  # noqa: B008  # frozen
    recipients: int = 1,
    octets: bytes = GOOD + b"\r\n",
    senders: KnownSenders | None = None,
    signs: bool = False,
) -> Verdict:
    session = SessionView(1, "s", Role.SUBMISSION, "192.0.2.1", 1, "192.0.2.1/32", "", 0, NOW, authenticated=account)
    views = tuple(
        RecipientView(ForwardPath(Address(f"r{number}", "example.org")), True, RECIPIENT_OK)
        for number in range(recipients)
    )
    policy = SubmissionPolicy(
        cast("Senders", senders or KnownSenders()),
        NamesTheHeader() if signs else None,
        "mx.example.test",
        lambda: NOW,
    )
    verifyObject(IPolicy, policy)
    transaction = TransactionView(2, NOW, ReversePath(reverse_path), views)
    found: list[Any] = []
    request = Request(stage, session, transaction, content=content_of(octets))
    Deferred.fromCoroutine(policy.decide(request)).addBoth(found.append)
    assert isinstance(found[0], (Continue, Reject, Defer)), found[0]
    return found[0]


def refused(verdict: Verdict) -> str:
    assert isinstance(verdict, (Reject, Defer)), verdict
    return verdict.reply.text()


# ---------------------------------------------------------------- as whom


@pytest.mark.parametrize("path", [*sorted(OWN), None])
def test_own_addresses_and_the_null_path_are_taken_in_mail_from(path: str | None) -> None:
    """RFC 6409 section 6.1; RFC 8098 section 3 and RFC 3834 section 3.3 need the null path."""
    address = None if path is None else Address(*path.split("@"))
    assert decide(Stage.MAIL, reverse_path=address) == Continue()


def test_another_address_in_mail_from_is_refused_with_what_would_be_right() -> None:
    """RFC 6409 section 6.1: 550 5.7.1."""
    text = refused(decide(Stage.MAIL, reverse_path=Address("bob", "example.test")))
    assert text.startswith("550 5.7.1 MAIL FROM names bob@example.test, which is not yours")
    assert "alice@example.test may send as that address, as its aliases" in text


@pytest.mark.parametrize(
    "header",
    [
        b"From: bob@example.test\r\n",
        b"From: Alice <alice@example.test>, Bob <bob@example.test>\r\n",
        b"From: alice@example.test\r\nSender: bob@example.test\r\n",
        b'From: "alice@example.test" <bob@example.test>\r\n',
    ],
)
def test_every_author_and_the_sender_have_to_be_the_accounts(header: bytes) -> None:
    """RFC 5322 section 3.6.2: all addresses in From are authors; Sender is who sends."""
    text = refused(decide(Stage.END_OF_DATA, octets=header + b"\r\n"))
    assert text.startswith("550 5.7.1")
    assert "names bob@example.test, which is not yours" in text


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.END_OF_DATA])
def test_the_null_path_does_not_excuse_another_author(stage: Stage) -> None:
    """From says who sends, whatever the reverse-path is."""
    verdict = decide(stage, reverse_path=None, octets=b"From: bob@example.test\r\n\r\n")
    assert isinstance(verdict, Continue if stage is Stage.MAIL else Reject)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"Subject: x\r\n", "no From field"),
        (b"From: alice@example.test\r\nFrom: bob@example.test\r\n", "more than one From field"),
        (b"From: friends: alice@example.test;\r\n", "From is not a mailbox-list"),
        (
            b"From: alice@example.test\r\nSender: a@example.test, b@example.test\r\n",
            "more than one address in the Sender",
        ),
        (b"From: alice@example.test\r\nSender: a@x.test\r\nSender: b@x.test\r\n", "more than one Sender field"),
        (b"From: alice@example.test\r\nthis is no field\r\n", "Malformed header"),
    ],
)
def test_a_header_that_may_be_read_in_two_ways_is_refused(header: bytes, why: str) -> None:
    """RFC 5322 section 3.6: what is not clear to us is not clear to whoever shows it."""
    text = refused(decide(Stage.END_OF_DATA, octets=header + b"\r\n"))
    assert text.startswith("550 5.6.0 Malformed header: ")
    assert why in text


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.END_OF_DATA])
def test_doubt_is_a_temporary_refusal(stage: Stage) -> None:
    """The database is away: that is ours, and must not cost anybody a message."""
    assert refused(decide(stage, senders=KnownSenders(away=True))).startswith("451 4.3.0")


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.END_OF_DATA])
def test_an_account_that_was_switched_off_meanwhile_sends_nothing(stage: Stage) -> None:
    """A session may outlive its account."""
    assert refused(decide(stage, senders=KnownSenders(is_enabled=False))).startswith("550 5.7.1 The account alice@")
    assert refused(decide(stage, account="bob@example.test")).startswith("550 5.7.1 The account bob@")


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.END_OF_DATA])
def test_who_has_not_authenticated_is_not_asked(stage: Stage) -> None:
    """Whether a listener takes such sessions is its own affair; they reach our recipients only."""
    assert decide(stage, account=None, reverse_path=Address("bob", "example.test"), octets=b"x") == Continue()


# ---------------------------------------------------------------- how much


def test_a_day_has_a_limit_of_messages() -> None:
    """Known before the message is sent in vain."""
    assert decide(Stage.MAIL, senders=KnownSenders(sent=(2, 0))) == Continue()
    text = refused(decide(Stage.MAIL, senders=KnownSenders(sent=(3, 0))))
    assert text == "452 4.7.1 You may send at most 3 messages a day; the next day begins at 00:00 UTC"


def test_a_day_has_a_limit_of_recipients() -> None:
    """The recipients of this message count, as far as they were accepted."""
    assert decide(Stage.RCPT, senders=KnownSenders(sent=(1, 2)), recipients=2) == Continue()
    text = refused(decide(Stage.RCPT, senders=KnownSenders(sent=(1, 2)), recipients=3))
    assert text == "452 4.7.1 You may send at most 3 messages to 5 recipients a day; the next day begins at 00:00 UTC"


def test_the_count_that_all_nodes_share_decides() -> None:
    """Another node may have counted meanwhile: what was refused is not counted."""
    senders = KnownSenders(sent=(0, 3))
    assert refused(decide(Stage.END_OF_DATA, senders=senders, recipients=3)).startswith("452 4.7.1")
    assert isinstance(decide(Stage.END_OF_DATA, senders=senders, recipients=2), Continue)
    assert senders.counted == [2]


def test_what_is_refused_for_its_author_is_not_counted() -> None:
    """Only what is sent counts."""
    senders = KnownSenders()
    decide(Stage.END_OF_DATA, senders=senders, octets=b"From: bob@example.test\r\n\r\n")
    assert senders.counted == []


# ---------------------------------------------------------------- the header


def notes_of(verdict: Verdict) -> tuple[object, ...]:
    assert isinstance(verdict, Continue), verdict
    return verdict.notes


def test_a_complete_header_is_left_alone() -> None:
    """RFC 6409 section 8: a message that is right is not changed."""
    assert notes_of(decide(Stage.END_OF_DATA)) == ()


def test_missing_fields_are_added_and_blind_copies_removed() -> None:
    """RFC 6409 sections 8.2 and 8.3; RFC 5322 section 3.6.3."""
    header = b"From: alice@example.test\r\nBcc: carol@example.org,\r\n dave@example.org\r\nSubject: x\r\n"
    removed, added = notes_of(decide(Stage.END_OF_DATA, octets=header + b"\r\n"))
    assert isinstance(removed, RemovedFields)
    assert [header[start:end] for start, end in removed.spans] == [b"Bcc: carol@example.org,\r\n dave@example.org\r\n"]
    assert added == AddedFields(
        b"Date: Mon, 21 Sep 2026 14:13:20 +0000\r\nMessage-ID: <0000000000002@mx.example.test>\r\n"
    )


def test_what_is_signed_is_the_header_as_it_will_be() -> None:
    """A signature over what was removed, or without what was added, would not verify."""
    header = b"Bcc: carol@example.org\r\nFrom: alice@example.test\r\nMessage-ID: <1@x.test>\r\n"
    *_, added, signature = notes_of(decide(Stage.END_OF_DATA, octets=header + b"\r\nbody\r\n", signs=True))
    assert isinstance(added, AddedFields)
    sent = added.octets + header.removeprefix(b"Bcc: carol@example.org\r\n")
    assert signature == TraceFields(b"DKIM-Signature: " + hashlib.sha256(sent).hexdigest().encode() + b"\r\n")
