"""AUTH: from a SASL exchange to an account, through a twisted.cred Portal.

    mailgate.sasl.server      what the client says means
    this module               whom to ask, what counts as a failure, what the client hears
    Portal, and its checker   whether the credentials are right: mailgate's own, or a plugin's
    Guard                     who is not listened to, and how long a failure waits for its answer

Mechanisms are offered where the listener says so, as a rule on submission and inside TLS alone. SCRAM-SHA-256-PLUS is
offered on TLS 1.3, whose exporter names a connection for good (RFC 9266); TLS 1.2 has no such name that every client
gets right.

Another checker is a plugin: a file in a folder `mailgate/plugins/` on Python's path.

    @implementer(ICredentialsChecker)
    class HtpasswdChecker:
        credentialInterfaces = (IUsernamePassword,)
        def requestAvatarId(self, credentials):
            if htpasswd.check_password(credentials.username, credentials.password):
                return credentials.username
            return defer.fail(UnauthorizedLogin())

    htpasswd_file = CheckerPlugin("htpasswd", lambda services: HtpasswdChecker())

With `checker = "htpasswd"` in [authentication] it is asked instead of the database.

Standards: RFC 4954 (AUTH), RFC 5802 section 6 (channel binding), RFC 8314 section 3 (TLS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, assert_never

from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import LoginFailed, UnauthorizedLogin, UnhandledCredentials
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from zope.interface import Interface, implementer

from mailgate.accounts.checker import Password, ScramProof, ScramStart, account_name
from mailgate.accounts.hashing import Overloaded
from mailgate.ids import encode_id
from mailgate.interfaces import IAccount, IAuthenticator, IScramProof
from mailgate.policy.stage import SessionView
from mailgate.sasl import server as sasl
from mailgate.smtp.reply import Reply, reply
from mailgate.storage.errors import StorageUnavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mailgate.accounts.bans import Guard
    from mailgate.accounts.remembered import Remembered

REFUSED = reply(535, "5.7.8", "Authentication credentials invalid")
UNAVAILABLE = reply(454, "4.7.0", "Temporary authentication failure; try again later")
MALFORMED = reply(501, "5.5.2", "That is not what the mechanism asks for")

CHECK_SECONDS = 20.0  # for a checker, the time in its queue included

_log = Logger()


class Offer(Enum):
    """Where a listener offers AUTH. The value is the word in the configuration."""

    NEVER = "never"
    TLS = "tls"  # inside TLS
    ALWAYS = "always"  # in plain text too: for listeners that only this machine can reach


@implementer(IAccount)
class Account:
    """The avatar: somebody who has authenticated."""

    def __init__(self, name: str) -> None:
        self.name = name


@implementer(IRealm)
class Accounts:
    """The realm: every avatar id is an account's name."""

    def requestAvatar(
        self, avatarId: bytes | tuple[()], mind: object, *interfaces: type[Interface]
    ) -> tuple[type[Interface], Account, Callable[[], None]]:
        """The account; there is nothing to be done when it is given back."""
        if IAccount not in interfaces:
            raise NotImplementedError("an account is all that there is here")
        if not isinstance(avatarId, bytes):
            raise UnauthorizedLogin("nobody is anonymous here")
        return IAccount, Account(account_name(avatarId.decode("utf-8"))), lambda: None


@implementer(IAuthenticator)
class Authenticator:
    """Offers mechanisms and begins exchanges, for all listeners of a node."""

    def __init__(
        self,
        clock: IReactorTime,
        checker: Any,  # Any: a checker of a plugin, found by its interfaces
        guard: Guard,
        offers: Mapping[str, Offer],
        remembered: Remembered | None = None,
    ) -> None:
        """`offers` has the listeners by name; `remembered` is for a checker whose changes are heard of."""
        self._clock = clock
        self._checker = checker
        self._portal = Portal(Accounts(), [checker])
        self._guard = guard
        self._offers = offers
        self._remembered = remembered
        accepted = tuple(checker.credentialInterfaces)
        self._takes_passwords = IUsernamePassword in accepted
        self._takes_scram = IScramProof in accepted

    def mechanisms(self, session: SessionView) -> tuple[str, ...]:
        """What is offered in that session, the best first."""
        match self._offers.get(session.listener, Offer.NEVER):
            case Offer.NEVER:
                return ()
            case Offer.TLS if session.tls is None:
                return ()
        found = []
        if self._takes_scram:
            if session.tls is not None and session.tls.channel_binding is not None:
                found.append(sasl.SCRAM_PLUS)
            found.append(sasl.SCRAM)
        if self._takes_passwords:
            found += [sasl.PLAIN, sasl.LOGIN]
        return tuple(found)

    def begin(self, mechanism: str, session: SessionView) -> Exchange:
        """Start one exchange of a mechanism that is offered."""
        binding = session.tls.channel_binding if session.tls is not None else None
        return Exchange(self, mechanism, sasl.begin(mechanism, binding), session)

    # ------------------------------------------------------------ for Exchange

    async def check_password(self, exchange: Exchange, step: sasl.CheckPassword) -> str | Reply:
        """The account whose password this is, or what the client hears."""
        session, remembered = exchange.session, self._remembered
        account, key, generation = account_name(step.name), b"", 0
        if remembered is not None:
            key, generation = remembered.key(session.client_network, account, step.password), remembered.generation
            outcome = remembered.outcome(key)
            if outcome is not None:
                (known,) = outcome
                if known is not None:
                    return known
                # The same wrong password again is no further guess: it is slowed and not counted.
                exchange.note_failure(account, "the same wrong password again")
                await self._guard.slow()
                return REFUSED
        found = await self._check(exchange, account, Password(account.encode(), step.password, session))
        if remembered is not None and (found is REFUSED or isinstance(found, str)):
            remembered.keep(key, found if isinstance(found, str) else None, generation)
        return found

    async def start_scram(self, exchange: Exchange, step: sasl.FindVerifier) -> ScramStart | Reply:
        """What the exchange begins with, or what the client hears."""
        account = account_name(step.name)
        try:
            refusal = await self._ban(exchange, account)
            if refusal is not None:
                return refusal
            started: ScramStart = await self._in_time(self._checker.start_scram(account))
        except (StorageUnavailable, DeferredTimeout) as error:
            exchange.log_trouble(error)
            return UNAVAILABLE
        return started

    async def check_proof(self, exchange: Exchange, credentials: ScramProof) -> str | Reply:
        """The account whose password the client has proved to know, or what it hears."""
        return await self._check(exchange, credentials.username.decode(), credentials, is_admitted=True)

    async def refuse_unchecked(self, exchange: Exchange, account: str, problem: str) -> Reply:
        """What a client hears whose response can't be right; counted unless it is banned, as if it had been checked."""
        try:
            refusal = await self._ban(exchange, account)
        except StorageUnavailable as error:
            exchange.log_trouble(error)
            return UNAVAILABLE
        return refusal or await self._refuse(exchange, account, problem)

    async def _refuse(self, exchange: Exchange, account: str, problem: str) -> Reply:
        exchange.note_failure(account, problem)
        await self._guard.failed(exchange.session, account)
        return REFUSED

    async def _check(
        self, exchange: Exchange, account: str, credentials: Password | ScramProof, *, is_admitted: bool = False
    ) -> str | Reply:
        try:
            refusal = None if is_admitted else await self._ban(exchange, account)
            if refusal is not None:
                return refusal
            _, avatar, _ = await self._in_time(self._portal.login(credentials, None, IAccount))
        except UnhandledCredentials:  # a LoginFailed, and our own fault
            raise
        except LoginFailed:
            return await self._refuse(exchange, account, "wrong credentials")
        except (StorageUnavailable, Overloaded, DeferredTimeout) as error:
            exchange.log_trouble(error)
            return UNAVAILABLE
        name: str = avatar.name
        await self._guard.succeeded(exchange.session, name)
        _log.info(
            "{account} authenticated by {mechanism} in session {session}",
            account=name,
            mechanism=exchange.mechanism,
            session=encode_id(exchange.session.id),
        )
        return name

    async def _ban(self, exchange: Exchange, account: str) -> Reply | None:
        """What a client hears that is banned, or whose account is; None: it is listened to."""
        refusal = await self._guard.refusal(exchange.session, account)
        if refusal is not None:
            exchange.note_failure(account, "banned")
        return refusal

    def _in_time(self, deferred: Deferred[Any]) -> Deferred[Any]:  # Any: whatever a checker gives
        return deferred.addTimeout(CHECK_SECONDS, self._clock)


class Exchange:
    """One exchange with one client; see `IAuthenticator.begin`."""

    def __init__(
        self, authenticator: Authenticator, mechanism: str, exchange: sasl.Exchange, session: SessionView
    ) -> None:
        self.mechanism = mechanism
        self.session = session
        self._authenticator = authenticator
        self._exchange = exchange
        self._start: ScramStart | None = None
        self.account = ""  # as the client says, and in the end as it is

    def step(self, response: bytes | None) -> bytes | str | Reply | Deferred[bytes | str | Reply]:
        """Go on with the client's response: a challenge, the account's name, or a refusal."""
        step = self._exchange.respond(response)
        match step:
            case sasl.Challenge(octets=octets):
                return octets
            case sasl.Authenticated():
                return self.account
            case sasl.Failed(reason=sasl.Reason.MALFORMED):
                self.note_failure(step.name, step.problem)
                return MALFORMED
            case sasl.Failed():
                refused = self._authenticator.refuse_unchecked(self, account_name(step.name), step.problem)
                return Deferred.fromCoroutine(refused)
            case sasl.CheckPassword():
                return Deferred.fromCoroutine(self._authenticator.check_password(self, step))
            case sasl.FindVerifier():
                return Deferred.fromCoroutine(self._begin_scram(step))
            case sasl.CheckProof():
                return Deferred.fromCoroutine(self._end_scram(step))
            case _:
                assert_never(step)

    async def _begin_scram(self, step: sasl.FindVerifier) -> bytes | str | Reply:
        start = await self._authenticator.start_scram(self, step)
        if isinstance(start, Reply):
            return start
        self._start = start
        assert isinstance(self._exchange, sasl.Scram)  # noqa: S101  # no other asks for a verifier
        return self._exchange.found(start.salt, start.iterations).octets

    async def _end_scram(self, step: sasl.CheckProof) -> bytes | str | Reply:
        start = self._start
        assert isinstance(self._exchange, sasl.Scram)  # noqa: S101  # no other asks for a proof to be checked
        assert start is not None  # noqa: S101  # set before the client could send its proof
        credentials = ScramProof(account_name(step.name).encode(), start, step.proof, self.session)
        account = await self._authenticator.check_proof(self, credentials)
        if isinstance(account, Reply):
            return account
        assert credentials.matched is not None  # noqa: S101  # what a checker of SCRAM promises
        self.account = account
        return self._exchange.proved(credentials.matched).octets

    def note_failure(self, account: str, problem: str) -> None:
        """Keep for the record, and say in the log, who has failed, and how; never with what."""
        self.account = account
        _log.info(
            "authentication of {account!r} by {mechanism} from {client} failed in session {session}: {problem}",
            account=account,
            mechanism=self.mechanism,
            client=self.session.client_address,
            session=encode_id(self.session.id),
            problem=problem,
        )

    def log_trouble(self, error: Exception) -> None:
        """Say why nobody can be authenticated now."""
        _log.warn(
            "authentication by {mechanism} was put off in session {session}: {reason}",
            mechanism=self.mechanism,
            session=encode_id(self.session.id),
            reason=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
        )
