"""A message as it might arrive, and the parts that messages are made of."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "=20", ".", "..", "--", ">", ";", "=")
_BLANKS = (" ", " ", " ", "  ", "\t", " \t ")
_ENDS = ("", "", "", " ", "\t", "  \t")


@dataclass(frozen=True, slots=True)
class Case:
    """A message and how it came. Cases of one name differ in what must not matter."""

    name: str
    message: bytes
    client_address: str = "192.0.2.1"
    helo: str = "mx.sender.test"
    reverse_path: str = "bob@sender.test"


def body(random: Random) -> bytes:
    """Lines with blanks of every kind in and behind them, empty lines between and after them."""
    lines = []
    for _ in range(random.randint(1, 12)):
        words = random.choices(_WORDS, k=random.randint(0, 9))
        line = "".join(word + random.choice(_BLANKS) for word in words).rstrip() + random.choice(_ENDS)
        lines.append(line)
    lines.append("Bob.")
    lines.extend([""] * random.choice((0, 0, 1, 3)))
    return "".join(line + "\r\n" for line in lines).encode()


def fields(random: Random, author: str) -> list[bytes]:
    """From, To, Subject and Date, the Subject folded in some way, and fields that nobody signs."""
    fold = random.choice((" ", "\r\n ", "\r\n\t", " \r\n  ", "\t"))
    blank = random.choice((" ", "", "  ", "\t", "\r\n "))
    number = random.randint(1, 10**9)
    return [
        f"Received: from mx.sender.test\r\n\tby other.test; number {number}\r\n".encode(),
        f"From:{blank}{author}\r\n".encode(),
        f"To: Alice <alice@example.test>,\r\n carol@example.test{random.choice(_ENDS)}\r\n".encode(),
        f"Subject:{blank}number{fold}{number}\r\n".encode(),
        b"Date: Mon, 23 Nov 2026 14:00:00 +0000\r\n",
        f"Message-ID: <{number}@sender.test>\r\n".encode(),
    ]


def message(random: Random, author: str = "Bob <bob@sender.test>") -> bytes:
    """A message that nobody has signed."""
    return b"".join(fields(random, author)) + b"\r\n" + body(random)
