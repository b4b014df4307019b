"""What a message costs to sign: time for one, and the longest that the reactor is held up by a large one.

The message is a text with blanks to be removed. dkimpy's RSA signature of the same message stands beside ours, because
it is what a Python program would use otherwise. Signing is measured as the policy of submission does it: header section
and body hash anew for every message.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import dkim
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailgate.auth.arc_seal import seal
from mailgate.auth.canonical import body_hashes, body_hashes_in_steps
from mailgate.auth.private_key import PrivateKey, generate_key
from mailgate.auth.results import ArcResult, Result
from mailgate.auth.signer import BODY_FORM, sign
from mailgate.message import MessageContent

if TYPE_CHECKING:
    from collections.abc import Callable

_DOMAIN = "company.example"
_ROUNDS = 7
_PIECE_OCTETS = 65_536  # a large message comes in pieces of about that size
_RESULTS = b"Authentication-Results: mx.example; spf=pass smtp.mailfrom=company.example; dmarc=pass\r\n"


@dataclass(frozen=True, slots=True)
class Row:
    """What one way of signing costs for one size."""

    size: str
    what: str
    milliseconds: float  # the median of several rounds, a message
    longest_step: float | None = None  # milliseconds between two chances for others


def rows() -> list[Row]:
    """Every measurement, the goal's own first."""
    keys = generate_key(_DOMAIN, "r", "rsa"), generate_key(_DOMAIN, "e", "ed25519")
    found = []
    for size, octets in (("4 KB", 4_000), ("100 KB", 100_000)):
        message = _message(octets)
        often = 300 if octets < 10_000 else 60
        found += [
            Row(size, "RSA-2048 and Ed25519", _median(partial(_signed, message, keys), often)),
            Row(size, "RSA-2048", _median(partial(_signed, message, keys[:1]), often)),
            Row(size, "Ed25519", _median(partial(_signed, message, keys[1:]), often)),
            Row(size, "ARC set", _median(partial(_sealed, message, keys[0]), often)),
            Row(size, "dkimpy, RSA-2048", _median(partial(_by_dkimpy, message, keys[0]), max(often // 10, 5))),
        ]
    found.append(_in_steps("25 MiB", _message(25 * 1024 * 1024), keys))
    return found


def _message(octets: int) -> bytes:
    header = (
        b"Received: from desk1.company.example ([192.0.2.1])\r\n\tby mx.company.example with ESMTPSA id 1m9x2k7q\r\n"
        b'\tfor <bob@client.test>; Mon, 23 Nov 2026 12:00:00 +0000\r\nFrom: "Anna Smith" <anna@company.example>\r\n'
        b"To: Bob <bob@client.test>\r\nSubject: The figures of the quarter\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
        b"Message-ID: <0123456789abcdef.1@company.example>\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\nX-Mailer: Post 1.0\r\n\r\n"
    )
    line = b"please  find the figures of the quarter attached, and our forecast for next year \r\n"
    return header + line * ((octets - len(header)) // len(line) + 1)


def _signed(message: bytes, keys: tuple[PrivateKey, ...]) -> bytes:
    content = MessageContent([message], len(message), b"")
    return sign(content.header(), body_hashes(content, (BODY_FORM,)), keys, time.time())


def _sealed(message: bytes, key: PrivateKey) -> bytes:
    content = MessageContent([message], len(message), b"")
    hashes = body_hashes(content, (BODY_FORM,))
    return seal(content.header(), hashes, ArcResult(Result.NONE), _RESULTS, key, time.time())


def _by_dkimpy(message: bytes, key: PrivateKey) -> bytes:
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    fields: bytes = dkim.sign(
        message, b"r", _DOMAIN.encode(), pem, canonicalize=(b"relaxed", b"relaxed"), linesep=b"\r\n"
    )
    return fields


def _median(work: Callable[[], object], often: int) -> float:
    work()
    rounds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(often):
            work()
        rounds.append((time.perf_counter() - began) / often * 1000)
    return statistics.median(rounds)


def _in_steps(size: str, message: bytes, keys: tuple[PrivateKey, ...]) -> Row:
    """As `mailgate.policy.body_hashing` does it: others have a turn between steps."""
    pieces = [message[start : start + _PIECE_OCTETS] for start in range(0, len(message), _PIECE_OCTETS)]
    content = MessageContent(pieces, len(message), b"")
    steps = []
    walk = body_hashes_in_steps(content, (BODY_FORM,))
    began = time.perf_counter()
    while True:
        try:
            next(walk)
        except StopIteration as done:
            sign(content.header(), done.value, keys, time.time())
            steps.append(time.perf_counter() - began)
            return Row(size, "RSA-2048 and Ed25519", sum(steps) * 1000, max(steps) * 1000)
        now = time.perf_counter()
        steps.append(now - began)
        began = now
