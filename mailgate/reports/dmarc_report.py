"""DMARC aggregate reports: the values, and the XML that they are written in and read from.

Pure. Writing follows the schema of RFC 9990 to the letter. Reading takes what is sent in practice: the older schema of
RFC 7489, with or without its namespaces, elements in any order, elements that nobody knows. What it needs and does not
find makes a report unreadable; nothing is guessed.

A report from a stranger is read as a stream, by a parser that knows neither document types nor entities, with bounds
for its depth, its rows and each text: its cost is what its octets are, and its result is bounded.

Standards: RFC 9990 section 3.1 and appendix A (the schema), RFC 9990 section 3.5 (file name and subject), RFC 7489
appendix C.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal
from xml.etree.ElementTree import ParseError
from xml.sax.saxutils import escape

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMESPACE = "urn:ietf:params:xml:ns:dmarc-2.0"
MAX_ROWS = 50_000
_MAX_DEPTH = 12
_MAX_TEXT_CHARS = 1000
_MAX_RESULTS = 32  # of a row
_MAX_TEXTS = 64  # of what may be there once, of a row or of the rest

Disposition = Literal["none", "pass", "quarantine", "reject"]


class UnreadableReport(Exception):
    """What was to be a report is none, or breaks a bound. The message is for people."""


@dataclass(frozen=True, slots=True)
class PublishedPolicy:
    """policy_published: None or "" where nothing is told."""

    domain: str
    p: str = ""
    sp: str = ""
    np: str = ""
    adkim: str = ""
    aspf: str = ""
    fo: str = ""
    testing: str = ""  # "y" or "n"
    discovery_method: str = ""  # "treewalk" or "psl"


@dataclass(frozen=True, slots=True)
class DkimAuthResult:
    """One signature: auth_results/dkim."""

    domain: str
    selector: str
    result: str
    human_result: str = ""


@dataclass(frozen=True, slots=True)
class SpfAuthResult:
    """auth_results/spf."""

    domain: str
    result: str
    scope: str = "mfrom"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A record: how many messages of one source fared alike."""

    source: str  # an IP address
    messages: int
    disposition: str
    dkim: str  # "pass" or "fail", aligned
    spf: str
    header_from: str
    envelope_from: str = ""
    envelope_to: str = ""
    reasons: tuple[tuple[str, str], ...] = ()  # type and comment
    dkim_results: tuple[DkimAuthResult, ...] = ()
    spf_results: tuple[SpfAuthResult, ...] = ()


@dataclass(frozen=True, slots=True)
class DmarcReport:
    """A report. Times are seconds since the epoch, both included."""

    organization: str
    contact: str  # an address
    report_id: str
    begins_at: int
    ends_at: int
    policy: PublishedPolicy
    rows: tuple[ReportRow, ...]
    extra_contact: str = ""
    generator: str = ""


# ---------------------------------------------------------------- writing


def write(report: DmarcReport) -> bytes:
    """The report as XML."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<feedback xmlns="{NAMESPACE}">', _element(1, "version", "1.0")]
    lines += [
        "  <report_metadata>",
        _element(2, "org_name", report.organization),
        _element(2, "email", report.contact),
        *_optional(2, (("extra_contact_info", report.extra_contact),)),
        _element(2, "report_id", report.report_id),
        "    <date_range>",
        _element(3, "begin", str(report.begins_at)),
        _element(3, "end", str(report.ends_at)),
        "    </date_range>",
        *_optional(2, (("generator", report.generator),)),
        "  </report_metadata>",
        "  <policy_published>",
    ]
    policy = report.policy
    lines += _optional(
        2,
        (
            ("domain", policy.domain),
            ("discovery_method", policy.discovery_method),
            ("p", policy.p),
            ("sp", policy.sp),
            ("np", policy.np),
            ("adkim", policy.adkim),
            ("aspf", policy.aspf),
            ("fo", policy.fo),
            ("testing", policy.testing),
        ),
    )
    lines.append("  </policy_published>")
    for row in report.rows:
        lines += _row(row)
    lines.append("</feedback>\n")
    return "\n".join(lines).encode("utf-8", "replace")


def _row(row: ReportRow) -> Iterable[str]:
    yield "  <record>\n    <row>"
    yield _element(3, "source_ip", row.source)
    yield _element(3, "count", str(row.messages))
    yield "      <policy_evaluated>"
    yield _element(4, "disposition", row.disposition)
    yield _element(4, "dkim", row.dkim)
    yield _element(4, "spf", row.spf)
    for kind, comment in row.reasons:
        yield "        <reason>"
        yield _element(5, "type", kind)
        yield from _optional(5, (("comment", comment),))
        yield "        </reason>"
    yield "      </policy_evaluated>\n    </row>\n    <identifiers>"
    yield from _optional(3, (("envelope_to", row.envelope_to), ("envelope_from", row.envelope_from)))
    yield _element(3, "header_from", row.header_from)
    yield "    </identifiers>\n    <auth_results>"
    for dkim in row.dkim_results:
        yield "      <dkim>"
        yield _element(4, "domain", dkim.domain)
        yield _element(4, "selector", dkim.selector)
        yield _element(4, "result", dkim.result)
        yield from _optional(4, (("human_result", dkim.human_result),))
        yield "      </dkim>"
    for spf in row.spf_results[:1]:
        yield "      <spf>"
        yield _element(4, "domain", spf.domain)
        yield _element(4, "scope", spf.scope)
        yield _element(4, "result", spf.result)
        yield "      </spf>"
    yield "    </auth_results>\n  </record>"


def _optional(depth: int, elements: Iterable[tuple[str, str]]) -> list[str]:
    return [_element(depth, name, text) for name, text in elements if text]


def _element(depth: int, name: str, text: str) -> str:
    # XML 1.0 has no control characters but for blanks, and neither surrogates nor U+FFFE and U+FFFF.
    allowed = "".join(
        character if character.isprintable() and character not in "\ufffe\uffff" else "\ufffd" for character in text
    )
    return f"{'  ' * depth}<{name}>{escape(allowed)}</{name}>"


def compressed(xml: bytes) -> bytes:
    """The XML as gzip; the same octets whenever it is made."""
    return gzip.compress(xml, 9, mtime=0)


def file_name(submitter: str, report: DmarcReport) -> str:
    """As RFC 9990 section 3.5 has it: receiver, domain, begin, end and id, parted by exclamation marks."""
    return f"{submitter}!{report.policy.domain}!{report.begins_at}!{report.ends_at}!{report.report_id}.xml.gz"


def subject(submitter: str, domain: str, report_id: str) -> str:
    """The subject of a DMARC report (RFC 9990 section 3.5), and likewise of a TLS report (RFC 8460 section 5.3)."""
    return f"Report Domain: {domain} Submitter: {submitter} Report-ID: <{report_id}>"


# ---------------------------------------------------------------- reading


def read(chunks: Iterable[bytes]) -> DmarcReport:
    """The report in this XML, which may come in any pieces.

    @raises UnreadableReport: it is none, or it is too large; whatever `chunks` raises goes through.
    """
    target = _Target()
    parser = DefusedXMLParser(target=target, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    try:
        for chunk in chunks:
            parser.feed(chunk)
        parser.close()
    except DefusedXmlException as error:
        raise UnreadableReport("the XML has a document type or entities") from error
    except (ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise UnreadableReport(f"not well-formed XML: {error}") from error
    return target.report()


@dataclass(slots=True)
class _Record:
    """A record being read: texts by path, and lists for what may be there more than once."""

    texts: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[dict[str, str]]] = field(default_factory=dict)


# Elements of a record that may be there more than once, by their path below it.
_GROUPS = {"row/policy_evaluated/reason": "reason", "auth_results/dkim": "dkim", "auth_results/spf": "spf"}


class _Target:
    """Takes the parser's events; keeps what the schema knows."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._text: list[str] = []
        self._text_chars = 0
        self._top: dict[str, str] = {}
        self._record: _Record | None = None
        self._group: dict[str, str] | None = None
        self._group_depth = 0
        self._rows: list[ReportRow] = []

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        name = tag.rpartition("}")[2]
        if not self._path and name != "feedback":
            raise UnreadableReport(f"the root is {name[:40]!r}, not feedback")
        self._path.append(name)
        if len(self._path) > _MAX_DEPTH:
            raise UnreadableReport("elements are nested too deep")
        self._text.clear()
        self._text_chars = 0
        if len(self._path) == 2 and name == "record":
            if len(self._rows) >= MAX_ROWS:
                raise UnreadableReport(f"it has more than {MAX_ROWS} records")
            self._record = _Record()
        elif self._record is not None and self._group is None:
            group = _GROUPS.get("/".join(self._path[2:]))
            if group is not None:
                self._group, self._group_depth = {}, len(self._path)
                found = self._record.groups.setdefault(group, [])
                if len(found) < _MAX_RESULTS:
                    found.append(self._group)

    def data(self, data: str) -> None:
        if self._text_chars < _MAX_TEXT_CHARS:
            self._text.append(data[: _MAX_TEXT_CHARS - self._text_chars])
            self._text_chars += len(data)

    def end(self, _tag: str) -> None:
        text = "".join(self._text).strip()
        self._text.clear()
        depth = len(self._path)
        if self._group is not None:
            if depth == self._group_depth:
                self._group = None
            elif depth == self._group_depth + 1:
                self._keep(self._group, self._path[-1:], text)
        elif self._record is not None:
            if depth == 2:
                self._rows.append(_row_of(self._record))
                self._record = None
            else:
                self._keep(self._record.texts, self._path[2:], text)
        else:
            self._keep(self._top, self._path[1:], text)
        self._path.pop()

    def _keep(self, texts: dict[str, str], path: list[str], text: str) -> None:
        if text and len(texts) < _MAX_TEXTS:
            texts.setdefault("/".join(path), text)

    def close(self) -> None:
        """Nothing more comes."""

    def report(self) -> DmarcReport:
        top = self._top
        domain = _needed(top, "policy_published/domain").lower().rstrip(".")
        policy = PublishedPolicy(
            domain,
            **{
                name: top.get(f"policy_published/{name}", "")
                for name in ("p", "sp", "np", "adkim", "aspf", "fo", "testing", "discovery_method")
            },
        )
        return DmarcReport(
            _needed(top, "report_metadata/org_name"),
            top.get("report_metadata/email", ""),
            _needed(top, "report_metadata/report_id"),
            _time(_needed(top, "report_metadata/date_range/begin")),
            _time(_needed(top, "report_metadata/date_range/end")),
            policy,
            tuple(self._rows),
            top.get("report_metadata/extra_contact_info", ""),
            top.get("report_metadata/generator", ""),
        )


def _row_of(record: _Record) -> ReportRow:
    texts = record.texts
    try:
        source = str(ip_address(_needed(texts, "row/source_ip")))
    except ValueError:
        raise UnreadableReport("source_ip is not an IP address") from None
    return ReportRow(
        source,
        _number(_needed(texts, "row/count")),
        texts.get("row/policy_evaluated/disposition", "").lower(),
        texts.get("row/policy_evaluated/dkim", "").lower(),
        texts.get("row/policy_evaluated/spf", "").lower(),
        texts.get("identifiers/header_from", "").lower(),
        texts.get("identifiers/envelope_from", "").lower(),
        texts.get("identifiers/envelope_to", "").lower(),
        tuple((each.get("type", ""), each.get("comment", "")) for each in record.groups.get("reason", ())),
        tuple(
            DkimAuthResult(
                each.get("domain", "").lower(),
                each.get("selector", ""),
                each.get("result", "").lower(),
                each.get("human_result", ""),
            )
            for each in record.groups.get("dkim", ())
        ),
        tuple(
            SpfAuthResult(each.get("domain", "").lower(), each.get("result", "").lower(), each.get("scope", ""))
            for each in record.groups.get("spf", ())
        ),
    )


def _needed(texts: dict[str, str], path: str) -> str:
    text = texts.get(path)
    if not text:
        raise UnreadableReport(f"{path} is missing")
    return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise UnreadableReport(f"{text[:40]!r} is not a number")
    return int(text)


def _time(text: str) -> int:
    seconds = _number(text.partition(".")[0])
    if seconds > 253_402_300_799:  # the end of the year 9999
        raise UnreadableReport("a time is beyond all calendars")
    return seconds
