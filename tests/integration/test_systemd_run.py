"""A mailgate that runs as systemd runs it: it says what it does, takes its sockets by name, and goes when told.

The process is the real one, `twistd mailgate` with its own reactor, so these tests block and wait with deadlines.
"""

from __future__ import annotations

import os
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from tests.support import postgres

TREE = Path(__file__).parents[2]
# What bin/twistd holds: the script itself may be missing where only the libraries are installed.
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
PATIENCE_SECONDS = 30.0
SHUTDOWN_SECONDS = 30.0

CONFIG = """
hostname = "mail.example.test"
data_folder = "{folder}/data"

[database]
dsn = "{dsn}"

[tls]
self_signed = true

[bootstrap]
mailboxes = ["alice@example.test"]

[limits]
message_octets = {message_octets}

{listeners}
"""

MESSAGE = b"From: bob@example.org\r\nTo: alice@example.test\r\nSubject: hello\r\n\r\nHello, Alice.\r\n"


def eventually(condition: Callable[[], object], what: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Return once the condition holds, or fail."""
    deadline = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_seconds:g} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


class Gate:
    """A mailgate process, and the manager's end of its notify socket."""

    def __init__(self, folder: Path, dsn: str, listeners: str) -> None:
        self.folder = folder
        self.config = folder / "mailgate.toml"
        self._dsn = dsn
        self._listeners = listeners
        self.configure()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(folder / "notify"))
        self._manager.setblocking(False)
        self._said: list[str] = []
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LISTEN_", "WATCHDOG_"))},
            "NOTIFY_SOCKET": str(folder / "notify"),
            "PYTHONPATH": str(TREE),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, message_octets: int = 1_000_000, more: str = "") -> None:
        """Write the configuration file."""
        self.config.write_text(
            CONFIG.format(folder=self.folder, dsn=self._dsn, listeners=self._listeners, message_octets=message_octets)
            + more
        )

    def command(self) -> list[str]:
        """What systemd's ExecStart= runs, from the tree."""
        return [*TWISTD, "--nodaemon", "--pidfile=", "mailgate", "--config", str(self.config)]

    def start(self, command: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command or self.command(),
                env={**self.environ, **(environ or {})},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def said(self) -> list[str]:
        """Every assignment that the manager has heard, in order."""
        while True:
            try:
                self._said += self._manager.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self._said

    def wait_until_it_says(self, assignment: str, times: int = 1) -> None:
        """Return once the manager has heard that; fail at once if the process has ended without."""
        eventually(lambda: self.said().count(assignment) >= times or self.has_ended(), assignment)
        assert self.said().count(assignment) >= times, self.log()

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def exit_status(self, patience_seconds: float) -> int:
        assert self.process is not None
        return self.process.wait(patience_seconds)

    def log(self) -> str:
        """What the process has printed."""
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """End the process, whatever it does."""
        self._manager.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def _gate(dsn: str, listeners: str) -> Iterator[Gate]:
    with tempfile.TemporaryDirectory(prefix="mailgate-") as folder:
        gate = Gate(Path(folder), dsn, listeners)
        try:
            yield gate
        finally:
            gate.close()


@pytest.fixture
def dsn() -> Iterator[str]:
    database = postgres.fresh_database()
    yield database
    postgres.drop_database(database)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def gate(dsn: str, port: int) -> Iterator[Gate]:
    with _gate(dsn, f'[listener.smtp]\nrole = "mx"\nport = {port}\naddresses = ["127.0.0.1"]') as gate:
        yield gate


def send(client: smtplib.SMTP) -> None:
    client.sendmail("bob@example.org", ["alice@example.test"], MESSAGE)


def stored(dsn: str) -> int:
    """How many messages the database holds."""
    ((count,),) = postgres.query(dsn, "SELECT count(*) FROM mailgate.message")
    assert isinstance(count, int)
    return count


class Relay:
    """A Unix socket where the database should be: it hangs up on everybody until it is told where the database is."""

    def __init__(self, folder: Path, dsn: str) -> None:
        options = parse_dsn(dsn)
        name = f".s.PGSQL.{options['port']}"
        self._real = Path(options["host"]) / name
        self._ours = folder / name
        self.dsn = make_dsn(**{**options, "host": str(folder)})
        self._refusing = socket.socket(socket.AF_UNIX)
        self._refusing.bind(str(self._ours))
        self._refusing.listen(64)
        self._refusing.setblocking(False)

    def refuse(self) -> bool:
        """Hang up on whoever waits; whether anybody did."""
        try:
            self._refusing.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def open(self) -> None:
        """From now on the database is there."""
        self._ours.unlink()
        self._ours.symlink_to(self._real)
        self._refusing.close()


def test_ready_is_said_only_when_the_database_has_answered_and_the_port_is_bound(dsn: str, port: int) -> None:
    """Type=notify: what systemd orders after us starts after READY=1."""
    with ExitStack() as stack:
        relay = Relay(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailgate-"))), dsn)
        listener = f'[listener.smtp]\nrole = "mx"\nport = {port}\naddresses = ["127.0.0.1"]'
        gate = stack.enter_context(_gate(relay.dsn, listener))
        gate.start()
        for _ in range(3):
            eventually(lambda: relay.refuse() or gate.has_ended(), "mailgate looks for its database")
        assert not gate.has_ended(), gate.log()
        assert "READY=1" not in gate.said()
        assert not takes_connections(port)
        relay.open()
        gate.wait_until_it_says("READY=1")
        assert takes_connections(port)


def test_the_watchdog_hears_from_a_running_reactor(gate: Gate) -> None:
    """sd_watchdog_enabled(3): WATCHDOG=1 at half of WATCHDOG_USEC."""
    gate.start(environ={"WATCHDOG_USEC": "500000"})
    gate.wait_until_it_says("READY=1")
    gate.wait_until_it_says("WATCHDOG=1", times=4)


def test_a_stopped_process_misses_its_watchdog(gate: Gate) -> None:
    """The ping comes from the process itself, and so stops with it."""
    gate.start(environ={"WATCHDOG_USEC": "100000"})
    gate.wait_until_it_says("READY=1")
    gate.wait_until_it_says("WATCHDOG=1", times=2)
    gate.signal(signal.SIGSTOP)
    assert gate.process is not None
    stat = Path(f"/proc/{gate.process.pid}/stat")
    eventually(lambda: stat.read_text().rpartition(") ")[2].startswith("T"), "the process is stopped")
    heard = len(gate.said())
    time.sleep(0.5)  # ten intervals: here the passing of time is what the test is about
    assert len(gate.said()) == heard
    gate.signal(signal.SIGCONT)
    gate.wait_until_it_says("WATCHDOG=1", times=gate.said().count("WATCHDOG=1") + 2)


def test_sighup_reloads_between_reloading_and_ready_and_drops_no_session(gate: Gate, port: int, dsn: str) -> None:
    """sd_notify(3): RELOADING=1 with MONOTONIC_USEC, then READY=1."""
    gate.start()
    gate.wait_until_it_says("READY=1")
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_SECONDS) as client:
        client.ehlo()
        gate.configure(message_octets=1_234_567)
        gate.signal(signal.SIGHUP)
        gate.wait_until_it_says("READY=1", times=2)
        said = gate.said()
        reloading = said.index("RELOADING=1")
        assert said[reloading + 1].startswith("MONOTONIC_USEC=")
        assert "READY=1" in said[reloading:]
        send(client)
    assert stored(dsn) == 1
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_SECONDS) as client:
        client.ehlo()
        assert client.esmtp_features["size"] == "1234567"


def test_a_broken_file_keeps_the_old_state_and_says_so(gate: Gate, port: int) -> None:
    """A reload that fails must not leave the manager waiting, nor mail."""
    gate.start()
    gate.wait_until_it_says("READY=1")
    gate.configure(message_octets=1_234_567, more="\n[surprise]\n")
    gate.signal(signal.SIGHUP)
    gate.wait_until_it_says("READY=1", times=2)
    assert f"{gate.config}: surprise" in gate.log()
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_SECONDS) as client:
        client.ehlo()
        assert client.esmtp_features["size"] == "1000000"


def test_sigterm_says_stopping_answers_421_and_ends_in_time(gate: Gate, port: int) -> None:
    """RFC 5321 section 3.8: a server that shuts down says 421."""
    gate.start()
    gate.wait_until_it_says("READY=1")
    with closing(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)) as idle:
        lines = idle.makefile("rb")
        assert lines.readline().startswith(b"220 ")
        gate.signal(signal.SIGTERM)
        assert lines.readline().startswith(b"421 ")
        assert lines.readline() == b""
    gate.wait_until_it_says("STOPPING=1")
    assert gate.exit_status(SHUTDOWN_SECONDS) in (0, -signal.SIGTERM)


def test_what_is_in_data_at_sigterm_is_finished(gate: Gate, port: int, dsn: str) -> None:
    """A client that has heard 354 may end its message, and its 250 is as good as any; then it hears 421."""
    gate.start()
    gate.wait_until_it_says("READY=1")
    client = smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    with closing(client):
        client.ehlo()
        client.mail("bob@example.org")
        client.rcpt("alice@example.test")
        assert client.docmd("DATA")[0] == 354
        gate.signal(signal.SIGTERM)
        gate.wait_until_it_says("STOPPING=1")
        client.send(MESSAGE + b".\r\n")
        assert client.getreply()[0] == 250
        assert client.getreply()[0] == 421
    assert gate.exit_status(SHUTDOWN_SECONDS) in (0, -signal.SIGTERM)
    assert stored(dsn) == 1


def test_a_configuration_that_is_wrong_is_exit_status_1_and_never_ready(gate: Gate) -> None:
    """Restart=on-failure sees a failure, and the journal a line a fault."""
    gate.configure(more="\n[surprise]\n[another]\n")
    gate.start()
    assert gate.exit_status(PATIENCE_SECONDS) == 1
    assert "READY=1" not in gate.said()
    assert "surprise" in gate.log()
    assert "another" in gate.log()
    assert "Traceback" not in gate.log()


@pytest.fixture
def activate() -> str:
    """The path of systemd-socket-activate."""
    found = shutil.which("systemd-socket-activate")
    if found is None:
        pytest.skip("systemd-socket-activate is not installed")
    return found


def start_activated(gate: Gate, activate: str, *sockets: str) -> None:
    """Start mailgate as soon as somebody connects to one of the sockets."""
    environment = [f"--setenv={name}={gate.environ[name]}" for name in ("NOTIFY_SOCKET", "PYTHONPATH", "PATH")]
    gate.start([activate, *sockets, *environment, *gate.command()])


def test_sockets_are_taken_over_by_name(activate: str, dsn: str) -> None:
    """systemd.socket(5), FileDescriptorName=: the listeners find theirs whatever the order."""
    plain, implicit = free_port(), free_port()
    listeners = """
        [listener.smtp]
        role = "mx"
        endpoints = ["systemd:domain=INET:name=smtp"]

        [listener.smtps]
        role = "submission"
        tls = "implicit"
        accepts_unauthenticated = true
        endpoints = ["systemd:domain=INET:name=smtps"]
        """
    with _gate(dsn, listeners) as gate:
        # Not in the order of the configuration.
        sockets = [f"--listen=127.0.0.1:{implicit}", f"--listen=127.0.0.1:{plain}", "--fdname=smtps:smtp"]
        start_activated(gate, activate, *sockets)
        eventually(lambda: takes_connections(plain), "systemd-socket-activate listens")
        # That connection has started mailgate; the next one waits in the queue until it is ready.
        with smtplib.SMTP("127.0.0.1", plain, timeout=PATIENCE_SECONDS) as client:
            send(client)
        assert "READY=1" in gate.said()
        with smtplib.SMTP_SSL("127.0.0.1", implicit, timeout=PATIENCE_SECONDS) as client:
            send(client)
        assert stored(dsn) == 2
        gate.signal(signal.SIGTERM)
        assert gate.exit_status(SHUTDOWN_SECONDS) in (0, -signal.SIGTERM)


def test_a_socket_for_both_address_families_shows_each_client_as_it_is(activate: str, dsn: str) -> None:
    """systemd/mailgate-smtp.socket binds [::] for both; an IPv4 client is not ::ffff:127.0.0.1 to policies."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    listener = '[listener.smtp]\nrole = "mx"\nendpoints = ["systemd:domain=INET6:name=smtp"]'
    with _gate(dsn, listener) as gate:
        start_activated(gate, activate, f"--listen=[::]:{port}", "--fdname=smtp")
        eventually(lambda: takes_connections(port), "systemd-socket-activate listens")
        for host in ("127.0.0.1", "::1"):
            with smtplib.SMTP(host, port, timeout=PATIENCE_SECONDS) as client:
                send(client)
    seen = postgres.query(dsn, "SELECT DISTINCT host(client_address) FROM mailgate.transaction ORDER BY 1")
    assert seen == [("127.0.0.1",), ("::1",)]
