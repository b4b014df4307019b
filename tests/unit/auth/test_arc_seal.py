"""Our ARC sets: dkimpy and our own validation take the chains that we go on with."""

from __future__ import annotations

import re
import time
from functools import cache

import dkim
import pytest

from mailgate.auth.arc import check
from mailgate.auth.arc_seal import seal
from mailgate.auth.authentication_results import authentication_results
from mailgate.auth.canonical import MalformedHeader, body_hashes
from mailgate.auth.private_key import PrivateKey, generate_key
from mailgate.auth.results import ArcResult, Result, SpfResult
from mailgate.auth.signer import BODY_FORM
from tests.support.signed import MESSAGE, RSA_1024, RSA_1024_RECORD, answers_of, content_of

NOW = 1_600_000_000.0
OURS = "ours.example"
RESULTS = authentication_results(
    "mx.ours.example",
    spf=(SpfResult("mailfrom", "football.example.com", "joe@football.example.com", Result.PASS),),
    arc=ArcResult(Result.NONE),
)


@cache
def key(domain: str = OURS) -> PrivateKey:
    return generate_key(domain, "r1", "rsa")


def records() -> dict[str, bytes]:
    keys = {each.record_name: each.record.encode() for each in (key(), key("next.example"))}
    return {**keys, "arc._domainkey.theirs.example": RSA_1024_RECORD}


def result_of(message: bytes) -> ArcResult:
    return check(content_of(message), answers_of(records()), now=time.time())  # dkimpy seals by the clock


def dkimpy_says(message: bytes) -> bytes | None:
    known = records()
    verdict: bytes | None = dkim.arc_verify(message, dnsfunc=lambda name, timeout=5: known[name.decode().rstrip(".")])[
        0
    ]
    return verdict


def sealed(message: bytes, by: PrivateKey | None = None, arc: ArcResult | None = None) -> bytes:
    """The message as it leaves us."""
    content = content_of(message)
    hashes = body_hashes(content, [BODY_FORM])
    return seal(content.header(), hashes, arc or result_of(message), RESULTS, by or key(), NOW) + message


def theirs(message: bytes) -> bytes:
    """The message as dkimpy passes it on."""
    message = b"Authentication-Results: theirs.example; arc=none\r\n" + message
    return b"".join(dkim.arc_sign(message, b"arc", b"theirs.example", RSA_1024, b"theirs.example")) + message


def test_a_first_set_makes_a_chain_that_passes() -> None:
    """RFC 8617 section 5.1: instance 1, cv=none."""
    message = sealed(MESSAGE)
    assert b"; cv=none;" in message
    result = result_of(message)
    assert (result.result, result.problem, result.sealers) == (Result.PASS, "", (OURS,))
    assert result.sealed_results[0].startswith("mx.ours.example;")
    assert dkimpy_says(message) == b"pass"


def test_we_go_on_with_a_chain_of_others_and_others_with_ours() -> None:
    """RFC 8617 section 5.1.1: a seal covers all sets, whoever made them."""
    message = sealed(theirs(MESSAGE))
    assert result_of(message).sealers == ("theirs.example", OURS)
    assert dkimpy_says(message) == b"pass"
    message = sealed(message, key("next.example"))
    assert b"; cv=pass;" in message
    result = result_of(message)
    assert (result.result, result.oldest_pass) == (Result.PASS, 1)
    assert result.sealers == ("theirs.example", OURS, "next.example")
    assert dkimpy_says(message) == b"pass"
    assert result_of(theirs(sealed(MESSAGE))).result is Result.PASS


def test_the_fields_stand_on_top_on_short_lines() -> None:
    """RFC 8617 section 5.1: seal, signature, results; RFC 5322 section 2.1.1."""
    fields = sealed(MESSAGE)[: -len(MESSAGE)]
    names = re.findall(rb"(?m)^([A-Za-z-]+):", fields)
    assert names == [b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results"]
    assert fields.endswith(b"\r\n")
    assert max(map(len, fields.split(b"\r\n"))) <= 78


def test_the_seal_has_no_field_list() -> None:
    """RFC 8617 section 4.1.3: h= may not stand in it; section 4.1.2: no ARC field in that of the signature."""
    fields = sealed(theirs(MESSAGE))
    seal_field, signature = (
        fields[m.start() : m.end()]
        for m in re.finditer(rb"ARC-(?:Seal|Message-S[a-z]+): i=2;(?:[^\r]|\r\n\t)+", fields)
    )
    assert b" h=" not in seal_field
    assert b"arc-" not in signature.partition(b"h=")[2].lower()
    assert b"authentication-results" not in signature.lower()


def test_a_changed_message_breaks_the_chain() -> None:
    """RFC 8617 section 5.2: the newest signature is that of the message."""
    message = sealed(MESSAGE)
    for changed in (message.replace(b"We lost", b"We won"), b"From: mallory@example.org\r\n" + message):
        assert result_of(changed).result is Result.FAIL
        assert dkimpy_says(changed) == b"fail"


def test_a_chain_that_we_find_broken_is_sealed_as_failed_once() -> None:
    """RFC 8617 section 5.1.2: only our own set is covered, and says so; behind it nobody adds another."""
    broken = theirs(MESSAGE).replace(b"We lost", b"We won")
    message = sealed(broken)
    assert b"; cv=fail;" in message
    assert b"ARC-Seal: i=2;" in message
    assert result_of(message).result is Result.FAIL
    assert dkimpy_says(message) is None  # "ARC-Seal[2] reported failure, the chain is terminated"
    assert sealed(message, key("next.example")) == message


def test_the_seal_of_a_broken_chain_covers_our_set_alone() -> None:
    """RFC 8617 section 5.1.2, "as if this newest ARC Set was the only set present": older fields may change."""
    message = sealed(theirs(MESSAGE).replace(b"We lost", b"We won"))
    other = sealed(theirs(MESSAGE.replace(b"Joe.", b"J.")).replace(b"We lost", b"We won").replace(b"J.", b"Joe."))
    assert message[: message.index(b"ARC-Seal: i=1;")] == other[: other.index(b"ARC-Seal: i=1;")]


@pytest.mark.parametrize(
    "arc", [ArcResult(Result.TEMPERROR, problem="the key could not be looked up")], ids=["temperror"]
)
def test_a_chain_that_cant_be_judged_now_is_left_as_it_is(arc: ArcResult) -> None:
    """RFC 8617 section 4.4 has no word for that, and "fail" would be one that lasts."""
    message = theirs(MESSAGE)
    assert sealed(message, arc=arc) == message


def test_a_full_chain_is_left_as_it_is() -> None:
    """RFC 8617 section 4.2.1: 50 sets."""
    fields = b"".join(b"ARC-Seal: i=%d; cv=pass; a=rsa-sha256; b=x\r\n" % number for number in range(1, 51))
    assert sealed(fields + MESSAGE, arc=ArcResult(Result.FAIL)) == fields + MESSAGE


@pytest.mark.parametrize(
    "field", [b"ARC-Seal: nonsense", b"ARC-Message-Signature: i=x; a=b", b"ARC-Authentication-Results: i=0; x"]
)
def test_a_chain_that_nobody_can_read_is_sealed_as_failed(field: bytes) -> None:
    """RFC 8617 section 5.1.2: a malformed chain."""
    message = field + b"\r\n" + MESSAGE
    assert b"; cv=fail;" in sealed(message)[: -len(message)]


def test_a_message_without_an_author_is_not_sealed() -> None:
    """Nobody could verify it."""
    with pytest.raises(MalformedHeader, match="no From"):
        sealed(b"To: a@example.org\r\n\r\n", arc=ArcResult(Result.NONE))
