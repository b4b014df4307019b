"""What an operator says of where mail of some domains goes and how safe the way has to be; and how that is read.

A rule names domains by patterns: "example.org" is that domain, ".example.org" is all below it, "*" is any. The rule
with the most specific pattern holds, wherever it stands.

Standards: RFC 5321 section 5 (MX, which rules stand above), RFC 2033 (LMTP), RFC 8314 section 3 (implicit TLS).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from mailgate.dns.wire import ImpossibleName, normal_name
from mailgate.outbound.plan import Credentials, TlsLevel

_T = TypeVar("_T")

SMTP_PORT: Final = 25
_SUBMISSIONS_PORT: Final = 465
_LMTP_PORT: Final = 24

TRANSPORT_FORMS: Final = '"mx", "smtp://HOST:PORT", "smtps://HOST:PORT", "lmtp://HOST:PORT" or "lmtp:/PATH"'
_URL = re.compile(r"(smtp|smtps|lmtp)://(\[[0-9A-Fa-f:.]+\]|[^\[\]/:@?#]+)(?::([0-9]{1,5}))?/?")
_LOCAL = re.compile(r"lmtp:(/[^/\0][^\0]*)")


@dataclass(frozen=True, slots=True)
class Transport:
    """A host that takes the mail of domains in place of their MX hosts; or, without host and path, those MX hosts."""

    protocol: Literal["smtp", "lmtp"] = "smtp"
    host: str = ""  # a name in A-form, or an IP address; "" where `unix_path` names a socket
    port: int = SMTP_PORT
    unix_path: str = ""
    is_implicit_tls: bool = False
    credentials: Credentials | None = None
    tls: TlsLevel | None = None  # None: VERIFY where a password is sent or TLS comes first, else OPPORTUNISTIC

    @property
    def is_by_mx(self) -> bool:
        """Whether it only says that mail goes to the domain's MX hosts."""
        return not self.host and not self.unix_path

    @property
    def key(self) -> str:
        """What connections to it are shared and counted by: the host, who we are to it, and the TLS that config wants.

        "smtp://gate@relay.example:587", "smtp://relay.example:25?tls=encrypt".
        """
        if self.unix_path:
            return f"lmtp:{self.unix_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "smtps" if self.is_implicit_tls else self.protocol
        user = "" if self.credentials is None else f"{self.credentials.username}@"
        level = "" if self.tls is None else f"?tls={self.tls.value}"
        return f"{scheme}://{user}{host}:{self.port}{level}"


@dataclass(frozen=True, slots=True)
class TlsRule:
    """What an operator demands of TLS with the hosts of some domains, above what these domains publish."""

    level: TlsLevel
    names: tuple[str, ...] = ()  # that a certificate may have; empty: the host's or the domain's, see `demand`


class DomainTable(Generic[_T]):
    """Rules by the patterns of their domains."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Iterable[tuple[Iterable[str], _T]] = ()) -> None:
        """Of two rules with one pattern the earlier holds. @raises ImpossibleName: a pattern is none."""
        self._rules: dict[str, _T] = {}
        for patterns, rule in rules:
            for pattern in patterns:
                self._rules.setdefault(normal_pattern(pattern), rule)

    def find(self, domain: str) -> _T | None:
        """The rule of a domain in A-form, or of a literal with its brackets; None where there is none."""
        found = self._rules.get(domain)
        parent = domain
        while found is None and parent and not domain.startswith("["):
            parent = parent.partition(".")[2]
            found = self._rules.get(f".{parent}")
        return found if found is not None else self._rules.get("*")


def normal_pattern(pattern: str) -> str:
    """The pattern with its name in A-form and lower case.

    @raises ImpossibleName: it is none.
    """
    if pattern == "*" or (pattern.startswith("[") and pattern.endswith("]")):
        return pattern.lower()
    name = normal_name(pattern.removeprefix("."))
    if not name or "*" in name:
        raise ImpossibleName("it is no pattern of domains")
    return f".{name}" if pattern.startswith(".") else name


def read_transport(text: str, *, credentials: Credentials | None = None, tls: TlsLevel | None = None) -> Transport:
    """The transport that "smtp://relay.example:587", "smtps://…", "lmtp://…", "lmtp:/path" or "mx" names.

    @raises ValueError: it is none of TRANSPORT_FORMS; the message says why.
    """
    if text == "mx":
        return Transport()
    local = _LOCAL.fullmatch(text)
    if local is not None:
        return Transport("lmtp", unix_path=local[1], tls=TlsLevel.NONE)
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError("it names no transport")
    scheme, host, port = match[1], match[2], match[3]
    default = {"smtp": SMTP_PORT, "smtps": _SUBMISSIONS_PORT, "lmtp": _LMTP_PORT}[scheme]
    number = int(port) if port else default
    if not 1 <= number <= 65535:
        raise ValueError(f"{number} is no port")
    return Transport(
        "lmtp" if scheme == "lmtp" else "smtp",
        _host(host),
        number,
        is_implicit_tls=scheme == "smtps",
        credentials=credentials,
        tls=tls,
    )


def _host(text: str) -> str:
    """The name in A-form, or the address in its usual form. @raises ValueError: it is neither."""
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        if text.startswith("["):
            raise
    return normal_name(text)
