"""Accounts with passwords for tests, hashed cheaply, and a node's authentication on a real database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from argon2 import PasswordHasher, Type
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailgate.accounts.authenticator import Authenticator, Offer
from mailgate.accounts.bans import Guard
from mailgate.accounts.checker import DatabaseChecker
from mailgate.accounts.hashing import PasswordThreads
from mailgate.accounts.passwords import salt_of, selector_of
from mailgate.accounts.remembered import Remembered
from mailgate.policy.stage import Role, SessionView, TlsState
from mailgate.sasl.scram import make_verifier
from mailgate.storage.credentials import CHANNEL, Admission, Bounds, Count, Credentials, Failures
from mailgate.storage.literal import settle
from mailgate.storage.pool import Connection, Pool
from tests.support.postgres import query
from tests.support.waiting import reactor, until

if TYPE_CHECKING:
    from collections.abc import Sequence

SECRET = b"s" * 32
USUAL = Bounds()
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1, type=Type.ID)
TLS = TlsState("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, channel_binding=b"\x01" * 32)


def add_account(dsn: str, address: str, password: str = "", *, is_enabled: bool = True) -> None:
    """A mailbox and, unless it is empty, its own password."""
    local_part, _, domain = address.rpartition("@")
    query(dsn, "INSERT INTO mailgate.domain (name) VALUES (%s) ON CONFLICT DO NOTHING", (domain,))
    query(
        dsn,
        "INSERT INTO mailgate.mailbox (domain_id, local_part, is_enabled) SELECT id, %s, %s FROM mailgate.domain"
        " WHERE name = %s",
        (local_part, is_enabled, domain),
    )
    if password:
        set_password(dsn, address, password)


def set_password(dsn: str, address: str, password: str, name: str = "") -> None:
    """The account's own password or, with a name, an app password."""
    query(dsn, "INSERT INTO mailgate.secret (name, octets) VALUES ('scram-salt', %s) ON CONFLICT DO NOTHING", (SECRET,))
    ((secret,),) = query(dsn, "SELECT octets FROM mailgate.secret WHERE name = 'scram-salt'")
    assert isinstance(secret, memoryview)
    octets = password.encode()
    query(
        dsn,
        "INSERT INTO mailgate.credential (mailbox_id, name, selector, argon2, scram_sha256)"
        " SELECT m.id, %s, %s, %s, %s FROM mailgate.mailbox m JOIN mailgate.domain d ON d.id = m.domain_id"
        " WHERE m.local_part || '@' || d.name = %s"
        " ON CONFLICT (mailbox_id, name) DO UPDATE SET argon2 = EXCLUDED.argon2, scram_sha256 = EXCLUDED.scram_sha256",
        (
            name,
            selector_of(octets) if name else None,
            CHEAP.hash(octets),
            make_verifier(octets, salt_of(bytes(secret), address), 4096).text(),
            address,
        ),
    )


def view(client_address: str = "192.0.2.7", *, tls: TlsState | None = TLS, listener: str = "submission") -> SessionView:
    """A session of a client at that address."""
    network = client_address + ("/64" if ":" in client_address else "/32")
    return SessionView(
        1, listener, Role.SUBMISSION, client_address, 4711, network, "192.0.2.25", 465, 1795440000.0, tls=tls
    )


class NoFailures(Failures):
    """Nobody is banned; failures are counted here."""

    def __init__(self) -> None:
        self.counted: list[str] = []

    async def admission(self, address: str, network: str, account: str) -> Admission:
        return Admission(False, False)

    async def count(self, network: str, account: str, bounds: Bounds) -> Count:
        self.counted.append(account)
        return Count(1, 1, False, False)

    async def succeeded(self, network: str, account: str, keep_seconds: float) -> None:
        pass


class Node:
    """What one node has for authentication; the delays go by its `clock`."""

    def __init__(self, dsn: str, *, bounds: Bounds = USUAL, remembers: bool = False, checker: Any = None) -> None:
        # Any: a checker of a plugin
        self.clock = Clock()
        self.statements = 0
        self.pool = Pool(reactor, dsn, size=2, name="test-accounts", setup=settle)
        self.control = Connection(reactor, dsn, name="test-control")
        self.threads = PasswordThreads(reactor, hasher=CHEAP)
        self.guard = Guard(self.clock, Failures(self.execute), bounds)
        self.remembered = Remembered(self.clock.seconds)
        if remembers:
            self.control.listen(CHANNEL, lambda _payload: self.remembered.forget())
        self.authenticator = Authenticator(
            self.clock,
            checker or DatabaseChecker(Credentials(self.execute), self.threads, CHEAP),
            self.guard,
            {"submission": Offer.TLS, "local": Offer.ALWAYS, "smtp": Offer.NEVER},
            self.remembered if remembers else None,
        )

    async def execute(self, sql: str | bytes, parameters: Any = None, *, timeout_seconds: float = 10.0) -> list[Any]:
        # Any: as Pool.execute has it
        """Count, and ask the pool."""
        self.statements += 1
        return await self.pool.execute(sql, parameters, timeout_seconds=timeout_seconds)

    async def start(self) -> None:
        self.pool.start()
        self.control.start()
        await self.pool.connected(10.0)
        await self.control.connected(10.0)

    async def stop(self) -> None:
        await self.pool.stop()
        await self.control.stop()
        self.threads.abandon()

    async def exchange(self, mechanism: str, responses: Sequence[bytes | None], session: SessionView) -> object:
        """What comes of the last of these responses, after all delays."""
        exchange = self.authenticator.begin(mechanism, session)
        answer: object = None
        for response in responses:
            answer = await self.settled(exchange.step(response))
        return answer

    async def plain(self, name: str, password: str, session: SessionView | None = None) -> object:
        """What comes of PLAIN: the account's name, or a Reply."""
        return await self.exchange("PLAIN", [b"\0%s\0%s" % (name.encode(), password.encode())], session or view())

    async def settled(self, answer: object) -> object:
        """The answer itself; the clock goes on whenever it waits for nothing else."""
        if not isinstance(answer, Deferred):
            return answer
        found: list[object] = []
        answer.addBoth(found.append)

        def is_done() -> bool:
            delays = [call.getTime() for call in self.clock.getDelayedCalls()]
            # The deadline of a checker is no delay.
            if delays and min(delays) - self.clock.seconds() <= 16.0:
                self.clock.advance(min(delays) - self.clock.seconds())
            return bool(found)

        await until(reactor, is_done, what="an answer")
        return found[0]
