"""Counts how TLS with other hosts went, by the policy of the recipient's domain: what TLS reports are made of.

Pure: a collector in memory, which `mailgate.storage.tls_results` empties into the database. Building and sending the
report is another matter.

Where a session is counted: once for each connection to a host, when it is known whether its TLS did; once for a host
that its domain's policy rules out before there is a connection; once for a policy that could not be fetched.

Standards: RFC 8460 sections 4.1 (days in UTC), 4.2 (policies), 4.3 (result types), 4.4 (what a report says of each).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mailgate.outbound.plan import PublishedPolicy

MAX_KINDS: Final = 10_000  # that are held at a time
_REASON_CHARS: Final = 200
_DAY_SECONDS: Final = 86_400


@dataclass(frozen=True, slots=True)
class TlsResult:
    """What sessions that are counted together have in common."""

    day: int  # in UTC, since 1970-01-01
    policy: PublishedPolicy
    mx_host: str = ""  # "" where it did not come to a host
    result: str = ""  # RFC 8460 section 4.3; "" for success
    sending_address: str = ""  # ours, of failures
    receiving_address: str = ""  # the host's, of failures
    reason: str = ""  # more words, of failures


class TlsCounts:
    """Collects counts until someone takes them. Beyond MAX_KINDS, what is new goes uncounted."""

    def __init__(self, time: Callable[[], float]) -> None:
        """`time` gives seconds since the epoch."""
        self._time = time
        self._sessions: dict[TlsResult, int] = {}

    def count(
        self,
        policy: PublishedPolicy,
        mx_host: str,
        result: str = "",
        *,
        sending_address: str = "",
        receiving_address: str = "",
        reason: str = "",
    ) -> None:
        """Count a session; a success keeps no addresses, so that there is one row of it a day and host."""
        day = int(self._time() // _DAY_SECONDS)
        if result:
            kind = TlsResult(day, policy, mx_host, result, sending_address, receiving_address, reason[:_REASON_CHARS])
        else:
            kind = TlsResult(day, policy, mx_host)
        self._add(kind, 1)

    def take(self) -> Mapping[TlsResult, int]:
        """All that was counted since the last time."""
        taken, self._sessions = self._sessions, {}
        return taken

    def give_back(self, taken: Mapping[TlsResult, int]) -> None:
        """Count again what was taken and could not be kept."""
        for kind, sessions in taken.items():
            self._add(kind, sessions)

    def _add(self, kind: TlsResult, sessions: int) -> None:
        before = self._sessions.get(kind, 0)
        if before or len(self._sessions) < MAX_KINDS:
            self._sessions[kind] = before + sessions
