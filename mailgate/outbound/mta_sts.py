"""MTA-STS records and policies: what they say, and which hosts they allow.

Pure; they are fetched by `mailgate.outbound.mta_sts_fetch` and kept by `mailgate.storage.mta_sts`.

Standards: RFC 8461 sections 3.1 (the TXT record), 3.2 (the policy), 4.1 (matching a host).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_POLICY_OCTETS: Final = 65_536  # RFC 8461 section 3.3 suggests to bound it
MAX_AGE_SECONDS: Final = 31_557_600  # RFC 8461 section 3.2
_MAX_PATTERNS: Final = 256
_MAX_NAME_CHARS: Final = 255

# RFC 8461 section 3.1:
#   sts-text-record = sts-version 1*(sts-field-delim sts-field) [sts-field-delim]
#   sts-field-delim = *WSP ";" *WSP ; sts-id = %s"id=" 1*32(ALPHA / DIGIT)
#   sts-ext-name = (ALPHA / DIGIT) *31(ALPHA / DIGIT / "_" / "-" / ".") ; sts-ext-value = 1*(%x21-3A / %x3C / %x3E-7E)
_ID = re.compile(rb"id=([A-Za-z0-9]{1,32})")
_EXTENSION = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}=[\x21-\x3a\x3c\x3e-\x7e]++")

# RFC 8461 section 3.2: a line is a key, a colon, and a value; lines end in CRLF or LF.
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31}):(.*+)")
_LABEL = re.compile(r"[a-z0-9_-]++")
_DIGITS = re.compile(r"[0-9]{1,10}")


class Mode(Enum):
    """What a policy wants done with a host that doesn't meet it. The value is the word in policy and database."""

    ENFORCE = "enforce"  # not to be used
    TESTING = "testing"  # to be used, and reported
    NONE = "none"  # there is no policy any more


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy, with its text as it was fetched."""

    mode: Mode
    max_age_seconds: int
    mx: tuple[str, ...] = ()  # in lower case: "mx.example.test", "*.example.test"
    text: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """The policy's lines, as TLS reports show them (RFC 8460 section 4.2)."""
        return tuple(line.strip() for line in self.text.splitlines() if line.strip())


class NotKnown(Enum):
    """Whether a domain has a policy could not be found out. Mail goes all the same, unless it must be proved right."""

    NOT_KNOWN = "not known"


NOT_KNOWN: Final = NotKnown.NOT_KNOWN


class InvalidPolicy(ValueError):
    """What was fetched is no policy; the message says why."""


def policy_id(records: Iterable[object]) -> str | None:
    """The id of the one record among a name's TXT records that is MTA-STS's; None where there is none, or several."""
    texts = [record for record in records if isinstance(record, bytes) and _is_ours(record)]
    if len(texts) != 1:
        return None
    found = None
    fields = _fields_of(texts[0])[1:]
    if fields and not fields[-1]:
        fields.pop()
    for field in fields:
        identifier = _ID.fullmatch(field)
        if identifier is not None:
            found = found or identifier[1].decode("ascii")  # of a field that comes twice, the first counts
        elif field.startswith(b"id=") or not _EXTENSION.fullmatch(field):
            return None
    return found


def _is_ours(record: bytes) -> bool:
    return _fields_of(record)[0] == b"v=STSv1"


def _fields_of(record: bytes) -> list[bytes]:
    """Blanks round a semicolon are none of a field's; no pattern does this without going over long blanks again."""
    first, *rest = record.split(b";")
    return [first.rstrip(b" \t"), *(field.strip(b" \t") for field in rest)]


def read_policy(octets: bytes) -> Policy:
    """The policy that a policy host sent. @raises InvalidPolicy: it is none."""
    if len(octets) > MAX_POLICY_OCTETS:
        raise InvalidPolicy(f"it has more than {MAX_POLICY_OCTETS} octets")
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidPolicy("it is no UTF-8 text") from None
    values: dict[str, str] = {}
    patterns: list[str] = []
    for line in re.split(r"\r?\n", text):
        if not line.strip(" \t"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise InvalidPolicy(f"{line[:60]!r} is no line of a policy")
        key, value = match[1], match[2].strip(" \t")
        if key == "mx":
            patterns.append(_pattern(value))
        else:
            values.setdefault(key, value)  # RFC 8461 section 3.2: of a key that comes twice, the first counts
    return _policy(values, tuple(dict.fromkeys(patterns)), text)


def _policy(values: dict[str, str], patterns: tuple[str, ...], text: str) -> Policy:
    if values.get("version") != "STSv1":
        raise InvalidPolicy("its version is not STSv1")
    try:
        mode = Mode(values.get("mode"))
    except ValueError:
        raise InvalidPolicy("its mode is none of enforce, testing and none") from None
    max_age = values.get("max_age", "")
    if not _DIGITS.fullmatch(max_age):
        raise InvalidPolicy("its max_age is no number of seconds")
    if not patterns and mode is not Mode.NONE:
        raise InvalidPolicy("it names no mx")
    if len(patterns) > _MAX_PATTERNS:
        raise InvalidPolicy(f"it names more than {_MAX_PATTERNS} mx")
    return Policy(mode, min(int(max_age), MAX_AGE_SECONDS), patterns, text)


def _pattern(value: str) -> str:
    pattern = value.lower().removesuffix(".")
    labels = pattern.removeprefix("*.").split(".")
    if len(pattern) > _MAX_NAME_CHARS or not all(_is_label(label) for label in labels):
        raise InvalidPolicy(f"{value[:60]!r} is no name of a host")
    return pattern


def _is_label(text: str) -> bool:
    return _LABEL.fullmatch(text) is not None and not text.startswith("-") and not text.endswith("-")


def allows(policy: Policy, host: str) -> bool:
    """Whether the policy names that MX host. The asterisk stands for one label (RFC 8461 section 4.1)."""
    _, _, parent = host.partition(".")
    return host in policy.mx or (bool(parent) and f"*.{parent}" in policy.mx)
