"""Signed mail from many domains, and the zone that vouches for it: what a gate that checks its mail has to do.

No two messages are the same; one half is signed with RSA of 2048 bits, the other with Ed25519 (relaxed/relaxed). The
domains are of four kinds by turns: their From is the organizational domain or one below, and their MAIL the same or a
subdomain for bounces, so that DMARC has trees to walk. SPF finds the client in the last of three lists that an include
includes, as with a large provider, and for every other domain behind `mx` and another include. Clients are on loopback
addresses of their own, and have names and SPF records by those.

The signer canonicalizes only what is written here: there are no runs of blanks and no blanks at ends of lines.

Standards: RFC 6376 section 3.7 (what is signed), RFC 8463 (Ed25519).
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.server import MAILBOX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

CLIENTS = tuple((f"127.0.1.{number}", f"out{number}.provider.example") for number in range(1, 9))
_PROVIDER = "provider.example"
_SIGNED_FIELDS = ("from", "to", "subject", "date", "message-id", "mime-version", "content-type")
_VOCABULARY = (
    "account agenda annual answer archive attached because before between budget calendar change client contract "
    "delivery department document draft during estimate every figures finance following forward invoice meeting "
    "minutes month morning network notice office order payment please project proposal quarter question regards "
    "release report request review schedule section service shipment summary system the to and of in for with that "
    "this will have from they which would their been were when what update version weekly without year"
)
_WORDS = _VOCABULARY.split()


@dataclass(frozen=True, slots=True)
class MailFile:
    """Messages in a file of the loader's form."""

    path: Path
    messages: int
    skip: int = 0  # begin with this one


@dataclass(frozen=True, slots=True)
class _Domain:
    name: str  # organizational
    author: str
    reverse_path: str


class Post:
    """The keys of all domains, and what can be made with them."""

    def __init__(self, familiar: int, unknown: int) -> None:
        """So many domains that write again and again, and so many that write once."""
        self._familiar = [_domain(f"company{number}.example", number) for number in range(familiar)]
        self._unknown = [_domain(f"stranger{number}.example", number) for number in range(unknown)]
        self._rsa = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        self._ed25519 = Ed25519PrivateKey.generate()
        self._random = random.Random(1)
        self._number = 0

    def write(self, path: Path, messages: int, size_octets: int) -> MailFile:
        """Messages of about that size from the familiar domains in turn."""
        domains = [self._familiar[number % len(self._familiar)] for number in range(messages)]
        return self._write(path, domains, size_octets)

    def write_once(self, path: Path, size_octets: int) -> MailFile:
        """A message from each unknown domain."""
        return self._write(path, self._unknown, size_octets)

    def _write(self, path: Path, domains: list[_Domain], size_octets: int) -> MailFile:
        with path.open("wb") as file:
            for domain in domains:
                # RFC 5321 section 4.5.2: a dot more where a line begins with one. None does.
                wire = self._message(domain, size_octets) + b".\r\n"
                head = {"octets": len(wire), "mail": domain.reverse_path}
                file.write(json.dumps(head).encode() + b"\n" + wire)
        return MailFile(path, len(domains))

    # ------------------------------------------------------------------ messages

    def _message(self, domain: _Domain, size_octets: int) -> bytes:
        self._number += 1
        number = self._number
        words = partial(self._random.choices, _WORDS)
        fields = {
            "Received": f"from desk{number % 99}.{domain.name} (desk.{domain.name} [192.0.2.{number % 250}])\r\n"
            f"\tby {CLIENTS[0][1]} (Postfix) with ESMTPSA id {number:08X}\r\n"
            f"\tfor <{MAILBOX}>; Mon, 23 Nov 2026 12:00:00 +0000 (UTC)",
            "From": f'"{words(k=1)[0].title()} {words(k=1)[0].title()}" <{domain.author}>',
            "To": f"Bob <{MAILBOX}>",
            "Subject": " ".join(words(k=6)),
            "Date": "Mon, 23 Nov 2026 12:00:00 +0000",
            "Message-ID": f"<{self._random.getrandbits(64):016x}.{number}@{domain.name}>",
            "MIME-Version": "1.0",
            "Content-Type": f'multipart/mixed; boundary="=_{number}"',
            "X-Mailer": "Post 1.0",
        }
        header = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
        text_octets = min(3072, size_octets * 2 // 3)
        text = "\r\n".join(" ".join(words(k=10)) for _ in range(text_octets // 70)).encode()
        start = b"--=_%d\r\nContent-Type: text/plain\r\n\r\n%s\r\n--=_%d\r\n" % (number, text, number)
        start += b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        left = max(size_octets - len(header) - len(start) - 700, 78)  # the signature, and the end
        attached = base64.b64encode(self._random.randbytes(left * 3 // 4))
        lines = b"\r\n".join(attached[at : at + 76] for at in range(0, left * 76 // 78, 76))
        body = start + lines + b"\r\n--=_%d--\r\n" % number
        return self._signature(domain, fields, body) + header + b"\r\n" + body

    def _signature(self, domain: _Domain, fields: dict[str, str], body: bytes) -> bytes:
        by_name = {name.lower(): value for name, value in fields.items()}
        hashed = b"".join(f"{name}:{by_name[name]}\r\n".encode() for name in _SIGNED_FIELDS)
        algorithm, selector, sign = self._signer()
        body_hash = base64.b64encode(hashlib.sha256(body).digest()).decode()
        value = (
            f"v=1; a={algorithm}; c=relaxed/relaxed; d={domain.name}; s={selector}; t=1795000000;\r\n"
            f"\th={':'.join(_SIGNED_FIELDS)};\r\n\tbh={body_hash};\r\n\tb="
        )
        hashed += b"dkim-signature:" + value.replace("\r\n\t", " ").encode()
        signature = base64.b64encode(sign(hashed)).decode()
        folded = "\r\n\t ".join(signature[at : at + 72] for at in range(0, len(signature), 72))
        return f"DKIM-Signature: {value}{folded}\r\n".encode()

    def _signer(self) -> tuple[str, str, Callable[[bytes], bytes]]:
        if self._number % 2:
            return "rsa-sha256", "rsa", lambda data: self._rsa.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return "ed25519-sha256", "ed", lambda data: self._ed25519.sign(hashlib.sha256(data).digest())

    # ------------------------------------------------------------------ the zone

    def zone(self) -> Iterator[str]:
        """Lines of a master file below the root: all that is asked about the mail and its clients."""
        for address, name in CLIENTS:
            yield f"{name}. A {address}"
            yield _txt(name, f"v=spf1 ip4:{address} -all")
            yield f"{'.'.join(reversed(address.split('.')))}.in-addr.arpa. PTR {name}."
        yield f"client.test. A {CLIENTS[0][0]}"
        yield f"mx.{_PROVIDER}. A 192.0.2.25"
        yield from _provider(_PROVIDER)
        yield _txt("_spf.letters.example", "v=spf1 ip4:198.51.100.0/24 ip4:203.0.113.128/25 -all")
        keys = tuple(self._keys())
        for number, domain in enumerate(self._familiar):
            yield from _domain_zone(domain, number, _PROVIDER, keys)
        for number, domain in enumerate(self._unknown):
            yield from _provider(domain.name)
            yield from _domain_zone(domain, number, domain.name, keys)

    def _keys(self) -> Iterable[tuple[str, str]]:
        der = self._rsa.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        yield "rsa", f"v=DKIM1; k=rsa; p={base64.b64encode(der).decode()}"
        raw = self._ed25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        yield "ed", f"v=DKIM1; k=ed25519; p={base64.b64encode(raw).decode()}"


def _domain(name: str, number: int) -> _Domain:
    author = f"mail.{name}" if number & 1 else name
    reverse_path = f"bounces.{name}" if number & 2 else author
    return _Domain(name, f"anna@{author}", f"anna+{number}@{reverse_path}")


def _domain_zone(domain: _Domain, number: int, provider: str, keys: Iterable[tuple[str, str]]) -> Iterator[str]:
    include = f"include:_spf.{provider} -all"
    spf = f"v=spf1 mx include:_spf.letters.example {include}" if number & 4 else f"v=spf1 {include}"
    for name in (domain.name, f"mail.{domain.name}", f"bounces.{domain.name}"):
        yield f"{name}. MX 10 mx.{_PROVIDER}."
        yield _txt(name, spf)
    yield _txt(f"_dmarc.{domain.name}", f"v=DMARC1; p=reject; rua=mailto:dmarc@{domain.name}")
    for selector, record in keys:
        yield _txt(f"{selector}._domainkey.{domain.name}", record)


def _provider(name: str) -> Iterator[str]:
    yield _txt(f"_spf.{name}", f"v=spf1 {' '.join(f'include:_netblocks{n}.{name}' for n in ('', 2, 3))} ~all")
    for first, suffix in ((10, ""), (40, "2")):
        networks = " ".join(f"ip4:{first + number}.32.0.0/{12 + number}" for number in range(12))
        yield _txt(f"_netblocks{suffix}.{name}", f"v=spf1 {networks} ~all")
    networks = " ".join(f"ip4:{70 + number}.64.0.0/{12 + number}" for number in range(6))
    yield _txt(f"_netblocks3.{name}", f"v=spf1 {networks} ip4:127.0.1.0/24 ~all")


def _txt(name: str, text: str) -> str:
    strings = " ".join(f'"{text[start : start + 255]}"' for start in range(0, len(text), 255))
    return f"{name}. TXT {strings}"
