"""Which module of the command line may know what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mailgate.cli

FOLDER = Path(mailgate.cli.__file__).parent


@pytest.mark.parametrize(("library", "module"), [("psycopg2", "database.py"), ("rich", "output.py")])
def test_a_library_is_known_to_one_module(library: str, module: str) -> None:
    """So that it can be left in one place, and text gets past the cleaning nowhere."""
    importers = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == library for name in names):
                importers.add(path.name)
    assert importers == {module}


def test_the_command_line_has_no_reactor() -> None:
    """It may block: nothing of it runs beside a service."""
    code = "import sys, mailgate.cli.main; sys.exit('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parents[1], check=False).returncode == 0
