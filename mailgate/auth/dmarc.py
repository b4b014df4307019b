"""DMARC: whether a message is from the domain that its author is of, and what that domain's owner asks for if not.

Pure; it asks `Answers` for what it needs. What is done about a result is the policy's.

Standards: RFC 9989 sections 4.4 (alignment), 4.7 (np, sp, t), 4.10.1 (policy discovery), 5.3 (the receiver's part).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailgate.auth.alignment import Alignment, Step, are_aligned, organizational_domain, walk
from mailgate.auth.results import DkimResult, DmarcResult, Result, SpfResult
from mailgate.dns.answer import Outcome, RecordType

if TYPE_CHECKING:
    from mailgate.auth.dmarc_record import DmarcRecord
    from mailgate.dns.answer import Answers

# t=y: "a policy one level below the one published".
_ONE_LEVEL_BELOW = {"reject": "quarantine", "quarantine": "none", "none": "none"}


@dataclass(frozen=True, slots=True)
class _Applicable:
    """The record that applies to an author's domain, and where it was found."""

    domain: str
    record: DmarcRecord
    is_of_author: bool


def evaluate(author_domain: str, spf: SpfResult | None, dkim: Sequence[DkimResult], answers: Answers) -> DmarcResult:
    """DMARC for an author's domain, given what SPF (for MAIL FROM) and DKIM found.

    @raises Missing: records are not known yet.
    """
    steps = walk(author_domain, answers)
    organization = organizational_domain(steps)
    found = _applicable(author_domain, organization, steps)
    if found is None:
        failed = [step.domain for step in steps if step.failed]
        result = Result.TEMPERROR if failed else Result.NONE
        problem = f"no answer for _dmarc.{failed[0]}" if failed else ""
        return DmarcResult(result, author_domain, organization, problem=problem, evidence=tuple(answers.used.values()))
    record = found.record
    if not record.applies:
        return DmarcResult(
            Result.PERMERROR,
            author_domain,
            organization,
            policy_domain=found.domain,
            record=record.text,
            problem="the record has no valid policy, and asks for no reports",
            notes=_notes(record),
            evidence=tuple(answers.used.values()),
        )
    walks = {author_domain: steps}

    def is_aligned(domain: str, mode: str) -> bool | None:
        return are_aligned(author_domain, domain, Alignment(mode), answers, walks)

    spf_aligned = _spf_is_aligned(spf, lambda domain: is_aligned(domain, record.aspf))
    dkim_aligned = _dkim_is_aligned(dkim, lambda domain: is_aligned(domain, record.adkim))
    published, is_subdomain = _published(author_domain, found, answers)
    problem = ""
    if spf_aligned or dkim_aligned:
        result = Result.PASS
    elif spf_aligned is None or dkim_aligned is None:
        result = Result.TEMPERROR
        problem = "what might have passed could not be looked up"
    else:
        result = Result.FAIL
    return DmarcResult(
        result,
        author_domain,
        organization,
        policy_domain=found.domain,
        policy=_ONE_LEVEL_BELOW[published] if record.is_testing else published,
        published_policy=published,
        is_subdomain=is_subdomain,
        is_testing=record.is_testing,
        aligned_spf=bool(spf_aligned),
        aligned_dkim=bool(dkim_aligned),
        record=record.text,
        problem=problem,
        notes=_notes(record),
        evidence=tuple(answers.used.values()),
    )


def _applicable(author_domain: str, organization: str, steps: Sequence[Step]) -> _Applicable | None:
    """The author's own record, else the organizational domain's, else the public suffix's (section 4.10.1).

    Where nobody answered on the way to it, another record may have come first, and none may stand in for that.
    """
    own = steps[0]
    if own.record is not None:
        return _Applicable(author_domain, own.record, is_of_author=True)
    if any(step.failed for step in steps):
        return None
    records = {step.domain: step.record for step in steps}
    suffix = steps[-1].domain
    for domain in (organization, suffix):
        record = records.get(domain)
        if record is not None:
            return _Applicable(domain, record, is_of_author=False)
    return None


def _published(author_domain: str, found: _Applicable, answers: Answers) -> tuple[str, bool]:
    """The policy that the record has for this domain, and whether that is one for subdomains."""
    record = found.record
    if found.is_of_author:
        return record.p, False
    subdomains = record.sp or record.p
    if record.np is None or record.np == subdomains:
        return subdomains, True
    return (subdomains if _exists(author_domain, answers) else record.np), True


def _exists(domain: str, answers: Answers) -> bool:
    """Whether there is such a domain: the DNS does not deny it (section 3.2). Doubt counts as existing.

    An alias exists, though it leads nowhere: NXDOMAIN is then about its target (RFC 6604 section 3).
    """
    return any(
        answers.get(domain, record_type).outcome is not Outcome.NXDOMAIN
        for record_type in (RecordType.A, RecordType.CNAME)
    )


def _spf_is_aligned(spf: SpfResult | None, is_aligned: Callable[[str], bool | None]) -> bool | None:
    if spf is None or spf.result not in (Result.PASS, Result.TEMPERROR):
        return False
    aligned = is_aligned(spf.domain)
    return aligned if spf.result is Result.PASS or aligned is False else None


def _dkim_is_aligned(dkim: Sequence[DkimResult], is_aligned: Callable[[str], bool | None]) -> bool | None:
    """True where a passing signature is aligned; None where one is that could not be checked."""
    is_open = False
    for signature in dkim:
        if signature.result not in (Result.PASS, Result.TEMPERROR) or not signature.domain:
            continue
        aligned = is_aligned(signature.domain)
        if aligned and signature.result is Result.PASS:
            return True
        is_open = is_open or aligned is not False
    return None if is_open else False


def _notes(record: DmarcRecord) -> tuple[str, ...]:
    notes = []
    if not record.has_policy:
        notes.append("p, sp or np is not valid, which counts as p=none")
    if record.ignored:
        notes.append("ignored in the record: " + ", ".join(record.ignored))
    if record.is_testing:
        notes.append("t=y: the policy is applied one level below")
    return tuple(notes)
