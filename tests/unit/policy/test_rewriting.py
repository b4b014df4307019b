"""Reverse-paths of what is forwarded: which are rewritten, and what becomes of mail to one that was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from mailgate.auth.srs import Srs
from mailgate.envelope import Address, ForwardDestination, ForwardPath, MailboxDestination, Resolution, ReversePath
from mailgate.policy.recipients import RecipientsPolicy, Rewriting
from mailgate.policy.stage import Request, Stage, TransactionView
from mailgate.policy.verdict import Continue, Verdict
from mailgate.smtp.grammar import parse_mailbox
from mailgate.storage.directory import Answer, Directory, Outcome
from mailgate.storage.errors import StorageUnavailable
from tests.unit.policy.test_recipients import SESSION, status

DAY = 86_400.0
NOW = 20_000 * DAY
SRS = Srs(b"a secret")
ID = 4711

ALICE = MailboxDestination(1, "alice@example.test")
FORWARD = ForwardDestination("carl@elsewhere.example")
TEAM = Answer(Outcome.DELIVERABLE, Resolution((ALICE, FORWARD)))


class Known:
    """A directory of a few addresses; every other one of example.test is unknown, and those elsewhere not ours."""

    def __init__(self, answers: dict[str, Answer], *, is_late: bool = False, is_away: bool = False) -> None:
        self.answers = answers
        self.is_late = is_late
        self.is_away = is_away

    def resolve(self, address: Address) -> Answer | Deferred[Answer]:
        ours = Answer(Outcome.UNKNOWN if address.domain.lower() == "example.test" else Outcome.NOT_OURS)
        answer = self.answers.get(str(address).lower(), ours)
        if self.is_away:
            return fail(StorageUnavailable("gone"))
        return succeed(answer) if self.is_late else answer


KNOWN = {"team@example.test": TEAM, "alice@example.test": Answer(Outcome.DELIVERABLE, Resolution((ALICE,)))}


class RewritingTest(SynchronousTestCase):
    on_record: str | None = None

    def decide(
        self,
        recipient: str,
        reverse_path: str | None = "bob@example.org",
        *,
        authenticated: str | None = None,
        days: int = 0,
        **directory: Any,  # Any: of Known
    ) -> Verdict:
        async def reverse_path_of(transaction_id: int) -> str | None:
            assert transaction_id == ID
            return self.on_record

        policy = RecipientsPolicy(
            cast("Directory", Known(KNOWN, **directory)),
            Rewriting(SRS, reverse_path_of, lambda: NOW + days * DAY),
        )
        path = ReversePath(None if reverse_path is None else parse_mailbox(reverse_path))
        verdict = policy.decide(
            Request(
                Stage.RCPT,
                replace(SESSION, authenticated=authenticated),
                TransactionView(ID, 0.0, path),
                ForwardPath(parse_mailbox(recipient)),
            )
        )
        return self.successResultOf(verdict) if isinstance(verdict, Deferred) else verdict

    def destinations(self, *arguments: Any, **options: Any) -> tuple[object, ...]:  # Any: of decide
        verdict = self.decide(*arguments, **options)
        assert isinstance(verdict, Continue), verdict
        (resolution,) = verdict.notes
        assert isinstance(resolution, Resolution)
        return resolution.destinations

    def test_an_alias_forwards_with_a_path_at_its_own_domain(self) -> None:
        """SPF of the next host asks the alias' domain. The mailbox beside it is none of that."""
        for is_late in (False, True):
            mailbox, forward = self.destinations("Team@Example.test", is_late=is_late)
            assert mailbox == ALICE
            assert isinstance(forward, ForwardDestination)
            assert forward.address == FORWARD.address
            path = parse_mailbox(forward.reverse_path or "")
            assert path.domain == "example.test"
            assert SRS.read(path.local, NOW) == Address("bob", "example.org")

    def test_a_domain_in_u_form_is_rewritten_in_a_form(self) -> None:
        """RFC 6531: what goes on need not be understood in U-form there."""
        _, forward = self.destinations("team@example.test", "bob@BÜCHER.example")
        assert isinstance(forward, ForwardDestination)
        assert "=xn--bcher-kva.example=bob@" in (forward.reverse_path or "")

    def test_the_null_path_and_our_own_stay(self) -> None:
        """RFC 5321 section 4.5.5: a notice has no sender; and our own domain lets our hosts send."""
        assert self.destinations("team@example.test", None) == (ALICE, FORWARD)
        for reverse_path in ("alice@example.test", "nobody@example.test"):
            assert self.destinations("team@example.test", reverse_path) == (ALICE, FORWARD)

    def test_what_is_not_forwarded_and_what_is_submitted_stays(self) -> None:
        """There is nobody in between."""
        assert self.destinations("alice@example.test") == (ALICE,)
        assert self.destinations("carl@elsewhere.example", authenticated="alice") == (FORWARD,)

    def test_a_bounce_leads_back(self) -> None:
        """Whatever case it comes back in."""
        path = str(SRS.rewrite(Address("bob", "example.org"), "example.test", NOW, ID))
        for recipient in (path, path.lower()):
            for is_late in (False, True):
                back = self.destinations(recipient, None, is_late=is_late)
                assert back == (ForwardDestination("bob@example.org"),)

    def test_a_bounce_to_whom_we_have_meanwhile_leads_here(self) -> None:
        """A domain may move."""
        path = str(SRS.rewrite(Address("alice", "example.test"), "example.test", NOW, ID))
        assert self.destinations(path, None) == (ALICE,)

    def test_a_path_that_names_a_transaction_leads_where_the_record_says(self) -> None:
        """A local part has 64 octets (RFC 5321 section 4.5.3.1.1)."""
        long = "b" * 60 + "@example.org"
        path = str(SRS.rewrite(parse_mailbox(long), "example.test", NOW, ID))
        self.on_record = long
        assert self.destinations(path, None) == (ForwardDestination(long),)
        for on_record in (None, ""):
            self.on_record = on_record
            assert status(self.decide(path, None))[1:] == (550, "5.1.1")

    def test_nothing_but_a_bounce_comes_back(self) -> None:
        """Else the address would be a way to write to bob in our name."""
        path = str(SRS.rewrite(Address("bob", "example.org"), "example.test", NOW, ID))
        assert status(self.decide(path, "mallory@example.net"))[1:] == (550, "5.7.1")

    def test_what_we_have_not_rewritten_leads_nowhere(self) -> None:
        """No open relay for the null path."""
        forged = str(Srs(b"another").rewrite(Address("bob", "example.org"), "example.test", NOW, ID))
        for recipient in (forged, "SRS0=x@example.test", "srs1=a=b=c@example.test"):
            assert status(self.decide(recipient, None))[1:] == (550, "5.1.1")

    def test_a_path_expires(self) -> None:
        """After three weeks."""
        path = str(SRS.rewrite(Address("bob", "example.org"), "example.test", NOW, ID))
        assert self.destinations(path, None, days=21)
        verdict = self.decide(path, None, days=22)
        assert status(verdict)[1:] == (550, "5.1.1")
        assert "expired" in str(verdict)

    def test_a_rewritten_path_of_somebody_else_is_relaying(self) -> None:
        """Only those at our domains are ours."""
        path = str(SRS.rewrite(Address("bob", "example.org"), "forwarder.example", NOW, ID))
        assert status(self.decide(path, None))[1:] == (550, "5.7.1")
        assert self.destinations(path, authenticated="alice") == (ForwardDestination(path),)

    def test_doubt_is_a_4xx(self) -> None:
        """A database that is away."""
        path = str(SRS.rewrite(Address("bob", "example.org"), "example.test", NOW, ID))
        for recipient in (path, "team@example.test"):
            assert status(self.decide(recipient, None, is_away=True))[1:] == (451, "4.3.0")


@pytest.mark.parametrize("recipient", ["srs0=a=b=c=d@example.test", "team@example.test"])
def test_without_rewriting_all_is_as_it_was(recipient: str) -> None:
    """`signing.srs = false`."""
    policy = RecipientsPolicy(cast("Directory", Known({**KNOWN, recipient: TEAM})))
    verdict = policy.decide(
        Request(
            Stage.RCPT,
            SESSION,
            TransactionView(ID, 0.0, ReversePath(Address("bob", "example.org"))),
            ForwardPath(parse_mailbox(recipient)),
        )
    )
    assert verdict == Continue((TEAM.resolution,))
