"""The service manager hears what sd_notify(3) says it should, and mailgate never waits for it."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from mailgate.notify import Notifier

PROCESS_ID = 4711


class Manager:
    """The manager's end of a notify socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Everything that has been said since the last call."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture
def path() -> Iterator[Path]:
    """A short path: pytest's own may be longer than the 107 octets of a Unix socket's address."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "notify"


@pytest.fixture
def manager(path: Path) -> Iterator[Manager]:
    manager = Manager(str(path))
    with manager.socket:
        yield manager


@pytest.fixture
def clock() -> Clock:
    return Clock()


def notifier(path: Path, clock: Clock, **environ: str) -> Notifier:
    return Notifier(
        {"NOTIFY_SOCKET": str(path), **environ},
        clock,
        process_id=PROCESS_ID,
        monotonic_microseconds=lambda: 123_456,
    )


def test_each_state_is_one_datagram_of_assignments(manager: Manager, path: Path, clock: Clock) -> None:
    """sd_notify(3): a newline-separated list of variable assignments."""
    ours = notifier(path, clock)
    ours.status("waiting for the database")
    ours.extend_timeout(1.5)
    ours.ready("2 listeners")
    ours.reloading()
    ours.ready()
    ours.stopping()
    assert manager.heard() == [
        "STATUS=waiting for the database",
        "EXTEND_TIMEOUT_USEC=1500000",
        "READY=1\nSTATUS=2 listeners",
        "RELOADING=1\nMONOTONIC_USEC=123456",
        "READY=1",
        "STOPPING=1",
    ]


def test_the_clock_of_a_reload_is_the_managers() -> None:
    """sd_notify(3): MONOTONIC_USEC is CLOCK_MONOTONIC as the kernel tells it, in microseconds."""
    with tempfile.TemporaryDirectory() as folder, Manager(f"{folder}/notify").socket as listening:
        Notifier({"NOTIFY_SOCKET": f"{folder}/notify"}, Clock()).reloading()
        said = int(listening.recv(4096).decode().rpartition("=")[2])
    kernel = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 <= said / 1_000_000 <= kernel + 60


def test_an_abstract_address_begins_with_an_at_sign(clock: Clock) -> None:
    """sd_notify(3): "If the first character is "@", the string is understood as Linux abstract namespace socket."."""
    manager = Manager("")  # the kernel picks a free abstract name
    with manager.socket:
        name = manager.socket.getsockname()
        Notifier({"NOTIFY_SOCKET": "@" + name[1:].decode()}, clock).ready()
        assert manager.heard() == ["READY=1"]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}], ids=["absent", "empty"])
def test_without_a_manager_nothing_is_sent_and_nothing_fails(environ: dict[str, str], clock: Clock) -> None:
    ours = Notifier({**environ, "WATCHDOG_USEC": "1000000"}, clock)
    assert not ours.is_heard
    ours.ready("ready")
    ours.reloading()
    ours.stopping()
    ours.status("idle")
    watchdog = ours.watchdog()
    watchdog.startService()
    assert clock.getDelayedCalls() == []
    watchdog.stopService()


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative/path", "@", "/"])
def test_an_address_of_no_known_form_is_passed_over(address: str, clock: Clock) -> None:
    ours = Notifier({"NOTIFY_SOCKET": address}, clock)
    assert not ours.is_heard
    ours.ready()


def test_a_manager_that_has_gone_does_not_stop_us(manager: Manager, path: Path, clock: Clock) -> None:
    ours = notifier(path, clock)
    manager.socket.close()
    ours.ready()
    path.unlink()
    ours.status("still here")
    assert clock.getDelayedCalls() == []


def test_a_manager_that_came_back_hears_the_next_message(manager: Manager, path: Path, clock: Clock) -> None:
    """`systemctl daemon-reexec` binds the same address anew."""
    ours = notifier(path, clock)
    manager.socket.close()
    path.unlink()
    ours.status("lost")
    again = Manager(str(path))
    with again.socket:
        ours.status("heard")
        assert again.heard() == ["STATUS=heard"]


def test_a_status_stays_one_line(manager: Manager, path: Path, clock: Clock) -> None:
    """A line break in it would be an assignment of its own."""
    notifier(path, clock).status("one\nSTOPPING=1\r\nthree")
    assert manager.heard() == ["STATUS=one STOPPING=1 three"]


def test_a_message_for_a_full_socket_waits_and_keeps_its_place(manager: Manager, path: Path, clock: Clock) -> None:
    ours = notifier(path, clock)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"X_NOISE=1", str(path))
    ours.ready()
    ours.stopping()
    assert len(clock.getDelayedCalls()) == 1
    assert set(manager.heard()) == {"X_NOISE=1"}
    clock.advance(1)
    assert manager.heard() == ["READY=1", "STOPPING=1"]
    assert clock.getDelayedCalls() == []


def test_the_watchdog_pings_at_once_and_then_at_half_of_the_interval(
    manager: Manager, path: Path, clock: Clock
) -> None:
    """sd_watchdog_enabled(3): "send keep-alive messages ... every half of the time returned here"."""
    ours = notifier(path, clock, WATCHDOG_USEC="10000000", WATCHDOG_PID=str(PROCESS_ID))
    assert ours.watchdog_seconds == 10
    watchdog = ours.watchdog()
    watchdog.startService()
    assert manager.heard() == ["WATCHDOG=1"]
    clock.advance(4.9)
    assert manager.heard() == []
    clock.advance(0.1)
    assert manager.heard() == ["WATCHDOG=1"]
    clock.pump([5, 5, 5])
    assert manager.heard() == ["WATCHDOG=1"] * 3
    watchdog.stopService()
    clock.advance(60)
    assert manager.heard() == []


def test_a_reactor_that_hangs_is_not_covered_up(manager: Manager, path: Path, clock: Clock) -> None:
    """After 20 seconds without a turn there is one ping, not one for each interval missed."""
    watchdog = notifier(path, clock, WATCHDOG_USEC="2000000").watchdog()
    watchdog.startService()
    manager.heard()
    clock.advance(20)
    assert manager.heard() == ["WATCHDOG=1"]
    watchdog.stopService()


def test_a_ping_never_waits_in_a_queue(manager: Manager, path: Path, clock: Clock) -> None:
    """A sign of life that comes late is a false one."""
    ours = notifier(path, clock, WATCHDOG_USEC="2000000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"X_NOISE=1", str(path))
    ours.status("full")
    ours.ping()
    manager.heard()
    clock.advance(1)
    assert manager.heard() == ["STATUS=full"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
    ids=["absent", "empty", "zero", "negative", "no number", "another process"],
)
def test_no_watchdog_of_ours_means_no_pings(
    environ: dict[str, str], manager: Manager, path: Path, clock: Clock
) -> None:
    """sd_watchdog_enabled(3): WATCHDOG_PID must be ours, and WATCHDOG_USEC a positive number."""
    ours = notifier(path, clock, **environ)
    assert ours.watchdog_seconds is None
    watchdog = ours.watchdog()
    watchdog.startService()
    clock.advance(60)
    watchdog.stopService()
    assert manager.heard() == []
