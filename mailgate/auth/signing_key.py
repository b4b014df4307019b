"""Keys of signers, as the DNS has them, and the one sum that is done with them.

A key is measured before it is used: a record of kilobytes, a modulus of sixteen thousand bits or an exponent as long
as the modulus costs its sender as little as any, and us seconds. The arithmetic is that of the library `cryptography`;
`docs/adr/0007-dkim-verification.md` says why it is not dkimpy's.

Standards: RFC 6376 sections 3.6 (key records) and 6.1.2 (getting the key); RFC 8301 section 3.2 (sizes of RSA keys);
RFC 8463 (Ed25519).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from mailgate.auth.results import Result
from mailgate.auth.tag_list import MalformedTags, base64_value, parse_tag_list, split_value
from mailgate.dns.answer import Outcome, Question, RecordType

if TYPE_CHECKING:
    from mailgate.dns.answer import Answer

MAX_RECORD_OCTETS = 4096
MAX_RECORDS = 8  # looked at, of those at one name
MAX_KEYS = 2  # tried, of those
MAX_RSA_EXPONENT = 1 << 32

# What `a=` may say, with the type of key that it wants. RFC 8301 section 3.1 took rsa-sha1 away.
KEY_TYPES = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}

_PADDING = PKCS1v15()
_PREHASHED = Prehashed(SHA256())


# Which RSA keys are taken, by the bits of their modulus: RFC 8301 section 3.2 forbids to take smaller ones, and wants
# those up to the larger number verified.
MINIMUM_RSA_BITS = 1024
MAXIMUM_RSA_BITS = 4096


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A usable key record."""

    type: str  # "rsa" or "ed25519"
    bits: int
    public: RSAPublicKey | Ed25519PublicKey
    is_testing: bool = False  # t=y
    is_strict: bool = False  # t=s: i= must not be below d=

    def verifies(self, digest: bytes, signature: bytes) -> bool:
        """Whether that is this key's signature of that SHA-256 digest."""
        try:
            if isinstance(self.public, RSAPublicKey):
                self.public.verify(signature, digest, _PADDING, _PREHASHED)
            else:
                self.public.verify(signature, digest)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class KeyFault:
    """Why there is no key to verify with."""

    result: Result  # temperror or permerror
    problem: str
    bits: int = 0


def key_question(selector: str, domain: str) -> Question:
    """Where a key is asked for (RFC 6376 section 3.6.2.1)."""
    return Question(f"{selector}._domainkey.{domain}", RecordType.TXT)


def keys_in(
    answer: Answer,
    algorithm: str,
    minimum_rsa_bits: int = MINIMUM_RSA_BITS,
    maximum_rsa_bits: int = MAXIMUM_RSA_BITS,
) -> tuple[SigningKey, ...] | KeyFault:
    """The keys to try for a signature by that algorithm, or why there are none.

    Several records at one name have no defined meaning (RFC 6376 section 3.6.2.2); they occur where a key is exchanged
    or where a wildcard answers for everything. Those that are no keys for this signature are passed over.
    """
    if answer.outcome is Outcome.FAILURE:
        return KeyFault(Result.TEMPERROR, f"the key could not be looked up: {answer.detail or answer.rcode}")
    if answer.outcome is not Outcome.ANSWER:
        return KeyFault(Result.PERMERROR, "there is no key at this selector and domain")
    keys: list[SigningKey] = []
    fault: KeyFault | None = None
    for record in answer.records[:MAX_RECORDS]:
        if not isinstance(record, bytes):
            continue
        found = _fitting(record, algorithm, minimum_rsa_bits, maximum_rsa_bits)
        if isinstance(found, SigningKey):
            keys.append(found)
        elif fault is None:
            fault = found
    if keys:
        return tuple(keys[:MAX_KEYS])
    return fault or KeyFault(Result.PERMERROR, "there is no key at this selector and domain")


def _fitting(record: bytes, algorithm: str, minimum_rsa_bits: int, maximum_rsa_bits: int) -> SigningKey | KeyFault:
    if len(record) > MAX_RECORD_OCTETS:
        return KeyFault(Result.PERMERROR, f"the key record is larger than {MAX_RECORD_OCTETS} octets")
    key = _read(record)
    if isinstance(key, KeyFault):
        return key
    if key.type != KEY_TYPES[algorithm]:
        return KeyFault(Result.PERMERROR, f"the key is for {key.type}, the signature by {algorithm}", key.bits)
    if key.type == "rsa":
        if key.bits < minimum_rsa_bits:
            return KeyFault(Result.PERMERROR, f"an RSA key of {key.bits} bits is too weak to prove anything", key.bits)
        if key.bits > maximum_rsa_bits:
            return KeyFault(Result.PERMERROR, f"an RSA key of {key.bits} bits is larger than we verify with", key.bits)
    return key


@lru_cache(maxsize=1024)
def _read(record: bytes) -> SigningKey | KeyFault:
    """What a record of bounded size says. A size that limits refuse is told by `bits`; nothing is computed here."""
    try:
        return _parse(record)
    except MalformedTags as error:
        return KeyFault(Result.PERMERROR, f"the key record can't be read: {error}")


def _parse(record: bytes) -> SigningKey | KeyFault:
    tags = parse_tag_list(record)
    # RFC 6376 section 3.6.1 wants v= first, and records with another value discarded. Records with v= further behind
    # are published, and nothing is gained by refusing them.
    if tags.get(b"v", b"DKIM1") != b"DKIM1":
        return _broken("the record is no DKIM key")
    encoded = tags.get(b"p")
    if encoded is None:
        return _broken("the record has no p=")
    if not encoded:
        return _broken("the key was revoked")
    if b"sha256" not in split_value(tags.get(b"h", b"sha256")):
        return _broken("the key is not for SHA-256")
    if not {b"*", b"email"} & set(split_value(tags.get(b"s", b"*"))):
        return _broken("the key is not for mail")
    flags = split_value(tags.get(b"t", b""))
    key_type = tags.get(b"k", b"rsa")
    try:
        octets = base64_value(encoded)
    except MalformedTags:
        return _broken("p= is not base64")
    public: RSAPublicKey | Ed25519PublicKey | KeyFault
    match key_type:
        case b"rsa":
            public = _rsa_key(octets)
        case b"ed25519":
            public = _ed25519_key(octets)
        case _:
            return _broken("the key is of an unknown type")
    if isinstance(public, KeyFault):
        return public
    bits = public.key_size if isinstance(public, RSAPublicKey) else 256
    return SigningKey(key_type.decode("ascii"), bits, public, b"y" in flags, b"s" in flags)


def _broken(problem: str) -> KeyFault:
    return KeyFault(Result.PERMERROR, problem)


def _rsa_key(der: bytes) -> RSAPublicKey | KeyFault:
    """RFC 6376 section 3.6.1 wants an RSAPublicKey, and everybody publishes a SubjectPublicKeyInfo: both are read.

    Reading finds the two numbers and computes nothing with them.
    """
    try:
        public = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        return _broken("p= is no RSA key")
    if not isinstance(public, RSAPublicKey):
        return _broken("p= is no RSA key")
    if public.public_numbers().e > MAX_RSA_EXPONENT:
        return KeyFault(Result.PERMERROR, "the exponent of the RSA key is larger than any in use", public.key_size)
    return public


def _ed25519_key(octets: bytes) -> Ed25519PublicKey | KeyFault:
    """RFC 8463 section 4.2: the 32 octets themselves."""
    try:
        return Ed25519PublicKey.from_public_bytes(octets)
    except ValueError:
        return _broken("p= is no Ed25519 key")
