"""The configuration: one TOML file read into frozen dataclasses, or every fault in it at once.

Each dataclass below is a section and each field a key, which the module `mailgate.toml` reads. Here is what mailgate
means by them, and what several keys must be together. Nothing is bound, started or written. `etc/mailgate.toml` tells
the operator about every key. Only `mailgate.service` and the command line see a Config; all others get values.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography import x509

from mailgate.accounts.plugin import checker_names
from mailgate.binding import Place, place_of
from mailgate.certificate import (
    CertificateFiles,
    UnusableFile,
    belong_together,
    read_chain,
    read_key,
)
from mailgate.config_sending import Authentication, Outbound, Reports, RouteTable, Signing, Submission
from mailgate.config_values import (
    DNS_PORT,
    DOMAIN,
    LAST_PORT,
    CertificatePath,
    Ciphers,
    ConnectionString,
    Count,
    Days,
    DomainName,
    EndpointString,
    KeyPath,
    MailboxAddress,
    Networks,
    Octets,
    Seconds,
    ServerAddress,
    ServerName,
    hostname_of,
    server_address,
)
from mailgate.policy.plugin import Provider, providers
from mailgate.policy.stage import Role
from mailgate.tls import MODERN_CIPHERS, TlsContexts
from mailgate.toml import (
    ByName,
    ConfigError,
    Derived,
    Fault,
    FilePath,
    FolderPath,
    Integer,
    IpAddress,
    Key,
    ListOf,
    NamedTables,
    OneOf,
    Reader,
    Table,
    Text,
    Wrong,
)

__all__ = ["Config", "ConfigError", "Fault", "load_config", "reloadable_differences", "server_address"]

USUAL_POLICIES = ("spf", "dkim", "arc", "dmarc")
DATA_LOSS_SENTENCE = "a crash may lose mail that was acknowledged"


def _own_hostname(known: Mapping[str, Any]) -> str:  # Any: as in Derived
    """This machine's name, the full one if it is known without asking the network."""
    name = socket.gethostname()
    if "." not in name:
        name = socket.getfqdn()
    if not DOMAIN.fullmatch(name):
        raise Wrong(f"it is missing, and this machine's own name, {name!r}, is not a domain name", "add it")
    return name.lower()


def _embedded_folder(known: Mapping[str, Any]) -> object:  # Any: as in Derived
    folder = known["data_folder"]
    return folder / "postgres" if isinstance(folder, Path) else folder


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateTable:
    """One element of tls.certificate."""

    certificate: Annotated[Path, FilePath()]
    key: Annotated[Path, KeyPath()]
    names: Annotated[tuple[str, ...], ListOf(ServerName())] = ()


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """A certificate with its key."""

    def read(self, value: object, key: str, reader: Reader) -> CertificateFiles:
        """The two files, and the names to serve them for."""
        table = Table(CertificateTable).read(value, key, reader)
        files = CertificateFiles(table.certificate, table.key, table.names)
        if reader.opens_files:
            _check_pair(files, key, reader)
        return files


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Where mail is kept: a server, or a PostgreSQL of our own."""

    dsn: Annotated[str | None, ConnectionString()] = None
    embedded: bool = False
    embedded_folder: Annotated[Path, FolderPath(), Derived(_embedded_folder)]
    pool_connections: Annotated[int, Integer(1, 100, "a number of connections")] = 2
    wait_seconds: Annotated[float, Seconds] = 5.0
    accept_data_loss: Annotated[str, OneOf(("", DATA_LOSS_SENTENCE))] = ""

    @property
    def is_data_loss_accepted(self) -> bool:
        """Whether a server that does not flush before it answers may be used."""
        return self.accept_data_loss == DATA_LOSS_SENTENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where sessions come from, and what for."""

    name: str
    role: Annotated[Role, OneOf(Role)]
    tls: Annotated[Literal["starttls", "implicit", "none"], OneOf(("starttls", "implicit", "none"))] = "starttls"
    port: Annotated[int | None, Integer(1, LAST_PORT, "a port")] = None
    addresses: Annotated[tuple[str, ...], ListOf(IpAddress())] = ("0.0.0.0", "::")  # noqa: S104  # a mail server's work
    endpoints: Annotated[tuple[str, ...], ListOf(EndpointString())] = ()
    backlog: Annotated[int, Integer(1, 65_535, "a number of connections")] = 512
    proxy_from: Networks = ()
    accepts_unauthenticated: bool | None = None
    requires_tls: bool = False
    auth: Annotated[Literal["never", "tls", "always"] | None, OneOf(("never", "tls", "always"))] = None
    client_certificate: Annotated[Literal["none", "ask", "require"], OneOf(("none", "ask", "require"))] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates and what a handshake may agree on."""

    certificate: Annotated[tuple[CertificateFiles, ...], ListOf(CertificatePair(), are_distinct=False)] = ()
    self_signed: bool = False
    minimum_version: Annotated[Literal["1.2", "1.3"], OneOf(("1.2", "1.3"))] = "1.2"
    ciphers: Annotated[str, Ciphers()] = MODERN_CIPHERS
    client_ca: Annotated[Path | None, CertificatePath()] = None
    handshake_seconds: Annotated[float, Seconds] = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what clients may use."""

    message_octets: Annotated[int, Octets] = 26_214_400
    recipients: Annotated[int, Integer(1, 100_000, "a number of recipients")] = 1000
    transactions_per_session: Annotated[int, Count] = 1000
    errors_per_session: Annotated[int, Count] = 20
    idle_commands_per_session: Annotated[int, Count] = 1000
    sessions: Annotated[int, Count] = 2000
    sessions_per_network: Annotated[int, Count] = 50
    ipv4_network_bits: Annotated[int, Integer(8, 32, "a prefix length")] = 32
    ipv6_network_bits: Annotated[int, Integer(16, 128, "a prefix length")] = 64
    unlimited_networks: Networks = ()
    command_seconds: Annotated[float, Seconds] = 300.0
    data_seconds: Annotated[float, Seconds] = 180.0
    transaction_seconds: Annotated[float, Seconds] = 1800.0
    received_fields: Annotated[int, Count] = 100
    line_octets: Annotated[int, Integer(998, 1 << 20, "a number of octets")] = 998
    command_octets: Annotated[int, Integer(512, 1 << 16, "a number of octets")] = 2048
    memory_octets: Annotated[int, Octets] = 268_435_456
    goodbye_seconds: Annotated[float, Seconds] = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerate:
    """From whom what is refused by default is taken."""

    bare_line_ends_from: Networks = ()
    nul_from: Networks = ()
    long_lines_from: Networks = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """How the DNS is asked, and who is spared what waits for it."""

    servers: Annotated[tuple[tuple[str, int], ...], ListOf(ServerAddress(DNS_PORT))] = ()
    timeout_seconds: Annotated[float, Seconds] = 5.0
    deadline_seconds: Annotated[float, Seconds] = 15.0
    cache_entries: Annotated[int, Integer(0, 10_000_000, "a number of answers")] = 20_000
    maximum_ttl_seconds: Annotated[float, Seconds] = 86_400.0
    trusts_ad: bool = False
    spare_loopback: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long the policies of a stage may take together."""

    connect_seconds: Annotated[float, Seconds] = 10.0
    helo_seconds: Annotated[float, Seconds] = 25.0
    mail_seconds: Annotated[float, Seconds] = 25.0
    rcpt_seconds: Annotated[float, Seconds] = 10.0
    data_seconds: Annotated[float, Seconds] = 10.0
    end_of_data_seconds: Annotated[float, Seconds] = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyUse:
    """One policy in the chain: which, for whom, and how it is tuned. `options` is its own dataclass."""

    use: str
    name: str
    listeners: tuple[Role, ...] = tuple(Role)
    domains: tuple[str, ...] = ()
    options: Any = None  # Any: a dataclass of the policy's own


@dataclass(frozen=True, slots=True)
class PolicyTables:
    """The chain, [[policy]]: each table has keys for all policies, and the keys of the policy that it uses."""

    def read(self, value: object, key: str, reader: Reader) -> tuple[PolicyUse, ...]:
        """The policies, in the order of the file."""
        if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
            raise Wrong("it is not a list of tables", f"write each policy as [[{key}]], with its keys below")
        known = providers()
        found = [self._one(table, f"{key}[{number}]", known, reader) for number, table in enumerate(value, 1)]
        uses = [use for use in found if use is not None]
        names = [use.name for use in uses]
        for name in sorted({name for name in names if names.count(name) > 1}):
            reader.fault(key, f"two policies are called {name!r}", "give one of them another name")
        return tuple(uses)

    def _one(
        self, table: Mapping[str, object], key: str, known: Mapping[str, Provider], reader: Reader
    ) -> PolicyUse | None:
        use = table.get("use")
        if not isinstance(use, str) or use not in known:
            problem = "it is missing" if use is None else f"{use!r} is no policy that is installed"
            reader.fault(f"{key}.use", problem, "use one of " + ", ".join(sorted(known)))
            return None
        shared = ("use", "name", "listeners", "domains")
        common = reader.read_table(_PolicyKeys, {k: v for k, v in table.items() if k in shared and k != "use"}, key)
        own = {k: v for k, v in table.items() if k not in shared}
        options = reader.read_table(known[use].options, own, key, beside=shared)
        return PolicyUse(
            use=use, name=common.name or use, listeners=common.listeners, domains=common.domains, options=options
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _PolicyKeys:
    """What every [[policy]] may say."""

    name: Annotated[str, Text("a name for this policy", is_empty_allowed=True)] = ""
    listeners: Annotated[tuple[Role, ...], ListOf(OneOf(Role))] = (Role.MX,)
    domains: Annotated[tuple[str, ...], ListOf(DomainName())] = ()


def _usual_policies(_known: Mapping[str, Any]) -> object:  # Any: as in Derived
    """The chain of a file without any [[policy]]: what is built in, for mail from other servers."""
    known = providers()
    return tuple(
        PolicyUse(use=use, name=use, listeners=(Role.MX,), options=known[use].options())
        for use in USUAL_POLICIES
        if use in known
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long things are kept."""

    record_days: Annotated[int, Days] = 90
    folders: Annotated[tuple[tuple[str, int], ...], ByName(Days)] = (("Junk", 30), ("Trash", 30))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """How mailgate goes."""

    seconds: Annotated[float, Seconds] = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """What an empty directory starts with."""

    mailboxes: Annotated[tuple[str, ...], ListOf(MailboxAddress())] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration, in which everything that can be checked without binding has been."""

    file: Annotated[Path, Key("")]
    hostname: Annotated[str, DomainName(), Derived(_own_hostname)]
    node: Annotated[str, Text("a name for this node"), Derived(hostname_of)]
    authserv_id: Annotated[str, DomainName(), Derived(hostname_of)]
    data_folder: Annotated[Path, FolderPath()] = Path("/var/lib/mailgate")
    postmaster: Annotated[str | None, MailboxAddress()] = None
    database: Database
    listeners: Annotated[tuple[Listener, ...], Key("listener"), NamedTables(Listener)] = ()
    tls: Tls
    limits: Limits
    tolerate: Tolerate
    dns: Dns
    policies: Annotated[tuple[PolicyUse, ...], Key("policy"), PolicyTables(), Derived(_usual_policies)]
    deadlines: Deadlines
    retention: Retention
    shutdown: Shutdown
    bootstrap: Bootstrap
    authentication: Authentication
    submission: Submission
    signing: Signing
    outbound: Outbound
    routes: Annotated[tuple[RouteTable, ...], Key("route"), ListOf(Table(RouteTable), are_distinct=False)] = ()
    reports: Reports


def load_config(path: Path, *, opens_files: bool = True, now: datetime | None = None) -> Config:
    """The configuration in that file.

    `opens_files` is False for commands that an operator may run who can't read the keys: then certificates, keys and
    folders are not looked at. `now` is the time by which certificates are judged.

    @raises ConfigError: with every fault that was found.
    """
    reader = Reader(path, opens_files=opens_files, now=now or datetime.now(UTC))
    config: Config | None = reader.load(Config, file=path)
    if config is not None:
        _check_database(config, reader)
        _check_listeners(config, reader)
        _check_authentication(config, reader)
        _check_routes(config, reader)
        _check_tls(config, reader)
        _check_folders(config, reader)
        _check_limits(config, reader)
        _check_dns(config, reader)
    if config is None or reader.faults:
        raise ConfigError(reader.faults)
    return config


def reloadable_differences(old: Config, new: Config) -> tuple[str, ...]:
    """The keys that differ and that only a restart can apply."""
    found: list[str] = []
    for field in fields(Config):
        if field.name in _RELOADED or field.name == "file":
            continue
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if field.name == "listeners":
            found += _listener_differences(before, after)
        elif hasattr(before, "__dataclass_fields__"):
            found += [
                f"{field.name}.{inner.name}"
                for inner in fields(before)
                if getattr(before, inner.name) != getattr(after, inner.name)
            ]
        else:
            found.append(field.name)
    return tuple(key for key in found if key not in _RELOADED_KEYS)


_RELOADED = frozenset({"tls", "limits", "tolerate", "policies", "deadlines", "routes"})
_RELOADED_KEYS = frozenset(
    {
        "authserv_id",
        "dns.servers",
        "dns.spare_loopback",
        "outbound.port",
        "outbound.families",
        "outbound.allows_private_addresses",
        "outbound.tls",
        "outbound.dane",
        "outbound.connections_per_destination",
        "outbound.messages_per_connection",
        "outbound.messages_per_second",
        "submission.messages_per_day",
        "submission.recipients_per_day",
        "authentication.failures_per_network",
        "authentication.failures_per_account",
        "authentication.counted_seconds",
        "authentication.ban_seconds",
        "authentication.maximum_ban_seconds",
    }
)


def _listener_differences(old: tuple[Listener, ...], new: tuple[Listener, ...]) -> list[str]:
    before, after = ({listener.name: listener for listener in listeners} for listeners in (old, new))
    found = []
    for name in before | after:
        if name not in before or name not in after:
            found.append(f"listener.{name}")
        else:
            found += [
                f"listener.{name}.{field.name}"
                for field in fields(Listener)
                if getattr(before[name], field.name) != getattr(after[name], field.name)
            ]
    return found


def _check_database(config: Config, reader: Reader) -> None:
    if reader.is_faulty("database.dsn") or reader.is_faulty("database.embedded"):
        return
    if config.database.embedded and config.database.dsn is not None:
        reader.fault("database", "both dsn and embedded = true are set", "take one of them out")
    elif not config.database.embedded and config.database.dsn is None:
        reader.fault("database", "there is no database", "add dsn, or embedded = true")


def _check_listeners(config: Config, reader: Reader) -> None:
    if not config.listeners and not reader.is_faulty("listener"):
        reader.fault("listener", "there is no listener", "add [listener.smtp] with its role and port")
    names: set[str] = set()
    bound: list[tuple[str, Place]] = []
    for listener in config.listeners or ():
        key = f"listener.{listener.name}"
        if listener.name.lower() in names:
            reader.fault(key, "another listener has this name", "give each a name of its own, whatever its capitals")
        names.add(listener.name.lower())
        _check_listener(listener, key, config.tls, reader)
        for place_key, place in _places(listener, key):
            other = next((other_key for other_key, taken in bound if place.clashes(taken)), None)
            if other is not None:
                reader.fault(place_key, f"{place} is taken by {other}", "use each port and address once")
            bound.append((place_key, place))


def _check_listener(listener: Listener, key: str, tls: Tls, reader: Reader) -> None:
    if listener.port is None and not listener.endpoints:
        if not reader.is_faulty(f"{key}.port") and not reader.is_faulty(f"{key}.endpoints"):
            reader.fault(key, "it listens nowhere", "add port, or endpoints")
    elif listener.port is not None and listener.endpoints:
        reader.fault(f"{key}.endpoints", "port is set too", "take one of them out; an endpoint names its own port")
    if listener.port is not None and not listener.addresses and not reader.is_faulty(f"{key}.addresses"):
        reader.fault(f"{key}.addresses", "it is empty", "name an address, or leave the key out for all")
    if listener.requires_tls and listener.tls == "none":
        reader.fault(f"{key}.requires_tls", "there is no TLS here", 'use false, or tls = "starttls"')
    if listener.auth == "tls" and listener.tls == "none":
        reader.fault(f"{key}.auth", "there is no TLS here", 'use "never", or tls = "starttls"')
    if listener.auth == "always" and not _is_of_this_machine(listener):
        problem = "passwords would cross the network in plain text"
        reader.fault(f"{key}.auth", problem, 'use "tls", or addresses = ["127.0.0.1", "::1"], or a Unix socket')
    if listener.client_certificate != "none":
        if listener.tls == "none":
            reader.fault(f"{key}.client_certificate", "there is no TLS here", 'use "none", or tls = "starttls"')
        elif tls.client_ca is None and not reader.is_faulty("tls.client_ca"):
            reader.fault(f"{key}.client_certificate", "nothing says whom to trust", "add client_ca to [tls]")


def _check_routes(config: Config, reader: Reader) -> None:
    for number, route in enumerate(config.routes or (), 1):
        key = f"route[{number}]"
        if route.to == "mx" or (route.to.startswith("lmtp:/") and not route.to.startswith("lmtp://")):
            if route.username or route.password_file is not None:
                remedy = "take username and password_file out, or name a host in to"
                reader.fault(key, "there is nobody to authenticate with", remedy)
        elif bool(route.username) != (route.password_file is not None) and not reader.is_faulty(f"{key}.password_file"):
            remedy = "add the other one, or take it out"
            reader.fault(key, "username and password_file belong together", remedy)
        if route.to != "mx" and route.tls == "dane":
            problem = "of a host that is named here no TLSA records are looked up"
            reader.fault(f"{key}.tls", problem, 'use "verify", or to = "mx"')


def _check_authentication(config: Config, reader: Reader) -> None:
    checker, known = config.authentication.checker, checker_names()
    if not reader.is_faulty("authentication.checker") and checker not in known:
        problem = f"{checker!r} is no checker that is installed"
        reader.fault("authentication.checker", problem, "use one of " + ", ".join(known))


def _is_of_this_machine(listener: Listener) -> bool:
    """Whether only programs on this machine can reach it."""
    if listener.endpoints:
        return all(endpoint.startswith("unix:") for endpoint in listener.endpoints)
    return all(ipaddress.ip_address(address).is_loopback for address in listener.addresses or ("0.0.0.0",))  # noqa: S104


def _places(listener: Listener, key: str) -> list[tuple[str, Place]]:
    """What the listener binds, each with the key that says so."""
    found = []
    if listener.port is not None:
        found = [(f"{key}.port", Place(address, listener.port)) for address in listener.addresses or ()]
    for number, endpoint in enumerate(listener.endpoints or (), 1):
        place = place_of(endpoint)
        if place is not None:
            found.append((f"{key}.endpoints[{number}]", place))
    return found


def _check_pair(files: CertificateFiles, key: str, reader: Reader) -> None:
    """Judge a certificate by the reader's clock, and its key by it."""
    chain = private_key = None
    if not reader.is_faulty(f"{key}.certificate"):
        try:
            chain = read_chain(files.certificate)
        except UnusableFile as error:
            reader.fault(f"{key}.certificate", str(error), "use a PEM file, its chain included")
        else:
            _check_dates(chain[0], files.certificate, f"{key}.certificate", reader)
    if not reader.is_faulty(f"{key}.key"):
        try:
            private_key = read_key(files.key)
        except UnusableFile as error:
            reader.fault(f"{key}.key", str(error), "use a PEM file without a passphrase")
    if chain and private_key and not belong_together(chain[0], private_key):
        problem = f"{files.key} is not the key of the first certificate in {files.certificate}"
        reader.fault(f"{key}.key", problem, "use the key that the certificate was made for")


def _check_dates(certificate: x509.Certificate, path: Path, key: str, reader: Reader) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if reader.now > last:
        reader.fault(key, f"{path} expired on {last:%Y-%m-%d %H:%M} UTC", "renew it")
    elif reader.now < first:
        reader.fault(key, f"{path} is valid only from {first:%Y-%m-%d %H:%M} UTC on", "wait, or set the clock right")


def _check_folders(config: Config, reader: Reader) -> None:
    """Refuse a folder that mailgate would have to write and may not; that is asked as the user who runs this."""
    if not reader.opens_files:
        return
    used = []
    if config.database.embedded:
        used.append(("database.embedded_folder", config.database.embedded_folder))
    if config.tls.self_signed:
        used.append(("data_folder", config.data_folder))
    for key, folder in used:
        # The database's folder may follow from the data folder, and then from its default.
        if reader.is_faulty(key) or reader.is_faulty("data_folder") or folder is None:
            continue
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            reader.fault(key, f"mailgate may not write to {nearest}", "give it to the user that mailgate runs as")


def _check_tls(config: Config, reader: Reader) -> None:
    tls = config.tls
    if reader.is_faulty("tls.certificate") or reader.is_faulty("tls.self_signed"):
        return
    if tls.certificate and tls.self_signed:
        reader.fault("tls.self_signed", "there are certificates too", "take one of them out")
    offers = [f"listener.{listener.name}" for listener in config.listeners or () if listener.tls != "none"]
    if offers and not tls.certificate and not tls.self_signed:
        reader.fault(
            "tls.certificate",
            f"{offers[0]} offers TLS, for which there is none",
            'add certificate, or self_signed = true, or use tls = "none" there',
        )
    if tls.certificate and reader.opens_files and not reader.is_faulty("tls"):
        try:
            TlsContexts.load(
                tls.certificate, minimum_version=tls.minimum_version, ciphers=tls.ciphers, client_ca=tls.client_ca
            )
        except UnusableFile as error:
            reader.fault("tls", str(error), "use another file")


def _check_limits(config: Config, reader: Reader) -> None:
    limits = config.limits
    if reader.is_faulty("limits.message_octets") or reader.is_faulty("limits.memory_octets"):
        return
    if limits.memory_octets < limits.message_octets:
        reader.fault(
            "limits.memory_octets",
            f"{limits.memory_octets} has no room for one message",
            f"use at least message_octets, {limits.message_octets}",
        )


def _check_dns(config: Config, reader: Reader) -> None:
    dns = config.dns
    if reader.is_faulty("dns.timeout_seconds") or reader.is_faulty("dns.deadline_seconds"):
        return
    if dns.deadline_seconds < dns.timeout_seconds:
        problem = f"{dns.deadline_seconds:g} ends before one server's time is over"
        reader.fault("dns.deadline_seconds", problem, f"use at least timeout_seconds, {dns.timeout_seconds:g}")
