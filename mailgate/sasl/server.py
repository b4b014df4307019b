"""The server's side of PLAIN, LOGIN, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, one exchange an object.

An exchange is fed with the client's decoded responses and says what comes next:

    step             who goes on, and how
    Challenge        the client, with `respond`
    CheckPassword    the owner: ask whoever knows passwords; the exchange is over
    FindVerifier     the owner: `found` with salt and iterations, then as it says
    CheckProof       the owner: `proved` with the verifier that matches, then as it says; a wrong proof ends it
    Authenticated    nobody: the client is who it says
    Failed           nobody

Names and passwords come out prepared by SASLprep. Who exists, and what passwords are, is the owner's affair; so is
base64, and the client's "*".

Standards: RFC 4422 (SASL), RFC 4616 (PLAIN), draft-murchison-sasl-login (LOGIN, which has no standard), RFC 5802 and
RFC 7677 (SCRAM-SHA-256), RFC 9266 (tls-exporter).
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from mailgate.sasl.saslprep import Unprepared, saslprep
from mailgate.sasl.scram import (
    ClientFirst,
    Malformed,
    Proof,
    Verifier,
    parse_client_final,
    parse_client_first,
    server_first,
)

PLAIN, LOGIN, SCRAM, SCRAM_PLUS = "PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
CHANNEL_BINDING = "tls-exporter"

_NAME_OCTETS = 1024
_PASSWORD_OCTETS = 1024
_NONCE_OCTETS = 18


@dataclass(frozen=True, slots=True)
class Challenge:
    """Send this, and give the client's response to `respond`."""

    octets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CheckPassword:
    """Find out whether this is the password of `name`."""

    name: str
    password: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class FindVerifier:
    """Find the salt and the count of iterations for `name`, also where there is no such account."""

    name: str


@dataclass(frozen=True, slots=True)
class CheckProof:
    """Find a verifier of `name` that the proof matches."""

    name: str
    proof: Proof


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The client is `name`."""

    name: str


class Reason(Enum):
    """Why an exchange failed."""

    MALFORMED = "the client does not speak the mechanism"
    REFUSED = "what the client says can't be right"


@dataclass(frozen=True, slots=True)
class Failed:
    """The exchange is over. `problem` is for the log; `name` is there where the client has said one."""

    reason: Reason
    problem: str
    name: str = ""


Step = Challenge | CheckPassword | FindVerifier | CheckProof | Authenticated | Failed


class Exchange(Protocol):
    """What all mechanisms have."""

    def respond(self, response: bytes | None) -> Step:
        """Go on with the client's response, None where it sent no initial one."""


class Plain:
    """PLAIN: [authzid] NUL authcid NUL passwd."""

    def respond(self, response: bytes | None) -> Step:
        """The one response; it may come as an initial one."""
        if response is None:
            return Challenge(b"")
        parts = response.split(b"\0")
        if len(parts) != 3:
            return Failed(Reason.MALFORMED, "a response to PLAIN has three parts")
        asked_for, name, password = parts
        return _password_of(name, password, asked_for)


class Login:
    """LOGIN: the name, then the password. Some clients send the name as an initial response."""

    def __init__(self) -> None:
        self._name: bytes | None = None

    def respond(self, response: bytes | None) -> Step:
        """The name, then the password."""
        if response is None:
            return Challenge(b"Username:")
        if self._name is None:
            self._name = response
            return Challenge(b"Password:")
        return _password_of(self._name, response, b"")


class Scram:
    """SCRAM-SHA-256 and, with `is_plus`, SCRAM-SHA-256-PLUS."""

    def __init__(
        self,
        *,
        binding: bytes | None = None,
        is_plus: bool = False,
        make_nonce: Callable[[], bytes] = lambda: base64.b64encode(secrets.token_bytes(_NONCE_OCTETS)),
    ) -> None:
        """`binding` is the connection's tls-exporter, None where it has none and -PLUS is not offered."""
        self._binding = binding
        self._is_plus = is_plus
        self._make_nonce = make_nonce
        self._first: ClientFirst | None = None
        self._name = ""
        self._nonce = b""
        self._server_first = b""
        self._proof: Proof | None = None
        self._is_proved = False

    def respond(self, response: bytes | None) -> Step:
        """The client's first message, its final one, and the empty response to ours."""
        if response is None:
            return Challenge(b"")
        if self._is_proved:
            # RFC 4954 section 4: what the server says last is a challenge, and the client's answer to it is empty.
            return (
                Failed(Reason.MALFORMED, "an empty response is due", self._name)
                if response
                else Authenticated(self._name)
            )
        try:
            return self._begin(response) if self._first is None else self._check(self._first, response)
        except Malformed as error:
            return Failed(Reason.MALFORMED, str(error), self._name)

    def found(self, salt: bytes, iterations: int) -> Challenge:
        """Go on with the salt and the count for the name that was asked for."""
        assert self._first is not None  # noqa: S101  # it asked
        self._nonce = self._first.nonce + self._make_nonce()
        self._server_first = server_first(self._nonce, salt, iterations)
        return Challenge(self._server_first)

    def proved(self, verifier: Verifier) -> Challenge:
        """Go on: the proof matches this verifier."""
        assert self._proof is not None  # noqa: S101  # it asked
        self._is_proved = True
        return Challenge(self._proof.answer(verifier))

    def _begin(self, message: bytes) -> Step:
        first = parse_client_first(message)
        name = _prepared(first.name.encode())
        if isinstance(name, Failed):
            return name
        self._name = name
        # RFC 5802 section 6: -PLUS is used with "p", and never without; whoever says "y" was told by somebody in
        # between that we don't offer it.
        if self._is_plus != (first.binding is not None):
            return Failed(Reason.MALFORMED, "the flag of channel binding is not the mechanism's", name)
        if first.binding not in (None, CHANNEL_BINDING):
            return Failed(Reason.MALFORMED, "a channel binding that is not known here", name)
        if first.supports_binding and self._binding is not None:
            return Failed(Reason.REFUSED, "the client was not told of channel binding: somebody is in between", name)
        if first.authorization and first.authorization != first.name:
            return Failed(Reason.REFUSED, "the client asks to act as somebody else", name)
        self._first = first
        return FindVerifier(name)

    def _check(self, first: ClientFirst, message: bytes) -> Step:
        final = parse_client_final(message)
        bound = first.gs2_header + (self._binding or b"" if self._is_plus else b"")
        if not hmac.compare_digest(final.channel_binding, bound):
            return Failed(Reason.REFUSED, "the channel binding is another connection's", self._name)
        if not hmac.compare_digest(final.nonce, self._nonce):
            return Failed(Reason.REFUSED, "the nonce is another one", self._name)
        self._proof = Proof(final.proof, b",".join((first.bare, self._server_first, final.without_proof)))
        return CheckProof(self._name, self._proof)


def begin(mechanism: str, binding: bytes | None = None) -> Exchange:
    """A new exchange of that mechanism; `binding` is the connection's tls-exporter, if it has one.

    @raises KeyError: the mechanism is not known here.
    """
    match mechanism:
        case "PLAIN":
            return Plain()
        case "LOGIN":
            return Login()
        case "SCRAM-SHA-256":
            return Scram(binding=binding)
        case "SCRAM-SHA-256-PLUS":
            return Scram(binding=binding, is_plus=True)
        case _:
            raise KeyError(mechanism)


def _password_of(name: bytes, password: bytes, asked_for: bytes) -> CheckPassword | Failed:
    prepared = _prepared(name)
    if isinstance(prepared, Failed):
        return prepared
    # RFC 4616 section 2: the authorization identity is left out as a rule; to be somebody else takes proxying, which is
    # not offered.
    if asked_for and asked_for != name:
        return Failed(Reason.REFUSED, "the client asks to act as somebody else", prepared)
    if len(password) > _PASSWORD_OCTETS:
        return Failed(Reason.REFUSED, "a password of that length is nobody's", prepared)
    try:
        prepared_password = saslprep(password.decode("utf-8")).encode()
    except UnicodeDecodeError:
        return Failed(Reason.REFUSED, "the password is not UTF-8", prepared)
    except Unprepared as error:
        return Failed(Reason.REFUSED, f"the password can't be prepared: {error}", prepared)
    # "If the preparation of either fails or results in an empty string, verification SHALL fail."
    if not prepared_password:
        return Failed(Reason.REFUSED, "the password is empty", prepared)
    return CheckPassword(prepared, prepared_password)


def _prepared(octets: bytes) -> str | Failed:
    """The name in its prepared form."""
    if len(octets) > _NAME_OCTETS:
        return Failed(Reason.MALFORMED, "a name of that length is nobody's")
    try:
        name = saslprep(octets.decode("utf-8"))
    except UnicodeDecodeError:
        return Failed(Reason.MALFORMED, "the name is not UTF-8")
    except Unprepared as error:
        return Failed(Reason.REFUSED, f"the name can't be prepared: {error}")
    return name or Failed(Reason.REFUSED, "the name is empty")
