"""The configuration files that are shipped: complete, true, and loadable."""

from __future__ import annotations

import re
import shutil
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mailgate.config import USUAL_POLICIES, Config, load_config
from mailgate.config_sending import RouteTable
from mailgate.policy.plugin import providers
from mailgate.toml import ListOf, NamedTables, Reader, Table, entries
from tests.support.certificates import Authority

ETC = Path(__file__).parents[2] / "etc"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

_SECTION = re.compile(r"\[+([a-z_.]+)\]+")
_KEY = re.compile(r"(# |#> |)([a-z0-9_]+) = (.+)")


def documented() -> dict[str, tuple[str, str]]:
    """Each key of mailgate.toml, its mark ("# " for a default, "#> " for an example, "" for a live value), its value.

    Only the first listener and certificate document their keys: listener.smtp is written `listener`.
    """
    found: dict[str, tuple[str, str]] = {}
    section = ""
    for line in (ETC / "mailgate.toml").read_text().splitlines():
        if header := _SECTION.fullmatch(line):
            section = ("listener" if header[1] == "listener.smtp" else header[1]) + "."
        elif key := _KEY.fullmatch(line):
            name = section + key[2]
            assert name not in found or section.startswith("listener"), f"{name} is there twice"
            found.setdefault(name, (key[1], key[3]))
    return found


def keys_of(kind: type[Any], prefix: str = "") -> dict[str, Any]:  # Any: a dataclass, an Entry
    """Each key that there is, below sections too, and its Entry."""
    found: dict[str, Any] = {}
    for entry in entries(kind):
        if isinstance(entry.kind, Table | NamedTables):
            found |= keys_of(entry.kind.type, f"{prefix}{entry.key}.")
            if isinstance(entry.kind, NamedTables):
                del found[f"{prefix}{entry.key}.name"]  # which stands in the header
        else:
            found[prefix + entry.key] = entry
    return found


KEYS = keys_of(Config)
del KEYS["policy"]  # whose keys are those of the policies that are installed
del KEYS["route"]  # of which there is none in the file


def test_the_certificate_table_is_known_to_this_test() -> None:
    """Its keys are read by a kind of their own."""
    assert isinstance(KEYS["tls.certificate"].kind, ListOf)


@pytest.mark.parametrize("key", sorted(set(KEYS) - {"tls.certificate"}))
def test_every_key_is_documented(key: str) -> None:
    """An operator finds all there is in one file."""
    assert key in documented()


def test_nothing_else_is_documented() -> None:
    """A key that is gone leaves the file."""
    known = {f"tls.certificate.{name}" for name in ("certificate", "key", "names")}
    assert {key for key in documented() if not re.match(r"listener\.(smtps|submission)\.", key)} == (
        set(KEYS) - {"tls.certificate"} | known
    )


@pytest.mark.parametrize("key", sorted(key for key, (mark, _) in documented().items() if mark == "# "))
def test_the_default_that_is_stated_is_the_real_one(key: str) -> None:
    """What stands behind "# " is what happens without it."""
    value = tomllib.loads(f"value = {documented()[key][1]}")["value"]
    entry = KEYS[key]
    assert not entry.has_no_default
    reader = Reader(Path("/etc/mailgate/mailgate.toml"), opens_files=False, now=NOW)
    assert entry.kind.read(value, key, reader) == entry.default()
    assert reader.faults == []


@pytest.mark.parametrize("key", sorted(key for key, (mark, _) in documented().items() if mark == "#> "))
def test_an_example_has_no_default_and_is_taken(key: str) -> None:
    """What stands behind "#> " works as it is."""
    if key != "tls.certificate.names":
        entry = KEYS[key]
        assert entry.derived is not None or entry.default() in (None, ())
        value = tomllib.loads(f"value = {documented()[key][1]}")["value"]
        reader = Reader(Path("/etc/mailgate/mailgate.toml"), opens_files=False, now=NOW)
        entry.kind.read(value, key, reader)
        assert reader.faults == []


@pytest.mark.parametrize("key", sorted(key for key, entry in KEYS.items() if not entry.has_no_default))
def test_a_key_with_a_default_states_it(key: str) -> None:
    """Or gives an example where the default is none."""
    if key in ("database.dsn", "tls.certificate", "listener.port"):  # live, because there has to be one
        return
    assert documented()[key][0] == ("# " if KEYS[key].default() is not None and key != "listener.endpoints" else "#> ")


def test_every_key_with_a_unit_has_it_in_its_name() -> None:
    """Seconds, octets, days and bits can't be mistaken."""
    for key, entry in KEYS.items():
        if entry.kind.__class__.__name__ == "Number":
            assert key.endswith(("seconds", "per_second"))
        if getattr(entry.kind, "what", "") == "a number of octets":
            assert key.endswith("octets")


def test_the_documented_file_loads(tmp_path: Path) -> None:
    """Given the certificate that it names."""
    shutil.copy(ETC / "mailgate.toml", tmp_path)
    (tmp_path / "tls").mkdir()
    Authority(tmp_path / "tls", NOW).issue("mail.example.test", names=("mail.example.test",))
    config = load_config(tmp_path / "mailgate.toml", now=NOW)
    assert [(listener.name, listener.port, listener.tls) for listener in config.listeners] == [
        ("smtp", 25, "starttls"),
        ("smtps", 465, "implicit"),
        ("submission", 587, "starttls"),
    ]


def test_the_documented_file_loads_with_every_default_spelled_out(tmp_path: Path) -> None:
    """Taking out the "# " changes nothing."""
    text = (ETC / "mailgate.toml").read_text()
    (tmp_path / "tls").mkdir()
    Authority(tmp_path / "tls", NOW).issue("mail.example.test", names=("mail.example.test",))
    loaded = []
    for name, content in (("mailgate.toml", text), ("mailgate.toml", re.sub(r"(?m)^# (?=[a-z0-9_]+ = )", "", text))):
        (tmp_path / name).write_text(content)
        loaded.append(load_config(tmp_path / name, now=NOW))
    assert loaded[0] == loaded[1]


POLICIES = (Path(__file__).parents[2] / "docs" / "policies.md").read_text("utf-8")
_ROW = re.compile(r"\| `([a-z_]+)` \| (?:`(.+?)`|.*?) \| (.+) \|")


def options_documented(policy: str) -> dict[str, tuple[str, str]]:
    """The rows of the table below a built-in policy's heading: key, default and what it means."""
    section = POLICIES.partition(f"\n### {policy}\n")[2].partition("\n##")[0]
    return {row[1]: (row[2], row[3]) for line in section.splitlines() if (row := _ROW.fullmatch(line))}


@pytest.mark.parametrize("policy", USUAL_POLICIES)
def test_every_option_of_a_built_in_policy_is_in_the_page_on_policies(policy: str) -> None:
    """With its real default, and none that is gone."""
    options = {entry.key: entry for entry in entries(providers()[policy].options)}
    rows = options_documented(policy)
    assert list(rows) == list(options)
    reader = Reader(Path("/etc/mailgate/mailgate.toml"), opens_files=False, now=NOW)
    for key, (default, meaning) in rows.items():
        value = tomllib.loads(f"value = {default}")["value"]
        assert options[key].kind.read(value, key, reader) == options[key].default()
        assert meaning
    assert reader.faults == []


def test_every_key_of_any_policy_is_documented() -> None:
    """In the configuration file, and in the page on policies."""
    common = ("use", "name", "listeners", "domains")
    rows = dict.fromkeys(row[1] for row in map(_ROW.fullmatch, POLICIES.partition("\n### ")[0].splitlines()) if row)
    assert tuple(rows) == common
    example = (ETC / "mailgate.toml").read_text().partition("#   [[policy]]\n")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"(?m)^#   ([a-z]+) = ", example)) == common


def test_every_key_of_a_route_is_documented() -> None:
    """In the comment that shows one."""
    example = (ETC / "mailgate.toml").read_text().partition("#   [[route]]\n")[2]
    shown = re.findall(r"(?m)^#   ([a-z_]+) = ", example)
    assert shown == [entry.key for entry in entries(RouteTable)]


def test_the_quickstart_needs_nothing_but_loopback() -> None:
    """`make run` on a fresh machine, without a network, DNS, root or IPv6."""
    config = load_config(ETC / "quickstart.toml")
    assert [(listener.name, listener.port, listener.tls) for listener in config.listeners] == [
        ("smtp", 2525, "starttls"),
        ("smtps", 4650, "implicit"),
    ]
    assert {address for listener in config.listeners for address in listener.addresses} == {"127.0.0.1"}
    assert config.database.embedded
    assert config.tls.self_signed
    assert config.dns.spare_loopback
    assert config.data_folder == ETC.parent / "var"
    assert config.bootstrap.mailboxes == ("alice@example.test",)
