"""Running instances: how the command line finds the configuration of the mailgate that runs here.

A mailgate that starts leaves a small JSON file in a runtime folder and removes it when it stops; a file whose process
is gone counts for nothing. The folder is `/run/mailgate` where we may write there (systemd's RuntimeDirectory), else a
private one under `$XDG_RUNTIME_DIR` or the folder for temporary files. This is a convenience for people at a
shell: nothing in the service reads it, and no lock or state hangs on it.

Whoever can write an announcement chooses which database a command talks to. So an announcement counts only where
nobody but its owner could have written it: a real folder of ours, or `/run/mailgate`, which only root can have made.
Root also sees other users' instances, but must stand in one's working folder, or name its configuration, to use it.

Standards: XDG Base Directory Specification 0.8 (`$XDG_RUNTIME_DIR`), proc_pid_stat(5).
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SYSTEM_FOLDER = Path("/run/mailgate")
SYSTEM_CONFIG = Path("/etc/mailgate/mailgate.toml")
CONFIG_VARIABLE = "MAILGATE_CONFIG"

_MAX_ANNOUNCEMENT_OCTETS = 64 * 1024


class InstanceError(Exception):
    """No single configuration can be named; the message is for people."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A mailgate process that runs now."""

    pid: int
    started: int | None  # clock ticks after boot; None where the system does not tell
    config_path: Path
    working_folder: Path
    listeners: tuple[str, ...] = ()
    is_ours: bool = True  # False: another user's, seen because we are root


def announce(config_path: Path, pid: int, *, listeners: Sequence[str] = (), folder: Path | None = None) -> Path:
    """Say that process `pid` runs with that configuration; the file that says so.

    @raises OSError: no runtime folder can be written; the service goes on without.
    """
    folder = folder or _own_folder()
    _sweep(folder)
    content = {
        "pid": pid,
        "started": _start_of(pid),
        "config": str(Path(config_path).absolute()),
        "working_folder": str(Path.cwd()),
        "listeners": list(listeners),
    }
    path = folder / f"{pid}.json"
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        # Without secrets, and other users of this machine may run `mailgate` where the folder lets them.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)  # whole or absent: after the replacement there is nothing to remove
    return path


def _sweep(folder: Path) -> None:
    """Remove the announcements of processes that ended without withdrawing."""
    for path in folder.glob("*.json"):
        instance = _read(path, os.geteuid(), is_ours=True)
        if instance is not None and not _is_alive(instance):
            with suppress(OSError):
                path.unlink()


def withdraw(pid: int | None = None, *, folder: Path | None = None) -> None:
    """Take the announcement of that process (by default this one) back; silent where there is none."""
    pid = os.getpid() if pid is None else pid
    for candidate in [folder] if folder else [found for found, _ in _folders()]:
        with suppress(OSError):
            (candidate / f"{pid}.json").unlink()


def running() -> list[Instance]:
    """Every instance that runs now and that we may know of, those of ours first, in order of pid."""
    found: dict[int, Instance] = {}
    for folder, is_ours in _folders():
        for instance in _announced_in(folder, is_ours=is_ours):
            found.setdefault(instance.pid, instance)
    return sorted(found.values(), key=lambda instance: (not instance.is_ours, instance.pid))


def find(cwd: Path | None = None) -> Instance | None:
    """The instance whose working folder is `cwd`, else the only one of ours, else None where none runs.

    Processes that share a configuration are one instance.
    @raises InstanceError: several run, and none of them here.
    """
    cwd = Path.cwd() if cwd is None else cwd
    instances = running()
    here = _by_config(instance for instance in instances if instance.working_folder == cwd)
    candidates = here or _by_config(instance for instance in instances if instance.is_ours)
    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    lines = "".join(
        f"\n  --config {instance.config_path}  (process {instance.pid}, in {instance.working_folder})"
        for instance in candidates
    )
    raise InstanceError(f"several mailgates run here; say which one:{lines}")


def discover_config(
    option: Path | None, *, environment: Mapping[str, str] = os.environ, cwd: Path | None = None
) -> Path:
    """The configuration to use: the option, `$MAILGATE_CONFIG`, the running instance, /etc/mailgate/mailgate.toml.

    @raises InstanceError: there is none, or it is not clear which.
    """
    if option is not None:
        return option
    if environment.get(CONFIG_VARIABLE):
        return Path(environment[CONFIG_VARIABLE])
    instance = find(cwd)
    if instance is not None:
        return instance.config_path
    if SYSTEM_CONFIG.exists():
        return SYSTEM_CONFIG
    raise InstanceError(
        f"no configuration: no mailgate runs here and {SYSTEM_CONFIG} does not exist;"
        f" give --config FILE or set {CONFIG_VARIABLE}"
    )


def _by_config(instances: Iterator[Instance]) -> list[Instance]:
    return list({instance.config_path: instance for instance in instances}.values())


def _own_folder() -> Path:
    """The folder to announce in, made where it is missing.

    @raises OSError: it can't be made, or is not ours alone.
    """
    if SYSTEM_FOLDER.is_dir() and os.access(SYSTEM_FOLDER, os.W_OK | os.X_OK) and _is_trusted(SYSTEM_FOLDER):
        return SYSTEM_FOLDER
    folder = _user_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(folder, os.geteuid()):
        raise PermissionError(f"{folder} is not a folder of ours alone")
    return folder


def _user_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime) / "mailgate"
    return Path(tempfile.gettempdir()) / f"mailgate-{os.geteuid()}"


def _folders() -> Iterator[tuple[Path, bool]]:
    """Where announcements may be, and whether they are ours (or the system's) rather than another user's."""
    own = os.geteuid()
    if _is_trusted(SYSTEM_FOLDER):
        yield SYSTEM_FOLDER, True
    # Both: the service may run with an $XDG_RUNTIME_DIR that this shell lacks, or the other way about.
    ours = {_user_folder(), Path(tempfile.gettempdir()) / f"mailgate-{own}", Path(f"/run/user/{own}/mailgate")}
    yield from ((folder, True) for folder in sorted(ours) if _is_private(folder, own))
    if own == 0:
        for folder in _other_users_folders():
            owner = _owner_named_by(folder)
            if folder not in ours and owner is not None and _is_private(folder, owner):
                yield folder, False


def _other_users_folders() -> list[Path]:
    temporary = Path(tempfile.gettempdir()).glob("mailgate-[0-9]*")
    return sorted([*temporary, *Path("/run/user").glob("[0-9]*/mailgate")])


def _owner_named_by(folder: Path) -> int | None:
    name = folder.parent.name if folder.name == "mailgate" else folder.name.removeprefix("mailgate-")
    return int(name) if name.isascii() and name.isdigit() else None


def _is_private(folder: Path, owner: int) -> bool:
    """Whether this is a real folder (no link) of that user's, which nobody else can write to."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == owner and not status.st_mode & 0o022


def _is_trusted(folder: Path) -> bool:
    """Whether this is a real folder that only its owner writes to; in /run only root can have made it for them."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o022


def _announced_in(folder: Path, *, is_ours: bool) -> Iterator[Instance]:
    try:
        owner = folder.lstat().st_uid
        paths = sorted(folder.glob("*.json"))
    except OSError:
        return
    for path in paths:
        instance = _read(path, owner, is_ours=is_ours)
        if instance is not None and _is_alive(instance):
            yield instance


def _read(path: Path, owner: int, *, is_ours: bool) -> Instance | None:
    """The instance that this file announces, or None where it is no announcement."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in (owner, 0):
                return None
            content = json.loads(file.read(_MAX_ANNOUNCEMENT_OCTETS))
        return Instance(
            pid=int(content["pid"]),
            started=None if content["started"] is None else int(content["started"]),
            config_path=Path(content["config"]),
            working_folder=Path(content["working_folder"]),
            listeners=tuple(str(listener) for listener in content["listeners"]),
            is_ours=is_ours,
        )
    except (OSError, ValueError, OverflowError, KeyError, TypeError, RecursionError):
        return None


def _is_alive(instance: Instance) -> bool:
    """Whether that very process runs: the pid, and the time it started, since pids are used again."""
    if instance.pid <= 0:  # to kill(2) these are groups of processes
        return False
    try:
        os.kill(instance.pid, 0)
    except PermissionError:
        pass  # it runs, and belongs to someone else
    except (OSError, OverflowError):
        return False
    return instance.started is None or instance.started == _start_of(instance.pid)


def _start_of(pid: int) -> int | None:
    """When that process started, in clock ticks after boot; None where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field is the command in parentheses and may hold anything; start time is field 22.
    return int(status.rpartition(b")")[2].split()[19])
