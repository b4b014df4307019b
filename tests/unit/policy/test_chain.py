"""The policy chain: whose verdict counts, and what becomes of policies that fail, block or never answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from mailgate.envelope import Address, ForwardPath, ReversePath
from mailgate.ids import encode_id
from mailgate.interfaces import IPolicy
from mailgate.policy.chain import DEFAULT_DEADLINE_SECONDS, Chain, Member
from mailgate.policy.plugin import FunctionPolicy
from mailgate.policy.stage import RecipientView, Request, Role, SessionView, Stage, TransactionView
from mailgate.policy.verdict import Accept, Continue, Decision, Defer, Discard, Opinion, Quarantine, Reject, Verdict
from mailgate.smtp.reply import Reply, reply

SESSION = SessionView(1, "mx", Role.MX, "192.0.2.7", 40000, "192.0.2.7/32", "192.0.2.25", 25, 0.0)
REFUSED = reply(550, "5.7.1", "No")
DEFERRED = reply(451, "4.7.1", "Later")
OK = reply(250, "2.1.5", "Recipient ok")
REJECT, DEFER, ACCEPT, CONTINUE = Reject(REFUSED), Defer(DEFERRED), Accept(), Continue()
QUARANTINE, DISCARD = Quarantine("odd"), Discard("known")


@dataclass(frozen=True)
class Note:
    text: str


@implementer(IPolicy)
@dataclass(eq=False)
class Policy:
    """Answers what it is told to, and remembers what it was asked."""

    name: str
    answer: Callable[[Request], Any]  # Any: what a careless policy may give
    stages: frozenset[Stage] = frozenset(Stage)
    after: frozenset[str] = frozenset()
    asked: list[Request] = field(default_factory=list)

    def decide(self, request: Request) -> Any:
        self.asked.append(request)
        return self.answer(request)


def says(name: str, verdict: object, **more: Any) -> Policy:
    return Policy(name, lambda _request: verdict, **more)


class Slow(Policy):
    """Answers when it is told to."""

    def __init__(self, name: str, **more: Any) -> None:
        self.waiting: list[Deferred[Verdict]] = []
        self.cancelled = 0
        super().__init__(name, lambda _request: self._wait(), **more)

    def _wait(self) -> Deferred[Verdict]:
        self.waiting.append(Deferred(self._cancel))
        return self.waiting[-1]

    def _cancel(self, _deferred: Deferred[Verdict]) -> None:
        self.cancelled += 1


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == "mailgate.policy.chain":
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


def transaction(*domains: str, refused: Iterable[str] = ()) -> TransactionView:
    recipients = [RecipientView(ForwardPath(Address("bob", domain)), True, OK) for domain in domains]
    recipients += [RecipientView(ForwardPath(Address("bob", domain)), False, REFUSED) for domain in refused]
    return TransactionView(2, 0.0, ReversePath(None), tuple(recipients))


def at(stage: Stage, view: TransactionView | None = None) -> Request:
    return Request(stage, SESSION, view)


def decide(*policies: Policy | Member, request: Request | None = None, clock: Clock | None = None) -> Any:
    """A Decision, or a Deferred of one."""
    return Chain(clock or Clock(), policies).decide(request or at(Stage.HELO))


def result(deferred: Deferred[Decision]) -> Decision:
    fired: list[Decision] = []
    deferred.addCallback(fired.append)
    assert fired, "no decision yet"
    return fired[0]


def refusal_of(decision: Decision) -> Reply:
    assert isinstance(decision.verdict, Reject | Defer)
    return decision.verdict.reply


# ------------------------------------------------------------ whose verdict counts


@pytest.mark.parametrize(
    ("verdicts", "winner", "asked"),
    [
        ([], None, 0),
        ([CONTINUE, CONTINUE], None, 2),
        ([REJECT, DEFER], 0, 1),
        ([DEFER, REJECT], 0, 1),
        ([CONTINUE, REJECT, CONTINUE], 1, 2),
        ([ACCEPT, REJECT], None, 1),
        ([CONTINUE, ACCEPT, REJECT], None, 2),
        ([QUARANTINE, REJECT], 1, 2),
        ([DISCARD, REJECT], 1, 2),
        ([DISCARD, DEFER], 1, 2),
        ([QUARANTINE, CONTINUE], 0, 2),
        ([QUARANTINE, ACCEPT], 0, 2),
        ([QUARANTINE, DISCARD], 1, 2),
        ([DISCARD, QUARANTINE], 0, 2),
        ([QUARANTINE, Quarantine("second")], 0, 2),
        ([DISCARD, Discard("second")], 0, 2),
        ([ACCEPT, DISCARD], None, 1),
    ],
)
def test_the_order_of_configuration_decides(verdicts: list[Verdict], winner: int | None, asked: int) -> None:
    policies = [says(f"p{number}", verdict) for number, verdict in enumerate(verdicts)]
    decision = decide(*policies)
    assert isinstance(decision, Decision)
    assert decision.verdict == (CONTINUE if winner is None else verdicts[winner])
    assert decision.policy == ("" if winner is None else f"p{winner}")
    assert sum(len(policy.asked) for policy in policies) == asked


@pytest.mark.parametrize("verdicts", list(permutations([CONTINUE, REJECT, QUARANTINE, ACCEPT], 3)), ids=str)
def test_who_answers_first_does_not_matter(verdicts: tuple[Verdict, ...]) -> None:
    """The same decision at once, and in every order of answers."""
    at_once = decide(*(says(f"p{number}", verdict) for number, verdict in enumerate(verdicts)))
    for order in permutations(range(3)):
        policies = [Slow(f"p{number}") for number in range(3)]
        deciding = decide(*policies)
        for number in order:
            if not policies[number].waiting[0].called:
                policies[number].waiting[0].callback(verdicts[number])
        assert result(deciding) == at_once


def test_policies_that_wait_wait_at_the_same_time() -> None:
    policies = [Slow("a"), Slow("b"), says("c", REJECT)]
    deciding = decide(*policies)
    assert [len(policy.asked) for policy in policies] == [1, 1, 1]
    policies[0].waiting[0].callback(CONTINUE)  # type: ignore[attr-defined]  # it is a Slow
    policies[1].waiting[0].callback(CONTINUE)  # type: ignore[attr-defined]  # it is a Slow
    assert result(deciding).policy == "c"


def test_what_stands_behind_a_refusal_is_cancelled() -> None:
    first, second = Slow("first"), Slow("second")
    deciding = decide(first, second)
    first.waiting[0].callback(REJECT)
    assert result(deciding).verdict == REJECT
    assert second.cancelled == 1


def test_an_acceptance_spares_nobody_what_is_essential() -> None:
    """A field that claims to be ours must not stand, whoever is a friend."""
    essential = Member(says("results", Continue((Note("results"),))), is_essential=True)
    for policy, others in ((says("friend", ACCEPT), says("spam", REJECT)), (Slow("friend"), Slow("spam"))):
        deciding = decide(policy, others, essential)
        if isinstance(policy, Slow):
            policy.waiting[0].callback(ACCEPT)
            assert isinstance(others, Slow)
            assert others.cancelled == 1
        decision = result(deciding) if isinstance(deciding, Deferred) else deciding
        assert decision.verdict == CONTINUE
        assert own_notes(decision) == (Note("results"),)


def test_a_policy_is_asked_at_its_stages_only() -> None:
    policy = says("mail", REJECT, stages=frozenset({Stage.MAIL}))
    assert decide(policy).verdict == CONTINUE
    assert decide(policy, request=at(Stage.MAIL, transaction())).verdict == REJECT


def test_a_policy_is_asked_on_its_listeners_only() -> None:
    member = Member(says("submission", REJECT), roles=frozenset({Role.SUBMISSION}))
    assert decide(member).verdict == CONTINUE


def test_loopback_is_spared_where_that_is_wanted() -> None:
    policy = says("dns", REJECT)
    request = Request(Stage.HELO, SessionView(1, "mx", Role.MX, "127.0.0.1", 1, "127.0.0.1/32", "127.0.0.1", 25, 0.0))
    assert decide(Member(policy, spares_loopback=True), request=request).verdict == CONTINUE
    assert decide(Member(policy), request=request).verdict == REJECT


# ------------------------------------------------------------ notes


def own_notes(decision: Decision) -> tuple[object, ...]:
    """The policies' notes, without those that the chain makes of their verdicts."""
    return tuple(note for note in decision.notes if not isinstance(note, Opinion))


def test_every_verdict_but_continue_is_noted_for_the_record() -> None:
    """Who said what, at which stage, under which configuration."""
    policies = [
        Member(FunctionPolicy("a", [Stage.HELO], lambda _: Continue((Note("a"),)))),
        Member(FunctionPolicy("b", [Stage.HELO], lambda _: Quarantine("odd")), fingerprint="f00"),
        Member(FunctionPolicy("c", [Stage.HELO], lambda _: Reject(reply(550, "5.7.1", "No")))),
    ]
    decision = Chain(Clock(), policies).decide(Request(Stage.HELO, SESSION))
    assert isinstance(decision, Decision)
    assert decision.notes == (
        Note("a"),
        Opinion("helo", "b", "f00", "quarantine", "odd"),
        Opinion("helo", "c", "", "reject", "550 5.7.1 No"),
    )


def test_notes_of_all_that_counted_are_kept() -> None:
    decision = decide(
        says("a", Continue((Note("a"),))),
        says("b", Quarantine("odd", (Note("b"),))),
        says("c", Reject(REFUSED, (Note("c"),))),
        says("d", Continue((Note("d"),))),
    )
    assert own_notes(decision) == (Note("a"), Note("b"), Note("c"))


def test_a_policy_that_comes_after_others_sees_their_notes() -> None:
    spf = Slow("spf")
    dmarc = says("dmarc", CONTINUE, after=frozenset({"spf", "not configured"}))
    deciding = decide(dmarc, spf)
    assert not dmarc.asked
    spf.waiting[0].callback(Continue((Note("pass"),)))
    assert result(deciding).verdict == CONTINUE
    assert dmarc.asked[0].notes == (Note("pass"),)


def test_policies_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="wait for each other"):
        decide(says("a", CONTINUE, after=frozenset({"b"})), says("b", CONTINUE, after=frozenset({"a"})))


# ------------------------------------------------------------ doubt is ours


def raises(_request: Request) -> Verdict:
    raise ZeroDivisionError("a secret")


async def raises_later(_request: Request) -> Verdict:
    raise ZeroDivisionError("a secret")


def exits(_request: Request) -> Verdict:
    raise SystemExit(3)


async def exits_later(_request: Request) -> Verdict:
    raise SystemExit(3)


def raises_what_is_no_exception(_request: Request) -> Verdict:
    raise asyncio.CancelledError


async def raises_what_is_no_exception_later(_request: Request) -> Verdict:
    raise asyncio.CancelledError


async def answers_later(_request: Request) -> object:
    return "nonsense"


NONSENSE: dict[str, Any] = {
    "notes in a list": Continue([Note("x")]),  # type: ignore[arg-type]
    "a note without a tuple": Continue("x"),  # type: ignore[arg-type]
    "no notes": Accept(None),  # type: ignore[arg-type]
    "a refusal's notes in a list": Reject(REFUSED, [Note("x")]),  # type: ignore[arg-type]
    "a reply that is a str": Reject("550 5.7.1 No"),  # type: ignore[arg-type]
    "no reply": Defer(None),  # type: ignore[arg-type]
    "a code that is a str": Reject(Reply("550", "5.7.1", ("No",))),  # type: ignore[arg-type]
    "a reply without lines": Reject(Reply(550, "5.7.1", ())),
    "lines that are one str": Reject(Reply(550, "5.7.1", "No")),  # type: ignore[arg-type]
    "a line of bytes": Reject(Reply(550, "5.7.1", (b"No",))),  # type: ignore[arg-type]
    "a line end in the status": Reject(Reply(550, "5.7.1\r\n250 2.0.0", ("Ok",))),
    "a reason that is a number": Quarantine(5),  # type: ignore[arg-type]
    "no reason": Discard(None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "later"])
def test_a_verdict_of_a_wrong_make_is_451_and_named_in_the_log(
    nonsense: object, is_late: bool, logged: list[LogEvent]
) -> None:
    """A session must not break at what a careless policy puts into a verdict, nor storage, nor the client's parser."""
    slow = Slow("broken")
    decision = decide(slow if is_late else says("broken", nonsense), says("behind", CONTINUE))
    if is_late:
        slow.waiting[0].callback(nonsense)  # type: ignore[arg-type]
        decision = result(decision)
    assert refusal_of(decision) == reply(451, "4.3.0", "A check could not be completed; try again later")
    assert decision.policy == "broken"
    assert [event["policy"] for event in logged] == ["broken"]


@pytest.mark.parametrize(
    "answer",
    [
        raises,
        raises_later,
        exits,
        exits_later,
        raises_what_is_no_exception,
        raises_what_is_no_exception_later,
        answers_later,
        lambda _request: None,
        lambda _request: "reject",
        lambda _request: REFUSED,
        lambda _request: Reject(DEFERRED),
        lambda _request: Defer(REFUSED),
        lambda _request: Reject(OK),
        lambda _request: Decision(CONTINUE),
    ],
    ids=[
        "raises",
        "raises later",
        "exits",
        "exits later",
        "raises what is no Exception",
        "raises what is no Exception later",
        "nonsense later",
        "None",
        "str",
        "Reply",
        "Reject 4xx",
        "Defer 5xx",
        "2xx",
        "Decision",
    ],
)
def test_a_policy_that_fails_is_451_and_named_in_the_log(
    answer: Callable[[Request], Any], logged: list[LogEvent]
) -> None:
    """What the client hears says nothing of the cause."""
    broken = Policy("broken", answer)
    decision = decide(says("before", Continue((Note("kept"),))), broken, says("behind", REJECT))
    if isinstance(decision, Deferred):
        decision = result(decision)
    assert refusal_of(decision) == reply(451, "4.3.0", "A check could not be completed; try again later")
    assert decision.policy == "broken"
    assert own_notes(decision) == (Note("kept"),)
    assert [event["policy"] for event in logged] == ["broken"]
    assert [event["session"] for event in logged] == [encode_id(1)]  # as people see it, and as `explain` takes it


def test_a_later_failure_spoils_no_earlier_refusal() -> None:
    first, second = Slow("first"), Slow("second")
    deciding = decide(first, second)
    second.waiting[0].errback(ZeroDivisionError())
    first.waiting[0].callback(REJECT)
    assert result(deciding).verdict == REJECT


# ------------------------------------------------------------ time


def test_the_deadline_is_451_and_cancels(logged: list[LogEvent]) -> None:
    clock = Clock()
    slow = Slow("slow")
    deciding = decide(says("fast", Continue((Note("kept"),))), slow, clock=clock)
    clock.advance(DEFAULT_DEADLINE_SECONDS - 0.1)
    assert not deciding.called
    clock.advance(0.1)
    decision = result(deciding)
    assert refusal_of(decision).code == 451
    assert decision.policy == "slow"
    assert own_notes(decision) == (Note("kept"),)
    assert slow.cancelled == 1
    assert [event["policy"] for event in logged] == ["slow"]
    assert not clock.getDelayedCalls()


def test_the_deadline_is_that_of_the_stage() -> None:
    clock = Clock()
    chain = Chain(clock, [Slow("slow")], {Stage.HELO: 2.0})
    deciding = chain.decide(at(Stage.HELO))
    assert isinstance(deciding, Deferred)
    clock.advance(2)
    assert refusal_of(result(deciding)).code == 451


def test_the_deadline_is_one_for_all_policies_of_the_stage() -> None:
    clock = Clock()
    first, second = Slow("first"), Slow("second", after=frozenset({"first"}))
    deciding = decide(first, second, clock=clock)
    clock.advance(20)
    first.waiting[0].callback(CONTINUE)
    clock.advance(10)
    assert refusal_of(result(deciding)).code == 451
    assert second.cancelled == 1


def test_an_answer_in_time_leaves_no_timer() -> None:
    clock = Clock()
    slow = Slow("slow")
    deciding = decide(slow, clock=clock)
    slow.waiting[0].callback(CONTINUE)
    assert result(deciding).verdict == CONTINUE
    assert not clock.getDelayedCalls()


def test_an_answer_after_the_deadline_is_for_nobody() -> None:
    clock = Clock()
    deaf: Deferred[Verdict] = Deferred()
    deciding = decide(says("deaf", deaf), clock=clock)
    clock.advance(DEFAULT_DEADLINE_SECONDS)
    assert refusal_of(result(deciding)).code == 451


def test_cancelling_reaches_every_policy_that_waits() -> None:
    clock = Clock()
    policies = [Slow("a"), Slow("b")]
    deciding = decide(*policies, clock=clock)
    failures: list[object] = []
    deciding.addErrback(lambda failure: failures.append(failure.type))
    deciding.cancel()
    assert failures == [CancelledError]
    assert [policy.cancelled for policy in policies] == [1, 1]
    assert not clock.getDelayedCalls()


async def stubborn(_request: Request) -> Verdict:
    """As careless code is: CancelledError is an Exception like any other."""
    try:
        await Deferred()
    except Exception:
        return CONTINUE
    raise AssertionError


def test_who_does_not_want_to_be_cancelled_gets_no_more_time(logged: list[LogEvent]) -> None:
    """The deadline stands, and nobody else is asked behind it."""
    clock = Clock()
    later = Slow("later", after=frozenset({"stubborn"}))
    deciding = decide(Policy("stubborn", stubborn), later, clock=clock)
    clock.advance(DEFAULT_DEADLINE_SECONDS)
    assert refusal_of(result(deciding)).code == 451
    assert not later.asked
    assert not clock.getDelayedCalls()
    assert [event["policy"] for event in logged] == ["stubborn"]


def test_nobody_is_asked_for_a_client_that_is_gone() -> None:
    clock = Clock()
    later = Slow("later", after=frozenset({"stubborn"}))
    deciding = decide(Policy("stubborn", stubborn), later, clock=clock)
    failures: list[object] = []
    deciding.addErrback(lambda failure: failures.append(failure.type))
    deciding.cancel()
    assert failures == [CancelledError]
    assert not later.asked
    assert not clock.getDelayedCalls()


def test_a_policy_that_cancels_itself_is_451_and_named(logged: list[LogEvent]) -> None:
    """Nobody wanted it to."""
    slow = Slow("faint")
    deciding = decide(slow)
    slow.waiting[0].cancel()
    assert refusal_of(result(deciding)).code == 451
    assert [event["policy"] for event in logged] == ["faint"]


def test_a_policy_that_holds_the_reactor_up_is_named(logged: list[LogEvent]) -> None:
    times = iter([0.0, 0.25])
    chain = Chain(Clock(), [says("busy", CONTINUE)], monotonic=lambda: next(times))
    chain.decide(at(Stage.HELO))
    assert [event["policy"] for event in logged] == ["busy"]


def test_every_step_of_a_coroutine_is_timed(logged: list[LogEvent]) -> None:
    """What it does between two waits, nobody else can do meanwhile."""
    now = 0.0
    waiting: list[Deferred[None]] = [Deferred(), Deferred()]

    async def works(_request: Request) -> Verdict:
        nonlocal now
        await waiting[0]
        now += 0.5
        await waiting[1]
        now += 0.05
        return REJECT

    chain = Chain(Clock(), [Policy("works", works)], monotonic=lambda: now)
    deciding = chain.decide(at(Stage.HELO))
    assert isinstance(deciding, Deferred)
    now += 10  # that is not its doing
    for deferred in waiting:
        deferred.callback(None)
    assert result(deciding).verdict == REJECT
    assert [(event["policy"], event["seconds"]) for event in logged] == [("works", 0.5)]


# ------------------------------------------------------------ policies for some domains


OURS = frozenset({"strict.test"})


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.HELO, Stage.MAIL])
@pytest.mark.parametrize("verdict", [REJECT, DEFER, QUARANTINE], ids=["Reject", "Defer", "Quarantine"])
def test_an_objection_before_the_recipients_waits_for_them(stage: Stage, verdict: Verdict) -> None:
    """Who is not concerned gets the mail; who is, says so at RCPT."""
    chain = Chain(Clock(), [Member(says("strict", verdict, stages=frozenset({stage})), domains=OURS)])
    before = chain.decide(at(stage, transaction() if stage is Stage.MAIL else None))
    assert isinstance(before, Decision)
    assert before.verdict == CONTINUE
    for domain, expected in (("strict.test", verdict), ("STRICT.test.", verdict), ("other.test", CONTINUE)):
        path = ForwardPath(Address("bob", domain))
        decision = chain.decide(Request(Stage.RCPT, SESSION, transaction(), path, notes=before.notes))
        assert isinstance(decision, Decision)
        assert decision.verdict == expected


@pytest.mark.parametrize(
    ("verdict", "whole", "part"),
    [
        (REJECT, REJECT, "Quarantine"),
        (DISCARD, DISCARD, "Discard"),
        (QUARANTINE, QUARANTINE, "Quarantine"),
        (DEFER, DEFER, None),
    ],
    ids=["Reject", "Discard", "Quarantine", "Defer"],
)
def test_one_reply_can_refuse_for_all_recipients_only(verdict: Verdict, whole: Verdict, part: str | None) -> None:
    """One reply stands for all recipients, and a bounce would go to whoever was forged."""
    member = Member(says("strict", verdict), domains=OURS)
    for_all = decide(member, request=at(Stage.END_OF_DATA, transaction("strict.test", refused=["other.test"])))
    assert for_all.verdict == whole
    for_some = decide(member, request=at(Stage.END_OF_DATA, transaction("other.test", "strict.test")))
    if part is None:
        assert for_some.verdict == DEFER
        return
    assert for_some.verdict == CONTINUE
    ((position, fate),) = for_some.fates
    assert (position, type(fate.verdict).__name__, fate.policy) == (1, part, "strict")


def test_a_policy_for_no_recipient_of_the_message_is_not_asked() -> None:
    policy = says("strict", REJECT)
    decision = decide(Member(policy, domains=OURS), request=at(Stage.END_OF_DATA, transaction("other.test")))
    assert decision.verdict == CONTINUE
    assert not policy.asked


def test_an_acceptance_for_some_ends_nothing_for_the_others() -> None:
    decision = decide(
        Member(says("friendly", ACCEPT), domains=OURS),
        says("general", REJECT),
        request=at(Stage.END_OF_DATA, transaction("strict.test", "other.test")),
    )
    assert decision.policy == "general"


def test_what_two_policies_say_of_different_recipients_holds_for_each() -> None:
    """Both refuse, and all are concerned; still no single reply is true for either policy."""
    decision = decide(
        Member(says("a", REJECT), domains=frozenset({"a.test"})),
        Member(says("b", DISCARD), domains=frozenset({"b.test"})),
        request=at(Stage.END_OF_DATA, transaction("a.test", "b.test", "a.test", "c.test")),
    )
    assert decision.verdict == CONTINUE
    fates = {position: (type(fate.verdict), fate.policy) for position, fate in decision.fates}
    assert fates == {0: (Quarantine, "a"), 1: (Discard, "b"), 2: (Quarantine, "a")}


def test_of_several_fates_the_first_counts_but_discard_outweighs() -> None:
    """As for the message as a whole."""
    decision = decide(
        Member(says("first", QUARANTINE), domains=OURS),
        Member(says("second", Quarantine("also odd")), domains=OURS),
        Member(says("third", DISCARD), domains=OURS),
        Member(says("fourth", REJECT), domains=OURS),
        request=at(Stage.END_OF_DATA, transaction("strict.test", "other.test")),
    )
    ((position, fate),) = decision.fates
    assert (position, fate.verdict, fate.policy) == (0, DISCARD, "third")


def test_a_fate_for_some_does_not_stop_a_refusal_for_all() -> None:
    decision = decide(
        Member(says("strict", REJECT), domains=OURS),
        says("general", REJECT),
        request=at(Stage.END_OF_DATA, transaction("strict.test", "other.test")),
    )
    assert (decision.verdict, decision.policy) == (REJECT, "general")


def test_before_the_message_an_objection_for_some_is_a_fate_too() -> None:
    """DATA has one reply for all recipients as well."""
    decision = decide(
        Member(says("strict", REJECT), domains=OURS),
        request=at(Stage.DATA, transaction("strict.test", "other.test")),
    )
    ((position, fate),) = decision.fates
    assert (position, fate.verdict) == (0, Quarantine("refused for some recipients only: 550 5.7.1 No"))


def test_of_several_postponed_objections_the_first_refusal_decides() -> None:
    """A quarantine that was raised before lets it."""
    chain = Chain(
        Clock(),
        [
            Member(says("odd", QUARANTINE, stages=frozenset({Stage.CONNECT})), domains=OURS),
            Member(says("later", DEFER, stages=frozenset({Stage.HELO})), domains=OURS),
            Member(says("never", REJECT, stages=frozenset({Stage.HELO})), domains=OURS),
        ],
    )
    notes: tuple[object, ...] = ()
    for stage in (Stage.CONNECT, Stage.HELO):
        before = chain.decide(at(stage))
        assert isinstance(before, Decision)
        assert before.verdict == CONTINUE
        notes += before.notes
    path = ForwardPath(Address("bob", "strict.test"))
    decision = chain.decide(Request(Stage.RCPT, SESSION, transaction(), path, notes=notes))
    assert isinstance(decision, Decision)
    assert (decision.verdict, decision.policy) == (DEFER, "later")


def test_a_postponed_quarantine_gives_way_to_a_refusal_at_rcpt() -> None:
    """The more honest answer."""
    chain = Chain(
        Clock(),
        [
            Member(says("odd", QUARANTINE, stages=frozenset({Stage.MAIL})), domains=OURS),
            says("recipients", REJECT, stages=frozenset({Stage.RCPT})),
        ],
    )
    before = chain.decide(at(Stage.MAIL, transaction()))
    assert isinstance(before, Decision)
    path = ForwardPath(Address("bob", "strict.test"))
    decision = chain.decide(Request(Stage.RCPT, SESSION, transaction(), path, notes=before.notes))
    assert isinstance(decision, Decision)
    assert (decision.verdict, decision.policy) == (REJECT, "recipients")


VERDICTS = st.sampled_from([CONTINUE, ACCEPT, REJECT, DEFER, QUARANTINE, DISCARD])


@given(st.lists(st.tuples(VERDICTS, st.booleans()), max_size=6), st.randoms(use_true_random=False))
def test_every_mix_of_verdicts_and_every_order_of_answers_is_decided_alike(
    said: list[tuple[Verdict, bool]], random: Random
) -> None:
    """The rules of the chain, told once more: what counts, and who."""
    counting: list[tuple[str, Verdict]] = []
    for number, (verdict, _) in enumerate(said):
        counting.append((f"p{number}", verdict))
        if isinstance(verdict, Reject | Defer | Accept):
            break
    expected: tuple[str, Verdict] = ("", CONTINUE)
    for kind in (Quarantine, Discard, (Reject, Defer)):
        expected = next(((name, verdict) for name, verdict in counting if isinstance(verdict, kind)), expected)
    policies = [Slow(f"p{n}") if waits else says(f"p{n}", verdict) for n, (verdict, waits) in enumerate(said)]
    deciding = decide(*policies)
    waiting = [(policy, verdict) for policy, (verdict, _) in zip(policies, said, strict=True)]
    random.shuffle(waiting)
    for policy, verdict in waiting:
        if isinstance(policy, Slow) and policy.waiting and not policy.waiting[0].called:
            policy.waiting[0].callback(verdict)
    decision = result(deciding) if isinstance(deciding, Deferred) else deciding
    assert (decision.policy, decision.verdict) == expected
