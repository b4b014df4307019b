"""Our DKIM signatures: dkimpy, OpenDKIM and our own verifier take them, and none once something was added."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import dkim
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.auth.canonical import MalformedHeader, body_hashes
from mailgate.auth.dkim import check, read
from mailgate.auth.private_key import PrivateKey, generate_key, load_private_key
from mailgate.auth.results import DkimResult, Result
from mailgate.auth.signer import BODY_FORM, sign
from tests.support.signed import MESSAGE, answers_of, content_of
from tests.unit.auth.test_dkim import RFC_8463

DOMAIN = "example.test"
NOW = 1_600_000_000.0  # dkimpy and OpenDKIM have clocks of their own: it has to be past


@cache
def keys() -> tuple[PrivateKey, PrivateKey]:
    """A key of each type."""
    return generate_key(DOMAIN, "r1", "rsa"), generate_key(DOMAIN, "e1", "ed25519")


def records() -> dict[str, bytes]:
    return {key.record_name: key.record.encode() for key in keys()}


def signed(message: bytes = MESSAGE, now: float = NOW) -> bytes:
    content = content_of(message)
    return sign(content.header(), body_hashes(content, [BODY_FORM]), keys(), now) + message


def results_of(message: bytes) -> tuple[DkimResult, ...]:
    return check(content_of(message), answers_of(records()), now=NOW)


def dkimpy_verifies(message: bytes, position: int) -> bool:
    known = records()
    verifier = dkim.DKIM(message)
    return bool(verifier.verify(position, dnsfunc=lambda name, timeout=5: known.get(name.decode().rstrip("."))))


def passes(message: bytes) -> list[bool]:
    return [result.result is Result.PASS for result in results_of(message)]


def test_both_signatures_pass_with_dkimpy_and_with_our_verifier() -> None:
    """RFC 8463 section 6: a message may be signed by both algorithms."""
    message = signed()
    assert [result.algorithm for result in results_of(message)] == ["rsa-sha256", "ed25519-sha256"]
    assert passes(message) == [True, True]
    assert [dkimpy_verifies(message, position) for position in (0, 1)] == [True, True]


def test_opendkim_takes_the_rsa_signature(tmp_path: Path) -> None:
    """RFC 6376 section 6, by another hand. Debian's OpenDKIM knows no Ed25519."""
    opendkim = shutil.which("opendkim") or shutil.which("opendkim", path="/usr/sbin")
    if opendkim is None:
        pytest.skip("opendkim is not installed")
    (tmp_path / "keys").write_bytes(b"".join(b"%s %s\n" % (n.encode(), text) for n, text in records().items()))
    (tmp_path / "conf").write_text(f"Mode v\nTestDNSData file:{tmp_path}/keys\n")
    content = content_of(MESSAGE)
    fields = sign(content.header(), body_hashes(content, [BODY_FORM]), keys()[:1], NOW)
    (tmp_path / "message").write_bytes(fields + MESSAGE)
    done = subprocess.run(
        [opendkim, "-x", str(tmp_path / "conf"), "-t", str(tmp_path / "message"), "-v"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert b") succeeded" in done.stdout + done.stderr, done


def test_the_keys_of_rfc_8463_make_the_signatures_of_its_example() -> None:
    """RFC 8463 appendix A: both algorithms give one signature only, so ours must be that of the RFC."""
    message = read(content_of(RFC_8463))
    private = base64.b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    der = bytes.fromhex("302e020100300506032b657004220420") + private  # RFC 8410 section 7
    key = load_private_key("football.example.com", "brisbane", der)
    assert key.record == "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    (candidate,) = [each for each in message.candidates if each.signature.algorithm == key.algorithm]
    digest = message.header.sha256(candidate.signature, candidate.own)
    assert key.signature_of(digest) == candidate.signature.octets


def test_a_kept_key_is_the_same_key() -> None:
    """RFC 5958: what was written is read."""
    for key in keys():
        again = load_private_key(key.domain, key.selector, key.octets)
        assert (again.record, again.type, again.record_name) == (key.record, key.type, key.record_name)


def test_octets_that_hold_no_key_are_told() -> None:
    """A key that nobody signs mail with."""
    with pytest.raises(ValueError, match=r".+"):
        load_private_key(DOMAIN, "r1", b"0\x00")


def test_the_fields_are_short_lines_that_end_in_crlf() -> None:
    """RFC 5322 section 2.1.1: 78 characters, and CR and LF only together."""
    fields = signed()[: -len(MESSAGE)]
    assert fields.endswith(b"\r\n")
    lines = fields.split(b"\r\n")[:-1]
    assert max(map(len, lines)) <= 78
    assert all(line.startswith((b"DKIM-Signature: ", b"\t")) and b"\n" not in line for line in lines)


def test_the_tags_are_those_that_a_careful_signer_writes() -> None:
    """RFC 6376 section 3.5: no l=, which leaves what is behind it unsigned; no i=, whose default is right; t=."""
    field = signed()[: -len(MESSAGE)].replace(b"\r\n\t", b"").split(b"\r\n")[0]
    tags = dict(tag.strip().split(b"=", 1) for tag in field.partition(b":")[2].split(b";"))
    assert list(tags) == [b"v", b"a", b"c", b"d", b"s", b"t", b"h", b"bh", b"b"]
    assert (tags[b"c"], tags[b"t"], tags[b"d"]) == (b"relaxed/relaxed", b"1600000000", DOMAIN.encode())


@pytest.mark.parametrize(
    "name",
    [
        b"From",
        b"To",
        b"Cc",
        b"Subject",
        b"Date",
        b"Message-ID",
        b"Reply-To",
        b"In-Reply-To",
        b"References",
        b"MIME-Version",
        b"Content-Type",
        b"Content-Transfer-Encoding",
    ],
)
def test_an_added_field_breaks_every_signature(name: bytes) -> None:
    """RFC 6376 section 8.15: a second From, or a first Reply-To, is not what was signed. dkimpy judges."""
    forged = name + b": mallory@example.net\r\n" + signed()
    position_of_ours = [dkimpy_verifies(forged, position) for position in (0, 1)]
    assert position_of_ours == [False, False]
    assert not any(passes(forged))


@pytest.mark.parametrize("field", [b"Received: from a by b", b"List-Id: <x.example.org>", b"Sender: <l@example.org>"])
def test_a_field_that_a_list_or_a_host_adds_breaks_none(field: bytes) -> None:
    """RFC 6376 section 5.4: what is changed on the way as a matter of course is not signed against additions."""
    assert passes(field + b"\r\n" + signed()) == [True, True]


def test_a_changed_body_or_field_breaks_both() -> None:
    """RFC 6376 section 3.7."""
    message = signed()
    assert not any(passes(message.replace(b"We lost", b"We won")))
    assert not any(passes(message.replace(b"Is dinner", b"Is lunch")))


def test_fields_that_occur_several_times_are_all_signed() -> None:
    """RFC 6376 section 5.4.2: from the last to the first."""
    message = signed(b"Resent-To: b@example.org\r\nResent-To: a@example.org\r\n" + MESSAGE)
    assert passes(message) == [True, True]
    assert not any(passes(message.replace(b"b@example.org", b"c@example.org")))
    assert [dkimpy_verifies(message, position) for position in (0, 1)] == [True, True]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"To: a@example.org\r\n", "no From"),
        (b"From: a@example.test\r\nFrom: b@example.test\r\n", "several From"),
        (b"From : a@example.test\r\n", "blank before"),
        (b"From: a@example.test\r\nno field\r\n", "no field"),
        (b"From: a@example.test\r\n" + b"Resent-To: a@example.test\r\n" * 300, "more fields"),
        (b"From: a@example.test\r\n" + b"X: y\r\n" * 10_001, "larger"),
    ],
)
def test_a_header_section_that_no_verifier_would_take_is_not_signed(header: bytes, why: str) -> None:
    """RFC 6376 section 5.4: From is signed; section 8.15: once."""
    hashes = body_hashes(content_of(header + b"\r\n"), [BODY_FORM])
    with pytest.raises(MalformedHeader, match=why):
        sign(header, hashes, keys(), NOW)


def test_without_a_key_there_is_no_field() -> None:
    """A domain that has none sends unsigned."""
    assert sign(b"", {}, (), NOW) == b""


_TEXT = st.binary(max_size=60).map(lambda octets: re.sub(rb"[\r\n:\x00]", b"", octets))
_NAMES = st.sampled_from([b"To", b"CC", b"subject", b"X-Thing", b"List-Id", b"Content-Type", b"Received"])
_BODY = st.lists(
    st.sampled_from([b"\r\n", b" ", b"\t", b"word", b" \r\n", b".", b"\xc3\xa4", b"\r\n\r\n", b"-- \r\n"]), max_size=30
).map(b"".join)


@given(st.lists(st.tuples(_NAMES, _TEXT, st.booleans()), max_size=12), _BODY)
@settings(max_examples=60, deadline=None)
def test_any_message_signs_and_verifies(fields: list[tuple[bytes, bytes, bool]], body: bytes) -> None:
    """RFC 6376 sections 3.4.2 and 3.4.4: whatever blanks, folds and octets there are."""
    header = b"From: a@example.test\r\n"
    for name, text, is_folded in fields:
        header += name + b": " + (b"x\r\n\t" if is_folded else b"") + text + b"\r\n"
    message = signed(header + b"\r\n" + body)
    results = results_of(message)
    assert [(result.result, result.problem) for result in results[:2]] == [(Result.PASS, "")] * 2
