"""What authentication found: results, each with what it rests on.

Values only; they travel as notes from policy to policy and into the record. A *result* is what is true of a message;
what is done about it is a *verdict*, and lives in `mailgate.policy`.

Standards: RFC 8601 section 2.7 (the words), RFC 7208 section 2.6 (SPF), RFC 6376 (DKIM), RFC 9989 (DMARC), RFC 8617
(ARC).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mailgate.dns.answer import Answer


class Result(Enum):
    """The words of RFC 8601. Which of them a method can come to is the method's."""

    NONE = "none"
    PASS = "pass"  # noqa: S105  # a result, no password
    FAIL = "fail"
    SOFTFAIL = "softfail"
    NEUTRAL = "neutral"
    POLICY = "policy"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class SpfResult:
    """SPF for one identity (RFC 7208)."""

    identity: str  # "helo" or "mailfrom"
    domain: str  # that was checked, A-form, lower case
    sender: str  # the address used in macros
    result: Result
    mechanism: str = ""  # that matched, as written in the record: "-all", "include:example.org"
    record: str = ""  # the domain's own record, as far as one was found
    explanation: str = ""  # from exp=, made safe: one line of printable ASCII
    problem: str = ""  # why temperror or permerror, for people
    evidence: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class DkimResult:
    """DKIM for one signature (RFC 6376)."""

    position: int  # of the signature among the message's DKIM-Signature fields, 0 the topmost
    result: Result
    domain: str = ""  # d=, A-form, lower case
    selector: str = ""  # s=
    identity: str = ""  # i=, or "@" d= where it has none
    algorithm: str = ""  # a=
    key_bits: int = 0
    signed_fields: tuple[str, ...] = ()  # h=, lower case
    body_length_octets: int | None = None  # l=
    is_testing: bool = False  # the key says t=y
    problem: str = ""  # why it did not pass, for people
    notes: tuple[str, ...] = ()  # what a person should know of one that passed: "the body goes on behind l="
    signature: str = ""  # the first characters of b=, as header.b of RFC 6008 wants them
    evidence: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class ArcResult:
    """The ARC chain as a whole (RFC 8617)."""

    result: Result  # none, pass or fail; temperror where a key could not be fetched
    sealers: tuple[str, ...] = ()  # d= of each seal, the oldest first
    oldest_pass: int = 0  # the oldest instance whose message signature still verifies; 0 for none
    sealed_results: tuple[str, ...] = ()  # the ARC-Authentication-Results payloads, the oldest first
    problem: str = ""
    evidence: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class TrustedForwarder:
    """Somebody whom config trusts vouches for the author: DMARC passed when the message was with them.

    Its ARC chain passes, and no seal of a stranger stands behind the one of who says so.
    """

    sealer: str  # d= of the newest seal: who handed the message to us
    witness: str  # d= of the seal under which dmarc=pass stands, for the author's domain


@dataclass(frozen=True, slots=True)
class DmarcResult:
    """DMARC for the author's domain (RFC 9989)."""

    result: Result  # none, pass, fail, temperror, permerror
    author_domain: str = ""  # of From, A-form, lower case
    organizational_domain: str = ""
    policy_domain: str = ""  # where the record was found
    policy: str = ""  # what applies to this message: "none", "quarantine" or "reject", after sp, np and t
    published_policy: str = ""  # what p, sp or np says, whichever of them is for this domain
    is_subdomain: bool = False  # sp or np applied
    is_testing: bool = False  # t=y
    aligned_spf: bool = False
    aligned_dkim: bool = False
    record: str = ""
    problem: str = ""
    notes: tuple[str, ...] = ()
    evidence: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthorFault:
    """The From field names no author that DMARC could ask about (RFC 9989, RFC 5322 section 3.6.2)."""

    problem: str  # "no From field", "two From fields", "From is not a mailbox-list"


@dataclass(frozen=True, slots=True)
class PolicyOverride:
    """Why something else was done than the author's domain asks for, in the words of RFC 9990."""

    reason: str  # "trusted_forwarder", "local_policy", "policy_test_mode", "mailing_list" or "other"
    comment: str
    action: Literal["continue", "quarantine", "reject"] | None = None  # None: what the policy comes to anyway
