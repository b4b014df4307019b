"""The sections of the configuration that concern sending: submission, signatures, delivery, reports.

Each dataclass is a section and each field a key, as in `mailgate.config`, which puts them into its Config.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mailgate.config_values import LAST_PORT, Count, DomainName, KeyPath, MailboxAddress, Seconds, hostname_of
from mailgate.toml import ByName, Derived, FilePath, Integer, IpAddress, ListOf, Number, OneOf, Reader, Text, Wrong

_DAY = 86_400
LongSeconds = Number(1, 366 * _DAY, "a time in seconds")
TlsWord = Literal["none", "opportunistic", "encrypt", "verify", "dane"]
_TLS_WORDS = ("none", "opportunistic", "encrypt", "verify", "dane")


@dataclass(frozen=True, slots=True)
class RoutePattern:
    """Which domains a [[route]] is for."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The pattern with its name in A-form and lower case."""
        # Imported here, and below: it brings dnspython, which most commands don't need.
        from mailgate.outbound.transport import normal_pattern

        text = Text("a domain").read(value, key, reader)
        try:
            return normal_pattern(text)
        except ValueError as error:
            raise Wrong(f"{text!r}: {error}", 'use a domain, ".example.test" for all below it, or "*"') from None


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """Where a [[route]] leads."""

    def read(self, value: object, key: str, reader: Reader) -> str:
        """The text itself, which `mailgate.outbound.transport.read_transport` can read."""
        from mailgate.outbound.transport import TRANSPORT_FORMS, read_transport

        text = Text("where the mail goes").read(value, key, reader)
        try:
            read_transport(text)
        except ValueError as error:
            raise Wrong(f"{text!r}: {error}", f"use {TRANSPORT_FORMS}") from None
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """What failed authentication leads to, and how much hashing of passwords may go on at a time."""

    checker: Annotated[str, Text("the name of a checker")] = "database"
    failures_per_network: Annotated[int, Count] = 10
    failures_per_account: Annotated[int, Count] = 50
    counted_seconds: Annotated[float, LongSeconds] = 900.0
    ban_seconds: Annotated[float, LongSeconds] = 900.0
    maximum_ban_seconds: Annotated[float, LongSeconds] = 86_400.0
    threads: Annotated[int, Integer(1, 64, "a number of threads")] = 2
    waiting: Annotated[int, Count] = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What those who have authenticated may do."""

    recipients_per_day: Annotated[int, Count] = 1000
    messages_per_day: Annotated[int, Count] = 500
    maximum_hold_seconds: Annotated[float, LongSeconds] = 604_800.0
    minimum_deliver_by_seconds: Annotated[float, LongSeconds] = 60.0
    local_users: Annotated[tuple[tuple[str, str], ...], ByName(MailboxAddress())] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """Signatures on what leaves, and what is done to forwarded mail."""

    master_key_file: Annotated[Path | None, FilePath()] = None
    dkim: bool = True
    arc: bool = True
    srs: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """How mail is delivered to other hosts."""

    enabled: bool = True
    helo: Annotated[str | None, DomainName()] = None
    port: Annotated[int, Integer(1, LAST_PORT, "a port")] = 25
    source_addresses: Annotated[tuple[str, ...], ListOf(IpAddress())] = ()
    families: Annotated[
        Literal["ipv6 first", "ipv4 first", "ipv6 only", "ipv4 only"],
        OneOf(("ipv6 first", "ipv4 first", "ipv6 only", "ipv4 only")),
    ] = "ipv6 first"
    allows_private_addresses: bool = False
    tls: Annotated[TlsWord, OneOf(_TLS_WORDS)] = "opportunistic"
    dane: bool = True
    mta_sts: bool = True
    ca_file: Annotated[Path | None, FilePath()] = None
    connections: Annotated[int, Count] = 200
    connections_per_destination: Annotated[int, Count] = 20
    messages_per_connection: Annotated[int, Count] = 100
    messages_per_second: Annotated[float, Number(0, 1_000_000, "a number of messages")] = 0.0
    first_retry_seconds: Annotated[float, LongSeconds] = 300.0
    longest_retry_seconds: Annotated[float, LongSeconds] = 7200.0
    delay_notice_seconds: Annotated[float, LongSeconds] = 14_400.0
    give_up_seconds: Annotated[float, LongSeconds] = 432_000.0
    suppress_days: Annotated[int, Integer(0, 36_500, "a number of days")] = 0
    connect_seconds: Annotated[float, Seconds] = 30.0
    reply_seconds: Annotated[float, Seconds] = 300.0
    data_seconds: Annotated[float, Seconds] = 180.0
    end_of_data_seconds: Annotated[float, Seconds] = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """One [[route]]: where mail for some domains goes instead of to their MX hosts, or how."""

    domains: Annotated[tuple[str, ...], ListOf(RoutePattern())]
    to: Annotated[str, RouteTarget()] = "mx"
    username: Annotated[str, Text("a user name", is_empty_allowed=True)] = ""
    password_file: Annotated[Path | None, KeyPath()] = None
    tls: Annotated[TlsWord | None, OneOf(_TLS_WORDS)] = None
    connections: Annotated[int | None, Count] = None
    messages_per_second: Annotated[float | None, Number(0, 1_000_000, "a number of messages")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """The reports that we send to others, and how long those are kept that we get."""

    dmarc: bool = True
    dmarc_without_pass: bool = False
    tls: bool = True
    organization: Annotated[str, Text("a name"), Derived(hostname_of)]
    contact: Annotated[str | None, MailboxAddress()] = None
    keep_days: Annotated[int, Integer(1, 36_500, "a number of days")] = 365
