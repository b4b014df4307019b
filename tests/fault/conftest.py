"""What the long versions of these tests begin with."""

from __future__ import annotations

import os
import random
import sys

import pytest


@pytest.fixture
def seed() -> int:
    """A random one; the report of a failure shows how to have the same again."""
    seed = int(os.environ.get("MAILGATE_SEED") or random.SystemRandom().randrange(10**6))
    sys.stdout.write(f"MAILGATE_SEED={seed}\n")
    return seed
