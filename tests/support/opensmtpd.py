"""OpenSMTPD as a peer: Debian's, unpacked into a cache, started in a mount namespace with its users and its folders.

OpenSMTPD before version 7 can't serve TLS with OpenSSL 3 ("missing private key"), so the release's backports come
first. It has neither SMTPUTF8 nor PIPELINING, and signs nothing by itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from tests.support.debian import unpacked, with_libraries
from tests.support.peer import (
    FORWARDED,
    PROGRAMS,
    SYSTEM_USER,
    USERS,
    Mount,
    Namespace,
    Peer,
    Situation,
    SystemUser,
    require_namespaces,
)
from tests.support.unavailable import Unavailable

_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

_DAEMON = SystemUser("opensmtpd", SYSTEM_USER + 1)
_QUEUE = SystemUser("opensmtpq", SYSTEM_USER + 2)
_MAIL = SystemUser("peermail", SYSTEM_USER + 3)
_CONFIGURATION = """\
pki here cert "{folder}/certificate.pem"
pki here key "{folder}/key.pem"
smtp max-message-size 64M
table users {{ {users}, "{forwarded}" = "{forwards_to}" }}
listen on {address} port {port} tls pki here hostname {host}
action "deliver" maildir "{folder}/mail" virtual <users>
action "relay" relay src {address} host "smtp+tls://{next_host}:{next_port}" tls no-verify helo "{host}"
match from any for domain "{domain}" action "deliver"
match from any for any action "relay"
"""
_PREPARATIONS = (
    "mkdir -p /var/lib/opensmtpd/empty",
    "chmod 755 /var/lib/opensmtpd /var/lib/opensmtpd/empty",
    "mkdir -m 711 /var/spool/smtpd",
)


class OpenSmtpd(Peer):
    """A private OpenSMTPD."""

    name: ClassVar[str] = "opensmtpd"
    returns_envid: ClassVar[bool] = False

    def __init__(self, situation: Situation) -> None:
        if not _AUTHORITIES.exists():
            raise Unavailable("ca-certificates, without which OpenSMTPD does not start, is not installed")
        require_namespaces()
        programs = unpacked("opensmtpd", prefers_backports=True)
        super().__init__(situation)
        (self.folder / "mail").mkdir()
        os.chown(self.folder / "mail", _MAIL.number, _MAIL.number)
        for name, source in (
            ("certificate.pem", situation.certificate.certificate),
            ("key.pem", situation.certificate.key),
        ):
            (self.folder / name).write_bytes(source.read_bytes())
            (self.folder / name).chmod(0o600)
        ascii_users = (user for user in USERS if user.isascii())
        (self.folder / "smtpd.conf").write_text(
            _CONFIGURATION.format(
                host=self.host,
                domain=self.domain,
                folder=self.folder,
                address=situation.address,
                port=situation.port,
                next_host=situation.next_hop[0],
                next_port=situation.next_hop[1],
                users=", ".join(f'"{user}" = "{_MAIL.name}"' for user in ascii_users),
                forwarded=FORWARDED,
                forwards_to=situation.forwards_to,
            )
        )
        (self.folder / "smtpd.conf").chmod(0o600)
        self._more = with_libraries(programs, Path(PROGRAMS))
        self._namespace = Namespace(
            self.folder,
            [
                Mount(PROGRAMS, programs),
                Mount("/usr/libexec", programs / "usr/libexec"),
                Mount("/var/lib"),
                Mount("/var/spool"),
                Mount("/run"),
            ],
            [_DAEMON, _QUEUE, _MAIL],
            situation.name_server,
            _PREPARATIONS,
        )

    def command(self) -> list[str]:
        """In the foreground, telling what it does."""
        return self._namespace.command(f"{PROGRAMS}/usr/sbin/smtpd", "-dv", "-f", str(self.folder / "smtpd.conf"))

    def environment(self) -> dict[str, str]:
        """With the libraries that the machine lacks."""
        return super().environment() | self._more
