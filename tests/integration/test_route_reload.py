"""Routes that are changed in the configuration while a real mailgate delivers by them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.integration.test_unix_listener import UnixSmtp
from tests.support.gate import eventually
from tests.support.local_gate import ALICE, local_gate
from tests.support.sink import Sink


def hand_in(path: Path, recipient: str) -> None:
    with UnixSmtp(str(path), 25, "host.example.test", 20) as client:
        client.sendmail(ALICE, [recipient], f"From: {ALICE}\r\nX-Letter: {recipient}\r\n\r\nHello.\r\n")


def taken_by(sink: Sink) -> list[str]:
    return [taking.recipient for taking in sink.takings]


def test_a_reload_sends_mail_another_way(tmp_path: Path) -> None:
    """SIGHUP applies [[route]], to destinations that are in use too; a route that can't be used changes nothing."""
    with Sink("127.0.0.1") as first, Sink("127.0.0.1") as second:
        route = f'[[route]]\ndomains = ["*"]\nto = "smtp://127.0.0.1:{first.port}"\ntls = "none"\n'
        with local_gate(tmp_path / "log", route) as (gate, door):
            config = gate.folder / "mailgate.toml"
            before = config.read_text()

            def reload(text: str, status: str) -> None:
                config.write_text(text)
                os.kill(gate.pid, signal.SIGHUP)
                eventually(lambda: status in gate.log(), status)

            hand_in(door, "one@elsewhere.test")
            eventually(lambda: taken_by(first) == ["one@elsewhere.test"], "the first host has it")
            key = 'username = "alice"\npassword_file = "nowhere"\n'
            reload(f"{before}\n{key}", "The configuration has faults: the old one stays in force")
            hand_in(door, "two@elsewhere.test")
            eventually(lambda: len(taken_by(first)) == 2, "the first host has it")
            reload(before.replace(f":{first.port}", f":{second.port}"), "Configuration reloaded")
            assert "only a restart applies it" not in gate.log()
            hand_in(door, "three@elsewhere.test")
            eventually(lambda: taken_by(second) == ["three@elsewhere.test"], "the second host has it")
