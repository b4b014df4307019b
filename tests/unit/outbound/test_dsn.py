"""Delivery status notifications: whom they tell, that programs read them, and that strangers can't write in them."""

from __future__ import annotations

import email
from dataclasses import replace
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.outbound.dsn import MAX_RETURNED_OCTETS, Notification, build
from mailgate.outbound.notice import Action, OriginalMessage, RecipientStatus, success_action, wants

CONTENT = (
    b"Received: from client.example.org\r\n\tby mx.example.org; Mon, 23 Nov 2026 13:00:00 +0000\r\n"
    b"From: Alice <alice@example.org>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <1@example.org>\r\n"
    b"\r\nHello.\r\n"
)
ORIGINAL = OriginalMessage("alice@example.org", 1_795_000_000.0, CONTENT, len(CONTENT))
FAILED = RecipientStatus(
    "bob@example.net",
    Action.FAILED,
    "5.1.1",
    "550 5.1.1 No such user here",
    "mx.example.net",
    last_attempt_at=1_795_000_060.0,
)
FIELDS_OF_RECIPIENTS = {
    "original-recipient",
    "final-recipient",
    "action",
    "status",
    "remote-mta",
    "diagnostic-code",
    "last-attempt-date",
    "will-retry-until",
}


def built(*recipients: RecipientStatus, original: OriginalMessage = ORIGINAL) -> Notification:
    return build(
        original,
        recipients or (FAILED,),
        hostname="mx.example.org",
        author="postmaster@example.org",
        reference="1m9x2k7q0vb3d",
        made_at=1_795_000_061.0,
    )


def parsed(notification: Notification) -> EmailMessage:
    """As a mail program reads it; nothing in it may be a defect."""
    policy = SMTPUTF8 if notification.is_smtputf8 else SMTP
    message = email.message_from_bytes(notification.octets, policy=policy)
    assert isinstance(message, EmailMessage)
    for part in (message, *message.iter_parts()):
        assert not part.defects
        # The library knows no UTF-8 in local parts.
        assert all(not getattr(value, "defects", ()) for value in part.values() if str(value).isascii())
    return message


def parts_of(message: EmailMessage) -> list[EmailMessage]:
    parts = list(message.iter_parts())
    assert len(parts) == 3
    return [part for part in parts if isinstance(part, EmailMessage)]


def status_groups(notification: Notification) -> list[dict[str, str]]:
    """The groups of fields of the second part: that of the message, then one a recipient."""
    begin = notification.octets.index(b"Content-Description: Delivery report\r\n\r\n") + 40
    octets = notification.octets[begin : notification.octets.index(b"\r\n--=_", begin)]
    text = octets.decode("utf-8").replace("\r\n ", " ").removesuffix("\r\n")
    return [
        {name.lower(): value.strip() for line in group.split("\r\n") for name, _, value in [line.partition(":")]}
        for group in text.split("\r\n\r\n")
    ]


@pytest.mark.parametrize(
    ("reverse_path", "notify", "action", "is_wanted"),
    [
        ("a@example.org", None, Action.FAILED, True),
        ("a@example.org", None, Action.DELAYED, True),
        ("a@example.org", None, Action.DELIVERED, False),
        ("a@example.org", None, Action.RELAYED, False),
        ("a@example.org", {"NEVER"}, Action.FAILED, False),
        ("a@example.org", {"NEVER"}, Action.DELAYED, False),
        ("a@example.org", {"FAILURE"}, Action.DELAYED, False),
        ("a@example.org", {"SUCCESS"}, Action.FAILED, False),
        ("a@example.org", {"SUCCESS"}, Action.RELAYED, True),
        ("a@example.org", {"SUCCESS"}, Action.DELIVERED, True),
        ("a@example.org", {"SUCCESS", "FAILURE", "DELAY"}, Action.EXPANDED, True),
        ("", None, Action.FAILED, False),
        ("", {"SUCCESS", "FAILURE", "DELAY"}, Action.FAILED, False),
    ],
)
def test_notify_decides_who_is_told_and_the_null_path_never_is(
    reverse_path: str, notify: set[str] | None, action: Action, is_wanted: bool
) -> None:
    """RFC 3461 section 4.1; RFC 5321 section 6.1: no notification about mail from the null reverse-path."""
    assert wants(reverse_path, None if notify is None else frozenset(notify), action) is is_wanted


def test_success_is_told_by_whoever_does_it_last() -> None:
    """RFC 3461 section 5.2.2: relayed, unless the next host took the request over."""
    assert success_action(relays_dsn=True, is_final=False) is None
    assert success_action(relays_dsn=False, is_final=False) is Action.RELAYED
    assert success_action(relays_dsn=False, is_final=True) is Action.DELIVERED


def test_a_notification_is_a_multipart_report_of_three_parts() -> None:
    """RFC 6522 section 3, RFC 3464 section 2."""
    message = parsed(built())
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert [part.get_content_type() for part in parts_of(message)] == [
        *("text/plain", "message/delivery-status", "text/rfc822-headers")
    ]


def test_header_fields_say_that_it_is_automatic_and_belong_to_the_message() -> None:
    """RFC 3834 section 5, RFC 5322 section 3.6."""
    message = parsed(built())
    assert message["From"] == "Mail Delivery System <postmaster@example.org>"
    assert message["To"] == "alice@example.org"
    assert message["Subject"] == "Not delivered: bob@example.net"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["Message-ID"] == "<1m9x2k7q0vb3d@mx.example.org>"
    assert message["In-Reply-To"] == message["References"] == "<1@example.org>"
    assert message["Date"] == "Wed, 18 Nov 2026 11:07:41 +0000"


def test_fields_for_programs_are_those_of_rfc_3464() -> None:
    """RFC 3464 sections 2.2 and 2.3."""
    original = replace(ORIGINAL, envid="QQ314159")
    failed = replace(FAILED, orcpt="rfc822;Bob@example.net")
    groups = status_groups(built(failed, original=original))
    assert groups == [
        {
            "original-envelope-id": "QQ314159",
            "reporting-mta": "dns; mx.example.org",
            "arrival-date": "Wed, 18 Nov 2026 11:06:40 +0000",
        },
        {
            "original-recipient": "rfc822; Bob@example.net",
            "final-recipient": "rfc822; bob@example.net",
            "action": "failed",
            "status": "5.1.1",
            "remote-mta": "dns; mx.example.net",
            "diagnostic-code": "smtp; 550 5.1.1 No such user here",
            "last-attempt-date": "Wed, 18 Nov 2026 11:07:40 +0000",
        },
    ]


def test_what_is_delayed_says_until_when_it_is_tried() -> None:
    """RFC 3464 section 2.3.9."""
    delayed = replace(FAILED, action=Action.DELAYED, status="4.2.0", retry_until=1_795_432_000.0)
    message = parsed(built(delayed))
    (_, group) = status_groups(built(delayed))
    assert group["action"] == "delayed"
    assert group["will-retry-until"] == "Mon, 23 Nov 2026 11:06:40 +0000"
    assert message["Subject"] == "Delayed, still trying: bob@example.net"
    assert "You need not send it again." in parts_of(message)[0].get_content()


@pytest.mark.parametrize(
    ("recipient", "status"),
    [
        (FAILED, "5.1.1"),
        (replace(FAILED, status="4.3.0"), "4.3.0"),
        (replace(FAILED, status=""), "5.0.0"),
        (replace(FAILED, status="2.0.0"), "5.0.0"),
        (replace(FAILED, status="5.1.1\r\nX: y"), "5.0.0"),
        (replace(FAILED, status="4.4.1", is_expired=True), "4.4.7"),
        (replace(FAILED, action=Action.DELAYED, status="5.1.1"), "4.0.0"),
        (replace(FAILED, action=Action.RELAYED, status="2.1.5"), "2.1.5"),
        (replace(FAILED, action=Action.DELIVERED, status=""), "2.0.0"),
    ],
)
def test_the_status_fits_the_action(recipient: RecipientStatus, status: str) -> None:
    """RFC 3464 section 2.3.4."""
    assert status_groups(built(recipient))[1]["status"] == status


def test_people_read_who_says_what_and_what_to_do() -> None:
    """RFC 3464 section 2: the first part is for people."""
    text = parts_of(parsed(built()))[0].get_content().replace("\r\n", "\n")
    for words in (
        "could not be delivered to:",
        "  bob@example.net\n    The host mx.example.net says:\n        550 5.1.1 No such user here\n",
        "There is no such address there.",
        "Its subject: Grüße",
    ):
        assert words in text


def test_one_notification_tells_of_all_recipients_the_failed_ones_first() -> None:
    """RFC 3464 section 2: one group a recipient."""
    relayed = RecipientStatus("carol@example.net", Action.RELAYED, "2.0.0", "250 2.0.0 Ok", "mx.example.net")
    others = [replace(FAILED, recipient=f"x{number}@example.net") for number in range(3)]
    notification = built(relayed, *others)
    message = parsed(notification)
    assert message["Subject"] == "Not delivered: x0@example.net and 2 more"
    assert [group["action"] for group in status_groups(notification)[1:]] == ["relayed", "failed", "failed", "failed"]
    text = parts_of(message)[0].get_content()
    assert text.index("x0@example.net") < text.index("carol@example.net")


@pytest.mark.parametrize(
    ("ret", "action", "content_type"),
    [
        (None, Action.FAILED, "text/rfc822-headers"),
        ("HDRS", Action.FAILED, "text/rfc822-headers"),
        ("FULL", Action.FAILED, "message/rfc822"),
        ("FULL", Action.DELAYED, "text/rfc822-headers"),
        ("FULL", Action.RELAYED, "text/rfc822-headers"),
    ],
)
def test_the_whole_message_comes_back_only_where_it_is_asked_for_and_failed(
    ret: str | None, action: Action, content_type: str
) -> None:
    """RFC 3461 section 4.3."""
    returned = parts_of(parsed(built(replace(FAILED, action=action), original=replace(ORIGINAL, ret=ret))))[2]
    assert returned.get_content_type() == content_type
    if content_type == "message/rfc822":
        inner = next(returned.iter_parts())
        assert inner["Message-ID"] == "<1@example.org>"
    else:
        assert str(returned.get_payload()).encode() == CONTENT[: CONTENT.index(b"\r\n\r\n") + 2]


def test_a_message_that_required_tls_comes_back_as_its_header_and_requires_it_again() -> None:
    """RFC 8689 section 5: RET=FULL is disregarded, and REQUIRETLS still used."""
    notification = built(original=replace(ORIGINAL, ret="FULL", requires_tls=True))
    assert notification.requires_tls
    assert parts_of(parsed(notification))[2].get_content_type() == "text/rfc822-headers"
    assert not built().requires_tls


def test_a_large_message_comes_back_as_its_header() -> None:
    """A bounce is no way to send a large message to somebody."""
    content = CONTENT + b"x" * 70 + b"\r\n"
    for original in (
        OriginalMessage("a@example.org", 0.0, content, MAX_RETURNED_OCTETS + 1, "FULL"),
        OriginalMessage("a@example.org", 0.0, content, len(content) + 1, "FULL"),
        OriginalMessage("a@example.org", 0.0, CONTENT + b"x" * 1500, len(CONTENT) + 1500, "FULL"),
    ):
        assert parts_of(parsed(built(original=original)))[2].get_content_type() == "text/rfc822-headers"


def test_an_eight_bit_message_comes_back_as_it_is() -> None:
    """RFC 6152: the notification then is 8-bit mail itself, and says so to whoever sends it."""
    content = CONTENT + "Größe\r\n".encode("latin-1")
    notification = built(original=OriginalMessage("a@example.org", 0.0, content, len(content), "FULL"))
    assert notification.is_eight_bit
    assert not notification.is_smtputf8
    assert content in notification.octets
    assert b"\r\nContent-Transfer-Encoding: 8bit\r\n" in notification.octets.partition(b"\r\n\r\n")[0] + b"\r\n"


def test_to_an_ascii_address_everything_is_ascii() -> None:
    r"""RFC 6533 section 3: an address in UTF-8 is `utf-8; \x{F6}`; headers in UTF-8 are encoded."""
    content = "Subject: Grüße\r\n\r\nx\r\n".encode()
    for ret, kind in (("HDRS", "message/global-headers"), ("FULL", "message/global")):
        original = OriginalMessage("alice@example.org", 0.0, content, len(content), ret)
        notification = built(replace(FAILED, recipient="jörg+x@example.net"), original=original)
        assert notification.octets.isascii()
        assert not notification.is_smtputf8
        assert not notification.is_eight_bit
        message = parsed(notification)
        (_, group) = status_groups(notification)
        assert group["final-recipient"] == r"utf-8; j\x{F6}rg\x{2B}x@example.net"
        returned = parts_of(message)[2]
        assert returned.get_content_type() == kind


def test_to_an_address_in_utf_8_everything_is_utf_8() -> None:
    """RFC 6533 section 4: message/global-delivery-status and message/global-headers."""
    content = "Subject: Grüße\r\n\r\nx\r\n".encode()
    original = OriginalMessage("jürgen@example.org", 0.0, content, len(content))
    notification = built(replace(FAILED, recipient="jörg@example.net"), original=original)
    assert notification.is_smtputf8
    message = parsed(notification)
    (_, group) = status_groups(notification)
    assert group["final-recipient"] == "utf-8; jörg@example.net"
    assert parts_of(message)[2].get_content_type() == "message/global-headers"
    assert message["To"] == "jürgen@example.org"


def test_a_header_that_is_no_text_comes_back_encoded() -> None:
    """RFC 6522 section 4: text/rfc822-headers may be quoted-printable where the header is broken."""
    content = b"Subject: Gr\xfc\xdfe\r\nX-Long: " + b"x" * 2000 + b"\r\n\r\nx\r\n"
    for ret in ("HDRS", "FULL"):
        notification = built(original=OriginalMessage("a@example.org", 0.0, content, len(content), ret))
        assert notification.octets.isascii()
        returned = parts_of(parsed(notification))[2]
        assert returned.get_content_type() == "text/rfc822-headers"
        assert returned.get_payload(decode=True) == content[: content.index(b"\r\n\r\n") + 2]


def test_no_boundary_stands_in_what_is_returned() -> None:
    """RFC 2046 section 5.1: a message that knows the boundary of its own bounce gets another one."""
    boundary = parsed(built(original=replace(ORIGINAL, ret="FULL"))).get_boundary()
    assert boundary is not None
    content = CONTENT + f"--{boundary}\r\n--{boundary}--\r\n".encode()
    notification = built(original=OriginalMessage("a@example.org", 0.0, content, len(content), "FULL"))
    assert parsed(notification).get_boundary() != boundary
    assert content in notification.octets


def test_an_ip_address_of_the_other_host_is_a_literal() -> None:
    """RFC 3464 section 2.1.2: an MTA name of type dns is a domain, or an address literal."""
    assert status_groups(built(replace(FAILED, host="192.0.2.7")))[1]["remote-mta"] == "dns; [192.0.2.7]"
    assert status_groups(built(replace(FAILED, host="2001:db8::7")))[1]["remote-mta"] == ("dns; [IPv6:2001:db8::7]")
    assert "remote-mta" not in status_groups(built(replace(FAILED, host="/run/lmtp.sock")))[1]


def test_what_we_say_ourselves_is_not_put_into_the_mouth_of_another_host() -> None:
    """RFC 3464 section 2.3.6: the diagnostic type "smtp" is for replies of SMTP."""
    (_, group) = status_groups(built(replace(FAILED, host="", reply="there is no such domain")))
    assert group["diagnostic-code"] == "x-mailgate; there is no such domain"
    assert "remote-mta" not in group


def test_somebody_must_be_told_and_something() -> None:
    """RFC 5321 section 6.1."""
    with pytest.raises(ValueError, match="somebody"):
        built(original=replace(ORIGINAL, reverse_path=""))


hostile = st.text(st.one_of(st.characters(), st.sampled_from("\r\n\t :-=_\x00\x85\u2028\u202e")), max_size=200) | (
    st.sampled_from(["x\r\nBcc: victim@example.net", "\r\n\r\n--", "a" * 3000, "word " * 600, "é" * 1200])
)


@given(
    replies=st.lists(hostile, min_size=1, max_size=3),
    host=hostile,
    orcpt=st.none() | hostile,
    envid=st.none() | hostile,
    subject=hostile,
    ret=st.sampled_from([None, "FULL", "HDRS"]),
    reverse_path=st.sampled_from(["alice@example.org", "jürgen@example.org"]),
)
def test_nothing_that_strangers_write_leaves_its_place(
    replies: list[str],
    host: str,
    orcpt: str | None,
    envid: str | None,
    subject: str,
    ret: str | None,
    reverse_path: str,
) -> None:
    """Replies, ENVID, ORCPT, host and message: the parts, groups and fields stay those that were written."""
    content = b"Subject: " + subject.encode("utf-8", "replace") + b"\r\n\r\n" + replies[0].encode("utf-8", "replace")
    original = OriginalMessage(reverse_path, 0.0, content, len(content), ret, envid)
    recipients = [
        RecipientStatus(f"b{number}@example.net", Action.FAILED, "5.0.0", reply, host, orcpt)
        for number, reply in enumerate(replies)
    ]
    notification = built(*recipients, original=original)
    assert max(map(len, notification.octets.split(b"\r\n"))) <= 998
    assert notification.octets.count(b"\n") == notification.octets.count(b"\r\n") or ret == "FULL"
    assert notification.is_smtputf8 or notification.is_eight_bit or notification.octets.isascii()
    message = email.message_from_bytes(notification.octets, policy=SMTPUTF8)
    assert isinstance(message, EmailMessage)
    assert set(map(str.lower, message.keys())) <= {
        *("date", "from", "to", "subject", "message-id", "in-reply-to", "references", "auto-submitted"),
        *("mime-version", "content-type", "content-transfer-encoding"),
    }
    groups = status_groups(notification)
    assert len(groups) == 1 + len(recipients)
    assert set(groups[0]) <= {"original-envelope-id", "reporting-mta", "arrival-date"}
    for group in groups[1:]:
        assert set(group) <= FIELDS_OF_RECIPIENTS
        assert group["action"] == "failed"
