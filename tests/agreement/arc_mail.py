"""Mail that was handed on by one to three who seal it, whole and broken at each place.

Standards: RFC 8617 sections 4 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random

from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from tests.agreement.case import Case, message
from tests.agreement.signing import KEYS, SIGNED_FIELDS, Tags, arc_set, p_of, signature_field

_SEALERS = ("one.seal.test", "two.seal.test", "three.seal.test")
_NAMES = ("ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal")


def add_to(zone: Zone) -> None:
    """The records that the cases rest on."""
    for sealer in _SEALERS:
        for selector, key in KEYS.items():
            zone.add(f"{selector}._domainkey.{sealer}", RecordType.TXT, key.record)
        zone.add(f"revoked._domainkey.{sealer}", RecordType.TXT, b"v=DKIM1; p=")
        zone.add(f"testing._domainkey.{sealer}", RecordType.TXT, b"v=DKIM1; t=y; p=" + p_of("r1024").encode())
        zone.fail(f"late._domainkey.{sealer}")
    zone.add("author.test", RecordType.TXT, b"v=spf1 ip4:192.0.2.1 -all")
    zone.add("_dmarc.author.test", RecordType.TXT, b"v=DMARC1; p=reject")
    zone.add("r2048._domainkey.author.test", RecordType.TXT, KEYS["r2048"].record)


def cases(random: Random) -> Iterator[Case]:
    """All of them, once; from a forwarder that SPF does not know."""
    for name, content in _made(random):
        yield Case("arc/" + name, content, client_address="198.51.100.7", reverse_path="list@one.seal.test")


def _chain(content: bytes, sealers: Sequence[str] = _SEALERS, key: str = "r1024") -> bytes:
    for sealer in sealers:
        content = arc_set(content, sealer, key=key)
    return content


def _field(content: bytes, name: str, instance: int) -> bytes:
    found = re.search(rb"(?m)^%s: i=%d;(?:[^\r]|\r\n[ \t])*\r\n" % (name.encode(), instance), content)
    assert found is not None
    return found[0]


def _author(random: Random) -> bytes:
    content = message(random, "bob@author.test")
    return signature_field(content, "author.test") + content


def _made(random: Random) -> Iterator[tuple[str, bytes]]:
    for length in (1, 2, 3):
        for key in KEYS:
            yield f"{length} intact {key}", _chain(_author(random), _SEALERS[:length], key)
        sealed = _chain(_author(random), _SEALERS[:length])
        yield f"{length} body changed", sealed + b"-- \r\nlist footer\r\n"
        yield f"{length} Subject changed", re.sub(rb"\r\nSubject:\s*number", b"\r\nSubject: [list] number", sealed)
        yield f"{length} field on top", b"Received: from a.test\r\n\tby b.test; now\r\n" + sealed
        yield f"{length} second Subject on top", b"Subject: You have won\r\n" + sealed
        for instance in range(1, length + 1):
            for name in _NAMES:
                yield from _broken(random, length, name, instance)
        yield (
            f"{length} behind a change",
            arc_set(_chain(_author(random), _SEALERS[:length]) + b"footer\r\n", "three.seal.test"),
        )
        yield (
            f"{length} behind a change, sealed as fail",
            arc_set(
                _chain(_author(random), _SEALERS[:length]) + b"footer\r\n", "three.seal.test", chain_validation="fail"
            ),
        )
    yield from _odd_tags(random)
    yield from _odd_keys(random)
    yield from _odd_orders(random)


def _broken(random: Random, length: int, name: str, instance: int) -> Iterator[tuple[str, bytes]]:
    sealed = _chain(_author(random), _SEALERS[:length])
    field = _field(sealed, name, instance)
    place = f"{length} {name} {instance}"
    yield f"{place} gone", sealed.replace(field, b"")
    yield f"{place} twice", field + sealed
    yield f"{place} changed", sealed.replace(field, field.replace(b"seal.test", b"SEAL.test"))
    yield f"{place} refolded", sealed.replace(field, field.replace(b"; ", b";\r\n\t"))
    yield f"{place} another instance", sealed.replace(field, field.replace(b"i=%d;" % instance, b"i=9;"))
    yield f"{place} without instance", sealed.replace(field, field.replace(b"i=%d; " % instance, b""))
    yield f"{place} instance 0", sealed.replace(field, field.replace(b"i=%d;" % instance, b"i=0;"))
    yield (
        f"{place} instance with a zero",
        sealed.replace(field, field.replace(b"i=%d;" % instance, b"i=0%d;" % instance)),
    )
    if name != "ARC-Authentication-Results":
        yield f"{place} b= changed", sealed.replace(field, re.sub(rb" b=....", b" b=AAAA", field))


def _odd_tags(random: Random) -> Iterator[tuple[str, bytes]]:
    seals: dict[str, Tags] = {
        "cv= missing": {"cv": None},
        "cv= in capitals": {"cv": "NONE"},
        "cv= unknown": {"cv": "maybe"},
        "cv=pass first": {"cv": "pass"},
        "cv=fail": {"cv": "fail"},
        "h= in it": {"h": "from"},
        "a= unknown": {"a": "rsa-sha512"},
        "a= rsa-sha1": {"a": "rsa-sha1"},
        "no a=": {"a": None},
        "no d=": {"d": None},
        "no s=": {"s": None},
        "t= past": {"t": "1700000000"},
        "t= future": {"t": "4000000000"},
        "t= no number": {"t": "now"},
        "c= in it": {"c": "relaxed/relaxed"},
        "unknown tag": {"foo": "bar"},
        "v= in it": {"v": "1"},
        "d= in capitals": {"d": "ONE.Seal.test"},
    }
    for name, tags in seals.items():
        yield f"seal: {name}", arc_set(_author(random), "one.seal.test", seal_tags=tags)
    signatures: dict[str, Tags] = {
        "a= unknown": {"a": "rsa-sha512"},
        "a= rsa-sha1": {"a": "rsa-sha1"},
        "no a=": {"a": None},
        "no bh=": {"bh": None},
        "no h=": {"h": None},
        "v= in it": {"v": "1"},
        "t= future": {"t": "4000000000"},
        "x= past": {"x": "1700000000"},
        "l=0": {"l": "0", "bh": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="},
        "unknown tag": {"foo": "bar"},
        "d= another": {"d": "two.seal.test"},
    }
    for name, tags in signatures.items():
        yield f"signature: {name}", arc_set(_author(random), "one.seal.test", signature_tags=tags)
    content = _author(random)
    for forms in (("simple", "simple"), ("simple", "relaxed"), ("relaxed", "simple")):
        yield f"signature: {forms[0]}/{forms[1]}", arc_set(content, "one.seal.test", forms=forms)
    yield (
        "signature: no c=",
        arc_set(content, "one.seal.test", forms=("simple", "simple"), signature_tags={"c": None}),
    )
    yield (
        "signature: no c=, but relaxed",
        arc_set(content, "one.seal.test", signature_tags={"c": None}),
    )
    yield "signature: From is not signed", arc_set(content, "one.seal.test", signed=("To", "Subject"))
    yield (
        "signature: DKIM-Signature is signed",
        arc_set(content, "one.seal.test", signed=(*SIGNED_FIELDS, "DKIM-Signature")),
    )
    yield (
        "signature: ARC-Seal is signed",
        arc_set(_chain(content, _SEALERS[:1]), "two.seal.test", signed=(*SIGNED_FIELDS, "ARC-Seal")),
    )
    yield "results: empty", arc_set(content, "one.seal.test", results="none")
    yield (
        "results: folded",
        arc_set(content, "one.seal.test", results="spf=pass\r\n\tsmtp.mailfrom=a.test;\r\n arc=none"),
    )


def _odd_keys(random: Random) -> Iterator[tuple[str, bytes]]:
    for selector in ("revoked", "late", "nobody", "testing"):
        yield f"key: {selector}", arc_set(_author(random), "one.seal.test", selector=selector)
        first = arc_set(_author(random), "one.seal.test", selector=selector)
        yield f"key: {selector}, of the first of two", arc_set(first, "two.seal.test")
    yield "key: another", arc_set(_author(random), "one.seal.test", key="r2048", selector="r1024")
    yield "key: another kind", arc_set(_author(random), "one.seal.test", key="ed", selector="r1024")


def _odd_orders(random: Random) -> Iterator[tuple[str, bytes]]:
    sealed = _chain(_author(random), _SEALERS[:2])
    first = b"".join(_field(sealed, name, 1) for name in _NAMES)
    rest = sealed
    for name in _NAMES:
        rest = rest.replace(_field(sealed, name, 1), b"")
    yield "order: the first set on top", first + rest
    yield "order: the first set gone", rest
    second = [_field(sealed, name, 2) for name in _NAMES]
    for field in second:
        sealed = sealed.replace(field, b"")
    yield "order: the second set the other way round", b"".join(second) + sealed
    yield "order: the second set gone", sealed
    yield "two From fields", b"From: mallory@evil.test\r\n" + _chain(_author(random), _SEALERS[:1])
    yield "no From field", re.sub(rb"(?m)^From:[^\r]*\r\n", b"", _chain(_author(random), _SEALERS[:1]))
