"""What a client sends again: a resend of what it can't know to be ours, or a new message that is the same on purpose.

Standards: RFC 1047 (duplicate messages and SMTP), RFC 5321 section 4.5.3.2.6 and 6.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.gate import Gate
from tests.support.ledger import Ledger
from tests.support.load import Habits, Load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAILBOXES = ("alice@example.test", "carol@example.test")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(log=tmp_path / "log", mailboxes=MAILBOXES)
    gate.start()
    yield gate
    gate.close()


def test_a_message_whose_client_hung_up_behind_the_final_dot_is_stored_once(gate: Gate, tmp_path: Path) -> None:
    """RFC 1047: the client that did not wait for our 250 sends the message again; there is no second copy."""
    ledger = Ledger(tmp_path / "ledger")
    habits = Habits(drops_before_reply=0.5, large=0.2)
    load = Load(gate.port, ledger, mailboxes=MAILBOXES, seed=1, habits=habits).start()
    load.wait_for(300)
    load.finish()
    assert sum("in doubt" in letter.fates for letter in ledger.letters) > 50
    assert ledger.findings(gate.dsn) == []
    assert ledger.refusals == []
    assert gate.tracebacks() == []
