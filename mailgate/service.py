"""From a configuration to a running mail server, and back to none.

Everything is built here and handed values; nothing below sees a Config. The order of a start is the promise that READY
makes: the database has answered and may be worked with, then the ports are bound, then the service manager and people
hear of it. The order of a stop is the promise that 250 makes: no new connections, every message that is being received
is dealt with, what is on its way to the database gets there, then the connections to it end.

SIGHUP reads the configuration again: certificates, limits and tolerances change for new sessions, policies for
the next decision of every session; no session is dropped, and a broken file changes nothing.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mailgate import instance
from mailgate.accounts.authenticator import Offer
from mailgate.accounts.node import NodeAccounts, node_accounts
from mailgate.accounts.plugin import UnusableChecker
from mailgate.auth.arc import ArcOptions
from mailgate.auth.srs import Srs
from mailgate.binding import listen_tcp, name_of
from mailgate.certificate import UnusableFile, ensure_self_signed
from mailgate.config import DATA_LOSS_SENTENCE, Config, ConfigError, load_config, reloadable_differences
from mailgate.dns.resolver import CachingResolver
from mailgate.ids import IdGenerator
from mailgate.listener import MailFactory
from mailgate.notify import Notifier
from mailgate.outbound.node import DeliverySettings, NodeDelivery
from mailgate.policy.arc import ArcPolicy
from mailgate.policy.chain import Chain, Member
from mailgate.policy.fingerprint import PolicyConfiguration, configuration_of
from mailgate.policy.forwarding import ForwardingPolicy
from mailgate.policy.limits import LimitsPolicy, Usage
from mailgate.policy.plugin import PolicyThreads, Services, make_policy, providers
from mailgate.policy.recipients import RecipientsPolicy, Rewriting
from mailgate.policy.results import ResultsPolicy
from mailgate.policy.signing import Signing
from mailgate.policy.stage import Role, Stage
from mailgate.policy.submission import SubmissionPolicy
from mailgate.policy.suppression import SuppressionPolicy
from mailgate.reports.daily import DailyReports
from mailgate.reports.inbound import InboundReports
from mailgate.sealing import UnusableKey, find_master_key
from mailgate.settings import (
    auth_offer,
    ban_bounds,
    delivery_settings,
    node_limits,
    report_settings,
    sending_limits,
    session_rules,
)
from mailgate.smtp.grammar import domain_key, local_key
from mailgate.storage.directory import Directory
from mailgate.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError, EmbeddedPostgresService
from mailgate.storage.errors import DatabaseRefused, StorageUnavailable
from mailgate.storage.forwarded import reverse_path_of
from mailgate.storage.journal import Journal
from mailgate.storage.literal import settle
from mailgate.storage.mailbox import MailboxWriter, draw_instance, instance_setup, writer_setup
from mailgate.storage.pool import Connection, Pool, check_server
from mailgate.storage.reports import ReportStore
from mailgate.storage.retention import Retention
from mailgate.storage.secret import shared_secret
from mailgate.storage.senders import Senders
from mailgate.storage.signing_keys import SigningKeys
from mailgate.submission.local_users import LocalUsers, local_users
from mailgate.tls import TlsContexts

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from mailgate.config import Listener

_DATABASE_PATIENCE_SECONDS = 10.0  # between two lines that say that the database does not answer


class StartFailed(Exception):
    """The service can't start, and waiting won't help; the message is for people."""


class MailgateService(MultiService):
    """The whole of mailgate in one process."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,  # Any: one object with more interfaces than a type can name
        config: Config,
        *,
        failed: Callable[[], None],
        environ: dict[str, str] | None = None,
    ) -> None:
        """`failed` is called before the reactor is stopped because the start has failed."""
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted gives Service no types
        self._reactor = reactor
        self._config = config
        self._failed = failed
        self._notifier = Notifier(os.environ if environ is None else environ, reactor)
        self._usage = Usage()
        self._starting: Deferred[None] | None = None
        self._embedded: EmbeddedPostgresService | None = None
        self._databases: list[Connection | Pool] = []
        self._control: Connection | None = None
        self._behind: Connection | None = None
        self._reporting: Connection | None = None
        self._directory: Directory | None = None
        self._senders: Senders | None = None
        self._signing_keys: SigningKeys | None = None
        self._signing: Signing | None = None
        self._rewriting: Rewriting | None = None
        self._writer: MailboxWriter | None = None
        self._journal: Journal | None = None
        self._retention: Retention | None = None
        self._delivery: NodeDelivery | None = None
        self._reports: tuple[InboundReports | DailyReports, ...] = ()
        dns = config.dns
        self._resolver = CachingResolver(
            reactor,
            dns.servers,
            timeout_seconds=dns.timeout_seconds,
            deadline_seconds=dns.deadline_seconds,
            cache_entries=dns.cache_entries,
            maximum_ttl_seconds=dns.maximum_ttl_seconds,
            trusts_ad=dns.trusts_ad,
        )
        self._threads: PolicyThreads | None = None
        self._accounts: NodeAccounts | None = None
        self._limits_policy = LimitsPolicy(node_limits(config), self._usage)
        self._tls: TlsContexts | None = None
        self._factories: dict[str, MailFactory] = {}
        self._ports: list[tuple[Listener, IListeningPort]] = []
        self._old_sighup: Any = None  # Any: what signal.signal gives back
        self._is_announced = False

    # ------------------------------------------------------------ start

    def startService(self) -> None:
        """Begin the start; READY comes when it is done."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted gives Service no types
        # From the first moment: the default would end the process.
        self._old_sighup = signal.signal(signal.SIGHUP, self._sighup)
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._start_failed)

    async def _start(self) -> None:
        config = self._config
        self._tls = _load_tls(config)
        dsn = await self._database()
        instance_number = await self._open_database(dsn)
        ids = IdGenerator(instance_number, time.time)
        await self._bootstrap()
        if config.outbound.enabled:
            self._delivery = await self._open_delivery(dsn, instance_number, ids)
        assert self._directory is not None  # noqa: S101  # made by _open_database
        try:
            chain = self._make_chain(config)
        except ValueError as error:
            raise StartFailed(f"the policies can't be chained: {error}") from error
        for listener in config.listeners:
            self._factories[listener.name] = self._factory(listener, chain, ids)
        await self._listen()
        self._start_sending(ids)
        self._notifier.watchdog().setServiceParent(self)  # type: ignore[no-untyped-call]  # Twisted's has no types
        self._announce()
        self._notifier.ready(f"Listening on {', '.join(self._places())}")

    async def _database(self) -> str:
        database = self._config.database
        if not database.embedded:
            assert database.dsn is not None  # noqa: S101  # the configuration is refused without either
            return database.dsn
        postgres = EmbeddedPostgres(database.embedded_folder)
        self._notifier.status("Starting the embedded PostgreSQL")
        dsn: str = await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), postgres.start)
        self._embedded = EmbeddedPostgresService(self._reactor, postgres)
        self._embedded.startService()
        return dsn

    async def _open_database(self, dsn: str) -> int:
        """Connect everything that works with the database; the number of this instance."""
        config, database = self._config, self._config.database
        pool = self._keep(Pool(self._reactor, dsn, size=database.pool_connections, name="mailgate-directory"))
        await self._wait_for(pool)
        await check_server(pool, allow_unsafe_durability=database.accept_data_loss == DATA_LOSS_SENTENCE)
        number = await draw_instance(pool.execute)
        setup = instance_setup(number)
        control = self._keep(Connection(self._reactor, dsn, name="mailgate-control", setup=setup))
        writing = self._keep(Connection(self._reactor, dsn, name="mailgate-writer", setup=writer_setup))
        large = [
            self._keep(Connection(self._reactor, dsn, name=f"mailgate-large-{which}", setup=writer_setup))
            for which in (1, 2)
        ]
        behind = self._keep(Connection(self._reactor, dsn, name="mailgate-journal", setup=settle))
        # Counting a day for reports may take minutes, in which the journal must not wait.
        self._reporting = self._keep(Connection(self._reactor, dsn, name="mailgate-reports", setup=settle))
        for connections in (control, writing, *large, behind, self._reporting):
            await self._wait_for(connections)
        self._control, self._behind = control, behind
        self._directory = Directory(self._reactor, pool, control, postmaster=config.postmaster)
        self._senders = Senders(pool, control, sending_limits(config), time.time)
        await self._open_signing(pool, control)
        if any(auth_offer(listener) is not Offer.NEVER for listener in config.listeners):
            await self._open_accounts(dsn, control)
        self._writer = MailboxWriter(
            self._reactor,
            writing,
            big=large,
            instance=number,
            node=config.node,
            usage=self._directory.note_usage,
            wait_seconds=database.wait_seconds,
        )
        self._journal = Journal(self._reactor, behind, node=config.node)
        self._retention = Retention(
            self._reactor,
            behind,
            record_days=config.retention.record_days,
            folder_days=dict(config.retention.folders),
            time=time.time,
        )
        self._retention.start()
        return number

    async def _open_accounts(self, dsn: str, control: Connection) -> None:
        """What AUTH needs, where a listener offers it."""
        authentication = self._config.authentication
        pool = self._keep(Pool(self._reactor, dsn, size=2, name="mailgate-accounts", setup=settle))
        await self._wait_for(pool)
        try:
            self._accounts = node_accounts(
                self._services(self._config),
                pool,
                control,
                checker_name=authentication.checker,
                offers={listener.name: auth_offer(listener) for listener in self._config.listeners},
                bounds=ban_bounds(self._config),
                threads=authentication.threads,
                waiting=authentication.waiting,
            )
        except UnusableChecker as error:
            raise StartFailed(str(error)) from error

    async def _open_signing(self, pool: Pool, listener: Connection) -> None:
        """Have the keys at hand that mail is signed and sealed with, and the secret of rewritten reverse-paths."""
        config, signing = self._config, self._config.signing
        if signing.dkim or signing.arc:
            made_in = config.data_folder if config.database.embedded else None
            try:
                master_key = find_master_key(signing.master_key_file, os.environ, made_in=made_in)
                self._signing_keys = SigningKeys(pool, listener, master_key)
                await self._signing_keys.check()
            except UnusableKey as error:
                raise StartFailed(str(error)) from error
            if signing.dkim:
                self._signing = Signing(self._signing_keys, self._reactor)
        if signing.srs:
            srs = Srs(await shared_secret(pool.execute, "srs"))
            self._rewriting = Rewriting(srs, partial(reverse_path_of, pool.execute), time.time)

    async def _open_delivery(self, dsn: str, instance_number: int, ids: IdGenerator) -> NodeDelivery:
        """What takes mail from the queue to other hosts."""
        assert self._directory is not None  # noqa: S101  # made by _open_database
        settings = _delivery_settings(self._config)
        delivery = NodeDelivery(
            self._reactor,
            dsn,
            settings,
            instance=instance_number,
            node=self._config.node,
            ids=ids,
            resolver=self._resolver,
            directory=self._directory,
            signing=self._signing,
        )
        for connection in delivery.connections:
            await self._wait_for(self._keep(connection))
        return delivery

    def _start_sending(self, ids: IdGenerator) -> None:
        """Begin to deliver, and to make and to look for reports."""
        assert self._control and self._reporting  # noqa: S101  # made by _open_database
        if self._delivery is not None:
            self._delivery.start(self._control)
        store = ReportStore(self._reporting)
        daily = DailyReports(
            self._reactor,
            store,
            self._resolver,
            report_settings(self._config),
            signing=self._signing,
            next_id=ids.next,
            time=time.time,
        )
        self._reports = (InboundReports(self._reactor, store, time=time.time), daily)
        for each in self._reports:
            each.start()

    def _keep(self, connections: Any) -> Any:  # Any: a Connection gives a Connection, a Pool a Pool
        self._databases.append(connections)
        connections.start()
        return connections

    async def _wait_for(self, connections: Connection | Pool) -> None:
        """Wait until it is connected, however long that takes: a database may start after us."""
        while True:
            try:
                await connections.connected(_DATABASE_PATIENCE_SECONDS)
            except StorageUnavailable as error:
                self._log.warn("waiting for the database: {error}", error=str(error))
                self._notifier.status(f"Waiting for the database: {error}")
                self._notifier.extend_timeout(2 * _DATABASE_PATIENCE_SECONDS)
            else:
                return

    def _factory(self, listener: Listener, chain: Chain, ids: IdGenerator) -> MailFactory:
        assert self._writer and self._journal  # noqa: S101  # made by _open_database
        rules, authenticator = session_rules(self._config, listener), None
        if self._accounts is not None:
            authenticator = self._accounts.authenticator
            rules = replace(rules, settings=replace(rules.settings, mechanisms=authenticator.mechanisms))
        return MailFactory(
            name=listener.name,
            role=listener.role,
            rules=rules,
            chain=chain,
            writer=self._writer,
            journal=self._journal,
            ids=ids,
            clock=self._reactor,
            time=time.time,
            usage=self._usage,
            tls=self._tls.factory(listener.client_certificate) if self._tls is not None else None,
            is_implicit_tls=listener.tls == "implicit",
            proxy_from=listener.proxy_from,
            authenticator=authenticator,
            local_users=self._local_users() if listener.role is Role.SUBMISSION else None,
        )

    def _local_users(self) -> LocalUsers:
        """Whose mail is taken over a Unix socket without a password."""
        users, unknown = local_users(self._config.submission.local_users, lambda name: pwd.getpwnam(name).pw_uid)
        for name in unknown:
            self._log.warn("submission.local_users.{name} is left out: this machine has no such user", name=name)
        return users

    def _services(self, config: Config) -> Services:
        """What plugins may use."""
        if self._threads is None:
            self._threads = PolicyThreads()
            self._threads.start()
        return Services(self._reactor, time.time, self._resolver, config.hostname, self._threads)

    def _make_chain(self, config: Config) -> Chain:
        """The policies, in order: what no configuration can leave out, then what it asks for."""
        assert self._directory and self._senders  # noqa: S101  # made by _open_database
        services = self._services(config)
        known = providers()
        submission = SubmissionPolicy(self._senders, self._signing, config.hostname, time.time)
        # Who has authenticated relays: wherever that is offered, an account sends as itself. As it was at the start.
        offering = [listener.role for listener in self._config.listeners if auth_offer(listener) is not Offer.NEVER]
        of_accounts = frozenset({Role.SUBMISSION, *offering})
        members: list[Member] = [
            Member(self._limits_policy),
            Member(RecipientsPolicy(self._directory, self._rewriting)),
            Member(submission, of_accounts, is_essential=True),
        ]
        if self._delivery is not None and self._delivery.suppressions is not None:
            members.append(Member(SuppressionPolicy(self._delivery.suppressions), of_accounts))
        configurations: list[PolicyConfiguration] = []
        for use in config.policies:
            policy = make_policy(known[use.use], use.options, services)
            configuration = configuration_of(use.use, use.options)
            configurations.append(configuration)
            members.append(
                Member(
                    policy,
                    frozenset(use.listeners),
                    frozenset(domain_key(domain) for domain in use.domains),
                    spares_loopback=config.dns.spare_loopback and getattr(policy, "waits_for_dns", False),
                    name=use.name,
                    fingerprint=configuration.fingerprint,
                )
            )
        members.append(Member(ResultsPolicy(config.authserv_id), is_essential=True))
        arc = ArcPolicy(ArcOptions(), self._resolver, self._reactor)
        sealing_keys = self._signing_keys if self._config.signing.arc else None
        forwarding = ForwardingPolicy(config.authserv_id, sealing_keys, arc, self._reactor)
        members.append(Member(forwarding, is_essential=True))
        deadlines = config.deadlines
        chain = Chain(
            self._reactor,
            members,
            {
                Stage.CONNECT: deadlines.connect_seconds,
                Stage.HELO: deadlines.helo_seconds,
                Stage.MAIL: deadlines.mail_seconds,
                Stage.RCPT: deadlines.rcpt_seconds,
                Stage.DATA: deadlines.data_seconds,
                Stage.END_OF_DATA: deadlines.end_of_data_seconds,
            },
        )
        if self._journal is not None:
            self._journal.policies_configured(configurations)
        return chain

    async def _listen(self) -> None:
        for listener in self._config.listeners:
            factory = self._factories[listener.name]
            try:
                if listener.endpoints:
                    ports = [
                        await serverFromString(self._reactor, description).listen(factory)
                        for description in listener.endpoints
                    ]
                else:
                    ports = self._bind(listener, factory)
            except (CannotListenError, OSError, KeyError, ValueError) as error:
                raise StartFailed(f"listener.{listener.name}: {error}") from error
            self._ports += [(listener, port) for port in ports]

    def _bind(self, listener: Listener, factory: MailFactory) -> list[IListeningPort]:
        port = listener.port
        assert port is not None  # noqa: S101  # the configuration is refused with neither port nor endpoints
        bound = [
            listen_tcp(self._reactor, factory, address=address, port=port, backlog=listener.backlog)
            for address in listener.addresses
        ]
        return [each for each in bound if each is not None]

    def _start_failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if failure.check(StartFailed, DatabaseRefused, EmbeddedPostgresError, StorageUnavailable, UnusableFile):
            message = f"mailgate can't start: {failure.getErrorMessage()}"
            self._log.critical("{message}", message=message)
        else:
            message = "mailgate can't start because of a defect; the log has the traceback"
            self._log.failure("mailgate can't start", failure=failure)
        if sys.__stderr__ is not None:
            sys.__stderr__.write(f"{message}\n")
        self._failed()
        self._reactor.stop()

    async def _bootstrap(self) -> None:
        """Make the configured mailboxes in a directory that has no domain yet."""
        addresses = [address.rpartition("@")[::2] for address in self._config.bootstrap.mailboxes]
        if addresses:
            locals_, domains = zip(*addresses, strict=True)
            await self._databases[0].execute(
                _BOOTSTRAP, ([local_key(local) for local in locals_], [domain_key(domain) for domain in domains])
            )

    def _announce(self) -> None:
        """Tell the log, the command line on this machine and, at a first try, the person at the terminal."""
        for place in self._places():
            self._log.info("listening on {place}", place=place)
        try:
            instance.announce(self._config.file, os.getpid(), listeners=self._places())
            self._is_announced = True
        except OSError as error:
            self._log.warn("the command line won't find this instance by itself: {error}", error=str(error))
        if self._config.bootstrap.mailboxes and sys.__stdout__ is not None:
            sys.__stdout__.write(_welcome(self._config, self._ports))
            sys.__stdout__.flush()

    def _places(self) -> list[str]:
        return [name_of(port.getHost()) for _, port in self._ports]

    # ------------------------------------------------------------ stop

    def stopService(self) -> Deferred[None]:
        """Finish what is being received, and store what is on its way; then let go of everything."""
        self._notifier.stopping("Finishing the sessions")
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        if self._old_sighup is not None:
            signal.signal(signal.SIGHUP, self._old_sighup)
            self._old_sighup = None
        if self._is_announced:
            with suppress(OSError):
                instance.withdraw(os.getpid())
        ports, self._ports = self._ports, []
        for _, port in ports:
            stopped = port.stopListening()
            if stopped is not None:
                await stopped
        grace = self._config.shutdown.seconds
        ends = [factory.shut_down(grace * 0.8) for factory in self._factories.values()]
        if self._delivery is not None:
            ends.append(Deferred.fromCoroutine(self._delivery.stop(grace * 0.8)))
        await gatherResults(ends)
        for each in self._reports:
            await each.stop()
        if self._retention is not None:
            await self._retention.stop()
        if self._writer is not None:
            await self._writer.stop()
        if self._journal is not None:
            await self._journal.stop(grace * 0.1)
        if self._threads is not None:
            self._threads.abandon()
        if self._accounts is not None:
            self._accounts.threads.abandon()
        for connections in self._databases:
            await connections.stop()
        if self._embedded is not None:
            await self._embedded.stopService()
        await super().stopService()  # type: ignore[no-untyped-call]  # Twisted gives Service no types

    # ------------------------------------------------------------ reload

    def _sighup(self, _number: int, _frame: FrameType | None) -> None:
        self._reactor.callFromThread(self.reload)

    def reload(self) -> None:
        """Read the configuration again and apply what can be applied; with a fault in it, nothing changes.

        Before the start is done there is nothing to change: the configuration has just been read.
        """
        if not self._ports:
            return
        self._notifier.reloading()
        try:
            config = load_config(self._config.file)
            tls = _load_tls(config)
            chain = self._make_chain(config)
            delivery = _delivery_settings(config)
        except StartFailed as error:
            self._log.error("{fault}", fault=str(error))
            self._reloaded("A password can't be read: the old settings stay in force")
            return
        except ConfigError as error:
            for fault in error.faults:
                self._log.error("{fault}", fault=str(fault))
            self._reloaded("The configuration has faults: the old one stays in force")
            return
        except ValueError as error:
            self._log.error("the policies can't be chained: {fault}", fault=str(error))
            self._reloaded("The policies can't be chained: the old ones stay in force")
            return
        except UnusableFile as error:
            self._log.error("{fault}", fault=str(error))
            self._reloaded("A certificate can't be used: the old ones stay in force")
            return
        for key in reloadable_differences(self._config, config):
            self._log.warn("{key} has changed: only a restart applies it", key=key)
        if tls is not None and self._tls is not None:
            self._tls.adopt(tls)
        for factory in self._factories.values():
            factory.chain = chain
        self._resolver.use_servers(config.dns.servers)
        self._limits_policy.limits = node_limits(config)
        if self._senders is not None:
            self._senders.limits = sending_limits(config)
            self._senders.forget()
        if self._accounts is not None:
            self._accounts.guard.bounds = ban_bounds(config)
        if self._delivery is not None:
            self._delivery.use(delivery)
        for listener in config.listeners:
            known = self._factories.get(listener.name)
            if known is not None:
                known.rules = session_rules(config, listener, settings=known.rules.settings)
        self._reloaded("Configuration reloaded")

    def _reloaded(self, status: str) -> None:
        self._log.info("{status}", status=status)
        self._notifier.ready(status)


_BOOTSTRAP = """
WITH wanted AS (
    SELECT * FROM unnest(%s::text[], %s::text[]) AS address (local_part, domain)
), made AS (
    INSERT INTO mailgate.domain (name)
    SELECT DISTINCT domain FROM wanted WHERE NOT EXISTS (SELECT FROM mailgate.domain)
    RETURNING id, name
)
INSERT INTO mailgate.mailbox (domain_id, local_part)
SELECT made.id, wanted.local_part FROM wanted JOIN made ON made.name = wanted.domain
"""


def _delivery_settings(config: Config) -> DeliverySettings:
    """How mail goes out. @raises StartFailed: a file with a password can't be read."""
    try:
        return delivery_settings(config)
    except OSError as error:
        raise StartFailed(f"the password for a route can't be read: {error}") from error


def _load_tls(config: Config) -> TlsContexts | None:
    certificates = config.tls.certificate
    if not certificates and config.tls.self_signed:
        certificates = (ensure_self_signed(config.data_folder, config.hostname, now=datetime.now(UTC)),)
    if not certificates:
        return None
    return TlsContexts.load(
        certificates,
        minimum_version=config.tls.minimum_version,
        ciphers=config.tls.ciphers,
        client_ca=config.tls.client_ca,
    )


def _welcome(config: Config, ports: Sequence[tuple[Listener, IListeningPort]]) -> str:
    """What a first try is told: where to send to, how, and how to look at what arrived."""
    mailbox = config.bootstrap.mailboxes[0]
    lines = ["", "mailgate is ready.", ""]
    plain: tuple[str, int] | None = None
    for listener, port in ports:
        lines.append(f"  {name_of(port.getHost()):<22} {listener.name}: {listener.role.value}, TLS {listener.tls}")
        address = port.getHost()
        if plain is None and listener.tls != "implicit" and isinstance(address, IPv4Address | IPv6Address):
            plain = (address.host, address.port)
    command = Path(sys.executable).with_name("mailgate")
    if plain is not None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(plain[0], plain[0])  # noqa: S104  # compared, not bound
        message = f"From: you@example.org\\r\\nTo: {mailbox}\\r\\nSubject: Hello\\r\\n\\r\\nA first message.\\r\\n"
        lines += [
            "",
            "Send a first message:",
            f"""  python3 -c "import smtplib; s = smtplib.SMTP('{host}', {plain[1]}); """
            f"""s.sendmail('you@example.org', '{mailbox}', '{message}'); s.quit()\"""",
        ]
    lines += ["", "Look at it:", f"  {_relative(command)} inbox {mailbox}", "", ""]
    return "\n".join(lines)


def _relative(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
