"""What OpenDKIM, an implementation of others, finds of a message's signatures.

Its test mode reads messages and key records from files. It hands fields on as a mail server's filter gets them, without
the blank behind the colon, so that only signatures over the relaxed form of the header can be judged.

Standards: RFC 6376.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.support.unavailable import Unavailable


class OpenDkim:
    """A judge that knows these key records, each with its name. @raises Unavailable: it is not installed."""

    def __init__(self, folder: Path, records: Iterable[tuple[str, bytes]]) -> None:
        program = shutil.which("opendkim", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise Unavailable("opendkim is not installed")
        self._program = program
        self._folder = folder
        lines = [name.encode() + b" " + record + b"\n" for name, record in records]
        (folder / "opendkim.keys").write_bytes(b"".join(lines))
        (folder / "opendkim.conf").write_text(f"Mode v\nTestDNSData file:{folder}/opendkim.keys\n")

    def passes(self, message: bytes) -> bool:
        """Whether it takes a signature of that message."""
        path = self._folder / "opendkim.message"
        path.write_bytes(message)
        done = subprocess.run(
            [self._program, "-x", str(self._folder / "opendkim.conf"), "-t", str(path), "-v"],
            capture_output=True,
            timeout=30,
            check=False,
        )
        return b") succeeded" in done.stdout + done.stderr
