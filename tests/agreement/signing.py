"""Signs as anybody might: DKIM and ARC with any tag, right or wrong, over any form of the message.

The canonical forms are those of dkimpy, and none of mailgate's own code takes part, so that what is compared with
mailgate does not come from it.

Standards: RFC 6376 sections 3.4, 3.5 and 3.7; RFC 8463 (Ed25519); RFC 8617 sections 4.1 and 5.1.1.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import dkim.canonicalization
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from tests.support.signed import (
    ED25519,
    ED25519_RECORD,
    RSA_1024,
    RSA_1024_RECORD,
    RSA_2048,
    RSA_2048_RECORD,
)

Tags = Mapping[str, str | None]  # what is to stand in a tag; None takes it out
Forms = tuple[str, str]  # of the header and of the body

RELAXED: Forms = ("relaxed", "relaxed")
SIGNED_FIELDS = ("From", "To", "Subject", "Date")

_FIELD = re.compile(rb"([^\r\n:]+):((?:[^\r\n]|\r\n[ \t])*\r\n)")


class Key(NamedTuple):
    """A key, by the selector that it is published under."""

    algorithm: str
    private: RSAPrivateKey | Ed25519PrivateKey
    record: bytes

    def sign(self, octets: bytes) -> bytes:
        if isinstance(self.private, RSAPrivateKey):
            return self.private.sign(octets, PKCS1v15(), hashes.SHA256())
        return self.private.sign(hashlib.sha256(octets).digest())


def _rsa(pem: bytes) -> RSAPrivateKey:
    private = serialization.load_pem_private_key(pem, None)
    assert isinstance(private, RSAPrivateKey)
    return private


KEYS = {
    "r2048": Key("rsa-sha256", _rsa(RSA_2048), RSA_2048_RECORD),
    "r1024": Key("rsa-sha256", _rsa(RSA_1024), RSA_1024_RECORD),
    "ed": Key("ed25519-sha256", Ed25519PrivateKey.from_private_bytes(base64.b64decode(ED25519)), ED25519_RECORD),
}


def p_of(key: str) -> str:
    """The public key as `p=` has it."""
    return KEYS[key].record.decode("ascii").rpartition("p=")[2].strip("; ")


def fields_of(message: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a message: names, and what stands behind the colon with its CRLF."""
    section = message[: message.index(b"\r\n\r\n") + 2]
    return [(match[1], match[2]) for match in _FIELD.finditer(section)]


def _header(fields: Sequence[tuple[bytes, bytes]], form: str) -> bytes:
    rule = dkim.canonicalization.ALGORITHMS[form.encode()]
    return b"".join(name + b":" + value for name, value in rule.canonicalize_headers(list(fields)))


def body_hash(message: bytes, form: str, length: int | None = None) -> str:
    """What `bh=` says."""
    body = message[message.index(b"\r\n\r\n") + 4 :]
    canonical: bytes = dkim.canonicalization.ALGORITHMS[form.encode()].canonicalize_body(body)
    return base64.b64encode(hashlib.sha256(canonical[:length]).digest()).decode()


def canonical_length(message: bytes, form: str) -> int:
    """How long the body is in that form."""
    body = message[message.index(b"\r\n\r\n") + 4 :]
    return len(dkim.canonicalization.ALGORITHMS[form.encode()].canonicalize_body(body))


def _chosen(message: bytes, names: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """The fields that `h=` means: of several of a name, the last first (RFC 6376 section 5.4.2)."""
    left = fields_of(message)
    chosen = []
    for name in names:
        for field in reversed(left):
            if field[0].strip().lower() == name.lower().encode():
                chosen.append(field)
                left.remove(field)
                break
    return chosen


def signature_field(
    message: bytes,
    domain: str,
    *,
    key: str = "r2048",
    selector: str | None = None,
    forms: Forms = RELAXED,
    signed: Sequence[str] = SIGNED_FIELDS,
    length: int | None = None,
    tags: Tags | None = None,
    separator: str = "; ",
    name: str = "DKIM-Signature",
    is_folded: bool = False,
    behind: str = "",
) -> bytes:
    """A signature of the message. `tags` come on top of those that it would have, or replace them.

    `behind` stands behind the value of b=, and must be part of what is signed.
    """
    all_tags: dict[str, str | None] = {
        "v": "1",
        "i": None,
        "a": KEYS[key].algorithm,
        "c": "/".join(forms),
        "d": domain,
        "s": selector or key,
        "h": ":".join(signed),
        "l": None if length is None else str(length),
        "bh": body_hash(message, forms[1], length),
    }
    all_tags.update(tags or {})
    text = separator.join(f"{tag}={value}" for tag, value in all_tags.items() if value is not None and tag != "b")
    start = f" {text}{separator}b=".encode()
    own = (name.encode(), start + behind.encode() + b"\r\n")
    hashed = _header(_chosen(message, signed), forms[0]) + _header([own], forms[0]).removesuffix(b"\r\n")
    b = base64.b64encode(KEYS[key].sign(hashed)).decode()
    if is_folded:
        b = re.sub(r"(.{60})(?=.)", "\\1\r\n\t ", b)
    wanted = (tags or {}).get("b", b)
    if wanted is None:
        return name.encode() + b":" + start.removesuffix((separator + "b=").encode()) + b"\r\n"
    return name.encode() + b":" + start + wanted.encode() + behind.encode() + b"\r\n"


_ARC_NAMES = (b"arc-authentication-results", b"arc-message-signature", b"arc-seal")
_INSTANCE = re.compile(rb"\bi=([0-9]+)")


def arc_set(
    message: bytes,
    sealer: str,
    *,
    key: str = "r1024",
    selector: str | None = None,
    chain_validation: str | None = None,
    results: str = "spf=pass smtp.mailfrom=a.test; dmarc=pass header.from=a.test",
    forms: Forms = RELAXED,
    signed: Sequence[str] = SIGNED_FIELDS,
    signature_tags: Tags | None = None,
    seal_tags: Tags | None = None,
) -> bytes:
    """The message with one more ARC set on top: the next instance, over the sets that are there."""
    sets: dict[int, dict[bytes, tuple[bytes, bytes]]] = {}
    for field in fields_of(message):
        if field[0].lower() in _ARC_NAMES:
            found = _INSTANCE.search(field[1])
            assert found is not None
            sets.setdefault(int(found[1]), {})[field[0].lower()] = field
    instance = max(sets, default=0) + 1
    validation = chain_validation or ("none" if instance == 1 else "pass")
    said = f"ARC-Authentication-Results: i={instance}; {sealer}; {results}\r\n".encode()
    message_signature = signature_field(
        message,
        sealer,
        key=key,
        selector=selector,
        forms=forms,
        signed=signed,
        tags={"v": None, "i": str(instance), **(signature_tags or {})},
        name="ARC-Message-Signature",
    )
    tags: dict[str, str | None] = {
        "i": str(instance),
        "a": KEYS[key].algorithm,
        "cv": validation,
        "d": sealer,
        "s": selector or key,
        **(seal_tags or {}),
    }
    start = (" " + "; ".join(f"{tag}={value}" for tag, value in tags.items() if value is not None) + "; b=").encode()
    covered = [sets[number][name] for number in sorted(sets) for name in _ARC_NAMES if name in sets[number]]
    for field_octets in (said, message_signature):
        name, _, value = field_octets.partition(b":")
        covered.append((name, value))
    own = (b"ARC-Seal", start + b"\r\n")
    hashed = _header(covered, "relaxed") + _header([own], "relaxed").removesuffix(b"\r\n")
    seal = b"ARC-Seal:" + start + base64.b64encode(KEYS[key].sign(hashed)) + b"\r\n"
    return seal + message_signature + said + message
