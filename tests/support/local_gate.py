"""A gate that programs of this machine hand mail to over a Unix socket, without a password."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import postgres
from tests.support.gate import Gate

ALICE = "alice@example.test"  # who hands in


@contextmanager
def local_gate(log: Path, settings: str) -> Iterator[tuple[Gate, Path]]:
    """The gate with these settings, on a database of its own, and the path of its socket. It may log no traceback."""
    dsn = postgres.fresh_database()
    with tempfile.TemporaryDirectory(prefix="mg-") as folder:  # pytest's are too long for a socket's name
        Path(folder).chmod(0o755)
        door = Path(folder) / "door"
        listener = f'[listener.local]\nrole = "submission"\ntls = "none"\nendpoints = ["unix:{door}:mode=666"]\n'
        users = f'[submission.local_users]\n{os.getuid()} = "{ALICE}"\n'
        gate = Gate(log=log, mailboxes=(ALICE,), dsn=dsn, settings=f"{listener}{users}{settings}")
        try:
            gate.start()
            yield gate, door
            assert gate.tracebacks() == []
        finally:
            gate.close()
            postgres.drop_database(dsn)
