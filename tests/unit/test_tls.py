"""Handshakes in memory: a client of Python's ssl against the contexts that mailgate serves with."""

from __future__ import annotations

import contextlib
import gc
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface.verify import verifyObject

from mailgate.certificate import CertificateFiles, UnusableFile, names_of
from mailgate.policy.stage import TlsState
from mailgate.tls import ClientCertificate, TlsContexts, check_ciphers, describe, reason
from tests.support.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, datetime.now(UTC))


class Pair:
    """A client and our server's side, with a Twisted TLS protocol between the server's side and `received`."""

    def __init__(
        self,
        contexts: TlsContexts,
        client: ssl.SSLContext,
        *,
        server_name: str | None = None,
        client_certificate: ClientCertificate = "none",
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.received: list[bytes] = []
        pair = self

        class Server(Protocol):
            def dataReceived(self, data: bytes) -> None:
                pair.received.append(data)

        factory = TLSMemoryBIOFactory(contexts.factory(client_certificate), False, Factory.forProtocol(Server))
        self._protocol = factory.buildProtocol(None)
        self._transport = StringTransport()
        self._protocol.makeConnection(self._transport)
        self.connection: SSL.Connection = self._protocol.getHandle()
        self._to_client, self._from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self._to_client, self._from_client, server_hostname=server_name, session=session)

    def move(self) -> None:
        """Move what either side has written to the other, until there is nothing more."""
        while True:
            to_server, to_client = self._from_client.read(), self._transport.value()
            if not to_server and not to_client:
                return
            self._transport.clear()
            self._to_client.write(to_client)
            if to_server:
                self._protocol.dataReceived(to_server)

    def handshake(self) -> Pair:
        for _ in range(6):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.client.do_handshake()
            self.move()
        self.client.do_handshake()
        with contextlib.suppress(ssl.SSLWantReadError):  # takes the tickets, or the alert of a refused certificate
            self.client.read()
        return self

    def state(self) -> TlsState:
        return describe(self.connection)

    def certificate_names(self) -> set[str]:
        certificate = self.client.getpeercert(binary_form=True)
        assert certificate is not None
        return set(names_of(x509.load_der_x509_certificate(certificate)))


def client_context(authority: Authority | None, *, certificate: CertificateFiles | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if authority is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(authority.certificate_file)
    if certificate is not None:
        context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def shake_hands(client: SSL.Connection, server: SSL.Connection) -> None:
    for _ in range(4):
        for side, other in ((client, server), (server, client)):
            with contextlib.suppress(SSL.WantReadError):
                side.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(side.bio_read(65_536))


# ---------------------------------------------------------------- versions and ciphers


@pytest.mark.parametrize(("version", "name"), [("TLSv1_2", "TLSv1.2"), ("TLSv1_3", "TLSv1.3")])
def test_tls_1_2_and_1_3_are_spoken_and_described(authority: Authority, version: str, name: str) -> None:
    """RFC 9325 section 3.1.1."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    client = client_context(authority)
    client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
    state = Pair(contexts, client, server_name="mail.example.test").handshake().state()
    assert state.version == name
    assert state.cipher.startswith(("TLS_AES", "TLS_CHACHA20", "ECDHE-ECDSA-"))
    assert state.bits >= 128
    assert (state.server_name, state.client_certificate) == ("mail.example.test", None)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_connection_is_named_by_what_tls_1_3_exports(authority: Authority, version: str) -> None:
    """RFC 9266 section 2: 32 octets that both ends compute, under that label; nothing below TLS 1.3."""
    contexts = TlsContexts.load([authority.issue("mail")])
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_3_VERSION if version == "TLSv1_3" else SSL.TLS1_2_VERSION)
    bindings = []
    for _ in range(2):
        client, server = SSL.Connection(context, None), contexts.connection("none")
        client.set_connect_state()
        server.set_accept_state()
        shake_hands(client, server)
        bindings.append(
            (describe(server).channel_binding, client.export_keying_material(b"EXPORTER-Channel-Binding", 32))
        )
    if version == "TLSv1_2":
        assert [ours for ours, _ in bindings] == [None, None]
    else:
        assert all(ours == theirs for ours, theirs in bindings)
        assert bindings[0] != bindings[1]
        assert "channel_binding" not in repr(describe(server))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_is_refused(authority: Authority) -> None:
    """RFC 8996: TLS 1.0 and 1.1 MUST NOT be used."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    client = client_context(authority)
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|no.protocols"):
        Pair(contexts, client).handshake()


def test_the_minimum_version_may_be_1_3(authority: Authority) -> None:
    """[tls] minimum_version."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))], minimum_version="1.3")
    client = client_context(authority)
    assert Pair(contexts, client).handshake().state().version == "TLSv1.3"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        Pair(contexts, client).handshake()


@pytest.mark.parametrize("ciphers", ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384"])
def test_ciphers_without_authenticated_encryption_are_refused(authority: Authority, ciphers: str) -> None:
    """RFC 9325 section 4.2."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    client = client_context(authority)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(ciphers)
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        Pair(contexts, client).handshake()


def test_the_operator_chooses_the_ciphers(authority: Authority) -> None:
    """[tls] ciphers."""
    files = authority.issue("mail", names=("mail.example.test",))
    contexts = TlsContexts.load([files], ciphers="ECDHE-ECDSA-CHACHA20-POLY1305")
    client = client_context(authority)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert Pair(contexts, client).handshake().state().cipher == "ECDHE-ECDSA-CHACHA20-POLY1305"


@pytest.mark.parametrize("ciphers", ["nonsense", "ÄES", ":"])
def test_an_unknown_cipher_is_refused(ciphers: str) -> None:
    """Before it is served with."""
    with pytest.raises(ValueError, match="knows none"):
        check_ciphers(ciphers)


def test_there_is_no_compression(authority: Authority) -> None:
    """RFC 7457 section 2.6 (CRIME)."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    assert Pair(contexts, client_context(authority)).handshake().client.compression() is None


def test_there_is_no_renegotiation(authority: Authority) -> None:
    """RFC 9325 section 3.5: a client could make us work by asking for it again and again."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    client_side = SSL.Context(SSL.TLS_CLIENT_METHOD)
    client_side.set_max_proto_version(SSL.TLS1_2_VERSION)
    client, server = SSL.Connection(client_side, None), contexts.connection("none")
    client.set_connect_state()
    server.set_accept_state()
    shake_hands(client, server)
    client.renegotiate()
    with contextlib.suppress(SSL.WantReadError):
        client.do_handshake()
    server.bio_write(client.bio_read(65_536))
    with pytest.raises(SSL.WantReadError):
        server.recv(1)
    client.bio_write(server.bio_read(65_536))
    with pytest.raises(SSL.Error) as refused:
        client.do_handshake()
    assert "no renegotiation" in reason(refused.value)


# ---------------------------------------------------------------- which certificate


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        (None, "first.example.test"),
        ("first.example.test", "first.example.test"),
        ("unknown.test", "first.example.test"),
        ("second.example.test", "second.example.test"),
        ("SECOND.Example.TEST", "second.example.test"),
        ("a.wild.test", "*.wild.test"),
        ("exact.wild.test", "exact.wild.test"),
        ("a.b.wild.test", "first.example.test"),
        ("wild.test", "first.example.test"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("given.test", "third.example.test"),
        ("third.example.test", "first.example.test"),
    ],
)
def test_the_certificate_is_the_one_asked_for(authority: Authority, asked: str | None, served: str) -> None:
    """RFC 6066 section 3; RFC 9525 section 6.3: a wildcard stands for one label."""
    third = authority.issue("third", names=("third.example.test",))
    contexts = TlsContexts.load(
        [
            authority.issue("first", names=("first.example.test",)),
            authority.issue("second", names=("second.example.test", "xn--bcher-kva.example")),
            authority.issue("wild", names=("*.wild.test",)),
            authority.issue("exact", names=("exact.wild.test",)),
            CertificateFiles(third.certificate, third.key, ("given.test",)),
        ]
    )
    pair = Pair(contexts, client_context(authority), server_name=asked).handshake()
    assert served in pair.certificate_names()
    assert pair.state().server_name == (None if asked is None else asked.lower())


def test_of_two_certificates_with_one_name_the_earlier_serves_it(authority: Authority) -> None:
    """The order in the configuration decides."""
    first = authority.issue("first", names=("a.test",))
    early = authority.issue("early", names=("b.test", "early.test"))
    late = authority.issue("late", names=("b.test", "late.test"))
    pair = Pair(TlsContexts.load([first, early, late]), client_context(authority), server_name="b.test").handshake()
    assert "early.test" in pair.certificate_names()


def test_a_name_that_is_not_ascii_counts_as_none(authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    """RFC 6066 section 3 has ASCII only; a peer's octets must not raise in a callback."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    client.set_connect_state()
    client.set_tlsext_host_name(b"m\xffil.example.test")
    server = contexts.factory().serverConnectionForTLS(None)  # type: ignore[arg-type]  # it needs no protocol
    server.set_accept_state()
    shake_hands(client, server)
    assert describe(server).server_name is None
    assert describe(server).version == "TLSv1.3"
    assert capsys.readouterr().err == ""


def test_the_chain_is_sent(authority: Authority, tmp_path: Path) -> None:
    """RFC 8446 section 4.4.2."""
    files = authority.issue("mail", names=("mail.example.test",))
    files.certificate.write_bytes(files.certificate.read_bytes() + authority.certificate_file.read_bytes())
    contexts = TlsContexts.load([files])
    client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    client.set_connect_state()
    server = contexts.connection("none")
    server.set_accept_state()
    shake_hands(client, server)
    assert len(client.get_peer_cert_chain() or []) == 2


# ---------------------------------------------------------------- client certificates


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize(
    ("mode", "shown", "noted"),
    [
        ("none", "good", None),
        ("ask", None, None),
        ("ask", "good", "good"),
        ("ask", "foreign", None),
        ("ask", "expired", None),
        ("require", "good", "good"),
    ],
)
def test_a_client_certificate_is_noted_where_it_is_valid(
    authority: Authority, version: str, mode: ClientCertificate, shown: str | None, noted: str | None, tmp_path: Path
) -> None:
    """A server that shows a certificate which nobody here trusts stays welcome, and is not taken at its word."""
    foreign = Authority(tmp_path, datetime.now(UTC), name="elsewhere")
    certificates = {
        None: None,
        "good": authority.issue("good"),
        "foreign": foreign.issue("foreign"),
        "expired": authority.issue("expired", days=(-3, -2)),
    }
    contexts = TlsContexts.load(
        [authority.issue("first", names=("first.test",)), authority.issue("mail", names=("mail.example.test",))],
        client_ca=authority.certificate_file,
    )
    client = client_context(authority, certificate=certificates[shown])
    client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
    for server_name in (None, "mail.example.test"):
        pair = Pair(contexts, client, client_certificate=mode, server_name=server_name).handshake()
        assert pair.state().client_certificate == noted


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("shown", [None, "foreign", "expired"])
def test_without_a_valid_certificate_there_is_no_session_where_one_is_required(
    authority: Authority, shown: str | None, version: str, tmp_path: Path
) -> None:
    """Whatever name the client asks for."""
    foreign = Authority(tmp_path, datetime.now(UTC), name="elsewhere")
    certificates = {
        None: None,
        "foreign": foreign.issue("foreign"),
        "expired": authority.issue("expired", days=(-3, -2)),
    }
    contexts = TlsContexts.load(
        [authority.issue("first", names=("first.test",)), authority.issue("mail", names=("mail.example.test",))],
        client_ca=authority.certificate_file,
    )
    client = client_context(authority, certificate=certificates[shown])
    client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
    for server_name in (None, "mail.example.test"):
        with pytest.raises(ssl.SSLError, match=r"(?i)alert|certificate"):
            Pair(contexts, client, client_certificate="require", server_name=server_name).handshake()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_resumed_session_does_not_pass_for_a_verified_one(authority: Authority, version: str, tmp_path: Path) -> None:
    """Nothing is verified when a session is resumed; so there is no resumption where certificates are asked for."""
    foreign = Authority(tmp_path, datetime.now(UTC), name="elsewhere")
    contexts = TlsContexts.load(
        [authority.issue("mail", names=("mail.example.test",))], client_ca=authority.certificate_file
    )
    for files, noted in ((foreign.issue("foreign"), None), (authority.issue("good"), "good")):
        client = client_context(authority, certificate=files)
        client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
        first = Pair(contexts, client, client_certificate="ask").handshake()
        again = Pair(contexts, client, client_certificate="ask", session=first.client.session).handshake()
        assert not again.client.session_reused
        assert again.state().client_certificate == noted


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_sessions_are_resumed_by_ticket(authority: Authority, version: str) -> None:
    """RFC 8446 section 2.2, RFC 5077: a mail server that comes often saves both sides the signature."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    client = client_context(authority)
    client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
    first = Pair(contexts, client).handshake()
    assert Pair(contexts, client, session=first.client.session).handshake().client.session_reused


# ---------------------------------------------------------------- reload


def test_new_sessions_get_the_new_certificate_and_old_ones_go_on(authority: Authority) -> None:
    """SIGHUP after a renewal drops no session, not even one in the middle of its handshake."""
    contexts = TlsContexts.load([authority.issue("old", names=("old.example.test",))])
    client = client_context(authority)
    old = Pair(contexts, client, server_name="old.example.test").handshake()
    halfway = Pair(contexts, client, server_name="old.example.test")
    contexts.adopt(TlsContexts.load([authority.issue("new", names=("new.example.test",))]))
    gc.collect()
    assert "old.example.test" in halfway.handshake().certificate_names()
    assert "new.example.test" in Pair(contexts, client).handshake().certificate_names()
    old.client.write(b"NOOP\r\n")
    old.move()
    assert old.received == [b"NOOP\r\n"]


def test_a_reload_that_fails_leaves_what_was_there(authority: Authority, tmp_path: Path) -> None:
    """`load` makes new contexts or none."""
    good = authority.issue("good", names=("good.example.test",))
    other = authority.issue("other", names=("other.example.test",))
    contexts = TlsContexts.load([good])
    broken, missing = tmp_path / "broken.pem", tmp_path / "missing"
    broken.write_bytes(b"")
    with pytest.raises(UnusableFile, match=r"good.pem can't be served: .*mismatch"):
        TlsContexts.load([CertificateFiles(good.certificate, other.key)])
    with pytest.raises(UnusableFile, match=r"broken.pem holds no certificate"):
        TlsContexts.load([CertificateFiles(broken, good.key)])
    with pytest.raises(UnusableFile, match="missing can't be read: No such file"):
        TlsContexts.load([CertificateFiles(missing, good.key)])
    with pytest.raises(UnusableFile, match="missing can't be read: No such file"):
        TlsContexts.load([good], client_ca=missing)
    with pytest.raises(UnusableFile, match="can't be served"):
        TlsContexts.load([good], client_ca=broken)
    assert "good.example.test" in Pair(contexts, client_context(authority)).handshake().certificate_names()


# ---------------------------------------------------------------- bytes


def test_the_factory_is_what_twisted_wants(authority: Authority) -> None:
    """`startTLS` and `TLSMemoryBIOFactory` look for the interface."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    assert verifyObject(IOpenSSLServerConnectionCreator, contexts.factory("ask"))


@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 16_384, 65_536, 1_000_000])
@pytest.mark.parametrize("cut", [7_000, 65_536, 10_000_000])
def test_all_bytes_arrive_in_order_however_they_are_cut(authority: Authority, size: int, cut: int) -> None:
    """What Twisted reads at once is handed to OpenSSL in pieces; none may be lost or wait for the next read."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    pair = Pair(contexts, client_context(authority)).handshake()
    content = bytes(range(256)) * (size // 256 + 1)
    pair.client.write(content[:size])
    wire = pair._from_client.read()
    for start in range(0, len(wire), cut):
        pair._protocol.dataReceived(wire[start : start + cut])
    assert b"".join(pair.received) == content[:size]


def test_openssl_never_gets_more_than_it_may_keep(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory BIO never shrinks: what it was given at once stays with an idle session, which may have 50 KiB."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    pair = Pair(contexts, client_context(authority)).handshake()
    given: list[int] = []
    stock = SSL.Connection.bio_write

    def bio_write(connection: SSL.Connection, buf: bytes) -> int:
        given.append(len(buf))
        return stock(connection, buf)

    monkeypatch.setattr(SSL.Connection, "bio_write", bio_write)
    pair.client.write(bytes(1_000_000))
    pair.move()
    assert sum(given) > 1_000_000
    assert max(given) <= 8192


def test_a_handshake_may_come_with_what_follows_it(authority: Authority) -> None:
    """A client may send its Finished and its first bytes in one segment."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    pair = Pair(contexts, client_context(authority))
    with contextlib.suppress(ssl.SSLWantReadError):
        pair.client.do_handshake()
    pair.move()
    pair.client.do_handshake()
    pair.client.write(b"EHLO a.test\r\n" * 3000)
    pair.move()
    assert b"".join(pair.received) == b"EHLO a.test\r\n" * 3000


@pytest.mark.parametrize("junk", [b"EHLO plain.test\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 70_000, b"\0" * 20])
def test_what_is_no_handshake_ends_the_connection_and_raises_nothing(authority: Authority, junk: bytes) -> None:
    """A plain-text client on the implicit-TLS port, and a scanner."""
    contexts = TlsContexts.load([authority.issue("mail", names=("mail.example.test",))])
    pair = Pair(contexts, client_context(authority))
    pair._protocol.dataReceived(junk)
    assert pair._transport.disconnecting
    assert pair.received == []
