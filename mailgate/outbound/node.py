"""What one node has for delivery, put together of values: routes, TLS, connections, the queue's runner, reports.

It has three connections to the database: one claims, one settles, and one serves whatever else delivery asks.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, gatherResults

from mailgate.outbound.connection import ClientTimeouts, MailSender, connect
from mailgate.outbound.counted import counted
from mailgate.outbound.mta_sts_fetch import MtaStsPolicies, PolicyHost
from mailgate.outbound.mx import Survey
from mailgate.outbound.origin import Originator
from mailgate.outbound.plan import PublishedPolicy
from mailgate.outbound.route import Router
from mailgate.outbound.runner import QueueRunner, RunnerSettings
from mailgate.outbound.suppression import THRESHOLD
from mailgate.outbound.tls import ClientTls
from mailgate.outbound.tls_report import TlsCounts
from mailgate.storage.literal import settle
from mailgate.storage.mta_sts import MtaStsTable
from mailgate.storage.pool import Connection
from mailgate.storage.queue import Queue, queue_setup
from mailgate.storage.suppressions import SuppressionStore, SuppressionWriter
from mailgate.storage.tls_results import TlsResultWriter

if TYPE_CHECKING:
    from mailgate.dns.settle import Resolver
    from mailgate.ids import IdGenerator
    from mailgate.outbound.delivery import Limits
    from mailgate.outbound.plan import Host, Route
    from mailgate.outbound.route import RouterSettings
    from mailgate.policy.signing import Signing
    from mailgate.storage.directory import Directory


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """What an operator has to say of delivery."""

    helo: str
    author: str  # the address that notices are from
    router: RouterSettings
    limits: Callable[[Route], Limits]
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    timeouts: ClientTimeouts = field(default_factory=ClientTimeouts)
    source_addresses: Sequence[str] = ()
    ca_file: Path | None = None
    uses_mta_sts: bool = True
    suppress_days: int = 0  # for how long addresses that failed for good are refused; 0: they are not


class NodeDelivery:
    """Delivery on this node."""

    def __init__(
        self,
        reactor: Any,  # Any: one object with more interfaces than a type can name
        dsn: str,
        settings: DeliverySettings,
        *,
        instance: int,
        node: str,
        ids: IdGenerator,
        resolver: Resolver,
        directory: Directory,
        signing: Signing | None,
    ) -> None:
        """Connect to the database, without waiting for it.

        @raises mailgate.certificate.UnusableFile: the file with authorities can't be used.
        """
        self._reactor = reactor
        self._settings = settings
        self._client_tls = ClientTls(settings.ca_file)
        self._sources = {ipaddress.ip_address(address).version: address for address in settings.source_addresses}
        self.connection = Connection(reactor, dsn, name="mailgate-delivery", setup=settle)
        claiming = Connection(reactor, dsn, name="mailgate-claims", setup=queue_setup)
        settling = Connection(reactor, dsn, name="mailgate-settlements", setup=queue_setup)
        self.connections = (self.connection, claiming, settling)
        self._counts = TlsCounts(time.time)
        self._tls_results = TlsResultWriter(reactor, self.connection, self._counts)
        self.suppressions: SuppressionStore | None = None
        self._failures: SuppressionWriter | None = None
        if settings.suppress_days:
            self.suppressions = SuppressionStore(
                self.connection, days=settings.suppress_days, threshold=THRESHOLD, time=time.time
            )
            self._failures = SuppressionWriter(reactor, self.suppressions)
        self._policies = self._mta_sts(resolver) if settings.uses_mta_sts else None
        self._router = Router(resolver, settings.router, policies=self._policies, counts=self._counts)
        originator = Originator(
            ids, directory, hostname=settings.helo, author=settings.author, time=time.time, signer=signing
        )
        self.runner = QueueRunner(
            reactor,
            Queue(claiming, settling, instance=instance, node=node, time=time.time),
            router=self._router,
            connect=self._connect,
            telling=originator,
            claims=ids,
            limits=settings.limits,
            settings=settings.runner,
            random=SystemRandom(),
            time=time.time,
            usage=directory.note_usage,
            failed=self._failed,
        )

    def start(self, control: Connection) -> None:
        """Deliver until `stop`; `control` hears of new mail."""
        self._tls_results.start()
        if self._failures is not None:
            self._failures.start()
        self.runner.start(control)

    def use(self, settings: DeliverySettings) -> None:
        """Find routes by these settings from now on; the rest of them waits for a restart."""
        self._router.use(settings.router)
        self.runner.use(settings.limits)

    async def stop(self, seconds: float) -> None:
        """Let what is under way come to an end, for so long at most, and write what came of it."""
        await self.runner.stop(seconds)
        await gatherResults([Deferred.fromCoroutine(each) for each in self._ends()])

    def _ends(self) -> Sequence[Coroutine[Deferred[Any], Any, None]]:
        ends = [self._tls_results.stop()]
        if self._failures is not None:
            ends.append(self._failures.stop())
        return ends if self._policies is None else [*ends, self._policies.stop()]

    def _failed(self, address: str, status: str, reply: str) -> None:
        if self._failures is not None:
            self._failures.failed(address, status, reply)

    def _mta_sts(self, resolver: Resolver) -> MtaStsPolicies:
        settings = self._settings
        survey = Survey(
            order=settings.router.address_order, allows_private_addresses=settings.router.allows_private_addresses
        )
        host = PolicyHost(self._reactor, resolver, ca_file=settings.ca_file, survey=survey)

        def failed(domain: str, result: str, reason: str) -> None:
            self._counts.count(PublishedPolicy(domain, "sts"), "", result, reason=reason)

        return MtaStsPolicies(resolver, host.fetch, MtaStsTable(self.connection), time=time.time, failed=failed)

    async def _connect(self, route: Route, host: Host, address: str) -> MailSender:
        """A sender to that address. @raises HostUnusable: there is none."""
        source = None if host.unix_path else self._sources.get(ipaddress.ip_address(address).version)
        connecting = connect(
            self._reactor,
            host,
            address,
            protocol=route.protocol,
            credentials=route.credentials,
            helo=self._settings.helo,
            timeouts=self._settings.timeouts,
            tls=self._client_tls,
            time=time.time,
            source_address=source,
            needs_requiretls=route.needs_requiretls,
        )
        return await counted(connecting, host, self._counts, sending_address=source or "")
