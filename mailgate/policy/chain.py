"""The policy chain: one decision from the verdicts of several policies.

The policies of a stage are asked in the configured order. The first Reject or Defer decides, and no later policy is
asked; an Accept ends the asking as well, without an objection. Quarantine and Discard let the asking go on, since a
later policy may refuse the message with an honest reply; at the end Discard outweighs Quarantine. Notes of all that
were asked are kept, those of the deciding verdict included.

Doubt is ours, and must not bounce mail: a policy that raises, answers nonsense, or lets the stage's deadline pass
means 451 for that transaction, a log event with its name, and nothing for any other session.

A decision is given at once where no policy had to wait: that is the hot path, and it makes no Deferred.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.logger import Logger

from mailgate.policy.stage import Request, Stage
from mailgate.policy.verdict import Accept, Continue, Decision, Defer, Discard, Quarantine, Reject, Verdict
from mailgate.smtp.reply import reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IReactorTime

    from mailgate.interfaces import IPolicy

DEFAULT_DEADLINE_SECONDS = 30.0

_UNDECIDED = Defer(reply(451, "4.3.0", "A check could not be completed; try again later"))
_GO_ON = Decision(Continue())


class Chain:
    """The policies of one listener, in order."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        policies: Sequence[IPolicy],
        deadlines_seconds: Mapping[Stage, float] | None = None,
    ) -> None:
        """A stage without a deadline of its own has DEFAULT_DEADLINE_SECONDS."""
        self._clock = clock
        self._by_stage: dict[Stage, tuple[IPolicy, ...]] = {
            stage: tuple(policy for policy in policies if stage in policy.stages)  # type: ignore[operator]  # IPolicy.stages: Attribute
            for stage in Stage
        }
        self._deadlines = dict(deadlines_seconds or {})

    def decide(self, request: Request) -> Decision | Deferred[Decision]:
        """The decision for a request, or a Deferred of it, which never fails except by being cancelled."""
        policies = self._by_stage[request.stage]
        if not policies:
            return _GO_ON
        merge = _Merge()
        remaining = iter(policies)
        for policy in remaining:
            try:
                answer: object = policy.decide(request)  # type: ignore[no-untyped-call]  # an interface has no types
            except Exception:
                answer = self._failed(policy, request)
            if inspect.isawaitable(answer):
                return self._decide_later(request, merge, policy, answer, remaining)
            if merge.ends_with(policy, self._checked(answer, policy, request)):
                break
        return merge.decision()

    def _decide_later(
        self,
        request: Request,
        merge: _Merge,
        policy: IPolicy,
        answer: Awaitable[object],
        remaining: Iterator[IPolicy],
    ) -> Deferred[Decision]:
        asked = policy  # the policy that is being waited for

        async def ask() -> Decision:
            nonlocal asked
            waiting: object = answer
            while True:
                try:
                    verdict: object = await waiting if inspect.isawaitable(waiting) else waiting
                except CancelledError:
                    raise
                except Exception:
                    verdict = self._failed(asked, request)
                if merge.ends_with(asked, self._checked(verdict, asked, request)):
                    return merge.decision()
                following = next(remaining, None)
                if following is None:
                    return merge.decision()
                asked = following
                try:
                    waiting = asked.decide(request)  # type: ignore[no-untyped-call]  # as above
                except Exception:
                    waiting = self._failed(asked, request)

        def too_late(_result: object, seconds: float) -> Decision:
            self._log.error(
                "policy {policy} missed the deadline of {seconds} s at {stage} in session {session}",
                policy=asked.name,
                seconds=seconds,
                stage=request.stage.value,
                session=request.session.id,
            )
            raise DeferredTimeoutError

        deadline = self._deadlines.get(request.stage, DEFAULT_DEADLINE_SECONDS)
        deferred = Deferred.fromCoroutine(ask())
        deferred.addTimeout(deadline, self._clock, onTimeoutCancel=too_late)

        def undecided(failure: Any) -> Decision:  # Any: twisted.python.failure.Failure is not generic in its use
            failure.trap(DeferredTimeoutError)
            return Decision(_UNDECIDED, asked.name, merge.notes)

        return deferred.addErrback(undecided)

    def _checked(self, answer: object, policy: IPolicy, request: Request) -> Verdict:
        if isinstance(answer, (Continue, Accept, Reject, Defer, Quarantine, Discard)) and _is_sound(answer):
            return answer
        self._log.error(
            "policy {policy} answered {answer!r}, which is no verdict, at {stage} in session {session}",
            policy=policy.name,
            answer=answer,
            stage=request.stage.value,
            session=request.session.id,
        )
        return _UNDECIDED

    def _failed(self, policy: IPolicy, request: Request) -> Verdict:
        self._log.failure(
            "policy {policy} failed at {stage} in session {session}",
            policy=policy.name,
            stage=request.stage.value,
            session=request.session.id,
        )
        return _UNDECIDED


def _is_sound(verdict: Verdict) -> bool:
    match verdict:
        case Reject(reply=refusal):
            return 500 <= refusal.code <= 599
        case Defer(reply=refusal):
            return 400 <= refusal.code <= 499
        case _:
            return True


class _Merge:
    """What has been said so far at one stage of one transaction."""

    __slots__ = ("_policy", "_verdict", "notes")

    def __init__(self) -> None:
        self._verdict: Verdict | None = None
        self._policy = ""
        self.notes: tuple[object, ...] = ()

    def ends_with(self, policy: IPolicy, verdict: Verdict) -> bool:
        """Take one verdict; whether no more are wanted."""
        if verdict.notes:
            self.notes += verdict.notes
        match verdict:
            case Continue():
                return False
            case Accept():
                return True
            case Reject() | Defer():
                self._verdict, self._policy = verdict, policy.name
                return True
            case Discard():
                outweighs = not isinstance(self._verdict, Discard)
            case Quarantine():
                outweighs = self._verdict is None
        if outweighs:
            self._verdict, self._policy = verdict, policy.name
        return False

    def decision(self) -> Decision:
        """What the session acts on."""
        if self._verdict is None and not self.notes:
            return _GO_ON
        return Decision(self._verdict or _GO_ON.verdict, self._policy, self.notes)
