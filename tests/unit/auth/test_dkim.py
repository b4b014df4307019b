"""DKIM: what each signature comes to, with dkimpy as the signer and as the second opinion."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping, Sequence

import dkim
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.auth.dkim import DkimOptions, check, read
from mailgate.auth.results import DkimResult, Result
from mailgate.dns.answer import Answers, Missing, Outcome, Question, RecordType
from tests.support.signed import (
    DOMAIN,
    ED25519,
    ED25519_RECORD,
    MESSAGE,
    NOW,
    RECORDS,
    RSA_1024,
    RSA_1024_RECORD,
    RSA_2048,
    RSA_2048_RECORD,
    answers_of,
    content_of,
    dkimpy_file,
    dkimpy_message,
    rsa_record,
    sign,
    sign_tags,
)

KEY_NAME = f"rsa._domainkey.{DOMAIN}"
TAGS = f"v=1; a=rsa-sha256; c=relaxed/relaxed; d={DOMAIN}; s=rsa; h=From:To:Subject:Date; bh={{bh}}"

Found = Mapping[str, bytes | Sequence[bytes] | Outcome]


def results_of(
    message: bytes, records: Found = RECORDS, options: DkimOptions | None = None, now: float = NOW
) -> tuple[DkimResult, ...]:
    return check(content_of(message), answers_of(records), options or DkimOptions(), now=now)


def result_of(
    message: bytes, records: Found = RECORDS, options: DkimOptions | None = None, now: float = NOW
) -> DkimResult:
    (result,) = results_of(message, records, options, now)
    return result


def dkimpy_verifies(message: bytes, records: Mapping[str, bytes] = RECORDS) -> bool:
    return bool(dkim.verify(message, dnsfunc=lambda name, timeout=5: records.get(name.decode().rstrip("."))))


# RFC 6376 appendix A.2, with erratum 3192 (one blank between the sentences, where the RFC prints two); appendix C.
RFC_6376 = b"""\
DKIM-Signature: v=1; a=rsa-sha256; s=brisbane; d=example.com;
      c=simple/simple; q=dns/txt; i=joe@football.example.com;
      h=Received : From : To : Subject : Date : Message-ID;
      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
      b=AuUoFEfDxTDkHlLXSZEpZj79LICEps6eda7W3deTVFOk4yAUoqOB
        4nujc7YopdG5dWLSdNg6xNAZpOPr+kHxt1IrE+NahM6L/LbvaHut
        KVdkLLkpVaVVQPzeRDI009SO2Il5Lu7rDNH6mZckBdrIx0orEtZV
        4bmp/YzhwvcubU4=;
Received: from client1.football.example.com  [192.0.2.1]
      by submitserver.example.com with SUBMISSION;
      Fri, 11 Jul 2003 21:01:54 -0700 (PDT)
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game. Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")
RFC_6376_RECORD = (
    b"v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQ"
    b"KBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYt"
    b"IxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v"
    b"/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhi"
    b"tdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB"
)

# RFC 8463 appendix A.
RFC_8463 = b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")


def test_the_example_of_rfc_6376_passes() -> None:
    """RFC 6376 appendix A, where `i=` is below `d=`."""
    result = result_of(RFC_6376, {"brisbane._domainkey.example.com": RFC_6376_RECORD})
    assert result.result is Result.PASS
    assert (result.domain, result.selector, result.identity) == ("example.com", "brisbane", "joe@football.example.com")
    assert (result.algorithm, result.key_bits, result.signature) == ("rsa-sha256", 1024, "AuUoFEfD")
    assert result.signed_fields == ("received", "from", "to", "subject", "date", "message-id")


def test_the_example_of_rfc_8463_passes_twice() -> None:
    """RFC 8463 appendix A: Ed25519 and RSA."""
    first, second = results_of(RFC_8463)
    assert (first.result, first.algorithm, first.key_bits) == (Result.PASS, "ed25519-sha256", 256)
    assert (second.result, second.algorithm, second.key_bits) == (Result.PASS, "rsa-sha256", 1024)
    assert (first.position, second.position) == (0, 1)


def test_the_evidence_is_the_answer_that_held_the_key() -> None:
    """A result can be explained later, when the key is gone from the DNS."""
    (answer,) = result_of(sign()).evidence
    assert answer.question == Question(KEY_NAME, RecordType.TXT)
    assert answer.records == (RSA_2048_RECORD,)


def test_all_keys_are_asked_for_at_once() -> None:
    """So that their look-ups run side by side."""
    with pytest.raises(Missing) as missing:
        check(content_of(RFC_8463), Answers({}), now=NOW)
    assert {question.name.partition(".")[0] for question in missing.value.questions} == {"brisbane", "test"}


@pytest.mark.parametrize("body", ["simple", "relaxed"])
@pytest.mark.parametrize("header", ["simple", "relaxed"])
@pytest.mark.parametrize(
    ("selector", "key", "algorithm"),
    [("rsa", RSA_2048, "rsa-sha256"), ("test", RSA_1024, "rsa-sha256"), ("brisbane", ED25519, "ed25519-sha256")],
)
@pytest.mark.parametrize("has_length", [False, True])
def test_what_dkimpy_signs_passes(
    header: str, body: str, selector: str, key: bytes, algorithm: str, has_length: bool
) -> None:
    """RFC 6376 sections 3.4 and 3.7, in all forms."""
    message = sign(
        selector=selector, algorithm=algorithm, canonicalization=(header, body), has_length=has_length, key=key
    )
    assert result_of(message).result is Result.PASS
    assert dkimpy_verifies(message)


def test_a_message_without_signatures_is_none() -> None:
    """RFC 8601 section 2.7.1: none."""
    assert result_of(MESSAGE).result is Result.NONE
    assert result_of(b"X-DKIM-Signature: v=1\r\n" + MESSAGE).result is Result.NONE


# dkimpy's own messages and key records, and what its tests say of them.
DKIMPY = [
    ("rfc6376.signed.msg", RECORDS, [Result.PASS, Result.PASS]),
    # That its hash does not fit is as its authors wanted it: the test is that t= may be missing.
    ("rfc6376.signed.no_t.msg", RECORDS, [Result.FAIL]),
    ("ed25519test2.msg", {"sed._domainkey.test.ex": dkimpy_file("eximtest.dns").strip()}, [Result.PASS]),
    ("test.message.baddomain", {}, [Result.PERMERROR]),
    ("test.message", {}, [Result.NONE]),
]


@pytest.mark.parametrize(("name", "records", "results"), DKIMPY, ids=[name for name, _, _ in DKIMPY])
def test_dkimpys_own_messages_come_to_what_its_tests_say(
    name: str, records: Mapping[str, bytes], results: list[Result]
) -> None:
    """A second implementation's idea of the same RFC."""
    assert [result.result for result in results_of(dkimpy_message(name), records, now=1_600_000_000)] == results


def test_dkimpys_message_from_gmail_passes_but_for_its_key() -> None:
    """test2.message: degenerate folding, in `bh=` and in the middle of `b=`; its body is what was signed."""
    message = dkimpy_message("test2.message")
    record = (
        b"k=rsa; p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA1Kd87/UeJjenpabgbFwh+eBCsSTrqmwIYYvywlbhbqoo2DymndFkbjOV"
        b"IPIldNs/m40KF+yzMn1skyoxcTUGCQs8g3FgD2Ap3ZB5DekAo5wMmk4wimDO+U8QzI3SD07y2+07wlNWwIt8svnxgdxGkVbbhzY8i+RQ9DpSVp"
        b"PbF7ykQxtKXkv/ahW3KjViiAH+ghvvIhkx4xYSIc9oSwVmAl5OctMEeWUwg8Istjqz8BZeTWbf41fbNhte7Y+YqZOwq1Sd0DbvYAD9NOZK9vlf"
        b"uac0598HY+vtSBczUiKERHv1yRbcaQtZFh5wtiRrN04BLUTD21MycBX5jYchHjPY/wIDAQAB"
    )
    records = {"20120113._domainkey.gmail.com": record}
    assert (result_of(message, records).result is Result.PASS) == dkimpy_verifies(message, records)
    assert result_of(message, records).result is Result.PASS


def test_dkimpys_mailbox_message_passes_with_fields_signed_several_times() -> None:
    """RFC 6376 section 5.4.2: of fields that occur several times, the last is meant first."""
    message = dkimpy_message("message.mbox")
    message = message[message.index(b"\r\n") + 2 :] if message.startswith(b"From ") else message
    signer = dkim.DKIM(message)
    fields = [name.decode() for name, _ in signer.headers if name.lower() != b"dkim-signature"]
    assert len({field.lower() for field in fields}) < len(fields)
    signed = sign(message, fields=fields)
    with pytest.raises(Missing):  # it has a signature of its own already
        results_of(signed)
    assert results_of(signed, options=DkimOptions(maximum_signatures=1))[0].result is Result.PASS


def test_a_field_in_windows_1258_passes() -> None:
    """DKIM signs octets; dkimpy's rfc6376.w1258.msg."""
    message = sign(dkimpy_message("rfc6376.w1258.msg"))
    assert result_of(message).result is Result.PASS


FROM = b"From: Joe SixPack <joe@football.example.com>\r\n"
# Each of these fields is signed as often as it occurs, and may so be added to.
SIGNED_ONCE = sign(fields=["from", "to", "subject", "date", "message-id"])


def changed(old: bytes, new: bytes) -> bytes:
    """The signed message with one place of it changed, behind its signature."""
    signature, message = SIGNED_ONCE[: -len(MESSAGE)], MESSAGE
    assert message.count(old) == 1
    return signature + message.replace(old, new)


# RFC 6376 section 8, and what the literature knows. None of them may ever be a pass.
FORGERIES = [
    ("body changed", changed(b"lost", b"won"), Result.FAIL, "the body"),
    ("text appended", SIGNED_ONCE + b"Buy this.\r\n", Result.FAIL, "the body"),
    ("Subject changed", changed(b"dinner", b"supper"), Result.FAIL, "signed header fields"),
    ("Subject taken away", changed(b"Subject: Is dinner\r\n ready?\r\n", b""), Result.FAIL, "signed header fields"),
    ("From changed", changed(b"joe@football", b"eve@football"), Result.FAIL, "signed header fields"),
    ("From taken away", changed(FROM, b""), Result.PERMERROR, "no From"),
    ("second From above", b"From: eve@evil.example\r\n" + SIGNED_ONCE, Result.PERMERROR, "several From"),
    ("second From below", changed(FROM, FROM + b"From: eve@evil.example\r\n"), Result.PERMERROR, "several From"),
    ("second From, blank", b"From : eve@evil.example\r\n" + SIGNED_ONCE, Result.PERMERROR, "several From"),
    ("second From, tab", b"fROM\t: eve@evil.example\r\n" + SIGNED_ONCE, Result.PERMERROR, "several From"),
    ("second From, folded", b"From:\r\n eve@evil.example\r\n" + SIGNED_ONCE, Result.PERMERROR, "several From"),
    ("From with a blank", changed(b"From: Joe", b"From : Joe"), Result.PERMERROR, "blank before its colon"),
    ("a line that is no field", b"From eve@evil.example\r\n" + SIGNED_ONCE, Result.PERMERROR, "no field"),
    ("a name over two lines", b"Fr\r\n om: eve@evil.example\r\n" + SIGNED_ONCE, Result.PERMERROR, "no field"),
    ("begins with a blank", b" From: eve@evil.example\r\n" + SIGNED_ONCE, Result.PERMERROR, "no field"),
    ("second Subject above", b"Subject: Buy this\r\n" + SIGNED_ONCE, Result.POLICY, "subject"),
    ("second Date, blank", b"Date : today\r\n" + SIGNED_ONCE, Result.POLICY, "date"),
    ("second Subject below", changed(b"Date:", b"Subject: Buy\r\nDate:"), Result.FAIL, "signed header fields"),
    (
        "second Content-Type",
        b"Content-Type: text/html\r\n" + sign(b"Content-Type: text/plain\r\n" + MESSAGE),
        Result.POLICY,
        "content-type",
    ),
    ("text behind l=", sign(has_length=True) + b"Buy this.\r\n", Result.POLICY, "behind l=, for 13"),
    ("another domain's signature", SIGNED_ONCE.replace(b"d=football.", b"d=other."), Result.PERMERROR, "i="),
]


@pytest.mark.parametrize(
    ("message", "result", "problem"), [row[1:] for row in FORGERIES], ids=[r[0] for r in FORGERIES]
)
def test_a_forgery_does_not_pass(message: bytes, result: Result, problem: str) -> None:
    """RFC 6376 sections 6.1.3, 8.2 and 8.15."""
    found = result_of(message)
    assert found.result is result
    assert problem in found.problem


def test_a_message_that_is_sent_again_passes() -> None:
    """RFC 6376 section 8.6: a replay can't be told from forwarding, so nobody may conclude more from a pass."""
    assert result_of(b"Received: from anywhere.example\r\n" + SIGNED_ONCE).result is Result.PASS


def test_fields_that_are_not_signed_may_be_added() -> None:
    """RFC 6376 section 5.4.2: trace fields are added on the way."""
    assert result_of(b"List-Id: <list.example>\r\n" + SIGNED_ONCE).result is Result.PASS


def test_fields_that_were_there_twice_may_be_so_if_both_are_signed() -> None:
    """Only an addition is suspicious."""
    message = b"Subject: One\r\n" + MESSAGE
    assert result_of(sign(message, fields=["from", "subject", "subject"])).result is Result.PASS
    assert result_of(sign(message, fields=["from", "subject"])).result is Result.POLICY


def test_a_field_signed_against_additions_is_noted_and_protected() -> None:
    """RFC 6376 section 5.4: `h=` names it once more than it occurs."""
    message = sign(fields=["from", "from", "subject", "subject"])
    assert result_of(message).notes == ("signed against additions: from, subject",)
    assert result_of(b"Subject: Buy this\r\n" + message).result is Result.FAIL


def test_a_signature_is_not_among_the_signatures_that_it_signs() -> None:
    """RFC 6376 section 5.4: its name in `h=` means those that were there before."""
    once = sign(selector="brisbane", key=ED25519, algorithm="ed25519-sha256")
    for names in (["from", "dkim-signature"], ["from", "dkim-signature", "dkim-signature"]):
        assert [r.result for r in results_of(sign(once, fields=names))] == [Result.PASS, Result.PASS]


# What may be allowed by config: the message, the option, and what stands in the notes then.
ALLOWED = [
    (sign(has_length=True) + b"Buy this.\r\n", DkimOptions(allows_body_length=True), "behind l="),
    (b"Subject: Buy this\r\n" + SIGNED_ONCE, DkimOptions(allows_added_fields=True), "subject"),
]


@pytest.mark.parametrize(("message", "options", "note"), ALLOWED, ids=["l=", "added fields"])
def test_what_config_allows_passes_and_is_noted(message: bytes, options: DkimOptions, note: str) -> None:
    """RFC 6376 leaves both to the verifier."""
    result = result_of(message, options=options)
    assert result.result is Result.PASS
    assert any(note in found for found in result.notes)


def test_a_body_that_l_covers_whole_passes_and_is_noted() -> None:
    """RFC 6376 section 3.5: `l=` is as long as the body was."""
    result = result_of(sign(has_length=True))
    assert result.result is Result.PASS
    assert result.body_length_octets is not None
    assert "l= covers the whole body" in result.notes


def test_a_tag_list_signed_by_ourselves_passes() -> None:
    """Else the tests below, which change one tag of it, would prove nothing."""
    assert result_of(sign_tags(TAGS)).result is Result.PASS
    assert dkimpy_verifies(sign_tags(TAGS))


def with_tag(old: str, new: str) -> bytes:
    assert TAGS.count(old) == 1
    return sign_tags(TAGS.replace(old, new))


# A tag, and what stands in its place. All of these are signed with the right key.
TAG_FAULTS = [
    ("v=1", "v=2", "v=: it is another version"),
    ("v=1; ", "", "v= is missing"),
    ("a=rsa-sha256; ", "", "a= is missing"),
    ("a=rsa-sha256", "a=rsa-sha1", "a=: rsa-sha1 proves nothing any more"),
    ("a=rsa-sha256", "a=rsa-sha512", "a=: it is an unknown algorithm"),
    ("a=rsa-sha256", "a=ed25519-sha256", "the key is for rsa"),
    ("c=relaxed/relaxed", "c=nowsp", "c=: it is an unknown canonical form"),
    ("c=relaxed/relaxed", "c=relaxed/relaxed/simple", "c=: it is an unknown canonical form"),
    (f"d={DOMAIN}; ", "", "d= is missing"),
    (f"d={DOMAIN}", "d=com", "d=: it is no domain that anybody could sign for"),
    (f"d={DOMAIN}", f"d={DOMAIN}.", "d=: it is no domain name"),
    (f"d={DOMAIN}", "d=legitimate.com(.attacker.com", "d=: it is no domain name"),
    (f"d={DOMAIN}", "d=foot\0ball.example.com", "d= holds a character that may not stand there"),
    (f"d={DOMAIN}", "d=" + "a." * 130 + "com", "d=: it is no domain name"),
    (f"d={DOMAIN}", "d=-a.example.com", "d=: it is no domain name"),
    (f"d={DOMAIN}", "d=foot ball.example.com", "d=: it is no domain name"),
    (f"d={DOMAIN}", "d=\udcff.example.com", "d=: it is no domain name"),
    ("s=rsa; ", "", "s= is missing"),
    ("s=rsa", "s=", "s=: it is no domain name"),
    ("s=rsa", "s=rsa\0", "s= holds a character that may not stand there"),
    ("s=rsa", "s=rsa\x01x", "s= holds a character that may not stand there"),
    ("s=rsa", "s=" + ".".join(["a" * 60] * 4), "a name that is too long for the DNS"),
    ("s=rsa", "s=..", "s=: it is no domain name"),
    ("h=From:To:Subject:Date; ", "", "h= is missing"),
    ("h=From:To:Subject:Date", "h=To:Subject:Date", "h=: From is not signed"),
    ("h=From:To:Subject:Date", "h=", "h=: it is no list of field names"),
    ("h=From:To:Subject:Date", "h=From::To", "h=: it is no list of field names"),
    ("h=From:To:Subject:Date", "h=From:T o", "h=: it is no list of field names"),
    ("; bh={bh}", "", "bh= is missing"),
    ("bh={bh}", "bh=abcd", "bh=: it is no SHA-256 hash"),
    ("bh={bh}", "bh=%%%%", "bh=: it is not base64"),
    ("bh={bh}", "bh={bh}; bh={bh}", "bh= occurs twice"),
    ("bh={bh}", "bh={bh}; l=1000", "l= is larger than the body"),
    ("bh={bh}", "bh={bh}; l=" + "9" * 76, "l= is larger than the body"),
    ("bh={bh}", "bh={bh}; l=" + "9" * 77, "l=: it is no number"),
    ("bh={bh}", "bh={bh}; l=-1", "l=: it is no number"),
    ("bh={bh}", "bh={bh}; l=", "l=: it is no number"),
    ("bh={bh}", "bh={bh}; q=http", "q=: the key is not in the DNS"),
    ("bh={bh}", "bh={bh}; t=yesterday", "t=: it is no number"),
    ("bh={bh}", "bh={bh}; t=" + "9" * 5000, "t=: it is no number"),
    ("bh={bh}", "bh={bh}; t=1799999999; x=1799999998", "x=: it expired before it was made"),
    ("bh={bh}", "bh={bh}; t=1799999999; x=1799999999", "x=: it expired before it was made"),
    ("bh={bh}", "bh={bh}; i=joe@example.com", "i=: its domain is not that of d=, and not below it"),
    ("bh={bh}", "bh={bh}; i=joe@evilfootball.example.com", "i=: its domain is not that of d=, and not below it"),
    ("bh={bh}", f"bh={{bh}}; i={DOMAIN}", "i=: it is no identity"),
    ("bh={bh}", f"bh={{bh}}; i==00@{DOMAIN}", "i=: it is no identity"),
    ("bh={bh}", f"bh={{bh}}; i==FF@{DOMAIN}", "i=: it is no identity"),
    ("bh={bh}", "bh={bh};; x=1900000000", "it is not a list of tags"),
    ("bh={bh}", "bh={bh}; 1x=y", "it is not a list of tags"),
    ("bh={bh}", "bh={bh}; nothing", "it is not a list of tags"),
]


@pytest.mark.parametrize(("old", "new", "problem"), TAG_FAULTS, ids=[repr(row[1])[:40] for row in TAG_FAULTS])
def test_a_signature_with_a_faulty_tag_is_a_permerror(old: str, new: str, problem: str) -> None:
    """RFC 6376 sections 3.2, 3.5 and 6.1.1; RFC 8301 section 3.1 for rsa-sha1."""
    result = result_of(with_tag(old, new))
    assert result.result is Result.PERMERROR
    assert problem in result.problem


# What is unusual, and right all the same.
TAG_ODDITIES = [
    ("c=relaxed/relaxed", "c=relaxed/relaxed; unknown=1; z=From:joe"),
    ("h=From:To:Subject:Date", "h=\r\n From :\r\n\tTo : Subject:DATE"),
    ("bh={bh}", "bh={bh}; q=http:dns/txt"),
    ("bh={bh}", "bh={bh}; l=00000000000000000000000054"),
    ("bh={bh}", f"bh={{bh}}; i=joe=40home@sub.{DOMAIN}"),
    ("bh={bh}", f"bh={{bh}}; i=j\u00f6e@{DOMAIN.upper()}"),
    ("bh={bh}", "bh={bh}; t=0; x=999999999999"),
    ("v=1; ", "\r\n v =\r\n 1 ;\t"),
    (f"d={DOMAIN}", f"d={DOMAIN.upper()}"),
]


@pytest.mark.parametrize(("old", "new"), TAG_ODDITIES, ids=[repr(new)[:40] for _, new in TAG_ODDITIES])
def test_a_signature_with_an_unusual_tag_passes(old: str, new: str) -> None:
    """RFC 6376 sections 3.2 (FWS) and 3.5: unknown tags are ignored."""
    assert result_of(with_tag(old, new)).result is Result.PASS


def test_a_domain_in_u_form_is_looked_up_in_a_form() -> None:
    """RFC 8616 section 5: `d=` and `s=` may hold U-labels."""
    message = sign_tags(TAGS.replace(DOMAIN, "bücher.example"))
    result = result_of(message, {"rsa._domainkey.xn--bcher-kva.example": RSA_2048_RECORD})
    assert (result.result, result.domain) == (Result.PASS, "xn--bcher-kva.example")


# Seconds since the epoch, and what the signature comes to then.
TIMES = [
    ("x=1800000000", 1_800_000_000.0, Result.PASS, ""),
    ("x=1800000000", 1_800_003_600.0, Result.PASS, ""),
    ("x=1800000000", 1_800_003_601.0, Result.POLICY, "it has expired"),
    ("t=1800000000", 1_799_996_400.0, Result.PASS, ""),
    ("t=1800000000", 1_799_996_399.0, Result.POLICY, "it was made in the future"),
    ("t=0", 1_800_000_000.0, Result.PASS, ""),
]


@pytest.mark.parametrize(("tag", "now", "result", "problem"), TIMES)
def test_time_is_told_with_an_allowance_for_clocks(tag: str, now: float, result: Result, problem: str) -> None:
    """RFC 6376 section 3.5: a receiver "MAY" consider such a signature invalid, and may add a fudge factor."""
    found = result_of(sign_tags(f"{TAGS}; {tag}"), now=now)
    assert (found.result, found.problem) == (result, problem)


def test_a_changed_body_is_a_fail_though_the_key_could_not_be_looked_up() -> None:
    """RFC 6376 section 6.1.3: no key makes the hash right, so there is nothing to try again for."""
    question = f"rsa._domainkey.{DOMAIN}"
    result = result_of(sign() + b"More.\r\n", {question: Outcome.FAILURE})
    assert (result.result, result.problem) == (Result.FAIL, "the body was changed")


PADDING = b"n=" + b"x" * 4096 + b"; "

# What the DNS has at the selector, and what the signature comes to.
KEYS: list[tuple[str, bytes | Sequence[bytes] | Outcome, Result, str]] = [
    ("no such name", Outcome.NXDOMAIN, Result.PERMERROR, "no key at this selector"),
    ("no such record", Outcome.NODATA, Result.PERMERROR, "no key at this selector"),
    ("no answer", Outcome.FAILURE, Result.TEMPERROR, "could not be looked up: nobody answers"),
    ("revoked", b"v=DKIM1; p=", Result.PERMERROR, "revoked"),
    ("no p=", b"v=DKIM1; k=rsa", Result.PERMERROR, "no p="),
    ("empty", b"", Result.PERMERROR, "no p="),
    ("another version", RSA_2048_RECORD.replace(b"DKIM1", b"DKIM2"), Result.PERMERROR, "no DKIM key"),
    ("unknown type", RSA_2048_RECORD.replace(b"k=rsa", b"k=dsa"), Result.PERMERROR, "unknown type"),
    ("another type", ED25519_RECORD, Result.PERMERROR, "the key is for ed25519"),
    ("RSA as Ed25519", RSA_2048_RECORD.replace(b"k=rsa", b"k=ed25519"), Result.PERMERROR, "no Ed25519 key"),
    ("Ed25519 as RSA", ED25519_RECORD.replace(b"k=ed25519", b"k=rsa"), Result.PERMERROR, "no RSA key"),
    ("not for SHA-256", b"h=sha1; " + RSA_2048_RECORD, Result.PERMERROR, "not for SHA-256"),
    ("for SHA-256 too", b"h=sha1:sha256; " + RSA_2048_RECORD, Result.PASS, ""),
    ("not for mail", b"s=tlsrpt; " + RSA_2048_RECORD, Result.PERMERROR, "not for mail"),
    ("for mail too", b"s=tlsrpt : email; " + RSA_2048_RECORD, Result.PASS, ""),
    ("for everything", b"s=*; " + RSA_2048_RECORD, Result.PASS, ""),
    ("a tag twice", b"k=rsa; " + RSA_2048_RECORD, Result.PERMERROR, "k= occurs twice"),
    ("not base64", RSA_2048_RECORD.replace(b"p=", b"p=*"), Result.PERMERROR, "not base64"),
    ("bits lost", RSA_2048_RECORD[:-8], Result.PERMERROR, "no RSA key"),
    ("implicit k=", RSA_2048_RECORD.replace(b"k=rsa; ", b""), Result.PASS, ""),
    ("without v=", RSA_2048_RECORD.replace(b"v=DKIM1; ", b""), Result.PASS, ""),
    ("as RSAPublicKey", dkimpy_file("2048_testkey_wo_markers.pub.rsa.txt").strip(), Result.PASS, ""),
    ("blanks in p=", RSA_2048_RECORD.replace(b"MIIB", b" M I\tIB "), Result.PASS, ""),
    ("another key", RSA_1024_RECORD, Result.FAIL, "another key"),
    ("no DKIM key first", [b"v=spf1 -all", RSA_2048_RECORD], Result.PASS, ""),
    ("an old key first", [RSA_1024_RECORD, RSA_2048_RECORD], Result.PASS, ""),
    ("a revoked key first", [b"p=", RSA_2048_RECORD], Result.PASS, ""),
    ("no DKIM key at all", [b"v=spf1 -all", b"hello"], Result.PERMERROR, "no DKIM key"),
    ("a hundred records", [b"v=spf1 -all"] * 100 + [RSA_2048_RECORD], Result.PERMERROR, "no DKIM key"),
    ("a record too large", PADDING + RSA_2048_RECORD, Result.PERMERROR, "larger than 4096 octets"),
    ("a weak key", rsa_record(512), Result.PERMERROR, "512 bits is too weak"),
    ("a weak key, almost", rsa_record(1023), Result.PERMERROR, "1023 bits is too weak"),
    ("a large key", rsa_record(4097), Result.PERMERROR, "4097 bits is larger"),
    ("a huge key", rsa_record(16_384), Result.PERMERROR, "16384 bits is larger"),
    ("a large exponent", rsa_record(2048, (1 << 32) + 1), Result.PERMERROR, "exponent"),
    ("a huge exponent", rsa_record(2048, (1 << 2000) + 1), Result.PERMERROR, "exponent"),
    ("an exponent of 1", rsa_record(2048, 1), Result.PERMERROR, "no RSA key"),
    ("an even exponent", rsa_record(2048, 4), Result.PERMERROR, "no RSA key"),
    ("the largest key", rsa_record(4096, (1 << 32) - 1), Result.FAIL, "another key"),
]


@pytest.mark.parametrize(("record", "result", "problem"), [row[1:] for row in KEYS], ids=[row[0] for row in KEYS])
def test_a_key_record_decides(record: bytes | Sequence[bytes] | Outcome, result: Result, problem: str) -> None:
    """RFC 6376 sections 3.6.1 and 6.1.2; RFC 8301 section 3.2."""
    found = result_of(sign(), {KEY_NAME: record})
    assert found.result is result
    assert problem in found.problem
    assert len(found.evidence) == 1


def test_the_size_of_a_key_that_was_refused_is_in_the_result() -> None:
    """For whoever asks why."""
    assert result_of(sign(), {KEY_NAME: rsa_record(16_384)}).key_bits == 16_384


@pytest.mark.parametrize(("bits", "exponent_bits"), [(16_384, 16_000), (16_384, 17), (2048, 2000)])
def test_a_hostile_key_costs_no_arithmetic(bits: int, exponent_bits: int) -> None:
    """A 16,384-bit key with a huge exponent took dkimpy 9 s for one signature."""
    record = rsa_record(bits, (1 << (exponent_bits - 1)) + 1)
    began = time.process_time()
    assert result_of(sign_tags(TAGS), {KEY_NAME: record}).result is Result.PERMERROR
    assert time.process_time() - began < 0.5


def test_bounds_on_keys_can_be_narrowed() -> None:
    """Config: `minimum_rsa_bits`."""
    message = sign(selector="test", key=RSA_1024)
    assert result_of(message).result is Result.PASS
    assert result_of(message, options=DkimOptions(minimum_rsa_bits=2048)).result is Result.PERMERROR


def test_a_key_for_tests_passes_and_is_noted_unless_config_says_no() -> None:
    """RFC 6376 section 3.6.1, `t=y`."""
    records = {KEY_NAME: b"t=y; " + RSA_2048_RECORD}
    result = result_of(sign(), records)
    assert (result.result, result.is_testing) == (Result.PASS, True)
    assert "the key is for tests (t=y)" in result.notes
    assert result_of(sign(), records, DkimOptions(allows_testing_keys=False)).result is Result.POLICY


STRICT = [
    (f"i=joe@{DOMAIN}", Result.PASS),
    (f"i=joe@sub.{DOMAIN}", Result.PERMERROR),
    (f"i=@{DOMAIN}", Result.PASS),
    ("r=y", Result.PASS),
]


@pytest.mark.parametrize(("tag", "result"), STRICT)
def test_a_strict_key_is_for_its_own_domain_only(tag: str, result: Result) -> None:
    """RFC 6376 section 3.6.1, `t=s`: the domain of `i=` "MUST NOT be a subdomain of d=", and is `d=` by default."""
    records = {KEY_NAME: b"t=y:s; " + RSA_2048_RECORD}
    assert result_of(sign_tags(f"{TAGS}; {tag}"), records).result is result


def test_no_more_signatures_are_tried_than_the_bound_says() -> None:
    """Each costs a look-up and a sum. Those that are not tried are said to exist."""
    message = MESSAGE
    for _ in range(7):
        message = sign(message, fields=["from", "subject"])
    results = results_of(message)
    assert [result.result for result in results] == [Result.PASS] * 5 + [Result.NEUTRAL]
    assert results[-1].problem.startswith("2 more signatures were not tried")
    assert len(results_of(message, options=DkimOptions(maximum_signatures=7))) == 7


def test_readable_tags_of_a_broken_signature_are_in_the_result() -> None:
    """For the log, and for whoever wonders whose signature it was."""
    result = result_of(with_tag("v=1", "v=3"))
    assert (result.domain, result.selector, result.algorithm) == (DOMAIN, "rsa", "rsa-sha256")
    assert len(result.signature) == 8


@pytest.mark.parametrize(
    "section",
    [
        b"X: " + b"y" * 300_000 + b"\r\n",
        b"X: y\r\n" * 11_000,
        b"X: y\r\n" + b" y\r\n" * 11_000,
        b"X: " + b"y" * 2_000_000 + b"\r\n",
    ],
    ids=["large", "many fields", "many lines", "larger than is looked at"],
)
@pytest.mark.parametrize("is_above", [True, False])
def test_a_header_section_that_nobody_sends_is_a_permerror(section: bytes, is_above: bool) -> None:
    """Nothing is hashed of it."""
    message = section + sign() if is_above else sign(section + MESSAGE)
    (result,) = results_of(message)
    assert result.result in ({Result.PERMERROR, Result.NONE} if is_above else {Result.PERMERROR})


def test_a_signature_that_nobody_writes_is_a_permerror() -> None:
    """RFC 6376 gives no bound; no honest signature comes near 16 KiB."""
    assert "larger than" in result_of(sign_tags(TAGS + "; z=" + "x" * 20_000)).problem


def test_many_names_in_h_cost_little() -> None:
    """Sixteen kilobytes of names, each different."""
    names = "From:" + ":".join(f"{n:x}" for n in range(3000))
    message = with_tag("h=From:To:Subject:Date", f"h={names}")
    began = time.process_time()
    result_of(message, options=DkimOptions())
    assert time.process_time() - began < 0.5


PIECES = st.sampled_from(
    [
        *(
            b"v=1",
            b"a=rsa-sha256",
            b"a=ed25519-sha256",
            b"c=relaxed/simple",
            b"c=",
            b"d=example",
            b"s=rsa",
            b"s=brisbane",
        ),
        *(
            f"d={DOMAIN}".encode(),
            f"i=@{DOMAIN}".encode(),
            b"i==",
            b"s=\xc3\xa4",
            b"s=.",
            b"h=From:To",
            b"h=from : from",
        ),
        *(
            b"bh=",
            b"bh=" + b"A" * 43 + b"=",
            b"b=",
            b"b=AAAA",
            b"b=A",
            b"l=0",
            b"l=99999999999999999999",
            b"t=1",
            b"x=2",
        ),
        *(b"q=dns/txt", b"=", b";", b";;", b"\r\n ", b" ", b"\t", b"\0", b"\xff", b"\xf0\x9f\x92\xa9", b"\r", b"\n"),
        *(b"k=rsa", b"k=ed25519", b"p=", b"h=sha256", b"t=y:s", b"=?utf-8?q?x?=", b"--", b":", b"@"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PIECES, max_size=16).map(b"; ".join) | st.lists(PIECES | st.binary(max_size=6), max_size=20).map(b"".join),
    st.binary(max_size=40) | st.lists(PIECES, max_size=9).map(b"; ".join),
)
def test_whatever_strangers_write_ends_as_a_result(value: bytes, record: bytes) -> None:
    """A signature, and a key record, that are meant to break us. None of them is a pass."""
    message = b"DKIM-Signature: " + value + b"\r\n" + MESSAGE
    records = {name: [record, b"p=" + record] for name in (*RECORDS, f"rsa._domainkey.{DOMAIN}")}
    try:
        results = results_of(message, records)
    except Missing as missing:
        assert all(re.fullmatch(r"[a-z0-9._-]{1,253}", question.name) for question in missing.questions)
    else:
        assert all(result.result is not Result.PASS for result in results)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_signed_message_that_was_damaged_ends_as_a_result(data: st.DataObject) -> None:
    """Octets replaced, put in or taken out anywhere. If it still passes, dkimpy agrees that nothing signed changed."""
    message = bytearray(RFC_8463)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(message)))
        message[place : place + data.draw(st.integers(0, 4))] = data.draw(
            st.sampled_from(
                [b"", b" ", b"\r\n", b"\r\n ", b";", b"=", b"\0", b"\xff", b"a", b":", b"b=", b"From: x\r\n"]
            )
        )
    stored = re.sub(rb"\r\n|\r|\n", b"\r\n", bytes(message))
    try:
        results = results_of(stored)
    except Missing:
        return
    # A field that is written `Name : value` is one for us (RFC 5322 section 4.5.8), and a fault for dkimpy.
    if any(result.result is Result.PASS for result in results) and not re.search(rb"(?m)^[!-9;-~]+[ \t]+:", stored):
        judge = dkim.DKIM(stored)
        for result in results:
            if result.result is Result.PASS:
                assert judge.verify(result.position, dnsfunc=lambda name, timeout=5: RECORDS[name.decode().rstrip(".")])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["simple", "relaxed"]),
    st.sampled_from(["simple", "relaxed"]),
    st.lists(st.sampled_from(["subject", "to", "date", "x-y", "received"]), max_size=6),
    st.lists(st.sampled_from([b"X-Y: 1\r\n", b"x-y:\t2 \r\n", b"X-Y: a\r\n\t b\r\n"]), max_size=3).map(b"".join),
    st.lists(st.sampled_from([b"text", b" ", b"\t", b"\r\n", b".", b"\xff"]), max_size=12).map(b"".join),
)
def test_whatever_dkimpy_signs_passes(header: str, body: str, fields: list[str], above: bytes, text: bytes) -> None:
    """RFC 6376 sections 3.4, 3.7 and 5.4.2, by a second implementation."""
    message = sign(
        above + MESSAGE + text + b"\r\n",
        selector="brisbane",
        key=ED25519,
        algorithm="ed25519-sha256",
        canonicalization=(header, body),
        fields=["from", *fields],
    )
    assert result_of(message, options=DkimOptions(allows_added_fields=True)).result is Result.PASS


def test_reading_says_which_body_hashes_are_needed() -> None:
    """So that they can be taken before, in steps, and only for signatures that can be verified at all."""
    assert not read(content_of(MESSAGE)).forms
    assert not read(content_of(with_tag("v=1", "v=2"))).forms
    assert len(read(content_of(RFC_8463)).forms) == 1


def test_base64_is_read_strictly() -> None:
    """RFC 6376 section 2.10: what is no base64 is not skipped over, or one signature had many spellings."""
    message = sign_tags(TAGS)
    octets = re.search(rb"b=([A-Za-z0-9+/=]+)\r\n", message)
    assert octets is not None
    assert base64.b64decode(octets[1])
    assert result_of(message.replace(octets[1], octets[1][:8] + b"*" + octets[1][8:])).result is Result.PERMERROR


STRICT_KEY = {KEY_NAME: b"t=s; " + RSA_2048_RECORD}
# The table of docs/adr/0007-dkim-verification.md: what dkimpy says (None: it raises), and what we say.
DIFFERENCES: list[tuple[str, bytes, Mapping[str, bytes], bool | None, Result]] = [
    ("From with a blank added", b"From : eve@evil.example\r\n" + SIGNED_ONCE, RECORDS, True, Result.PERMERROR),
    ("a mailbox line", b"From eve@evil.example\r\n" + SIGNED_ONCE, RECORDS, True, Result.PERMERROR),
    ("a field with a blank", b"X-Y : z\r\n" + SIGNED_ONCE, RECORDS, None, Result.PASS),
    ("rsa-sha1", sign(algorithm="rsa-sha1"), RECORDS, True, Result.PERMERROR),
    ("text behind l=", sign(has_length=True) + b"Buy this.\r\n", RECORDS, True, Result.POLICY),
    ("l= too long", sign_tags(TAGS + "; l=1000"), RECORDS, True, Result.PERMERROR),
    ("a second Subject", b"Subject: Buy this\r\n" + SIGNED_ONCE, RECORDS, True, Result.POLICY),
    ("t=s", sign_tags(f"{TAGS}; i=@sub.{DOMAIN}"), STRICT_KEY, True, Result.PERMERROR),
    ("h= of the key", sign(), {KEY_NAME: b"h=sha1; " + RSA_2048_RECORD}, True, Result.PERMERROR),
    ("blanks behind b=", sign_tags(TAGS, behind=b" ; n=x"), RECORDS, False, Result.PASS),
]


@pytest.mark.parametrize(
    ("message", "records", "of_dkimpy", "ours"), [row[1:] for row in DIFFERENCES], ids=[row[0] for row in DIFFERENCES]
)
def test_we_differ_from_dkimpy_where_the_documentation_says_so(
    message: bytes, records: Mapping[str, bytes], of_dkimpy: bool | None, ours: Result
) -> None:
    """Should dkimpy change its mind, the table has to be written anew."""
    assert result_of(message, records).result is ours
    if of_dkimpy is None:
        with pytest.raises(dkim.MessageFormatError):
            dkim.DKIM(message)
    else:
        assert dkimpy_verifies(message, records) is of_dkimpy
