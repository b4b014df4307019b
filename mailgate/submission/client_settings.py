"""Where programs of this machine hand in their mail: the file `sendmail.toml`, or what holds without one.

Apart from mailgate.toml because every user has to be able to read it, and no password may stand in it. Without the
file, mail goes to mailgate's Unix socket, and addresses without a domain get that of /etc/mailname, or this machine's.

    socket = "/run/mailgate/submission.sock"        # or, instead:
    host = "127.0.0.1"
    port = 465
    tls = "implicit"                                # or "starttls"; "none" on this machine only
    ca_file = "ca.pem"                              # whom to trust, if not whom the system trusts
    username = "cron@example.test"
    password_file = "sendmail.password"             # readable by those who may send
    domain = "example.test"

Standards: RFC 6409, RFC 8314 (ports).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

SETTINGS_FILE = Path("/etc/mailgate/sendmail.toml")
SETTINGS_VARIABLE = "MAILGATE_SENDMAIL"
DEFAULT_SOCKET = "/run/mailgate/submission.sock"

_MAILNAME = Path("/etc/mailname")
_LOOPBACK = re.compile(r"127(?:\.[0-9]{1,3}){3}|::1|localhost", re.IGNORECASE)
_TLS = ("implicit", "starttls", "none")


class SettingsError(Exception):
    """The file can't be used; the message says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Where mail is handed in, and how."""

    socket: str = DEFAULT_SOCKET  # "" where host is used
    host: str = ""
    port: int = 465
    tls: str = "implicit"
    ca_file: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    domain: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the connection stays on this machine."""
        return not self.host or _LOOPBACK.fullmatch(self.host) is not None


def client_settings() -> ClientSettings:
    """The settings of this machine. @raises SettingsError: the file is faulty."""
    named = os.environ.get(SETTINGS_VARIABLE)
    path = Path(named) if named else SETTINGS_FILE
    if not named and not path.exists():
        return ClientSettings(domain=_own_domain())
    return read_settings(path)


def read_settings(path: Path) -> ClientSettings:
    """What that file says. @raises SettingsError: it is faulty, or can't be read."""
    import tomllib  # here, because most have no such file, and this is run for each mail of cron

    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error
    kinds = {each.name: str for each in fields(ClientSettings)} | {"port": int, "password_file": str}
    del kinds["password"]
    for key, value in table.items():
        if key not in kinds:
            raise SettingsError(f"{path}: {key}: this key is not known; use one of {', '.join(sorted(kinds))}")
        if type(value) is not kinds[key]:
            raise SettingsError(f"{path}: {key}: {value!r} is not {'a number' if kinds[key] is int else 'a text'}")
    if "host" in table:
        if "socket" in table:
            raise SettingsError(f"{path}: host: socket is set too; take one of them out")
        table["socket"] = ""
    if table.get("tls", "implicit") not in _TLS:
        raise SettingsError(f'{path}: tls: use "implicit", "starttls" or "none"')
    password_file = table.pop("password_file", None)
    if password_file is not None:
        table["password"] = _password_in(path.parent / password_file)
    if table.get("ca_file"):
        table["ca_file"] = str(path.parent / table["ca_file"])
    table.setdefault("domain", _own_domain())
    settings = ClientSettings(**table)
    if settings.tls == "none" and not settings.is_local:
        raise SettingsError(f'{path}: tls: "none" would show mail and password to the network; use "implicit"')
    if bool(settings.username) != bool(settings.password):
        raise SettingsError(f"{path}: username and password_file belong together; add the other one")
    return settings


def _password_in(path: Path) -> str:
    try:
        return path.read_text("utf-8").removesuffix("\n")
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path} is not UTF-8") from error


def _own_domain() -> str:
    try:
        name = _MAILNAME.read_text("ascii").strip()
    except (OSError, ValueError):
        name = ""
    if name:
        return name
    import socket  # as above

    return socket.getfqdn()
