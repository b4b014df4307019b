"""Signatures of ours: the DKIM-Signature fields of a message, one for each key of its domain.

A pure sum over a header section and the hash of a body. All signatures of a message sign the same fields and the same
hash, so what they share is put in canonical form once; the arithmetic is that of the library `cryptography`.

What is signed is also signed against additions: a field that a message may have once is named once more than it
occurs, so that nobody can put another in front of it (RFC 6376 section 8.15). `l=` is never used, since whatever stood
behind it would not be signed (section 8.2).

Not here: which domain signs (`mailgate.policy.signing`), where keys are kept (`mailgate.storage.signing_keys`).

Standards: RFC 6376 sections 3.5 (tags), 3.7 (hashes), 5.4 and 5.4.1 (fields to sign), 5.6 (where the signature goes);
RFC 8463 (Ed25519 beside RSA); RFC 5322 section 2.1.1 (lines of 78 characters).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mailgate.auth.canonical import BodyForm, MalformedHeader, relaxed_field
from mailgate.auth.signature import author_problem, read_header

if TYPE_CHECKING:
    from mailgate.auth.canonical import BodyHashes
    from mailgate.auth.private_key import PrivateKey
    from mailgate.auth.signature import SignedHeader

# What has to be known of a body before a message can be signed: c=relaxed/relaxed, all of it.
BODY_FORM = BodyForm(is_relaxed=True)

_LINE_CHARS = 78

# Fields that a message has once, or not at all, and that people or their programs go by.
_GUARDED = (
    b"from",
    b"to",
    b"cc",
    b"subject",
    b"date",
    b"message-id",
    b"reply-to",
    b"in-reply-to",
    b"references",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
)
# Fields that are signed as they are, while others may be added on the way. A list sets Sender and its own List- fields;
# to guard them would break our signature there and protect nobody.
_PROTECTED = (
    b"sender",
    b"resent-date",
    b"resent-from",
    b"resent-sender",
    b"resent-to",
    b"resent-cc",
    b"resent-message-id",
    b"content-id",
    b"content-description",
    b"content-disposition",
    b"content-language",
    b"list-id",
    b"list-help",
    b"list-unsubscribe",
    b"list-unsubscribe-post",
    b"list-subscribe",
    b"list-post",
    b"list-owner",
    b"list-archive",
    b"autocrypt",
)
# Nobody's message names so many; a signature that did would be larger than verifiers read.
_MAX_NAMES = 256


def sign(header: bytes, hashes: BodyHashes, keys: Sequence[PrivateKey], now: float) -> bytes:
    """The DKIM-Signature fields to put on top, one for each key in order, each ending in CRLF; b"" without a key.

    `header` is the header section as it will be sent below them, `hashes` holds that of BODY_FORM, `now` is in seconds
    since the epoch.

    @raises MalformedHeader: no verifier would take a signature of this header section; the text says why.
    """
    if not keys:
        return b""
    fields = read_header(header)
    problem = author_problem(fields)
    if problem:
        raise MalformedHeader(problem)
    names = signed_names(fields)
    return message_signatures(
        "DKIM-Signature: v=1",
        fields,
        names,
        hashes[BODY_FORM].sha256,
        keys,
        now,
    )


def signed_names(header: SignedHeader, more: Iterable[bytes] = ()) -> list[bytes]:
    """What `h=` says for that header section. @raises MalformedHeader: more than a signature can name."""
    names: list[bytes] = []
    for name in _GUARDED:
        names += [name] * (len(header.positions(name)) + 1)
    for name in (*_PROTECTED, *more):
        names += [name] * len(header.positions(name))
    if len(names) > _MAX_NAMES:
        raise MalformedHeader("the header section has more fields of one kind than a signature can name")
    return names


def message_signatures(
    head: str, header: SignedHeader, names: Sequence[bytes], body_sha256: bytes, keys: Sequence[PrivateKey], now: float
) -> bytes:
    """Fields that begin with `head`, and sign those named and the body: one for each key."""
    common = hashlib.sha256()
    left: dict[bytes, list[int]] = {}
    for name in names:
        positions = left.get(name)
        if positions is None:
            positions = left[name] = list(header.positions(name))
        if positions:
            # Of fields that occur several times, the last is the first that is meant (RFC 6376 section 5.4.2).
            common.update(header.canonical(positions.pop(), is_relaxed=True))
    named = ":".join([name.decode("ascii") for name in names])
    body_hash = base64.b64encode(body_sha256).decode("ascii")
    signatures: list[bytes] = []
    for key in keys:
        tags = [
            f"a={key.algorithm}",
            "c=relaxed/relaxed",
            f"d={key.domain}",
            f"s={key.selector}",
            f"t={int(now)}",
            f"h={named}",
            f"bh={body_hash}",
        ]
        signatures.append(with_signature(head, tags, key, common))
    return b"".join(signatures)


def with_signature(head: str, tags: Iterable[str], key: PrivateKey, hashed: hashlib._Hash) -> bytes:
    """A field of these tags that signs what was hashed, and itself (RFC 6376 section 3.7)."""
    unsigned = _folded(head, tags)
    own = hashed.copy()
    own.update(relaxed_field(unsigned).removesuffix(b"\r\n"))
    signature = base64.b64encode(key.signature_of(own.digest())).decode("ascii")
    return unsigned + _wrapped(signature) + b"\r\n"


def _folded(head: str, tags: Iterable[str]) -> bytes:
    """The field as far as `b=`, on lines that are not too long where there is a place to fold."""
    lines = [head + ";"]
    for tag in tags:
        name, _, value = tag.partition("=")
        # Only h= may have blanks inside, on either side of its colons.
        parts = [part + ":" for part in value.split(":")] if name == "h" else [value + ";"]
        parts[-1] = parts[-1][:-1] + ";"
        _append(lines, f" {name}={parts[0]}")
        for part in parts[1:]:
            _append(lines, part)
    return "\r\n\t".join([*lines, "b="]).encode("ascii")


def _append(lines: list[str], word: str) -> None:
    # A tab stands for itself here: RFC 5322 counts characters.
    if len(lines[-1]) + len(word) + 1 > _LINE_CHARS:
        lines.append(word.lstrip(" "))
    else:
        lines[-1] += word


def _wrapped(encoded: str) -> bytes:
    """A base64string over several lines: the first goes on behind `b=`."""
    first, width = _LINE_CHARS - len("\tb="), _LINE_CHARS - len("\t")
    lines = [encoded[:first], *(encoded[at : at + width] for at in range(first, len(encoded), width))]
    return "\r\n\t".join(lines).encode("ascii")
