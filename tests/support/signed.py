"""Signed messages: made by dkimpy, with keys that dkimpy's own tests use, and the key records that belong to them."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import dkim
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from mailgate.auth.canonical import relaxed_field
from mailgate.dns.answer import Answer, Answers, Outcome, Question, RecordType
from mailgate.message import MessageContent

FOLDER = Path(__file__).parent.parent / "unit" / "auth" / "dkimpy_messages"

DOMAIN = "football.example.com"
NOW = 1_800_000_000.0


def dkimpy_file(name: str) -> bytes:
    """A file of dkimpy's tests."""
    return (FOLDER / name).read_bytes()


def dkimpy_message(name: str) -> bytes:
    """A message of dkimpy's tests, with the line ends that a client would send."""
    return re.sub(rb"\r?\n", b"\r\n", dkimpy_file(name))


RSA_2048 = dkimpy_file("2048_testkey.key")
RSA_1024 = dkimpy_file("test.private")
ED25519 = dkimpy_file("rfc8032_7_1.key")

RSA_2048_RECORD = dkimpy_file("2048_testkey_wo_markers.pub.txt").strip()
RSA_1024_RECORD = dkimpy_file("test.txt").strip()
ED25519_RECORD = b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="

RECORDS = {
    f"rsa._domainkey.{DOMAIN}": RSA_2048_RECORD,
    f"test._domainkey.{DOMAIN}": RSA_1024_RECORD,
    f"brisbane._domainkey.{DOMAIN}": ED25519_RECORD,
}

MESSAGE = (
    b"Received: from client.football.example.com\r\n\tby submit.football.example.com; "
    b"Fri, 11 Jul 2003 21:00:38 -0700\r\n"
    b"From: Joe SixPack <joe@football.example.com>\r\n"
    b"To: Suzie Q <suzie@shopping.example.net>\r\n"
    b"Subject: Is dinner\r\n ready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
    b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n"
    b"\r\n"
    b"Hi.\r\n\r\nWe lost  the game.\t Are you hungry yet? \r\n\r\nJoe.\r\n\r\n"
)


def content_of(message: bytes, *cuts: int) -> MessageContent:
    """A message as if it had been received in pieces that end at these places."""
    places = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    pieces = [message[start:end] for start, end in pairwise(places) if start < end]
    return MessageContent(pieces, len(message), b"")


def answers_of(records: Mapping[str, bytes | Sequence[bytes] | Outcome] | Mapping[str, bytes | Outcome]) -> Answers:
    """Answers that know these TXT records; an Outcome is that of a name that has none."""
    known: dict[Question, Answer] = {}
    for name, found in records.items():
        question = Question(name, RecordType.TXT)
        if isinstance(found, Outcome):
            known[question] = Answer(question, found, detail="nobody answers")
        else:
            known[question] = Answer(question, Outcome.ANSWER, (found,) if isinstance(found, bytes) else tuple(found))
    return Answers(known)


def sign(
    message: bytes = MESSAGE,
    *,
    selector: str = "rsa",
    domain: str = DOMAIN,
    key: bytes = RSA_2048,
    algorithm: str = "rsa-sha256",
    canonicalization: tuple[str, str] = ("relaxed", "relaxed"),
    fields: Sequence[str] | None = None,
    identity: str | None = None,
    has_length: bool = False,
) -> bytes:
    """A message with dkimpy's signature above it."""
    signer = dkim.DKIM(message, signature_algorithm=algorithm.encode())
    signer.should_not_sign.clear()
    signature: bytes = signer.sign(
        selector.encode(),
        domain.encode(),
        key,
        identity=identity.encode() if identity is not None else None,
        canonicalize=(canonicalization[0].encode(), canonicalization[1].encode()),
        include_headers=[field.encode() for field in fields] if fields is not None else None,
        length=has_length,
    )
    return signature + message


def sign_tags(
    tags: str,
    message: bytes = MESSAGE,
    *,
    key: bytes = RSA_2048,
    signed: Sequence[bytes] = (b"From", b"To", b"Subject", b"Date"),
    field: bytes = b"DKIM-Signature",
    behind: bytes = b"",
) -> bytes:
    """A message with a signature of just these tags above it, relaxed; `{bh}` in them becomes the body's hash.

    For tags that dkimpy would not write. The field says `b=` last, and then what is to stand `behind` its value.
    """
    section, _, body = message.partition(b"\r\n\r\n")
    relaxed = dkim.canonicalization.Relaxed.canonicalize_body(body)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(relaxed)
    text = tags.replace("{bh}", base64.b64encode(digest.finalize()).decode())
    own = field + b": " + text.encode("utf-8", "surrogateescape") + b"; b="
    fields = re.split(rb"\r\n(?![ \t])", section)
    chosen = [next(f for f in reversed(fields) if f.lower().startswith(name.lower() + b":")) for name in signed]
    hashed = b"".join(relaxed_field(f) for f in chosen) + relaxed_field(own + behind.lstrip()).removesuffix(b"\r\n")
    private = serialization.load_pem_private_key(key, None)
    assert isinstance(private, rsa.RSAPrivateKey)
    signature = private.sign(hashed, padding.PKCS1v15(), hashes.SHA256())
    return own + base64.b64encode(signature) + behind + b"\r\n" + message


def rsa_record(modulus_bits: int, exponent: int = 65537, tags: str = "v=DKIM1; k=rsa") -> bytes:
    """A record with an RSA key of that size to which nobody has the private half."""
    body = _der_integer((1 << (modulus_bits - 1)) | 1) + _der_integer(exponent)
    return tags.encode() + b"; p=" + base64.b64encode(b"\x30" + _der_length(len(body)) + body)


def _der_integer(number: int) -> bytes:
    octets = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return b"\x02" + _der_length(len(octets)) + octets


def _der_length(length: int) -> bytes:
    if length < 128:
        return bytes([length])
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets
