"""What DKIM's and ARC's message signatures have in common: their tags, and the hash of the fields that they sign.

Not here: the tags that mean something different in the two (`v=`, `i=`), and what becomes of a signature that verifies.

Standards: RFC 6376 sections 3.5 (tags), 3.7 (hashes), 5.4.2 (fields that occur several times), 6.1.1 (validating the
tags); RFC 8301 (algorithms); RFC 8463 (Ed25519); RFC 8617 section 4.1.2 (ARC-Message-Signature).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mailgate.auth.canonical import BodyForm, BodyHashes, Field, MalformedHeader, fields_of, relaxed_field
from mailgate.auth.results import Result
from mailgate.auth.signing_key import KEY_TYPES, KeyFault, SigningKey, key_question, keys_in
from mailgate.auth.tag_list import (
    MalformedTags,
    TagList,
    base64_value,
    name_value,
    number_value,
    split_value,
    without_value,
)

if TYPE_CHECKING:
    from mailgate.dns.answer import Answer, Question

_T = TypeVar("_T")

# Nobody's header section comes near these; what is larger is not verified.
MAX_HEADER_OCTETS = 256 * 1024
MAX_HEADER_LINES = 10_000
MAX_SIGNATURE_OCTETS = 16 * 1024

_MAX_NAME_OCTETS = 253
_CANONICALIZATIONS = {b"simple": False, b"relaxed": True}
#   hdr-name = field-name       ; RFC 6376 section 2.10, without the semicolon that ends a tag
_HDR_NAME = re.compile(rb"[!-9<-~]++")


@dataclass(frozen=True, slots=True)
class Signature:
    """The tags that both kinds of signature have."""

    domain: str  # d=, A-form, lower case
    selector: str  # s=, lower case
    algorithm: str  # a=
    octets: bytes  # b=
    body_sha256: bytes  # bh=
    body_form: BodyForm  # c= and l=
    has_relaxed_header: bool  # c=
    signed_fields: tuple[str, ...]  # h=, lower case, as often as they are named
    signed_at: int | None  # t=, seconds since the epoch
    expires_at: int | None  # x=, seconds since the epoch

    @property
    def question(self) -> Question:
        """Where its key is."""
        return key_question(self.selector, self.domain)


def tag_value(tags: TagList, name: bytes, read: Callable[[bytes], _T]) -> _T:
    """What a tag says. @raises MalformedTags: it is missing, or says nothing of that kind."""
    value = tags.get(name)
    if value is None:
        raise MalformedTags(f"{name.decode('ascii')}= is missing")
    try:
        return read(value)
    except MalformedTags as error:
        raise MalformedTags(f"{name.decode('ascii')}=: {error}") from error


def read_signature(tags: TagList) -> Signature:
    """The signature that these tags describe. @raises MalformedTags: it can't be verified, whoever wrote it."""
    algorithm = tag_value(tags, b"a", algorithm_value)
    domain = tag_value(tags, b"d", domain_value)
    selector = tag_value(tags, b"s", name_value)
    require_key_name(selector, domain)
    relaxed_header, relaxed_body = _canonicalizations(tags.get(b"c", b"simple/simple"))
    length = tag_value(tags, b"l", _length_value) if b"l" in tags else None
    if b"dns/txt" not in split_value(tags.get(b"q", b"dns/txt")):
        raise MalformedTags("q=: the key is not in the DNS")
    signed_at = tag_value(tags, b"t", time_value) if b"t" in tags else None
    expires_at = tag_value(tags, b"x", time_value) if b"x" in tags else None
    if signed_at is not None and expires_at is not None and expires_at <= signed_at:
        raise MalformedTags("x=: it expired before it was made")
    signed_fields = tag_value(tags, b"h", _field_names)
    if "from" not in signed_fields:
        raise MalformedTags("h=: From is not signed")
    body_sha256 = tag_value(tags, b"bh", base64_value)
    if len(body_sha256) != hashlib.sha256().digest_size:
        raise MalformedTags("bh=: it is no SHA-256 hash")
    return Signature(
        domain=domain,
        selector=selector,
        algorithm=algorithm,
        octets=tag_value(tags, b"b", base64_value),
        body_sha256=body_sha256,
        body_form=BodyForm(relaxed_body, length),
        has_relaxed_header=relaxed_header,
        signed_fields=signed_fields,
        signed_at=signed_at,
        expires_at=expires_at,
    )


def algorithm_value(value: bytes) -> str:
    """The algorithm that `a=` names. @raises MalformedTags: it is none that proves anything."""
    if value == b"rsa-sha1":
        # RFC 8301 section 3.1: signatures by it "have permanently failed evaluation".
        raise MalformedTags("rsa-sha1 proves nothing any more")
    algorithm = value.decode("ascii", "replace")
    if algorithm not in KEY_TYPES:
        raise MalformedTags("it is an unknown algorithm")
    return algorithm


def domain_value(value: bytes) -> str:
    """The domain that `d=` names. @raises MalformedTags: it is none, or stands at the top of the DNS."""
    domain = name_value(value)
    if "." not in domain:
        raise MalformedTags("it is no domain that anybody could sign for")
    return domain


def require_key_name(selector: str, domain: str) -> None:
    """Refuse a selector whose key has no name that the DNS could hold. @raises MalformedTags."""
    if len(selector) + len("._domainkey.") + len(domain) > _MAX_NAME_OCTETS:
        raise MalformedTags("s= and d= make a name that is too long for the DNS")


def _length_value(value: bytes) -> int:
    """How much of the body is signed. RFC 6376 section 3.5 wants 76 digits understood; no body is near as long."""
    return min(number_value(value, 76), (1 << 63) - 1)


def time_value(value: bytes) -> int:
    """Seconds since the epoch (RFC 6376 section 3.5 wants twelve digits understood)."""
    return number_value(value, 12)


def _canonicalizations(value: bytes) -> tuple[bool, bool]:
    header, _, body = value.partition(b"/")
    try:
        return _CANONICALIZATIONS[header], _CANONICALIZATIONS[body or b"simple"]
    except KeyError:
        raise MalformedTags("c=: it is an unknown canonical form") from None


def _field_names(value: bytes) -> tuple[str, ...]:
    names = split_value(value)
    if not all(map(_HDR_NAME.fullmatch, names)):
        raise MalformedTags("it is no list of field names")
    return tuple(value.decode("ascii").lower() for value in names)


class SignedHeader:
    """The fields of a header section, as signatures select them."""

    __slots__ = ("_positions", "_relaxed", "fields")

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = fields
        self._positions: dict[bytes, list[int]] = {}
        self._relaxed: dict[int, bytes] = {}
        for position, field in enumerate(fields):
            self._positions.setdefault(field.name, []).append(position)

    def positions(self, name: bytes) -> Sequence[int]:
        """Where fields of that name (in lower case) stand, in order."""
        return self._positions.get(name, ())

    def sha256(self, signature: Signature, own: int) -> bytes:
        """The hash that a signature signs, which stands in the field at `own` (RFC 6376 section 3.7).

        Of fields that occur several times, the last is the first that is meant, and what is named more often than it
        occurs is empty (section 5.4.2). The signature's own field is none of those that it names: there were only the
        others when it was made.
        """
        parts: list[bytes] = []
        left: dict[str, list[int]] = {}
        for name in signature.signed_fields:
            positions = left.get(name)
            if positions is None:
                positions = left[name] = [p for p in self.positions(name.encode("ascii")) if p != own]
            if positions:
                parts.append(self.canonical(positions.pop(), signature.has_relaxed_header))
        parts.append(self.unsigned(own, signature.has_relaxed_header))
        return hashlib.sha256(b"".join(parts)).digest()

    def canonical(self, position: int, is_relaxed: bool) -> bytes:
        """A field in canonical form."""
        if not is_relaxed:
            return self.fields[position].raw
        relaxed = self._relaxed.get(position)
        if relaxed is None:
            relaxed = self._relaxed[position] = relaxed_field(self.fields[position].raw)
        return relaxed

    def unsigned(self, position: int, is_relaxed: bool) -> bytes:
        """A field that holds a signature, as it takes part in it: without the value of `b=`, without its last CRLF."""
        name, colon, value = self.fields[position].raw.partition(b":")
        bare = name + colon + without_value(value, b"b")
        return (relaxed_field(bare) if is_relaxed else bare).removesuffix(b"\r\n")


def read_header(section: bytes) -> SignedHeader:
    """The fields of a header section. @raises MalformedHeader: it is not made of fields only, or too large."""
    if len(section) > MAX_HEADER_OCTETS or section.count(b"\r\n") > MAX_HEADER_LINES:
        raise MalformedHeader("the header section is larger than any that people send")
    return SignedHeader(fields_of(section))


def author_problem(header: SignedHeader) -> str:
    """Why no signature can vouch for the author that people are shown (RFC 6376 section 8.15), or ""."""
    positions = header.positions(b"from")
    if not positions:
        return "there is no From field"
    if len(positions) > 1:
        return "there are several From fields"
    if header.fields[positions[0]].has_blank_before_colon:
        # Some readers take it for From, some don't see it. RFC 5322 section 4 forbids to write it.
        return "From has a blank before its colon"
    return ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a signature came to, before anybody asks whether it is liked."""

    result: Result  # pass, fail, temperror, permerror
    problem: str = ""
    key: SigningKey | None = None
    key_bits: int = 0


def check_signature(
    signature: Signature,
    header: SignedHeader,
    own: int,
    answer: Answer,
    hashes: BodyHashes,
    rsa_bits: tuple[int, int],
) -> Checked:
    """Verify a signature with the key that was found. `rsa_bits` are the least and the most that are taken."""
    keys = keys_in(answer, signature.algorithm, *rsa_bits)
    body = hashes[signature.body_form]
    if isinstance(keys, KeyFault):
        if keys.result is Result.TEMPERROR and body.sha256 != signature.body_sha256:
            # The key, once it is there, would not make the hash right: there is nothing to try again for.
            return Checked(Result.FAIL, "the body was changed")
        return Checked(keys.result, keys.problem, None, keys.bits)
    key = keys[0]
    length = signature.body_form.length_octets
    if length is not None and length > body.body_octets:
        # RFC 6376 section 3.5: l= "MUST NOT be larger than the actual number of octets in the canonicalized message
        # body". dkimpy takes it.
        return Checked(Result.PERMERROR, "l= is larger than the body", key, key.bits)
    if body.sha256 != signature.body_sha256:
        return Checked(Result.FAIL, "the body was changed", key, key.bits)
    digest = header.sha256(signature, own)
    for key in keys:
        if key.verifies(digest, signature.octets):
            return Checked(Result.PASS, "", key, key.bits)
    return Checked(Result.FAIL, "the signed header fields were changed, or another key signed them", key, key.bits)


#   Fields of which RFC 5322 section 3.6 and RFC 2045 allow one. Of two, which one a reader is shown is anybody's guess.
_AT_MOST_ONCE = (
    "date",
    "sender",
    "reply-to",
    "to",
    "cc",
    "message-id",
    "in-reply-to",
    "references",
    "subject",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
)


def untimely(signature: Signature, now: float, clock_skew_seconds: int) -> str:
    """Why a signature is not for now, or "". `now` is in seconds since the epoch."""
    if signature.expires_at is not None and now > signature.expires_at + clock_skew_seconds:
        return "it has expired"
    if signature.signed_at is not None and signature.signed_at > now + clock_skew_seconds:
        return "it was made in the future"
    return ""


def octets_behind_length(signature: Signature, hashes: BodyHashes) -> int:
    """How much of the body is not signed, because `l=` ends before it does (RFC 6376 section 8.2)."""
    length = signature.body_form.length_octets
    return 0 if length is None else max(0, hashes[signature.body_form].body_octets - length)


def added_fields(signature: Signature, header: SignedHeader) -> list[str]:
    """Fields that are signed and that somebody added another of, such as a second Subject (RFC 6376 section 8.15)."""
    signed = signature.signed_fields
    return [name for name in _AT_MOST_ONCE if 0 < signed.count(name) < len(header.positions(name.encode("ascii")))]


def guarded_fields(signature: Signature, header: SignedHeader) -> list[str]:
    """Fields that nobody can add another of: they are named more often than they occur (RFC 6376 section 5.4).

    Of those of which a message has one; others may be there any number of times.
    """
    signed = signature.signed_fields
    names = ("from", *_AT_MOST_ONCE)
    return [name for name in names if signed.count(name) > len(header.positions(name.encode("ascii")))]


def weakness(
    signature: Signature, header: SignedHeader, hashes: BodyHashes, now: float, clock_skew_seconds: int
) -> str:
    """Why a signature that verifies proves less than it seems to, or ""."""
    late = untimely(signature, now, clock_skew_seconds)
    if late:
        return late
    behind = octets_behind_length(signature, hashes)
    if behind:
        return f"the body goes on behind l=, for {behind} octets"
    added = added_fields(signature, header)
    return f"there are more fields than were signed: {', '.join(added)}" if added else ""
