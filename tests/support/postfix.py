"""Postfix as a peer: the one that is installed, with configuration, queue and mail of its own, in the foreground.

Where OpenDKIM is installed it is Postfix's milter: it signs what the peer's domain sends, and writes what it found of
the signatures of others into an Authentication-Results field. Everything else is as Postfix comes, but that nothing
runs chroot'ed.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

from tests.support.gate import eventually
from tests.support.peer import FORWARDED, USERS, Peer, Situation
from tests.support.unavailable import Unavailable

_BUILT_IN = ("command_directory", "daemon_directory", "meta_directory", "shlib_directory", "mail_owner", "setgid_group")
_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file_prefixes = {folder}
maillog_file = {folder}/maillog
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_bind_address = {address}
myhostname = {host}
myorigin = {domain}
mydestination =
mynetworks = 127.0.0.0/8
smtpd_peername_lookup = no
smtpd_banner = {host} ESMTP $mail_name
alias_maps =
alias_database =
message_size_limit = 67108864
relayhost = [{next_host}]:{next_port}
minimal_backoff_time = 2s
queue_run_delay = 2s
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {folder}
virtual_mailbox_maps = texthash:{folder}/configuration/mailboxes
virtual_alias_maps = texthash:{folder}/configuration/aliases
virtual_mailbox_limit = 0
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
smtpd_tls_chain_files = {folder}/key.pem, {folder}/certificate.pem
smtpd_tls_security_level = may
smtp_tls_security_level = encrypt
"""
_MILTER = """\
smtpd_milters = unix:{folder}/opendkim/socket
milter_default_action = tempfail
"""
_OPENDKIM = """\
Mode sv
Socket local:{folder}/opendkim/socket
UMask 000
Syslog no
Background no
AuthservID {host}
AlwaysAddARHeader yes
Canonicalization relaxed/relaxed
Domain {domain}
Selector rsa
KeyFile {folder}/opendkim/key.pem
RequireSafeKeys no
TestDNSData file:{folder}/opendkim/records
"""


class Postfix(Peer):
    """A private Postfix."""

    name = "postfix"
    has_smtputf8 = True

    def __init__(self, situation: Situation) -> None:
        if shutil.which("postfix", path=_path()) is None:
            raise Unavailable("Postfix is not installed")
        if os.geteuid() != 0:
            raise Unavailable("only root can start Postfix")
        built_in = {name: _default(name) for name in _BUILT_IN}
        try:
            owner = pwd.getpwnam(built_in["mail_owner"])
        except KeyError:
            raise Unavailable(f"there is no user {built_in['mail_owner']}") from None
        services = _services(situation.address, situation.port)
        super().__init__(situation)
        self._daemons = Path(built_in["daemon_directory"])
        self._configuration = self.folder / "configuration"
        for name in ("configuration", "queue", "data", "mail", "opendkim"):
            (self.folder / name).mkdir()
        for name in ("data", "mail"):
            os.chown(self.folder / name, owner.pw_uid, owner.pw_gid)
        for name, source in (
            ("certificate.pem", situation.certificate.certificate),
            ("key.pem", situation.certificate.key),
            ("opendkim/key.pem", situation.signing_key),
        ):
            (self.folder / name).write_bytes(source.read_bytes())
            (self.folder / name).chmod(0o600)
        values = {
            "folder": self.folder,
            "address": situation.address,
            "host": self.host,
            "domain": self.domain,
            "next_host": situation.next_hop[0],
            "next_port": situation.next_hop[1],
            "uid": owner.pw_uid,
            "gid": owner.pw_gid,
        }
        self._opendkim = shutil.which("opendkim", path=_path())
        self._milter: subprocess.Popen[bytes] | None = None
        main = "".join(f"{name} = {value}\n" for name, value in built_in.items()) + _MAIN
        if self._opendkim is not None:
            self.signs_itself, self.verifier = True, self.host
            main += _MILTER
            (self.folder / "opendkim/conf").write_text(_OPENDKIM.format(**values))
        (self._configuration / "main.cf").write_text(main.format(**values))
        (self._configuration / "master.cf").write_text(services)
        mailboxes = "".join(f"{user}@{self.domain} mail/\n" for user in USERS)
        (self._configuration / "mailboxes").write_text(mailboxes, "utf-8")
        (self._configuration / "aliases").write_text(f"{FORWARDED}@{self.domain} {situation.forwards_to}\n")

    def __enter__(self) -> Peer:
        if self._opendkim is not None:
            records = [name.encode() + b" " + record + b"\n" for name, record in self.situation.keys]
            (self.folder / "opendkim/records").write_bytes(b"".join(records))
            with (self.folder / "opendkim/log").open("wb") as log:
                self._milter = subprocess.Popen(
                    [self._opendkim, "-f", "-x", str(self.folder / "opendkim/conf")],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            try:
                eventually((self.folder / "opendkim/socket").exists, "opendkim listens", 20)
            except AssertionError:
                self.__exit__(None, None, None)
                raise
        # It makes the folders of the queue. What it says of files that belong to others is of no interest.
        command = ["postfix", "-c", str(self._configuration), "check"]
        subprocess.run(command, capture_output=True, timeout=60, check=False, env=self.environment())
        return super().__enter__()

    def stop(self) -> None:
        """End Postfix, and then its milter."""
        super().stop()
        if self._milter is not None:
            self._milter.terminate()
            self._milter.wait(10)
            self._milter = None

    def command(self) -> list[str]:
        """Its master process, which stays in our session by -d."""
        return [str(self._daemons / "master"), "-d", "-c", str(self._configuration)]

    def log(self) -> str:
        """What it said, what it wrote to its log, and what the milter said."""
        files = [self.folder / "maillog", self.folder / "opendkim/log"]
        return "".join([super().log(), *(file.read_text("utf-8", "replace") for file in files if file.exists())])


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin"


def _default(parameter: str) -> str:
    """A parameter as this system's Postfix was built."""
    command = ["postconf", "-dh", parameter]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=10, check=True, env=os.environ | {"PATH": _path()}
    ).stdout.strip()


def _services(address: str, port: int) -> str:
    """The master.cf that comes with Postfix, for one listener there, and with nothing chroot'ed."""
    places = (Path("/usr/share/postfix/master.cf.dist"), Path("/etc/postfix/master.cf.proto"))
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise Unavailable(f"Postfix's master.cf is not at {' or '.join(map(str, places))}")
    services: list[str] = []
    is_kept = False
    for line in found.read_text().splitlines():
        match = re.match(r"(\w\S*)\s+(inet|unix|unix-dgram)\s+(\S+)\s+(\S+)\s+\S+\s+(.*)", line)
        if match is not None:
            name, kind, private, unprivileged, rest = match.groups()
            is_kept = not rest.endswith(" pipe")  # to programs that aren't here
            if is_kept:
                services.append(
                    f"{f'{address}:{port}' if kind == 'inet' else name} {kind} {private} {unprivileged} n {rest}"
                )
        elif is_kept and line.startswith((" ", "\t")):
            services.append(line)
    return "\n".join([*services, ""])
