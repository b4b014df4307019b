"""Policies of others: found on Python's path by a real mailgate, and changed in the configuration while it runs."""

from __future__ import annotations

import os
import signal
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import postgres
from tests.support.gate import Gate, eventually

ALICE = "alice@example.test"

PLUGIN = '''
from dataclasses import dataclass
from mailgate.policy.plugin import policy
from mailgate.policy.stage import Stage
from mailgate.policy.verdict import Continue, Reject
from mailgate.smtp.reply import reply


@dataclass(frozen=True, slots=True)
class Words:
    refused: str = "casino"


@policy("words", Stage.END_OF_DATA, options=Words)
async def words(request, options):
    """Refuse a message with a word in it."""
    if options.refused.encode() in request.content.joined():
        return Reject(reply(550, "5.7.1", f"We don't want to hear of {options.refused}"))
    return Continue()
'''

WORDS = """
[[policy]]
use = "words"
refused = "{}"
"""


class Node:
    """A gate whose policies can be changed."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._config = gate.folder / "mailgate.toml"
        self._base = self._config.read_text()
        self.reloads = 0

    def reload(self, settings: str, status: str) -> None:
        """Write the configuration and have it read."""
        self._config.write_text(self._base + settings)
        already = self.gate.log().count(status)
        os.kill(self.gate.pid, signal.SIGHUP)
        eventually(lambda: self.gate.log().count(status) > already, status)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    plugins = tmp_path_factory.mktemp("site") / "mailgate" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "words.py").write_text(PLUGIN)
    (plugins / "broken.py").write_text("import nothing_that_is_installed\n")
    path = os.pathsep.join(filter(None, [str(plugins.parent.parent), os.environ.get("PYTHONPATH")]))
    dsn = postgres.fresh_database()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        log = tmp_path_factory.mktemp("gate") / "log"
        gate = Gate(log=log, mailboxes=(ALICE,), dsn=dsn)
        node = Node(gate)
        try:
            gate.start()
            yield node
        finally:
            gate.close()
            postgres.drop_database(dsn)


def said(smtp: smtplib.SMTP, word: str) -> int:
    """The code of the reply to a message with that word."""
    smtp.mail("bob@example.org")
    smtp.rcpt(ALICE)
    return smtp.data(f"From: bob@example.org\r\nSubject: {word}\r\n\r\nHello.\r\n")[0]


def test_a_policy_on_the_path_is_put_in_and_taken_out_without_dropping_a_session(node: Node) -> None:
    """SIGHUP: the next decision of every session is that of the new chain."""
    with smtplib.SMTP("127.0.0.1", node.gate.port, "client.example.org", 30) as smtp:
        smtp.ehlo()
        assert said(smtp, "casino") == 250
        node.reload(WORDS.format("casino"), "Configuration reloaded")
        assert said(smtp, "casino") == 550
        assert said(smtp, "lottery") == 250
        node.reload(WORDS.format("lottery"), "Configuration reloaded")
        assert said(smtp, "casino") == 250
        assert said(smtp, "lottery") == 550
        node.reload("", "Configuration reloaded")
        assert said(smtp, "lottery") == 250


def test_what_is_wrong_with_a_new_chain_is_said_and_the_old_one_stays(node: Node) -> None:
    node.reload(WORDS.format("casino"), "Configuration reloaded")
    node.reload('[[policy]]\nuse = "wrods"\n', "The configuration has faults: the old one stays in force")
    assert "policy[1].use: 'wrods' is no policy that is installed" in node.gate.log()
    with smtplib.SMTP("127.0.0.1", node.gate.port, "client.example.org", 30) as smtp:
        smtp.ehlo()
        assert said(smtp, "casino") == 550


def test_a_file_that_does_not_load_is_named_and_stops_nobody(node: Node) -> None:
    """One broken plugin takes no others with it."""
    lines = [line for line in node.gate.log().splitlines() if "nothing_that_is_installed" in line]
    assert len(lines) == 1
    assert "plugin mailgate.plugins.broken is left out: its file in " in lines[0]
    assert "ModuleNotFoundError: No module named 'nothing_that_is_installed'" in lines[0]


def test_nothing_is_written_beside_the_plugins(node: Node) -> None:
    """No pickle that the next start would believe, unlike Twisted's own search."""
    folder = Path(os.environ["PYTHONPATH"].partition(os.pathsep)[0]) / "mailgate" / "plugins"
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"words.py", "broken.py"}
