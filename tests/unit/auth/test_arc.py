"""ARC: chains that dkimpy has sealed, whole and broken at each place."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

import dkim
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.auth.arc import ArcOptions, check, read
from mailgate.auth.forwarder import trusted_forwarder
from mailgate.auth.results import ArcResult, Result, TrustedForwarder
from mailgate.dns.answer import Answers, Missing, Outcome
from tests.support.signed import (
    ED25519_RECORD,
    MESSAGE,
    NOW,
    RSA_1024,
    RSA_1024_RECORD,
    answers_of,
    content_of,
    rsa_record,
    sign_tags,
)

AUTHOR = "football.example.com"
SEALERS = ("one.example", "two.example", "three.example")
RECORDS = {f"arc._domainkey.{sealer}": RSA_1024_RECORD for sealer in SEALERS}
MANY = tuple(f"hop{number}.example" for number in range(50))
MANY_RECORDS = {f"arc._domainkey.{sealer}": RSA_1024_RECORD for sealer in MANY}
AAR, AMS, AS = b"ARC-Authentication-Results", b"ARC-Message-Signature", b"ARC-Seal"

Found = Mapping[str, bytes] | Mapping[str, bytes | Outcome]


def forward(message: bytes, sealer: str, said: str) -> bytes:
    """The message as it leaves that sealer, with what it says that it found."""
    message = f"Authentication-Results: {sealer}; {said}\r\n".encode() + message
    sealed = dkim.arc_sign(message, b"arc", sealer.encode(), RSA_1024, sealer.encode())
    assert len(sealed) == 3
    return b"".join(sealed) + message


def chain(sealers: Sequence[str] = SEALERS, message: bytes = MESSAGE) -> bytes:
    for number, sealer in enumerate(sealers):
        arc = "arc=pass" if number else "arc=none"
        message = forward(
            message, sealer, f"{arc}; dmarc=pass header.from={AUTHOR}; spf=pass smtp.mailfrom=a@b.example"
        )
    return message


CHAIN = chain()


def result_of(
    message: bytes, records: Found = RECORDS, options: ArcOptions | None = None, now: float = NOW
) -> ArcResult:
    return check(content_of(message), answers_of(records), options or ArcOptions(), now=now)


def dkimpy_says(message: bytes) -> bytes | None:
    verdict: bytes | None = dkim.arc_verify(
        message, dnsfunc=lambda name, timeout=5: RECORDS[name.decode().rstrip(".")]
    )[0]
    return verdict


def test_a_whole_chain_passes() -> None:
    """RFC 8617 section 5.2."""
    result = result_of(CHAIN)
    assert result.result is Result.PASS
    assert result.sealers == SEALERS
    assert result.oldest_pass == 1
    assert [payload.partition(";")[0] for payload in result.sealed_results] == list(SEALERS)
    assert {answer.question.name for answer in result.evidence} == set(RECORDS)
    assert dkimpy_says(CHAIN) == b"pass"


@pytest.mark.parametrize("length", [1, 2, 50])
def test_a_chain_of_any_length_passes(length: int) -> None:
    """RFC 8617 section 4.2.1: 50 are allowed."""
    assert result_of(chain(MANY[:length]), MANY_RECORDS).result is Result.PASS


def test_a_message_without_sets_is_none() -> None:
    """RFC 8617 section 5.2, step 1."""
    assert result_of(MESSAGE).result is Result.NONE
    assert result_of(b"X-ARC-Seal: i=1\r\n" + MESSAGE).result is Result.NONE


def field_of(name: bytes, instance: int) -> bytes:
    """A field of the chain, as it stands."""
    section = CHAIN[: CHAIN.index(b"\r\n\r\n") + 2]
    (found,) = re.findall(rb"(?m)^" + name + rb": i=%d;(?:[^\r]|\r\n[ \t])*\r\n" % instance, section)
    assert isinstance(found, bytes)
    return found


PLACES = [(name, instance) for name in (AAR, AMS, AS) for instance in (1, 2, 3)]
PLACE_IDS = [f"{name.decode()} {instance}" for name, instance in PLACES]


@pytest.mark.parametrize(("name", "instance"), PLACES, ids=PLACE_IDS)
def test_a_chain_with_a_field_changed_fails_at_the_newest_seal(name: bytes, instance: int) -> None:
    """RFC 8617 section 5.1.1: each seal covers all sets up to its own; the newest is looked at first."""
    field = field_of(name, instance)
    changed = field.replace(b"dmarc=pass", b"dmarc=PASS").replace(b" s=arc;", b" s=arc; n=x;")
    assert changed != field
    message = CHAIN.replace(field, changed)
    result = result_of(message)
    assert result.result is Result.FAIL
    newest_signature_is_changed = (name, instance) == (AMS, 3)
    assert result.problem.startswith("message signature 3:" if newest_signature_is_changed else "seal 3:")
    assert dkimpy_says(message) == b"fail"


@pytest.mark.parametrize("instance", [1, 2])
def test_a_chain_with_a_field_changed_before_it_was_sealed_again_fails_at_the_older_seal(instance: int) -> None:
    """A sealer that didn't look: the seals after the change hold, and the chain fails all the same (step 6)."""
    message = chain(SEALERS[:instance]).replace(b"dmarc=pass header", b"dmarc=none header", 1)
    for sealer in SEALERS[instance:]:
        message = forward(message, sealer, "arc=pass")
    result = result_of(message)
    assert result.result is Result.FAIL
    assert result.problem == f"seal {instance}: the fields that it seals were changed, or another key sealed them"
    assert dkimpy_says(message) == b"fail"


@pytest.mark.parametrize(("name", "instance"), PLACES, ids=PLACE_IDS)
def test_a_chain_with_a_field_missing_fails(name: bytes, instance: int) -> None:
    """RFC 8617 section 5.2, step 3: each set has exactly one of each."""
    result = result_of(CHAIN.replace(field_of(name, instance), b""))
    assert (result.result, result.problem) == (Result.FAIL, f"ARC set {instance} is not complete")


@pytest.mark.parametrize(("name", "instance"), PLACES, ids=PLACE_IDS)
def test_a_chain_with_a_field_twice_fails(name: bytes, instance: int) -> None:
    """RFC 8617 section 5.2, step 3."""
    result = result_of(field_of(name, instance) + CHAIN)
    assert (result.result, result.problem) == (Result.FAIL, f"ARC set {instance} has a field twice")


@pytest.mark.parametrize("instance", [1, 2, 3])
def test_a_chain_with_a_set_missing_fails(instance: int) -> None:
    """RFC 8617 section 5.2, step 3: the instances are 1 to N without a gap. Without the newest, its AR is unsigned."""
    message = CHAIN
    for name in (AAR, AMS, AS):
        message = message.replace(field_of(name, instance), b"")
    result = result_of(message)
    if instance == 3:  # that is just the chain before
        assert result.result is Result.PASS
    else:
        assert (result.result, result.problem) == (Result.FAIL, f"ARC set {instance} is not complete")


def test_a_chain_whose_fields_stand_in_another_order_passes() -> None:
    """RFC 8617 section 5.1.1: what counts is the instance, not the place."""
    fields = [field_of(name, instance) for name, instance in PLACES]
    message = CHAIN
    for field in fields:
        message = message.replace(field, b"")
    assert result_of(b"".join(fields) + message).result is Result.PASS


CV = [
    (1, b"cv=none", b"cv=pass", "seal 1 says cv=pass"),
    (1, b"cv=none", b"cv=fail", "seal 1 says cv=fail"),
    (2, b"cv=pass", b"cv=none", "seal 2 says cv=none"),
    (2, b"cv=pass", b"cv=fail", "seal 2 says cv=fail"),
    (3, b"cv=pass", b"cv=none", "seal 3 says cv=none"),
    (3, b"cv=pass", b"cv=fail", "seal 3 says that the chain had failed already"),
    (3, b"cv=pass", b"cv=good", "seal 3 can't be read: cv= is none of none, pass and fail"),
    (3, b"cv=pass; ", b"", "seal 3 can't be read: cv= is missing"),
    (2, b"a=rsa-sha256", b"a=rsa-sha1", "seal 2 can't be read: a=: rsa-sha1 proves nothing any more"),
    (2, b"d=two.example", b"d=com", "seal 2 can't be read: d=: it is no domain that anybody could sign for"),
    (2, b"s=arc", b"h=from; s=arc", "seal 2 can't be read: h= may not stand in it"),
    (2, b" t=", b" t=now", "seal 2 can't be read: t=: it is no number"),
    (2, b"b=", b"b=*", "seal 2 can't be read: b=: it is not base64"),
    (2, b"i=2", b"i=0", "an ARC field has no instance between 1 and 50"),
    (2, b"i=2", b"i=51", "an ARC field has no instance between 1 and 50"),
    (2, b"i=2", b"i=x", "an ARC field can't be read: i=: it is no number"),
    (2, b"i=2; ", b"", "an ARC field can't be read: i= is missing"),
    (2, b"i=2; ", b"i=2; i=2; ", "an ARC field can't be read: i= occurs twice"),
    (2, b"i=2", b"i=4", "ARC set 2 is not complete"),
]


@pytest.mark.parametrize(("instance", "old", "new", "problem"), CV)
def test_a_seal_that_is_written_wrongly_fails_the_chain(instance: int, old: bytes, new: bytes, problem: str) -> None:
    """RFC 8617 sections 4.1.3 and 5.2, steps 2 and 3. No key is asked for."""
    field = field_of(AS, instance)
    message = CHAIN.replace(field, field.replace(old, new, 1))
    result = check(content_of(message), Answers({}), ArcOptions(), now=NOW)
    assert (result.result, result.problem) == (Result.FAIL, problem)


RESULTS_FIELDS = [b"two.example; dmarc=pass", b"i=; two.example", b"i=2 two.example", b"i=222; two.example", b""]


@pytest.mark.parametrize("value", RESULTS_FIELDS)
def test_results_without_an_instance_fail_the_chain(value: bytes) -> None:
    """RFC 8617 section 4.1.1."""
    message = CHAIN.replace(field_of(AAR, 2), AAR + b": " + value + b"\r\n")
    assert result_of(message).problem == "an ARC field has no instance between 1 and 50"


CHANGES = [
    ("the body", CHAIN.replace(b"lost", b"won"), "message signature 3: the body was changed"),
    ("text appended", CHAIN + b"Buy this.\r\n", "message signature 3: the body was changed"),
    ("Subject", CHAIN.replace(b"dinner", b"supper"), "message signature 3: the signed header fields were changed"),
    ("a second Subject", b"Subject: Buy\r\n" + CHAIN, "message signature 3: there are more fields than were signed"),
    ("a second From", b"From: eve@evil.example\r\n" + CHAIN, "there are several From fields"),
    ("a second From, blank", b"From : eve@evil.example\r\n" + CHAIN, "there are several From fields"),
    ("no field", b"From eve@evil.example\r\n" + CHAIN, "the header section has a line that is no field"),
    ("h= with the seal", CHAIN.replace(b"h=", b"h=arc-seal : ", 1), "can't be verified: h=: it names ARC-Seal"),
    ("no h=", CHAIN.replace(b"h=", b"n=", 1), "can't be verified: h= is missing"),
]


@pytest.mark.parametrize(("message", "problem"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_message_that_was_changed_after_the_newest_seal_fails(message: bytes, problem: str) -> None:
    """RFC 8617 section 5.2, step 4."""
    result = result_of(message)
    assert result.result is Result.FAIL
    assert problem in result.problem


def test_a_message_that_was_changed_on_the_way_passes_from_there() -> None:
    """RFC 8617 section 5.2, step 5: the oldest-pass says who changed it, and that is allowed."""
    message = chain(SEALERS[:1])
    message = forward(message + b"-- \r\nThe list\r\n", SEALERS[1], "arc=pass")
    message = forward(message, SEALERS[2], "arc=pass")
    result = result_of(message)
    assert (result.result, result.oldest_pass) == (Result.PASS, 2)
    assert dkimpy_says(message) == b"pass"


KEYS: list[tuple[str, bytes | Outcome, Result, str]] = [
    ("three.example", Outcome.NXDOMAIN, Result.FAIL, "message signature 3: there is no key"),
    ("three.example", Outcome.FAILURE, Result.TEMPERROR, "message signature 3: the key could not be looked up"),
    ("three.example", b"p=", Result.FAIL, "message signature 3: the key was revoked"),
    ("three.example", rsa_record(16_384), Result.FAIL, "message signature 3: an RSA key of 16384 bits is larger"),
    ("three.example", rsa_record(512), Result.FAIL, "message signature 3: an RSA key of 512 bits is too weak"),
    ("three.example", ED25519_RECORD, Result.FAIL, "message signature 3: the key is for ed25519"),
    ("two.example", Outcome.NXDOMAIN, Result.FAIL, "seal 2: there is no key"),
    ("two.example", Outcome.FAILURE, Result.TEMPERROR, "seal 2: the key could not be looked up"),
    ("one.example", Outcome.NODATA, Result.FAIL, "seal 1: there is no key"),
    ("one.example", Outcome.FAILURE, Result.TEMPERROR, "seal 1: the key could not be looked up"),
    ("one.example", rsa_record(1024), Result.FAIL, "seal 1: the fields that it seals were changed, or another key"),
]


@pytest.mark.parametrize(("sealer", "record", "result", "problem"), KEYS)
def test_a_key_decides_for_its_link(sealer: str, record: bytes | Outcome, result: Result, problem: str) -> None:
    """RFC 6376 section 6.1.2, and RFC 8617 section 5.2 for which link is asked first."""
    found = result_of(CHAIN, {**RECORDS, f"arc._domainkey.{sealer}": record})
    assert found.result is result
    assert problem in found.problem


def test_a_link_that_fails_outweighs_one_that_can_not_be_looked_up() -> None:
    """Asking again would change nothing."""
    records: dict[str, bytes | Outcome] = dict(RECORDS)
    records["arc._domainkey.two.example"] = Outcome.FAILURE
    records["arc._domainkey.one.example"] = Outcome.NXDOMAIN
    assert result_of(CHAIN, records).result is Result.FAIL


def test_older_keys_are_asked_for_only_once_the_newest_is_good() -> None:
    """Fifty sets that anybody can write must not become fifty look-ups."""
    with pytest.raises(Missing) as missing:
        check(content_of(CHAIN), Answers({}), now=NOW)
    assert {question.name for question in missing.value.questions} == {"arc._domainkey.three.example"}
    newest = {"arc._domainkey.three.example": RSA_1024_RECORD}
    with pytest.raises(Missing) as missing:
        result_of(CHAIN, newest)
    assert {question.name for question in missing.value.questions} == set(RECORDS) - set(newest)
    assert result_of(CHAIN + b"Buy this.\r\n", newest).result is Result.FAIL


def test_a_message_signature_may_expire() -> None:
    """ARC-Message-Signature has the tags of DKIM-Signature, `x=` among them (RFC 8617 section 4.1.2)."""
    tags = "i=1; a=rsa-sha256; c=relaxed/relaxed; d=one.example; s=arc; h=From:To:Subject:Date; bh={bh}"
    records = {"arc._domainkey.one.example": RSA_1024_RECORD}

    def sealed(tags: str) -> bytes:
        """A set whose message signature is our own; the seal is wrong, which is noticed later."""
        rest = b"ARC-Authentication-Results: i=1; one.example; dmarc=pass\r\n"
        seal = b"ARC-Seal: i=1; cv=none; a=rsa-sha256; d=one.example; s=arc; b=AAAA\r\n"
        return seal + rest + sign_tags(tags, key=RSA_1024, field=b"ARC-Message-Signature")

    assert result_of(sealed(tags), records).problem.startswith("seal 1: ")
    assert result_of(sealed(tags + "; x=1"), records).problem == "message signature 1: it has expired"
    assert (
        result_of(sealed(tags + "; t=1900000000"), records).problem == "message signature 1: it was made in the future"
    )
    nothing = tags.replace("{bh}", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; l=0")
    assert "the body goes on behind l=" in result_of(sealed(nothing), records).problem


def test_a_chain_longer_than_the_bound_fails_unread() -> None:
    """RFC 8617 section 5.2, step 1: more than 50 sets fail. Config may say less."""
    sets = b"".join(b"%s: i=%d; x\r\n" % (name, i) for i in range(1, 52) for name in (AAR, AMS, AS))
    assert result_of(sets + MESSAGE).problem == "there are more ARC sets than 50"
    assert result_of(CHAIN, options=ArcOptions(maximum_sets=2)).problem == "there are more ARC sets than 2"


def test_fifty_large_sets_cost_little() -> None:
    """Each seal's hash goes on from the one before, and each field is put into canonical form once."""
    message = MESSAGE
    for sealer in MANY:
        arc = "none" if message is MESSAGE else "pass"
        message = forward(message, sealer, f"arc={arc}; spf=pass smtp.mailfrom={'x' * 2000}@b.example")
    began = time.process_time()
    assert result_of(message, MANY_RECORDS).result is Result.PASS
    assert time.process_time() - began < 0.5


def test_only_so_many_message_signatures_are_tried() -> None:
    """Only the newest decides; how far back the others hold is for people."""
    assert result_of(CHAIN, options=ArcOptions(maximum_message_signatures=2)).oldest_pass == 2
    assert len(read(content_of(CHAIN), ArcOptions(maximum_message_signatures=1)).forms) == 1


PIECES = st.sampled_from(
    [
        b"i=1",
        b"i=2",
        b"cv=none",
        b"cv=pass",
        b"a=rsa-sha256",
        b"d=one.example",
        b"s=arc",
        b"b=AAAA",
        b"bh=AAAA",
        b"h=from",
        b"=",
        b"\0",
        b"\xff",
        b";;",
        b"\r\n ",
        b"x",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([AAR, AMS, AS]), st.lists(PIECES, max_size=10).map(b"; ".join)), max_size=7))
def test_whatever_strangers_write_ends_as_a_result(fields: list[tuple[bytes, bytes]]) -> None:
    """Fields that are meant to break us. None of them is a pass."""
    message = b"".join(name + b": " + value + b"\r\n" for name, value in fields) + MESSAGE
    result = result_of(message)
    assert result.result in (Result.NONE, Result.FAIL)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, len(CHAIN)), st.integers(0, 3), st.sampled_from([b"", b" ", b"a", b";", b"=", b"\0", b"\xff", b":"])
)
def test_a_damaged_chain_ends_as_a_result(place: int, taken: int, put: bytes) -> None:
    """If it still passes, dkimpy agrees."""
    message = CHAIN[:place] + put + CHAIN[place + taken :]
    stored = re.sub(rb"\r\n|\r|\n", b"\r\n", message)
    try:
        result = result_of(stored)
    except Missing:
        return
    if result.result is Result.PASS and not re.search(rb"(?m)^[!-9;-~]+[ \t]+:", stored):
        try:
            judged = dkimpy_says(stored)
        except IndexError:  # dkimpy finds the set's own AMS by " i=1;", and nothing where no blank follows the colon
            return
        assert judged == b"pass"


def pass_result(sealers: Sequence[str], payloads: Sequence[str]) -> ArcResult:
    return ArcResult(Result.PASS, sealers=tuple(sealers), sealed_results=tuple(payloads))


GOOD = f"x; dmarc=pass header.from={AUTHOR}"
BAD = f"x; dmarc=fail header.from={AUTHOR}"

# The sealers, the oldest first, what each says, whom config trusts, and whose word counts.
TRUST = [
    (["a.example"], [GOOD], ["a.example"], "a.example"),
    (["a.example"], [GOOD], ["b.example"], None),
    (["a.example"], [GOOD], [], None),
    (["a.example"], [BAD], ["a.example"], None),
    (["a.example", "b.example"], [GOOD, BAD], ["a.example", "b.example"], "a.example"),
    (["a.example", "b.example"], [BAD, GOOD], ["a.example", "b.example"], "b.example"),
    (["a.example", "b.example"], [GOOD, BAD], ["b.example"], None),
    (["a.example", "evil.example"], [GOOD, GOOD], ["a.example"], None),
    (["a.example", "evil.example", "b.example"], [GOOD, GOOD, BAD], ["a.example", "b.example"], None),
    (["sub.a.example"], [GOOD], ["a.example"], None),
]


@pytest.mark.parametrize(("sealers", "payloads", "trusted", "witness"), TRUST)
def test_a_forwarder_is_believed_only_as_far_as_the_trust_goes(
    sealers: list[str], payloads: list[str], trusted: list[str], witness: str | None
) -> None:
    """RFC 8617 section 9.4: what stands behind a stranger's seal may be that stranger's invention."""
    found = trusted_forwarder(pass_result(sealers, payloads), trusted, AUTHOR)
    assert found == (None if witness is None else TrustedForwarder(sealers[-1], witness))


@pytest.mark.parametrize("result", [Result.FAIL, Result.NONE, Result.TEMPERROR])
def test_nobody_is_believed_by_a_chain_that_does_not_pass(result: Result) -> None:
    """RFC 8617 section 7.2."""
    chain = ArcResult(result, sealers=("a.example",), sealed_results=(GOOD,))
    assert trusted_forwarder(chain, ["a.example"], AUTHOR) is None


# What a sealer may write, and whether it says that DMARC passed for the author.
PAYLOADS = [
    (f"mx.a.example; dmarc=pass header.from={AUTHOR}", True),
    (f"mx.a.example; spf=fail smtp.mailfrom=x@y.example; dmarc=pass (p=reject dis=none) header.from={AUTHOR}", True),
    (f"mx.a.example 1; DMARC = PASS policy.x=y header . from = {AUTHOR.upper()}; arc=none", True),
    (f"mx.a.example; dmarc/1=pass header.from={AUTHOR}", True),
    (f'mx.a.example; dkim=pass (a "quote) header.d=x; dmarc=pass header.from={AUTHOR}', True),
    (f"mx.a.example; dmarc=pass header.from=evil.example ({AUTHOR})", False),
    ("mx.a.example; dmarc=pass header.from=evil.example", False),
    ("mx.a.example; dmarc=pass", False),
    (f"mx.a.example; dmarc=fail header.from={AUTHOR}", False),
    (f"mx.a.example; dmarc=passed header.from={AUTHOR}", False),
    (f"mx.a.example; x-dmarc=pass header.from={AUTHOR}", False),
    (f"dmarc=pass header.from={AUTHOR}", False),
    (f"mx.a.example; dkim=fail (x; dmarc=pass header.from={AUTHOR} ) header.d=evil.example", False),
    (f"mx.a.example; dkim=fail (x (y); dmarc=pass header.from={AUTHOR} ) header.d=evil.example", False),
    (f'mx.a.example; spf=fail smtp.mailfrom="x;dmarc=pass header.from={AUTHOR} "@evil.example', False),
    (f'mx.a.example; spf=fail (bad ") smtp.mailfrom="; dmarc=pass header.from={AUTHOR} "@evil.example', False),
    (f'mx.a.example; spf=fail smtp.mailfrom="\\"; dmarc=pass header.from={AUTHOR} "@evil.example', False),
    (f"mx.a.example; spf=fail (no end; dmarc=pass header.from={AUTHOR}", False),
    (f"mx.a.example; spf=fail ) x; dmarc=pass header.from={AUTHOR}", False),
    (f'mx.a.example; spf=fail "no end; dmarc=pass header.from={AUTHOR}', False),
]


@pytest.mark.parametrize(("payload", "is_witness"), PAYLOADS)
def test_strangers_words_in_a_sealers_results_are_not_the_sealers(payload: str, is_witness: bool) -> None:
    """RFC 8601 section 2.2: comments and quoted strings hold whatever the message said."""
    found = trusted_forwarder(pass_result(["a.example"], [payload]), ["a.example"], AUTHOR)
    assert (found is not None) is is_witness


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(['"', "(", ")", "\\", ";", " ", "dmarc=pass", f"header.from={AUTHOR}", "é"]), max_size=20)
)
def test_any_payload_is_read(parts: list[str]) -> None:
    """Whatever a sealer writes, it is no exception."""
    trusted_forwarder(pass_result(["a.example"], ["".join(parts)]), ["a.example"], AUTHOR)
