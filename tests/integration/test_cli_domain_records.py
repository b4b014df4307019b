"""`mailgate domain records` on a real database, and beside what a real name server says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from tests.support.command import Command, command_for
from tests.support.dns_server import nsd
from tests.support.postgres import drop_database, fresh_database

ZONE = """
@                 MX   10 mx
@                 TXT  "v=spf1 mx -all"
mx                A    127.0.0.1
mx                TXT  "v=spf1 a -all"
now._domainkey    TXT  "v=DKIM1; k=rsa; p=abc"
_dmarc            TXT  "v=DMARC1; p=reject"
_smtp._tls        TXT  "v=TLSRPTv1; rua=mailto:tls@example.test"
"""


@pytest.fixture
def mailgate(tmp_path: Path) -> Iterator[Command]:
    dsn = fresh_database()
    command = command_for(dsn, tmp_path)
    command.ok("domain", "add", "example.test")
    with closing(psycopg2.connect(dsn)) as database, database, database.cursor() as cursor:
        cursor.execute(
            "INSERT INTO mailgate.dkim_key"
            " (domain, selector, algorithm, state, sealed_key, master_key_id, public_key, retired_at)"
            " VALUES ('example.test', 'now', 'rsa', 'active', '', '', 'abc', NULL),"
            " ('example.test', 'old', 'rsa', 'retired', '', '', 'def', now() - interval '8 days')"
        )
    yield command
    drop_database(dsn)


def test_the_records_are_printed_as_a_zone_file(mailgate: Command) -> None:
    """With the keys that are used or were until lately."""
    printed = mailgate.ok("domain", "records", "example.test", "--address", "192.0.2.25").splitlines()
    assert 'now._domainkey.example.test. 3600 IN TXT "v=DKIM1; k=rsa; p=abc"' in printed
    assert "25.2.0.192.in-addr.arpa. 3600 IN PTR mx.example.test." in printed
    assert not any(line.startswith("old._domainkey") for line in printed)


def test_the_records_are_printed_as_a_form_takes_them(mailgate: Command) -> None:
    """Names without the zone for people, whole for the API; an address is never proxied; no PTR, which is elsewhere."""
    printed = mailgate.ok("domain", "records", "example.test", "--address", "192.0.2.25", "--cloudflare")
    rows = [line.split()[:4] for line in printed.splitlines()]
    assert ["MX", "@", "10", "mx.example.test"] in rows
    assert ["A", "mx", "DNS", "only"] in rows
    records = mailgate.json("domain", "records", "example.test", "--address", "192.0.2.25", "--cloudflare")
    assert {record["type"] for record in records} == {"A", "MX", "TXT"}
    assert [record["proxied"] for record in records if record["type"] == "A"] == [False]


def test_a_domain_that_is_not_ours_is_refused(mailgate: Command) -> None:
    """What would be right is said."""
    assert "mailgate domain add" in mailgate.fails("domain", "records", "elsewhere.test")


def test_what_is_missing_in_the_dns_is_told(mailgate: Command) -> None:
    """And the exit status says so."""
    with nsd({"example.test": ZONE}) as port:
        with mailgate.config_path.open("a", encoding="utf-8") as config:
            config.write(f'[dns]\nservers = ["127.0.0.1:{port}"]\n')

        def check(*addresses: str) -> tuple[int, dict[str, str]]:
            options = [word for address in addresses for word in ("--address", address)]
            command, environment = mailgate.in_process(
                "domain", "records", "example.test", "--check", "--json", *options
            )
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
            records = json.loads(done.stdout)
            return done.returncode, {f"{record['type']} {record['name']}": record["state"] for record in records}

        status, states = check()
        assert (status, set(states.values())) == (0, {"there"})
        status, states = check("127.0.0.2")
        assert status == 1
        assert {name: state for name, state in states.items() if state != "there"} == {
            "A mx.example.test": "different",
            "PTR 2.0.0.127.in-addr.arpa": "unknown",
        }
