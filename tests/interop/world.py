"""A small world of mail: a gate of ours, every other mail server that can run here, and one DNS for them all.

Each peer has a domain of its own, `postfix.test` and so on, whose MX leads to an address of the loopback that only it
uses, with a certificate for its name. The gate has `example.test`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dkim
import pytest

from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from tests.interop.clients import Door, TlsKind, implicit_tls
from tests.support import postgres
from tests.support.certificates import Authority
from tests.support.command import Command
from tests.support.exim import PASSWORD as SMARTHOST_PASSWORD
from tests.support.exim import SMART_DOMAIN, USERNAME, Exim
from tests.support.gate import Gate, eventually, free_port
from tests.support.name_server import NameServer
from tests.support.opendkim import OpenDkim
from tests.support.opensmtpd import OpenSmtpd
from tests.support.peer import Peer, Situation
from tests.support.postfix import Postfix
from tests.support.signed import RSA_2048, RSA_2048_RECORD, sign
from tests.support.unavailable import Unavailable

DOMAIN = "example.test"
ALICE = f"alice@{DOMAIN}"
BOB = f"bob@{DOMAIN}"
PASSWORD = "correct horse battery staple"
NOBODY = f"nobody@{DOMAIN}"
# A large message is in pieces; its header is in the first.
_KEPT = """
SELECT reverse_path, trace, coalesce(content, (
    SELECT string_agg(octets, ''::bytea ORDER BY position) FROM mailgate.message_piece WHERE message_id = message.id))
FROM mailgate.message LEFT JOIN mailgate.message_piece ON message_id = message.id AND position = 0
WHERE position(%s in coalesce(content, octets)) > 0 AND (reverse_path = '') = %s
    AND EXISTS (SELECT FROM mailgate.delivery WHERE message_id = message.id)
"""
PEERS: tuple[type[Peer], ...] = (Postfix, Exim, OpenSmtpd)


@dataclass(frozen=True, slots=True)
class Kept:
    """A message that the gate has stored."""

    reverse_path: str
    trace: str  # what mailgate put on top, unfolded
    content: bytes


class World:
    """The parts, while they run."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        """Start them all; the stack ends them."""
        self.folder = folder
        # An address of the loopback of its own, so that several runs on a machine don't meet.
        self.network = f"127.{64 + secrets.randbelow(128)}.{1 + secrets.randbelow(254)}"
        self.peer_port = free_port()
        self.zone = Zone()
        self.keys: dict[str, bytes] = {}
        for kind in PEERS:
            self.publish_key(f"rsa._domainkey.{kind.name}.test", RSA_2048_RECORD)
        is_root = os.geteuid() == 0
        self.dns = NameServer(self.zone, f"{self.network}.53", 53 if is_root else 0)
        stack.enter_context(self.dns)
        self.authority = Authority(folder, datetime.now(UTC))
        self.dsn = postgres.fresh_database()
        stack.callback(postgres.drop_database, self.dsn)
        self._tls_port, self._starttls_port = free_port(), free_port()
        self._master_key = folder / "master.key"
        self._master_key.write_text(secrets.token_hex(32))
        self._master_key.chmod(0o600)
        self.gate = Gate(
            log=folder / "gate.log",
            mailboxes=(ALICE, BOB),
            dsn=self.dsn,
            certificate=self.authority.issue(DOMAIN, names=(f"mail.{DOMAIN}",)),
            settings=self._settings(),
        )
        stack.callback(self.gate.close)
        self._publish(DOMAIN, f"mail.{DOMAIN}", "127.0.0.1")
        self.unavailable: dict[str, str] = {}
        self.peers: dict[str, Peer] = {}
        self._failed: dict[str, str] = {}
        self.gate.start()
        self._make_keys()
        self.run("mailbox", "set", "--password", BOB, given=PASSWORD)
        for number, kind in enumerate(PEERS, 1):
            try:
                self.peers[kind.name] = stack.enter_context(self._peer(kind, f"{self.network}.{number}"))
            except Unavailable as reason:
                self.unavailable[kind.name] = str(reason)
            except AssertionError as error:  # it does not start, which is the failure of its own tests alone
                self._failed[kind.name] = str(error)

    def peer(self, name: str) -> Peer:
        """The peer of that name. Where it can't be had the test is skipped."""
        if name in self.unavailable:
            pytest.skip(self.unavailable[name])
        if name in self._failed:
            pytest.fail(self._failed[name])
        return self.peers[name]

    @property
    def command(self) -> Command:
        """The command `mailgate` for this gate. What asks the DNS takes a process of its own: `run`."""
        return Command(self.gate.config_path, self.dsn)

    def run(self, *arguments: str, given: str = "") -> str:
        """What the command prints in a process of its own."""
        command, environment = self.command.in_process(*arguments)
        done = subprocess.run(
            command, env=environment, input=given, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def alias(self, target: str) -> str:
        """An address of ours that leads there alone."""
        address = f"{secrets.token_hex(8)}@{DOMAIN}"
        self.command.ok("alias", "add", address, target)
        return address

    def submit(self, recipient: str, message: bytes, *options: str, recipient_options: tuple[str, ...] = ()) -> None:
        """Hand a message of Bob's in, as a program does; `options` go with MAIL."""
        door = self.door("implicit")
        with implicit_tls(door) as client:
            client.login(BOB, PASSWORD)
            client.sendmail(BOB, [recipient], message, options, recipient_options)

    def door(self, tls: TlsKind) -> Door:
        """Where programs hand mail in: with TLS "implicit", with "starttls", or there with "none"."""
        port = self._tls_port if tls == "implicit" else self._starttls_port
        return Door(port=port, tls=tls, host=f"mail.{DOMAIN}", authorities=self.authority.certificate_file)

    def kept(self, marker: bytes, *, is_notice: bool = False) -> Kept:
        """The message whose content has these octets, once it is in a mailbox of the gate; or the notice of them."""
        found: list[tuple[object, ...]] = []

        def is_there() -> bool:
            found[:] = postgres.query(
                self.dsn,
                _KEPT,
                (marker, is_notice),
            )
            return bool(found)

        eventually(is_there, f"{marker!r} is stored by the gate", 20.0)
        ((reverse_path, trace, content),) = found
        assert isinstance(reverse_path, str)
        assert isinstance(trace, memoryview)
        assert isinstance(content, memoryview)
        return Kept(reverse_path, bytes(trace).decode().replace("\r\n\t", " "), bytes(content))

    def has_opendkim_pass(self, message: bytes) -> bool | None:
        """Whether OpenDKIM takes a signature of that message; None where it is not installed."""
        try:
            return OpenDkim(self.folder, self.keys.items()).passes(message)
        except Unavailable:
            return None

    def has_dkimpy_pass(self, message: bytes, signature: int = 0) -> bool:
        """Whether dkimpy takes that signature of the message, counted from the top."""
        verified: bool = dkim.DKIM(message).verify(signature, dnsfunc=self.key_record)
        return verified

    def key_record(self, name: bytes, timeout: int = 5) -> bytes | None:
        """The DKIM key at that name, as dkimpy asks for it."""
        return self.keys.get(name.decode().removesuffix("."))

    def publish_key(self, name: str, record: bytes) -> None:
        """Put a DKIM key into the DNS."""
        self.keys[name] = record
        self.zone.add(name, RecordType.TXT, record)

    def _settings(self) -> str:
        password = self.folder / "smarthost.password"
        password.write_text(SMARTHOST_PASSWORD)
        password.chmod(0o600)
        return f"""
[dns]
servers = ["{self.dns.host}:{self.dns.port}"]
spare_loopback = false
[listener.submissions]
role = "submission"
port = {self._tls_port}
addresses = ["127.0.0.1"]
tls = "implicit"
[listener.submission]
role = "submission"
port = {self._starttls_port}
addresses = ["127.0.0.1"]
[authentication]
failures_per_network = 1000
[signing]
master_key_file = "{self._master_key}"
[outbound]
port = {self.peer_port}
allows_private_addresses = true
tls = "verify"
ca_file = "{self.authority.certificate_file}"
mta_sts = false
first_retry_seconds = 1
[[route]]
domains = ["{SMART_DOMAIN}"]
to = "smtp://mx.exim.test:{self.peer_port}"
tls = "verify"
username = "{USERNAME}"
password_file = "{password}"
"""

    def _make_keys(self) -> None:
        """Two DKIM keys for our domain, as an operator makes and publishes them."""
        for key in self.command.json("dkim", "generate", DOMAIN):
            self.publish_key(key["name"], key["content"].encode())
        self.run("dkim", "activate", DOMAIN)

    def _peer(self, kind: type[Peer], address: str) -> Peer:
        domain = f"{kind.name}.test"
        self._publish(domain, f"mx.{domain}", address)
        key = self.folder / "dkim.pem"
        key.write_bytes(RSA_2048)
        return kind(
            Situation(
                address=address,
                port=self.peer_port,
                certificate=self.authority.issue(domain, names=(domain, f"mx.{domain}")),
                authorities=self.authority.certificate_file,
                next_hop=("127.0.0.1", self.gate.port),
                name_server=self.dns.host,
                forwards_to=NOBODY,
                signing_key=key,
                keys=tuple(self.keys.items()),
            )
        )

    def _publish(self, domain: str, host: str, address: str) -> None:
        self.zone.add(domain, RecordType.MX, (10, host))
        self.zone.add(host, RecordType.A, address)
        self.zone.add(domain, RecordType.TXT, f"v=spf1 ip4:{address} -all".encode())
        self.zone.add(f"_dmarc.{domain}", RecordType.TXT, b"v=DMARC1; p=reject")
        self.zone.add(host, RecordType.TXT, f"v=spf1 ip4:{address} -all".encode())


def relay(peer: Peer, message: bytes, reverse_path: str, recipient: str) -> bytes:
    """Hand the peer a message of its domain to relay, and return it as it was handed over: signed, where it won't."""
    if not peer.signs_itself:
        message = sign(message, domain=peer.domain)
    with peer.connect() as client:
        client.sendmail(reverse_path, [recipient], message, ["BODY=8BITMIME"])
    return message


@contextlib.contextmanager
def world() -> Iterator[World]:
    """All of it, for as long as the `with`."""
    folder = Path(tempfile.mkdtemp(prefix="mailgate-interop-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield World(folder, stack)
