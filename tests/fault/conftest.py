"""What the long versions of these tests begin with, and what those of delivery stand on."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.sending_world import SendingWorld

MakeWorld = Callable[..., SendingWorld]


@pytest.fixture
def seed() -> int:
    """A random one; the report of a failure shows how to have the same again."""
    seed = int(os.environ.get("MAILGATE_SEED") or random.SystemRandom().randrange(10**6))
    sys.stdout.write(f"MAILGATE_SEED={seed}\n")
    return seed


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Makes nodes and hosts, which end with the test; `SendingWorld` says what may be asked for."""
    with contextlib.ExitStack() as stack:

        def make(**wanted: object) -> SendingWorld:
            # An address of the loopback of its own, so that several runs on a machine don't meet.
            network = f"127.{192 + secrets.randbelow(60)}.{1 + secrets.randbelow(250)}"
            return SendingWorld(stack, tmp_path, network, **wanted)  # type: ignore[arg-type]  # checked when called

        yield make
