"""TLS as a client, with real servers on loopback: what each demand makes of each certificate."""

from __future__ import annotations

import hashlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from mailgate.certificate import CertificateFiles, UnusableFile, ensure_self_signed, read_chain
from mailgate.outbound.plan import TlsDemand, TlsLevel, TlsUsed
from mailgate.outbound.tls import ClientTls, TlsFailure
from mailgate.tls import TlsContexts
from tests.support.certificates import Authority
from tests.support.waiting import reactor

NAME = "mx.example.test"


@implementer(IHandshakeListener)
class Shaker(Protocol):
    """Tells of the end of the handshake, or of the connection."""

    def __init__(self) -> None:
        self.done: Deferred[SSL.Connection | Failure] = Deferred()

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        self.done.callback(transport.getHandle())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            self.done.callback(reason)


class ClientTlsTests(TestCase):
    """An authority that is trusted, and one that is not."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.authority = self.make_authority("trusted")
        self.stranger = self.make_authority("stranger")
        self.tls = ClientTls(self.authority.certificate_file)

    def make_authority(self, name: str) -> Authority:
        (self.folder / name).mkdir()
        return Authority(self.folder / name, datetime.now(UTC), name)

    def with_issuer(self, files: CertificateFiles, authority: Authority) -> CertificateFiles:
        """The same pair, with the authority's certificate behind the server's."""
        files.certificate.write_bytes(files.certificate.read_bytes() + authority.certificate_file.read_bytes())
        return files

    async def judged(
        self, files: CertificateFiles, demand: TlsDemand, *, minimum_version: Any = "1.2", host_name: str = NAME
    ) -> TlsUsed | TlsFailure:
        """What comes of a connection to a server that shows these certificates."""
        connection = await self.shaken(files, demand, minimum_version=minimum_version, host_name=host_name)
        assert isinstance(connection, SSL.Connection), connection
        return self.tls.judge(connection, demand, host_name)

    async def shaken(
        self, files: CertificateFiles, demand: TlsDemand, *, minimum_version: Any = "1.2", host_name: str = NAME
    ) -> SSL.Connection | Failure:
        contexts = TlsContexts.load([files], minimum_version=minimum_version)
        factory = TLSMemoryBIOFactory(contexts.factory(), False, Factory.forProtocol(Protocol))
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        way = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        shaker = await connectProtocol(wrapClientTLS(self.tls.creator(demand, host_name), way), Shaker())
        done: SSL.Connection | Failure = await shaker.done
        transport: Any = shaker.transport
        transport.abortConnection()
        return done

    # ------------------------------------------------------------------ VERIFY

    async def test_a_certificate_of_an_authority_for_the_name_is_verified(self) -> None:
        """RFC 8461 section 4.2, RFC 9525."""
        demand = TlsDemand(TlsLevel.VERIFY, "mta-sts", (NAME,))
        used = await self.judged(self.authority.issue("server", names=(NAME,)), demand)
        assert isinstance(used, TlsUsed), used
        assert (used.version, used.is_verified, used.source, used.tls_result) == ("TLSv1.3", True, "mta-sts", "")
        assert used.cipher.startswith("TLS_")

    async def test_what_is_wrong_with_a_certificate_has_a_name(self) -> None:
        """RFC 8460 section 4.3.1: the words of reports."""
        demand = TlsDemand(TlsLevel.VERIFY, "config", (NAME,))
        self_signed = ensure_self_signed(self.folder, NAME, now=datetime.now(UTC))
        for files, result in (
            (self.authority.issue("wrong", names=("other.test",)), "certificate-host-mismatch"),
            (self.authority.issue(NAME), "certificate-host-mismatch"),  # the common name does not count
            (self.authority.issue("old", names=(NAME,), days=(-30, -1)), "certificate-expired"),
            (self.authority.issue("early", names=(NAME,), days=(1, 30)), "certificate-expired"),
            (self.stranger.issue("foreign", names=(NAME,)), "certificate-not-trusted"),
            (self.with_issuer(self.stranger.issue("chain", names=(NAME,)), self.stranger), "certificate-not-trusted"),
            (self_signed, "certificate-not-trusted"),
        ):
            failure = await self.judged(files, demand)
            assert isinstance(failure, TlsFailure), (files, failure)
            assert failure.tls_result == result, (files, failure)
            assert NAME in failure.reason

    async def test_one_of_several_names_is_enough_and_an_asterisk_covers_a_label(self) -> None:
        """RFC 9525 section 6.3."""
        wildcard = self.authority.issue("wildcard", names=("*.example.test",))
        for names, is_good in ((("a.test", NAME), True), (("a.b.example.test",), False), (("example.test",), False)):
            judged = await self.judged(wildcard, TlsDemand(TlsLevel.VERIFY, "config", names))
            assert isinstance(judged, TlsUsed) is is_good, (names, judged)

    async def test_the_host_is_the_name_where_none_is_demanded(self) -> None:
        """Never any name at all."""
        files = self.authority.issue("server", names=("other.test",))
        judged = await self.judged(files, TlsDemand(TlsLevel.VERIFY))
        assert isinstance(judged, TlsFailure)

    async def test_an_address_is_a_name_too(self) -> None:
        """A smarthost that config calls by its address; it is not asked for by SNI (RFC 6066 section 3)."""
        files = ensure_self_signed(self.folder, "localhost", now=datetime.now(UTC))
        self.tls = ClientTls(files.certificate)
        demand = TlsDemand(TlsLevel.VERIFY, "config", ("127.0.0.1",))
        judged = await self.judged(files, demand, host_name="127.0.0.1")
        assert isinstance(judged, TlsUsed), judged
        judged = await self.judged(files, TlsDemand(TlsLevel.VERIFY, "config", ("127.0.0.2",)))
        assert isinstance(judged, TlsFailure)

    # ------------------------------------------------------------------ the others

    async def test_anything_does_where_nothing_is_demanded(self) -> None:
        """RFC 7435: better than plain text; it proves nothing."""
        files = self.stranger.issue("old", names=("other.test",), days=(-30, -1))
        for level in (TlsLevel.OPPORTUNISTIC, TlsLevel.ENCRYPT):
            used = await self.judged(files, TlsDemand(level), minimum_version="1.3")
            assert isinstance(used, TlsUsed)
            assert (used.version, used.is_verified, used.tls_result) == ("TLSv1.3", False, "")

    async def test_a_policy_in_testing_stops_nothing_and_is_counted(self) -> None:
        """RFC 8461 section 5: "testing"."""
        demand = TlsDemand(TlsLevel.OPPORTUNISTIC, "mta-sts", (NAME,), is_testing=True)
        used = await self.judged(self.stranger.issue("foreign", names=(NAME,)), demand)
        assert isinstance(used, TlsUsed)
        assert (used.is_verified, used.tls_result) == (False, "certificate-not-trusted")
        used = await self.judged(self.authority.issue("server", names=(NAME,)), demand)
        assert isinstance(used, TlsUsed)
        assert (used.is_verified, used.tls_result) == (True, "")

    async def test_dane_matches_what_is_shown_in_the_handshake(self) -> None:
        """RFC 7672 section 3: the end entity, or a trust anchor in the chain; no authority of ours has a say."""
        files = self.with_issuer(self.stranger.issue("server", names=(NAME,)), self.stranger)
        leaf, issuer = read_chain(files.certificate)
        for tlsa, is_good in (
            ((3, 1, 1, _key_digest(leaf)), True),
            ((2, 1, 1, _key_digest(issuer)), True),
            ((3, 1, 1, b"x" * 32), False),
            ((2, 1, 1, b"x" * 32), False),
        ):
            judged = await self.judged(files, TlsDemand(TlsLevel.DANE, "dane", (NAME,), (tlsa,)))
            assert isinstance(judged, TlsUsed) is is_good, (tlsa, judged)
            if isinstance(judged, TlsUsed):
                assert (judged.is_verified, judged.source) == (True, "dane")
            else:
                assert judged.tls_result == "validation-failure"

    async def test_the_host_is_asked_for_by_name(self) -> None:
        """RFC 7672 section 8.1 and RFC 8461 section 4.2 want SNI: a host has a certificate for each of its names."""
        first = self.authority.issue("first", names=("other.test",))
        second = self.authority.issue("second", names=(NAME,))
        contexts = TlsContexts.load([first, second])
        factory = TLSMemoryBIOFactory(contexts.factory(), False, Factory.forProtocol(Protocol))
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        demand = TlsDemand(TlsLevel.VERIFY, "mta-sts", (NAME,))
        way = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        shaker = await connectProtocol(wrapClientTLS(self.tls.creator(demand, NAME), way), Shaker())
        connection = await shaker.done
        transport: Any = shaker.transport
        assert isinstance(self.tls.judge(connection, demand, NAME), TlsUsed)
        transport.abortConnection()


def _key_digest(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


def test_authorities_that_can_not_be_read_are_told_of_at_the_start(tmp_path: Path) -> None:
    """With the file, and what is wrong with it."""
    with pytest.raises(UnusableFile, match="can't be read"):
        ClientTls(tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(UnusableFile, match="holds no certificate"):
        ClientTls(tmp_path / "empty.pem")


def test_the_systems_authorities_are_trusted_where_none_are_named() -> None:
    """At least it finds them without a fault."""
    ClientTls()
