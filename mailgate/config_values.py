"""The kinds of values that configuration keys hold: how each is checked and turned into what the program uses.

One class a kind, in the form that `mailgate.toml` asks for. What the keys mean is in `mailgate.config` and
`mailgate.config_sending`.

Standards: RFC 1035 and RFC 5890 (names), RFC 5321 section 4.1.2 (mailboxes).
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psycopg2
from psycopg2.extensions import parse_dsn
from twisted.internet.endpoints import serverFromString

from mailgate.binding import place_of
from mailgate.certificate import UnusableFile, ascii_name, read_chain
from mailgate.tls import check_ciphers
from mailgate.toml import FilePath, Integer, IpNetwork, ListOf, Network, Number, Reader, Text, Wrong

LAST_PORT = 65_535
DNS_PORT = 53
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class DomainName:
    """A domain name without a final dot, in A- or U-form."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The name in A-form and lower case."""
        name = domain_name(value)
        if name is None:
            raise Wrong(f"{value!r} is not a domain name", 'use the form "mail.example.test"')
        return name


@dataclass(frozen=True, slots=True)
class ServerName:
    """A name that a client may ask for by SNI: a domain name, or "*." and one."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The name in A-form and lower case."""
        text = value if isinstance(value, str) else ""
        wildcard = "*." if text.startswith("*.") else ""
        name = domain_name(text.removeprefix(wildcard))
        if name is None:
            raise Wrong(f"{value!r} is not a server name", 'use the form "mail.example.test" or "*.example.test"')
        return wildcard + name


@dataclass(frozen=True, slots=True)
class MailboxAddress:
    """A mailbox address."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The address as written."""
        local, _, domain = value.rpartition("@") if isinstance(value, str) else ("", "", "")
        if not local or any(char in local for char in ' \t\r\n"@<>\0') or domain_name(domain) is None:
            raise Wrong(f"{value!r} is not a mailbox address", 'use the form "alice@example.test"')
        return f"{local}@{domain}"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server's IP address, with a port or without; a port after an IPv6 address takes brackets."""

    default_port: int

    def read(self, value: object, key: str, reader: Reader) -> tuple[str, int]:
        """The address in its shortest form, and the port."""
        found = server_address(value, self.default_port) if isinstance(value, str) else None
        if found is None:
            form = 'use the form "192.0.2.1", "192.0.2.1:5353", "2001:db8::1" or "[2001:db8::1]:5353"'
            raise Wrong(f"{value!r} is not the address of a server", form)
        return found


@dataclass(frozen=True, slots=True)
class KeyPath:
    """A file with a private key or a password, which nobody but its owner may read."""

    def read(self, value: object, key: str, reader: Reader) -> Path:
        """The absolute path."""
        path = FilePath().read(value, key, reader)
        if reader.opens_files and not _is_credential(path):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                raise Wrong(f"others than its owner may use {path} (mode {mode:04o})", f"do chmod 600 {path}")
        return path


@dataclass(frozen=True, slots=True)
class CertificatePath:
    """A file with certificates."""

    def read(self, value: object, key: str, reader: Reader) -> Path:
        """The absolute path."""
        path = FilePath().read(value, key, reader)
        if reader.opens_files:
            try:
                read_chain(path)
            except UnusableFile as error:
                raise Wrong(str(error), "use a PEM file with certificates") from None
        return path


@dataclass(frozen=True, slots=True)
class Ciphers:
    """A list of ciphers for TLS 1.2, as OpenSSL writes it."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The list itself."""
        text = Text("a list of OpenSSL's cipher names").read(value, key, reader)
        try:
            check_ciphers(text)
        except ValueError as error:
            raise Wrong(str(error), "use names from `openssl ciphers`, with colons between them") from None
        return text


@dataclass(frozen=True, slots=True)
class EndpointString:
    """A Twisted endpoint string, which is parsed and not bound."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The string itself."""
        if not isinstance(value, str):
            raise Wrong(f"{value!r} is not an endpoint", 'use the form "systemd:domain=INET6:name=smtp"')
        _check_endpoint(value)
        return value


@dataclass(frozen=True, slots=True)
class ConnectionString:
    """A libpq connection string or URI. It may hold a password and is never shown."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The string itself."""
        remedy = 'use the form "host=/run/postgresql dbname=mailgate"'
        if not isinstance(value, str) or not value:
            raise Wrong("it is not a connection string", remedy)
        try:
            options = parse_dsn(value)
        except psycopg2.Error:  # its text quotes the string
            raise Wrong("libpq can't read this connection string", remedy) from None
        if "hostaddr" not in options:
            for host in str(options.get("host", "")).split(","):
                if host and not host.startswith(("/", "@")) and host != "localhost" and not _is_ip(host):
                    raise Wrong(
                        f"host {host!r} would be looked up while mail waits",
                        "use its IP address, or name that in hostaddr= beside host=",
                    )
        return value


Octets = Integer(1, 1 << 40, "a number of octets")
Count = Integer(1, 1 << 31, "a number of them")
Seconds = Number(0.1, 86_400, "a time in seconds")
Days = Integer(1, 36_500, "a number of days")
Networks = Annotated[tuple[Network, ...], ListOf(IpNetwork())]


def hostname_of(known: Mapping[str, Any]) -> object:  # Any: as in Derived
    """The hostname, from which other keys follow."""
    return known["hostname"]


def server_address(text: str, default_port: int = DNS_PORT) -> tuple[str, int] | None:
    """The address in its shortest form, and the port; None where the text is neither an address nor one with a port."""
    match = re.fullmatch(r"\[([^]]+)\](?::([0-9]{1,5}))?|([0-9.]+):([0-9]{1,5})", text, re.ASCII)
    address, port = (match[1] or match[3], match[2] or match[4]) if match else (text, None)
    number = int(port) if port else default_port
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if (match and match[1] and parsed.version == 4) or not 1 <= number <= LAST_PORT:
        return None
    return str(parsed), number


def domain_name(value: object) -> str | None:
    """The domain name in A-form and lower case, or None if it is none."""
    if not isinstance(value, str):
        return None
    try:
        name = ascii_name(value)
    except UnicodeError:
        return None
    return name if DOMAIN.fullmatch(name) else None


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _check_endpoint(value: str) -> None:
    kind = value.partition(":")[0]
    match kind:
        case "ssl" | "tls":
            raise Wrong(f"{kind}: endpoints bring their own TLS", 'use tcp: with tls = "implicit" here')
        case "haproxy":
            raise Wrong("haproxy: endpoints trust every client", "use the inner endpoint, and proxy_from")
        case "stdio":
            raise Wrong("stdio: endpoints take no connections", "use tcp:, tcp6:, unix: or systemd:")
    try:
        # An endpoint touches its reactor only when it listens.
        serverFromString(object(), value)
        place = place_of(value)
    except KeyError:
        _check_inherited(value)
        return
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        form = 'use the form "tcp:25:interface=192.0.2.1", "unix:PATH" or "systemd:domain=INET6:name=smtp"'
        raise Wrong(f"{value!r} is not an endpoint ({error})", form) from None
    if place is not None and place.port > LAST_PORT:
        raise Wrong(f"{place.port} is not a port", f"use 1 to {LAST_PORT}, or 0 for any that is free")


def _check_inherited(value: str) -> None:
    """Judge a systemd: endpoint whose socket is not there, which is well unless systemd gave us others."""
    match = re.search(r"[:]name=([^:]*)", value)
    names = os.environ.get("LISTEN_FDNAMES")
    if match is None or names is not None:
        raise Wrong(
            f"{value!r}: no such socket was inherited", f"systemd gave {names or 'none'}; see FileDescriptorName="
        )


def _is_credential(path: Path) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and path.resolve().is_relative_to(Path(folder or "").resolve())
