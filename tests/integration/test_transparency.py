"""Dots and line ends, wherever a buffer may end, go through a whole mailgate: in, into the database, out of it, and on.

The pure parts have their own tests (`test_framing`, `test_client_framing`); here it is their sum, with the pieces in
which a database keeps a large message and those in which a connection sends it.

Standards: RFC 5321 section 4.5.2 (transparency).
"""

from __future__ import annotations

import contextlib
from itertools import product
from pathlib import Path

from tests.support.dispatch import SENDER, hand_in
from tests.support.load import Client
from tests.support.sending_world import SendingWorld

PATTERNS = (b"\r\n.\r\n", b"\r\n..\r\n", b"\r\n.a\r\n.\r\n", b"\r\n\r\n.\r\n", b".\r\n.\r\n.", b"\r\n...")
BOUNDARIES = tuple(1 << power for power in range(10, 21))
OFFSETS = range(-4, 5)
LINE = b"." + b"x" * 70 + b"\r\n"
DOMAIN = "elsewhere.test"


def letter(name: str, pattern: bytes, offset: int) -> bytes:
    """A message with the pattern so far from each of the boundaries, counted from its first octet."""
    content = (
        f"X-Letter: {name}\r\nFrom: <{SENDER}>\r\nDate: Mon, 02 Mar 2026 09:00:00 +0000\r\n"
        f"Message-ID: <{name}@example.test>\r\nSubject: {name}\r\n\r\n"
    ).encode()
    for boundary in BOUNDARIES:
        missing = boundary + offset - len(content)
        filling = (LINE * (missing // len(LINE) + 1))[:missing]
        # Neither half a line end before the pattern nor one behind it.
        content += filling.removesuffix(b"\r") + b"y" * filling.endswith(b"\r") + pattern
    return content + b"tail\r\n.\r\n..\r\n"


def test_dots_and_line_ends_round_every_boundary_reach_the_next_host_as_they_were(tmp_path: Path) -> None:
    """From 2**10 to 2**20 octets, so that small messages and those in pieces are among them."""
    with contextlib.ExitStack() as stack:
        world = SendingWorld(stack, tmp_path, "127.1.77", domains=(DOMAIN,), nodes=1)
        world.start()
        (node,) = world.nodes
        client = Client(node.door)
        for number, (pattern, offset) in enumerate(product(PATTERNS, OFFSETS)):
            octets = letter(f"letter-{number}", pattern, offset)
            assert all(octets[boundary + offset :].startswith(pattern) for boundary in BOUNDARIES)
            # A message of more than 2**20 octets is in pieces, one of half of that is not.
            short = octets[: BOUNDARIES[-2] + offset] + pattern + b"\r\n"
            hand_in(world.dispatch, client, (f"long-{number}@{DOMAIN}",), octets)
            hand_in(world.dispatch, client, (f"short-{number}@{DOMAIN}",), short)
        client.drop()
        world.dispatch.wait_until_drained()
        assert world.dispatch.taken() == 2 * len(PATTERNS) * len(OFFSETS)
        assert world.dispatch.findings() == []
        assert world.tracebacks() == []
