"""Programs of others with which people hand mail in, each behind the same function.

What they are asked to do is the same: log in at the gate, over TLS whose certificate they verify, and send one message.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Literal

from tests.support.debian import unpacked, with_libraries
from tests.support.npm import installed
from tests.support.unavailable import Unavailable, sought_once

_HERE = Path(__file__).parent
_SECONDS = 60.0


TlsKind = Literal["implicit", "starttls", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where the gate takes mail in, and the name in its certificate."""

    port: int
    tls: TlsKind
    host: str
    authorities: Path


@dataclass(frozen=True, slots=True)
class Login:
    """As whom, and with which mechanism of SASL."""

    username: str
    password: str
    mechanism: str


class Came(Enum):
    """What came of it."""

    SENT = "sent"
    NO_LOGIN = "the password was refused"
    NOT_OFFERED = "the gate offers no login there"


Client = Callable[[Door, Login, str, str, bytes], Came]


def by_smtplib(door: Door, login: Login, sender: str, recipient: str, message: bytes) -> Came:
    """Python's own."""
    context = ssl.create_default_context(cafile=str(door.authorities))
    client: smtplib.SMTP
    if door.tls == "implicit":
        client = implicit_tls(door)
    else:
        client = smtplib.SMTP("127.0.0.1", door.port, "client.example", _SECONDS)
    with client:
        if door.tls == "starttls":
            client._host = door.host  # type: ignore[attr-defined]  # by which it knows the certificate
            client.starttls(context=context)
        client.ehlo()
        client.user, client.password = login.username, login.password
        if not client.has_extn("auth"):
            return Came.NOT_OFFERED
        answer = {"PLAIN": client.auth_plain, "LOGIN": client.auth_login}[login.mechanism]
        try:
            client.auth(login.mechanism, answer)
        except smtplib.SMTPAuthenticationError:
            return Came.NO_LOGIN
        client.sendmail(sender, [recipient], message)
        return Came.SENT


def implicit_tls(door: Door) -> smtplib.SMTP_SSL:
    """A session of Python's own, over TLS from the first octet, whose certificate is verified."""
    return _NamedTls(door.host, ssl.create_default_context(cafile=str(door.authorities)), door.port)


class _NamedTls(smtplib.SMTP_SSL):
    """An SMTP_SSL that connects to the loopback and verifies another name."""

    def __init__(self, name: str, context: ssl.SSLContext, port: int) -> None:
        self._name = name
        super().__init__("127.0.0.1", port, "client.example", timeout=_SECONDS, context=context)

    def _get_socket(self, host: str, port: int, timeout: float) -> ssl.SSLSocket:
        plain = smtplib.SMTP._get_socket(self, host, port, timeout)  # type: ignore[attr-defined]  # what it overrides
        assert isinstance(self.context, ssl.SSLContext)
        return self.context.wrap_socket(plain, server_hostname=self._name)


def by_swaks(door: Door, login: Login, sender: str, recipient: str, message: bytes) -> Came:
    """The tester's tool."""
    swaks = _program("swaks")
    tls = {
        "implicit": ["--tls-on-connect", "--tls-verify", "--tls-ca-path", str(door.authorities)],
        "starttls": ["--tls", "--tls-verify", "--tls-ca-path", str(door.authorities)],
        "none": [],
    }
    done = _run(
        [
            *(swaks, "--server", "127.0.0.1", "--port", str(door.port), "--ehlo", "client.example", *tls[door.tls]),
            *("--auth", login.mechanism, "--auth-user", login.username, "--auth-password", login.password),
            *("--from", sender, "--to", recipient, "--data", "-"),
        ],
        message,
    )
    match done.returncode:
        case 0:
            return Came.SENT
        case 28 if b"535 " in done.stdout:
            return Came.NO_LOGIN
        case 28:
            return Came.NOT_OFFERED
    raise AssertionError(done.stdout + done.stderr)


def by_msmtp(door: Door, login: Login, sender: str, recipient: str, message: bytes) -> Came:
    """What replaces sendmail on many desks; SASL by GNU's library."""
    msmtp = _program("msmtp")
    mechanism, known = login.mechanism.lower(), _methods(msmtp) | {"on"}  # "on": whichever it likes best
    if mechanism not in known:
        raise Unavailable(f"this msmtp does not know {login.mechanism}")
    if mechanism == "scram-sha-256" and f"{mechanism}-plus" in known:
        # It says that it would have bound to the channel, and RFC 5802 section 6 has us refuse that.
        raise Unavailable("this msmtp takes SCRAM-SHA-256 only where SCRAM-SHA-256-PLUS is not offered")
    tls = {
        "implicit": ["--tls=on", "--tls-starttls=off"],
        "starttls": ["--tls=on", "--tls-starttls=on"],
        "none": ["--tls=off"],
    }
    done = _run(
        [
            *(msmtp, "--file=/dev/null", "--host=127.0.0.1", f"--port={door.port}", "--domain=client.example"),
            *(f"--tls-trust-file={door.authorities}", f"--tls-host-override={door.host}", *tls[door.tls]),
            *(f"--auth={mechanism}", f"--user={login.username}"),
            *(f"--passwordeval=printf %s {shlex.quote(login.password)}", f"--from={sender}", "--", recipient),
        ],
        message,
    )
    match done.returncode:
        case 0:
            return Came.SENT
        case 77 if b"535 " in done.stderr:  # EX_NOPERM of sysexits
            return Came.NO_LOGIN
        case 69 if b"does not support authentication" in done.stderr:  # EX_UNAVAILABLE
            return Came.NOT_OFFERED
    raise AssertionError(f"{done.returncode}: {done.stderr!r}")


def by_nodemailer(door: Door, login: Login, sender: str, recipient: str, message: bytes) -> Came:
    """What programs in JavaScript use."""
    transport = {
        "host": "127.0.0.1",
        "port": door.port,
        "name": "client.example",
        "secure": door.tls == "implicit",
        "requireTLS": door.tls == "starttls",
        "ignoreTLS": door.tls == "none",
        "authMethod": login.mechanism,
        "auth": {"user": login.username, "pass": login.password},
        "tls": {"ca": [door.authorities.read_text()], "servername": door.host},
    }
    task = {"transport": transport, "from": sender, "to": [recipient], "message": base64.b64encode(message).decode()}
    done = _run(
        ["node", str(_HERE / "nodemailer.cjs"), str(_nodemailer())],
        json.dumps(task).encode(),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if found["reply"].startswith("250 "):
        return Came.SENT
    if found["code"] == "EAUTH" and found["reply"].startswith("535 "):
        return Came.NO_LOGIN
    if found["reply"].startswith("530 "):  # where nothing is offered it tries without
        return Came.NOT_OFFERED
    raise AssertionError(found)


def logs_in_by_gsasl(door: Door, login: Login, *, has_channel: bool = True) -> bool:
    """Whether the tool of GNU's SASL library logs in after STARTTLS; it sends nothing, but it binds to the channel.

    With `has_channel` false it says that it can't bind. It can't be told to connect to one name and to verify another,
    so it doesn't verify.
    """
    gsasl, environment = _gsasl()
    done = _run(
        [
            *(gsasl, "--smtp", "--starttls", f"--connect=127.0.0.1:{door.port}", "--x509-ca-file="),
            *(f"--hostname={door.host}", f"--mechanism={login.mechanism}", f"--password={login.password}"),
            *(f"--authentication-id={login.username}", *(() if has_channel else ("--no-cb",))),
        ],
        b"",
        environment,
    )
    return b"235 " in done.stdout + done.stderr


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed")
    return found


@sought_once
def _gsasl() -> tuple[str, dict[str, str]]:
    """Its path, and what its environment needs besides. No other package needs it, so it is seldom installed."""
    found = shutil.which("gsasl")
    if found is not None:
        return found, {}
    folder = unpacked("gsasl")
    return str(folder / "usr/bin/gsasl"), with_libraries(folder)


@cache
def _methods(msmtp: str) -> frozenset[str]:
    said = _run([msmtp, "--version"], b"").stdout.decode()
    _, _, line = said.partition("Supported authentication methods:")
    return frozenset(line.partition("IDN")[0].split())


@sought_once
def _nodemailer() -> Path:
    return installed(_HERE / "package.json")


def _run(
    command: list[str], given: bytes, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    env = os.environ | dict(environment or {})
    return subprocess.run(command, input=given, env=env, capture_output=True, timeout=_SECONDS, check=False)
