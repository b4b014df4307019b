"""What mailauth, an implementation of others in JavaScript, finds of messages.

It is installed from npm into a folder of its own in the user's cache, and asks a DNS server that the test serves.

Standards: none of its own.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mailgate.dns.zone import Zone
from tests.agreement.case import Case
from tests.agreement.finding import Finding
from tests.support.name_server import NameServer
from tests.support.npm import installed

_HERE = Path(__file__).parent
_JUDGE_SECONDS = 300.0


def install() -> Path:
    """The folder that it is installed in. @raises Unavailable."""
    return installed(_HERE / "package.json")


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
