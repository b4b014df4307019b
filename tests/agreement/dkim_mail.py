"""Signed mail: every tag, form and key, right and wrong, and what happens to a message on its way.

Standards: RFC 6376 sections 3.4 to 3.6, 5.4, 6.1 and 8; RFC 8301; RFC 8463.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from random import Random

from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from tests.agreement.case import Case, fields, message
from tests.agreement.signing import (
    KEYS,
    SIGNED_FIELDS,
    Forms,
    Tags,
    body_hash,
    canonical_length,
    p_of,
    signature_field,
)
from tests.support.signed import rsa_record

DOMAIN = "sender.test"
_FORMS: tuple[Forms, ...] = tuple(itertools.product(("simple", "relaxed"), ("simple", "relaxed")))
_PAST, _FUTURE = "1700000000", "4000000000"

_RSA, _ED = p_of("r2048"), p_of("ed")

# Key records of the selectors that are not good keys, or are in an unusual way.
_RECORDS = {
    "revoked": b"v=DKIM1; k=rsa; p=",
    "no-p": b"v=DKIM1; k=rsa",
    "not-base64": b"v=DKIM1; k=rsa; p=%%%%",
    "not-a-key": b"v=DKIM1; k=rsa; p=aGVsbG8gd29ybGQ=",
    "dsa": f"v=DKIM1; k=dsa; p={_RSA}".encode(),
    "other-type": f"v=DKIM1; k=ed25519; p={_ED}".encode(),
    "sha1": f"v=DKIM1; h=sha1; k=rsa; p={_RSA}".encode(),
    "sha256": f"v=DKIM1; h=sha1:sha256; k=rsa; p={_RSA}".encode(),
    "service": f"v=DKIM1; s=tlsrpt; k=rsa; p={_RSA}".encode(),
    "email": f"v=DKIM1; s=tlsrpt:email; k=rsa; p={_RSA}".encode(),
    "any-service": f"v=DKIM1; s=*; k=rsa; p={_RSA}".encode(),
    "testing": f"v=DKIM1; t=y; k=rsa; p={_RSA}".encode(),
    "strict": f"v=DKIM1; t=s; k=rsa; p={_RSA}".encode(),
    "version": f"v=DKIM2; k=rsa; p={_RSA}".encode(),
    "no-version": f"k=rsa; p={_RSA}".encode(),
    "no-type": f"v=DKIM1; p={_RSA}".encode(),
    "version-last": f"k=rsa; p={_RSA}; v=DKIM1".encode(),
    "notes": f"v=DKIM1; n=all=20yours; g=*; k=rsa; p={_RSA};".encode(),
    "blanks": f"v=DKIM1 ; k = rsa ; p = {_RSA[:100]} {_RSA[100:]} ".encode(),
    "twice": f"v=DKIM1; k=rsa; k=rsa; p={_RSA}".encode(),
    "no-tags": b"this is no key",
    "weak": rsa_record(512),
    "weak-1023": rsa_record(1023),
}


def add_to(zone: Zone) -> None:
    """The records that the cases rest on."""
    zone.add(DOMAIN, RecordType.TXT, b"v=spf1 ip4:192.0.2.1 -all")
    zone.add("_dmarc." + DOMAIN, RecordType.TXT, b"v=DMARC1; p=reject")
    for selector, key in KEYS.items():
        for domain in (DOMAIN, "news." + DOMAIN, "other.test"):
            zone.add(f"{selector}._domainkey.{domain}", RecordType.TXT, key.record)
    for selector, record in _RECORDS.items():
        zone.add(f"{selector}._domainkey.{DOMAIN}", RecordType.TXT, record)
    zone.fail(f"servfail._domainkey.{DOMAIN}")
    zone.add(f"below.nodata._domainkey.{DOMAIN}", RecordType.TXT, b"")
    zone.add(f"alias._domainkey.{DOMAIN}", RecordType.CNAME, f"r2048._domainkey.{DOMAIN}")


def cases(random: Random) -> Iterator[Case]:
    """All of them, once. The client is one that SPF does not know, so that DMARC rests on the signatures."""
    for make in (_intact, _bodies, _on_the_way, _lengths, _tags, _keys, _several, _authors):
        for name, content in make(random):
            yield Case("dkim/" + name, content, client_address="192.0.2.99")


Made = Iterator[tuple[str, bytes]]


def _signed(content: bytes, domain: str = DOMAIN, **options: object) -> bytes:
    return signature_field(content, domain, **options) + content  # type: ignore[arg-type]  # as it takes them


def _intact(random: Random) -> Made:
    yield "unsigned", message(random)
    for forms, key in itertools.product(_FORMS, KEYS):
        yield f"intact {forms[0]}/{forms[1]} {key}", _signed(message(random), forms=forms, key=key)
    for forms in _FORMS:
        content = message(random)
        yield (
            f"folded signature {forms[0]}/{forms[1]}",
            _signed(content, forms=forms, separator=random.choice((";\r\n\t", " ;\r\n ", ";")), is_folded=True),
        )
        yield f"text behind b= {forms[0]}/{forms[1]}", _signed(content, forms=forms, behind="; z=From:bob|To:alice")
    yield "no c=", _signed(message(random), forms=("simple", "simple"), tags={"c": None})
    yield "c=relaxed", _signed(message(random), forms=("relaxed", "simple"), tags={"c": "relaxed"})
    yield "c=simple", _signed(message(random), forms=("simple", "simple"), tags={"c": "simple"})
    yield "name in lower case", _signed(message(random), forms=("relaxed", "relaxed"), name="dkim-signature")
    yield "name in capitals, simple", _signed(message(random), forms=("simple", "simple"), name="DKIM-SIGNATURE")


def _bodies(random: Random) -> Made:
    bodies = {
        "empty": b"",
        "one empty line": b"\r\n",
        "empty lines only": b"\r\n" * 5,
        "blanks only": b" \t \r\n\r\n",
        "blanks at its end": b"Hello.\r\n \r\n\t\r\n",
        "blanks before its text": b"\r\n\r\n \t indented\r\n",
        "a long line": b"x y" * 3000 + b"\r\n",
        "lines of dots": b".\r\n..\r\n.\r\n",
        "octets beyond ASCII": bytes(range(128, 256)) + b"\r\n" + "Grüße\r\n".encode(),
        "a line that looks like a field": b"From: mallory@evil.test\r\n\r\nHello\r\n",
        "form feeds and vertical tabs": b"a\x0b\x0c b \x0b\r\n\x0c\r\n",
    }
    for (name, text), forms in itertools.product(bodies.items(), _FORMS):
        content = b"".join(fields(random, "bob@sender.test")) + b"\r\n" + text
        yield f"body: {name} {forms[0]}/{forms[1]}", _signed(content, forms=forms)


def _replaced(pattern: bytes, by: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        changed, count = re.subn(pattern, by, content, count=1)
        assert count == 1
        return changed

    return change


def _on_the_way(random: Random) -> Made:
    """Something happens to a signed message."""
    changes: dict[str, Callable[[bytes], bytes]] = {
        "body: a word added": lambda content: content + b"Pay here: evil.test\r\n",
        "body: a letter changed": _replaced(rb"\r\nBob\.", b"\r\nBop."),
        "body: a blank added behind a line": _replaced(rb"\r\nBob\.", b"\r\nBob. "),
        "body: a blank doubled": _replaced(rb"\r\nHello there", b"\r\nHello  there"),
        "body: a blank added before a line": _replaced(rb"\r\nBob\.", b"\r\n Bob."),
        "body: empty lines added": lambda content: content + b"\r\n\r\n",
        "body: gone": lambda content: content[: content.index(b"\r\n\r\n") + 4],
        "field: From changed": _replaced(rb"Bob <bob@", b"Rob <bob@"),
        "field: Subject refolded": _replaced(rb"Subject: folded\r\n here", b"Subject: folded here"),
        "field: a blank doubled": _replaced(rb"Subject: ", b"Subject:  "),
        "field: a blank behind": _replaced(rb"14:00:00 \+0000", b"14:00:00 +0000 "),
        "field: name in capitals": _replaced(rb"\r\nSubject:", b"\r\nSUBJECT:"),
        "field: gone": _replaced(rb"\r\nDate: [^\r]*", b""),
        "field: unsigned gone": _replaced(rb"\r\nMessage-ID: [^\r]*", b""),
        "field: unsigned on top": lambda content: b"Received: from a.test\r\n\tby b.test; now\r\n" + content,
        "field: unsigned below": _replaced(rb"\r\n\r\n", b"\r\nX-Spam: no\r\n\r\n"),
        "field: moved to the top": lambda content: (
            b"Date: Mon, 23 Nov 2026 14:00:00 +0000\r\n" + _replaced(rb"\r\nDate: [^\r]*", b"")(content)
        ),
        "field: second Subject on top": lambda content: b"Subject: You have won\r\n" + content,
        "field: second Subject below": _replaced(rb"\r\n\r\n", b"\r\nSubject: You have won\r\n\r\n"),
        "field: second To on top": lambda content: b"To: victim@example.test\r\n" + content,
        "field: an unsigned Reply-To": lambda content: b"Reply-To: mallory@evil.test\r\n" + content,
        "signature: b= changed": _replaced(rb"b=[A-Za-z0-9+/]{4}", b"b=AAAA"),
        "signature: b= refolded": _replaced(rb"b=([A-Za-z0-9+/]{8})", b"b=\\1\r\n\t "),
        "signature: d= changed": _replaced(rb"d=sender\.test", b"d=other.test"),
        "signature: a blank doubled": _replaced(rb"; d=", b";  d="),
    }
    signed_fields = (*SIGNED_FIELDS, "Message-ID", "Subject")
    for name, change in changes.items():
        for forms in _FORMS:
            content = message(random).replace(b"\r\nBob.", b"\r\nHello there\r\nBob.", 1)
            content = re.sub(rb"Subject:(?:[^\r]|\r\n[ \t])*", b"Subject: folded\r\n here", content)
            yield f"{name} {forms[0]}/{forms[1]}", change(_signed(content, forms=forms))
    content = message(random)
    oversigned = _signed(content, signed=signed_fields)
    yield "oversigned", oversigned
    yield "oversigned, second Subject on top", b"Subject: You have won\r\n" + oversigned
    yield "oversigned, second Subject below", _replaced(rb"\r\n\r\n", b"\r\nSubject: x\r\n\r\n")(oversigned)
    yield (
        "two signed fields of a name",
        _signed(b"Comments: one\r\nComments: two\r\n" + content, signed=("From", "Comments", "Comments")),
    )
    yield (
        "one signed field of two of a name",
        _signed(b"Comments: one\r\nComments: two\r\n" + content, signed=("From", "Comments")),
    )
    yield "a signed field that is not there", _signed(content, signed=(*SIGNED_FIELDS, "Reply-To", "X-None"))
    yield "DKIM-Signature is signed", _signed(_signed(content), signed=(*SIGNED_FIELDS, "DKIM-Signature"))


def _lengths(random: Random) -> Made:
    for forms in _FORMS:
        form = f"{forms[0]}/{forms[1]}"
        content = message(random)
        whole = canonical_length(content, forms[1])
        yield f"l= is all {form}", _signed(content, forms=forms, length=whole)
        yield f"l= is all, text behind {form}", _signed(content, forms=forms, length=whole) + b"Pay here\r\n"
        yield f"l= is all, empty lines behind {form}", _signed(content, forms=forms, length=whole) + b"\r\n\r\n"
        yield f"l= is half {form}", _signed(content, forms=forms, length=whole // 2)
        yield (
            f"l= ends early, end changed {form}",
            _signed(content, forms=forms, length=1).replace(b"\nBob.", b"\nBop."),
        )
        yield (
            f"l= is all, start changed {form}",
            _replaced(rb"\r\n\r\n(?=.)", b"\r\n\r\nHello ")(_signed(content, forms=forms, length=whole)),
        )
        yield f"l=0 {form}", _signed(content, forms=forms, length=0)
        yield (
            f"l=0, empty body {form}",
            _signed(content[: content.index(b"\r\n\r\n") + 4], forms=("simple", "relaxed"), length=0),
        )
        yield f"l= is larger {form}", _signed(content, forms=forms, tags={"l": str(whole + 1)})
    content = message(random)
    for name, value in {"not a number": "ten", "negative": "-1", "empty": "", "with zeros": "0010"}.items():
        yield (
            f"l= is {name}",
            _signed(content, tags={"l": value, "bh": body_hash(content, "relaxed", 10 if value == "0010" else None)}),
        )


def _tags(random: Random) -> Made:
    """One tag that is unusual, or wrong."""
    tags: dict[str, Tags] = {
        "t= past": {"t": _PAST},
        "t= future": {"t": _FUTURE},
        "t= no number": {"t": "yesterday"},
        "t= and x= good": {"t": _PAST, "x": _FUTURE},
        "x= past": {"x": _PAST},
        "x= before t=": {"t": _PAST, "x": "1600000000"},
        "x= is t=": {"t": _FUTURE, "x": _FUTURE},
        "x= no number": {"x": "never"},
        "v=2": {"v": "2"},
        "v=1.0": {"v": "1.0"},
        "no v=": {"v": None},
        "no a=": {"a": None},
        "a= unknown": {"a": "rsa-sha512"},
        "a=rsa-sha1": {"a": "rsa-sha1"},
        "a= in capitals": {"a": "RSA-SHA256"},
        "no d=": {"d": None},
        "d= in capitals": {"d": "SENDER.Test"},
        "d= empty": {"d": ""},
        "d= with a final dot": {"d": "sender.test."},
        "d= at the top": {"d": "test"},
        "no s=": {"s": None},
        "s= in capitals": {"s": "R2048"},
        "no h=": {"h": None},
        "h= empty": {"h": ""},
        "h= with blanks": {"h": "From : To:\r\n\tSubject :Date"},
        "h= in capitals": {"h": "FROM:TO:SUBJECT:DATE"},
        "no bh=": {"bh": None},
        "bh= no base64": {"bh": "%%%"},
        "bh= short": {"bh": "aGVsbG8="},
        "no b=": {"b": None},
        "b= empty": {"b": ""},
        "b= no base64": {"b": "%%%"},
        "c= unknown": {"c": "loose/loose"},
        "c= in capitals": {"c": "RELAXED/Relaxed"},
        "q=dns/txt": {"q": "dns/txt"},
        "q= in capitals": {"q": "DNS/TXT"},
        "q= unknown": {"q": "http/json"},
        "q= unknown and dns/txt": {"q": "http/json:dns/txt"},
        "i= the domain": {"i": "@sender.test"},
        "i= a user": {"i": "bob@sender.test"},
        "i= a user in capitals": {"i": "Bob@Sender.TEST"},
        "i= below": {"i": "@news.sender.test"},
        "i= above": {"d": "news.sender.test", "i": "@sender.test"},
        "i= elsewhere": {"i": "bob@other.test"},
        "i= ends alike": {"i": "bob@notsender.test"},
        "i= no domain": {"i": "bob"},
        "i= quoted-printable": {"i": "bob=2Bnews@sender.test"},
        "i= quoted-printable blank": {"i": "bob=20b@sender.test"},
        "i= empty": {"i": ""},
        "z= copied": {"z": "From:bob@sender.test|To:alice"},
        "unknown tag": {"foo": "bar"},
        "unknown tag, empty": {"foo": ""},
        "tag in capitals": {"D": "other.test"},
    }
    for name, changed in tags.items():
        yield "tag: " + name, _signed(message(random), tags=changed)
    content = message(random)
    yield "tag: From is not signed", _signed(content, signed=("To", "Subject", "Date"))
    yield "tag: twice", _signed(content, tags={"q": "dns/txt; q=dns/txt"})
    yield "tag: d= twice", _signed(content, tags={"x-y": None, "s": "r2048; d=other.test"})
    yield "tag: no equals sign", _signed(content, tags={"q": "dns/txt; foo"})
    yield "tag: semicolon at the end", _signed(content, behind=";")
    yield "tag: two semicolons", _signed(content, tags={"q": "dns/txt;"})
    yield "tag: FWS around equals signs", _signed(content, tags={"d ": "\r\n sender.test", "d": None})


def _keys(random: Random) -> Made:
    for selector in (*_RECORDS, "servfail", "nobody", "nodata", "alias"):
        yield f"key: {selector}", _signed(message(random), selector=selector)
    yield "key: ed25519 of another", _signed(message(random), key="ed", selector="r2048")
    yield "key: another of its kind", _signed(message(random), key="r1024", selector="r2048")
    yield "key: strict, i= the domain", _signed(message(random), selector="strict", tags={"i": "bob@sender.test"})
    yield "key: strict, i= below", _signed(message(random), selector="strict", tags={"i": "@news.sender.test"})
    yield "key: nobody, body changed", _signed(message(random), selector="nobody") + b"More.\r\n"
    yield "key: servfail, body changed", _signed(message(random), selector="servfail") + b"More.\r\n"


def _several(random: Random) -> Made:
    content = message(random)
    good, ed = signature_field(content, DOMAIN), signature_field(content, DOMAIN, key="ed")
    other = signature_field(content, "other.test")
    below = signature_field(content, "news.sender.test")
    bad = signature_field(content + b"x\r\n", DOMAIN)
    unknown = signature_field(content, DOMAIN, selector="nobody")
    late = signature_field(content, DOMAIN, selector="servfail")
    for name, signatures in {
        "RSA and Ed25519": (good, ed),
        "good and bad": (good, bad),
        "bad and good": (bad, good),
        "only another's": (other,),
        "another's and own": (other, good),
        "own and another's": (good, other),
        "from below": (below,),
        "missing key and good": (unknown, good),
        "late key and good": (late, good),
        "late key and another's": (late, other),
        "five": (other, bad, unknown, below, good),
    }.items():
        yield "several: " + name, b"".join(signatures) + content
    yield "several: each signs the one before", _signed(_signed(content, "other.test"), signed=("From", "Subject"))


def _authors(random: Random) -> Made:
    """Who is the author, of a message with an intact signature."""
    for name, author in {
        "address only": "bob@sender.test",
        "angle brackets only": "<bob@sender.test>",
        "quoted name": '"Bob, the one" <bob@sender.test>',
        "another in the name": '"alice@bank.test" <bob@sender.test>',
        "comment": "bob@sender.test (alice@bank.test)",
        "comment before": "(alice@bank.test) bob@sender.test",
        "quoted local part": '"bob@bank.test"@sender.test',
        "in capitals": "BOB@SENDER.TEST",
        "encoded name": "=?utf-8?B?Qm9i?= <bob@sender.test>",
        "below": "bob@news.sender.test",
        "elsewhere": "bob@other.test",
        "two of one domain": "bob@sender.test, carol@sender.test",
        "two of two domains": "bob@sender.test, alice@other.test",
        "group": "Team: bob@sender.test, carol@sender.test;",
        "empty group": "Nobody:;",
        "no address": "Bob",
        "empty": "",
        "domain literal": "bob@[192.0.2.1]",
        "two at signs": "bob@bank.test@sender.test",
        "nothing behind the at sign": "bob@",
        "U-label": "bob@bücher.test",
        "final dot": "bob@sender.test.",
        "unclosed bracket": "Bob <bob@sender.test",
        "text behind": "Bob <bob@sender.test> alice@bank.test",
        "route": "<@relay.test:bob@sender.test>",
    }.items():
        yield f"author: {name}", _signed(message(random, author))
    content = message(random)
    yield "author: no From", _signed(re.sub(rb"From:(?:[^\r]|\r\n[ \t])*\r\n", b"", content))
    yield "author: two From, the first unsigned", b"From: mallory@evil.test\r\n" + _signed(content)
    yield "author: two From, both signed", _signed(b"From: bob@sender.test\r\n" + content, signed=("From", "From"))
    yield "author: blank before the colon", _signed(content.replace(b"\nFrom:", b"\nFrom :", 1))
    yield "author: blank before the colon of another", b"From : mallory@evil.test\r\n" + _signed(content)
    yield "author: name in capitals", _signed(content.replace(b"\nFrom:", b"\nFROM:", 1))
