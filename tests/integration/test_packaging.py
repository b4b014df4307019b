"""What `pip install mailgate` leaves behind is all of mailgate.

The wheel is built from a copy of the tree and installed in an environment of its own. That environment borrows the
libraries of the one that runs the tests, through a path file, and nothing else of it: an editable install doesn't show
through.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

TREE = Path(__file__).parents[2]
PACKAGED = ("mailgate", "twisted", "etc", "systemd")
FILES = ("setup.cfg", "pyproject.toml", "LICENSE", "README.md")
MADE_LATER = shutil.ignore_patterns("__pycache__", "dropin.cache", "*.egg-info")


def _run(*command: str | Path, cwd: Path) -> str:
    """Standard output and error of a command that has to succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel in it."""

    folder: Path
    wheel: Path

    def python(self, code: str) -> str:
        """What a program prints that only sees this environment; it doesn't run inside the tree."""
        return _run(self.folder / "bin" / "python", "-c", code, cwd=self.folder)

    def files(self) -> set[str]:
        """The names of everything in the wheel."""
        with ZipFile(self.wheel) as archive:
            return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGED:
        shutil.copytree(TREE / package, source / package, ignore=MADE_LATER)
    for name in FILES:
        shutil.copy(TREE / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
    wheels = tmp_path_factory.mktemp("wheels")
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source, cwd=wheels)
    (wheel,) = wheels.iterdir()
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    _run(*pip, "--python", folder / "bin" / "python", "install", "--no-index", "--no-deps", wheel, cwd=folder)
    place = {"base": str(folder), "platbase": str(folder)}
    (Path(sysconfig.get_path("purelib", "venv", place)) / "borrowed.pth").write_text(
        "".join(f"{sysconfig.get_path(kind)}\n" for kind in ("purelib", "platlib"))
    )
    return Installed(folder, wheel)


def test_mailgate_is_imported_from_the_wheel(installed: Installed) -> None:
    """The other tests here mean nothing if an editable install shows through."""
    where = installed.python("import mailgate; print(mailgate.__file__)")
    assert Path(where.strip()).is_relative_to(installed.folder)


def test_twistd_lists_mailgate(installed: Installed) -> None:
    """The plugin is found without an __init__.py in twisted/ or twisted/plugins/."""
    listed = installed.python(
        "import sys; sys.argv = ['twistd', '--help']; from twisted.scripts.twistd import run; run()"
    )
    assert "    mailgate  " in listed


def test_looking_for_plugins_imports_nothing_of_mailgate(installed: Installed) -> None:
    """`twistd web` pays for every plugin file that is installed."""
    imported = installed.python(
        "import sys, twisted.plugins.mailgate_plugin;"
        "print([name for name in sys.modules if name.partition('.')[0] == 'mailgate'])"
    )
    assert imported.strip() == "[]"


def test_the_maker_makes_an_options_object(installed: Installed) -> None:
    """The module that the plugin file names exists, and its Options accept --config."""
    options = installed.python(
        "from twisted.plugins.mailgate_plugin import mailgate;"
        "print([name for name, *_ in mailgate.options().optParameters])"
    )
    assert "'config'" in options


def test_every_file_of_the_packages_is_in_the_wheel(installed: Installed) -> None:
    """A new package has to be named in setup.cfg, and a new kind of data file too."""
    ours = {
        path.relative_to(TREE).as_posix()
        for folder in ("mailgate", "twisted")
        for path in (TREE / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name not in ("dropin.cache", "README")
    }
    assert ours - installed.files() == set()


def test_the_wheel_adds_nothing_to_twisted_but_the_plugin(installed: Installed) -> None:
    """An __init__.py there would overwrite Twisted's own."""
    theirs = {name for name in installed.files() if name.startswith("twisted/")}
    assert theirs == {"twisted/plugins/mailgate_plugin.py"}


def test_the_policies_that_are_built_in_are_found_and_nothing_is_written(installed: Installed) -> None:
    """A service may not write where its programs are."""
    found = installed.python(
        "import pathlib, sys; sys.dont_write_bytecode = True;"
        "import mailgate.plugins; from mailgate.policy.plugin import providers;"
        "folder = pathlib.Path(mailgate.plugins.__file__).parent;"
        "print(*sorted(providers()), *sorted(path.name for path in folder.glob('*.*')))"
    )
    assert found.split() == ["arc", "dkim", "dmarc", "spf", "__init__.py", "builtin.py"]


def test_sql_is_read_as_a_resource(installed: Installed) -> None:
    """Where the package lives isn't the program's business (importlib.resources)."""
    schema = installed.python(
        "from importlib.resources import files; print(files('mailgate.storage').joinpath('schema.sql').read_text())"
    )
    assert "CREATE TABLE" in schema


def test_the_example_configuration_and_the_units_are_installed(installed: Installed) -> None:
    share = installed.folder / "share" / "mailgate"
    for folder in ("etc", "systemd"):
        assert {path.name for path in (share / folder).iterdir()} == {path.name for path in (TREE / folder).iterdir()}


def test_the_command_is_installed(installed: Installed) -> None:
    assert "Usage: mailgate" in _run(installed.folder / "bin" / "mailgate", "--help", cwd=installed.folder)
