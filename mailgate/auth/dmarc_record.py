"""DMARC policy records: what a domain owner wrote, as far as it means something.

Unknown tags are ignored, and so is a known one whose value is none that it can have; but where p, sp or np say nothing
valid, none of the three is heeded. A record is not one at all unless it begins with the version. Where several are
found at one name, none counts.

Standards: RFC 9989 sections 4.7 (tags), 4.8 (grammar), 4.10.1 (policies that are not valid).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

MAX_RECORD_OCTETS = 4096

# dmarc-version = "v" equals %s"DMARC1" ; the value is case sensitive
_VERSION = re.compile(rb"[Vv][ \t]*+=[ \t]*+DMARC1[ \t]*+(?:;|\Z)")
# RFC 3986, and the size that RFC 7489 let stand behind it.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*+:[A-Za-z0-9\-._~:/?#\[\]@$&'()*+=%]*+(?:![0-9]{1,20}[kmgtKMGT]?)?")
_POLICIES = frozenset({"none", "quarantine", "reject"})


class Psd(Enum):
    """psd=: whether the domain is a public suffix."""

    YES = "y"
    NO = "n"
    UNKNOWN = "u"


@dataclass(frozen=True, slots=True)
class DmarcRecord:
    """One record. None where the tag is not there, or says nothing valid."""

    text: str
    p: str = "none"
    sp: str | None = None
    np: str | None = None
    adkim: str = "r"
    aspf: str = "r"
    psd: Psd = Psd.UNKNOWN
    is_testing: bool = False  # t=y
    rua: tuple[str, ...] = ()
    ruf: tuple[str, ...] = ()
    fo: str = "0"
    has_policy: bool = True  # False where p is missing, or p, sp or np not valid: then p is "none"
    ignored: tuple[str, ...] = ()  # tags that are unknown, or hold nothing valid

    @property
    def applies(self) -> bool:
        """Whether it asks for anything that a receiver could do (section 4.10.1): without a policy, for reports."""
        return self.has_policy or any(_URI.fullmatch(uri) for uri in self.rua)


def record_in(records: Iterable[object]) -> DmarcRecord | None:
    """The DMARC record among the TXT records of a name; None where there is none, or more than one."""
    found = [text for text in records if isinstance(text, bytes) and _VERSION.match(text)]
    return parse_record(found[0]) if len(found) == 1 else None


@lru_cache(maxsize=1024)
def parse_record(text: bytes) -> DmarcRecord | None:
    """One TXT record read as a DMARC record; None where it is not one."""
    if len(text) > MAX_RECORD_OCTETS or not _VERSION.match(text):
        return None
    shown = text.decode("utf-8", "backslashreplace")
    tags: dict[str, str] = {}
    ignored: list[str] = []
    for part in shown.split(";")[1:]:
        name, equals, value = part.partition("=")
        name, value = name.strip(" \t").lower(), value.strip(" \t")
        if not name and not equals and not value:
            continue
        if not equals or name not in _KNOWN or name in tags:
            ignored.append(name or part.strip())
        else:
            tags[name] = value
    chosen: dict[str, str] = {}
    for name, value in tags.items():
        allowed = _KNOWN[name]
        if allowed is None or value.lower() in allowed:
            chosen[name] = value if allowed is None else value.lower()
        else:
            ignored.append(name)
    has_policy = "p" in chosen and not {"sp", "np"} & (tags.keys() - chosen.keys())
    return DmarcRecord(
        shown,
        p=chosen["p"] if has_policy else "none",
        sp=chosen.get("sp") if has_policy else None,
        np=chosen.get("np") if has_policy else None,
        adkim=chosen.get("adkim", "r"),
        aspf=chosen.get("aspf", "r"),
        psd=Psd(chosen.get("psd", "u")),
        is_testing=chosen.get("t") == "y",
        rua=_uris(chosen.get("rua")),
        ruf=_uris(chosen.get("ruf")),
        fo=chosen.get("fo", "0"),
        has_policy=has_policy,
        ignored=tuple(ignored),
    )


def _uris(value: str | None) -> tuple[str, ...]:
    return tuple(uri.strip(" \t") for uri in value.split(",") if uri.strip(" \t")) if value else ()


# The tags of RFC 9989 with their values in lower case; None where the value is free.
_KNOWN: dict[str, frozenset[str] | None] = {
    "p": _POLICIES,
    "sp": _POLICIES,
    "np": _POLICIES,
    "adkim": frozenset("rs"),
    "aspf": frozenset("rs"),
    "psd": frozenset("ynu"),
    "t": frozenset("yn"),
    "rua": None,
    "ruf": None,
    "fo": None,
}
