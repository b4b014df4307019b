"""The `mailgate` command, run on a database of the test's own."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mailgate.cli.main import main

COMMAND = (sys.executable, "-c", "from mailgate.cli.main import main; main(prog_name='mailgate')")


@dataclass(frozen=True, slots=True)
class Command:
    """`mailgate --config` with a configuration that names that database."""

    config_path: Path
    dsn: str

    def run(self, *arguments: str) -> Result:
        """What came of it; an exception that click does not make an exit status is raised."""
        result = CliRunner().invoke(main, ["--config", str(self.config_path), *arguments], prog_name="mailgate")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def ok(self, *arguments: str) -> str:
        """What it printed; it has to succeed."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def fails(self, *arguments: str) -> str:
        """What it said on standard error; it has to end with exit status 1 and to print nothing else."""
        result = self.run(*arguments)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        return result.stderr

    def json(self, *arguments: str) -> Any:  # Any: what JSON is
        """What it printed with --json."""
        return json.loads(self.ok(*arguments, "--json"))

    def in_process(self, *arguments: str) -> tuple[tuple[str, ...], dict[str, str]]:
        """The command line and environment of a process of its own."""
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
        return (*COMMAND, "--config", str(self.config_path), *arguments), environment


def command_for(dsn: str, folder: Path) -> Command:
    """The command on that database; its configuration is written to the folder."""
    path = folder / "mailgate.toml"
    path.write_text(
        f'hostname = "mx.example.test"\ndata_folder = "{folder}"\n[database]\ndsn = "{dsn}"\n'
        '[listener.smtp]\nrole = "mx"\nport = 2525\n[tls]\nself_signed = true\n',
        "utf-8",
    )
    return Command(path, dsn)
