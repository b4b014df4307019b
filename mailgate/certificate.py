"""Certificates and keys in files: what a pair holds, and a self-signed pair for a start without one.

Nothing here is a TLS context (`mailgate.tls`), and nobody's certificate is trusted or verified here.

Standards: RFC 5280 sections 4.1.2.5 (validity) and 4.2.1 (extensions), RFC 9525 section 6.3 (names are in the SAN).
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import idna
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = timedelta(days=825)
RENEWED_BEFORE = timedelta(days=30)

_BACKDATED = timedelta(hours=1)  # for clients whose clock is late
_COMMON_NAME_CHARS = 64  # RFC 5280's ub-common-name

ServerKey: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | dsa.DSAPrivateKey
)


class UnusableFile(Exception):
    """A file, or a folder, can't serve as what it should; the message says why, without its content."""

    def __init__(self, path: Path, problem: str) -> None:
        """`problem` follows the path in a sentence: "holds no certificate"."""
        super().__init__(f"{path} {problem}")


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate with its chain, and its key, are kept. `names` are served instead of those in the SAN."""

    certificate: Path
    key: Path
    names: tuple[str, ...] = ()


def read_chain(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, the server's own first.

    @raises UnusableFile: there is none in it.
    @raises OSError: it can't be read.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except ValueError:
        raise UnusableFile(path, "holds no certificate in PEM form") from None


def read_key(path: Path) -> ServerKey:
    """The private key of a PEM file.

    @raises UnusableFile: there is none in it, it has a passphrase, or no server can use its kind.
    @raises OSError: it can't be read.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except TypeError:
        raise UnusableFile(path, "has a passphrase, which nobody is there to type") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableFile(path, "holds no private key in PEM form") from None
    if isinstance(key, ServerKey):
        return key
    raise UnusableFile(path, "holds a key of a kind that TLS can't sign with")


def belong_together(certificate: x509.Certificate, key: ServerKey) -> bool:
    """Whether that is the certificate's key."""
    try:
        return certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):  # a public key of a kind that cryptography doesn't know
        return False


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names in the certificate's SAN, in A-form and lower case; the common name doesn't count."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))


def ascii_name(name: str) -> str:
    """A domain name in A-form and lower case.

    @raises UnicodeError: it has no A-form.
    """
    return name.lower() if name.isascii() else idna.encode(name, uts46=True).decode("ascii")


def ensure_self_signed(folder: Path, hostname: str, *, now: datetime) -> CertificateFiles:
    """A self-signed certificate for that host name, which is made, or made anew with the same key, where needed.

    The key is never replaced while it is usable, and each file appears whole or not at all: a crash between the two
    leaves a key whose certificate is made at the next call, and several processes may call this at once.

    @raises UnusableFile: the folder can't be made or written.
    """
    files = CertificateFiles(folder / "self-signed.pem", folder / "self-signed.key")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _ensure_key(files.key)
        if not _is_good(files.certificate, key, hostname, now):
            content = _self_signed(key, hostname, now).public_bytes(serialization.Encoding.PEM)
            _write(files.certificate, content, mode=0o644, replaces=True)
    except OSError as error:
        raise UnusableFile(folder, f"can't keep a certificate: {error.strerror}") from error
    return files


def _ensure_key(path: Path) -> ServerKey:
    is_broken = False
    try:
        key = read_key(path)
    except FileNotFoundError:
        pass
    except UnusableFile:
        is_broken = True
    else:
        path.chmod(0o600)
        return key
    made = ec.generate_private_key(ec.SECP256R1())
    content = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    if _write(path, content, mode=0o600, replaces=is_broken):
        return made
    return read_key(path)  # another process was faster: its key is everybody's


def _is_good(path: Path, key: ServerKey, hostname: str, now: datetime) -> bool:
    try:
        certificate = read_chain(path)[0]
    except (FileNotFoundError, UnusableFile):
        return False
    return (
        belong_together(certificate, key)
        and ascii_name(hostname) in names_of(certificate)
        and certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - RENEWED_BEFORE
    )


def _self_signed(key: ServerKey, hostname: str, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ascii_name(hostname)[:_COMMON_NAME_CHARS])])
    names = [x509.DNSName(text) for text in dict.fromkeys((ascii_name(hostname), "localhost"))]
    addresses = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now - _BACKDATED + VALIDITY)
        .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(subject_key, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key), critical=False)
        .sign(key, hashes.SHA256())
    )


def _write(path: Path, content: bytes, *, mode: int, replaces: bool) -> bool:
    """Whether the file is there now, whole and on disk; False if it may not be replaced and was there already."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
    draft = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor has no path
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if replaces:
            draft.replace(path)
        else:
            try:
                path.hardlink_to(draft)
            except FileExistsError:
                return False
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
