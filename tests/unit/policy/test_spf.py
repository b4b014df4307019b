"""What the policy `spf` asks, when, and what it does with the results."""

from __future__ import annotations

from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from mailgate.auth.results import Result, SpfResult
from mailgate.dns.zone import Zone
from mailgate.envelope import Address, ReversePath
from mailgate.interfaces import IPolicy
from mailgate.policy.spf import SpfOptions, SpfPolicy
from mailgate.policy.stage import Request, Role, SessionView, Stage, TransactionView
from mailgate.policy.verdict import Continue, Defer, Reject, Verdict

ZONE = r"""
pass.test       TXT "v=spf1 ip4:192.0.2.1 -all"
fail.test       TXT "v=spf1 ip4:198.51.100.1 -all exp=why.fail.test"
why.fail.test   TXT "Ask %{r} about\013\010250 %{i}"
soft.test       TXT "v=spf1 ~all"
neutral.test    TXT "v=spf1 ?all"
broken.test     TXT "v=spf1 what"
silent.test     TXT "v=spf1  -ALL "
explains.test   TXT "v=spf1 -all exp=why.fail.test"
redirect.test   TXT "v=spf1 redirect=silent.test"
host.test       A   192.0.2.1
"""

SESSION = SessionView(1, "mx", Role.MX, "192.0.2.1", 1025, "192.0.2.1/32", "192.0.2.25", 25, 0.0)


def zone(clock: Clock | None = None) -> Zone:
    found = Zone(ZONE, clock)
    found.fail("dead.test")
    return found


def policy(resolver: Zone | None = None, options: SpfOptions | None = None) -> SpfPolicy:
    return SpfPolicy(options or SpfOptions(), resolver or zone(), "mx.receiver.test", lambda: 0.0)


def at_helo(name: str, session: SessionView = SESSION) -> Request:
    return Request(Stage.HELO, replace(session, helo=name))


def at_mail(domain: str | None, session: SessionView = SESSION, helo: str = "[192.0.2.1]") -> Request:
    path = ReversePath(Address("user", domain) if domain is not None else None)
    return Request(Stage.MAIL, replace(session, helo=helo), TransactionView(1, 0.0, path))


def decide(request: Request, options: SpfOptions | None = None) -> Verdict:
    verdict = policy(options=options).decide(request)
    assert not isinstance(verdict, Deferred)
    return verdict


def results(verdict: Verdict) -> list[tuple[str, str, str]]:
    found = [note for note in verdict.notes if isinstance(note, SpfResult)]
    assert len(found) == len(verdict.notes)
    return [(each.identity, each.domain, each.result.value) for each in found]


def test_it_is_a_policy() -> None:
    assert verifyObject(IPolicy, policy())


@pytest.mark.parametrize("domain", ["pass.test", "fail.test", "soft.test", "neutral.test", "broken.test", "dead.test"])
def test_results_are_notes_and_decide_nothing_by_default(domain: str) -> None:
    """DMARC decides: a domain may sign what SPF knows nothing of (RFC 7489 section 10.1)."""
    for request, identity in ((at_helo(domain), "helo"), (at_mail(domain), "mailfrom")):
        verdict = decide(request)
        assert isinstance(verdict, Continue)
        expected = {"soft": "softfail", "broken": "permerror", "dead": "temperror"}.get(
            domain.partition(".")[0], domain.partition(".")[0]
        )
        assert results(verdict) == [(identity, domain, expected)]


@pytest.mark.parametrize("domain", ["silent.test", "Silent.Test."])
def test_a_domain_that_sends_no_mail_is_refused_at_once(domain: str) -> None:
    """Its record is nothing but -all: whoever forwards or signs, it is forged (RFC 7208 section 8.4, RFC 7372)."""
    for request in (at_helo(domain), at_mail(domain)):
        verdict = decide(request)
        assert isinstance(verdict, Reject)
        assert (verdict.reply.code, verdict.reply.enhanced) == (550, "5.7.23")
        text = verdict.reply.text()
        assert "silent.test sends no mail" in text
        assert "192.0.2.1" in text
        assert results(verdict)[0][1:] == ("silent.test", "fail"), "a refusal has its reason in the record too"


@pytest.mark.parametrize("domain", ["fail.test", "explains.test", "redirect.test"])
def test_only_a_bare_record_says_that_no_mail_is_sent(domain: str) -> None:
    assert isinstance(decide(at_mail(domain)), Continue)


def test_config_lets_such_domains_pass_on_to_dmarc() -> None:
    assert isinstance(decide(at_mail("silent.test"), SpfOptions(refuses_domains_that_send_no_mail=False)), Continue)


@pytest.mark.parametrize(
    ("domain", "options", "code", "enhanced"),
    [
        ("fail.test", SpfOptions(on_fail="reject"), 550, "5.7.23"),
        ("soft.test", SpfOptions(on_softfail="reject"), 550, "5.7.23"),
        ("broken.test", SpfOptions(on_permerror="reject"), 550, "5.7.24"),
        ("dead.test", SpfOptions(on_temperror="defer"), 451, "4.7.24"),
    ],
)
def test_config_may_be_stricter(domain: str, options: SpfOptions, code: int, enhanced: str) -> None:
    """RFC 7208 sections 8.4 to 8.7; the codes are RFC 7372's."""
    for request in (at_helo(domain), at_mail(domain)):
        verdict = decide(request, options)
        assert isinstance(verdict, Reject | Defer)
        assert (verdict.reply.code, verdict.reply.enhanced) == (code, enhanced)
        assert domain in verdict.reply.text()
        assert len(verdict.notes) == 1
    for other in ("pass.test", "neutral.test", "nothing.test"):
        assert isinstance(decide(at_mail(other), options), Continue)


def test_the_domain_s_explanation_is_said_as_its_own_words_on_one_line() -> None:
    """RFC 7208 section 6.2: it is somebody else's text, and can't end the reply."""
    verdict = decide(at_mail("fail.test"), SpfOptions(on_fail="reject"))
    assert isinstance(verdict, Reject)
    assert "fail.test explains: Ask mx.receiver.test about?250 192.0.2.1" in verdict.reply.lines
    assert all(line.startswith("550") for line in verdict.reply.encode().decode("ascii").splitlines())


@pytest.mark.parametrize("helo", ["[192.0.2.1]", "[IPv6:2001:db8::1]", "localhost", "192.0.2.1"])
def test_a_helo_that_is_no_domain_is_not_asked_about(helo: str) -> None:
    """RFC 7208 section 2.3."""
    assert decide(at_helo(helo)) == Continue()


def test_the_null_reverse_path_is_checked_by_helo() -> None:
    """RFC 7208 section 2.4: DMARC finds it as the result for MAIL."""
    verdict = decide(replace(at_mail(None, helo="pass.test"), notes=decide(at_helo("pass.test")).notes))
    assert results(verdict) == [("mailfrom", "pass.test", "pass")]


def test_the_null_reverse_path_behind_a_helo_that_is_no_domain_is_none() -> None:
    assert [outcome for _, _, outcome in results(decide(at_mail(None)))] == [Result.NONE.value]


def test_a_client_that_logged_in_is_not_checked() -> None:
    """It writes from wherever it is."""
    session = replace(SESSION, role=Role.SUBMISSION, authenticated="alice")
    assert decide(at_helo("silent.test", session)) == Continue()
    assert decide(at_mail("silent.test", session, "silent.test")) == Continue()


def test_on_a_submission_listener_helo_waits_for_mail() -> None:
    """The client may still log in; if it does not, both are checked."""
    session = replace(SESSION, role=Role.SUBMISSION)
    assert decide(at_helo("fail.test", session)) == Continue()
    verdict = decide(at_mail("pass.test", session, "fail.test"))
    assert results(verdict) == [("helo", "fail.test", "fail"), ("mailfrom", "pass.test", "pass")]


def test_helo_is_checked_once() -> None:
    """Its result is a note that every transaction of the session sees."""
    resolver = zone()
    request = at_mail("pass.test", helo="fail.test")
    verdict = policy(resolver).decide(replace(request, notes=decide(at_helo("fail.test")).notes))
    assert not isinstance(verdict, Deferred)
    assert results(verdict) == [("mailfrom", "pass.test", "pass")]
    assert {question.name for question in resolver.asked} == {"pass.test"}


def test_it_waits_for_what_takes_time_and_gives_up_when_cancelled() -> None:
    """Nothing is left on its way for a client that has gone."""
    clock = Clock()
    slow = zone(clock)
    slow.delay("pass.test", 3.0)
    decided: list[Verdict] = []
    waiting = policy(slow).decide(at_mail("pass.test"))
    assert isinstance(waiting, Deferred)
    waiting.addCallback(decided.append)
    clock.advance(3.0)
    assert [results(verdict) for verdict in decided] == [[("mailfrom", "pass.test", "pass")]]
    waiting = policy(slow).decide(at_mail("pass.test"))
    assert isinstance(waiting, Deferred)
    waiting.addErrback(lambda failure: None)
    waiting.cancel()
    assert clock.getDelayedCalls() == []
