"""The policy chain: one decision from the verdicts of several policies.

A chain is made of members: a policy, with the listeners and the recipients' domains that it is for. At each stage

- the policies that concern the request are asked in the configured order. Those that have to wait, wait at the same
  time; only a policy that names others in `after` is asked once they have answered, and sees their notes.
- Verdicts count in the configured order, whoever answered first. The first Reject or Defer decides; an Accept ends the
  stage without an objection. What stands behind either in the order counts for nothing, and is cancelled if it waits.
- Quarantine and Discard let the asking go on, since a later policy may refuse the message with an honest reply; at the
  end Discard outweighs Quarantine, and of two alike the first counts.
- Notes are kept of all that count.
- What mailgate itself must not be without (`Member.is_essential`) is asked behind an Accept too.

A member that is for some domains only is asked before the recipients are known as well, for what it may learn; but its
objection is then kept, and holds against each recipient in those domains at RCPT. At the end of data, an objection for
some of the recipients can't be said in one reply without lying to somebody, and a bounce would go to whoever was
forged: there a Reject becomes a quarantine for the recipients that it is for, Quarantine and Discard hold for them
alone, and only Defer holds for all (the client will send again, and nothing is lost).

Doubt is ours, and must not bounce mail: a policy that raises, answers nonsense, or lets the stage's deadline pass means
451 for that transaction, a log event with its name, and nothing for any other session. A policy that holds the
reactor up is named in the log, with how long.

A decision is given at once where no policy had to wait: that is the hot path, and it makes no Deferred.
"""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.ids import encode_id
from mailgate.policy.stage import Request, Role, Stage
from mailgate.policy.verdict import (
    Accept,
    Continue,
    Decision,
    Defer,
    Discard,
    Fate,
    Opinion,
    Quarantine,
    Reject,
    Verdict,
)
from mailgate.smtp.grammar import domain_key
from mailgate.smtp.reply import Reply, reply

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mailgate.interfaces import IPolicy

_T = TypeVar("_T")

DEFAULT_DEADLINE_SECONDS = 30.0
BLOCKING_SECONDS = 0.1

_VERDICTS = (Continue, Accept, Reject, Defer, Quarantine, Discard)
_UNDECIDED = Defer(reply(451, "4.3.0", "A check could not be completed; try again later"))
_CONTINUE = Continue()
_GO_ON = Decision(_CONTINUE)

_BEFORE_RECIPIENTS = frozenset({Stage.CONNECT, Stage.HELO, Stage.MAIL})

# What a policy's failure may be: a library that gives up, or is written for asyncio, raises no Exception.
_FAILURES = (Exception, SystemExit, asyncio.CancelledError)

#   status-code = class "." subject "." detail       ; RFC 3463 section 2
_STATUS = re.compile(r"(?:[245]\.[0-9]{1,3}\.[0-9]{1,3})?")

_log = Logger()


@dataclass(frozen=True, slots=True)
class Member:
    """A policy's place in the chain."""

    policy: IPolicy
    roles: frozenset[Role] = frozenset(Role)
    domains: frozenset[str] = frozenset()  # of recipients, as `domain_key` gives them; empty: all
    spares_loopback: bool = False  # clients on this machine are not asked about
    is_essential: bool = False  # an Accept does not spare it
    name: str = ""  # how logs and the record call it; the policy's own, if empty
    fingerprint: str = ""  # of its configuration, for the record

    def __post_init__(self) -> None:
        """Take the policy's own name where no other was given."""
        if not self.name:
            object.__setattr__(self, "name", self.policy.name)

    @property
    def after(self) -> frozenset[str]:
        """The policies whose notes of the same stage it wants to see."""
        return frozenset(getattr(self.policy, "after", ()))


@dataclass(frozen=True, slots=True)
class _Postponed:
    """A note: an objection that was raised before the recipients were known, and holds for those in some domains."""

    domains: frozenset[str]
    verdict: Reject | Defer | Quarantine | Discard
    policy: str


class Chain:
    """The policies of a node, in order."""

    def __init__(
        self,
        clock: IReactorTime,
        members: Iterable[Member | IPolicy],
        deadlines_seconds: Mapping[Stage, float] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """A stage without a deadline of its own has DEFAULT_DEADLINE_SECONDS. `monotonic` times what blocks.

        @raises ValueError: policies wait for each other.
        """
        self._clock = clock
        self._monotonic = monotonic
        self._deadlines = dict(deadlines_seconds or {})
        ordered = [member if isinstance(member, Member) else Member(member) for member in members]
        self._waves: dict[tuple[Stage, Role], tuple[tuple[Member, ...], ...]] = {
            (stage, role): _waves([m for m in ordered if role in m.roles and stage in m.policy.stages])  # type: ignore[operator]  # an Attribute
            for stage in Stage
            for role in Role
        }

    def decide(self, request: Request) -> Decision | Deferred[Decision]:
        """The decision for a request, or a Deferred of it, which never fails except by being cancelled."""
        merge = _Merge(request)
        if request.stage is Stage.RCPT and request.notes and merge.recall():
            return merge.decision()
        waves = self._waves[request.stage, request.session.role]
        for number, wave in enumerate(waves):
            asked, waits = self._ask(wave, request, merge)
            if waits:
                return self._decide_later(request, merge, asked, waves[number + 1 :])
            for member, verdict in asked:
                if merge.ends_with(member, verdict):  # type: ignore[arg-type]  # none of them waits
                    return merge.decision()
        return merge.decision()

    def _ask(
        self, wave: Sequence[Member], request: Request, merge: _Merge
    ) -> tuple[list[tuple[Member, Verdict | Deferred[Verdict]]], bool]:
        """Ask the members of a wave that the request concerns; whether any of them has to wait."""
        if merge.notes:
            request = Request(
                request.stage,
                request.session,
                request.transaction,
                request.forward_path,
                request.content,
                request.notes + merge.notes,
            )
        asked: list[tuple[Member, Verdict | Deferred[Verdict]]] = []
        waits = False
        is_accepted = merge.is_accepted
        for member in wave:
            if (is_accepted and not member.is_essential) or not _concerns(member, request):
                continue
            answer = self._ask_one(member, request)
            asked.append((member, answer))
            if type(answer) is Continue:
                continue
            if isinstance(answer, Deferred):
                waits = True
            elif not waits and not member.domains:
                if isinstance(answer, Reject | Defer):
                    break
                is_accepted = is_accepted or isinstance(answer, Accept)
        return asked, waits

    def _ask_one(self, member: Member, request: Request) -> Verdict | Deferred[Verdict]:
        began = self._monotonic()
        try:
            answer: object = member.policy.decide(request)  # type: ignore[no-untyped-call]  # an interface has no types
        except _FAILURES:
            answer = self._failed(member, request)
        self._note_blocking(member, request, began)
        if type(answer) is Continue and type(answer.notes) is tuple:  # nearly every answer, and sound
            return answer
        if not inspect.isawaitable(answer):
            return self._checked(answer, member, request)
        return Deferred.fromCoroutine(self._awaited(member, request, answer))

    async def _awaited(self, member: Member, request: Request, answer: Awaitable[object]) -> Verdict:
        try:
            if inspect.iscoroutine(answer):
                verdict = await _Timed(answer, self._monotonic, lambda b: self._note_blocking(member, request, b))
            else:
                verdict = await answer
        except CancelledError:
            raise
        except _FAILURES:
            return self._failed(member, request)
        return self._checked(verdict, member, request)

    def _decide_later(
        self,
        request: Request,
        merge: _Merge,
        asked: list[tuple[Member, Verdict | Deferred[Verdict]]],
        waves: Sequence[Sequence[Member]],
    ) -> Deferred[Decision]:
        waiting: dict[Deferred[Verdict], Member] = {}  # those whose answer has not come
        is_over = False  # decided, or given up: a policy that hears of it may still answer, and nobody listens

        def answered(result: _T, deferred: Deferred[Verdict]) -> _T:
            if not isinstance(result, Failure):
                del waiting[deferred]
            return result

        def enlist(answers: Iterable[tuple[Member, Verdict | Deferred[Verdict]]]) -> None:
            for member, answer in answers:
                if isinstance(answer, Deferred):
                    waiting[answer] = member
                    answer.addBoth(answered, answer)

        async def answer_of(member: Member, answer: Verdict | Deferred[Verdict]) -> Verdict:
            try:
                return await answer if isinstance(answer, Deferred) else answer
            except CancelledError:  # which it has done by itself, or nobody listens
                return _UNDECIDED if is_over else self._failed(member, request)

        async def collect() -> Decision:
            wave_answers = asked
            for wave in (*waves, ()):
                for member, answer in wave_answers:
                    if not merge.wants(member):
                        continue
                    verdict = await answer_of(member, answer)
                    if is_over or merge.ends_with(member, verdict):
                        return merge.decision()
                wave_answers, _ = self._ask(wave, request, merge)
                enlist(wave_answers)
            return merge.decision()

        def end(_given_up: object = None) -> None:
            nonlocal is_over
            is_over = True
            if deadline.active():
                deadline.cancel()
            for deferred in tuple(waiting):
                deferred.addErrback(lambda failure: failure.trap(CancelledError) and None)
                deferred.cancel()

        def too_late(seconds: float) -> None:
            names = [member.name for member in waiting.values()]
            _log.error(
                "policy {policy} missed the deadline of {seconds} s at {stage} in session {session}",
                policy=", ".join(names),
                seconds=seconds,
                stage=request.stage.value,
                session=encode_id(request.session.id),
            )
            notes = merge.notes
            end()
            deciding.callback(Decision(_UNDECIDED, names[0] if names else "", notes))

        def collected(result: Decision | Failure) -> None:
            if not is_over:
                end()
                deciding.callback(result)

        deciding: Deferred[Decision] = Deferred(end)
        seconds = self._deadlines.get(request.stage, DEFAULT_DEADLINE_SECONDS)
        deadline = self._clock.callLater(seconds, too_late, seconds)
        enlist(asked)
        Deferred.fromCoroutine(collect()).addBoth(collected)
        return deciding

    def _checked(self, answer: object, member: Member, request: Request) -> Verdict:
        if isinstance(answer, _VERDICTS) and _is_sound(answer):
            return answer
        _log.error(
            "policy {policy} answered {answer!r}, which is no verdict, at {stage} in session {session}",
            policy=member.name,
            answer=answer,
            stage=request.stage.value,
            session=encode_id(request.session.id),
        )
        return _UNDECIDED

    def _failed(self, member: Member, request: Request) -> Verdict:
        _log.failure(
            "policy {policy} failed at {stage} in session {session}",
            policy=member.name,
            stage=request.stage.value,
            session=encode_id(request.session.id),
        )
        return _UNDECIDED

    def _note_blocking(self, member: Member, request: Request, began: float) -> None:
        seconds = self._monotonic() - began
        if seconds > BLOCKING_SECONDS:
            _log.warn(
                "policy {policy} held the reactor up for {seconds:.3f} s at {stage} in session {session}",
                policy=member.name,
                seconds=seconds,
                stage=request.stage.value,
                session=encode_id(request.session.id),
            )


class _Timed:
    """A coroutine of which each step is timed: what it does between two awaits, nobody else can do meanwhile."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, _T], monotonic: Callable[[], float], report: Callable[[float], None]
    ) -> None:
        self._coroutine = coroutine
        self._monotonic = monotonic
        self._report = report

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self._coroutine.send(None)  # noqa: E731  # rebound below
        while True:
            began = self._monotonic()
            try:
                yielded = step()
            except StopIteration as done:
                self._report(began)
                return done.value
            self._report(began)
            try:
                value = yield yielded
            except GeneratorExit:
                self._coroutine.close()
                raise
            except Exception as error:
                step = _thrower(self._coroutine, error)
            else:
                step = _sender(self._coroutine, value)


def _sender(coroutine: Coroutine[Any, Any, Any], value: Any) -> Callable[[], Any]:
    return lambda: coroutine.send(value)


def _thrower(coroutine: Coroutine[Any, Any, Any], error: Exception) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)


class _Merge:
    """What has been said so far at one stage of one transaction."""

    __slots__ = ("_fates", "_policy", "_request", "_verdict", "is_accepted", "notes")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._verdict: Verdict | None = None
        self._policy = ""
        self._fates: dict[int, Fate] | None = None
        self.is_accepted = False
        self.notes: tuple[object, ...] = ()

    def recall(self) -> bool:
        """At RCPT: take the objections that were postponed and hold for this recipient; whether they decide."""
        for note in self._request.notes:
            if isinstance(note, _Postponed) and _recipient_domain(self._request) in note.domains:
                if isinstance(note.verdict, Reject | Defer):
                    self._verdict, self._policy = note.verdict, note.policy
                    return True
                self._weigh(note.verdict, note.policy)
        return False

    def wants(self, member: Member) -> bool:
        """Whether that policy's verdict still counts."""
        return member.is_essential or not self.is_accepted

    def ends_with(self, member: Member, verdict: Verdict) -> bool:
        """Take one verdict; whether no more are wanted."""
        if not self.wants(member):
            return False
        match verdict:
            case Continue():
                if verdict.notes:
                    self.notes += verdict.notes
                return False
            case Accept():
                self._note(member, verdict, "accept", "")
                self.is_accepted = self.is_accepted or not member.domains
                return False
            case Reject() | Defer() | Quarantine() | Discard():
                return self._object(member, verdict)
            case _:
                assert_never(verdict)

    def _note(self, member: Member, verdict: Verdict, word: str, reason: str) -> None:
        opinion = Opinion(self._request.stage.value, member.name, member.fingerprint, word, reason)
        self.notes += (*verdict.notes, opinion)

    def _object(self, member: Member, verdict: Reject | Defer | Quarantine | Discard) -> bool:
        stage = self._request.stage
        word = type(verdict).__name__.lower()
        self._note(
            member, verdict, word, verdict.reply.text() if isinstance(verdict, Reject | Defer) else verdict.reason
        )
        if member.domains and stage in _BEFORE_RECIPIENTS:
            self.notes += (_Postponed(member.domains, verdict, member.name),)
            return False
        if member.domains and stage in (Stage.DATA, Stage.END_OF_DATA) and not isinstance(verdict, Defer):
            within, is_all = _within(self._request, member.domains)
            if not is_all:
                self._some(within, verdict, member.name)
                return False
        if isinstance(verdict, Reject | Defer):
            self._verdict, self._policy = verdict, member.name
            return True
        self._weigh(verdict, member.name)
        return False

    def _weigh(self, verdict: Quarantine | Discard, policy: str) -> None:
        if self._verdict is None or (isinstance(verdict, Discard) and not isinstance(self._verdict, Discard)):
            self._verdict, self._policy = verdict, policy

    def _some(self, positions: Sequence[int], verdict: Reject | Quarantine | Discard, policy: str) -> None:
        if isinstance(verdict, Reject):
            verdict = Quarantine(f"refused for some recipients only: {verdict.reply.text()}")
        if self._fates is None:
            self._fates = {}
        for position in positions:
            present = self._fates.get(position)
            if present is None or (isinstance(verdict, Discard) and not isinstance(present.verdict, Discard)):
                self._fates[position] = Fate(verdict, policy)

    def decision(self) -> Decision:
        """What the session acts on."""
        if self._verdict is None and not self.notes and not self._fates:
            return _GO_ON
        fates = tuple(self._fates.items()) if self._fates else ()
        return Decision(self._verdict or _CONTINUE, self._policy, self.notes, fates)


def _waves(members: Sequence[Member]) -> tuple[tuple[Member, ...], ...]:
    """The members in groups: each group needs nothing but what the groups before it say."""
    waves: list[tuple[Member, ...]] = []
    left = list(members)
    while left:
        names = {member.policy.name for member in left}
        wave = tuple(member for member in left if not member.after & (names - {member.policy.name}))
        if not wave:
            raise ValueError(f"these policies wait for each other: {', '.join(sorted(names))}")
        waves.append(wave)
        left = [member for member in left if member not in wave]
    return tuple(waves)


def _concerns(member: Member, request: Request) -> bool:
    if member.spares_loopback and _is_loopback(request.session.client_address):
        return False
    if not member.domains or request.stage in _BEFORE_RECIPIENTS:
        return True
    if request.stage is Stage.RCPT:
        return _recipient_domain(request) in member.domains
    return bool(_within(request, member.domains)[0])


def _recipient_domain(request: Request) -> str:
    return _key(request.forward_path.address.domain) if request.forward_path is not None else ""


def _within(request: Request, domains: frozenset[str]) -> tuple[list[int], bool]:
    """The positions of the accepted recipients in those domains, and whether they are all that there are."""
    recipients = request.transaction.recipients if request.transaction is not None else ()
    accepted = [(position, recipient) for position, recipient in enumerate(recipients) if recipient.accepted]
    within = [p for p, recipient in accepted if _key(recipient.forward_path.address.domain) in domains]
    return within, len(within) == len(accepted)


def _key(domain: str) -> str:
    try:
        return domain_key(domain)
    except ValueError:
        return domain.lower()


@lru_cache(maxsize=8192)
def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _is_sound(verdict: Verdict) -> bool:
    """Whether it holds what its fields promise: nobody else looks at what a policy has put into them."""
    match verdict:
        case Reject():
            is_sound = _is_refusal(verdict.reply, 5)
        case Defer():
            is_sound = _is_refusal(verdict.reply, 4)
        case Quarantine() | Discard():
            is_sound = isinstance(verdict.reason, str)
        case _:
            is_sound = True
    return is_sound and isinstance(verdict.notes, tuple)


def _is_refusal(refusal: object, first_digit: int) -> bool:
    if not isinstance(refusal, Reply):
        return False
    said: tuple[object, object, object] = (refusal.code, refusal.enhanced, refusal.lines)
    match said:
        case (int(code), str(enhanced), tuple(lines)):
            has_lines = bool(lines) and all(isinstance(line, str) for line in lines)
            return code // 100 == first_digit and has_lines and _STATUS.fullmatch(enhanced) is not None
        case _:
            return False
