"""`mailgate dkim`: the keys that mail of a domain is signed with, from making them to taking their records away.

    generate, rotate   a key is made and waits: pending
    records            people publish it
    activate           the DNS shows it, so it signs; the key of its algorithm that has signed until now is retired
    check              a probe is signed with each key and verified by dkimpy, with what the DNS says
    remove             a week later nothing that it signed is under way: key and record can go

Private keys leave the database for nobody; they are sealed with the master key before they get there.

Standards: RFC 6376 sections 3.1 (selectors) and 3.6 (records), RFC 8463 (Ed25519), RFC 6376 appendix C (rotation).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mailgate.auth.private_key import KeyType, PrivateKey, generate_key
from mailgate.cli.address import domain_argument, readable_domain
from mailgate.cli.database import Database, Failure, Invocation, pass_invocation
from mailgate.cli.domain import optional_domain
from mailgate.cli.domain_records import DomainRecord, FormFields, key_record
from mailgate.cli.lookup import answers_to
from mailgate.cli.output import Column, count, json_option, local_time, print_list, print_note
from mailgate.dns.answer import Answer, Outcome
from mailgate.sealing import MasterKey, UnusableKey, find_master_key, read_master_key

if TYPE_CHECKING:
    from mailgate.config import Config

# Mail that a retired key has signed is read this long: queues give up sooner, and mail is read once it is there.
RECORD_KEPT = timedelta(days=7)

_ALGORITHMS = get_args(KeyType)


@dataclass(frozen=True, slots=True)
class Key:
    """A row of dkim_key without what is sealed."""

    domain: str
    selector: str
    algorithm: KeyType
    state: str
    public_key: str
    created_at: datetime
    activated_at: datetime | None
    retired_at: datetime | None

    @property
    def dns(self) -> DomainRecord:
        """The record that belongs to it."""
        return key_record(self.domain, self.selector, self.algorithm, self.public_key)

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        return (readable_domain(self.domain), self.selector, self.algorithm, self.state, self._since())

    def _since(self) -> str:
        match self.state:
            case "pending":
                return f"made {local_time(self.created_at)}; not signing yet"
            case "active":
                return f"signs since {local_time(self.activated_at or self.created_at)}"
        retired = self.retired_at or self.created_at
        return f"retired {local_time(retired)}; keep its record until {local_time(retired + RECORD_KEPT)}"

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            "domain": readable_domain(self.domain),
            "selector": self.selector,
            "algorithm": self.algorithm,
            "state": self.state,
            "created_at": self.created_at,
            "activated_at": self.activated_at,
            "retired_at": self.retired_at,
            "keep_record_until": None if self.retired_at is None else self.retired_at + RECORD_KEPT,
            "name": self.dns.name,
            "type": "TXT",
            "content": self.dns.content,
        }


@dataclass(frozen=True, slots=True)
class Examined:
    """A key, and what came of looking for it in the DNS and of a probe that it signed."""

    key: Key
    problem: str  # of its record; "" where the DNS has it
    verifies: bool | None = None  # what dkimpy says of the probe; None where none was made

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        probe = {True: "passes", False: "fails", None: ""}[self.verifies]
        return (self.key.selector, self.key.algorithm, self.key.state, self.problem or "published", probe)

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        return {
            **self.key.record(),
            "published": not self.problem,
            "problem": self.problem,
            "verifies": self.verifies,
        }


def record_problem(key: Key, answer: Answer) -> str:
    """What to do before others can verify with that key, given what the DNS has at its name; "" where nothing."""
    if answer.outcome is Outcome.FAILURE:
        return f"can't be looked up now: {answer.detail or answer.rcode}"
    if answer.outcome is not Outcome.ANSWER:
        return "missing: publish it"
    records = [bytes(each) for each in answer.records if isinstance(each, bytes)]
    fitting = [each for each in records if f"p={key.public_key}" in "".join(each.decode("utf-8", "replace").split())]
    if not fitting:
        return "another key is published there: replace it"
    if len(records) > 1:
        return "several records are published there: leave this one alone (RFC 6376 section 3.6.2.2)"
    return ""


def probe(key: PrivateKey, answer: Answer) -> bool:
    """Whether a message signed with that key verifies with the record in that answer: dkimpy is the judge."""
    # Imported here: it takes a while, and other commands need none of it.
    import dkim as dkimpy

    from mailgate.auth.canonical import body_hashes
    from mailgate.auth.signer import BODY_FORM, sign
    from mailgate.message import MessageContent

    message = (
        f"From: probe@{key.domain}\r\nSubject: A probe  of the key\r\n\r\nA body,\t and  its blanks. \r\n\r\n".encode()
    )
    content = MessageContent([message], len(message), b"")
    fields = sign(content.header(), body_hashes(content, [BODY_FORM]), (key,), time.time())
    records = [each for each in answer.records if isinstance(each, bytes)]
    try:
        return bool(dkimpy.verify(fields + message, dnsfunc=lambda _name, timeout=5: records[0] if records else None))
    except dkimpy.DKIMException:
        return False


# ---------------------------------------------------------------- database


def _keys(database: Database, domain: str | None = None) -> list[Key]:
    return [Key(*row) for row in database.rows("list_dkim_keys", domain=domain)]


def _keys_of(database: Database, domain: str) -> list[Key]:
    """@raises Failure: it has none."""
    found = _keys(database, domain)
    if not found:
        shown = readable_domain(domain)
        raise Failure(f"{shown} has no keys; make some with `mailgate dkim generate {shown}`")
    return found


def _require_ours(database: Database, domain: str) -> None:
    labels = domain.split(".")
    names = [".".join(labels[start:]) for start in range(len(labels))]
    if not any(database.row("find_domain", name=name) for name in names):
        shown = readable_domain(domain)
        raise Failure(f"{shown} is not one of our domains, nor below one; add it with `mailgate domain add {shown}`")


def _master_key(config: Config) -> MasterKey:
    """@raises Failure: there is none, or it can't be used."""
    made_in = config.data_folder if config.database.embedded else None
    try:
        found = find_master_key(config.signing.master_key_file, os.environ, made_in=made_in)
    except UnusableKey as error:
        raise Failure(str(error)) from error
    if found is None:
        raise Failure(
            "there is no master key to seal keys with: name a file in signing.master_key_file, or give the service a"
            " credential (docs/sending.md); `openssl rand -hex 32` makes one"
        )
    return found


def _opened(database: Database, master_key: MasterKey, key: Key) -> PrivateKey:
    # Imported here: it brings Twisted.
    from mailgate.storage.signing_keys import open_key

    row = database.row("find_sealed_dkim_key", domain=key.domain, selector=key.selector)
    if row is None:
        raise Failure(f"{key.dns.name} has gone meanwhile")
    try:
        return open_key(master_key, key.domain, key.selector, bytes(row[0]), row[1])
    except UnusableKey as error:
        raise Failure(str(error)) from error


def _free_selector(taken: set[str], base: str) -> str:
    selector, number = base, 1
    while selector in taken:
        number += 1
        selector = f"{base}-{number}"
    return selector


def _make(
    database: Database, config: Config, domain: str, algorithms: Sequence[KeyType], selector: str | None
) -> list[Key]:
    """New keys, pending. @raises Failure: a selector is taken, or there is no master key."""
    # Imported here: it brings Twisted.
    from mailgate.storage.signing_keys import purpose_of

    master_key = _master_key(config)
    taken = {key.selector for key in _keys(database, domain)}
    made = []
    for algorithm in algorithms:
        if selector is None:
            name = _free_selector(taken, f"{datetime.now(UTC):%Y%m%d}-{algorithm}")
        else:
            name = selector if len(algorithms) == 1 else f"{selector}-{algorithm}"
        if name in taken:
            raise Failure(
                f"{readable_domain(domain)} has a key with the selector {name} already; a selector is one key"
            )
        key = generate_key(domain, name, algorithm)
        made.append((key, master_key.seal(key.octets, purpose_of(domain, name))))
    with database.transaction():
        for key, sealed in made:
            database.run(
                "add_dkim_key",
                domain=domain,
                selector=key.selector,
                algorithm=key.type,
                sealed_key=sealed,
                master_key_id=master_key.id,
                public_key=key.public_text,
            )
    names = {key.selector for key, _ in made}
    return [key for key in _keys(database, domain) if key.selector in names]


def _print_records(keys: Sequence[Key], domain: str, *, cloudflare: bool, as_json: bool) -> None:
    if as_json and not cloudflare:
        print_list(keys, (), as_json=True, note="")
    elif cloudflare:
        columns = [Column(title) for title in ("TYPE", "NAME", "PRIORITY", "PROXY", "CONTENT")]
        print_list([FormFields(key.dns, domain) for key in keys], columns, as_json=as_json, note="")
    else:
        for key in keys:
            click.echo(key.dns.zone_line())


def _say_what_next(domain: str) -> None:
    print_note(f"publish this in the DNS, then `mailgate dkim activate {readable_domain(domain)}`")


# ---------------------------------------------------------------- DNS


def _answers(config: Config, keys: Sequence[Key]) -> list[Answer]:
    return answers_to(config, [key.dns.question for key in keys])


# ---------------------------------------------------------------- commands


def _selector_argument(value: str) -> str:
    """The selector that was typed.

    @raises click.BadParameter: it is none.
    """
    from mailgate.auth.tag_list import MalformedTags, name_value

    try:
        return name_value(value.encode())
    except MalformedTags:
        raise click.BadParameter(f"{value!r} is no selector: letters, digits, hyphens and dots") from None


cloudflare_option = click.option(
    "--cloudflare", is_flag=True, help="Print the fields of Cloudflare's form; with --json, of its API."
)


@click.group()
def dkim() -> None:
    """The keys that mail of our domains is signed with."""


@dkim.command()
@click.argument("domain", metavar="DOMAIN", type=domain_argument)
@click.option("--selector", type=_selector_argument, help="The key's name.  [default: the date and the algorithm]")
@click.option(
    "--algorithm", type=click.Choice([*_ALGORITHMS, "both"]), default="both", show_default=True, help="Of which kind."
)
@cloudflare_option
@json_option
@pass_invocation
def generate(
    invocation: Invocation, domain: str, selector: str | None, algorithm: str, cloudflare: bool, as_json: bool
) -> None:
    """Make keys for DOMAIN, and print the DNS records to publish. They sign once they are activated."""
    algorithms: tuple[KeyType, ...] = tuple(each for each in _ALGORITHMS if algorithm in (each, "both"))
    with invocation.database() as database:
        _require_ours(database, domain)
        made = _make(database, invocation.config(), domain, algorithms, selector)
    _print_records(made, domain, cloudflare=cloudflare, as_json=as_json)
    _say_what_next(domain)


@dkim.command()
@click.argument("domain", metavar="DOMAIN", type=domain_argument)
@cloudflare_option
@json_option
@pass_invocation
def rotate(invocation: Invocation, domain: str, cloudflare: bool, as_json: bool) -> None:
    """Make a new key for each that signs for DOMAIN now, and print the DNS records to publish.

    The old ones sign until the new ones are activated, and their records stay for a week after that.
    """
    shown = readable_domain(domain)
    with invocation.database() as database:
        keys = _keys_of(database, domain)
        waiting = [key.selector for key in keys if key.state == "pending"]
        if waiting:
            raise Failure(
                f"{shown} has keys that wait already: {', '.join(waiting)}; `mailgate dkim activate {shown}` takes them"
                f" into use, `mailgate dkim remove {shown} SELECTOR` drops one"
            )
        used = {key.algorithm for key in keys if key.state == "active"}
        if not used:
            raise Failure(f"{shown} has no key that signs; make some with `mailgate dkim generate {shown}`")
        algorithms = [each for each in _ALGORITHMS if each in used]
        made = _make(database, invocation.config(), domain, algorithms, None)
    _print_records(made, domain, cloudflare=cloudflare, as_json=as_json)
    _say_what_next(domain)


@dkim.command("list")
@optional_domain
@json_option
@pass_invocation
def list_(invocation: Invocation, domain: str | None, as_json: bool) -> None:
    """Show the keys of DOMAIN, or of all domains."""
    with invocation.database() as database:
        keys = _keys(database, domain)
    columns = (Column("DOMAIN"), Column("SELECTOR"), Column("ALGORITHM"), Column("STATE"), Column("SINCE"))
    print_list(keys, columns, as_json=as_json, note="no keys yet; make some with `mailgate dkim generate DOMAIN`")


@dkim.command()
@click.argument("domain", metavar="DOMAIN", type=domain_argument)
@cloudflare_option
@json_option
@pass_invocation
def records(invocation: Invocation, domain: str, cloudflare: bool, as_json: bool) -> None:
    """Print the DNS records of DOMAIN's keys: those that sign, those that wait, and those that signed lately."""
    with invocation.database() as database:
        keys = _keys_of(database, domain)
    oldest = datetime.now(UTC) - RECORD_KEPT
    kept = [key for key in keys if key.retired_at is None or key.retired_at > oldest]
    _print_records(kept, domain, cloudflare=cloudflare, as_json=as_json)


@dkim.command()
@click.argument("domain", metavar="DOMAIN", type=domain_argument)
@click.option("--selector", type=_selector_argument, help="Only this key.  [default: all that wait]")
@click.option("--force", is_flag=True, help="Whatever the DNS shows.")
@pass_invocation
def activate(invocation: Invocation, domain: str, selector: str | None, force: bool) -> None:
    """Sign with the keys of DOMAIN that wait, once the DNS shows their records.

    A key that has signed until now by the same algorithm is retired. Nodes that run know at once.
    """
    shown = readable_domain(domain)
    with invocation.database() as database:
        waiting = [key for key in _keys_of(database, domain) if key.state != "active"]
        if selector is None:
            chosen = [key for key in waiting if key.state == "pending"]
        else:
            chosen = [key for key in waiting if key.selector == selector]
        if not chosen:
            wanted = "no key that waits" if selector is None else f"no key {selector} that does not sign already"
            raise Failure(f"{shown} has {wanted}; see `mailgate dkim list {shown}`")
        if len({key.algorithm for key in chosen}) < len(chosen):
            names = ", ".join(key.selector for key in chosen)
            raise Failure(f"{shown} has several keys of one algorithm that wait, {names}: choose one with --selector")
        config = invocation.config()
        master_key = _master_key(config)
        for key in chosen:
            _opened(database, master_key, key)  # what no node could open must not be what signs
        if not force:
            answers = _answers(config, chosen)
            problems = [
                f"{key.dns.name}: {problem}; it should be {key.dns.content}"
                for key, answer in zip(chosen, answers, strict=True)
                if (problem := record_problem(key, answer))
            ]
            if problems:
                raise Failure(
                    "\n".join(["not activated: nobody could verify (--force does it all the same)", *problems])
                )
        retired: list[str] = []
        with database.transaction():
            for key in chosen:
                rows = database.rows("activate_dkim_key", domain=domain, selector=key.selector, algorithm=key.algorithm)
                retired += [name for (name,) in rows]
    for key in chosen:
        click.echo(f"{key.selector} signs for {shown} now")
    for name in retired:
        click.echo(f"{name} is retired: keep its record until {local_time(datetime.now(UTC) + RECORD_KEPT)}")


@dkim.command()
@click.argument("domain", metavar="DOMAIN", type=domain_argument)
@click.argument("selector", metavar="SELECTOR", type=_selector_argument)
@pass_invocation
def retire(invocation: Invocation, domain: str, selector: str) -> None:
    """Sign with the key SELECTOR of DOMAIN no longer. Its record should stay for a week."""
    with invocation.database() as database:
        _keys_of(database, domain)
        if not database.run("retire_dkim_key", domain=domain, selector=selector):
            raise Failure(f"{readable_domain(domain)} has no key {selector} that signs")
    click.echo(f"{selector} is retired: keep its record until {local_time(datetime.now(UTC) + RECORD_KEPT)}")


@dkim.command()
@click.argument("domain", metavar="DOMAIN", type=domain_argument)
@click.argument("selector", metavar="SELECTOR", type=_selector_argument)
@pass_invocation
def remove(invocation: Invocation, domain: str, selector: str) -> None:
    """Drop the key SELECTOR of DOMAIN for good. One that signs has to be retired before."""
    shown = readable_domain(domain)
    with invocation.database() as database:
        keys = {key.selector: key for key in _keys_of(database, domain)}
        key = keys.get(selector)
        if key is None:
            raise Failure(f"{shown} has no key {selector}; it has {', '.join(keys)}")
        if not database.run("remove_dkim_key", domain=domain, selector=selector):
            raise Failure(f"{selector} signs for {shown}: `mailgate dkim retire {shown} {selector}` ends that first")
    click.echo(f"removed {selector}")
    if key.retired_at is not None and key.retired_at + RECORD_KEPT > datetime.now(UTC):
        print_note(f"keep its record until {local_time(key.retired_at + RECORD_KEPT)} all the same")


@dkim.command()
@click.argument("old_file", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@pass_invocation
def reseal(invocation: Invocation, old_file: Path) -> None:
    """Encrypt all keys with the master key that config names now; FILE holds the one before.

    Give every node the new master key first, and restart them right behind this: until then they can't open the keys,
    and mail of these domains hears 451.
    """
    # Imported here: it brings Twisted.
    from mailgate.storage.signing_keys import open_key, purpose_of

    new = _master_key(invocation.config())
    try:
        old = read_master_key(old_file)
        with invocation.database() as database, database.transaction():
            rows = database.rows("lock_sealed_dkim_keys", master_key_id=old.id)
            for domain, selector, sealed_key in rows:
                key = open_key(old, domain, selector, bytes(sealed_key), old.id)
                sealed = new.seal(key.octets, purpose_of(domain, selector))
                database.run(
                    "reseal_dkim_key", domain=domain, selector=selector, sealed_key=sealed, master_key_id=new.id
                )
    except UnusableKey as error:
        raise Failure(str(error)) from error
    if not rows:
        raise Failure(f"no key is sealed with the master key {old.id} of {old_file}")
    click.echo(f"{count(len(rows), 'key')} sealed with the master key {new.id} now: restart every node")


@dkim.command()
@click.argument("domain", metavar="DOMAIN", type=domain_argument)
@json_option
@pass_invocation
def check(invocation: Invocation, domain: str, as_json: bool) -> None:
    """Sign a probe with each key of DOMAIN and verify it as others would, with what the DNS says.

    Fails where a key that signs is not in the DNS, or its probe does not verify.
    """
    config = invocation.config()
    with invocation.database() as database:
        keys = [key for key in _keys_of(database, domain) if key.state != "retired"]
        master_key = _master_key(config)
        opened = [_opened(database, master_key, key) for key in keys]
    examined = [
        Examined(key, record_problem(key, answer), probe(private, answer))
        for key, private, answer in zip(keys, opened, _answers(config, keys), strict=True)
    ]
    columns = (Column("SELECTOR"), Column("ALGORITHM"), Column("STATE"), Column("RECORD"), Column("PROBE"))
    print_list(examined, columns, as_json=as_json, note="every key is retired")
    for each in examined:
        if each.problem:
            print_note(f"{each.key.dns.name} should be {each.key.dns.content}")
    bad = [each.key.selector for each in examined if each.key.state == "active" and not each.verifies]
    if bad:
        raise Failure(f"what {', '.join(bad)} signs for {readable_domain(domain)} does not verify")
