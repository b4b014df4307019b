"""Certificates and keys in files."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from mailgate.certificate import (
    RENEWED_BEFORE,
    VALIDITY,
    UnusableFile,
    ascii_name,
    belong_together,
    ensure_self_signed,
    names_of,
    read_chain,
    read_key,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def test_a_self_signed_certificate_is_for_the_host_and_for_loopback(tmp_path: Path) -> None:
    """RFC 9525 section 6.3: clients look for the name in the SAN."""
    files = ensure_self_signed(tmp_path, "Mail.Example.test", now=NOW)
    certificate = read_chain(files.certificate)[0]
    assert names_of(certificate) == ("mail.example.test", "localhost")
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [str(address) for address in extension.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert belong_together(certificate, read_key(files.key))


def test_a_self_signed_certificate_is_of_p256_and_lives_825_days(tmp_path: Path) -> None:
    """What clients of today take at most."""
    certificate = read_chain(ensure_self_signed(tmp_path, "mail.example.test", now=NOW).certificate)[0]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == VALIDITY == timedelta(days=825)
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc


def test_the_key_is_for_its_owner_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    """A key that others can read is no secret; a draft that is left behind is litter."""
    folder = tmp_path / "new" / "var"
    files = ensure_self_signed(folder, "mail.example.test", now=NOW)
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert sorted(folder.iterdir()) == sorted([files.certificate, files.key])


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    """Each start calls it."""
    files = ensure_self_signed(tmp_path, "mail.example.test", now=NOW)
    before = files.certificate.read_bytes(), files.key.read_bytes()
    last_day = NOW + VALIDITY - RENEWED_BEFORE - timedelta(days=1)
    assert ensure_self_signed(tmp_path, "mail.example.test", now=last_day) == files
    assert (files.certificate.read_bytes(), files.key.read_bytes()) == before


@pytest.mark.parametrize(
    ("hostname", "now"),
    [
        ("mail.example.test", NOW + VALIDITY - RENEWED_BEFORE),
        ("mail.example.test", NOW + 2 * VALIDITY),
        ("mail.example.test", NOW - timedelta(days=2)),  # the clock was wrong then
        ("mx.example.test", NOW),
    ],
)
def test_it_is_renewed_with_the_same_key(tmp_path: Path, hostname: str, now: datetime) -> None:
    """When it expires within 30 days, or is not for this host."""
    files = ensure_self_signed(tmp_path, "mail.example.test", now=NOW)
    old_certificate, old_key = files.certificate.read_bytes(), files.key.read_bytes()
    ensure_self_signed(tmp_path, hostname, now=now)
    assert files.certificate.read_bytes() != old_certificate
    assert files.key.read_bytes() == old_key
    renewed = read_chain(files.certificate)[0]
    assert hostname in names_of(renewed)
    assert renewed.not_valid_before_utc < now < renewed.not_valid_after_utc - RENEWED_BEFORE


def test_a_folder_that_can_not_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    """It is the operator's to mend, and no defect."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnusableFile, match="file can't keep a certificate: File exists"):
        ensure_self_signed(tmp_path / "file", "mail.example.test", now=NOW)


@pytest.mark.parametrize("broken", ["certificate", "key"])
@pytest.mark.parametrize("content", [None, b"", b"no PEM"])
def test_what_a_crash_left_is_made_good(tmp_path: Path, broken: str, content: bytes | None) -> None:
    """The pair fits again, whichever file is missing or cut off."""
    files = ensure_self_signed(tmp_path, "mail.example.test", now=NOW)
    path: Path = getattr(files, broken)
    path.unlink() if content is None else path.write_bytes(content)
    ensure_self_signed(tmp_path, "mail.example.test", now=NOW)
    assert belong_together(read_chain(files.certificate)[0], read_key(files.key))


def test_a_client_can_verify_it_strictly(tmp_path: Path) -> None:
    """The line that `make run` prints to paste uses it as its trust anchor; Python 3.13 verifies by X509_STRICT."""
    files = ensure_self_signed(tmp_path, "mail.example.test", now=datetime.now(UTC))
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(files.certificate, files.key)
    client_context = ssl.create_default_context(cafile=str(files.certificate))
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    for name in ("mail.example.test", "localhost", "127.0.0.1", "::1"):
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = server_context.wrap_bio(to_server, to_client, server_side=True)
        client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
        for side in (client, server, client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        assert client.getpeercert()


def test_a_chain_is_read_in_order(tmp_path: Path) -> None:
    """RFC 8446 section 4.4.2: the sender's own certificate comes first."""
    one = ensure_self_signed(tmp_path / "1", "one.example.test", now=NOW).certificate
    two = ensure_self_signed(tmp_path / "2", "two.example.test", now=NOW).certificate
    both = tmp_path / "chain.pem"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert [names_of(certificate)[0] for certificate in read_chain(both)] == ["one.example.test", "two.example.test"]


def test_what_is_no_certificate_and_no_key_is_said_without_its_content(tmp_path: Path) -> None:
    """A key's content never gets into a log."""
    path = tmp_path / "file"
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    for read in (read_chain, read_key):
        with pytest.raises(UnusableFile) as caught:
            read(path)
        assert "c2VjcmV0" not in str(caught.value)


def test_a_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    """Nobody is there to type it."""
    path = tmp_path / "key"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(UnusableFile, match="passphrase"):
        read_key(path)


def test_a_key_that_can_not_sign_is_refused(tmp_path: Path) -> None:
    """X25519 agrees on keys and signs nothing."""
    path = tmp_path / "key"
    path.write_bytes(
        x25519.X25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(UnusableFile, match="sign"):
        read_key(path)


def test_names_have_an_a_form() -> None:
    """RFC 5890 section 2.3.2.1."""
    assert ascii_name("BÜCHER.example") == "xn--bcher-kva.example"
    assert ascii_name("Mail.Example") == "mail.example"
    with pytest.raises(UnicodeError):
        ascii_name("\u2603\ufffd.example")
