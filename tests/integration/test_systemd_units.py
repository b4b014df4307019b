"""systemd accepts the units, and finds little that a broken-in mailgate could reach."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
TWISTD = "/opt/mailgate/bin/twistd"
MAX_EXPOSURE = 2.0


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    # systemd-analyze colours and pages what goes to a terminal.
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def analyze() -> str:
    """The path of systemd-analyze."""
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed")
    return found


def _settings(name: str) -> dict[str, list[str]]:
    """Every setting of a unit, with all its values in order."""
    settings: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def test_systemd_verifies_every_unit(analyze: str, tmp_path: Path) -> None:
    """systemd-analyze(1), verify: "warnings are printed if any errors are detected". It wants a command that exists."""
    twistd = Path(sys.executable).with_name("twistd")
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(TWISTD, str(twistd)))
    names = ["mailgate.service", "mailgate-smtp.socket", "mailgate-smtps.socket"]
    verified = _run(analyze, "verify", "--man=no", *(tmp_path / name for name in names))
    ours = [line for line in verified.stdout.splitlines() if "mailgate" in line]
    assert ours == []
    assert verified.returncode == 0, verified.stdout


def test_a_mistake_in_a_unit_is_seen(analyze: str, tmp_path: Path) -> None:
    """The test above can fail."""
    text = (UNITS / "mailgate-smtp.socket").read_text()
    broken = tmp_path / "mailgate-smtp.socket"
    broken.write_text(text.replace("BindIPv6Only=", "BindIPv6Olny="))
    assert "BindIPv6Olny" in _run(analyze, "verify", "--man=no", broken).stdout


def test_the_exposure_is_at_most_two(analyze: str) -> None:
    """systemd-analyze(1), security: 0 is the least exposed, 10 the most."""
    judged = _run(analyze, "security", "--offline=true", "--no-pager", UNITS / "mailgate.service")
    if "unrecognized option" in judged.stdout:
        pytest.skip("this systemd-analyze is too old for security --offline")
    exposure = re.search(r"Overall exposure level for mailgate\.service: ([0-9.]+)", judged.stdout)
    assert exposure is not None, judged.stdout
    assert float(exposure[1]) <= MAX_EXPOSURE


def test_each_socket_has_a_name_of_its_own_and_one_descriptor() -> None:
    """Twisted finds an inherited descriptor by its name, and of two with the same name it sees one."""
    sockets = sorted(UNITS.glob("*.socket"))
    names = []
    for socket in sockets:
        settings = _settings(socket.name)
        assert len(settings["ListenStream"]) == 1, socket.name
        assert settings["Service"] == ["mailgate.service"]
        names += settings["FileDescriptorName"]
    assert names == ["smtp", "smtps"]
    assert _settings("mailgate.service")["Sockets"] == [" ".join(socket.name for socket in sockets)]


def test_one_socket_takes_both_address_families() -> None:
    """systemd.socket(5): with BindIPv6Only=both a socket bound to [::] accepts IPv4 too."""
    for socket in UNITS.glob("*.socket"):
        settings = _settings(socket.name)
        assert settings["ListenStream"][0].startswith("[::]:")
        assert settings["BindIPv6Only"] == ["both"]


def test_a_stop_waits_longer_than_mailgate_needs() -> None:
    """mailgate is out within 30 seconds of SIGTERM; SIGKILL must not come before."""
    (timeout,) = _settings("mailgate.service")["TimeoutStopSec"]
    assert 30 < int(timeout.removesuffix("s")) <= 60


def test_the_service_starts_unprivileged_and_stays_so() -> None:
    settings = _settings("mailgate.service")
    assert settings["User"] == ["mailgate"]
    assert settings["CapabilityBoundingSet"] == [""]
    assert settings["AmbientCapabilities"] == [""]
    assert settings["NoNewPrivileges"] == ["yes"]


def test_memory_may_be_written_and_executed_for_the_callbacks_of_pyopenssl() -> None:
    """cffi makes a closure in such memory; without it no context with SNI could be built, so no TLS at all."""
    assert "MemoryDenyWriteExecute" not in _settings("mailgate.service")


def test_sysusers_and_tmpfiles_know_the_units_user() -> None:
    (user,) = _settings("mailgate.service")["User"]
    entries = [line.split() for line in (UNITS / "mailgate.sysusers").read_text().splitlines() if line[0] != "#"]
    assert [entry[:3] for entry in entries] == [["u", user, "-"]]
    folders = [line.split() for line in (UNITS / "mailgate.tmpfiles").read_text().splitlines() if line[0] != "#"]
    assert [folder[:5] for folder in folders] == [["d", "/etc/mailgate", "0750", "root", user]]
