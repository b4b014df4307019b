"""Every case of the RFC 7208 test suite, over UDP and TCP, through the resolver and the policy."""

from __future__ import annotations

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.trial.unittest import TestCase

from mailgate.dns.backend import TwistedBackend
from mailgate.dns.resolver import CachingResolver
from mailgate.policy.spf import SpfOptions
from tests.support.dns_server import LoopbackServer, from_zone
from tests.support.spf_suite import Case, cases, result_at, verdicts, zone_of
from tests.support.waiting import reactor, until


class SuiteOnTheWire(TestCase):
    """Each case has a server and a resolver of its own."""

    timeout = 60

    async def test_the_suite_of_the_standard_passes(self) -> None:
        """What is silent in the suite is silent here, and comes to temperror by the resolver's deadline."""
        few = DeferredSemaphore(16)
        wrong = await gatherResults(
            [few.run(Deferred.fromCoroutine, self.differs(case)) for case in cases()], consumeErrors=True
        )
        assert not list(filter(None, wrong))

    async def differs(self, case: Case) -> str:
        """Why it is wrong, or nothing."""
        backend = TwistedBackend(reactor)
        server = LoopbackServer(reactor, from_zone(zone_of(case)))
        resolver = CachingResolver(reactor, [server.place], timeout_seconds=1.5, deadline_seconds=1.5, backend=backend)
        try:
            _, verdict = await verdicts(case, resolver, SpfOptions())
        finally:
            await server.stop()
            await until(reactor, lambda: backend.open_sockets == 0, what="the sockets' end")
        result = result_at(verdict)
        if result.result.value not in case.results or case.explanation not in (None, result.explanation):
            return f"{case.name} ({case.section}): {result}"
        return ""
