"""What a client sends again: a resend of what it can't know to be ours, or a new message that is the same on purpose.

Standards: RFC 1047 (duplicate messages and SMTP), RFC 5321 section 4.5.3.2.6 and 6.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import postgres
from tests.support.gate import Gate, eventually
from tests.support.ledger import Ledger, Letter
from tests.support.load import Client, Habits, Load, transparent
from tests.support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAILBOXES = ("alice@example.test", "carol@example.test")


@pytest.fixture
def letter(request: pytest.FixtureRequest) -> Letter:
    """One that no other test sends."""
    name = request.node.name
    return Letter(name, MAILBOXES, f"Subject: {name}\r\n\r\nThe same on purpose.\r\n".encode())


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A way to a database of the test's own, with the mailboxes in it."""
    dsn = postgres.fresh_database()
    relay = Relay(dsn)
    yield relay
    relay.close()
    postgres.drop_database(dsn)


@pytest.fixture(scope="module")
def shared_gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """For the tests that only count what is added."""
    gate = Gate(log=tmp_path_factory.mktemp("gate") / "log", mailboxes=MAILBOXES)
    gate.start()
    yield gate
    gate.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(log=tmp_path / "log", mailboxes=MAILBOXES)
    gate.start()
    yield gate
    gate.close()


def _hang_up_often(gate: Gate, ledger: Ledger, letters: int, seed: int) -> None:
    habits = Habits(drops_before_reply=0.5, large=0.2)
    load = Load(gate.port, ledger, mailboxes=MAILBOXES, seed=seed, habits=habits).start()
    load.wait_for(letters, patience_seconds=600.0)
    load.finish()
    assert sum("in doubt" in letter.fates for letter in ledger.letters) > letters / 6
    assert ledger.findings(gate.dsn) == []
    assert ledger.refusals == []
    assert gate.tracebacks() == []


def test_a_message_whose_client_hung_up_behind_the_final_dot_is_stored_once(gate: Gate, tmp_path: Path) -> None:
    """RFC 1047: the client that did not wait for our 250 sends the message again; there is no second copy."""
    _hang_up_often(gate, Ledger(tmp_path / "ledger"), letters=300, seed=1)


@pytest.mark.soak
def test_many_messages_whose_clients_hung_up_are_stored_once(gate: Gate, tmp_path: Path, seed: int) -> None:
    """The same for a long time, from a random seed."""
    _hang_up_often(gate, Ledger(tmp_path / "ledger"), letters=5000, seed=seed)


def _send(client: Client, letter: Letter) -> str:
    """The reply to the final dot."""
    answer = client.begin(letter)
    assert answer.startswith("354"), answer
    client.send(transparent(letter.octets))
    return client.reply()


def _stored(gate: Gate) -> int:
    return _count(gate, "message")


def _unconfirmed(gate: Gate) -> int:
    return _count(gate, "unconfirmed")


def _count(gate: Gate, table: str) -> int:
    ((count,),) = postgres.query(gate.dsn, f"SELECT count(*) FROM mailgate.{table}")
    assert isinstance(count, int)
    return count


def test_the_same_again_after_a_confirmed_250_is_a_new_message(shared_gate: Gate, letter: Letter) -> None:
    """A client that went on after its 250 knows: what it sends again, it means."""
    for commands in ("QUIT",), ("NOOP",), ("RSET", "QUIT"):
        count = _stored(shared_gate)
        client = Client(shared_gate.port)
        assert _send(client, letter).startswith("250")
        for command in commands:
            assert client.ask(command).startswith("2")
        client.drop()
        again = Client(shared_gate.port)
        assert _send(again, letter).startswith("250")
        assert again.ask("QUIT").startswith("221")
        assert _stored(shared_gate) == count + 2


def test_the_same_again_is_new_though_we_died_after_the_confirmation(gate: Gate, letter: Letter) -> None:
    """That the client knew is known to the next mailgate too, a moment after its next command."""
    client = Client(gate.port)
    assert _send(client, letter).startswith("250")
    assert client.ask("NOOP").startswith("250")
    eventually(lambda: not _unconfirmed(gate), "the confirmation is written")
    gate.kill()
    gate.start()
    assert _send(Client(gate.port), letter).startswith("250")
    assert _stored(gate) == 2


def test_a_resend_after_our_death_hears_the_first_id(gate: Gate, letter: Letter) -> None:
    """Nobody could note that the connection ended: that we are gone says it."""
    client = Client(gate.port)
    reply = _send(client, letter)
    gate.kill()
    gate.start()
    assert _send(Client(gate.port), letter) == reply
    assert _stored(gate) == 1


def test_the_same_again_in_one_session_is_a_new_message(shared_gate: Gate, letter: Letter) -> None:
    """MAIL is a command like any other: it confirms the 250 before it."""
    count = _stored(shared_gate)
    client = Client(shared_gate.port)
    replies = {_send(client, letter) for _ in range(3)}
    assert len(replies) == 3
    assert _stored(shared_gate) == count + 3


def test_the_same_from_two_live_sessions_is_two_messages(shared_gate: Gate, letter: Letter) -> None:
    """Neither connection has ended: nobody sends anything again."""
    count = _stored(shared_gate)
    clients = [Client(shared_gate.port) for _ in range(2)]
    for client in clients:
        assert client.begin(letter).startswith("354")
    for client in clients:
        client.send(transparent(letter.octets))
    replies = {client.reply() for client in clients}
    assert len(replies) == 2
    assert _stored(shared_gate) == count + 2


def test_a_resend_hears_the_first_id(shared_gate: Gate, letter: Letter) -> None:
    """The client heard 250 and yet lost the connection before it could go on: it may have to send again."""
    count = _stored(shared_gate)
    first, again = Client(shared_gate.port), Client(shared_gate.port)
    reply = _send(first, letter)
    first.drop()
    assert _send(again, letter) == reply
    again.drop()
    assert _send(Client(shared_gate.port), letter) == reply
    assert _stored(shared_gate) == count + 1


def test_a_commit_whose_answer_is_lost_is_neither_lost_nor_doubled(relay: Relay, tmp_path: Path) -> None:
    """mailgate asks again by the id of the transaction; its clients hear nothing of it."""
    ledger = Ledger(tmp_path / "ledger")
    gate = Gate(log=tmp_path / "log", dsn=relay.dsn, mailboxes=MAILBOXES)
    try:
        gate.start()
        load = Load(gate.port, ledger, mailboxes=MAILBOXES, seed=1).start()
        for marker in (b"accept_messages", b"COMMIT", b"accept_messages"):
            load.wait_for(20)
            relay.lose_answers(marker, 3)
            eventually(relay.has_lost_all, f"the answer to {marker!r} is lost three times")
        load.wait_for(20)
        load.finish()
        assert ledger.findings(gate.dsn) == []
        assert ledger.refusals == ledger.delays == []
        assert gate.tracebacks() == []
    finally:
        gate.close()


def test_a_commit_in_doubt_is_451_and_the_resend_hears_the_first_id(
    relay: Relay, letter: Letter, tmp_path: Path
) -> None:
    """The answer was lost and the database is away: 451 says that we don't know, and nothing is stored twice."""
    gate = Gate(log=tmp_path / "log", dsn=relay.dsn, mailboxes=MAILBOXES, wait_seconds=0.5)
    try:
        gate.start()
        client = Client(gate.port)
        relay.lose_answers(b"accept_messages", then_close=True)
        assert _send(client, letter).startswith("451 4.3.0")
        relay.shut()
        relay.open()
        eventually(lambda: client.begin(letter).startswith("354") or not client.ask("RSET"), "the database is back")
        client.send(transparent(letter.octets))
        assert client.reply().startswith("250")
        assert _stored(gate) == 1
    finally:
        gate.close()
