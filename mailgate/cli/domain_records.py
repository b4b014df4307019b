"""`mailgate domain records`: what the DNS has to say of a domain that receives and sends here.

The records follow from the domain, the host, its addresses and the DKIM keys; that part is pure. They are printed as a
zone file has them, or field by field as the forms of Cloudflare and other hosts take them, or compared with the DNS.

Standards: RFC 1035 section 5.1 (zone files), RFC 5321 section 5.1 (MX), RFC 7208 (SPF; section 10.1.3 for the name in
HELO), RFC 6376 section 3.6.1 (DKIM), RFC 9989 (DMARC), RFC 8460 section 3 (TLSRPT).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from mailgate.auth.private_key import record_text
from mailgate.cli.address import domain_argument, readable_domain
from mailgate.cli.database import Failure, Invocation, pass_invocation
from mailgate.cli.domain import id_of_domain
from mailgate.cli.lookup import answers_to, text_of
from mailgate.cli.output import Column, json_option, print_list, print_note
from mailgate.dns.answer import Answer, Outcome, Question, RecordType

_STRING_OCTETS = 255  # RFC 1035 section 3.3: of one character-string
_TTL_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """One record that ought to be there."""

    name: str  # A-form, without the final dot
    type: RecordType
    content: str  # TXT unquoted; names without the final dot
    purpose: str
    priority: int | None = None  # of MX

    @property
    def question(self) -> Question:
        """What to ask for it."""
        return Question(self.name, self.type)

    def zone_line(self) -> str:
        """The record as a zone file has it, its name absolute."""
        match self.type:
            case RecordType.TXT:
                pieces = [
                    self.content[start : start + _STRING_OCTETS]
                    for start in range(0, len(self.content), _STRING_OCTETS)
                ]
                data = " ".join(f'"{piece}"' for piece in pieces)
            case RecordType.MX:
                data = f"{self.priority} {self.content}."
            case RecordType.PTR:
                data = f"{self.content}."
            case _:
                data = self.content
        return f"{self.name}. {_TTL_SECONDS} IN {self.type.value} {data}"


@dataclass(frozen=True, slots=True)
class FormFields:
    """A record as a form for records takes it: the name without its zone, the content without quotes."""

    wanted: DomainRecord
    zone: str

    @property
    def name(self) -> str:
        """What stands in the form's field for the name."""
        name = self.wanted.name
        return "@" if name == self.zone else name.removesuffix(f".{self.zone}")

    @property
    def proxy(self) -> str:
        """What stands in Cloudflare's field for proxying, where there is one."""
        return "DNS only" if self.wanted.type in (RecordType.A, RecordType.AAAA) else ""

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        priority = "" if self.wanted.priority is None else str(self.wanted.priority)
        return (self.wanted.type.value, self.name, priority, self.proxy, self.wanted.content)

    def record(self) -> dict[str, Any]:
        """What JSON says of it: as Cloudflare's API takes it."""
        found: dict[str, Any] = {"type": self.wanted.type.value, "name": self.wanted.name}
        if self.wanted.priority is not None:
            found["priority"] = self.wanted.priority
        found["content"] = self.wanted.content
        if self.proxy:
            found["proxied"] = False
        return found | {"ttl": 1, "comment": self.wanted.purpose}


@dataclass(frozen=True, slots=True)
class _Checked:
    """A record and what the DNS has in its place."""

    wanted: DomainRecord
    state: str  # "there", "different", "missing", "unknown"
    found: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """What a table shows of it."""
        shown = "; ".join(self.found) if self.state != "there" else ""
        return (self.state, self.wanted.type.value, self.wanted.name, shown)

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        wanted = self.wanted
        return {
            "state": self.state,
            "type": wanted.type.value,
            "name": wanted.name,
            "wanted": wanted.content,
            "found": list(self.found),
        }


def key_record(domain: str, selector: str, algorithm: str, public_key: str) -> DomainRecord:
    """The record of a DKIM key; `public_key` is its p= value."""
    content = record_text(algorithm, public_key)
    return DomainRecord(f"{selector}._domainkey.{domain}", RecordType.TXT, content, "DKIM: a key")


def records_for(
    name: str, host: str, addresses: Sequence[str], keys: Sequence[tuple[str, str, str]]
) -> tuple[DomainRecord, ...]:
    """All records for a domain that `host` serves; `keys` are selectors, algorithms and p= values."""
    found = []
    for address in addresses:
        kind = RecordType.A if ipaddress.ip_address(address).version == 4 else RecordType.AAAA
        found.append(DomainRecord(host, kind, address, "the machine"))
        pointer = ipaddress.ip_address(address).reverse_pointer
        found.append(DomainRecord(pointer, RecordType.PTR, host, "who provides the address sets this"))
    found += [
        DomainRecord(name, RecordType.MX, host, "who receives mail for the domain", 10),
        DomainRecord(name, RecordType.TXT, "v=spf1 mx -all", "SPF: who sends mail for the domain"),
        DomainRecord(host, RecordType.TXT, "v=spf1 a -all", "SPF: who uses the machine's name in HELO"),
    ]
    found += [key_record(name, selector, algorithm, public_key) for selector, algorithm, public_key in keys]
    found += [
        DomainRecord(
            f"_dmarc.{name}",
            RecordType.TXT,
            f"v=DMARC1; p=none; rua=mailto:postmaster@{name}",
            "DMARC: what to do with forgeries, and where to report",
        ),
        DomainRecord(
            f"_smtp._tls.{name}",
            RecordType.TXT,
            f"v=TLSRPTv1; rua=mailto:postmaster@{name}",
            "TLS reports: where to",
        ),
    ]
    return tuple(dict.fromkeys(found))


def compared(wanted: DomainRecord, answer: Answer) -> _Checked:
    """The record beside what the DNS has: "there" where it serves its purpose, whatever it says in detail."""
    texts = tuple(text_of(record) for record in answer.records)
    if answer.outcome is Outcome.FAILURE:
        return _Checked(wanted, "unknown", (answer.detail or answer.rcode,))
    if wanted.type is not RecordType.TXT:
        is_there = wanted.content in (text.rpartition(" ")[2] for text in texts)
        return _Checked(wanted, "there" if is_there else "different" if texts else "missing", texts)
    version = wanted.content.partition(" ")[0].rstrip(";")
    alike = tuple(text for text in texts if text.lower().startswith(version.lower()))
    is_there = wanted.content in alike if version == "v=DKIM1" else len(alike) == 1
    return _Checked(wanted, "there" if is_there else "different" if alike else "missing", alike)


def _addresses_option(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[str]:
    try:
        return [str(ipaddress.ip_address(value)) for value in values]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("records")
@click.argument("name", metavar="DOMAIN", type=domain_argument)
@click.option(
    "--address",
    "addresses",
    metavar="ADDRESS",
    multiple=True,
    callback=_addresses_option,
    help="A public address of this machine; may be given twice.  [default: outbound.source_addresses]",
)
@click.option("--cloudflare", is_flag=True, help="Print the fields of Cloudflare's form; with --json, of its API.")
@click.option("--check", is_flag=True, help="Look each record up, and say which are missing or different.")
@json_option
@pass_invocation
def records(
    invocation: Invocation, name: str, addresses: list[str], cloudflare: bool, check: bool, as_json: bool
) -> None:
    """Print the DNS records that DOMAIN needs to receive and to send with this mailgate.

    The SPF, DMARC and TLSRPT records are the usual beginnings: to --check, what you have made of them since is as good,
    as long as there is exactly one of each. `mailgate lookup spf` shows what a record allows.
    """
    config = invocation.config()
    with invocation.database() as database:
        id_of_domain(database, name)
        keys = [(row[0], row[1], row[2]) for row in database.rows("published_dkim_keys", domain=name)]
    addresses = addresses or list(config.outbound.source_addresses)
    wanted = records_for(name, config.hostname, addresses, keys)
    if not addresses:
        print_note("name the public addresses of this machine with --address to see their records too")
    if not keys:
        print_note(f"there are no DKIM keys yet: `mailgate dkim generate {readable_domain(name)}` makes them")
    if check:
        answers = answers_to(config, [record.question for record in wanted])
        found = [compared(record, answer) for record, answer in zip(wanted, answers, strict=True)]
        columns = (Column("STATE"), Column("TYPE"), Column("NAME"), Column("FOUND", is_flexible=True))
        print_list(found, columns, as_json=as_json, note="")
        absent = [each for each in found if each.state != "there"]
        if absent:
            raise Failure(f"{len(absent)} of {len(found)} records are not as they should be")
    elif cloudflare or as_json:
        titles = ("TYPE", "NAME", "PRIORITY", "PROXY", "CONTENT")
        fields = [FormFields(record, name) for record in wanted if record.type is not RecordType.PTR]
        print_list(fields, [Column(title) for title in titles], as_json=as_json, note="")
    else:
        for record in wanted:
            click.echo(f"; {record.purpose}\n{record.zone_line()}")
