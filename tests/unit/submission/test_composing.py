"""Messages composed on the command line, as the standard library's parser reads them."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage

import pytest

from mailgate.submission.addresses import NotAnAddress
from mailgate.submission.composing import Attachment, compose


def read(message: bytes) -> EmailMessage:
    assert message.replace(b"\r\n", b"").count(b"\n") == 0
    parsed = email.message_from_bytes(message, policy=email.policy.SMTP)
    assert isinstance(parsed, EmailMessage)
    assert not parsed.defects
    return parsed


def test_a_text_is_a_message() -> None:
    """RFC 5322 section 3.6: the server adds Date and Message-ID."""
    message = compose(
        author="Alice <a@x.test>", to=["b@x.test", "c@x.test"], cc=["d@x.test"], subject="Hi", text="Hello"
    )
    parsed = read(message)
    assert [(name, str(value)) for name, value in parsed.items()][:4] == [
        ("From", "Alice <a@x.test>"),
        ("To", "b@x.test, c@x.test"),
        ("Cc", "d@x.test"),
        ("Subject", "Hi"),
    ]
    assert parsed.get_content() == "Hello\r\n"


def test_what_is_not_ascii_is_encoded_and_addresses_are_not() -> None:
    """RFC 2047 section 5: an encoded word is no part of an address."""
    message = compose(
        author="Jürgen Müller <j@x.test>",
        to=['"Ünal, B." <b@x.test>', "Bücher: a@x.test, b@x.test;"],
        subject="Grüße",
        text="Schöne Grüße\n",
    )
    assert message.isascii()
    parsed = read(message)
    assert str(parsed["From"]) == "Jürgen Müller <j@x.test>"
    assert [address.addr_spec for address in parsed["To"].addresses] == ["b@x.test", "a@x.test", "b@x.test"]
    assert parsed["To"].addresses[0].display_name == "Ünal, B."
    assert parsed["Subject"] == "Grüße"
    assert parsed.get_content() == "Schöne Grüße\r\n"


def test_files_go_along_whole() -> None:
    """RFC 2046 section 5.1.3, RFC 2183."""
    octets = bytes(range(256)) * 300
    files = [Attachment('a "b".txt', b"x\n"), Attachment("grün.bin", octets), Attachment("c.tar.gz", b"")]
    parsed = read(compose(author="a@x.test", to=["b@x.test"], text="see files\n", attachments=files))
    parts = list(parsed.iter_attachments())
    assert [part.get_filename() for part in parts] == ["a _b_.txt", "gr?n.bin", "c.tar.gz"]
    assert [part.get_payload(decode=True) for part in parts] == [b"x\n", octets, b""]
    body = parsed.get_body()
    assert body is not None
    assert body.get_content() == "see files\r\n"


@pytest.mark.parametrize("subject", ["a\r\nBcc: x@y.test", "a\nb", "a\x00b"])
def test_a_subject_begins_no_field(subject: str) -> None:
    """Whatever is put in stays on its line."""
    parsed = read(compose(author="a@x.test", to=["b@x.test"], subject=subject, text=""))
    assert parsed["Bcc"] is None


def test_a_name_begins_no_field() -> None:
    """As encoded words neither."""
    message = compose(author="Jürgen\r\nBcc: x <a@x.test>", to=["b@x.test"], text="")
    assert message.startswith(b"From: =?utf-8?b?SsO8cmdlbiBCY2M6IHg=?= <a@x.test>\r\n")


def test_an_address_begins_no_field() -> None:
    """A blind copy would be told to all."""
    with pytest.raises(NotAnAddress):
        compose(author="a@x.test", to=["b@x.test\r\nBcc: c@x.test"], text="")
