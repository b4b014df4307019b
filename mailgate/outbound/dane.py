"""DANE for SMTP: which TLSA records count, and whether a server's certificates match them.

Pure: certificates in, a finding out. OpenSSL's verification is used for chains, on certificates alone.

Standards: RFC 6698 section 2.1 (the fields), RFC 7671 sections 5.1, 5.2 and 8 (usages, digests), RFC 7672 sections 3.1
and 3.2 (usages in SMTP, and the names that count).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from mailgate.outbound.certificates import UNREADABLE, Fault, fault_of, name_fault

Tlsa: TypeAlias = tuple[int, int, int, bytes]  # usage, selector, matching type, data

_TRUST_ANCHOR: Final = 2  # DANE-TA
_END_ENTITY: Final = 3  # DANE-EE
_WHOLE: Final = 0  # selector: the certificate
_KEY: Final = 1  # selector: its SubjectPublicKeyInfo
_EXACT: Final = 0  # matching type
_DIGESTS: Final = {1: hashlib.sha256, 2: hashlib.sha512}
_DIGEST_OCTETS: Final = {1: 32, 2: 64}


def is_usable(record: Tlsa) -> bool:
    """Whether a record counts: RFC 7672 section 3.1.3 leaves PKIX-TA and PKIX-EE out; unknown values never count."""
    usage, selector, matching_type, data = record
    if usage not in (_TRUST_ANCHOR, _END_ENTITY) or selector not in (_WHOLE, _KEY) or not data:
        return False
    return matching_type == _EXACT or len(data) == _DIGEST_OCTETS.get(matching_type)


def mismatch(records: Sequence[Tlsa], chain: Sequence[x509.Certificate], names: Sequence[str]) -> Fault | None:
    """Why these certificates, the server's own first, match none of the usable records; None where they do.

    With DANE-EE neither names nor dates count (RFC 7672 section 3.1.1); with DANE-TA both do, and one of `names` has to
    be the server's.
    """
    if not chain:
        return Fault("validation-failure", "the server showed no certificate")
    leaf, *issuers = chain
    if any(_matches(record, leaf) for record in records if record[0] == _END_ENTITY):
        return None
    anchors = [
        issuer
        for issuer in issuers
        if any(_matches(record, issuer) for record in records if record[0] == _TRUST_ANCHOR)
    ]
    anchors += [anchor for record in records if (anchor := _anchor_in(record)) is not None]
    if not anchors:
        return Fault("validation-failure", "no certificate of the server matches a TLSA record")
    return _chain_fault(leaf, issuers, anchors) or name_fault(leaf, names)


def _matches(record: Tlsa, certificate: x509.Certificate) -> bool:
    _, selector, matching_type, data = record
    try:
        octets = (
            certificate.public_bytes(Encoding.DER)
            if selector == _WHOLE
            else certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
    except UNREADABLE:
        return False
    digest = _DIGESTS.get(matching_type)
    return (octets if digest is None else digest(octets).digest()) == data


def _anchor_in(record: Tlsa) -> x509.Certificate | None:
    """The trust anchor that the record holds as a whole: the server need not show that one (RFC 7671 section 5.2.3)."""
    usage, selector, matching_type, data = record
    if (usage, selector, matching_type) != (_TRUST_ANCHOR, _WHOLE, _EXACT):
        return None
    try:
        return x509.load_der_x509_certificate(data)
    except UNREADABLE:
        return None


def _chain_fault(
    leaf: x509.Certificate, issuers: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]
) -> Fault | None:
    """Why there is no valid chain from the server's certificate to one of the anchors."""
    store = crypto.X509Store()
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)  # an anchor need not be self-signed
    for anchor in anchors:
        store.add_cert(crypto.X509.from_cryptography(anchor))
    untrusted = [crypto.X509.from_cryptography(issuer) for issuer in issuers]
    try:
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf), untrusted).verify_certificate()
    except crypto.X509StoreContextError as error:
        return fault_of(error.errors[0], str(error.errors[2]))
    if not _is_for_servers(leaf):
        return Fault("certificate-not-trusted", "the certificate is not for servers")
    return None


def _is_for_servers(leaf: x509.Certificate) -> bool:
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except UNREADABLE:
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages
