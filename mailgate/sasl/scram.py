"""SCRAM-SHA-256 as the server computes it: messages, verifiers and proofs.

A verifier is what the server keeps: with it, it can check a client and prove itself, and can't pose as the client. The
exchange round these values is in `mailgate.sasl.server`.

Standards: RFC 5802 (SCRAM; section 3 the algorithm, 5.1 attributes, 7 grammar), RFC 7677 (SCRAM-SHA-256), RFC 5803 (a
verifier as text; the form here is the one of PostgreSQL, which says the same).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field

# RFC 7677 section 4 asks for 4096 at least, in 2015. Whoever steals a verifier can try passwords against it at the
# price of so many HMACs each: that price is set to about what the argon2id beside it costs (25 ms). At a login the
# client alone pays it.
ITERATIONS = 100_000
MIN_ITERATIONS = 4096
SALT_OCTETS = 16
_DIGEST = "sha256"
_DIGEST_OCTETS = 32

#   value-char      = value-safe-char / "="            ; no NUL, no comma
#   printable       = %x21-2B / %x2D-7E                ; for nonces
_NONCE = re.compile(rb"[\x21-\x2b\x2d-\x7e]+")
_SASLNAME = re.compile(r"(?:[^\0,=]|=2C|=3D)+")
_VERIFIER = re.compile(r"SCRAM-SHA-256\$([0-9]{1,10}):([^$:]*)\$([^$:]*):([^$:]*)")


class Malformed(ValueError):
    """The client's message is none of SCRAM; the text says why and repeats nothing of it."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What is kept of a password."""

    iterations: int
    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def text(self) -> str:
        """The form in which it is stored."""
        salt, stored, server = (
            base64.b64encode(octets).decode("ascii") for octets in (self.salt, self.stored_key, self.server_key)
        )
        return f"SCRAM-SHA-256${self.iterations}:{salt}${stored}:{server}"


def parse_verifier(text: str) -> Verifier:
    """The verifier that was stored in that form. @raises ValueError: it is none."""
    match = _VERIFIER.fullmatch(text)
    if match is None:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    salt, stored_key, server_key = (base64.b64decode(part, validate=True) for part in match.groups()[1:])
    if not salt or len(stored_key) != _DIGEST_OCTETS or len(server_key) != _DIGEST_OCTETS:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    return Verifier(int(match[1]), salt, stored_key, server_key)


def make_verifier(password: bytes, salt: bytes, iterations: int = ITERATIONS) -> Verifier:
    """The verifier of a prepared password (section 3). Takes as long as the iterations do: not for the reactor."""
    salted = hashlib.pbkdf2_hmac(_DIGEST, password, salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", _DIGEST)).digest()
    return Verifier(iterations, salt, stored_key, hmac.digest(salted, b"Server Key", _DIGEST))


@dataclass(frozen=True, slots=True)
class ClientFirst:
    """The client's first message. `bare` is it without its GS2 header."""

    gs2_header: bytes
    binding: str | None  # the name of the channel binding that the client uses
    supports_binding: bool  # the flag "y": it could, and believes that we can't
    authorization: str  # "" where the client asks for nobody else
    name: str
    nonce: bytes
    bare: bytes


@dataclass(frozen=True, slots=True)
class ClientFinal:
    """The client's final message."""

    channel_binding: bytes  # c=, decoded
    nonce: bytes
    proof: bytes = field(repr=False)
    without_proof: bytes = b""


@dataclass(frozen=True, slots=True)
class Proof:
    """A client's proof, and the messages that it is for."""

    octets: bytes = field(repr=False)
    auth_message: bytes = field(repr=False)

    def matches(self, verifier: Verifier) -> bool:
        """Whether the client knows the password (section 3: ClientSignature, ClientKey, StoredKey)."""
        signature = hmac.digest(verifier.stored_key, self.auth_message, _DIGEST)
        client_key = bytes(ours ^ theirs for ours, theirs in zip(signature, self.octets, strict=True))
        return hmac.compare_digest(hashlib.sha256(client_key).digest(), verifier.stored_key)

    def answer(self, verifier: Verifier) -> bytes:
        """The server's final message: the proof that we know the verifier."""
        return b"v=" + base64.b64encode(hmac.digest(verifier.server_key, self.auth_message, _DIGEST))


#   client-first-message = gs2-header client-first-message-bare
#   gs2-header           = gs2-cbind-flag "," [ authzid ] ","
#   gs2-cbind-flag       = ("p=" cb-name) / "n" / "y"
#   client-first-message-bare = [reserved-mext ","] username "," nonce ["," extensions]
def parse_client_first(message: bytes) -> ClientFirst:
    """@raises Malformed: it is no first message, or asks for an extension that we don't know."""
    flag, comma, rest = message.partition(b",")
    asked, second_comma, bare = rest.partition(b",")
    if not comma or not second_comma:
        raise Malformed("there is no GS2 header")
    binding = None
    if flag[:2] == b"p=":
        try:
            binding = flag[2:].decode("ascii")
        except UnicodeDecodeError:
            raise Malformed("the channel binding has no name") from None
    elif flag not in (b"n", b"y"):
        raise Malformed("the GS2 header has no flag of channel binding")
    if asked and asked[:2] != b"a=":
        raise Malformed("the GS2 header holds something else than an authorization identity")
    attributes = bare.split(b",")
    if attributes[0][:2] == b"m=":
        raise Malformed("an extension is mandatory that is not known here")
    if len(attributes) < 2 or attributes[0][:2] != b"n=" or attributes[1][:2] != b"r=":
        raise Malformed("there is no user name, or no nonce")
    nonce = attributes[1][2:]
    if not _NONCE.fullmatch(nonce):
        raise Malformed("the nonce is not made of printable characters")
    return ClientFirst(
        message[: len(message) - len(bare)],
        binding,
        flag == b"y",
        _saslname(asked[2:]) if asked else "",
        _saslname(attributes[0][2:]),
        nonce,
        bare,
    )


#   client-final-message = channel-binding "," nonce ["," extensions] "," proof
def parse_client_final(message: bytes) -> ClientFinal:
    """@raises Malformed: it is no final message."""
    without_proof, separator, encoded_proof = message.rpartition(b",p=")
    attributes = without_proof.split(b",")
    if not separator or len(attributes) < 2 or attributes[0][:2] != b"c=" or attributes[1][:2] != b"r=":
        raise Malformed("there is no channel binding, no nonce, or no proof")
    try:
        channel_binding = binascii.a2b_base64(attributes[0][2:], strict_mode=True)
        proof = binascii.a2b_base64(encoded_proof, strict_mode=True)
    except binascii.Error:
        raise Malformed("the channel binding or the proof is not base64") from None
    if len(proof) != _DIGEST_OCTETS:
        raise Malformed("the proof has not the length of a SHA-256")
    return ClientFinal(channel_binding, attributes[1][2:], proof, without_proof)


def server_first(nonce: bytes, salt: bytes, iterations: int) -> bytes:
    """The server's first message; `nonce` is both sides' together."""
    return b"r=%s,s=%s,i=%d" % (nonce, base64.b64encode(salt), iterations)


def _saslname(octets: bytes) -> str:
    try:
        name = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("a name is not UTF-8") from None
    if not _SASLNAME.fullmatch(name):
        raise Malformed("a name is empty, or a comma or an equals sign in it is not escaped")
    return name.replace("=2C", ",").replace("=3D", "=")
