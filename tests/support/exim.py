"""Exim as a peer: Debian's light daemon, unpacked into a cache, started in a mount namespace with its user.

It delivers as its own user, without set-user-id. It signs what its domain sends with DKIM, and writes what it found of
the signatures of others into an Authentication-Results field. Mail for `SMART_DOMAIN` it takes only from who has
authenticated, as a smarthost does.
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

SMART_DOMAIN = "smart.exim.test"
USERNAME = "mailgate"
PASSWORD = "of-the-gate"

_USER = SystemUser("Debian-exim", SYSTEM_USER)
_CONFIGURATION = """\
primary_hostname = {host}
exim_path = {programs}/usr/sbin/exim4
spool_directory = {folder}/spool
log_file_path = {folder}/logs/%s
pid_file_path = {folder}/pid
keep_environment =
deliver_drop_privilege = true
daemon_smtp_ports = {port}
local_interfaces = {address}
domainlist own_domains = {domain} : {smart_domain}
hostlist clients = 127.0.0.0/8
acl_smtp_rcpt = check_rcpt
acl_smtp_data = check_data
tls_advertise_hosts = *
tls_certificate = {certificate}
tls_privatekey = {key}
smtputf8_advertise_hosts = *
chunking_advertise_hosts = *
dsn_advertise_hosts = *
pipelining_advertise_hosts = *
message_size_limit = 64M
rfc1413_query_timeout = 0s
host_lookup =
helo_allow_chars = _
bounce_return_body = true
log_selector = +all

begin acl
check_rcpt:
  deny domains = {smart_domain}
       ! authenticated = *
       message = authenticate first
  accept domains = +own_domains
         verify = recipient
  accept domains = ! +own_domains
         hosts = +clients
  deny message = not here

check_data:
  accept add_header = :at_start:${{authresults {{$primary_hostname}}}}

begin routers
elsewhere:
  driver = manualroute
  domains = ! +own_domains
  route_list = * {next_host}
  host_find_failed = defer
  self = send
  transport = {transport}
forwarded:
  driver = redirect
  local_parts = {forwarded}
  data = {forwards_to}
users:
  driver = accept
  local_parts = {users}
  transport = mail

begin transports
signed:
  driver = smtp
  port = {next_port}
  interface = {address}
  hosts_require_tls = *
  tls_tempfail_tryclear = false
  dkim_domain = ${{if eqi{{$sender_address_domain}}{{{domain}}}{{{domain}}}}}
  dkim_selector = rsa
  dkim_private_key = {signing_key}
  dkim_canon = relaxed
mail:
  driver = appendfile
  directory = {folder}/mail
  maildir_format
  envelope_to_add
  return_path_add
  user = {user}
  group = {user}

begin retry
* * F,1h,1m

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{username}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
  server_advertise_condition = ${{if def:tls_in_cipher}}
"""


class Exim(Peer):
    """A private Exim."""

    name: ClassVar[str] = "exim"
    signs_itself: bool = True
    has_smtputf8: ClassVar[bool] = True
    verifier: str | None = "mx.exim.test"

    def __init__(self, situation: Situation) -> None:
        require_namespaces()
        programs = unpacked("exim4-daemon-light")
        super().__init__(situation)
        for name in ("spool", "logs", "mail"):
            (self.folder / name).mkdir()
            os.chown(self.folder / name, _USER.number, _USER.number)
        for name, source in (
            ("certificate.pem", situation.certificate.certificate),
            ("key.pem", situation.certificate.key),
            ("dkim.pem", situation.signing_key),
        ):
            (self.folder / name).write_bytes(source.read_bytes())
            os.chown(self.folder / name, _USER.number, _USER.number)
        (self.folder / "exim.conf").write_text(
            _CONFIGURATION.format(
                host=self.host,
                domain=self.domain,
                smart_domain=SMART_DOMAIN,
                username=USERNAME,
                password=PASSWORD,
                folder=self.folder,
                programs=PROGRAMS,
                address=situation.address,
                port=situation.port,
                certificate=self.folder / "certificate.pem",
                key=self.folder / "key.pem",
                signing_key=self.folder / "dkim.pem",
                next_host=situation.next_hop[0],
                next_port=situation.next_hop[1],
                transport="signed",
                forwarded=FORWARDED,
                forwards_to=situation.forwards_to,
                users=" : ".join(USERS),
                user=_USER.name,
            )
        )
        (self.folder / "exim.conf").chmod(0o644)
        self._more = with_libraries(programs, Path(PROGRAMS))
        self._namespace = Namespace(self.folder, [Mount(PROGRAMS, programs)], [_USER], situation.name_server)

    def command(self) -> list[str]:
        """In the foreground, with a queue runner now and then."""
        return self._namespace.command(
            f"{PROGRAMS}/usr/sbin/exim4", "-C", str(self.folder / "exim.conf"), "-bdf", "-q1m"
        )

    def environment(self) -> dict[str, str]:
        """With the libraries that the machine lacks."""
        return super().environment() | self._more

    def log(self) -> str:
        """What it said, and what it wrote to its logs."""
        logs = [file.read_text("utf-8", "replace") for file in sorted((self.folder / "logs").glob("*"))]
        return "".join([super().log(), *logs])
