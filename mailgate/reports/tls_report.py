"""TLS reports: the values, and the JSON that they are written in and read from.

Pure. Reading takes a stranger's JSON: it is bounded in size before, and in what is kept of it here. What a report must
have and does not makes it unreadable; what else is odd is passed over.

Standards: RFC 8460 sections 4.2 to 4.4 (what is counted, the schema), 5.1 (file name), 5.3 (subject, media types).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from mailgate.reports.dmarc_report import UnreadableReport

# A parse takes a few milliseconds within these bounds, and nothing else runs meanwhile; it is arrays and objects that
# cost: a megabyte of nothing else takes a third of a second.
MAX_JSON_OCTETS = 1024 * 1024
_MAX_CONTAINERS = 10_000
_MAX_POLICIES = 100
_MAX_FAILURES = 1000
_MAX_TEXT_CHARS = 1000
_MAX_COUNT = 10**15


@dataclass(frozen=True, slots=True)
class TlsFailure:
    """failure-details: how many sessions failed alike."""

    result_type: str
    sessions: int
    sending_address: str = ""
    receiving_host: str = ""
    receiving_address: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TlsPolicyReport:
    """What is told of one policy."""

    domain: str
    policy_type: str  # "tlsa", "sts" or "no-policy-found"
    policy: tuple[str, ...] = ()  # the lines of the policy
    mx_hosts: tuple[str, ...] = ()  # the hosts that an MTA-STS policy names
    successes: int = 0
    failures: int = 0
    details: tuple[TlsFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class TlsReport:
    """A report. Times are seconds since the epoch."""

    organization: str
    contact: str
    report_id: str
    begins_at: float
    ends_at: float
    policies: tuple[TlsPolicyReport, ...]


# ---------------------------------------------------------------- writing


def write(report: TlsReport) -> bytes:
    """The report as JSON."""
    value = {
        "organization-name": report.organization,
        "date-range": {"start-datetime": _rfc3339(report.begins_at), "end-datetime": _rfc3339(report.ends_at)},
        "contact-info": report.contact,
        "report-id": report.report_id,
        "policies": [policy_value(policy) for policy in report.policies],
    }
    return json.dumps(value, ensure_ascii=True, indent=1).encode("ascii")


def policy_value(policy: TlsPolicyReport) -> dict[str, Any]:  # Any: JSON
    """One element of "policies"."""
    published: dict[str, Any] = {"policy-type": policy.policy_type, "policy-domain": policy.domain}
    if policy.policy:
        published["policy-string"] = list(policy.policy)
    if policy.mx_hosts:
        published["mx-host"] = list(policy.mx_hosts)
    value: dict[str, Any] = {
        "policy": published,
        "summary": {
            "total-successful-session-count": policy.successes,
            "total-failure-session-count": policy.failures,
        },
    }
    if policy.details:
        value["failure-details"] = [_failure_value(failure) for failure in policy.details]
    return value


def _failure_value(failure: TlsFailure) -> dict[str, Any]:
    value: dict[str, Any] = {"result-type": failure.result_type}
    for name, text in (
        ("sending-mta-ip", failure.sending_address),
        ("receiving-mx-hostname", failure.receiving_host),
        ("receiving-ip", failure.receiving_address),
    ):
        if text:
            value[name] = text
    value["failed-session-count"] = failure.sessions
    if failure.reason:
        value["failure-reason-code"] = failure.reason
    return value


def _rfc3339(seconds: float) -> str:
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%SZ}"


def file_name(submitter: str, domain: str, day: date, report_id: str) -> str:
    """RFC 8460 section 5.1."""
    begin = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    return f"{submitter}!{domain}!{begin}!{begin + 86399}!{report_id}.json.gz"


# ---------------------------------------------------------------- reading


def read(octets: bytes) -> TlsReport:
    """The report in this JSON.

    @raises UnreadableReport: it is none, or it is too large.
    """
    if len(octets) > MAX_JSON_OCTETS:
        raise UnreadableReport(f"it has more than {MAX_JSON_OCTETS} octets")
    if octets.count(b"[") + octets.count(b"{") > _MAX_CONTAINERS:
        raise UnreadableReport(f"it has more than {_MAX_CONTAINERS} arrays and objects")
    try:
        value = json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise UnreadableReport(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnreadableReport("the JSON is not an object")
    dates = value.get("date-range")
    policies = value.get("policies")
    if not isinstance(dates, dict) or not isinstance(policies, list):
        raise UnreadableReport("date-range or policies is missing")
    return TlsReport(
        _needed_text(value, "organization-name"),
        _text(value.get("contact-info")),
        _needed_text(value, "report-id"),
        _moment(dates.get("start-datetime")),
        _moment(dates.get("end-datetime")),
        tuple(_policy_of(each) for each in policies[:_MAX_POLICIES] if isinstance(each, dict)),
    )


def _policy_of(value: dict[str, Any]) -> TlsPolicyReport:
    published, summary, details = value.get("policy"), value.get("summary"), value.get("failure-details")
    if not isinstance(published, dict) or not isinstance(summary, dict):
        raise UnreadableReport("a policy has no policy or no summary")
    return TlsPolicyReport(
        _needed_text(published, "policy-domain").lower().rstrip("."),
        _text(published.get("policy-type")),
        _texts(published.get("policy-string")),
        _texts(published.get("mx-host")),
        _count(summary.get("total-successful-session-count")),
        _count(summary.get("total-failure-session-count")),
        tuple(_failure_of(each) for each in details[:_MAX_FAILURES] if isinstance(each, dict))
        if isinstance(details, list)
        else (),
    )


def _failure_of(value: dict[str, Any]) -> TlsFailure:
    return TlsFailure(
        _text(value.get("result-type")),
        _count(value.get("failed-session-count")),
        _text(value.get("sending-mta-ip")),
        _text(value.get("receiving-mx-hostname")),
        _text(value.get("receiving-ip")),
        _text(value.get("failure-reason-code")),
    )


def _needed_text(value: dict[str, Any], key: str) -> str:
    text = _text(value.get(key))
    if not text:
        raise UnreadableReport(f"{key} is missing")
    return text


def _text(value: object) -> str:
    return value[:_MAX_TEXT_CHARS].replace("\0", "\ufffd").strip() if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):  # seen in the wild for a list of one
        value = [value]
    return tuple(_text(each) for each in value[:_MAX_POLICIES]) if isinstance(value, list) else ()


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise UnreadableReport("a count is missing, or is no count")
    return value


def _moment(value: object) -> float:
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise UnreadableReport("a date is missing, or is no date") from None
