"""Running instances: found by who may trust them, and by nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailgate import instance
from mailgate.instance import InstanceError, announce, discover_config, find, running, withdraw


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any instance: all runtime folders are below tmp_path."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(instance, "SYSTEM_FOLDER", tmp_path / "run-mailgate")
    monkeypatch.setattr(instance, "SYSTEM_CONFIG", tmp_path / "etc" / "mailgate.toml")
    monkeypatch.setattr("mailgate.instance.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(instance, "_other_users_folders", list)
    monkeypatch.chdir(tmp_path)
    return runtime


def test_an_announced_instance_is_found(tmp_path: Path) -> None:
    """What `mailgate` in another terminal knows of it."""
    announce(Path("mailgate.toml"), os.getpid(), listeners=["smtp 127.0.0.1:2525"])
    (found,) = running()
    assert found.pid == os.getpid()
    assert found.config_path == tmp_path / "mailgate.toml"
    assert found.working_folder == tmp_path
    assert found.listeners == ("smtp 127.0.0.1:2525",)


def test_a_withdrawn_instance_is_gone() -> None:
    """A second withdrawal does no harm."""
    announce(Path("mailgate.toml"), os.getpid())
    withdraw(os.getpid())
    withdraw()
    assert running() == []


def test_an_instance_whose_process_ended_is_gone() -> None:
    """A mailgate that was killed could not withdraw."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    announce(Path("mailgate.toml"), ended.pid)
    ended.wait()
    assert running() == []


def test_what_ended_instances_left_is_swept_away(runtime: Path) -> None:
    """One that starts tidies up after those that were killed, and leaves those that run."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    announce(Path("mailgate.toml"), ended.pid)
    announce(Path("mailgate.toml"), os.getppid())
    ended.wait()
    announce(Path("mailgate.toml"), os.getpid())
    names = {path.name for path in (runtime / "mailgate").iterdir()}
    assert names == {f"{os.getpid()}.json", f"{os.getppid()}.json"}


def test_a_process_that_has_the_number_of_an_ended_one_is_another(runtime: Path) -> None:
    """Process ids are used again; the time when the process started tells them apart."""
    path = announce(Path("mailgate.toml"), os.getpid())
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"started": content["started"] - 1}))
    assert running() == []


def test_the_announcement_is_in_a_private_folder(runtime: Path) -> None:
    """XDG Base Directory Specification: the runtime folder is the user's own."""
    path = announce(Path("mailgate.toml"), os.getpid())
    assert path.parent == runtime / "mailgate"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_without_a_runtime_folder_it_is_below_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, or under cron."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    path = announce(Path("mailgate.toml"), os.getpid())
    assert path.parent == tmp_path / f"mailgate-{os.geteuid()}"
    assert len(running()) == 1


def test_the_services_folder_comes_first(tmp_path: Path) -> None:
    """systemd's RuntimeDirectory=mailgate."""
    (tmp_path / "run-mailgate").mkdir(mode=0o755)
    assert announce(Path("mailgate.toml"), os.getpid()).parent == tmp_path / "run-mailgate"
    assert len(running()) == 1


def test_a_folder_that_others_can_write_to_is_refused(runtime: Path) -> None:
    """Whoever can write an announcement chooses which database a command talks to."""
    path = announce(Path("mailgate.toml"), os.getpid())
    path.parent.chmod(0o777)
    assert running() == []
    with pytest.raises(OSError, match="not a folder of ours"):
        announce(Path("mailgate.toml"), os.getpid())


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, runtime: Path) -> None:
    """The folder for temporary files is everybody's: a link there may lead anywhere."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (runtime / "mailgate").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="not a folder of ours"):
        announce(Path("mailgate.toml"), os.getpid())
    assert running() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of somebody else's")
def test_a_folder_of_another_user_is_refused(runtime: Path) -> None:
    """Somebody was there first."""
    (runtime / "mailgate").mkdir(mode=0o700)
    os.chown(runtime / "mailgate", 65_534, 65_534)
    with pytest.raises(OSError, match="not a folder of ours"):
        announce(Path("mailgate.toml"), os.getpid())


def test_an_announcement_that_is_a_link_counts_for_nothing(tmp_path: Path) -> None:
    """Only files that were written there."""
    path = announce(Path("mailgate.toml"), os.getpid())
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert running() == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"pid": "x"}',
        "[" * 10_000,
        '{"pid": -1, "started": null, "config": "x", "working_folder": "x", "listeners": []}',
        '{"pid": 1e999}',
        "\0",
    ],
)
def test_what_is_no_announcement_counts_for_nothing(content: str) -> None:
    """Half-written or of another program."""
    path = announce(Path("mailgate.toml"), os.getpid())
    path.write_text(content)
    assert running() == []


@pytest.fixture
def others() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that run until the end of the test."""
    processes = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield processes
    for process in processes:
        process.communicate(b"\n")


def _announce_in(folder: Path, config: str, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        announce(Path(config), pid)


def test_the_instance_of_this_folder_is_preferred(
    tmp_path: Path, others: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While `make run` runs, `mailgate` in the same folder means that one."""
    _announce_in(tmp_path / "one", "mailgate.toml", others[0].pid, monkeypatch)
    _announce_in(tmp_path / "two", "mailgate.toml", others[1].pid, monkeypatch)
    found = find(tmp_path / "two")
    assert found is not None
    assert found.pid == others[1].pid


def test_of_several_elsewhere_none_is_chosen(
    tmp_path: Path, others: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guessing would show one's mail, and remove from the other's."""
    _announce_in(tmp_path / "one", "mailgate.toml", others[0].pid, monkeypatch)
    _announce_in(tmp_path / "two", "mailgate.toml", others[1].pid, monkeypatch)
    with pytest.raises(InstanceError, match=r"one/mailgate\.toml") as raised:
        find(tmp_path)
    assert f"{tmp_path / 'two' / 'mailgate.toml'}" in str(raised.value)


def test_the_only_instance_is_found_from_anywhere(
    tmp_path: Path, others: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that share a configuration are one instance."""
    _announce_in(tmp_path / "one", "mailgate.toml", others[0].pid, monkeypatch)
    _announce_in(tmp_path / "one", "mailgate.toml", others[1].pid, monkeypatch)
    assert discover_config(None, environment={}, cwd=Path("/")) == tmp_path / "one" / "mailgate.toml"


def test_root_uses_another_users_instance_only_in_its_folder(
    tmp_path: Path, others: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can announce anything as himself: that alone must not lead root to a database of his."""
    folder = tmp_path / "mailgate-4711"
    folder.mkdir(mode=0o700)
    with monkeypatch.context() as patch:
        (tmp_path / "theirs").mkdir()
        patch.chdir(tmp_path / "theirs")
        announce(Path("mailgate.toml"), others[0].pid, folder=folder)
    monkeypatch.setattr(instance, "_other_users_folders", lambda: [folder])
    monkeypatch.setattr("mailgate.instance.os.geteuid", lambda: 0)
    owner = folder.stat().st_uid
    monkeypatch.setattr(instance, "_owner_named_by", lambda _: owner)
    assert [found.is_ours for found in running()] == [False]
    assert find(tmp_path) is None
    found = find(tmp_path / "theirs")
    assert found is not None
    assert found.pid == others[0].pid


def test_the_option_beats_the_environment_beats_the_instance_beats_etc(tmp_path: Path) -> None:
    """The order in which a configuration is looked for."""
    with pytest.raises(InstanceError, match="no configuration"):
        discover_config(None, environment={})
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mailgate.toml").touch()
    assert discover_config(None, environment={}) == tmp_path / "etc" / "mailgate.toml"
    announce(Path("running.toml"), os.getpid())
    assert discover_config(None, environment={}) == tmp_path / "running.toml"
    assert discover_config(None, environment={"MAILGATE_CONFIG": "variable.toml"}) == Path("variable.toml")
    assert discover_config(Path("option.toml"), environment={"MAILGATE_CONFIG": "variable.toml"}) == Path("option.toml")
