"""`mailgate dkim` on a real database and a name server: a key's life, and what is said on the way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key

from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from tests.support.command import Command, command_for
from tests.support.name_server import NameServer
from tests.support.postgres import drop_database, fresh_database, query

DOMAIN = "example.test"


@pytest.fixture
def zone() -> Zone:
    return Zone()


@pytest.fixture
def mailgate(tmp_path: Path, zone: Zone) -> Iterator[Command]:
    dsn = fresh_database()
    command = command_for(dsn, tmp_path)
    key = tmp_path / "master-key"
    key.write_text("00" * 31 + "01\n")
    key.chmod(0o600)
    with NameServer(zone) as server:
        with command.config_path.open("a") as config:
            config.write(f'[signing]\nmaster_key_file = "{key}"\n[dns]\nservers = ["127.0.0.1:{server.port}"]\n')
        command.ok("domain", "add", DOMAIN)
        yield command
    drop_database(dsn)


def apart(mailgate: Command, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: what asks the DNS needs a reactor, and a process has one."""
    command, environment = mailgate.in_process(*arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def activate(mailgate: Command, *options: str) -> str:
    done = apart(mailgate, "dkim", "activate", DOMAIN, *options)
    assert done.returncode == 0, done
    return done.stdout


def not_activated(mailgate: Command) -> str:
    done = apart(mailgate, "dkim", "activate", DOMAIN)
    assert (done.returncode, done.stdout) == (1, ""), done
    return done.stderr


def examined(mailgate: Command) -> list[dict[str, Any]]:  # Any: what JSON is
    done = apart(mailgate, "dkim", "check", DOMAIN, "--json")
    assert done.returncode == 0, done
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def sealed_keys(mailgate: Command) -> list[bytes]:
    rows = query(mailgate.dsn, "SELECT encode(sealed_key, 'hex') FROM mailgate.dkim_key")
    return [bytes.fromhex(str(text)) for (text,) in rows]


def publish(zone: Zone, records: list[dict[str, str]]) -> None:
    for record in records:
        zone.add(record["name"], RecordType.TXT, record["content"].encode())


def test_a_pair_of_keys_is_made_pending_and_prints_its_records(mailgate: Command) -> None:
    """RFC 1035 section 3.3: a string of TXT has 255 octets at most."""
    lines = mailgate.ok("dkim", "generate", DOMAIN).splitlines()
    assert [line.partition(".")[0].partition("-")[2] for line in lines] == ["rsa", "ed25519"]
    assert all(f'._domainkey.{DOMAIN}. 3600 IN TXT "v=DKIM1; k=' in line for line in lines)
    strings = lines[0].split('"')[1::2]
    assert len(strings) == 2
    assert max(map(len, strings)) == 255
    records = mailgate.json("dkim", "list")
    assert [record["state"] for record in records] == ["pending", "pending"]
    assert "".join(strings) == records[0]["content"]


def test_private_keys_are_not_in_the_database(mailgate: Command) -> None:
    """They are sealed: no row holds a key in any form that a library reads."""
    mailgate.ok("dkim", "generate", DOMAIN)
    sealed = sealed_keys(mailgate)
    assert len({octets[:12] for octets in sealed}) == 2
    for octets in sealed:
        with pytest.raises(ValueError, match=r".+"):
            load_der_private_key(octets[12:], None)


def test_keys_sign_only_once_the_dns_shows_them(mailgate: Command, zone: Zone) -> None:
    """A signature that nobody can verify is worse than none."""
    records = mailgate.json("dkim", "generate", DOMAIN)
    said = not_activated(mailgate)
    assert said.count("missing: publish it") == 2
    assert records[0]["content"] in said.replace("\n", "")
    publish(zone, records)
    assert activate(mailgate).count("signs for example.test now") == 2
    assert {record["state"] for record in mailgate.json("dkim", "list", DOMAIN)} == {"active"}
    assert "no key that waits" in not_activated(mailgate)


def test_of_several_that_wait_one_has_to_be_chosen(mailgate: Command) -> None:
    """The one would retire the other."""
    mailgate.ok("dkim", "generate", DOMAIN, "--selector", "one")
    mailgate.ok("dkim", "generate", DOMAIN, "--selector", "two", "--algorithm", "rsa")
    assert "choose one with --selector" in mailgate.fails("dkim", "activate", DOMAIN, "--force")
    mailgate.ok("dkim", "activate", DOMAIN, "--force", "--selector", "two")
    assert mailgate.json("dkim", "list", DOMAIN)[0]["selector"] == "two"


def test_another_key_in_the_dns_is_told_from_none(mailgate: Command, zone: Zone) -> None:
    """What to do differs."""
    records = mailgate.json("dkim", "generate", DOMAIN, "--algorithm", "ed25519", "--selector", "Mail")
    assert records[0]["name"] == f"mail._domainkey.{DOMAIN}"
    zone.add(records[0]["name"], RecordType.TXT, b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert "another key is published there" in not_activated(mailgate)
    assert "signs for" in activate(mailgate, "--force")


def test_a_rotation_retires_what_signed_and_keeps_its_record_a_week(mailgate: Command, zone: Zone) -> None:
    """RFC 6376 section 3.1: selectors let keys change while mail is under way."""
    publish(zone, mailgate.json("dkim", "generate", DOMAIN, "--selector", "old"))
    activate(mailgate)
    new = mailgate.json("dkim", "rotate", DOMAIN)
    assert {record["algorithm"] for record in new} == {"rsa", "ed25519"}
    assert "wait already" in mailgate.fails("dkim", "rotate", DOMAIN)
    publish(zone, new)
    assert activate(mailgate).count("is retired: keep its record until") == 2
    states = {record["selector"]: record["state"] for record in mailgate.json("dkim", "list", DOMAIN)}
    assert states["old-rsa"] == states["old-ed25519"] == "retired"
    assert len(mailgate.ok("dkim", "records", DOMAIN).splitlines()) == 4
    query(mailgate.dsn, "UPDATE mailgate.dkim_key SET retired_at = now() - interval '8 days' WHERE state = 'retired'")
    assert len(mailgate.ok("dkim", "records", DOMAIN).splitlines()) == 2
    mailgate.ok("dkim", "remove", DOMAIN, "old-rsa")
    active = next(selector for selector, state in states.items() if state == "active")
    assert "mailgate dkim retire" in mailgate.fails("dkim", "remove", DOMAIN, active)
    mailgate.ok("dkim", "retire", DOMAIN, active)
    mailgate.ok("dkim", "remove", DOMAIN, active)


def test_a_probe_passes_with_the_records_that_are_published(mailgate: Command, zone: Zone) -> None:
    """dkimpy judges, with what the DNS says."""
    records = mailgate.json("dkim", "generate", DOMAIN)
    publish(zone, records)
    activate(mailgate)
    assert [(each["published"], each["verifies"]) for each in examined(mailgate)] == [(True, True), (True, True)]


def test_a_probe_fails_where_the_record_is_not_there(mailgate: Command) -> None:
    """And the record that should be is said."""
    records = mailgate.json("dkim", "generate", DOMAIN, "--algorithm", "rsa")
    activate(mailgate, "--force")
    done = apart(mailgate, "dkim", "check", DOMAIN)
    assert done.returncode == 1
    assert "missing: publish it" in done.stdout
    assert f"{records[0]['name']} should be {records[0]['content']}" in done.stderr


def test_a_key_that_waits_does_not_fail_the_check(mailgate: Command, zone: Zone) -> None:
    """It signs nothing."""
    publish(zone, mailgate.json("dkim", "generate", DOMAIN, "--selector", "one"))
    activate(mailgate)
    mailgate.ok("dkim", "rotate", DOMAIN)
    assert len(examined(mailgate)) == 4


def test_cloudflare_gets_fields(mailgate: Command) -> None:
    """Its API takes type, name and content."""
    (record,) = mailgate.json("dkim", "generate", DOMAIN, "--algorithm", "ed25519", "--cloudflare")
    assert (record["type"], record["name"].partition(".")[2]) == ("TXT", f"_domainkey.{DOMAIN}")
    assert record["content"].startswith("v=DKIM1; k=ed25519; p=")


def test_all_keys_change_to_another_master_key(mailgate: Command, tmp_path: Path) -> None:
    """In one transaction, and the keys stay what they are."""
    mailgate.ok("dkim", "generate", DOMAIN)
    records = mailgate.json("dkim", "list", DOMAIN)
    key, old = tmp_path / "master-key", tmp_path / "old-key"
    old.write_text(key.read_text())
    old.chmod(0o600)
    key.write_text("00" * 31 + "02\n")
    assert "was sealed with the master key" in mailgate.fails("dkim", "activate", DOMAIN, "--force")
    assert mailgate.ok("dkim", "reseal", str(old)).startswith("2 keys sealed with the master key ")
    assert mailgate.json("dkim", "list", DOMAIN) == records
    mailgate.ok("dkim", "activate", DOMAIN, "--force")
    assert "no key is sealed with the master key" in mailgate.fails("dkim", "reseal", str(old))
    old.write_text("not a key")
    assert "old-key" in mailgate.fails("dkim", "reseal", str(old))


def test_what_is_wrong_is_said_with_what_would_be_right(mailgate: Command, tmp_path: Path) -> None:
    """Each of them ends with status 1."""
    assert "mailgate domain add" in mailgate.fails("dkim", "generate", "example.org")
    assert "mailgate dkim generate" in mailgate.fails("dkim", "rotate", DOMAIN)
    mailgate.ok("dkim", "generate", f"news.{DOMAIN}", "--selector", "s", "--algorithm", "rsa")
    assert "a selector is one key" in mailgate.fails(
        "dkim", "generate", f"news.{DOMAIN}", "--selector", "s", "--algorithm", "rsa"
    )
    assert "is no selector" in mailgate.run("dkim", "generate", DOMAIN, "--selector", "a b").stderr
    key = tmp_path / "master-key"
    key.write_text("00" * 32)
    assert "was sealed with the master key" in mailgate.fails("dkim", "check", f"news.{DOMAIN}")
    # What no node could open would hold up all mail of the domain.
    assert "was sealed with the master key" in mailgate.fails("dkim", "activate", f"news.{DOMAIN}", "--force")
    key.chmod(0o644)
    assert "chmod 600" in mailgate.fails("dkim", "generate", DOMAIN)
    key.unlink()
    assert "No such file" in mailgate.fails("dkim", "generate", DOMAIN)
    config = mailgate.config_path.read_text().replace(f'master_key_file = "{key}"\n', "")
    mailgate.config_path.write_text(config)
    assert "openssl rand -hex 32" in mailgate.fails("dkim", "generate", DOMAIN)
