"""SASL on the client's side, without I/O: how we prove to a smarthost who we are.

A mechanism gives its first response at once (`initial`, None where the server speaks first), one response for each
challenge, and says at the end whether the server had to prove itself and did. SCRAM comes before the two mechanisms
that show the password: a server that is not what it seems to be learns nothing that it can use.

Not here: base64, AUTH and its replies (`mailgate.smtp.client`); channel binding, which would need the TLS connection.

Standards: RFC 4422 (SASL), RFC 4616 (PLAIN), RFC 5802 and RFC 7677 (SCRAM-SHA-256), draft-murchison-sasl-login (LOGIN).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import re
from collections.abc import Callable, Collection
from typing import Protocol

from mailgate.sasl.saslprep import Unprepared, saslprep

# RFC 7677 section 4 asks servers for 4096 at least; fewer would make it cheap to try passwords against what we answer.
# More than this would hold up the reactor for longer than it may be: about half a microsecond each.
MIN_ITERATIONS = 4096
MAX_ITERATIONS = 150_000
_DIGEST = "sha256"
_ITERATIONS = re.compile(rb"[0-9]{1,9}")
_NONCE = re.compile(rb"[\x21-\x2b\x2d-\x7e]+")


class ExchangeError(Exception):
    """The exchange can't go on: what the server sent is not what the mechanism asks for. One line for people."""


class Mechanism(Protocol):
    """One exchange."""

    name: str

    def initial(self) -> bytes | None:
        """The first response; None where the server speaks first."""

    def respond(self, challenge: bytes) -> bytes:
        """The response to a challenge. @raises ExchangeError: there is none."""

    @property
    def is_complete(self) -> bool:
        """Whether the server may now say that we are in: what had to be said was, and what it had to prove it has."""


class Plain:
    """RFC 4616: the password, once."""

    name = "PLAIN"

    def __init__(self, username: str, password: str) -> None:
        """For one exchange."""
        self._message = b"\0" + _octets(username) + b"\0" + _octets(password)

    def initial(self) -> bytes | None:
        """All there is to say."""
        return self._message

    def respond(self, challenge: bytes) -> bytes:
        """The same, where the server asks for it with an empty challenge."""
        if challenge:
            raise ExchangeError("PLAIN has no challenge")
        return self._message

    @property
    def is_complete(self) -> bool:
        """The server has nothing to prove."""
        return True


class Login:
    """What PLAIN replaced: user name and password, each when it is asked for, whatever the words of the question."""

    name = "LOGIN"

    def __init__(self, username: str, password: str) -> None:
        """For one exchange."""
        self._answers = [_octets(username), _octets(password)]

    def initial(self) -> bytes | None:
        """Nothing: some servers take no initial response."""
        return None

    def respond(self, challenge: bytes) -> bytes:
        """First the name, then the password."""
        if not self._answers:
            raise ExchangeError("LOGIN asks for a third answer")
        return self._answers.pop(0)

    @property
    def is_complete(self) -> bool:
        """Whether both were asked for."""
        return not self._answers


class ScramSha256:
    """RFC 7677: we prove that we know the password, the server that it knows what it keeps of it."""

    name = "SCRAM-SHA-256"
    _GS2_HEADER = b"n,,"  # no channel binding, and we could do none; nobody else is asked for

    def __init__(self, username: str, password: str, nonce: bytes) -> None:
        """For one exchange; `nonce` is random and printable, without a comma."""
        self._password = _octets(saslprep(password))
        name = saslprep(username).replace("=", "=3D").replace(",", "=2C")
        self._nonce = nonce
        self._first_bare = b"n=" + _octets(name) + b",r=" + nonce
        self._server_signature: bytes | None = None
        self.is_complete = False

    def initial(self) -> bytes | None:
        """The client's first message."""
        return self._GS2_HEADER + self._first_bare

    def respond(self, challenge: bytes) -> bytes:
        """The client's final message; then nothing, once the server has proved itself."""
        if self._server_signature is None:
            return self._final(challenge)
        attributes = _attributes(challenge)
        if "e" in attributes:
            raise ExchangeError("the server refuses the proof")
        try:
            signature = base64.b64decode(attributes.get("v", b""), validate=True)
        except binascii.Error as error:
            raise ExchangeError("the server's signature is not base64") from error
        if self.is_complete or not hmac.compare_digest(signature, self._server_signature):
            raise ExchangeError("the server doesn't know the password")
        self.is_complete = True
        return b""

    #   server-first-message = [reserved-mext ","] nonce "," salt "," iteration-count ["," extensions]
    def _final(self, server_first: bytes) -> bytes:
        attributes = _attributes(server_first)
        nonce = attributes.get("r", b"")
        if "m" in attributes or not nonce.startswith(self._nonce) or not _NONCE.fullmatch(nonce):
            raise ExchangeError("the server's first message has no nonce that goes on ours, or an unknown extension")
        try:
            salt = base64.b64decode(attributes.get("s", b""), validate=True)
            iterations = int(attributes["i"]) if _ITERATIONS.fullmatch(attributes.get("i", b"")) else 0
        except binascii.Error as error:
            raise ExchangeError("the server's salt is not base64") from error
        if not salt or not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise ExchangeError(
                f"the server's salt is empty, or it asks for less or more work than is right: {iterations}"
            )
        salted = hashlib.pbkdf2_hmac(_DIGEST, self._password, salt, iterations)
        without_proof = b"c=" + base64.b64encode(self._GS2_HEADER) + b",r=" + nonce
        auth_message = b",".join((self._first_bare, server_first, without_proof))
        client_key = hmac.digest(salted, b"Client Key", _DIGEST)
        signature = hmac.digest(hashlib.sha256(client_key).digest(), auth_message, _DIGEST)
        proof = bytes(ours ^ theirs for ours, theirs in zip(client_key, signature, strict=True))
        self._server_signature = hmac.digest(hmac.digest(salted, b"Server Key", _DIGEST), auth_message, _DIGEST)
        return without_proof + b",p=" + base64.b64encode(proof)


def mechanisms(
    offered: Collection[str], username: str, password: str, nonce: Callable[[], bytes], *, is_private: bool
) -> list[Mechanism]:
    """What can be tried with a server that offers these, the best first.

    `is_private` says that nobody listens: TLS, or a connection that doesn't leave the machine. Without it, a mechanism
    that shows the password is not among them.
    """
    usable: list[Mechanism] = []
    if ScramSha256.name in offered:
        with contextlib.suppress(Unprepared):  # the other mechanisms send it as it is
            usable.append(ScramSha256(username, password, nonce()))
    if is_private:
        usable += [mechanism(username, password) for mechanism in (Plain, Login) if mechanism.name in offered]
    return usable


def _octets(text: str) -> bytes:
    return text.encode("utf-8")


def _attributes(message: bytes) -> dict[str, bytes]:
    #   attr-val = ALPHA "=" value
    attributes = {}
    for part in message.split(b","):
        name, separator, value = part.partition(b"=")
        if len(name) != 1 or not name.isalpha() or not separator:
            raise ExchangeError("the server's message is not made of attributes")
        attributes[name.decode("ascii")] = value
    return attributes
