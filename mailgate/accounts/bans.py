"""Those who guess passwords: counted, slowed, and for a while not listened to.

Failures count against the client's network and against the account that was tried, in the database, for all nodes. Each
failure of a network doubles the delay before its next one is answered; so many of them ban the network, or the account.
While one is banned, nothing that it says is checked.

Whoever guesses somebody's password must not be able to lock that person out. An account that is banned because of
failures stays open to networks from which it was used lately; a ban that the operator has made holds for all.

Not here: when a ban ends and how many failures make one (`count_failure` in the schema), and `mailgate ban`.

Standards: RFC 4954 section 4 and 6 (454, 535), RFC 5321 section 3.8 (421).
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet.task import deferLater
from twisted.logger import Logger

from mailgate.ids import encode_id
from mailgate.smtp.reply import Reply, reply
from mailgate.storage.errors import StorageUnavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mailgate.policy.stage import SessionView
    from mailgate.storage.credentials import Bounds, Failures

NETWORK_BANNED = reply(421, "4.7.0", "Too many failed authentications from your network; try again later")
ACCOUNT_BANNED = reply(454, "4.7.0", "Too many failed authentications for this account; try again later")

FIRST_DELAY_SECONDS = 1.0
LAST_DELAY_SECONDS = 16.0
KEEP_NETWORK_SECONDS = 30 * 86_400.0
_NOTE_NETWORK_SECONDS = 300.0
_NOTED_NETWORKS = 10_000

_log = Logger()


def delay_seconds(failures: int) -> float:
    """How long the answer to that many failures of a network waits."""
    return min(FIRST_DELAY_SECONDS * 2.0 ** min(max(failures - 1, 0), 10), LAST_DELAY_SECONDS)


class Guard:
    """Stands before authentication."""

    def __init__(self, clock: IReactorTime, failures: Failures, bounds: Bounds) -> None:
        """`bounds` may be changed at any time."""
        self._clock = clock
        self._failures = failures
        self.bounds = bounds
        self._noted: OrderedDict[tuple[str, str], float] = OrderedDict()  # when a network was written down last

    async def refusal(self, session: SessionView, account: str) -> Reply | None:
        """What a client hears that is not listened to; None: check what it says.

        @raises StorageUnavailable: the database can't be asked.
        """
        admission = await self._failures.admission(session.client_address, session.client_network, account)
        if admission.is_network_banned:
            return NETWORK_BANNED
        if admission.is_account_banned:
            # 4xx does not end a session that says too much; time has to.
            await deferLater(self._clock, FIRST_DELAY_SECONDS)
            return ACCOUNT_BANNED
        return None

    async def failed(self, session: SessionView, account: str) -> None:
        """Count a failure, and return when it may be answered. Without the database it is slowed and not counted."""
        failures = 1
        try:
            count = await self._failures.count(session.client_network, account, self.bounds)
        except StorageUnavailable as error:
            _log.warn("a failed authentication could not be counted: {reason}", reason=str(error))
        else:
            failures = count.network
            for kind, subject, is_banned in (
                ("network", session.client_network, count.is_network_banned),
                ("account", account, count.is_account_banned),
            ):
                if is_banned:
                    _log.warn(
                        "{kind} {subject} is banned after too many failed authentications, the last in {session}",
                        kind=kind,
                        subject=subject,
                        session=encode_id(session.id),
                    )
        await self.slow(failures)

    async def slow(self, failures: int = 1) -> None:
        """Return when a client that has failed so often may be answered."""
        await deferLater(self._clock, delay_seconds(failures))

    async def succeeded(self, session: SessionView, account: str) -> None:
        """Remember the network that the account was used from."""
        key, now = (account, session.client_network), self._clock.seconds()
        if now - self._noted.get(key, float("-inf")) < _NOTE_NETWORK_SECONDS:
            return
        with suppress(StorageUnavailable):  # the next time, then
            await self._failures.succeeded(session.client_network, account, KEEP_NETWORK_SECONDS)
            self._noted[key] = now
            self._noted.move_to_end(key)
            if len(self._noted) > _NOTED_NETWORKS:
                self._noted.popitem(last=False)
