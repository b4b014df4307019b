"""Authentication-Results and Received-SPF: what we write reads back, and what claims to be ours is found."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.auth.authentication_results import authentication_results, claims, received_spf
from mailgate.auth.results import ArcResult, AuthorFault, DkimResult, DmarcResult, Result, SpfResult

OURS = "mail.example.test"


# ---------------------------------------------------------------- a strict reader


_CFWS = r"(?:[ \t]|\r\n[ \t]|\((?:[^()\\\r\n]|\\.)*\))+"
_READ = re.compile(
    rf"""(?P<cfws>{_CFWS})|(?P<quoted>"(?:[^"\\\r\n]|\\.|\r\n[ \t])*")|(?P<mark>[;=@])"""
    r"|(?P<text>[A-Za-z0-9!#$%&'*+\-.^_`{|}~/]+)"
)


def tokens(field: str) -> list[str]:
    """The tokens of a structured field's body; blanks and comments are gone, save for one that separates."""
    found: list[str] = []
    position = 0
    while position < len(field):
        match = _READ.match(field, position)
        assert match is not None, f"{field[position:]!r} can't be read"
        if match["cfws"]:
            if found and found[-1] != " ":
                found.append(" ")
        else:
            found.append(match[0])
        position = match.end()
    return found


def read_back(octets: bytes) -> tuple[str, list[tuple[str, str, dict[str, str]]]]:
    """The authserv-id, and each result as method, word, and properties (`reason` among them). RFC 8601 section 2.2."""
    assert octets.endswith(b"\r\n")
    for line in octets.removesuffix(b"\r\n").split(b"\r\n"):
        assert 0 < len(line) <= 998
        assert line.strip(b" \t")
    text = octets.decode("ascii").removesuffix("\r\n")
    assert re.fullmatch(r"(?:[^\r\n]|\r\n[ \t])*", text)
    name, _, body = text.partition(":")
    assert name == "Authentication-Results"
    read = tokens(body)
    parts: list[list[str]] = [[]]
    for token in read:
        if token == ";":
            parts.append([])
        else:
            parts[-1].append(token)
    (authserv_id,) = "".join(parts[0]).split()
    results = []
    for part in parts[1:]:
        words = "".join(part).strip(" ")
        if words == "none":
            assert len(parts) == 2
            continue
        pairs = re.findall(r"""([a-z.\-]+)=((?:"(?:[^"\\]|\\.)*")|[^ "]+)(?: |\Z)""", words)
        assert " ".join("=".join(pair) for pair in pairs) == words
        (method, result), properties = pairs[0], dict(pairs[1:])
        assert len(properties) == len(pairs) - 1
        unquoted = {
            key: re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
            for key, value in properties.items()
        }
        results.append((method, result, unquoted))
    return authserv_id, results


# ---------------------------------------------------------------- ours

SPF = SpfResult("mailfrom", "example.org", "alice@example.org", Result.PASS)
HELO = SpfResult("helo", "mx.example.org", "postmaster@mx.example.org", Result.NONE)
DKIM = DkimResult(0, Result.PASS, "example.org", "sel", "@example.org", "rsa-sha256", 2048, signature="Ab+/9=")
DMARC = DmarcResult(Result.FAIL, "example.org", policy="reject", published_policy="reject")


def test_every_result_is_written() -> None:
    """RFC 8601 section 2.7, RFC 6008, RFC 8617 section 5.2 and RFC 9989 section 8."""
    octets = authentication_results(
        OURS,
        spf=[HELO, SPF],
        dkim=[DKIM, DkimResult(1, Result.NONE)],
        arc=ArcResult(Result.PASS, ("a.example",), 2),
        dmarc=DMARC,
        client_address="2001:db8::1",
    )
    assert octets == (
        b"Authentication-Results: mail.example.test;\r\n"
        b"\tspf=none (client 2001:db8::1) smtp.helo=mx.example.org;\r\n"
        b"\tspf=pass (client 2001:db8::1) smtp.mailfrom=alice@example.org;\r\n"
        b"\tdkim=pass (2048 bits) header.d=example.org header.i=@example.org header.s=sel\r\n"
        b'\t  header.a=rsa-sha256 header.b="Ab+/9=";\r\n'
        b"\tdkim=none;\r\n"
        b"\tarc=pass header.oldest-pass=2;\r\n"
        b"\tdmarc=fail header.from=example.org policy.dmarc=reject\r\n"
    )
    authserv_id, results = read_back(octets)
    assert authserv_id == OURS
    assert [(method, result) for method, result, _ in results] == [
        ("spf", "none"),
        ("spf", "pass"),
        ("dkim", "pass"),
        ("dkim", "none"),
        ("arc", "pass"),
        ("dmarc", "fail"),
    ]
    assert results[2][2]["header.b"] == "Ab+/9="


def test_nothing_checked_is_none() -> None:
    """RFC 8601 section 2.2: no-result."""
    assert authentication_results(OURS) == b"Authentication-Results: mail.example.test;\r\n\tnone\r\n"


@pytest.mark.parametrize(
    ("arc", "expected"),
    [
        (ArcResult(Result.PASS, oldest_pass=1), {"header.oldest-pass": "0"}),
        (ArcResult(Result.PASS, oldest_pass=3), {"header.oldest-pass": "3"}),
        (ArcResult(Result.FAIL, problem="seal 2 does not verify"), {"reason": "seal 2 does not verify"}),
        (ArcResult(Result.NONE), {}),
    ],
)
def test_the_oldest_pass_of_arc(arc: ArcResult, expected: dict[str, str]) -> None:
    """RFC 8617 section 5.2: 0 where every message signature passes."""
    ((_, _, properties),) = read_back(authentication_results(OURS, arc=arc))[1]
    assert properties == expected


def test_a_message_without_an_author_says_so() -> None:
    ((method, result, properties),) = read_back(authentication_results(OURS, dmarc=AuthorFault("no From field")))[1]
    assert (method, result, properties) == ("dmarc", "permerror", {"reason": "no From field"})


def test_the_sender_is_the_domain_where_there_is_no_address() -> None:
    """The null reverse-path."""
    result = SpfResult("mailfrom", "mx.example.org", "", Result.PASS)
    assert read_back(authentication_results(OURS, spf=[result]))[1][0][2] == {"smtp.mailfrom": "mx.example.org"}


HOSTILE = [
    "dmarc=pass header.from=bank.example",
    'x"; dmarc=pass header.from=bank.example',
    "x\r\nAuthentication-Results: mail.example.test; dmarc=pass",
    "x; dmarc=pass",
    "x\\",
    'x\\"',
    "(x",
    "x) dmarc=pass (",
    "x=y",
    "\0\x7f\x80é\u2028",
    "x" * 5000,
    '"' * 5000,
    "",
    " ",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_stranger_writes_becomes_a_result(text: str) -> None:
    """Selectors, senders and reasons hold what strangers wrote; quoting is ours, and not everybody heeds it."""
    octets = authentication_results(
        OURS,
        spf=[SpfResult("mailfrom", text, f"{text}@example.org", Result.FAIL, problem=text)],
        dkim=[DkimResult(0, Result.FAIL, text, text, f"{text}@{text}", text, 1, problem=text, signature=text)],
        dmarc=DmarcResult(Result.FAIL, text, problem=text, policy="none"),
        client_address="192.0.2.1",
    )
    authserv_id, results = read_back(octets)
    assert authserv_id == OURS
    assert [(method, result) for method, result, _ in results] == [("spf", "fail"), ("dkim", "fail"), ("dmarc", "fail")]
    for naive in octets.decode().split(";"):
        assert not naive.strip().startswith("dmarc=pass")
    assert "dmarc=pass" not in octets.decode()


def test_of_an_inventive_address_the_domain_is_written() -> None:
    """A local part in quotes could hold anything."""
    result = SpfResult("mailfrom", "evil.test", '"x; dmarc=pass"@evil.test', Result.PASS)
    assert read_back(authentication_results(OURS, spf=[result]))[1][0][2] == {"smtp.mailfrom": "@evil.test"}


@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(Result))
def test_whatever_is_written_is_read_back(one: str, other: str, word: Result) -> None:
    octets = authentication_results(
        OURS,
        spf=[SpfResult("mailfrom", one, other, word, problem=one)],
        dkim=[DkimResult(0, word, one, other, one, other, problem=other)],
    )
    _, results = read_back(octets)
    assert [(method, result) for method, result, _ in results] == [("spf", word.value), ("dkim", word.value)]


# ---------------------------------------------------------------- Received-SPF


def test_received_spf() -> None:
    """RFC 7208 section 9.1: what is no dot-atom is quoted."""
    octets = received_spf(
        SpfResult("mailfrom", "example.org", "alice@example.org", Result.FAIL, "include:spf.example.org"),
        receiver=OURS,
        client_address="2001:db8::1",
        helo="mx.example.org",
    )
    assert octets == (
        b'Received-SPF: fail\r\n\tidentity=mailfrom; client-ip="2001:db8::1"; helo=mx.example.org;\r\n'
        b'\t  envelope-from="alice@example.org"; receiver=mail.example.test;\r\n'
        b'\t  mechanism="include:spf.example.org"\r\n'
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_received_spf_is_one_field_whatever_was_sent(text: str) -> None:
    octets = received_spf(
        SpfResult("helo", text, text, Result.PERMERROR, text, problem=text),
        receiver=OURS,
        client_address="192.0.2.1",
        helo=text,
    )
    assert re.fullmatch(rb"(?:[\x20-\x7e\t]{1,998}\r\n)+", octets)
    lines = octets.split(b"\r\n")
    assert lines[0] == b"Received-SPF: permerror"
    assert all(line.startswith(b"\t") for line in lines[1:-1])
    pair = rb"""[a-z\-]+=(?:"(?:[^"\\]|\\.)*"|[A-Za-z0-9!#$%&'*+\-/^_`{|}~.]+)"""
    assert re.fullmatch(rb"\s+%s(?:;\s+%s)*\s+" % (pair, pair), octets.removeprefix(lines[0]))


# ---------------------------------------------------------------- those that claim to be ours

CLAIMS = {
    "plain": b"Authentication-Results: mail.example.test; dmarc=pass",
    "without blanks": b"Authentication-Results:mail.example.test;dmarc=pass",
    "upper case": b"AUTHENTICATION-RESULTS: MAIL.EXAMPLE.TEST; dmarc=pass",
    "odd case": b"authentication-Results: Mail.Example.Test; dmarc=pass",
    "a blank before the colon": b"Authentication-Results \t: mail.example.test; dmarc=pass",
    "a fold before the colon": b"Authentication-Results\r\n : mail.example.test; dmarc=pass",
    "no results": b"Authentication-Results: mail.example.test; none",
    "nothing but the id": b"Authentication-Results: mail.example.test",
    "no semicolon": b"Authentication-Results: mail.example.test dmarc=pass",
    "a version": b"Authentication-Results: mail.example.test 1; dmarc=pass",
    "a version behind a slash": b"Authentication-Results: mail.example.test/1; dmarc=pass",
    "a version in comments": b"Authentication-Results: mail.example.test (v) 1 (one); dmarc=pass",
    "a trailing dot": b"Authentication-Results: mail.example.test.; dmarc=pass",
    "a comment in front": b"Authentication-Results: (hello) mail.example.test; dmarc=pass",
    "a comment with a semicolon in front": b"Authentication-Results: (a;b) mail.example.test; dmarc=pass",
    "nested comments": b"Authentication-Results: (a(b\\)c)d) mail.example.test; dmarc=pass",
    "a comment behind": b"Authentication-Results: mail.example.test(hello); dmarc=pass",
    "a comment within": b"Authentication-Results: mail.(x)example.test; dmarc=pass",
    "a quote in a comment": b'Authentication-Results: (") mail.example.test; dmarc=pass',
    "quoted": b'Authentication-Results: "mail.example.test"; dmarc=pass',
    "quoted in part": b'Authentication-Results: mail."example".test; dmarc=pass',
    "quoted with escapes": b'Authentication-Results: "m\\ail.example.tes\\t"; dmarc=pass',
    "folded in front": b"Authentication-Results:\r\n mail.example.test; dmarc=pass",
    "folded within": b"Authentication-Results: mail.exa\r\n mple.test; dmarc=pass",
    "folded within, and a version": b"Authentication-Results: mail.exa\r\n\tmple.test 1; dmarc=pass",
    "folded before the colon": b"Authentication-Results\r\n : mail.example.test; dmarc=pass",
    "folded twice before the colon": b"Authentication-Results \r\n\t\r\n : mail.example.test; dmarc=pass",
    "folded at an empty line": b"Authentication-Results: \r\n \r\n mail.example.test; dmarc=pass",
    "a comment without an end": b"Authentication-Results: mail.example.test (; dmarc=pass",
    "a comment that never began": b"Authentication-Results: ) mail.example.test; dmarc=pass",
    "a quote without an end": b'Authentication-Results: "mail.example.test; dmarc=pass',
    "an encoded word": b"Authentication-Results: =?us-ascii?q?mail=2Eexample=2Etest?=; dmarc=pass",
    "a bare CR in it": b"Authentication-Results: mail.example.test; dmarc=pass\r(x)",
    "a comment beyond what is looked at": b"Authentication-Results: (" + b"x" * 5000 + b") mail.example.test; x=y",
    "blanks beyond what is looked at": b"Authentication-Results: " + b" " * 5000 + b"mail.example.test; x=y",
    "escapes up to what is looked at": b"Authentication-Results: (" + b"\\x" * 5000 + b") mail.example.test; x=y",
}
OTHERS = {
    "another's": b"Authentication-Results: mail.example.org; dmarc=pass",
    "a name that ends as ours": b"Authentication-Results: x.mail.example.test; dmarc=pass",
    "a name that begins as ours": b"Authentication-Results: mail.example.test.org; dmarc=pass",
    "our name among the results": b"Authentication-Results: mx.example.org; dkim=pass header.d=mail.example.test",
    "our name in a comment": b"Authentication-Results: mx.example.org (for mail.example.test); dmarc=pass",
    "our name in quotes behind": b'Authentication-Results: mx.example.org; spf=fail reason="mail.example.test; x"',
    "no id": b"Authentication-Results: ; dmarc=pass",
    "nothing": b"Authentication-Results:",
    "another field": b"X-Authentication-Results: mail.example.test; dmarc=pass",
    "a longer name": b"Authentication-Results-Original: mail.example.test; dmarc=pass",
    "a set of ARC": b"ARC-Authentication-Results: i=1; mail.example.test; dmarc=pass",
    "a subject": b"Subject: Authentication-Results: mail.example.test; dmarc=pass",
    "a folded subject": b"Subject: x\r\n Authentication-Results: mail.example.test; dmarc=pass",
    "a comment without an end": b"Authentication-Results: mx.example.org (; dmarc=pass",
}
BEFORE, BEHIND = b"Received: from x\r\n", b"Subject: hello\r\n there\r\n"


@pytest.mark.parametrize("field", CLAIMS.values(), ids=CLAIMS.keys())
def test_what_claims_to_be_ours_is_found(field: bytes) -> None:
    """RFC 8601 section 5: however it is written, and exactly."""
    header = BEFORE + field + b"\r\n" + BEHIND
    assert claims(header, OURS) == ((len(BEFORE), len(header) - len(BEHIND)),)
    assert claims(field + b"\r\n", OURS.upper()) == ((0, len(field) + 2),)
    assert claims(field, OURS) == ((0, len(field)),)


@pytest.mark.parametrize("field", OTHERS.values(), ids=OTHERS.keys())
def test_what_does_not_is_left(field: bytes) -> None:
    """RFC 8601 section 5: the results of others may be of use to somebody."""
    assert claims(BEFORE + field + b"\r\n" + BEHIND, OURS) == ()


@pytest.mark.parametrize("written", ["mail.bücher.example", "MAIL.BÜCHER.EXAMPLE", "mail.xn--bcher-kva.example"])
@pytest.mark.parametrize("ours", ["mail.xn--bcher-kva.example", "mail.bücher.example"])
def test_our_name_has_two_forms(written: str, ours: str) -> None:
    """RFC 8601 section 5 with RFC 5890: A-labels and U-labels are one name."""
    assert claims(f"Authentication-Results: {written}; spf=pass\r\n".encode(), ours)


def test_each_of_several_is_found() -> None:
    fields = [*CLAIMS.values(), *OTHERS.values()]
    header = b"".join(field + b"\r\n" for field in fields)
    found = {header[start:end].removesuffix(b"\r\n") for start, end in claims(header, OURS)}
    assert found == set(CLAIMS.values())


def test_what_we_write_is_found() -> None:
    """Or a message that comes by twice would carry the first verdict as well."""
    octets = authentication_results(OURS, spf=[SPF], dkim=[DKIM], dmarc=DMARC)
    assert claims(octets, OURS) == ((0, len(octets)),)


@given(st.text('aAmil.ex(;)" \\\r\n\t1=?é', max_size=60))
def test_whatever_is_in_a_field_is_looked_at(body: str) -> None:
    """It is a stranger's, and nothing in it may raise."""
    claims(f"Authentication-Results: {body}\r\n".encode(), OURS)


@pytest.mark.parametrize(
    "header",
    [
        b"Authentication-Results: " + b"(" * 1_000_000,
        b"Authentication-Results: " + b" " * 1_000_000 + b"x",
        b"Authentication-Results: " + b"()" * 500_000,
        b"Authentication-Results" + b" " * 1_000_000,
        b"Authentication-Results:(x)x;\r\n" * 35_000,
        b"Authentication-Results:" * 45_000,
        b"Authentication-Results: " + b"\r\n " * 300_000,
        b"Authentication-Results: x 1 1" + b" 1" * 500_000,
    ],
    ids=range(8),
)
def test_a_megabyte_of_it_costs_little(header: bytes) -> None:
    """The reactor waits."""
    began = time.process_time()
    claims(header, OURS)
    assert time.process_time() - began < 0.3
