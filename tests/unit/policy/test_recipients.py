"""The verdict on a recipient, for everything that the directory may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mailgate.envelope import (
    Address,
    ForwardDestination,
    ForwardPath,
    MailboxDestination,
    MailParameters,
    Resolution,
    ReversePath,
)
from mailgate.interfaces import IPolicy
from mailgate.policy.recipients import RecipientsPolicy
from mailgate.policy.stage import Request, Role, SessionView, Stage, TransactionView
from mailgate.policy.verdict import Continue, Defer, Reject, Verdict
from mailgate.storage.directory import Answer, Directory, Outcome
from mailgate.storage.errors import StorageUnavailable

ALICE = Resolution((MailboxDestination(1, "alice@example.test"),))
SESSION = SessionView(
    id=1,
    listener="mx",
    role=Role.MX,
    client_address="192.0.2.1",
    client_port=1025,
    client_network="192.0.2.1/32",
    server_address="192.0.2.25",
    server_port=25,
    started_at=0.0,
)


class KnownAnswers:
    """A directory that gives the same answer to everything."""

    def __init__(self, answer: Answer | Deferred[Answer]) -> None:
        self.answer = answer

    def resolve(self, address: Address) -> Answer | Deferred[Answer]:
        return self.answer


def decide(
    answer: Answer | Deferred[Answer],
    address: Address = Address("alice", "example.test"),  # noqa: B008 - frozen
    *,
    authenticated: str | None = None,
    size_octets: int | None = None,
    hold_until: float | None = None,
) -> Verdict | Deferred[Verdict]:
    policy = RecipientsPolicy(cast("Directory", KnownAnswers(answer)))
    parameters = MailParameters(size_octets=size_octets, hold_until=hold_until)
    reverse_path = ReversePath(Address("bob", "example.org"), parameters)
    return policy.decide(
        Request(
            Stage.RCPT,
            replace(SESSION, authenticated=authenticated),
            TransactionView(2, 0.0, reverse_path),
            ForwardPath(address),
        )
    )


def status(verdict: Verdict | Deferred[Verdict]) -> tuple[type[Any], int, str]:  # Any: Reject or Defer
    assert isinstance(verdict, Reject | Defer)
    assert (verdict.reply.code >= 500) == isinstance(verdict, Reject)
    return type(verdict), verdict.reply.code, verdict.reply.enhanced


def test_it_is_a_policy_of_rcpt() -> None:
    policy = RecipientsPolicy(cast("Directory", KnownAnswers(Answer(Outcome.UNKNOWN))))
    assert verifyObject(IPolicy, policy)
    assert policy.stages == {Stage.RCPT}


def test_what_is_deliverable_goes_on_with_its_resolution() -> None:
    """At once, no Deferred: this is what nearly every RCPT of a busy server takes."""
    assert decide(Answer(Outcome.DELIVERABLE, ALICE)) == Continue((ALICE,))


@pytest.mark.parametrize(
    ("outcome", "code", "enhanced"),
    [
        (Outcome.UNKNOWN, 550, "5.1.1"),
        (Outcome.NOT_OURS, 550, "5.7.1"),
        (Outcome.DISABLED, 550, "5.2.1"),
        (Outcome.OVER_QUOTA, 452, "4.2.2"),
        (Outcome.SUSPENDED, 450, "4.2.1"),
        (Outcome.MISCONFIGURED, 451, "4.3.5"),
    ],
)
def test_every_other_outcome_has_its_reply(outcome: Outcome, code: int, enhanced: str) -> None:
    """RFC 3463: X.1.1 bad destination mailbox, X.2.1 disabled, X.2.2 full, X.7.1 not authorized."""
    assert status(decide(Answer(outcome)))[1:] == (code, enhanced)


@pytest.mark.parametrize("local", ["carol%example.org", "example.org!carol", "carol@example.org", "@example.org:carol"])
def test_a_local_part_that_asks_for_relaying_is_refused_as_relaying(local: str) -> None:
    """RFC 5321 section 3.6.1 leaves source routes behind; so are the percent hack and bang paths."""
    assert status(decide(Answer(Outcome.UNKNOWN), Address(local, "example.test")))[1:] == (550, "5.7.1")
    verdict = decide(Answer(Outcome.UNKNOWN), Address(local, "example.test"), authenticated="alice")
    assert status(verdict)[1:] == (550, "5.7.1")


def test_a_name_of_ours_may_hold_any_character() -> None:
    """Where a mailbox or an alias of exactly that name exists, it asks for no relaying."""
    assert decide(Answer(Outcome.DELIVERABLE, ALICE), Address("50%off", "example.test")) == Continue((ALICE,))


def test_who_has_authenticated_may_send_elsewhere() -> None:
    verdict = decide(Answer(Outcome.NOT_OURS), Address("Carol", "BÜCHER.example."), authenticated="alice")
    assert verdict == Continue((Resolution((ForwardDestination("Carol@xn--bcher-kva.example"),)),))


def test_who_has_authenticated_may_not_send_to_what_is_no_domain() -> None:
    assert status(decide(Answer(Outcome.NOT_OURS), Address("x", "-.-"), authenticated="alice"))[1:] == (550, "5.7.1")


@pytest.mark.parametrize(("size", "fits"), [(None, True), (0, True), (99, True), (100, True), (101, False)])
def test_the_declared_size_is_held_against_the_quota(size: int | None, fits: bool) -> None:
    """RFC 1870 section 6.1: a server may refuse what it knows it can't store."""
    verdict = decide(Answer(Outcome.DELIVERABLE, ALICE, 100), size_octets=size)
    if fits:
        assert verdict == Continue((ALICE,))
    else:
        assert status(verdict)[1:] == (452, "4.2.2")


def test_what_is_held_goes_elsewhere_alone() -> None:
    """RFC 4865: it must not be released before its time, and mailboxes here have it at once."""
    forward = ForwardDestination("carl@elsewhere.example")
    assert status(decide(Answer(Outcome.DELIVERABLE, ALICE), hold_until=1.0))[1:] == (550, "5.3.3")
    both = Answer(Outcome.DELIVERABLE, Resolution((forward, *ALICE.destinations)))
    assert status(decide(both, hold_until=1.0))[1:] == (550, "5.3.3")
    for answer in (Answer(Outcome.DELIVERABLE, Resolution((forward,))), Answer(Outcome.NOT_OURS)):
        assert isinstance(decide(answer, authenticated="alice@example.test", hold_until=1.0), Continue)


class LaterTests(SynchronousTestCase):
    def test_an_answer_that_comes_later_gives_the_same_verdict(self) -> None:
        answer: Deferred[Answer] = Deferred()
        verdict = decide(answer)
        assert isinstance(verdict, Deferred)
        assert not verdict.called
        answer.callback(Answer(Outcome.DISABLED))
        assert status(self.successResultOf(verdict))[1:] == (550, "5.2.1")

    def test_without_a_database_the_recipient_is_asked_to_wait(self) -> None:
        """Doubt is 4xx: a mailbox that can't be looked up may well exist."""
        verdict = decide(fail(StorageUnavailable("gone")))
        assert isinstance(verdict, Deferred)
        assert status(self.successResultOf(verdict)) == (Defer, 451, "4.3.0")

    def test_a_fault_of_ours_is_left_to_the_chain(self) -> None:
        verdict = decide(fail(ZeroDivisionError()))
        assert isinstance(verdict, Deferred)
        failures: list[Failure] = []
        verdict.addErrback(failures.append)
        assert failures[0].check(ZeroDivisionError)
