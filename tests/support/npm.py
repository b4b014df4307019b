"""Programs of others in JavaScript: installed from npm into a folder of their own in the user's cache.

What is installed is what a package.json beside the test names, and nothing runs while it is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.unavailable import Unavailable

_INSTALL_SECONDS = 120.0
# Without scripts of the packages, and without patience for a registry that does not answer.
_INSTALL = [
    "npm",
    "install",
    "--no-audit",
    "--no-fund",
    "--ignore-scripts",
    "--no-package-lock",
    "--prefer-offline",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
    "--fetch-retry-maxtimeout=2000",
    "--fetch-timeout=20000",
]


def installed(package_json: Path) -> Path:
    """The folder in which what that file names is installed, and can be loaded. @raises Unavailable."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed")
    wanted = package_json.read_bytes()
    described = json.loads(wanted)
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / described["name"]
    folder = cache / hashlib.sha256(wanted).hexdigest()[:16]
    if folder.exists():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:
            new = Path(place) / folder.name
            new.mkdir()
            (new / "package.json").write_bytes(wanted)
            subprocess.run(_INSTALL, cwd=new, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
            for package in described["dependencies"]:
                load = ["node", "-e", f"require({json.dumps(package)})"]
                subprocess.run(load, cwd=new, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
            with contextlib.suppress(OSError):  # somebody was faster
                new.rename(folder)
    except subprocess.CalledProcessError as error:
        reasons = [line for line in error.stderr.decode("utf-8", "replace").splitlines() if "rror" in line]
        raise Unavailable("; ".join([f"{error.cmd[0]} fails", *reasons[:2]])) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(str(error)) from error
    return folder
