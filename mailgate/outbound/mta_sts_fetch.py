"""Which MTA-STS policy holds for a domain: found by its TXT record, fetched over HTTPS, kept for as long as it says.

`MtaStsPolicies` decides: a policy that was fetched holds until its max_age is over, whatever becomes of record and
host, since who can suppress these is whom it is to protect from (RFC 8461 section 10.2). It is fetched again when the
record has another id, and once a day so that it does not run out. `PolicyHost` is the HTTPS client: its addresses come
from our resolver and are public ones, the name is verified, redirects are not followed.

One fetch of a domain is under way at a time. What came of it is kept in memory for five minutes, the failure too (RFC
8461 section 3.3 asks for as much), and policies in the database, for all nodes.

Standards: RFC 8461 sections 3.1 to 3.3, 5.1 and 10.2, RFC 9110 (HTTP), RFC 8460 section 4.3.2.2 (result types).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol as Receiver
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, ResponseDone, ResponseFailed
from twisted.web.error import Error as WebError
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from zope.interface import implementer

from mailgate.certificate import UnusableFile, read_chain
from mailgate.dns.answer import Answer, Outcome, RecordType
from mailgate.dns.settle import Resolver, settle
from mailgate.outbound.mta_sts import (
    MAX_POLICY_OCTETS,
    NOT_KNOWN,
    InvalidPolicy,
    NotKnown,
    Policy,
    policy_id,
    read_policy,
)
from mailgate.outbound.mx import Survey
from mailgate.storage.errors import StorageUnavailable

HTTPS_PORT: Final = 443
_FETCH_SECONDS: Final = 60.0  # RFC 8461 section 3.3
_CONNECT_SECONDS: Final = 15.0  # to one address
_MAX_ADDRESSES: Final = 4
_MAX_RECEIVED_OCTETS: Final = 4 * MAX_POLICY_OCTETS  # of a connection, with its handshake and the response's header
_REMEMBERED_SECONDS: Final = 300.0
_REFRESHED_SECONDS: Final = 86_400.0
_MAX_REMEMBERED: Final = 10_000

_log = Logger()


@dataclass(frozen=True, slots=True)
class KeptPolicy:
    """A policy as it is kept in the database."""

    policy: Policy
    policy_id: str
    fetched_at: float  # seconds since the epoch

    @property
    def expires_at(self) -> float:
        """Until when it holds."""
        return self.fetched_at + self.policy.max_age_seconds


class PolicyStore(Protocol):
    """Where policies are kept for all nodes: `mailgate.storage.mta_sts`."""

    async def get(self, domain: str) -> KeptPolicy | None:
        """What is kept, expired or not. @raises StorageUnavailable: it can't be asked."""

    async def put(self, domain: str, kept: KeptPolicy) -> None:
        """Keep it in place of an older one. @raises StorageUnavailable: it can't be."""


class PolicyUnavailable(Exception):
    """A policy could not be fetched, or is none; `result` says so in the words of RFC 8460 section 4.3.2.2."""

    def __init__(self, result: str, reason: str) -> None:
        """`reason` is for people."""
        super().__init__(reason)
        self.result = result


@dataclass(slots=True)
class _Known:
    """What a domain's policy was found to be, and until when nobody asks again."""

    kept: KeptPolicy | None
    is_certain: bool
    until: float


class MtaStsPolicies:
    """Answers which policy holds now."""

    def __init__(
        self,
        resolver: Resolver,
        fetch: Callable[[str], Deferred[bytes]],
        store: PolicyStore,
        *,
        time: Callable[[], float],
        failed: Callable[[str, str, str], None] = lambda domain, result, reason: None,
    ) -> None:
        """`fetch` fails with PolicyUnavailable. `failed` hears of each fetch that came to nothing, to count it."""
        self._resolver = resolver
        self._fetch = fetch
        self._store = store
        self._time = time
        self._failed = failed
        self._is_stopped = False
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._flights: dict[str, Deferred[None]] = {}
        self._waiting: dict[str, list[Deferred[Policy | NotKnown | None]]] = {}

    def policy(self, domain: str) -> Policy | NotKnown | Deferred[Policy | NotKnown | None] | None:
        """The policy that holds for the domain, in A-form; at once where that was found out a short while ago.

        The Deferred does not fail; who cancels it only stops waiting.
        """
        known = self._known.get(domain)
        if known is not None and self._time() < known.until:
            self._known.move_to_end(domain)
            return self._in_force(known)
        waiter: Deferred[Policy | NotKnown | None] = Deferred(lambda waiter: self._waiting[domain].remove(waiter))
        self._waiting.setdefault(domain, []).append(waiter)
        if domain not in self._flights:
            flight = Deferred.fromCoroutine(self._find_out(domain))
            if domain in self._waiting:  # else it went through at once
                self._flights[domain] = flight
            flight.addErrback(self._broke, domain)
        return waiter

    async def stop(self) -> None:
        """Give up what is under way; who waits for it goes on with what is kept."""
        self._is_stopped = True
        for flight in list(self._flights.values()):
            flight.cancel()

    async def _find_out(self, domain: str) -> None:
        found = _Known(None, False, 0.0)
        try:
            found.kept, found.is_certain = await self._present(domain)
        finally:
            self._flights.pop(domain, None)
            now = self._time()
            found.until = now + _REMEMBERED_SECONDS
            if found.kept is not None and now < found.kept.expires_at:
                found.until = min(found.until, found.kept.expires_at)
            self._known[domain] = found
            self._known.move_to_end(domain)
            while len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)
            for waiter in self._waiting.pop(domain, ()):
                waiter.callback(self._in_force(found))

    async def _present(self, domain: str) -> tuple[KeptPolicy | None, bool]:
        """What is kept already, or what its record leads to; and whether that is for certain."""
        kept = await self._kept(domain)
        answer = self._resolver.lookup(f"_mta-sts.{domain}", RecordType.TXT)
        if not isinstance(answer, Answer):
            answer = await answer
        identifier = policy_id(answer.records)
        now = self._time()
        if identifier is None or (
            kept is not None
            and kept.policy_id == identifier
            and kept.fetched_at <= now < min(kept.expires_at, kept.fetched_at + _REFRESHED_SECONDS)
        ):
            return kept, answer.outcome is not Outcome.FAILURE
        try:
            policy = self._read(await self._fetch(domain))
        except PolicyUnavailable as error:
            _log.info("no MTA-STS policy from {domain}: {reason}", domain=domain, reason=str(error))
            if not self._is_stopped:
                self._failed(domain, error.result, str(error))
            return kept, False
        fresh = KeptPolicy(policy, identifier, now)
        try:
            await self._store.put(domain, fresh)
        except StorageUnavailable as error:
            _log.info("the MTA-STS policy of {domain} is not kept: {reason}", domain=domain, reason=str(error))
        return fresh, True

    async def _kept(self, domain: str) -> KeptPolicy | None:
        try:
            return await self._store.get(domain)
        except StorageUnavailable as error:
            _log.info("whether a policy of {domain} is kept is unknown: {reason}", domain=domain, reason=str(error))
            known = self._known.get(domain)
            return None if known is None else known.kept

    def _read(self, octets: bytes) -> Policy:
        try:
            return read_policy(octets)
        except InvalidPolicy as error:
            raise PolicyUnavailable("sts-policy-invalid", f"what was fetched is no policy: {error}") from error

    def _in_force(self, known: _Known) -> Policy | NotKnown | None:
        kept = known.kept
        if kept is not None and self._time() < kept.expires_at:
            return kept.policy
        return None if known.is_certain else NOT_KNOWN

    def _broke(self, failure: Failure, domain: str) -> None:
        if not failure.check(CancelledError):
            _log.failure("looking for the MTA-STS policy of {domain} failed", failure, domain=domain)


class PolicyHost:
    """Fetches policies over HTTPS."""

    def __init__(
        self,
        reactor: Any,  # Any: one object with more interfaces than a type can name
        resolver: Resolver,
        *,
        ca_file: Path | None = None,
        survey: Survey | None = None,
        port: int = HTTPS_PORT,
    ) -> None:
        """`survey` says which addresses are tried; `ca_file` holds the authorities in place of the system's.

        @raises UnusableFile: the file can't be read, or holds no certificate.
        """
        self._reactor = reactor
        self._resolver = resolver
        self._survey = survey if survey is not None else Survey()
        self._port = port
        self._trust = platformTrust() if ca_file is None else trustRootFromCertificates(_authorities(ca_file))

    def fetch(self, domain: str) -> Deferred[bytes]:
        """The octets of the domain's policy file, not read yet. It takes a minute at most.

        The Deferred fails with PolicyUnavailable.
        """
        fetched = Deferred.fromCoroutine(self._fetch(domain))
        return fetched.addTimeout(_FETCH_SECONDS, self._reactor).addErrback(_too_late)

    async def _fetch(self, domain: str) -> bytes:
        host = f"mta-sts.{domain}"
        settled = settle(lambda answers: self._survey.host(host, answers), self._resolver)
        found = await settled if isinstance(settled, Deferred) else settled
        if found.problem is not None:
            raise PolicyUnavailable("sts-policy-fetch-error", " ".join(found.problem.lines))
        factory = _Endpoints(self._reactor, found.addresses[:_MAX_ADDRESSES], self._port, host, self._trust)
        agent = Agent.usingEndpointFactory(self._reactor, factory)
        url = f"https://{host}/.well-known/mta-sts.txt".encode("ascii")
        try:
            response: IResponse = await agent.request(b"GET", url, Headers({b"User-Agent": [b"mailgate"]}))
            _check(response)
            return await _body_of(response)
        except (ResponseFailed, SSL.Error, VerificationError, CertificateError) as error:
            raise _unavailable(host, error) from error
        except (ConnectError, ConnectionClosed, WebError) as error:
            raise PolicyUnavailable("sts-policy-fetch-error", f"{host}: {error}") from error
        finally:
            factory.abort()


def _authorities(ca_file: Path) -> list[Certificate]:
    try:
        return [Certificate(X509.from_cryptography(certificate)) for certificate in read_chain(ca_file)]
    except OSError as error:
        raise UnusableFile(ca_file, f"can't be read: {error.strerror}") from error


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Leads the HTTP client to the addresses that we have found, and to no other host."""

    def __init__(self, reactor: Any, addresses: Sequence[str], port: int, host: str, trust: Any) -> None:
        # Any: as in PolicyHost; what platformTrust gives has no public type
        self._reactor = reactor
        self._addresses = addresses
        self._port = port
        self._host = host
        self._trust = trust
        self._connection: Any = None  # Any: Twisted's ITransport lacks abortConnection

    def abort(self) -> None:
        """End the connection, whatever is still on its way; nobody reads it."""
        if self._connection is not None:
            self._connection.transport.abortConnection()

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802 - Twisted calls it
        """A way to the host, whose certificate is verified for its name."""
        return wrapClientTLS(optionsForClientTLS(self._host, self._trust), _InTurn(self))

    async def connect(self, factory: IProtocolFactory) -> IProtocol:
        """A connection to the first address that takes one. @raises ConnectError: none does."""
        problem: ConnectError | None = None
        for address in self._addresses:
            kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            endpoint = kind(self._reactor, address, self._port, timeout=_CONNECT_SECONDS)
            try:
                # Any: to mypy a wrapper is no IProtocol
                bounded: Any = await endpoint.connect(_BoundedFactory(factory))  # type: ignore[no-untyped-call]
            except ConnectError as error:
                problem = error
            else:
                self._connection = bounded.wrappedProtocol
                return self._connection  # type: ignore[no-any-return]  # what `factory` has made
        raise problem or ConnectError(string="it has no address")


class _Bounded(ProtocolWrapper):
    """A connection that ends where a host sends more than any policy needs: the HTTP client bounds no header."""

    _received_octets = 0

    def dataReceived(self, data: bytes) -> None:
        """Count, and pass on."""
        self._received_octets += len(data)
        if self._received_octets > _MAX_RECEIVED_OCTETS:
            self.abortConnection()
        else:
            super().dataReceived(data)  # type: ignore[no-untyped-call]  # Twisted's


class _BoundedFactory(WrappingFactory):
    protocol = _Bounded
    noisy = False


@implementer(IStreamClientEndpoint)
class _InTurn:
    """Several addresses as one endpoint."""

    def __init__(self, endpoints: _Endpoints) -> None:
        self._endpoints = endpoints

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """As `_Endpoints.connect`."""
        return Deferred.fromCoroutine(self._endpoints.connect(factory))


def _check(response: IResponse) -> None:
    """Go on if this is a policy file (RFC 8461 section 3.3). @raises PolicyUnavailable: it is not."""
    if response.code != 200:
        raise PolicyUnavailable("sts-policy-fetch-error", f"the policy host answered {response.code}")
    (kind,) = response.headers.getRawHeaders(b"content-type", [b""])[:1]
    if kind.partition(b";")[0].strip().lower() != b"text/plain":
        problem = f"the policy file is {kind[:60]!r} and not text/plain"
        raise PolicyUnavailable("sts-policy-fetch-error", problem)


async def _body_of(response: IResponse) -> bytes:
    body = _Body(MAX_POLICY_OCTETS)
    response.deliverBody(body)
    return await body.whole


class _Body(Receiver):
    """Collects so many octets; beyond them they are not wanted at all."""

    def __init__(self, at_most: int) -> None:
        self.whole: Deferred[bytes] = Deferred()
        self._at_most = at_most
        self._octets = b""

    def dataReceived(self, data: bytes) -> None:
        """A piece."""
        self._octets += data
        if len(self._octets) > self._at_most:
            self._octets = b""
            self._finish(PolicyUnavailable("sts-policy-invalid", f"it has more than {self._at_most} octets"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of it, or of the connection before."""
        if reason.check(ResponseDone):
            self._finish(self._octets)
        else:
            self._finish(PolicyUnavailable("sts-policy-fetch-error", "the connection was lost before the file's end"))

    def _finish(self, outcome: bytes | PolicyUnavailable) -> None:
        if self.whole.called:
            return
        if isinstance(outcome, bytes):
            self.whole.callback(outcome)
        else:
            self.whole.errback(outcome)


def _unavailable(host: str, error: Exception) -> PolicyUnavailable:
    """Whether it is the certificate or the connection that is wrong."""
    reasons = [reason.value for reason in error.reasons] if isinstance(error, ResponseFailed) else [error]
    for reason in reasons:
        if isinstance(reason, (SSL.Error, VerificationError, CertificateError)):
            return PolicyUnavailable("sts-webpki-invalid", f"the certificate of {host} does not do: {reason!r}"[:300])
        if isinstance(reason, CancelledError):
            return _too_slow()
    said = "; ".join(str(reason) for reason in reasons) or type(error).__name__
    return PolicyUnavailable("sts-policy-fetch-error", f"{host}: {said}"[:300])


def _too_late(failure: Failure) -> Failure:
    if failure.check(TimeoutError):
        raise _too_slow()
    return failure


def _too_slow() -> PolicyUnavailable:
    return PolicyUnavailable("sts-policy-fetch-error", f"it took longer than {_FETCH_SECONDS:.0f} s")
