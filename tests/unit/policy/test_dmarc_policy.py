"""The policy dmarc: what is done with a result, and when the author's domain is not heeded."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailgate.auth.results import (
    AuthorFault,
    DkimResult,
    DmarcResult,
    PolicyOverride,
    Result,
    SpfResult,
    TrustedForwarder,
)
from mailgate.dns.zone import Zone
from mailgate.envelope import Address, ReversePath
from mailgate.message import MessageContent
from mailgate.policy.dmarc import DmarcOptions, DmarcPolicy
from mailgate.policy.stage import Request, Role, SessionView, Stage, TransactionView
from mailgate.policy.verdict import Continue, Defer, Quarantine, Reject

SESSION = SessionView(1, "mx", Role.MX, "192.0.2.7", 40000, "192.0.2.7/32", "192.0.2.25", 25, 0.0)
TRANSACTION = TransactionView(2, 0.0, ReversePath(Address("bounce", "other.test")))
ZONE = """
_dmarc.reject.test TXT "v=DMARC1; p=reject"
_dmarc.quarantine.test TXT "v=DMARC1; p=quarantine"
_dmarc.none.test TXT "v=DMARC1; p=none"
_dmarc.testing.test TXT "v=DMARC1; p=reject; t=y"
_dmarc.broken.test TXT "v=DMARC1; p=x"
_dmarc.subs.test TXT "v=DMARC1; p=reject; sp=none; t=y"
"""


def request(author: str | None, *notes: object, client: str = "192.0.2.7") -> Request:
    octets = f"From: {author}\r\n\r\nHello.\r\n".encode() if author is not None else b"Subject: x\r\n\r\nHello.\r\n"
    content = MessageContent([octets], len(octets), hashlib.sha256(octets).digest())
    session = replace(SESSION, client_address=client)
    return Request(Stage.END_OF_DATA, session, TRANSACTION, content=content, notes=notes)


def decide(asked: Request, zone: Zone | None = None, **options: Any) -> Any:
    """The verdict. Any: one of them, or a Deferred."""
    return DmarcPolicy(DmarcOptions(**options), zone or Zone(ZONE)).decide(asked)


def noted(verdict: Any) -> DmarcResult:  # Any: a Verdict
    (result,) = (note for note in verdict.notes if isinstance(note, DmarcResult))
    return result


def test_who_has_logged_in_is_not_asked_about() -> None:
    """RFC 6409: mail is handed in from anywhere, and signed behind us; SPF is not asked about it either."""
    asked = request("bob@reject.test")
    asked = replace(asked, session=replace(asked.session, authenticated="bob@reject.test"))
    assert decide(asked) == Continue()


ACTIONS = {"continue": Continue, "quarantine": Quarantine, "reject": Reject}


@pytest.mark.parametrize(
    ("domain", "option", "default"),
    [
        ("reject.test", "on_reject", "reject"),
        ("quarantine.test", "on_quarantine", "quarantine"),
        ("none.test", "on_none", "continue"),
        ("testing.test", "on_quarantine", "quarantine"),
    ],
)
def test_what_the_domain_asks_for_is_done_unless_config_says_otherwise(domain: str, option: str, default: str) -> None:
    asked = request(f"bob@{domain}")
    assert isinstance(decide(asked), ACTIONS[default])
    for action, verdict in ACTIONS.items():
        options: dict[str, Any] = {option: action}  # Any: as it is taken
        made = decide(asked, **options)
        assert isinstance(made, verdict)
        assert noted(made).result is Result.FAIL


@pytest.mark.parametrize("domain", ["reject.test", "quarantine.test", "none.test"])
def test_what_passes_is_let_through(domain: str) -> None:
    for note in (SpfResult("mailfrom", domain, f"bob@{domain}", Result.PASS), DkimResult(0, Result.PASS, domain)):
        verdict = decide(request(f"bob@{domain}", note))
        assert isinstance(verdict, Continue)
        assert noted(verdict).result is Result.PASS


@pytest.mark.parametrize("domain", ["unknown.test", "broken.test"])
def test_without_a_record_that_asks_for_something_nothing_is_done(domain: str) -> None:
    assert isinstance(decide(request(f"bob@{domain}")), Continue)


def test_the_name_in_helo_proves_nothing_of_the_author() -> None:
    """RFC 9989 section 4.4.2: of SPF, MAIL FROM counts."""
    helo = SpfResult("helo", "reject.test", "", Result.PASS)
    assert isinstance(decide(request("bob@reject.test", helo)), Reject)


def test_a_refusal_says_what_was_found_and_what_would_help() -> None:
    """A postmaster has to be able to act on it."""
    spf = SpfResult("mailfrom", "other.test", "x@other.test", Result.PASS)
    signatures = [DkimResult(n, Result.FAIL, f"d{n}.test") for n in range(4)]
    verdict = decide(request("bob@reject.test", spf, *signatures))
    assert (verdict.reply.code, verdict.reply.enhanced) == (550, "5.7.26")
    assert verdict.reply.lines == (
        "This message is not authenticated as from reject.test, whose DMARC policy is reject.",
        "SPF: pass for other.test; DKIM: fail for d0.test, fail for d1.test, fail for d2.test.",
        "To be accepted, mail from reject.test needs a DKIM signature of that domain, or SPF to pass for it (RFC 9989)",
    )


@pytest.mark.parametrize(
    ("notes", "line"),
    [
        ([], "SPF: not checked; DKIM: no signature."),
        ([DkimResult(0, Result.NONE)], "SPF: not checked; DKIM: no signature."),
        ([DkimResult(0, Result.PERMERROR)], "SPF: not checked; DKIM: permerror for a signature of nobody."),
    ],
)
def test_a_refusal_names_no_signature_that_was_not_there(notes: list[object], line: str) -> None:
    assert decide(request("bob@reject.test", *notes)).reply.lines[1] == line


def test_where_the_dns_is_silent_the_message_comes_again() -> None:
    zone = Zone(ZONE)
    zone.fail("_dmarc.reject.test")
    asked = request("bob@reject.test")
    verdict = decide(asked, zone)
    assert isinstance(verdict, Defer)
    assert (verdict.reply.code, verdict.reply.enhanced) == (451, "4.7.26")
    assert noted(verdict).result is Result.TEMPERROR
    assert isinstance(decide(asked, zone, on_temperror="continue"), Continue)


def test_a_record_that_has_to_be_fetched_is_waited_for() -> None:
    clock = Clock()
    zone = Zone(ZONE, clock)
    zone.delay("_dmarc.reject.test", 1.0)
    deciding = decide(request("bob@reject.test"), zone)
    assert isinstance(deciding, Deferred)
    verdicts: list[object] = []
    deciding.addCallback(verdicts.append)
    clock.advance(1)
    assert isinstance(verdicts[0], Reject)


@pytest.mark.parametrize("author", [None, "Bob", "bob@reject.test, eve@other.test", "bob@[192.0.2.1]"])
def test_a_message_of_nobody_is_refused_by_default(author: str | None) -> None:
    """Nobody could be asked about it."""
    asked = request(author)
    verdict = decide(asked)
    assert (verdict.reply.code, verdict.reply.enhanced) == (550, "5.7.1")
    (fault,) = verdict.notes
    assert isinstance(fault, AuthorFault)
    assert fault.problem in verdict.reply.lines[0]
    for action, kind in ACTIONS.items():
        made: Any = decide(asked, on_no_author=action)  # Any: one of three
        assert made.notes == (fault,)
        assert isinstance(made, kind)


# ---------------------------------------------------------------- overrides


def override(verdict: Any) -> PolicyOverride | None:  # Any: a Verdict
    return next((note for note in verdict.notes if isinstance(note, PolicyOverride)), None)


def test_a_trusted_forwarder_by_its_address() -> None:
    """RFC 9990: trusted_forwarder."""
    networks = (ipaddress.ip_network("198.51.100.0/24"),)
    verdict = decide(request("bob@reject.test", client="198.51.100.7"), trusted_forwarders=networks)
    assert isinstance(verdict, Continue)
    assert override(verdict) == PolicyOverride("trusted_forwarder", "client 198.51.100.7", "continue")
    assert isinstance(decide(request("bob@reject.test"), trusted_forwarders=networks), Reject)


def test_a_trusted_forwarder_by_its_seal() -> None:
    verdict = decide(request("bob@reject.test", TrustedForwarder("lists.test", "lists.test")))
    assert isinstance(verdict, Continue)
    assert override(verdict) == PolicyOverride("trusted_forwarder", "ARC chain sealed by lists.test", "continue")


@pytest.mark.parametrize("author", ["reject.test", "sub.reject.test", "REJECT.test"])
@pytest.mark.parametrize("action", list(ACTIONS))
def test_config_knows_better_of_some_domains(author: str, action: str) -> None:
    """RFC 9990: local_policy. For the domain and those below it that have no record of their own."""
    verdict = decide(request(f"bob@{author}"), overrides=(("reject.test", action),))
    assert isinstance(verdict, ACTIONS[action])
    assert override(verdict) == PolicyOverride("local_policy", "overrides has reject.test", action)  # type: ignore[arg-type]  # one of the three
    assert override(decide(request("bob@quarantine.test"), overrides=(("reject.test", action),))) is None


def test_an_override_is_for_what_fails_only() -> None:
    passed = DkimResult(0, Result.PASS, "reject.test")
    verdict = decide(request("bob@reject.test", passed), overrides=(("reject.test", "reject"),))
    assert isinstance(verdict, Continue)
    assert override(verdict) is None


@pytest.mark.parametrize(
    ("author", "expected"),
    [
        ("testing.test", PolicyOverride("policy_test_mode", "t=y", None)),
        ("reject.test", None),
        ("mail.subs.test", None),  # sp=none can't be lowered
    ],
)
def test_a_domain_that_tests_is_recorded_as_that(author: str, expected: PolicyOverride | None) -> None:
    """RFC 9990: policy_test_mode, where t=y made a difference."""
    assert override(decide(request(f"bob@{author}"))) == expected
