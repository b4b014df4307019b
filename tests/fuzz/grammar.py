"""What a client says that knows the grammar and doesn't keep to it: sequences of commands with mutations.

Everything comes from the `Random` that is handed in, so that a seed says it all.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

_PATHS = (
    *[b"<carol@example.test>"] * 16,
    b"<>",
    b"<alice@client.example>",
    b"<bob@example.test>",
    b"<Postmaster>",
    b'<"a b"@[192.0.2.1]>',
    b"<@a.example,@b.example:bob@[IPv6:2001:db8::1]>",
    "<jürgen@bücher.example>".encode(),
    b"<" + b"x" * 65 + b"@example.test>",
    b"<a%b@example.test>",
)
_MAIL_PARAMETERS = (
    b"SIZE=100",
    b"SIZE=999999",
    b"BODY=8BITMIME",
    b"REQUIRETLS",
    b"HOLDFOR=60",
    b"HOLDUNTIL=2026-11-23T16:00:60-23:59",
    b"BY=-1;N",
    b"BY=60;R",
    b"SMTPUTF8",
    b"SMTPUTF8",
    b"RET=HDRS",
    b"ENVID=a+2Bb",
    b"AUTH=<>",
    b"FOO=bar",
)
_RCPT_PARAMETERS = (b"NOTIFY=NEVER", b"NOTIFY=SUCCESS,DELAY", b"ORCPT=rfc822;bob+40x", b"ORCPT=x", b"FOO")
_BODY_PARTS = (
    b"Subject: x\r\n",
    b"Received: y\r\n",
    b"\r\n",
    b".",
    b"..\r\n",
    b".x\r\n",
    b"MAIL FROM:<smuggled@client.example>\r\n",
    b"\xff\xfe\r\n",
    b"x" * 120 + b"\r\n",
    b"line\r\n",
)
_HOSTILE_PARTS = (b"\n", b"\r", b"\0", b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"x" * 1100 + b"\r\n")
_RESPONSES = (b"AGFsaWNlAHNlY3JldA==", b"", b"*", b"=", b"YQ=", b"not base64", b"c2VjcmV0")
_INSERTED = (b"\0", b"\r", b"\n", b"\r\n", b".", b" ", b"\t", b"\xff", "ü".encode(), b":", b"<", b">", b"=", b"X" * 700)
_MECHANISMS = (b"PLAIN", b"LOGIN", b"GSSAPI", b"")


def conversation(random: Random) -> bytes:
    """The octets of one session."""
    octets = b"EHLO client.example\r\n" if random.random() < 0.9 else b""
    octets += b"".join(_utterance(random) for _ in range(random.randint(1, 12)))
    if random.random() < 0.5:
        for _ in range(random.randint(1, 4)):
            octets = _mutated(random, octets)
    return octets


def cut(random: Random, octets: bytes) -> list[bytes]:
    """The same octets as TCP might deliver them."""
    match random.randrange(4):
        case 0:
            return [octets[place : place + 1] for place in range(len(octets))]
        case 1:
            size = random.randint(2, 64)
            return [octets[place : place + size] for place in range(0, len(octets), size)]
        case _:
            edges = sorted({0, len(octets), *(random.randint(0, len(octets)) for _ in range(random.randint(0, 6)))})
            return [octets[start:end] for start, end in pairwise(edges)]


def _utterance(random: Random) -> bytes:
    match random.randrange(12):
        case 0:
            return (
                random.choice((b"EHLO ", b"HELO ", b"ehlo "))
                + random.choice((b"client.example", b"[192.0.2.7]", b"", b"a b", b"_x"))
                + b"\r\n"
            )
        case 1 | 2 | 3:
            return b"EHLO client.example\r\n" + _transaction(random)
        case 4 | 5 | 6:
            return _transaction(random)
        case 7:
            return _chunk(random)
        case 8:
            return b"AUTH " + random.choice(_MECHANISMS) + random.choice((b" ", b"")) + _response(random)
        case 9:
            return b"STARTTLS\r\n"
        case 10:
            return b"QUIT\r\n" if random.random() < 0.2 else b"RSET\r\n"
        case _:
            return random.choice((b"NOOP", b"NOOP x", b"HELP", b"VRFY bob", b"EXPN x", b"DATA", b"FOO", b"")) + b"\r\n"


def _response(random: Random) -> bytes:
    return b"".join(random.choice(_RESPONSES) + b"\r\n" for _ in range(random.randint(1, 3)))


def _transaction(random: Random) -> bytes:
    octets = b"MAIL FROM:" + random.choice(_PATHS) + _parameters(random, _MAIL_PARAMETERS) + b"\r\n"
    for _ in range(random.randint(0, 4)):
        octets += b"RCPT TO:" + random.choice(_PATHS) + _parameters(random, _RCPT_PARAMETERS) + b"\r\n"
    if random.random() < 0.5:
        return octets + b"DATA\r\n" + _body(random) + b"\r\n.\r\n"
    for _ in range(random.randint(0, 3)):
        octets += _chunk(random)
    return octets


def _parameters(random: Random, known: tuple[bytes, ...]) -> bytes:
    if random.random() < 0.7:
        return b""
    return b"".join(b" " + random.choice(known) for _ in range(random.randint(1, 3)))


def _body(random: Random) -> bytes:
    parts = [random.choice(_BODY_PARTS) for _ in range(random.randint(0, 8))]
    if random.random() < 0.3:
        parts.insert(random.randint(0, len(parts)), random.choice(_HOSTILE_PARTS))
    return b"".join(parts)


def _chunk(random: Random) -> bytes:
    body = _body(random)
    size = len(body) if random.random() < 0.95 else random.choice((0, 1, 10**6, 10**19))
    return b"BDAT %d%s\r\n" % (size, b" LAST" if random.random() < 0.5 else b"") + body


def _mutated(random: Random, octets: bytes) -> bytes:
    place = random.randrange(len(octets) + 1)
    match random.randrange(5):
        case 0:
            return octets[:place] + random.choice(_INSERTED) + octets[place:]
        case 1:
            return octets[:place] + octets[place + random.randint(1, 5) :]
        case 2:
            return octets[:place] + bytes([random.randrange(256)]) + octets[place + 1 :]
        case 3:
            end = place + random.randint(1, 80)
            return octets[:end] + octets[place:end] + octets[end:]
        case _:
            return octets[:place]
