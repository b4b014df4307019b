"""The DNS tree walk, the organizational domain that it comes to, and whether two domains are of one organization."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.auth.alignment import Alignment, are_aligned, organizational_domain, walk, walk_names
from mailgate.dns.answer import Answer, Answers, Missing, Question, RecordType
from mailgate.dns.settle import settle
from mailgate.dns.zone import Zone

NONE = "v=DMARC1; p=none"


def zone_of(records: dict[str, str], failing: tuple[str, ...] = ()) -> Zone:
    zone = Zone()
    for domain, text in records.items():
        zone.add(f"_dmarc.{domain}", RecordType.TXT, text.encode())
    for domain in failing:
        zone.fail(f"_dmarc.{domain}")
    return zone


def organization(domain: str, records: dict[str, str]) -> str:
    found = settle(lambda answers: organizational_domain(walk(domain, answers)), zone_of(records))
    assert isinstance(found, str)
    return found


def aligned(
    author: str, authenticated: str, records: dict[str, str], mode: Alignment = Alignment.RELAXED, *failing: str
) -> bool | None:
    found = settle(lambda answers: are_aligned(author, authenticated, mode, answers), zone_of(records, failing))
    assert found in (True, False, None)
    return found


@pytest.mark.parametrize("domain", ["mail.bank.co.example", "bank.co.example", "co.example"])
def test_what_a_walk_used_is_enough_to_take_it_again(domain: str) -> None:
    """The record keeps these answers alone. What lies above psd= is not used, and need not be known."""
    zone = zone_of({"bank.co.example": NONE, "co.example": "v=DMARC1; p=none; psd=y"})
    used: dict[Question, Answer] = {}

    def steps(answers: Answers) -> object:
        found = walk(domain, answers)
        used.update(answers.used)
        return found

    assert settle(steps, zone) == walk(domain, Answers(used))
    assert Question("_dmarc.example", RecordType.TXT) not in used


@pytest.mark.parametrize(
    ("domain", "names"),
    [
        ("com", "com"),
        ("example.com", "example.com com"),
        (  # the example of RFC 9989 section 4.10
            "a.b.c.d.e.f.g.h.i.j.mail.example.com",
            "a.b.c.d.e.f.g.h.i.j.mail.example.com g.h.i.j.mail.example.com h.i.j.mail.example.com i.j.mail.example.com"
            " j.mail.example.com mail.example.com example.com com",
        ),
        (  # the example of section 5.1.8: the zone cut at b.c.d.e.f.g.example.com is never asked about
            "mail.a.b.c.d.e.f.g.example.com",
            "mail.a.b.c.d.e.f.g.example.com c.d.e.f.g.example.com d.e.f.g.example.com e.f.g.example.com"
            " f.g.example.com g.example.com example.com com",
        ),
        ("a.b.c.d.e.f.g", "a.b.c.d.e.f.g b.c.d.e.f.g c.d.e.f.g d.e.f.g e.f.g f.g g"),
        ("a.b.c.d.e.f.g.h", "a.b.c.d.e.f.g.h b.c.d.e.f.g.h c.d.e.f.g.h d.e.f.g.h e.f.g.h f.g.h g.h h"),
        ("a.b.c.d.e.f.g.h.i", "a.b.c.d.e.f.g.h.i c.d.e.f.g.h.i d.e.f.g.h.i e.f.g.h.i f.g.h.i g.h.i h.i i"),
    ],
)
def test_the_names_of_a_walk(domain: str, names: str) -> None:
    """RFC 9989 section 4.10: eight queries at most, from the name itself to the top."""
    assert walk_names(domain) == tuple(names.split())


@given(st.integers(1, 120))
def test_no_walk_is_longer_than_eight_queries(labels: int) -> None:
    """However long the name is that a stranger thinks of."""
    names = walk_names(".".join("x" * labels))
    assert len(names) == min(labels, 8)
    assert names[0].count(".") + 1 == labels
    assert names[-1] == "x"


@pytest.mark.parametrize(
    ("domain", "records", "expected"),
    [
        # the three examples of RFC 9989 section 4.10.2
        ("a.mail.example.com", {"mail.example.com": NONE, "example.com": NONE}, "example.com"),
        ("a.mail.example.com", {"mail.example.com": f"{NONE}; psd=n", "example.com": NONE}, "mail.example.com"),
        ("a.mail.example.com", {"com": f"{NONE}; psd=y"}, "example.com"),
        # and the one in its step 2
        ("mail.example.com", {"example.com": f"{NONE}; psd=y"}, "mail.example.com"),
        # the suffix that the walk began with is its own organization
        ("example.com", {"example.com": f"{NONE}; psd=y", "com": NONE}, "example.com"),
        # psd=u is as good as none
        ("a.mail.example.com", {"mail.example.com": f"{NONE}; psd=u", "example.com": f"{NONE}; psd=u"}, "example.com"),
        ("a.example.com", {}, "a.example.com"),
        ("a.example.com", {"a.example.com": NONE}, "a.example.com"),
        ("com", {}, "com"),
        # what stands above psd=n or psd=y is not looked at
        ("a.b.c.d", {"b.c.d": f"{NONE}; psd=y", "c.d": f"{NONE}; psd=n"}, "a.b.c.d"),
        ("a.b.c.d", {"a.b.c.d": f"{NONE}; psd=n", "c.d": NONE}, "a.b.c.d"),
        # a name that the walk skips is an organization all the same
        ("a.b.c.d.e.f.g.h.i", {"c.d.e.f.g.h.i": f"{NONE}; psd=y"}, "b.c.d.e.f.g.h.i"),
        # several records at one name are none
        ("a.example.com", {"example.com": "v=spf1 -all"}, "a.example.com"),
    ],
)
def test_the_organizational_domain(domain: str, records: dict[str, str], expected: str) -> None:
    """RFC 9989 section 4.10.2."""
    assert organization(domain, records) == expected


ORG = {"example.com": NONE}
SUFFIX = {"co.example": f"{NONE}; psd=y"}


@pytest.mark.parametrize(
    ("author", "authenticated", "records", "relaxed"),
    [
        ("example.com", "example.com", {}, True),
        ("example.com", "mail.example.com", ORG, True),
        ("mail.example.com", "example.com", ORG, True),
        ("a.example.com", "b.example.com", ORG, True),
        ("a.example.com", "b.example.com", {}, False),
        ("a.example.com", "b.example.com", {"a.example.com": f"{NONE}; psd=n", **ORG}, False),
        ("example.com", "example.org", {"example.com": NONE, "example.org": NONE}, False),
        ("example.com", "badexample.com", {"example.com": NONE, "badexample.com": NONE}, False),
        # a public suffix speaks for nobody below it
        ("shop.co.example", "co.example", SUFFIX, False),
        ("shop.co.example", "other.co.example", SUFFIX, False),
        ("a.shop.co.example", "b.shop.co.example", SUFFIX, True),
        ("example.com", "com", ORG, False),
        ("example.com", "com", {"com": f"{NONE}; psd=y", **ORG}, False),
    ],
)
def test_alignment(author: str, authenticated: str, records: dict[str, str], relaxed: bool) -> None:
    """RFC 9989 section 4.4: one organization, or, where it is strict, one name."""
    assert aligned(author, authenticated, records) is relaxed
    assert aligned(author, authenticated, records, Alignment.STRICT) is (author == authenticated)


@pytest.mark.parametrize("failing", ["a.example.com", "b.example.com", "example.com", "com"])
def test_where_the_dns_does_not_answer_nothing_is_known(failing: str) -> None:
    """RFC 9989 section 5.3.6: such a message neither passes nor fails."""
    records = {name: record for name, record in ORG.items() if name != failing}
    assert aligned("a.example.com", "b.example.com", records, Alignment.RELAXED, failing) is None


def test_a_domain_outside_the_authors_organization_is_not_aligned_whatever_the_dns_says_of_it() -> None:
    """RFC 9989 section 4.10.2: its organization is itself or above it. A forger's dead DNS must not defer his mail."""
    assert aligned("example.com", "forger.com", ORG, Alignment.RELAXED, "forger.com") is False
    assert aligned("a.example.com", "badexample.com", ORG, Alignment.RELAXED, "badexample.com") is False


def test_what_needs_no_walk_asks_for_nothing() -> None:
    """RFC 9989 section 4.10.2 lists what needs none; and no organization has two top-level domains."""
    answers = Answers({})
    assert are_aligned("a.example.com", "a.example.com", Alignment.RELAXED, answers)
    assert not are_aligned("a.example.com", "b.example.com", Alignment.STRICT, answers)
    assert not are_aligned("example.com", "example.org", Alignment.RELAXED, answers)


def test_a_walk_asks_for_all_its_names_at_once() -> None:
    """One round trip, not eight."""
    with pytest.raises(Missing) as caught:
        walk("a.b.example.com", Answers({}))
    assert {question.name for question in caught.value.questions} == {
        "_dmarc.a.b.example.com",
        "_dmarc.b.example.com",
        "_dmarc.example.com",
        "_dmarc.com",
    }


def test_what_stands_above_the_end_of_a_walk_is_no_evidence() -> None:
    """The record shows what the result rests on, and nothing else."""
    known: dict[Question, Answer] = {}
    zone = zone_of({"example.com": f"{NONE}; psd=n"})
    settle(lambda answers: walk("a.example.com", answers), zone, known)
    answers = Answers(known)
    walk("a.example.com", answers)
    assert [question.name for question in answers.used] == ["_dmarc.a.example.com", "_dmarc.example.com"]
