"""One world of mail servers for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop import world as worlds
from tests.interop.world import World


@pytest.fixture(scope="package")
def world() -> Iterator[World]:
    """It runs until the last of them is done; what went wrong in the gate unseen fails it then."""
    with worlds.world() as made:
        yield made
        assert made.gate.tracebacks() == []
