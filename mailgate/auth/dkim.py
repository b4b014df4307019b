"""DKIM: what the signatures of a message prove.

Pure: a message is read once (`read`), the hashes of its body are taken (`mailgate.auth.canonical`), and then `verify`
comes to a result for each signature from these and the keys that were looked up. Whatever strangers write ends as a
result, never as an exception; and no arithmetic is done with a key or a number that was not measured before.

What the results mean here:

- `pass`: a key of the domain signed the message as we have it, and nothing that a reader takes for signed is not;
- `policy`: the signature verifies, but proves less than it seems to: text behind `l=`, a second Subject above the
  signed one, expired, or from the future (RFC 6376 sections 8.2 and 8.15, RFC 8601 section 2.7.1);
- `fail`: the message was changed, or another key signed it;
- `permerror`: it can't be verified, now or later: malformed, no usable key, rsa-sha1, a key that is too small or larger
  than we verify with, two From fields;
- `temperror`: the key could not be looked up now;
- `neutral`: there are more signatures than are tried.

What no verifier can see: a signed message that is sent again, as it was, to somebody else (replay, RFC 6376 section
8.6) passes; that is what signatures are for.

Standards: RFC 6376; RFC 8301 (algorithms and sizes); RFC 8463 (Ed25519); RFC 8601 section 2.7.1 (the words).
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from mailgate.auth.canonical import BodyForm, BodyHashes, MalformedHeader, body_hashes
from mailgate.auth.results import DkimResult, Result
from mailgate.auth.signature import (
    MAX_SIGNATURE_OCTETS,
    Checked,
    Signature,
    SignedHeader,
    added_fields,
    algorithm_value,
    author_problem,
    check_signature,
    domain_value,
    guarded_fields,
    octets_behind_length,
    read_header,
    read_signature,
    tag_value,
    untimely,
)
from mailgate.auth.signing_key import MAXIMUM_RSA_BITS, MINIMUM_RSA_BITS
from mailgate.auth.tag_list import MalformedTags, TagList, name_value, parse_tag_list
from mailgate.toml import Integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailgate.dns.answer import Answers
    from mailgate.message import MessageContent

_NAME = b"dkim-signature"
_SHOWN_CHARACTERS = 8  # of b=, in results (RFC 6008 section 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class DkimOptions:
    """What is tried, and what is taken: the keys of a `[[policy]]` that uses `dkim`."""

    # How many signatures are tried, from the top. Each costs a look-up and a sum.
    maximum_signatures: Annotated[int, Integer(1, 50)] = 5
    # RSA keys of fewer or more bits than these prove nothing.
    minimum_rsa_bits: Annotated[int, Integer(MINIMUM_RSA_BITS, MAXIMUM_RSA_BITS)] = MINIMUM_RSA_BITS
    maximum_rsa_bits: Annotated[int, Integer(2048, 2 * MAXIMUM_RSA_BITS)] = MAXIMUM_RSA_BITS
    # Whether a signature passes where the body goes on behind l=.
    allows_body_length: bool = False
    # Whether it passes where there are more fields of a kind that occurs once (Subject, Date) than were signed.
    allows_added_fields: bool = False
    # Whether it passes where the key says that its domain only tests (t=y).
    allows_testing_keys: bool = True
    # By how much the signer's clock may differ from ours, for t= and x=.
    clock_skew_seconds: Annotated[int, Integer(0, 86_400)] = 3600


DEFAULT_OPTIONS = DkimOptions()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A signature that can be tried."""

    position: int  # among the message's DKIM-Signature fields
    own: int  # the place of its field in the header section
    signature: Signature
    described: DkimResult  # what will not change, whatever it comes to


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """A message's signatures, read: what is already known of them, and what has to be tried."""

    header: SignedHeader
    settled: tuple[DkimResult, ...]
    candidates: tuple[_Candidate, ...]

    @property
    def forms(self) -> frozenset[BodyForm]:
        """The body hashes that will be needed."""
        return frozenset(candidate.signature.body_form for candidate in self.candidates)


_NOTHING = SignedHeader(())


def read(content: MessageContent, options: DkimOptions = DEFAULT_OPTIONS) -> SignedMessage:
    """Read the signatures of a message."""
    section = content.header()
    if _NAME not in section.lower():
        return SignedMessage(_NOTHING, (DkimResult(0, Result.NONE),), ())
    try:
        header = read_header(section)
    except MalformedHeader as error:
        return _unusable(str(error))
    fields = header.positions(_NAME)
    if not fields:
        return SignedMessage(_NOTHING, (DkimResult(0, Result.NONE),), ())
    problem = author_problem(header)
    settled: list[DkimResult] = []
    candidates: list[_Candidate] = []
    for position, own in enumerate(fields[: options.maximum_signatures]):
        read_one = _read_one(header, position, own)
        if isinstance(read_one, DkimResult):
            settled.append(read_one)
        elif problem:
            settled.append(replace(read_one.described, result=Result.PERMERROR, problem=problem))
        else:
            candidates.append(read_one)
    left = len(fields) - options.maximum_signatures
    if left > 0:
        problem = f"{left} more signatures were not tried: {options.maximum_signatures} are, from the top"
        settled.append(DkimResult(options.maximum_signatures, Result.NEUTRAL, problem=problem))
    return SignedMessage(header, tuple(settled), tuple(candidates))


def _unusable(problem: str) -> SignedMessage:
    return SignedMessage(_NOTHING, (DkimResult(0, Result.PERMERROR, problem=problem),), ())


def _read_one(header: SignedHeader, position: int, own: int) -> _Candidate | DkimResult:
    value = header.fields[own].value.removesuffix(b"\r\n")
    if len(value) > MAX_SIGNATURE_OCTETS:
        return DkimResult(position, Result.PERMERROR, problem=f"it is larger than {MAX_SIGNATURE_OCTETS} octets")
    try:
        tags = parse_tag_list(value)
    except MalformedTags as error:
        return DkimResult(position, Result.PERMERROR, problem=str(error))
    described = _describe(position, tags)
    try:
        tag_value(tags, b"v", _check_version)
        signature = read_signature(tags)
        identity = _identity(tags, signature.domain)
    except MalformedTags as error:
        return replace(described, result=Result.PERMERROR, problem=str(error))
    described = replace(
        described,
        identity=identity,
        signed_fields=signature.signed_fields,
        body_length_octets=signature.body_form.length_octets,
    )
    return _Candidate(position, own, signature, described)


def _describe(position: int, tags: TagList) -> DkimResult:
    """What can be said of a signature whatever else is wrong with it."""

    def readable(name: bytes, read_value: Callable[[bytes], str]) -> str:
        try:
            return tag_value(tags, name, read_value)
        except MalformedTags:
            return ""

    b = re.sub(rb"[^A-Za-z0-9+/=]", b"", tags.get(b"b", b"")[: 4 * _SHOWN_CHARACTERS])
    return DkimResult(
        position,
        Result.NONE,
        domain=readable(b"d", domain_value),
        selector=readable(b"s", name_value),
        algorithm=readable(b"a", algorithm_value),
        signature=b[:_SHOWN_CHARACTERS].decode("ascii"),
    )


def _check_version(value: bytes) -> None:
    if value != b"1":
        raise MalformedTags("it is another version")


def _identity(tags: TagList, domain: str) -> str:
    """What `i=` says, or would by default. @raises MalformedTags: it is not for that domain, or names nothing."""
    if b"i" not in tags:
        return f"@{domain}"
    local_part, name = tag_value(tags, b"i", _identity_value)
    if name != domain and not name.endswith("." + domain):
        raise MalformedTags("i=: its domain is not that of d=, and not below it")
    return f"{local_part}@{name}"


#   sig-i-tag = %x69 [FWS] "=" [FWS] [ Local-part ] "@" domain-name        ; RFC 6376 section 3.5, in quoted-printable
def _identity_value(value: bytes) -> tuple[str, str]:
    local_part, at, domain = binascii.a2b_qp(value).rpartition(b"@")
    try:
        text = local_part.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedTags("it is no identity") from error
    if not at or not text.isprintable():
        raise MalformedTags("it is no identity")
    return text, name_value(domain)


def verify(
    message: SignedMessage, answers: Answers, options: DkimOptions, now: float, hashes: BodyHashes
) -> tuple[DkimResult, ...]:
    """A result for each signature, in order. Of a message without signatures, one that says `none`.

    `hashes` are those for the message's `forms`, `now` is in seconds since the epoch.

    @raises Missing: keys are not known yet.
    """
    if not message.candidates:
        return message.settled
    answers.need({candidate.signature.question for candidate in message.candidates})
    results = [*message.settled]
    for candidate in message.candidates:
        question = candidate.signature.question
        answer = answers.get(question.name, question.type)
        rsa_bits = (options.minimum_rsa_bits, options.maximum_rsa_bits)
        checked = check_signature(candidate.signature, message.header, candidate.own, answer, hashes, rsa_bits)
        result, problem, notes = _judge(candidate, checked, message.header, options, now, hashes)
        results.append(
            replace(
                candidate.described,
                result=result,
                problem=problem,
                notes=notes,
                key_bits=checked.key_bits,
                is_testing=checked.key is not None and checked.key.is_testing,
                evidence=(answer,),
            )
        )
    results.sort(key=lambda result: result.position)
    return tuple(results)


def check(
    content: MessageContent, answers: Answers, options: DkimOptions = DEFAULT_OPTIONS, *, now: float
) -> tuple[DkimResult, ...]:
    """Read, hash and verify in one go. @raises Missing: keys are not known yet."""
    message = read(content, options)
    return verify(message, answers, options, now, body_hashes(content, message.forms))


def _judge(
    candidate: _Candidate, checked: Checked, header: SignedHeader, options: DkimOptions, now: float, hashes: BodyHashes
) -> tuple[Result, str, tuple[str, ...]]:
    """The result, the problem and the notes of a signature, from what verifying it came to."""
    key = checked.key
    signature = candidate.signature
    if checked.result is not Result.PASS or key is None:
        return checked.result, checked.problem, ()
    if key.is_strict and candidate.described.identity.rpartition("@")[2] != signature.domain:
        return Result.PERMERROR, "i=: the key is not for domains below d= (t=s)", ()
    notes: list[str] = []
    late = untimely(signature, now, options.clock_skew_seconds)
    if late:
        return Result.POLICY, late, ()
    behind = octets_behind_length(signature, hashes)
    if behind:
        problem = f"the body goes on behind l=, for {behind} octets"
        if not options.allows_body_length:
            return Result.POLICY, problem, ()
        notes.append(problem)
    elif signature.body_form.length_octets is not None:
        notes.append("l= covers the whole body")
    added = added_fields(signature, header)
    if added:
        problem = f"there are more fields than were signed: {', '.join(added)}"
        if not options.allows_added_fields:
            return Result.POLICY, problem, ()
        notes.append(problem)
    if key.is_testing:
        # RFC 6376 section 3.6.1 wants such a message treated as if unsigned. Domains that once tested left t=y in
        # place for years, and nobody else heeds it for a signature that verifies.
        if not options.allows_testing_keys:
            return Result.POLICY, "the key is for tests (t=y)", ()
        notes.append("the key is for tests (t=y)")
    oversigned = guarded_fields(signature, header)
    if oversigned:
        notes.append(f"signed against additions: {', '.join(oversigned)}")
    return Result.PASS, "", tuple(notes)
