"""Certificates and keys in files: what a pair holds, and a self-signed pair for a start without one.

Nothing here is a TLS context (`mailgate.tls`), and no certificate is trusted or verified here.

Standards: RFC 5280 (validity, subject alternative name), RFC 6125 section 4 (names are in the SAN).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate with its chain, and its key, are kept. `names` are served instead of those in the SAN."""

    certificate: Path
    key: Path
    names: tuple[str, ...] = ()
