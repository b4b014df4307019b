"""Whether an authenticated domain speaks for the author's, and which organization a domain belongs to.

The DNS tree walk: from a domain up to the root, the DMARC records on the way say where the organization begins. There
is no list of public suffixes.

Standards: RFC 9989 sections 4.4 (alignment) and 4.10 (DNS tree walk, and what it is used for).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

from mailgate.auth.dmarc_record import DmarcRecord, Psd, record_in
from mailgate.dns.answer import Missing, Outcome, Question, RecordType

if TYPE_CHECKING:
    from mailgate.dns.answer import Answers

# "... to reduce the number of queries": a domain of 8 labels or more is asked about once, and then from 7 labels up.
_MAX_LABELS = 7


class Alignment(Enum):
    """How alike two domains have to be: adkim, aspf."""

    RELAXED = "r"
    STRICT = "s"


@dataclass(frozen=True, slots=True)
class Step:
    """What the walk found at one domain. `failed`: nobody answered, so that nothing is known."""

    domain: str
    record: DmarcRecord | None
    failed: bool = False


def walk(domain: str, answers: Answers) -> tuple[Step, ...]:
    """The steps of the tree walk from that domain, the longest name first.

    It ends behind a record with psd=y or psd=n, and else at the top-level domain.
    @raises Missing: answers are needed; those to all names of the walk are looked up at once.
    """
    names = walk_names(domain)
    steps: list[Step] = []
    for name in names:
        try:
            answer = answers.get(f"_dmarc.{name}", RecordType.TXT)
        except Missing:
            answers.need(question_for(each) for each in names)
            raise
        record = record_in(answer.records)
        steps.append(Step(name, record, answer.outcome is Outcome.FAILURE))
        if record is not None and record.psd is not Psd.UNKNOWN:
            break
    return tuple(steps)


@lru_cache(maxsize=4096)
def walk_names(domain: str) -> tuple[str, ...]:
    """The domains that a walk looks at, whatever it finds."""
    labels = domain.split(".")
    names = [domain]
    while len(labels) > 1:
        labels = labels[-_MAX_LABELS:] if len(labels) > _MAX_LABELS + 1 else labels[1:]
        names.append(".".join(labels))
    return tuple(names)


def question_for(domain: str) -> Question:
    """Where a domain's DMARC record is."""
    return Question(f"_dmarc.{domain}", RecordType.TXT)


def organizational_domain(steps: tuple[Step, ...]) -> str:
    """The organizational domain that a walk came to; the domain that it began with where it found no record."""
    start = steps[0].domain
    found = [step for step in steps if step.record is not None]
    if not found:
        return start
    last = found[-1]
    assert last.record is not None  # noqa: S101  # they were chosen for it
    if last.record.psd is Psd.NO:
        return last.domain
    if last.record.psd is Psd.YES and last.domain != start:
        # "the Organizational Domain is the domain one label below": of the names on the way, or of the domain itself.
        below = len(last.domain.split(".")) + 1
        return ".".join(start.split(".")[-below:])
    return last.domain  # the record with the fewest labels


def are_aligned(
    author: str,
    authenticated: str,
    mode: Alignment,
    answers: Answers,
    walks: dict[str, tuple[Step, ...]] | None = None,
) -> bool | None:
    """Whether a domain that was authenticated is aligned with the author's; None where the DNS failed to tell.

    `walks` holds those that were taken in the same evaluation.
    @raises Missing: the tree above one of them is not known yet.
    """
    if author == authenticated:
        return True
    if mode is Alignment.STRICT or not _may_share_an_organization(author, authenticated):
        return False
    walks = {} if walks is None else walks
    of_author = walks.get(author) or walk(author, answers)
    if any(step.failed for step in of_author):
        return None
    organization = organizational_domain(of_author)
    # Its own organization is itself or above it, and it costs no walk to see that this can't be the author's. Whoever
    # authenticates a domain of his own, of which the DNS is silent, would else have his forgeries deferred.
    if authenticated != organization and not authenticated.endswith("." + organization):
        return False
    of_authenticated = walks.get(authenticated) or walk(authenticated, answers)
    walks[author], walks[authenticated] = of_author, of_authenticated
    if any(step.failed for step in of_authenticated):
        return None
    return organizational_domain(of_authenticated) == organization


def _may_share_an_organization(one: str, other: str) -> bool:
    """Whether it is worth asking: an organizational domain would be the end of both."""
    return one.rpartition(".")[2] == other.rpartition(".")[2]
