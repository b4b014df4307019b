"""What `mailgate.storage.pool` makes of a DSN, without a server."""

from __future__ import annotations

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from mailgate.storage.pool import _complete, _is_lost, _rotated


def test_a_tcp_host_gets_what_finds_dead_peers() -> None:
    """A server whose machine is gone sends no FIN: without these, a commit would wait for minutes or hours."""
    given = parse_dsn(_complete("host=192.0.2.1 dbname=mail", "writer"))
    assert given["tcp_user_timeout"] == "15000"
    assert int(given["keepalives_idle"]) + int(given["keepalives_interval"]) * int(given["keepalives_count"]) <= 60
    assert given["application_name"] == "writer"


def test_what_the_dsn_says_itself_stays() -> None:
    given = parse_dsn(_complete("host=192.0.2.1 tcp_user_timeout=1 application_name=x", "writer"))
    assert given["tcp_user_timeout"] == "1"
    assert given["application_name"] == "x"


@pytest.mark.parametrize("host", ["/run/postgresql", "@abstract", "/a,/b"])
def test_a_unix_socket_gets_no_tcp_options(host: str) -> None:
    assert "tcp_user_timeout" not in parse_dsn(_complete(f"host={host} dbname=mail", "x"))


def test_urls_are_understood() -> None:
    given = parse_dsn(_complete("postgresql://u@192.0.2.1:5433,192.0.2.2/mail?target_session_attrs=read-write", "x"))
    assert given["host"] == "192.0.2.1,192.0.2.2"
    assert given["target_session_attrs"] == "read-write"
    assert "keepalives_idle" in given


@pytest.mark.parametrize(
    ("places", "host", "port"),
    [(0, "a,b,c", "1,2,3"), (1, "b,c,a", "2,3,1"), (2, "c,a,b", "3,1,2"), (3, "a,b,c", "1,2,3")],
)
def test_every_host_has_its_turn_to_be_first(places: int, host: str, port: str) -> None:
    given = parse_dsn(_rotated("host=a,b,c port=1,2,3 dbname=mail", places))
    assert (given["host"], given["port"], given["dbname"]) == (host, port, "mail")


def test_a_port_for_all_hosts_stays_with_all() -> None:
    given = parse_dsn(_rotated("host=a,b port=5", 1))
    assert (given["host"], given["port"]) == ("b,a", "5")


@pytest.mark.parametrize("dsn", ["", "dbname=mail", "host=a port=1"])
def test_one_host_stays_as_it_is(dsn: str) -> None:
    assert _rotated(dsn, 1) == dsn


def test_our_own_mistakes_cost_no_connection() -> None:
    assert not _is_lost(psycopg2.ProgrammingError("can't adapt type 'object'"))
    assert _is_lost(psycopg2.ProgrammingError("execute cannot be used while an asynchronous query is underway"))
    assert _is_lost(psycopg2.OperationalError("server closed the connection unexpectedly"))
    assert _is_lost(psycopg2.InterfaceError("connection already closed"))
