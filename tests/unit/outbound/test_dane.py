"""DANE: which TLSA records count, and which certificates they match."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from mailgate.certificate import read_chain
from mailgate.outbound.certificates import name_fault
from mailgate.outbound.dane import Tlsa, is_usable, mismatch
from tests.support.certificates import Authority

NAMES = ("mx.example.test", "example.test")


def tlsa(usage: int, selector: int, matching_type: int, certificate: x509.Certificate) -> Tlsa:
    """The record that the owner of the certificate would publish."""
    octets = (
        certificate.public_bytes(Encoding.DER)
        if selector == 0
        else certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    return usage, selector, matching_type, _DIGESTS[matching_type](octets)


_DIGESTS: dict[int, Callable[[bytes], bytes]] = {
    0: lambda octets: octets,
    1: lambda octets: hashlib.sha256(octets).digest(),
    2: lambda octets: hashlib.sha512(octets).digest(),
}


class Shown:
    """Certificates of a server, by an authority of its own."""

    def __init__(self, folder: Path, *, name: str = "mx.example.test", days: tuple[int, int] = (-1, 30)) -> None:
        authority = Authority(folder, datetime.now(UTC))
        (self.leaf,) = read_chain(authority.issue("server", names=(name,), days=days).certificate)
        (self.authority,) = read_chain(authority.certificate_file)
        self.chain = [self.leaf, self.authority]


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching_type", [0, 1, 2])
@pytest.mark.parametrize("usage", [2, 3])
def test_a_certificate_matches_by_each_selector_and_matching_type(
    tmp_path: Path, usage: int, selector: int, matching_type: int
) -> None:
    """RFC 6698 section 2.1."""
    shown = Shown(tmp_path)
    matched = shown.leaf if usage == 3 else shown.authority
    (tmp_path / "other").mkdir()
    other = Shown(tmp_path / "other")
    record = tlsa(usage, selector, matching_type, matched)
    assert is_usable(record)
    assert mismatch([record], shown.chain, NAMES) is None
    fault = mismatch([record], other.chain, NAMES)
    assert fault is not None
    assert fault.result in ("validation-failure", "certificate-not-trusted")


def odd_certificates() -> dict[str, x509.Certificate]:
    """Certificates that OpenSSL takes, and that a stranger may show."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    now = datetime.now(UTC)
    alternative, unused = ExtensionOID.SUBJECT_ALTERNATIVE_NAME, x509.ObjectIdentifier("2.5.29.16")
    names = b"\x30\x11\x82\x0fmx.example.test"

    def built(*extensions: tuple[x509.ObjectIdentifier, bytes]) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )
        for identifier, octets in extensions:
            builder = builder.add_extension(x509.UnrecognizedExtension(identifier, octets), critical=False)
        return builder.sign(key, hashes.SHA256())

    twice = built((alternative, names), (unused, names)).public_bytes(Encoding.DER)
    return {
        "names twice": x509.load_der_x509_certificate(twice.replace(b"\x55\x1d\x10", b"\x55\x1d\x11")),
        "an X.400 address": built((alternative, b"\x30\x04\xa3\x02\x05\x00")),
        "garbage": built((alternative, b"\xff")),
        "a name with NUL": built((alternative, b"\x30\x14\x82\x12mx.example.test\0.x")),
    }


def test_a_certificate_that_can_not_be_read_has_no_name_and_breaks_nothing() -> None:
    """RFC 5280 section 4.2 forbids most of these; who shows one proves nothing."""
    for label, certificate in odd_certificates().items():
        anchor = tlsa(2, 0, 0, certificate)
        for fault in (name_fault(certificate, NAMES), mismatch([anchor], [certificate], NAMES)):
            assert fault is not None, label
        assert mismatch([tlsa(3, 1, 1, certificate)], [certificate], NAMES) is None, label
        unheard_of = certificate.public_bytes(Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
        assert mismatch([(2, 0, 0, unheard_of)], [certificate], NAMES) is not None


def test_one_record_of_several_is_enough(tmp_path: Path) -> None:
    """RFC 7672 section 3.1: keys are rolled over so."""
    shown = Shown(tmp_path)
    records = [(3, 1, 1, b"x" * 32), tlsa(3, 1, 1, shown.leaf)]
    assert mismatch(records, shown.chain, NAMES) is None


def test_neither_name_nor_date_counts_with_an_end_entity(tmp_path: Path) -> None:
    """RFC 7672 section 3.1.1."""
    shown = Shown(tmp_path, name="other.test", days=(-30, -1))
    assert mismatch([tlsa(3, 1, 1, shown.leaf)], [shown.leaf], NAMES) is None


def test_name_and_date_count_below_a_trust_anchor(tmp_path: Path) -> None:
    """RFC 7672 sections 3.1.2 and 3.2.2: the host's name, or the next-hop domain."""
    for name, days, result in (
        ("example.test", (-1, 30), None),
        ("other.test", (-1, 30), "certificate-host-mismatch"),
        ("mx.example.test", (-30, -1), "certificate-expired"),
    ):
        shown = Shown(tmp_path, name=name, days=days)
        fault = mismatch([tlsa(2, 0, 1, shown.authority)], shown.chain, NAMES)
        assert (None if fault is None else fault.result) == result


def test_a_trust_anchor_must_be_shown_unless_the_record_holds_it(tmp_path: Path) -> None:
    """RFC 7671 section 5.2: a digest of what is not shown matches nothing."""
    shown = Shown(tmp_path)
    assert mismatch([tlsa(2, 0, 0, shown.authority)], [shown.leaf], NAMES) is None
    assert mismatch([tlsa(2, 0, 1, shown.authority)], [shown.leaf], NAMES) is not None


def test_a_trust_anchor_that_has_not_signed_the_certificate_proves_nothing(tmp_path: Path) -> None:
    """Anybody can show a stranger's certificate behind his own."""
    shown = Shown(tmp_path)
    (tmp_path / "other").mkdir()
    other = Shown(tmp_path / "other")
    fault = mismatch([tlsa(2, 1, 1, shown.authority)], [other.leaf, shown.authority], NAMES)
    assert fault is not None
    assert fault.result == "certificate-not-trusted"


def test_an_end_entity_record_does_not_match_an_issuer_nor_the_other_way_round(tmp_path: Path) -> None:
    """RFC 6698 section 2.1.1."""
    shown = Shown(tmp_path)
    assert mismatch([tlsa(3, 1, 1, shown.authority)], shown.chain, NAMES) is not None
    assert mismatch([tlsa(2, 1, 1, shown.leaf)], shown.chain, NAMES) is not None


def test_no_certificate_matches_nothing() -> None:
    """Whatever the records."""
    assert mismatch([(3, 1, 1, b"x" * 32)], [], NAMES) is not None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ((3, 1, 1, b"x" * 32), True),
        ((2, 0, 2, b"x" * 64), True),
        ((3, 0, 0, b"x"), True),
        ((0, 1, 1, b"x" * 32), False),
        ((1, 1, 1, b"x" * 32), False),
        ((4, 1, 1, b"x" * 32), False),
        ((255, 1, 1, b"x" * 32), False),
        ((3, 2, 1, b"x" * 32), False),
        ((3, 1, 3, b"x" * 32), False),
        ((3, 1, 1, b"x" * 31), False),
        ((3, 1, 2, b"x" * 32), False),
        ((3, 1, 0, b""), False),
    ],
)
def test_only_records_that_are_for_smtp_and_can_match_count(record: Tlsa, expected: bool) -> None:
    """RFC 7672 section 3.1.3; RFC 7671 section 9 for unknown values."""
    assert is_usable(record) is expected


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=70))))
def test_no_records_of_a_stranger_match_by_chance_or_raise(records: list[Tlsa]) -> None:
    """They come from the DNS as they are."""
    certificate = x509.load_pem_x509_certificate(_CERTIFICATE)
    usable = [record for record in records if is_usable(record)]
    assert mismatch(usable, [certificate], NAMES) is not None


_CERTIFICATE = b"""\
-----BEGIN CERTIFICATE-----
MIIBTDCB9KADAgECAhQqtH5EqInhM2TCGlRXSwyLMshURjAKBggqhkjOPQQDAjAU
MRIwEAYDVQQDDAlhdXRob3JpdHkwHhcNMTkxMjMxMDAwMDAwWhcNMjAwMTMxMDAw
MDAwWjARMQ8wDQYDVQQDDAZzZXJ2ZXIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AATCUcWn6wYUA2msVdmppueIVkjAALgD8E7EQ520HOWCaOJi77HPi+ulev4hOMeX
yV0zNwk9PKIfNmXj7gax0Y14oycwJTAMBgNVHRMBAf8EAjAAMBUGA1UdEQQOMAyC
Cm90aGVyLnRlc3QwCgYIKoZIzj0EAwIDRwAwRAIgfOpM52qrr+AY0qeJq+m5z3Hu
4zKRjViM7VJWA7j99QUCIGDRikW6R7QCxyYl1KmMacUhsGWu+9i+/BEL+a5QGMGG
-----END CERTIFICATE-----
"""
