"""Our own keys: what is signed with, and the DNS record that tells others how to verify.

Not here: where keys are kept (`mailgate.storage.signing_keys`), and the keys of other people
(`mailgate.auth.signing_key`).

Standards: RFC 6376 sections 3.3 (algorithms) and 3.6.1 (key records); RFC 8301 section 3.2 (sizes of RSA keys);
RFC 8463 (Ed25519); RFC 5958 (PKCS #8, the form of a private key at rest).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

KeyType = Literal["rsa", "ed25519"]

# RFC 8301 section 3.2: "Signers SHOULD use RSA keys of at least 2048 bits." A larger one has a record that some DNS
# providers don't take, and costs four times the sum.
RSA_BITS = 2048

_PADDING = PKCS1v15()
_PREHASHED = Prehashed(SHA256())


def record_text(key_type: str, public_text: str) -> str:
    """The text of the DNS record of a key: `k=` and `p=` (RFC 6376 section 3.6.1)."""
    return f"v=DKIM1; k={key_type}; p={public_text}"


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key of a domain of ours."""

    domain: str  # A-form, lower case: d=
    selector: str  # lower case: s=
    private: RSAPrivateKey | Ed25519PrivateKey = field(repr=False)

    @property
    def type(self) -> KeyType:
        """What `k=` of the record says."""
        return "rsa" if isinstance(self.private, RSAPrivateKey) else "ed25519"

    @property
    def algorithm(self) -> str:
        """What `a=` of a signature says."""
        return f"{self.type}-sha256"

    @property
    def record_name(self) -> str:
        """The name of the DNS record, without a dot at its end."""
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def record(self) -> str:
        """The text of the DNS record. As everybody publishes it, `p=` of an RSA key is a SubjectPublicKeyInfo."""
        return record_text(self.type, self.public_text)

    @property
    def public_text(self) -> str:
        """What `p=` says."""
        return base64.b64encode(self.public_octets).decode("ascii")

    @property
    def public_octets(self) -> bytes:
        """What `p=` holds, before its base64."""
        public = self.private.public_key()
        if isinstance(self.private, RSAPrivateKey):
            return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return public.public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def octets(self) -> bytes:
        """The private key itself, in the form that `load_private_key` reads. Not to be kept as it is."""
        return self.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def signature_of(self, digest: bytes) -> bytes:
        """The signature of a SHA-256 digest. Ed25519 signs the digest as its message (RFC 8463 section 3)."""
        if isinstance(self.private, RSAPrivateKey):
            return self.private.sign(digest, _PADDING, _PREHASHED)
        return self.private.sign(digest)


def generate_key(domain: str, selector: str, key_type: KeyType) -> PrivateKey:
    """A new key. One for RSA takes some tenths of a second: not for the reactor."""
    if key_type == "rsa":
        return PrivateKey(domain, selector, generate_private_key(public_exponent=65_537, key_size=RSA_BITS))
    return PrivateKey(domain, selector, Ed25519PrivateKey.generate())


def load_private_key(domain: str, selector: str, octets: bytes) -> PrivateKey:
    """The key in these octets, which we have written ourselves and which nobody can have changed.

    @raises ValueError: they hold none that mail is signed with.
    """
    # The library would test the factors for primality each time, which takes longer than some hundred signatures.
    private = load_der_private_key(octets, None, unsafe_skip_rsa_key_validation=True)
    if isinstance(private, RSAPrivateKey | Ed25519PrivateKey):
        return PrivateKey(domain, selector, private)
    raise ValueError("neither an RSA key nor one for Ed25519")
