"""How the command line finds its configuration and its database."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner

from mailgate.cli.database import Invocation
from mailgate.cli.main import main
from mailgate.storage.embedded import EmbeddedPostgres
from mailgate.storage.migrate import EXPECTED_VERSION
from tests.support.command import Command, command_for
from tests.support.postgres import drop_database, empty_database, fresh_database, private_server, query, remove_server


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    yield command_for(dsn, tmp_path)
    drop_database(dsn)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Command]:
    dsn = empty_database()
    yield command_for(dsn, tmp_path)
    drop_database(dsn)


def test_the_version_is_said() -> None:
    """`mailgate --version` needs neither configuration nor database."""
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("mailgate ")


def test_every_command_explains_itself() -> None:
    """--help needs neither, too."""
    for command in main.commands:
        result = CliRunner().invoke(main, [command, "--help"])
        assert result.exit_code == 0
        assert "Usage:" in result.stdout


def test_a_sound_configuration_is_in_order(mailgate: Command) -> None:
    """check-config FILE: exit status 0."""
    assert mailgate.ok("check-config", str(mailgate.config_path)) == f"{mailgate.config_path}: in order\n"


def test_every_fault_of_a_configuration_gets_a_line(tmp_path: Path) -> None:
    """Exit status 1, file and key in each line."""
    path = tmp_path / "faulty.toml"
    path.write_text('hostname = "mx.example.test"\nmispelled = 1\n[limits]\nrecipients = "many"\n')
    result = CliRunner().invoke(main, ["check-config", str(path)])
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any("limits.recipients" in line for line in lines)


def test_a_faulty_configuration_stops_any_command(tmp_path: Path) -> None:
    """The same lines, and nothing is asked of any database."""
    path = tmp_path / "faulty.toml"
    path.write_text("mispelled = 1\n")
    result = CliRunner().invoke(main, ["--config", str(path), "domain", "list"])
    assert result.exit_code == 1
    assert "mispelled" in result.stderr


def test_the_environment_names_the_configuration(mailgate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """$MAILGATE_CONFIG."""
    monkeypatch.setenv("MAILGATE_CONFIG", str(mailgate.config_path))
    assert CliRunner().invoke(main, ["db", "status"]).exit_code == 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_option_may_stand_anywhere(mailgate: Command, place: int) -> None:
    """Before the command, within it, behind it."""
    arguments = ["domain", "list"]
    arguments[place:place] = ["--config", str(mailgate.config_path)]
    assert CliRunner().invoke(main, arguments).exit_code == 0


def test_a_database_out_of_reach_is_one_line(tmp_path: Path) -> None:
    """No traceback, no connection string."""
    said = command_for(f"host={tmp_path} password=secret dbname=x", tmp_path).fails("domain", "list")
    assert said.startswith("mailgate: can't reach the database: ")
    assert len(said.splitlines()) == 1
    assert "secret" not in said


def test_an_empty_database_wants_to_be_migrated(empty: Command) -> None:
    """The remedy is in the message, and it works."""
    assert "mailgate db migrate" in empty.fails("domain", "list")
    empty.fails("db", "status")
    assert f"version {EXPECTED_VERSION}" in empty.ok("db", "migrate")
    assert "nothing to do" in empty.ok("db", "migrate")
    assert "in order" in empty.ok("db", "status")
    assert empty.json("domain", "list") == []


@pytest.mark.parametrize("difference", [-1, 1])
def test_another_version_of_the_schema_is_refused(mailgate: Command, difference: int) -> None:
    """Behind or ahead: nothing is read or written."""
    query(mailgate.dsn, "UPDATE mailgate.schema_version SET version = %s", (EXPECTED_VERSION + difference,))
    said = mailgate.fails("domain", "add", "example.test")
    assert "behind" in said if difference < 0 else "ahead" in said
    assert query(mailgate.dsn, "SELECT * FROM mailgate.domain") == []


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedPostgres]:
    """An embedded database that has been used and does not run."""
    server = private_server()
    server.start()
    server.stop()
    yield server
    remove_server(server)


def _command_on(server: EmbeddedPostgres, folder: Path) -> Command:
    path = folder / "mailgate.toml"
    path.write_text(
        f'hostname = "mx.example.test"\n[database]\nembedded = true\nembedded_folder = "{server.folder}"\n'
        '[listener.smtp]\nrole = "mx"\nport = 2525\n[tls]\nself_signed = true\n',
        "utf-8",
    )
    return Command(path, server.dsn)


def test_an_embedded_database_runs_for_the_command(embedded: EmbeddedPostgres, tmp_path: Path) -> None:
    """What one expects of `mailgate inbox` while mailgate is stopped; it is said, and stopped afterwards."""
    result = _command_on(embedded, tmp_path).run("domain", "list", "--json")
    assert (result.exit_code, result.stdout.strip()) == (0, "[]")
    assert "mailgate isn't running" in result.stderr
    assert not embedded.is_running()


def test_an_embedded_database_that_runs_is_left_running(embedded: EmbeddedPostgres, tmp_path: Path) -> None:
    """It is mailgate's, and in use."""
    embedded.start()
    try:
        result = _command_on(embedded, tmp_path).run("domain", "list")
        assert "isn't running" not in result.stderr
        assert embedded.is_running()
    finally:
        embedded.stop()


def test_a_mailgate_that_starts_meanwhile_keeps_the_database(embedded: EmbeddedPostgres, tmp_path: Path) -> None:
    """It found the server running and uses it: stopping it would be an outage."""
    command = _command_on(embedded, tmp_path)
    with Invocation(command.config_path).dsn() as dsn:
        other = psycopg2.connect(dsn)
    with closing(other):
        assert embedded.is_running()
    embedded.stop()


def test_sigterm_stops_what_was_started(embedded: EmbeddedPostgres, tmp_path: Path) -> None:
    """No server stays behind."""
    query_dsn = embedded.start()
    query(query_dsn, "INSERT INTO mailgate.domain (name) VALUES ('example.test')")
    query(query_dsn, "INSERT INTO mailgate.mailbox (domain_id, local_part) SELECT id, 'alice' FROM mailgate.domain")
    embedded.stop()
    command, environment = _command_on(embedded, tmp_path).in_process("inbox", "alice@example.test", "--follow")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ID")
        assert embedded.is_running()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not embedded.is_running()
