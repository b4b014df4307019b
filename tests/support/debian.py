"""Programs from Debian's archive that can't be installed beside others, unpacked into the user's cache.

Mail servers conflict with each other as packages, not as programs. apt fetches and verifies a package and the libraries
that this machine lacks, with lists and a cache of its own, and dpkg unpacks them; nothing is installed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.unavailable import Unavailable

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FETCH_SECONDS = 120.0


def unpacked(package: str, *, prefers_backports: bool = False) -> Path:
    """The folder that stands for `/` in which that package of this Debian's release is unpacked.

    Libraries that are not installed here are below it too, see `with_libraries`. No program in it is
    set-user-id. @raises Unavailable.
    """
    for program in ("apt-get", "apt-cache", "dpkg", "dpkg-query"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program}, which would get {package}, is not installed")
    try:
        release = platform.freedesktop_os_release()
    except OSError as error:
        raise Unavailable(f"{package} of Debian: this is some other system") from error
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        raise Unavailable(f"{package} of Debian: this is {release.get('PRETTY_NAME', 'some other system')}")
    suites = (codename, f"{codename}-backports") if prefers_backports else (codename,)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mailgate-peers"
    folder = cache / f"{suites[-1]}-{platform.machine()}-{package}"
    if folder.exists():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:
            new = Path(place) / folder.name
            new.mkdir(mode=0o755)
            _Archive(Path(place), codename, suites).unpack(package, new)
            with contextlib.suppress(OSError):  # somebody was faster
                new.rename(folder)
    except subprocess.CalledProcessError as error:
        reasons = [line for line in error.stderr.splitlines() if line.startswith("E: ")]
        raise Unavailable("; ".join([f"{package}: {error.cmd[0]} fails", *reasons[:2]])) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{package}: {error}") from error
    return folder


def with_libraries(folder: Path, seen_at: Path | None = None) -> dict[str, str]:
    """What the environment of the programs of that folder needs besides; `seen_at` is where they see the folder."""
    found = [path for path in sorted(folder.glob("**/lib/*-linux-gnu*")) if path.is_dir()]
    places = [str((seen_at or folder) / path.relative_to(folder)) for path in found]
    return {"LD_LIBRARY_PATH": ":".join(places)} if places else {}


class _Archive:
    """The packages of some suites, by apt with folders of its own."""

    def __init__(self, folder: Path, codename: str, suites: tuple[str, ...]) -> None:
        self._folder = folder
        for each in ("lists/partial", "archives/partial", "debs"):
            (folder / each).mkdir(parents=True)
        found = self._run("apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages")
        places = [uri for name, _, uri in (line.partition(" ") for line in found.splitlines()) if name == codename]
        if not places:
            raise Unavailable(f"apt knows no archive of {codename} here")
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
        self._options = [
            f"-oDir::State::Lists={folder}/lists",
            "-oDir::State::status=/dev/null",  # what is installed may have come from elsewhere
            f"-oDir::Cache={folder}",
            f"-oDir::Etc::SourceList={folder}/sources.list",
            "-oDir::Etc::SourceParts=/dev/null",
            "-oAPT::Sandbox::User=root",  # the folder is nobody else's
            "-oAcquire::Retries=1",
            "-oAcquire::http::Timeout=20",
        ]
        for chosen in (suites, suites[:1]):
            (folder / "sources.list").write_text("".join(f"deb {signed}{places[0]} {suite} main\n" for suite in chosen))
            try:
                self._run("apt-get", *self._options, "--quiet", "update")
            except subprocess.CalledProcessError:
                if len(chosen) == 1:
                    raise
            else:
                self._options.append(f"-oAPT::Default-Release={chosen[-1]}")
                break  # a release that is not out yet has no backports

    def unpack(self, package: str, target: Path) -> None:
        """Unpack it, and the libraries that it needs and that are not installed, theirs too."""
        wanted, seen = [package], {package}
        while wanted:
            debs = self._folder / "debs"
            self._run("apt-get", *self._options, "--quiet", "download", wanted.pop(), folder=debs)
            (deb,) = debs.iterdir()
            self._run("dpkg", "--extract", str(deb), str(target))
            needed = self._run("dpkg", "--field", str(deb), "Depends")
            deb.unlink()
            # "libfoo1 (>= 1.0) | libbar1, libbaz2:any": of alternatives the first.
            for name in (each.split()[0].partition(":")[0] for each in needed.split(",") if each.strip()):
                if name.startswith("lib") and name not in seen and not _is_installed(name):
                    wanted.append(name)
                seen.add(name)
        for file in target.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(file.stat().st_mode & 0o755)

    def _run(self, *command: str, folder: Path | None = None) -> str:
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS
        ).stdout


def _is_installed(package: str) -> bool:
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout == "installed"
