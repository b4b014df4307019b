"""ARC: the chain of those who handled a message and say what they found.

Each of them added a set of three fields: what it found (ARC-Authentication-Results), a signature of the message as it
left (ARC-Message-Signature, much like DKIM's), and a seal over all sets so far (ARC-Seal). The chain passes when it
is complete, each seal verifies, and the newest message signature does. That proves who handled the message, and not
that any of them is honest: what they say counts only where config trusts them (`mailgate.auth.forwarder`).

Pure, in the manner of `mailgate.auth.dkim`: `read`, then hash the body, then `verify`.

Standards: RFC 8617 sections 4 (fields), 5.1.1 (what a seal covers) and 5.2 (validating a chain).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from mailgate.auth.canonical import BodyForm, BodyHashes, MalformedHeader, body_hashes
from mailgate.auth.results import ArcResult, Result
from mailgate.auth.signature import (
    MAX_SIGNATURE_OCTETS,
    Checked,
    Signature,
    SignedHeader,
    algorithm_value,
    author_problem,
    check_signature,
    domain_value,
    read_header,
    read_signature,
    require_key_name,
    tag_value,
    time_value,
    weakness,
)
from mailgate.auth.signing_key import MAXIMUM_RSA_BITS, MINIMUM_RSA_BITS, KeyFault, key_question, keys_in
from mailgate.auth.tag_list import MalformedTags, TagList, base64_value, name_value, number_value, parse_tag_list
from mailgate.toml import Integer, ListOf, Wrong

if TYPE_CHECKING:
    from mailgate.dns.answer import Answers, Question
    from mailgate.message import MessageContent
    from mailgate.toml import Reader

_RESULTS = b"arc-authentication-results"
_MESSAGE_SIGNATURE = b"arc-message-signature"
_SEAL = b"arc-seal"
_NAMES = (_RESULTS, _MESSAGE_SIGNATURE, _SEAL)  # in the order in which a seal covers them

_MAX_INSTANCE = 50  # RFC 8617 section 4.2.1
_CHAIN_VALIDATIONS = frozenset({b"none", b"fail", b"pass"})


@dataclass(frozen=True, slots=True)
class _Sealer:
    """A domain in a configuration file, as `d=` is compared."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The domain in A-form, lower case."""
        try:
            return domain_value(value.encode("utf-8") if isinstance(value, str) else b"")
        except MalformedTags:
            raise Wrong(f"{value!r} is not a domain", 'use the domain of a seal, "example.org"') from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArcOptions:
    """What is tried, what is taken, and who is trusted: the keys of a `[[policy]]` that uses `arc`."""

    # A chain of more sets than these fails unread. Each costs up to two look-ups.
    maximum_sets: Annotated[int, Integer(1, _MAX_INSTANCE)] = _MAX_INSTANCE
    # How many message signatures are verified, from the newest. Only the newest decides.
    maximum_message_signatures: Annotated[int, Integer(1, _MAX_INSTANCE)] = 5
    # RSA keys of fewer or more bits than these prove nothing.
    minimum_rsa_bits: Annotated[int, Integer(MINIMUM_RSA_BITS, MAXIMUM_RSA_BITS)] = MINIMUM_RSA_BITS
    maximum_rsa_bits: Annotated[int, Integer(2048, 2 * MAXIMUM_RSA_BITS)] = MAXIMUM_RSA_BITS
    # By how much the signer's clock may differ from ours, for t= and x=.
    clock_skew_seconds: Annotated[int, Integer(0, 86_400)] = 3600
    # Whose word counts: the domains in the d= of their seals, just as these say it.
    trusted_sealers: Annotated[tuple[str, ...], ListOf(_Sealer())] = ()


DEFAULT_OPTIONS = ArcOptions()


@dataclass(frozen=True, slots=True)
class _Seal:
    """The tags of an ARC-Seal."""

    domain: str
    selector: str
    algorithm: str
    octets: bytes
    chain_validation: bytes  # cv=

    @property
    def question(self) -> Question:
        return key_question(self.selector, self.domain)


@dataclass(frozen=True, slots=True)
class _ArcSet:
    """What one handler added."""

    instance: int
    positions: tuple[int, int, int]  # of its three fields in the header section, in the order of _NAMES
    results: str  # the payload of its ARC-Authentication-Results
    seal: _Seal
    message_signature: Signature | str  # or why that can't be verified


@dataclass(frozen=True, slots=True)
class ArcChain:
    """A message's ARC sets, read: a result where that is already known, and otherwise the sets, the oldest first."""

    header: SignedHeader
    settled: ArcResult | None
    sets: tuple[_ArcSet, ...] = ()

    @property
    def forms(self) -> frozenset[BodyForm]:
        """The body hashes that will be needed."""
        signatures = (arc_set.message_signature for arc_set in self.sets)
        return frozenset(signature.body_form for signature in signatures if isinstance(signature, Signature))


class _BrokenChain(Exception):
    """The chain fails by what is written in it. The text is for people."""


def read(content: MessageContent, options: ArcOptions = DEFAULT_OPTIONS) -> ArcChain:
    """Read the chain of a message."""
    section = content.header()
    lower = section.lower()
    if not any(name in lower for name in _NAMES):
        return ArcChain(SignedHeader(()), ArcResult(Result.NONE))
    try:
        header = read_header(section)
    except MalformedHeader as error:
        return ArcChain(SignedHeader(()), ArcResult(Result.FAIL, problem=str(error)))
    if not any(header.positions(name) for name in _NAMES):
        return ArcChain(header, ArcResult(Result.NONE))
    try:
        sets = _read_sets(header, options)
    except _BrokenChain as error:
        return ArcChain(header, ArcResult(Result.FAIL, problem=str(error)))
    problem = author_problem(header) or _structural_problem(sets)
    if problem:
        return ArcChain(header, _result(sets, Result.FAIL, problem))
    oldest_verified = len(sets) - options.maximum_message_signatures
    return ArcChain(
        header,
        None,
        tuple(
            arc_set if number >= oldest_verified else _without_message_signature(arc_set)
            for number, arc_set in enumerate(sets)
        ),
    )


def _without_message_signature(arc_set: _ArcSet) -> _ArcSet:
    return _ArcSet(arc_set.instance, arc_set.positions, arc_set.results, arc_set.seal, "it was not tried")


def _read_sets(header: SignedHeader, options: ArcOptions) -> tuple[_ArcSet, ...]:
    """All sets, complete and without a gap. @raises _BrokenChain."""
    placed: list[dict[int, int]] = []
    for name in _NAMES:
        positions = header.positions(name)
        if len(positions) > min(options.maximum_sets, _MAX_INSTANCE):
            raise _BrokenChain(f"there are more ARC sets than {min(options.maximum_sets, _MAX_INSTANCE)}")
        placed.append(_by_instance(header, name, positions))
    results, message_signatures, seals = placed
    instances = range(1, max(map(len, placed)) + 1)
    for instance in instances:
        if not all(instance in of_name for of_name in placed):
            raise _BrokenChain(f"ARC set {instance} is not complete")
    return tuple(
        _ArcSet(
            instance,
            (results[instance], message_signatures[instance], seals[instance]),
            _payload(header, results[instance]),
            _read_seal(header, seals[instance], instance),
            _read_message_signature(header, message_signatures[instance]),
        )
        for instance in instances
    )


def _by_instance(header: SignedHeader, name: bytes, positions: Sequence[int]) -> dict[int, int]:
    placed: dict[int, int] = {}
    for position in positions:
        instance = _instance(header, name, position)
        if instance in placed:
            raise _BrokenChain(f"ARC set {instance} has a field twice")
        placed[instance] = position
    return placed


#   arc-authres-info = instance [CFWS] ";" authres-payload ; instance = [CFWS] %s"i" [CFWS] "=" [CFWS] 1*2DIGIT
# RFC 8617 section 4.1.1. Comments before the semicolon are not read: nobody writes them.
_INSTANCE = re.compile(rb"[ \t\r\n]*+i[ \t\r\n]*+=[ \t\r\n]*+([0-9]{1,2}+)[ \t\r\n]*+;")


def _instance(header: SignedHeader, name: bytes, position: int) -> int:
    value = header.fields[position].value
    if name == _RESULTS:
        match = _INSTANCE.match(value)
        instance = int(match[1]) if match is not None else 0
    else:
        try:
            instance = tag_value(_tags(value), b"i", lambda digits: number_value(digits, 2))
        except MalformedTags as error:
            raise _BrokenChain(f"an ARC field can't be read: {error}") from error
    if not 1 <= instance <= _MAX_INSTANCE:
        raise _BrokenChain("an ARC field has no instance between 1 and 50")
    return instance


def _tags(value: bytes) -> TagList:
    if len(value) > MAX_SIGNATURE_OCTETS:
        raise MalformedTags(f"it is larger than {MAX_SIGNATURE_OCTETS} octets")
    return parse_tag_list(value.removesuffix(b"\r\n"))


def _payload(header: SignedHeader, position: int) -> str:
    """What a handler says that it found: the field behind its instance, unfolded. @raises _BrokenChain: it is huge."""
    if len(header.fields[position].raw) > MAX_SIGNATURE_OCTETS:
        raise _BrokenChain(f"ARC-Authentication-Results is larger than {MAX_SIGNATURE_OCTETS} octets")
    value = header.fields[position].value.partition(b";")[2]
    return value.replace(b"\r\n", b"").strip(b" \t").decode("utf-8", "replace")


def _read_seal(header: SignedHeader, position: int, instance: int) -> _Seal:
    try:
        return _seal_of(_tags(header.fields[position].value))
    except MalformedTags as error:
        raise _BrokenChain(f"seal {instance} can't be read: {error}") from error


def _seal_of(tags: TagList) -> _Seal:
    if b"h" in tags:
        # RFC 8617 section 4.1.3: there is no h=, and one that is found makes the chain fail.
        raise MalformedTags("h= may not stand in it")
    if b"t" in tags:
        tag_value(tags, b"t", time_value)
    chain_validation = tag_value(tags, b"cv", bytes)
    if chain_validation not in _CHAIN_VALIDATIONS:
        raise MalformedTags("cv= is none of none, pass and fail")
    seal = _Seal(
        domain=tag_value(tags, b"d", domain_value),
        selector=tag_value(tags, b"s", name_value),
        algorithm=tag_value(tags, b"a", algorithm_value),
        octets=tag_value(tags, b"b", base64_value),
        chain_validation=chain_validation,
    )
    require_key_name(seal.selector, seal.domain)
    return seal


def _read_message_signature(header: SignedHeader, position: int) -> Signature | str:
    try:
        signature = read_signature(_tags(header.fields[position].value))
    except MalformedTags as error:
        return str(error)
    if _SEAL.decode("ascii") in signature.signed_fields:
        # RFC 8617 section 4.1.2: seals may not be among the signed fields; each is made after this signature.
        return "h=: it names ARC-Seal"
    return signature


def _structural_problem(sets: Sequence[_ArcSet]) -> str:
    """What is wrong with the chain as it is written (RFC 8617 section 5.2, steps 2 to 4), or ""."""
    if sets[-1].seal.chain_validation == b"fail":
        return f"seal {sets[-1].instance} says that the chain had failed already"
    for arc_set in sets:
        wanted = b"none" if arc_set.instance == 1 else b"pass"
        if arc_set.seal.chain_validation != wanted:
            return f"seal {arc_set.instance} says cv={arc_set.seal.chain_validation.decode('ascii')}"
    newest = sets[-1].message_signature
    return f"message signature {sets[-1].instance} can't be verified: {newest}" if isinstance(newest, str) else ""


def verify(chain: ArcChain, answers: Answers, options: ArcOptions, now: float, hashes: BodyHashes) -> ArcResult:
    """What the chain comes to.

    `hashes` are those for the chain's `forms`, `now` is in seconds since the epoch. The other keys are asked for only
    once the newest signature and seal have been found good, so that a heap of fields does not become one of questions.

    @raises Missing: keys are not known yet.
    """
    if chain.settled is not None:
        return chain.settled
    sets = chain.sets
    newest = sets[-1]
    answers.need(_questions(newest))
    checked = _check_message_signature(chain, newest, answers, options, now, hashes)
    if checked.result is not Result.PASS:
        problem = f"message signature {newest.instance}: {checked.problem}"
        return _result(sets, _chain_result(checked.result), problem, answers=answers)
    digests = _seal_digests(chain)
    unsure = ""
    for arc_set in reversed(sets):
        checked = _check_seal(arc_set, digests[arc_set.instance - 1], answers, options)
        if checked.result is Result.TEMPERROR:
            unsure = unsure or f"seal {arc_set.instance}: {checked.problem}"
        elif checked.result is not Result.PASS:
            return _result(sets, Result.FAIL, f"seal {arc_set.instance}: {checked.problem}", answers=answers)
        if arc_set is newest:
            answers.need({question for older in sets for question in _questions(older)})
    if unsure:
        return _result(sets, Result.TEMPERROR, unsure, answers=answers)
    oldest_pass = newest.instance
    for arc_set in reversed(sets[:-1]):
        if _check_message_signature(chain, arc_set, answers, options, now, hashes).result is not Result.PASS:
            break
        oldest_pass = arc_set.instance
    return _result(sets, Result.PASS, "", oldest_pass, answers=answers)


def check(content: MessageContent, answers: Answers, options: ArcOptions = DEFAULT_OPTIONS, *, now: float) -> ArcResult:
    """Read, hash and verify in one go. @raises Missing: keys are not known yet."""
    chain = read(content, options)
    return verify(chain, answers, options, now, body_hashes(content, chain.forms))


def _result(
    sets: Sequence[_ArcSet], result: Result, problem: str, oldest_pass: int = 0, *, answers: Answers | None = None
) -> ArcResult:
    return ArcResult(
        result,
        sealers=tuple(arc_set.seal.domain for arc_set in sets),
        oldest_pass=oldest_pass,
        sealed_results=tuple(arc_set.results for arc_set in sets),
        problem=problem,
        evidence=tuple(answers.used.values()) if answers is not None else (),
    )


def _chain_result(result: Result) -> Result:
    """RFC 8617 section 4.4 knows none, pass and fail; a key that can't be fetched now says nothing either way."""
    return Result.TEMPERROR if result is Result.TEMPERROR else Result.FAIL


def _questions(arc_set: _ArcSet) -> set[Question]:
    questions = {arc_set.seal.question}
    if isinstance(arc_set.message_signature, Signature):
        questions.add(arc_set.message_signature.question)
    return questions


def _check_message_signature(
    chain: ArcChain, arc_set: _ArcSet, answers: Answers, options: ArcOptions, now: float, hashes: BodyHashes
) -> Checked:
    signature = arc_set.message_signature
    if isinstance(signature, str):
        return Checked(Result.PERMERROR, signature)
    answer = answers.get(signature.question.name, signature.question.type)
    rsa_bits = (options.minimum_rsa_bits, options.maximum_rsa_bits)
    checked = check_signature(signature, chain.header, arc_set.positions[1], answer, hashes, rsa_bits)
    if checked.result is Result.PASS:
        problem = weakness(signature, chain.header, hashes, now, options.clock_skew_seconds)
        if problem:
            return Checked(Result.POLICY, problem)
    return checked


def _seal_digests(chain: ArcChain) -> list[bytes]:
    """What each seal signs: all fields of the sets up to its own, itself without its signature.

    Each hash goes on from the one before, so that a long chain is hashed once and not once for each seal.
    """
    digests: list[bytes] = []
    so_far = hashlib.sha256()
    for arc_set in chain.sets:
        results, message_signature, seal = arc_set.positions
        so_far.update(chain.header.canonical(results, True))
        so_far.update(chain.header.canonical(message_signature, True))
        sealed = so_far.copy()
        sealed.update(chain.header.unsigned(seal, True))
        digests.append(sealed.digest())
        so_far.update(chain.header.canonical(seal, True))
    return digests


def _check_seal(arc_set: _ArcSet, digest: bytes, answers: Answers, options: ArcOptions) -> Checked:
    seal = arc_set.seal
    answer = answers.get(seal.question.name, seal.question.type)
    keys = keys_in(answer, seal.algorithm, options.minimum_rsa_bits, options.maximum_rsa_bits)
    if isinstance(keys, KeyFault):
        return Checked(keys.result, keys.problem)
    if any(key.verifies(digest, seal.octets) for key in keys):
        return Checked(Result.PASS)
    return Checked(Result.FAIL, "the fields that it seals were changed, or another key sealed them")
