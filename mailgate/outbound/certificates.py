"""What can be wrong with a server's certificate, in the words of TLS reports, and whether it has a name.

Standards: RFC 8460 section 4.3 (result types), RFC 9525 section 6 (names), RFC 5280 section 6 (paths).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address

# What `cryptography` raises, at one place or another, for certificates that OpenSSL has taken.
UNREADABLE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

_NOT_YET_VALID: Final = 9  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID
_HAS_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a certificate does not do."""

    result: str  # RFC 8460 section 4.3: "certificate-expired"
    reason: str  # for people


def fault_of(code: int, text: str) -> Fault:
    """The fault that OpenSSL found in a chain, by its number and its own words."""
    result = "certificate-expired" if code in (_NOT_YET_VALID, _HAS_EXPIRED) else "certificate-not-trusted"
    return Fault(result, text)


def name_fault(certificate: x509.Certificate, names: Sequence[str]) -> Fault | None:
    """Why the certificate belongs to none of these names or IP addresses; None where it belongs to one."""
    if any(_has_name(certificate, name) for name in names):
        return None
    return Fault("certificate-host-mismatch", f"the certificate is not that of {' or '.join(names)}")


def _has_name(certificate: x509.Certificate, name: str) -> bool:
    """By service-identity: a wildcard stands for the whole first label, the common name doesn't count."""
    try:
        if _is_address(name):
            verify_certificate_ip_address(certificate, name)
        else:
            verify_certificate_hostname(certificate, name)
    except (VerificationError, CertificateError, *UNREADABLE):
        return False
    return True


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
