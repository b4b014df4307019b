"""Asking the DNS: a stub resolver with a cache, for as many look-ups at once as there are sessions.

An answer that is known is returned at once. Else the servers are asked in order, over UDP and then TCP where an answer
was cut, each for a while and all together for no longer than the deadline; whoever asks for the same meanwhile waits
for the same. dnspython makes and reads the messages and goes from server to server; `mailgate.dns.backend` carries
them. Whatever the servers do, or don't, comes back as an `Answer`: a look-up costs its deadline at most, and raises
nothing.

The servers do the recursion, and the validation where there is any: we take the AD bit from them where config says that
they and the way to them can be trusted.

Standards: RFC 1034 section 5.3.1 (stub resolvers), RFC 2308 (negative answers), RFC 6891 (EDNS), RFC 6840 section 5.7
(asking for the AD bit), RFC 9520 (failures are remembered), resolv.conf(5).
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdatatype
import dns.resolver
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from mailgate.dns.answer import Answer, Outcome, Question, RecordType
from mailgate.dns.backend import Abandoned, TwistedBackend
from mailgate.dns.cache import AnswerCache, Key
from mailgate.dns.wire import WIRE_TYPES, ImpossibleName, normal_name, records_of, to_wire_name

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

DNS_PORT: Final = 53
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_RESOLV_CONF_SECONDS: Final = 30.0  # how old what we know of it may be
_LOCAL_SERVERS: Final = (("127.0.0.1", DNS_PORT), ("::1", DNS_PORT))  # resolv.conf(5), where it names none
_EDNS_OCTETS: Final = 1232  # fits any path without fragments
_MAX_NEGATIVE_SECONDS: Final = 10_800.0  # RFC 2308 section 5
_MAX_RESTARTS: Final = 8  # where a server gives a CNAME and not what it leads to
_MAX_TTL_SECONDS: Final = (1 << 31) - 1  # RFC 2181 section 8
_SHUNNED_SECONDS: Final = 30.0
_SHUNNED_AFTER: Final = 3  # look-ups in a row

_log = Logger()


def servers_from_resolv_conf(path: Path = _RESOLV_CONF) -> tuple[tuple[str, int], ...]:
    """The servers that this machine uses; those on the machine itself where the file names none."""
    servers = []
    with suppress(OSError):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            match line.split():
                case ["nameserver", address, *_]:
                    with suppress(ValueError):
                        ipaddress.ip_address(address)
                        servers.append((address, DNS_PORT))
    return tuple(servers) or _LOCAL_SERVERS


class _Server(dns.nameserver.Do53Nameserver):
    """A server, and until when others are asked before it because it does not answer.

    One look-up without an answer says little: the name's own servers may be the slow ones.
    """

    def __init__(self, reactor: Any, address: str, port: int) -> None:  # Any: as in CachingResolver
        super().__init__(address, port)
        self._reactor = reactor
        self.shunned_until = 0.0
        self._unanswered = 0  # look-ups since the last answer
        self._last_unanswered: dns.message.QueryMessage | None = None  # which is asked again, but counts once

    def __str__(self) -> str:
        return f"{self.address} port {self.port}"

    async def async_query(self, request: dns.message.QueryMessage, *args: Any, **kwargs: Any) -> dns.message.Message:
        """The response. A server that knows no EDNS is asked again without (RFC 6891 section 7).

        @raises dns.message.Truncated: it was cut; over TCP that makes no sense (RFC 2181 section 9).
        """
        try:
            response = await super().async_query(request, *args, **kwargs)
        except (dns.exception.Timeout, OSError) as error:
            if request is not self._last_unanswered:
                self._last_unanswered = request
                self._note_silence(error)
            raise
        if response.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP) and request.edns >= 0:
            request.use_edns(False)
            response = await super().async_query(request, *args, **kwargs)
        if response.flags & dns.flags.TC:
            raise dns.message.Truncated(message=response)  # type: ignore[no-untyped-call]  # dnspython's
        if self._unanswered >= _SHUNNED_AFTER:
            _log.info("DNS server {server} answers again", server=str(self))
        self._unanswered = 0
        self._last_unanswered = None
        self.shunned_until = 0.0
        return response

    def _note_silence(self, error: Exception) -> None:
        self._unanswered += 1
        if self._unanswered >= _SHUNNED_AFTER:
            self.shunned_until = self._reactor.seconds() + _SHUNNED_SECONDS
        if self._unanswered == _SHUNNED_AFTER:
            _log.warn("DNS server {server} does not answer: {problem}", server=str(self), problem=str(error))


class _Flight:
    """One look-up on its way, and who waits for it."""

    __slots__ = ("deadline", "key", "waiting", "work")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.waiting: list[Deferred[Answer]] = []
        self.deadline: IDelayedCall | None = None
        self.work: Deferred[Answer] | None = None  # None until there is room for it


class CachingResolver:
    """Looks things up for policies, the queue and the command line."""

    def __init__(
        self,
        reactor: Any,  # Any: one object with more interfaces than a type can name
        servers: Sequence[tuple[str, int]] = (),
        *,
        timeout_seconds: float = 5.0,
        deadline_seconds: float = 15.0,
        cache_entries: int = 20_000,
        minimum_ttl_seconds: float = 5.0,
        maximum_ttl_seconds: float = 86_400.0,
        failure_seconds: float = 10.0,
        trusts_ad: bool = False,
        max_running: int = 500,
        resolv_conf: Path = _RESOLV_CONF,
        backend: TwistedBackend | None = None,
    ) -> None:
        """Ask these servers, addresses and ports, in that order; where there are none, those that resolv.conf names.

        `timeout_seconds` is for one server at a time, `deadline_seconds` for the whole. What was learned is kept
        for its time to live, within the two bounds, and a failure for `failure_seconds`. At most `max_running` look-ups
        are on the wire at a time; the others wait, and their deadlines run. `backend` is how tests stand in for a
        network.
        """
        self._reactor = reactor
        self._seconds = reactor.seconds
        self._backend = backend or TwistedBackend(reactor)
        self._deadline_seconds = deadline_seconds
        self._minimum_ttl_seconds = minimum_ttl_seconds
        self._maximum_ttl_seconds = maximum_ttl_seconds
        self._failure_seconds = failure_seconds
        self._trusts_ad = trusts_ad
        self._max_running = max_running
        self._cache = AnswerCache(cache_entries)
        self._flights: dict[Key, _Flight] = {}
        self._queue: deque[_Flight] = deque()
        self._running = 0
        self._stub = dns.asyncresolver.Resolver(configure=False)
        self._stub.timeout = timeout_seconds
        self._stub.flags = dns.flags.RD | dns.flags.AD
        self._stub.use_edns(0, payload=_EDNS_OCTETS)
        self._resolv_conf = resolv_conf
        self.use_servers(servers)

    def use_servers(self, servers: Sequence[tuple[str, int]]) -> None:
        """Ask these servers from now on; where there are none, those that resolv.conf names then and later."""
        self._follows_resolv_conf = not servers
        self._exchange(servers or servers_from_resolv_conf(self._resolv_conf))

    def _exchange(self, places: Sequence[tuple[str, int]]) -> None:
        self._servers = tuple(_Server(self._reactor, address, port) for address, port in places)
        self._places = tuple(places)
        self._servers_known_at = self._seconds()

    def _follow_resolv_conf(self) -> None:
        """Ask whom resolv.conf names now: it may have been written after we were started."""
        if self._follows_resolv_conf and not 0 <= self._seconds() - self._servers_known_at < _RESOLV_CONF_SECONDS:
            self._servers_known_at = self._seconds()
            places = servers_from_resolv_conf(self._resolv_conf)
            if places != self._places:
                self._exchange(places)

    def lookup(self, name: str, record_type: RecordType) -> Answer | Deferred[Answer]:
        """The answer; at once where it is known. A failure is an answer too: this raises nothing.

        A name that no zone can hold is answered as one that does not exist, without asking, as RFC 7208 section 4.3 has
        it for SPF. Cancelling the Deferred ends the look-up, unless somebody else waits for the same.
        """
        key = (name, record_type)
        answer = self._cache.get(key, self._seconds())
        return self._look_up(key) if answer is None else answer

    def _look_up(self, key: Key) -> Answer | Deferred[Answer]:
        """What `lookup` does for a question that has no answer as it was put."""
        name, record_type = key
        try:
            normal = normal_name(name)
        except ImpossibleName as error:
            question = Question(name, record_type)
            return Answer(question, Outcome.NXDOMAIN, rcode="", answered_at=self._seconds(), detail=str(error))
        if normal != name:
            return self.lookup(normal, record_type)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(key)
            flight.deadline = self._reactor.callLater(self._deadline_seconds, self._give_up, flight)
            self._queue.append(flight)
        waiter: Deferred[Answer] = Deferred(lambda cancelled: self._leave(flight, cancelled))
        flight.waiting.append(waiter)
        self._run_next()
        return waiter

    def _leave(self, flight: _Flight, waiter: Deferred[Answer]) -> None:
        """Take one from those who wait; the last one takes the look-up along."""
        flight.waiting.remove(waiter)
        if not flight.waiting:
            self._end(flight)

    def _give_up(self, flight: _Flight) -> None:
        """The deadline has come."""
        detail = f"no answer from {self._named()} within {self._deadline_seconds:g} s"
        self._land(flight, self._failure(flight.key, detail))

    def _named(self) -> str:
        return ", ".join(str(server) for server in self._servers)

    def _failure(self, key: Key, detail: str, rcode: str = "") -> Answer:
        return Answer(Question(*key), Outcome.FAILURE, rcode=rcode, answered_at=self._seconds(), detail=detail)

    def _run_next(self) -> None:
        while self._queue and self._running < self._max_running:
            flight = self._queue.popleft()
            if self._flights.get(flight.key) is not flight:
                continue  # its time was over, or nobody waits any more
            self._running += 1
            flight.work = Deferred.fromCoroutine(self._ask(flight.key))
            flight.work.addCallbacks(self._arrived, self._failed, callbackArgs=(flight,), errbackArgs=(flight,))

    def _arrived(self, answer: Answer, flight: _Flight) -> None:
        self._running -= 1
        self._land(flight, answer)
        self._run_next()

    def _failed(self, failure: Failure, flight: _Flight) -> None:
        self._running -= 1
        if not failure.check(Abandoned, CancelledError):
            _log.failure("looking up {name} {type} failed", failure, name=flight.key[0], type=flight.key[1].value)
            self._land(flight, self._failure(flight.key, "an error in the resolver; the log has it"))
        self._run_next()

    def _land(self, flight: _Flight, answer: Answer) -> None:
        """Keep the answer, and give it to all who wait."""
        if self._flights.get(flight.key) is not flight:
            return
        self._cache.put(flight.key, answer, answer.answered_at + self._kept_seconds(answer))
        waiting, flight.waiting = flight.waiting, []
        self._end(flight)
        for waiter in waiting:
            waiter.callback(answer)

    def _end(self, flight: _Flight) -> None:
        del self._flights[flight.key]
        if flight.deadline is not None and flight.deadline.active():
            flight.deadline.cancel()
        if flight.work is not None:
            flight.work.cancel()
        self._run_next()

    def _kept_seconds(self, answer: Answer) -> float:
        if answer.outcome is Outcome.FAILURE:
            return self._failure_seconds
        longest = self._maximum_ttl_seconds
        if answer.outcome is not Outcome.ANSWER:
            longest = min(longest, _MAX_NEGATIVE_SECONDS)
        return min(max(answer.ttl_seconds, self._minimum_ttl_seconds), longest)

    async def _ask(self, key: Key) -> Answer:
        """What the servers say."""
        name = to_wire_name(key[0])
        longest = _MAX_TTL_SECONDS
        is_authenticated = self._trusts_ad
        for _ in range(_MAX_RESTARTS):
            try:
                response = await self._resolve(name, key[1])
            except dns.resolver.NoNameservers as error:
                return self._refused(key, error)
            except dns.exception.DNSException as error:
                return self._failure(key, str(error))
            is_authenticated = is_authenticated and bool(response.flags & dns.flags.AD)  # each alias on the way counts
            chain = response.resolve_chaining()
            longest = min(longest, chain.minimum_ttl)
            authority = {rrset.rdtype for rrset in response.authority}
            if chain.answer is None and dns.rdatatype.SOA not in authority:
                if chain.cnames and response.rcode() == dns.rcode.NOERROR:
                    name = chain.canonical_name
                    continue
                if dns.rdatatype.NS in authority:
                    return self._failure(key, f"{self._named()} refers us to others, and does not resolve")
                longest = 0  # RFC 2308 section 5: without SOA, it is not known how long this holds
            return self._answer(key, response, chain, longest, is_authenticated)
        return self._failure(key, "the name leads from alias to alias, and to no end")

    async def _resolve(self, name: dns.name.Name, record_type: RecordType) -> dns.message.QueryMessage:
        """The response of the first server that gives a good one."""
        self._follow_resolv_conf()
        now = self._seconds()
        self._stub.nameservers = [
            *(server for server in self._servers if server.shunned_until <= now),
            *(server for server in self._servers if server.shunned_until > now),
        ]
        try:
            found = await self._stub.resolve(
                name,
                WIRE_TYPES[record_type],
                raise_on_no_answer=False,
                lifetime=self._deadline_seconds,
                search=False,
                backend=self._backend,
            )
        except dns.resolver.NXDOMAIN as error:
            response: dns.message.QueryMessage = error.kwargs["responses"][name]
            return response
        return found.response

    def _answer(
        self,
        key: Key,
        response: dns.message.QueryMessage,
        chain: dns.message.ChainingResult,
        ttl_seconds: int,
        is_authenticated: bool,
    ) -> Answer:
        if chain.answer is not None:
            outcome = Outcome.ANSWER
        elif response.rcode() == dns.rcode.NXDOMAIN:
            outcome = Outcome.NXDOMAIN
        else:
            outcome = Outcome.NODATA
        return Answer(
            Question(*key),
            outcome,
            () if chain.answer is None else records_of(chain.answer),
            dns.rcode.to_text(response.rcode()),
            ttl_seconds,
            is_authenticated,
            self._seconds(),
        )

    def _refused(self, key: Key, error: dns.resolver.NoNameservers) -> Answer:
        """A failure that says of each server what it did."""
        reasons = []
        rcode = ""
        for server, _, _, reason, response in error.kwargs["errors"]:
            if response is not None:
                rcode = dns.rcode.to_text(response.rcode())
            reasons.append(f"{server}: {reason if isinstance(reason, str) else str(reason) or type(reason).__name__}")
        return self._failure(key, "; ".join(reasons), rcode)
