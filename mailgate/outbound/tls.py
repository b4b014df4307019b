"""TLS as a client: contexts, and whether what a handshake came to meets a demand.

The handshake itself never fails for a certificate: OpenSSL's verdict on it is noted, and `judge` weighs it once the
handshake is done, before any octet of mail is sent. So a failure has a name that a report can carry, and a policy that
is only tested stops nothing. Nothing here moves octets: Twisted's `startTLS` does.

Sessions are not resumed: one connection carries many messages, and a resumed session shows no certificate to judge.

Standards: RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2), RFC 6066 section 3 (SNI), RFC 7672 sections 3 and 8.1 (DANE; SNI),
RFC 8461 section 4.2 (MTA-STS), RFC 7435 (opportunistic security), RFC 8460 section 4.3 (result types).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from mailgate.certificate import UnusableFile
from mailgate.outbound.certificates import UNREADABLE, Fault, fault_of, name_fault
from mailgate.outbound.dane import mismatch
from mailgate.outbound.plan import TlsDemand, TlsLevel, TlsUsed

# To whom nothing is proved anything may be shown, except what is no encryption at all. OpenSSL's level 0 also takes the
# short keys and old digests that mail servers still have: in plain text everybody could read (RFC 7435).
_LENIENT_CIPHERS: Final = b"DEFAULT:@SECLEVEL=0"
_STRICT_CIPHERS: Final = b"DEFAULT:@SECLEVEL=2"

# OpenSSL's X509_V_ERR_..., in words.
_FAULTS: Final = {
    2: "the issuer's certificate is not there",
    7: "a signature in the chain is wrong",
    9: "a certificate of the chain is not valid yet",
    10: "a certificate of the chain has expired",
    18: "the certificate is self-signed",
    19: "the chain ends in a self-signed certificate that nobody trusts",
    20: "the chain does not lead to a trusted authority",
    21: "the chain does not lead to a trusted authority",
    24: "the chain holds a certificate that may sign none",
    26: "the certificate is not for servers",
    66: "the key is too short",
    68: "a signature in the chain is by a weak digest",
}


@dataclass(frozen=True, slots=True)
class TlsFailure:
    """Why the TLS of a connection does not meet the demand."""

    tls_result: str  # RFC 8460 section 4.3: "certificate-host-mismatch"
    reason: str  # for people


class ClientTls:
    """Makes the client's side of TLS connections, and judges them."""

    def __init__(self, ca_file: Path | None = None) -> None:
        """Trust the authorities of the system, or those of a PEM file alone.

        @raises UnusableFile: the file can't be read, or holds no certificate.
        """
        self._lenient = _context(_LENIENT_CIPHERS)
        self._testing = _verifying(_context(_LENIENT_CIPHERS), ca_file)
        self._strict = _verifying(_context(_STRICT_CIPHERS), ca_file)

    def creator(self, demand: TlsDemand, host_name: str) -> TlsClient:
        """What `startTLS` takes for that host; `host_name` is its name, or an address where it has none."""
        if demand.level is TlsLevel.VERIFY:
            context = self._strict
        else:
            context = self._testing if demand.is_testing else self._lenient
        return TlsClient(context, host_name)

    def judge(self, connection: SSL.Connection, demand: TlsDemand, host_name: str) -> TlsUsed | TlsFailure:
        """What a connection of `creator` has, its handshake being done; or why that is not enough for the demand."""
        used = TlsUsed(
            version=connection.get_protocol_version_name(),
            cipher=connection.get_cipher_name() or "",
            is_verified=False,
            source=demand.source,
        )
        is_tested = demand.is_testing and demand.level is TlsLevel.OPPORTUNISTIC
        if demand.level not in (TlsLevel.VERIFY, TlsLevel.DANE) and not is_tested:
            return used
        fault = _fault(connection, demand, host_name)
        if fault is None:
            return replace(used, is_verified=True)
        if is_tested:
            return replace(used, tls_result=fault.result)
        return TlsFailure(fault.result, f"{host_name}: {fault.reason}")


@implementer(IOpenSSLClientConnectionCreator)
class TlsClient:
    """Makes the client's side of one TLS connection to one host."""

    def __init__(self, context: SSL.Context, host_name: str) -> None:
        """Ask for the certificate of that name; an address is not asked for (RFC 6066 section 3)."""
        self._context = context
        self._server_name = b"" if _is_address(host_name) else host_name.encode("ascii", "replace")

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection whose octets Twisted moves."""
        connection = _Connection(self._context)
        if self._server_name:
            connection.set_tlsext_host_name(self._server_name)
        return connection


class _Connection(SSL.Connection):
    """A connection that knows what OpenSSL found wrong with the server's chain first."""

    def __init__(self, context: SSL.Context) -> None:
        super().__init__(context, None)
        self.fault_code = 0


def _fault(connection: SSL.Connection, demand: TlsDemand, host_name: str) -> Fault | None:
    """Why the server's certificates do not meet a demand that looks at them."""
    chain = _chain_of(connection)
    if not chain:
        return Fault("validation-failure", "the server showed no certificate that can be read")
    if demand.level is TlsLevel.DANE:
        return mismatch(demand.tlsa, chain, demand.names or (host_name,))
    if not isinstance(connection, _Connection):
        return Fault("validation-failure", "nobody has looked at the chain")
    code = connection.fault_code
    if code:
        return fault_of(code, _FAULTS.get(code, f"the chain is not valid (OpenSSL's error {code})"))
    return name_fault(chain[0], demand.names or (host_name,))


def _chain_of(connection: SSL.Connection) -> list[x509.Certificate]:
    """The certificates that the server showed, its own first."""
    try:
        return connection.get_peer_cert_chain(as_cryptography=True) or []
    except UNREADABLE:
        return []


def _context(ciphers: bytes) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_cipher_list(ciphers)
    return context


def _verifying(context: SSL.Context, ca_file: Path | None) -> SSL.Context:
    """The context, with authorities to verify by."""
    if ca_file is None:
        context.set_default_verify_paths()
    else:
        try:
            ca_file.read_bytes()  # OpenSSL's own error would not say why it can't
            context.load_verify_locations(str(ca_file))
        except OSError as error:
            raise UnusableFile(ca_file, f"can't be read: {error.strerror}") from error
        except SSL.Error as error:
            raise UnusableFile(ca_file, "holds no certificate in PEM form") from error
    context.set_verify(SSL.VERIFY_PEER, _note)
    return context


def _note(connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
    """Note what verification found, and go on."""
    if not ok and isinstance(connection, _Connection):
        connection.fault_code = connection.fault_code or error
    return True


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
