"""`twistd mailgate`: the options, and the service they make. The only place that knows argv and the global reactor.

Standards: Twisted's "Writing a twistd plugin"; sysexits are not used: a service manager wants 0 or 1.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from twisted.python import usage

from mailgate.config import ConfigError, load_config
from mailgate.service import MailgateService

if TYPE_CHECKING:
    from twisted.application.service import IService


class Options(usage.Options):
    """The command line behind `twistd mailgate`."""

    optParameters: ClassVar[list[list[str | None]]] = [
        ["config", "c", "/etc/mailgate/mailgate.toml", "The configuration file (TOML)."],
    ]
    longdesc = "Receives mail over SMTP and keeps it in PostgreSQL. etc/mailgate.toml documents the configuration."


class _ExitStatus:
    """twistd itself always exits with 0 or by a signal; a start that failed has to be told apart."""

    def __init__(self) -> None:
        self._has_failed = False
        atexit.register(self._exit)

    def fail(self) -> None:
        self._has_failed = True

    def _exit(self) -> None:
        if self._has_failed:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def makeService(options: Options) -> IService:  # Twisted calls it by this name
    """Build the service; a configuration with faults ends the process with status 1, a line for each on stderr."""
    from twisted.internet import reactor  # here and nowhere else: importing it installs it

    try:
        config = load_config(Path(options["config"]))
    except ConfigError as error:
        for fault in error.faults:
            sys.stderr.write(f"{fault}\n")
        raise SystemExit(1) from None
    return MailgateService(reactor, config, failed=_ExitStatus().fail)
