"""When reports are made: some time behind midnight, again within the day, and never all nodes at once."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailgate.dns.zone import Zone
from mailgate.reports.daily import DailyReports, ReportSettings
from mailgate.reports.outgoing import Reporter
from mailgate.storage.errors import StorageUnavailable

MIDNIGHT = 1_795_305_600.0


class Store:
    """Nothing to report; notes when it was asked to count which day."""

    def __init__(self, clock: Clock) -> None:
        self.asked: list[tuple[float, str]] = []
        self.is_away = False
        self.names: list[str] = []
        self.broken: dict[str, Exception] = {}
        self.sent: list[str] = []
        self._clock = clock

    async def collect(self, day: Any) -> bool:  # Any: a date
        self.asked.append((self._clock.seconds(), day.isoformat()))
        if self.is_away:
            raise StorageUnavailable("away")
        return True

    async def dmarc_domains(self, _day: object, _after: str) -> list[object]:
        return []

    async def tls_domains(self, _day: object, after: str) -> list[str]:
        return [name for name in self.names if name > after]

    async def tls_results(self, _day: object, domain: str) -> list[object]:
        if domain in self.broken:
            raise self.broken[domain]
        return []

    async def send(self, _kind: str, domain: str, *_: object) -> bool:
        self.sent.append(domain)
        return True

    async def forget(self, _before: float, _now: float) -> None:
        return None


class Threads:
    """A pool that does its work at once."""

    def callInThreadWithCallback(self, told: Any, work: Any, *arguments: Any) -> None:  # noqa: N802 - Twisted's name
        told(True, work(*arguments))


class Reactor(Clock):
    """A clock with threads."""

    def getThreadPool(self) -> Threads:  # noqa: N802 - Twisted's name
        return Threads()

    def callFromThread(self, work: Any, *arguments: Any) -> None:
        work(*arguments)


def running(since_midnight: float, zone: str = "") -> tuple[Clock, Store, DailyReports]:
    clock = Reactor()
    clock.advance(MIDNIGHT + since_midnight)
    store: Any = Store(clock)
    reports = DailyReports(
        clock,
        store,
        Zone(zone),
        ReportSettings(Reporter("Example", "postmaster@example.test", "mx.example.test")),
        signing=None,
        next_id=lambda: 1,
        time=clock.seconds,
    )
    reports.start()
    return clock, store, reports


@pytest.mark.parametrize("since_midnight", [0.0, 10.0, 1799.0])
def test_the_first_round_is_some_time_behind_midnight(since_midnight: float) -> None:
    """RFC 9990 section 3.5: mail systems of the whole world do this at midnight UTC."""
    clock, store, _ = running(since_midnight)
    clock.pump([60.0] * 200)
    when, day = store.asked[0]
    assert 1800.0 <= when - MIDNIGHT <= 1800.0 + 3600.0 + 60.0
    assert day == "2026-11-21"


def test_rounds_are_repeated_and_outlive_the_database() -> None:
    """What could not be made is made later in the day."""
    clock, store, _ = running(40_000.0)
    store.is_away = True
    clock.pump([60.0] * 70)
    assert store.asked
    store.is_away = False
    before = len(store.asked)
    clock.pump([60.0] * 600)
    assert len(store.asked) > before + 5
    assert {day for _, day in store.asked} == {"2026-11-21"}


def test_the_next_day_is_about_the_next_day() -> None:
    """In UTC."""
    clock, store, _ = running(80_000.0)
    clock.pump([60.0] * 1000)
    assert [day for _, day in store.asked][-1] == "2026-11-22"


def test_after_stop_nothing_happens() -> None:
    """The owner ends it."""
    clock, store, reports = running(40_000.0)
    stopped: list[object] = []
    Deferred.fromCoroutine(reports.stop()).addBoth(stopped.append)
    assert stopped == [None]
    clock.pump([60.0] * 1000)
    assert store.asked == []
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("error", [psycopg2.DataError("odd"), KeyError("odd")])
def test_a_domain_whose_report_can_not_be_made_does_not_stop_the_others(error: Exception) -> None:
    """Whatever a stranger may have found, it is about his own report; and the next day has reports again."""
    records = "\n".join(f'_smtp._tls.{name}.test TXT "v=TLSRPTv1; rua=mailto:r@{name}.test"' for name in "abc")
    clock, store, _ = running(40_000.0, records)
    store.names = ["a.test", "b.test", "c.test"]
    store.broken = {"b.test": error}
    clock.pump([60.0] * 2000)
    assert store.sent[:2] == ["a.test", "c.test"]
    assert {day for _, day in store.asked} == {"2026-11-21", "2026-11-22"}
