"""SRS: reverse-paths of forwarded mail, rewritten so that they are ours and lead back to whom they were.

Who forwards mail is no host of the author's: SPF fails at the next one unless the reverse-path becomes a domain of the
forwarder's. The Sender Rewriting Scheme puts the old path into the new local part, with a keyed hash, so that only
what we have rewritten leads anywhere, and a day, so that it does not do so for ever:

    SRS0=<hash>=<day>=<domain>=<local part>@ours            of a path as its author chose it
    SRS1=<hash>=<first domain>=<what followed SRS0>@ours    of a path that another host has rewritten already

What a local part of 64 octets (RFC 5321 section 4.5.3.1.1) can't hold is rewritten to name our transaction instead,
where the old path is on record: SRS0=<hash>=<day>==<transaction>@ours. Hosts on the way may change case: nothing here
depends on it.

Not here: which mail is rewritten, and what becomes of mail that comes back (`mailgate.policy.recipients`).

Standards: none; Meng Weng Wong and Shevek, "The Sender Rewriting Scheme" (2004), with HMAC-SHA-256 for its hash and
RFC 4648 section 6 (base32) for its letters.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from mailgate.envelope import Address
from mailgate.ids import decode_id, encode_id
from mailgate.smtp.grammar import MAX_LOCAL_PART_OCTETS, GrammarError, check_domain, parse_mailbox

VALID_DAYS = 21  # longer than any host tries to deliver

_DAY_SECONDS = 86_400
_DAYS = 1024  # the day is ten bits
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_HASH_LETTERS = 6  # thirty bits, each guess at which costs an RCPT

#   The separator behind SRS0 or SRS1 may be one of three; all others are "=".
_SRS = re.compile(r"srs([01])([=+\-])(.++)", re.IGNORECASE | re.DOTALL)
# What we write ourselves, as far as its form tells.
_OURS = re.compile(r"srs(?:0=[a-z2-7]{6}=[a-z2-7]{2}=|1=[a-z2-7]{6}=[^=]).++", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class NamedTransaction:
    """The old path stands with this transaction of ours."""

    transaction_id: int


@dataclass(frozen=True, slots=True)
class SrsFault:
    """Why an address leads nowhere."""

    problem: str  # for people
    is_expired: bool = False


def is_srs(local: str) -> bool:
    """Whether a local part looks like a path that we have rewritten, and not like a name that somebody might have."""
    return _OURS.fullmatch(local) is not None


class Srs:
    """Rewrites and reads, with a secret that all our nodes share."""

    def __init__(self, secret: bytes) -> None:
        """`secret` is random octets."""
        self._secret = secret

    def rewrite(self, reverse_path: Address, domain: str, now: float, transaction_id: int) -> Address:
        """The path at `domain` that leads back to that one. `now` is in seconds since the epoch.

        `reverse_path` has a domain in A-form or an address literal.
        """
        local = self._rewritten(reverse_path, now)
        if len(local.encode("utf-8", "surrogatepass")) > MAX_LOCAL_PART_OCTETS:
            local = self._with_day("", encode_id(transaction_id), now)
        return Address(local, domain)

    def _rewritten(self, reverse_path: Address, now: float) -> str:
        found = _SRS.fullmatch(reverse_path.local)
        if found is not None and found[1] == "0":
            # Ours leads to the first host that rewrote, and not through each that did since.
            rest = f"{reverse_path.domain}={found[2]}{found[3]}"
            return f"SRS1={self._hash('1', rest)}={rest}"
        if found is not None:
            _, _, rest = found[3].partition("=")
            first, equals, _ = rest.partition("=")
            if equals and _is_domain(first):
                return f"SRS1={self._hash('1', rest)}={rest}"
        return self._with_day(reverse_path.domain, reverse_path.local, now)

    def _with_day(self, domain: str, local: str, now: float) -> str:
        day = _day(now)
        letters = _LETTERS[day >> 5] + _LETTERS[day & 31]
        return f"SRS0={self._hash('0', f'{letters}={domain}={local}')}={letters}={domain}={local}"

    def read(self, local: str, now: float) -> Address | NamedTransaction | SrsFault:
        """What a rewritten local part of ours leads back to. `now` is in seconds since the epoch."""
        found = _SRS.fullmatch(local)
        if found is None or not is_srs(local):
            return SrsFault("it is no rewritten path")
        given, _, rest = found[3].partition("=")
        if not hmac.compare_digest(given.lower().encode("utf-8", "replace"), self._hash(found[1], rest).encode()):
            return SrsFault("its hash is not ours")
        if found[1] == "1":
            # The hash is ours, so the parts are there: domain, then what followed SRS0.
            domain, _, behind = rest.partition("=")
            return _address(f"SRS0{behind}", domain)
        letters, _, path = rest.partition("=")
        age = (_day(now) - _number(letters)) % _DAYS
        # A day in the future is one of a node whose clock goes ahead of ours.
        if VALID_DAYS < age < _DAYS - 1:
            return SrsFault(f"it is older than {VALID_DAYS} days", is_expired=True)
        domain, _, kept = path.partition("=")
        if not domain:
            try:
                return NamedTransaction(decode_id(kept))
            except ValueError:
                return SrsFault("it names no transaction")
        return _address(kept, domain)

    def _hash(self, kind: str, rest: str) -> str:
        text = f"{kind}={rest}".lower()
        digest = hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return base64.b32encode(digest[:5]).decode("ascii").lower()[:_HASH_LETTERS]


def _day(now: float) -> int:
    return int(now // _DAY_SECONDS) % _DAYS


def _number(letters: str) -> int:
    return _LETTERS.index(letters[0].lower()) << 5 | _LETTERS.index(letters[1].lower())


def _is_domain(text: str) -> bool:
    try:
        check_domain(text)
    except GrammarError:
        return False
    return True


def _address(local: str, domain: str) -> Address | SrsFault:
    """The address, if it is one that mail can be sent to: another host may have been careless before we rewrote it."""
    try:
        return parse_mailbox(str(Address(local, domain)))
    except GrammarError as error:
        return SrsFault(f"it leads to no address: {error}")
