"""What one node has for authentication, put together of values.

The database's connections are a node's own for this: guesses must not hold up mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mailgate.accounts.authenticator import Authenticator, Offer
from mailgate.accounts.bans import Guard
from mailgate.accounts.checker import DatabaseChecker
from mailgate.accounts.hashing import PasswordThreads
from mailgate.accounts.plugin import DATABASE, make_checker
from mailgate.accounts.remembered import Remembered
from mailgate.storage.credentials import CHANNEL, Bounds, Credentials, Failures
from mailgate.storage.directory import CHANNEL as DIRECTORY_CHANNEL

if TYPE_CHECKING:
    from mailgate.policy.plugin import Services
    from mailgate.storage.pool import Connection, Pool


@dataclass(frozen=True, slots=True)
class NodeAccounts:
    """The authenticator of a node, and what may be changed or has to be ended."""

    authenticator: Authenticator
    guard: Guard
    threads: PasswordThreads


def node_accounts(
    services: Services,
    pool: Pool,
    control: Connection,
    *,
    checker_name: str,
    offers: Mapping[str, Offer],
    bounds: Bounds,
    threads: int,
    waiting: int,
) -> NodeAccounts:
    """Put it together. The setup of `pool` is `literal.settle`; `control` hears of changes.

    @raises UnusableChecker: there is no such checker, or its plugin makes none.
    """
    clock = services.reactor
    password_threads = PasswordThreads(clock, threads=threads, waiting=waiting)
    remembered = None
    checker: Any  # Any: a checker of a plugin, or ours, found by its interfaces
    if checker_name == DATABASE:
        checker = DatabaseChecker(Credentials(pool.execute), password_threads)
        remembered = Remembered(clock.seconds, hears_changes=lambda: control.is_connected)
        forget = remembered.forget
        for channel in (CHANNEL, DIRECTORY_CHANNEL):
            control.listen(channel, lambda _payload: forget())
        control.on_lost(forget)
        control.on_reconnect(forget)
    else:
        checker = make_checker(checker_name, services)
    guard = Guard(clock, Failures(pool.execute), bounds)
    return NodeAccounts(Authenticator(clock, checker, guard, offers, remembered), guard, password_threads)
