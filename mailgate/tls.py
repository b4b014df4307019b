"""TLS contexts: which certificate, which versions and ciphers, and what a handshake agreed on.

The contexts are shared by all sessions; a session costs one connection object of OpenSSL. Nothing here knows SMTP or
moves bytes: Twisted's `startTLS` and `TLSMemoryBIOFactory` do.

Standards: RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2), RFC 6066 section 3 (server name indication), RFC 5746 and RFC 7457
(no renegotiation, no compression), RFC 3207 and RFC 8314 (TLS for SMTP), RFC 9325 (recommendations).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from mailgate.certificate import CertificateFiles, ServerKey, UnusableFile, names_of, read_chain, read_key
from mailgate.policy.stage import TlsState

ClientCertificate: TypeAlias = Literal["none", "ask", "require"]

# RFC 9325 section 4.2: forward secrecy and authenticated encryption only. TLS 1.3 has nothing else anyway.
MODERN_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)

_RECORD_OCTETS = 16_384  # RFC 8446 section 5.1: what a record holds at most
_PIECE_OCTETS = 8192

_VERSIONS: Mapping[str, int] = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


class TlsContexts:
    """All that new sessions need for TLS. Sessions keep what they began with when this is replaced."""

    def __init__(self, contexts: Mapping[ClientCertificate, SSL.Context]) -> None:
        """Keep one context for each way to treat client certificates; `load` makes them."""
        self._contexts = contexts

    @classmethod
    def load(
        cls,
        certificates: Sequence[CertificateFiles],
        *,
        minimum_version: Literal["1.2", "1.3"] = "1.2",
        ciphers: str = MODERN_CIPHERS,
        client_ca: Path | None = None,
    ) -> TlsContexts:
        """Contexts that serve these certificates, the first to clients that ask for no name or an unknown one.

        Of two certificates with one name, the earlier serves it. `client_ca` is a PEM file with the certificates that
        client certificates must come from; without it, no client certificate is found valid.

        @raises UnusableFile: a file can't be read, doesn't hold what it should, or OpenSSL refuses it.
        """
        if not certificates:
            raise ValueError("there must be a certificate")
        make = _ContextMaker(_VERSIONS[minimum_version], ciphers.encode("ascii"), client_ca)
        by_name: dict[str, SSL.Context] = {}
        for files in certificates:
            context, own_names = make(files)
            for name in files.names or own_names:
                by_name.setdefault(name.lower(), context)
        contexts: dict[ClientCertificate, SSL.Context] = {}
        for client_certificate in get_args(ClientCertificate):
            context, _ = make(certificates[0])
            context.set_tlsext_servername_callback(_Chooser(by_name))
            if client_certificate != "none":
                _ask_for_client_certificate(context, is_required=client_certificate == "require")
            contexts[client_certificate] = context
        return cls(contexts)

    def adopt(self, other: TlsContexts) -> None:
        """Serve new sessions by what `other` holds from now on; factories that were handed out before follow."""
        self._contexts = other._contexts

    def factory(self, client_certificate: ClientCertificate = "none") -> TlsServer:
        """What `startTLS` and `TLSMemoryBIOFactory` take."""
        return TlsServer(self, client_certificate)

    def connection(self, client_certificate: ClientCertificate) -> SSL.Connection:
        """The server's side of a new connection, which reads and writes memory."""
        return _Connection(self._contexts[client_certificate])


@implementer(IOpenSSLServerConnectionCreator)
class TlsServer:
    """Makes the server's side of TLS connections, by what its TlsContexts hold at that time."""

    def __init__(self, contexts: TlsContexts, client_certificate: ClientCertificate) -> None:
        """Make connections of these contexts."""
        self._contexts = contexts
        self._client_certificate = client_certificate

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection whose bytes Twisted moves."""
        return self._contexts.connection(self._client_certificate)


def describe(connection: SSL.Connection) -> TlsState:
    """What the handshake of a connection that `TlsServer` made agreed on; call it when the handshake is over."""
    certificate = None
    if isinstance(connection, _Connection) and connection.is_client_verified:
        certificate = connection.get_peer_certificate(as_cryptography=True)
    return TlsState(
        version=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "",
        bits=connection.get_cipher_bits() or 0,
        server_name=_asked_name(connection),
        client_certificate=None if certificate is None else _subject(certificate),
        channel_binding=_exporter(connection),
    )


def _exporter(connection: SSL.Connection) -> bytes | None:
    """What both ends know this connection by, and nobody else (RFC 9266); None where TLS has no such thing.

    TLS 1.2 has it only with an extension (RFC 7627) of which OpenSSL does not tell us whether it was agreed on.
    """
    if connection.get_protocol_version() < SSL.TLS1_3_VERSION:
        return None
    return connection.export_keying_material(b"EXPORTER-Channel-Binding", 32)


def check_ciphers(ciphers: str) -> None:
    """Do nothing if OpenSSL knows at least one of these ciphers.

    @raises ValueError: it knows none; or the list can't be read.
    """
    try:
        SSL.Context(SSL.TLS_SERVER_METHOD).set_cipher_list(ciphers.encode("ascii"))
    except (SSL.Error, UnicodeError):
        raise ValueError("OpenSSL knows none of these ciphers") from None


def reason(error: SSL.Error) -> str:
    """Why OpenSSL failed, in its own words: "ee key too small"."""
    reasons = [str(entry[-1]) for entry in error.args[0] if entry] if error.args and error.args[0] else []
    return ", ".join(dict.fromkeys(reasons)) or type(error).__name__


class _Connection(SSL.Connection):
    """A connection over memory that stays small, and knows what was found of the client's certificate.

    What Twisted read from the socket, up to 64 KiB, goes to OpenSSL in pieces. Its memory BIO grows to the largest
    piece that it was given and never shrinks, and would keep 85 KiB for a session that sent one large message.
    """

    def __init__(self, context: SSL.Context) -> None:
        super().__init__(context, None)
        # OpenSSL may call that context's name chooser again (after a HelloRetryRequest), when this connection has been
        # switched to another context and a reload has dropped the first one: it must not be freed before.
        self._first_context = context
        self._has_failed = False
        self.is_client_verified = False
        self._waiting = b""
        self._offset = 0

    def bio_write(self, buf: bytes | bytearray | memoryview[int]) -> int:
        """Take bytes from the wire. All that was taken before has been read, or OpenSSL wants more."""
        self._waiting = self._waiting[self._offset :] + bytes(buf)
        self._offset = 0
        self._feed()
        return len(buf)

    def recv(self, bufsiz: int, flags: int | None = None) -> bytes:
        """Decrypted bytes, of one record at most."""
        while True:
            try:
                return super().recv(min(bufsiz, _RECORD_OCTETS), flags)
            except SSL.WantReadError:
                if not self._feed():
                    raise

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        while True:
            try:
                return super().do_handshake()
            except SSL.WantReadError:
                if not self._feed():
                    raise

    def note(self, *, depth: int, is_valid: bool) -> None:
        """Note what verification found of one certificate of the client's chain; its own, of depth 0, comes last."""
        if not is_valid:
            self._has_failed = True
        self.is_client_verified = depth == 0 and not self._has_failed

    def _feed(self) -> bool:
        """Whether there was a piece for OpenSSL to read."""
        piece = self._waiting[self._offset : self._offset + _PIECE_OCTETS]
        self._offset += _PIECE_OCTETS
        if self._offset >= len(self._waiting):
            self._waiting, self._offset = b"", 0
        if not piece:
            return False
        super().bio_write(piece)
        return True


class _Chooser:
    """Chooses the certificate by the name that the client asks for (RFC 6066 section 3)."""

    def __init__(self, by_name: Mapping[str, SSL.Context]) -> None:
        self._by_name = by_name

    def __call__(self, connection: SSL.Connection) -> None:
        """Switch to the context whose certificate has the name, exactly or by a wildcard for its first label."""
        name = _asked_name(connection)
        if name is None:
            return
        context = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        if context is not None:
            connection.set_context(context)


def _asked_name(connection: SSL.Connection) -> str | None:
    """The server name in lower case. One that is no A-form (RFC 6066: "ASCII encoding") counts as none."""
    name = connection.get_servername()
    return name.decode("ascii").lower().removesuffix(".") if name and name.isascii() else None


@dataclass(frozen=True, slots=True)
class _ContextMaker:
    """Makes a context for one certificate.

    A connection that is switched to it keeps the way to treat client certificates with which it began, and verifies
    them by what is trusted here.
    """

    minimum_version: int
    ciphers: bytes
    client_ca: Path | None

    def __call__(self, files: CertificateFiles) -> tuple[SSL.Context, tuple[str, ...]]:
        """The context, and the certificate's own names.

        @raises UnusableFile: as `TlsContexts.load` says.
        """
        try:
            chain, key = read_chain(files.certificate), read_key(files.key)
            return self._context(chain, key), names_of(chain[0])
        except OSError as error:
            raise UnusableFile(Path(error.filename or files.certificate), f"can't be read: {error.strerror}") from error
        except SSL.Error as error:
            raise UnusableFile(files.certificate, f"can't be served: {reason(error)}") from error

    def _context(self, chain: Sequence[x509.Certificate], key: ServerKey) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(self.minimum_version)
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        # An idle session then keeps no record buffers, which are 16 KiB each way.
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        # Sessions are resumed by ticket (RFC 5077, RFC 8446 section 2.2), which costs us no memory; the cache would.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_cipher_list(self.ciphers)
        context.use_certificate(chain[0])
        for issuer in chain[1:]:
            context.add_extra_chain_cert(issuer)
        context.use_privatekey(key)
        context.check_privatekey()
        if self.client_ca is not None:
            self.client_ca.read_bytes()  # OpenSSL's own error would not say why it can't
            context.load_verify_locations(str(self.client_ca))
            context.load_client_ca(bytes(self.client_ca))
        return context


def _ask_for_client_certificate(context: SSL.Context, *, is_required: bool) -> None:
    # A resumed session is not verified again, and what was found before is not at hand: always a full handshake.
    context.set_options(SSL.OP_NO_TICKET)
    if is_required:
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _insist)
    else:
        context.set_verify(SSL.VERIFY_PEER, _note)


def _insist(connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
    """Note what verification found, and end the handshake if a certificate is not valid."""
    _note(connection, certificate, error, depth, ok)
    return bool(ok)


def _note(connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
    """Note what verification found, and go on.

    Many mail servers show a certificate that nobody here trusts, only because they were asked; they stay welcome.
    """
    if isinstance(connection, _Connection):
        connection.note(depth=depth, is_valid=bool(ok))
    return True


def _subject(certificate: x509.Certificate) -> str:
    """The subject's common name; the whole subject where it has none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()
