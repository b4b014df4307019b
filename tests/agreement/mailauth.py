"""What mailauth, an implementation of others in JavaScript, finds of messages.

It is installed from npm into a folder of its own in the user's cache, and asks a DNS server that the test serves.

Standards: none of its own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mailgate.dns.zone import Zone
from tests.agreement.case import Case
from tests.agreement.finding import Finding
from tests.support.name_server import NameServer

_HERE = Path(__file__).parent
_INSTALL_SECONDS = 120.0
# Without scripts of the packages, and without patience for a registry that does not answer.
_NPM_INSTALL = [
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
_JUDGE_SECONDS = 300.0


class Unavailable(Exception):
    """It can't be had here. The text says why."""


def install() -> Path:
    """The folder that it is installed in. @raises Unavailable."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed")
    wanted = (_HERE / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mailgate-agreement"
    folder = cache / hashlib.sha256(wanted).hexdigest()[:16]
    if folder.exists():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:
            new = Path(place) / folder.name
            new.mkdir()
            (new / "package.json").write_bytes(wanted)
            subprocess.run(_NPM_INSTALL, cwd=new, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
            _run(new, {"mails": [], "dns": "127.0.0.1:9", "receiver": "x"})
            with contextlib.suppress(OSError):  # somebody was faster
                new.rename(folder)
    except subprocess.CalledProcessError as error:
        reasons = [line for line in error.stderr.decode("utf-8", "replace").splitlines() if "rror" in line]
        raise Unavailable("; ".join([f"{error.cmd[0]} fails", *reasons[:2]])) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(str(error)) from error
    return folder


def _run(folder: Path, task: dict[str, Any]) -> Any:  # Any: as JSON has it
    done = subprocess.run(
        ["node", str(_HERE / "judge.cjs"), str(folder)],
        input=json.dumps(task).encode(),
        check=True,
        capture_output=True,
        timeout=_JUDGE_SECONDS,
    )
    return json.loads(done.stdout)


def findings(folder: Path, cases: Sequence[Case], zone: Zone, receiver: str) -> list[Finding]:
    """What it finds, in order."""
    mails = [
        {
            "message": base64.b64encode(case.message).decode("ascii"),
            "ip": case.client_address,
            "helo": case.helo,
            "sender": case.reverse_path,
        }
        for case in cases
    ]
    with NameServer(zone) as server:
        found = _run(folder, {"mails": mails, "dns": f"127.0.0.1:{server.port}", "receiver": receiver})
    return [
        Finding(
            spf=each["spf"],
            dkim=" ".join(signature["result"] for signature in each["dkim"]),
            arc=each["arc"],
            dmarc=" ".join(filter(None, (each["dmarc"]["result"], each["dmarc"]["policy"], each["dmarc"]["domain"]))),
        )
        for each in found
    ]
