"""`mailgate lookup` as a process, with a real name server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import COMMAND
from tests.support.dns_server import nsd

ZONES = {
    "example.test": """
@       MX  10 mx1
mx1     A   192.0.2.1
long    TXT """
    + " ".join(f'"{letter * 255}"' for letter in "abcdefgh"),
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with nsd(ZONES) as port:
        yield port


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder in which no mailgate runs."""
    environment = {name: value for name, value in os.environ.items() if name != "MAILGATE_CONFIG"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def config_in(folder: Path, port: int) -> Path:
    path = folder / "mailgate.toml"
    path.write_text(
        'hostname = "mx.example.test"\ndata_folder = "."\n[database]\nembedded = true\n[tls]\nself_signed = true\n'
        f'[listener.smtp]\nrole = "mx"\nport = 2525\n[dns]\nservers = ["127.0.0.1:{port}"]\n'
    )
    return path


def test_it_needs_no_configuration(tmp_path: Path, port: int) -> None:
    """With --server, nothing but the server; the result alone is on standard output."""
    done = run(tmp_path, "lookup", "--server", f"127.0.0.1:{port}", "mx", "example.test")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split() == ["1", "10", "mx1.example.test", "192.0.2.1"]


def test_it_asks_the_servers_of_the_configuration(tmp_path: Path, port: int) -> None:
    """As the gate would; over TCP where the answer is long."""
    done = run(tmp_path, "--config", str(config_in(tmp_path, port)), "lookup", "--json", "txt", "long.example.test")
    assert (done.returncode, done.stderr) == (0, "")
    (record,) = json.loads(done.stdout)
    assert record["value"] == "".join(letter * 255 for letter in "abcdefgh")
    assert (record["outcome"], record["ttl_seconds"], record["authenticated"]) == ("answer", 300, False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("a", "nobody.example.test"), "mailgate: nobody.example.test does not exist"),
        (("a", "example.test"), "mailgate: example.test has no A record"),
        (("a", "elsewhere.invalid"), "mailgate: the A records of elsewhere.invalid can't be had: 127.0.0.1 port"),
    ],
)
def test_nothing_found_is_exit_status_1_and_a_line(
    tmp_path: Path, port: int, arguments: tuple[str, ...], line: str
) -> None:
    """And nothing on standard output."""
    done = run(tmp_path, "lookup", "--server", f"127.0.0.1:{port}", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1


def test_a_faulty_configuration_is_not_passed_over(tmp_path: Path) -> None:
    """Else one would see what the gate does not."""
    path = config_in(tmp_path, 53)
    path.write_text(path.read_text().replace('servers = ["', 'servers = ["dns.example.test", "'))
    done = run(tmp_path, "--config", str(path), "lookup", "a", "example.test")
    assert done.returncode == 1
    assert "dns.servers[1]" in done.stderr


def test_a_route_is_shown_as_a_sender_would_take_it(tmp_path: Path, port: int) -> None:
    """By config: the addresses of the test are nobody's on the Internet."""
    path = config_in(tmp_path, port)
    done = run(tmp_path, "--config", str(path), "lookup", "route", "example.test")
    assert done.returncode == 1
    assert "550 5.4.4" in done.stderr
    path.write_text(path.read_text() + "[outbound]\nallows_private_addresses = true\nmta_sts = false\n")
    done = run(tmp_path, "--config", str(path), "lookup", "route", "example.test")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[:4] == ["1", "mx1.example.test", "192.0.2.1", "opportunistic"]
