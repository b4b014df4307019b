"""Keeps the counts of TLS results in the database, where all nodes' add up to a day's report.

Written every so often by a timer of its own, and when the node stops; what is in memory is lost with the process. An
answer to COMMIT that is lost may count a batch twice: a report of 1003 sessions where there were 1000 harms nobody.

Standards: RFC 8460 section 4.
"""

from __future__ import annotations

import hashlib
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final

import psycopg2
from twisted.logger import Logger

from mailgate.repeated import Repeated
from mailgate.storage import literal
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mailgate.outbound.tls_report import TlsCounts, TlsResult
    from mailgate.storage.pool import Connection, Pool

INTERVAL_SECONDS: Final = 60.0
_EPOCH: Final = date(1970, 1, 1)

_log = Logger()


class TlsResultWriter:
    """Empties a collector into the table tls_result."""

    def __init__(self, clock: IReactorTime, pool: Pool | Connection, counts: TlsCounts) -> None:
        """`pool` has `literal.settle` as its setup."""
        self._pool = pool
        self._counts = counts
        self._repeated = Repeated(clock, self.write, lambda: INTERVAL_SECONDS, what="writing TLS results")

    def start(self) -> None:
        """Write every minute, until `stop`."""
        self._repeated.start()

    async def stop(self) -> None:
        """Write what there is, and stop."""
        self._repeated.stop()
        await self.write()

    async def write(self) -> None:
        """Write what there is now; what can't be written waits for the next time."""
        taken = self._counts.take()
        if not taken:
            return
        rows = [(kind, sessions, "\n".join(kind.policy.text)) for kind, sessions in taken.items()]
        values = {
            "day": literal.text_array((_EPOCH + timedelta(days=kind.day)).isoformat() for kind, _, _ in rows),
            "digest": literal.short_octets_array(_digest(kind) for kind, _, _ in rows),
            "policy_domain": literal.text_array(kind.policy.domain for kind, _, _ in rows),
            "policy_type": literal.text_array(kind.policy.type for kind, _, _ in rows),
            "policy": literal.text_array(policy for _, _, policy in rows),
            "mx_host": literal.text_array(kind.mx_host for kind, _, _ in rows),
            "result_type": literal.text_array(kind.result for kind, _, _ in rows),
            "sending_address": literal.text_array(kind.sending_address for kind, _, _ in rows),
            "receiving_address": literal.text_array(kind.receiving_address for kind, _, _ in rows),
            "reason": literal.text_array(kind.reason for kind, _, _ in rows),
            "sessions": literal.number_array(sessions for _, sessions, _ in rows),
        }
        parameters = {key.encode("ascii"): literal.encoded(value) for key, value in values.items()}
        try:
            await self._pool.execute(QUERIES["count_tls_results"] % parameters)
        except StorageUnavailable as error:
            self._counts.give_back(taken)
            _log.info("TLS results wait: {reason}", reason=str(error))
        except psycopg2.Error as error:
            _log.warn("TLS results are lost: {reason}", reason=" ".join(str(error).split()))


def _digest(kind: TlsResult) -> bytes:
    """What tells rows of a day apart: a policy can be longer than an index takes."""
    parts = (
        *(kind.policy.domain, kind.policy.type, *kind.policy.text),
        *(kind.mx_host, kind.result, kind.sending_address, kind.receiving_address, kind.reason),
    )
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
