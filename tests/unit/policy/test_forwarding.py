"""What is done to a message that an alias passes on: the seal, Delivered-To, and the end of a loop."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from dataclasses import replace
from functools import cache
from typing import Any, cast

import dkim
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mailgate.auth.arc import ArcOptions
from mailgate.auth.private_key import PrivateKey, generate_key
from mailgate.auth.results import ArcResult, Result, SpfResult
from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from mailgate.envelope import Address, ForwardDestination, ForwardPath, MailboxDestination, Resolution, ReversePath
from mailgate.interfaces import IPolicy
from mailgate.message import MessageContent, revised
from mailgate.policy.arc import ArcPolicy
from mailgate.policy.forwarding import ForwardingPolicy
from mailgate.policy.stage import (
    AddedFields,
    RecipientView,
    RemovedFields,
    Request,
    Stage,
    TraceFields,
    TransactionView,
)
from mailgate.policy.verdict import Continue, Reject, Verdict
from mailgate.sealing import UnusableKey
from mailgate.smtp.grammar import parse_mailbox
from mailgate.smtp.reply import reply
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.signing_keys import SigningKeys
from tests.unit.policy.test_recipients import SESSION, status

OURS = "mx.example.test"
MESSAGE = b"From: bob@example.org\r\nTo: team@example.test\r\nSubject: Hi\r\n\r\nHello.\r\n"
NOTES = (SpfResult("mailfrom", "example.org", "bob@example.org", Result.PASS), ArcResult(Result.NONE))
ELSEWHERE = ForwardDestination("carl@elsewhere.example")


@cache
def rsa() -> PrivateKey:
    return generate_key("example.test", "r1", "rsa")


class Keys:
    """Keys of one domain."""

    def __init__(self, error: Exception | None = None, *, is_late: bool = False) -> None:
        self.error = error
        self.is_late = is_late

    def keys_for(self, domain: str) -> Any:  # Any: what SigningKeys gives
        if self.error is not None:
            return fail(self.error)
        keys = (generate_key(domain, "e1", "ed25519"), rsa()) if domain == "example.test" else ()
        return succeed(keys) if self.is_late else keys


def recipient(
    address: str, *destinations: MailboxDestination | ForwardDestination, accepted: bool = True
) -> RecipientView:
    return RecipientView(
        ForwardPath(parse_mailbox(address)), accepted, reply(250, "2.1.5", "ok"), (Resolution(destinations),)
    )


TEAM = recipient("Team@example.test", ELSEWHERE)
BOTH = recipient("both@example.test", MailboxDestination(1, "alice@example.test"), ELSEWHERE)
ALICE = recipient("alice@example.test", MailboxDestination(1, "alice@example.test"))
REFUSED = recipient("gone@example.test", ELSEWHERE, accepted=False)
OTHER = recipient("list@example.net", ELSEWHERE)


class ForwardingTest(SynchronousTestCase):
    zone = Zone()

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_600_000_000)

    def decide(
        self,
        *recipients: RecipientView,
        message: bytes = MESSAGE,
        notes: tuple[object, ...] = NOTES,
        keys: Keys | None = Keys(),  # noqa: B008 - never changed
        authenticated: str | None = None,
    ) -> Verdict:
        policy = ForwardingPolicy(
            OURS,
            cast("SigningKeys | None", keys),
            ArcPolicy(ArcOptions(), self.zone, cast("Any", self.clock)),
            cast("Any", self.clock),
        )
        assert verifyObject(IPolicy, policy)
        content = MessageContent([message], len(message), hashlib.sha256(message).digest())
        transaction = TransactionView(7, 0.0, ReversePath(Address("bob", "example.org")), recipients)
        session = replace(SESSION, authenticated=authenticated)
        verdict = policy.decide(Request(Stage.END_OF_DATA, session, transaction, content=content, notes=notes))
        if not isinstance(verdict, Awaitable):
            return verdict
        waiting: Deferred[Any] = Deferred.fromCoroutine(cast("Any", verdict))
        for _ in range(20):
            self.clock.advance(0)
        return cast("Verdict", self.successResultOf(waiting))

    def fields(self, *recipients: RecipientView, **options: Any) -> bytes:  # Any: of decide
        verdict = self.decide(*recipients, **options)
        assert isinstance(verdict, Continue), verdict
        return b"".join(note.octets for note in verdict.notes if isinstance(note, TraceFields))

    def arc_of(self, message: bytes) -> bytes | None:
        known = {rsa().record_name: rsa().record.encode()}
        verdict: bytes | None = dkim.arc_verify(
            message, dnsfunc=lambda name, timeout=5: known.get(name.decode().rstrip("."))
        )[0]
        return verdict

    def test_what_is_forwarded_is_sealed_for_the_alias_domain(self) -> None:
        """RFC 8617 section 5.1, with what we found."""
        for keys in (Keys(), Keys(is_late=True)):
            fields = self.fields(TEAM, keys=keys)
            assert b"d=example.test; s=r1;" in fields.replace(b"\r\n\t", b" ")
            assert b"ARC-Authentication-Results: i=1; mx.example.test;\r\n\tspf=pass" in fields
            assert self.arc_of(fields + MESSAGE) == b"pass"

    def test_a_large_message_is_sealed_in_turns(self) -> None:
        """No stall of the reactor."""
        message = MESSAGE + b"A line of a long message.\r\n" * 60_000
        assert self.arc_of(self.fields(TEAM, message=message) + message) == b"pass"

    def test_what_stays_here_gets_nothing(self) -> None:
        """At once: nothing has to be waited for."""
        assert self.decide(ALICE, REFUSED) == Continue()
        assert self.decide(TEAM, authenticated="alice") == Continue()

    def test_a_chain_that_nobody_has_judged_is_judged(self) -> None:
        """A configuration may have no policy `arc`; cv= must be right all the same."""
        first = self.fields(TEAM) + MESSAGE
        assert self.arc_of(first) == b"pass"
        self.zone.add(rsa().record_name, RecordType.TXT, rsa().record.encode())
        verdict = self.decide(OTHER, BOTH, message=first, notes=NOTES[:1])
        assert isinstance(verdict, Continue)
        (result,) = (note for note in verdict.notes if isinstance(note, ArcResult))
        assert result.result is Result.PASS
        (added,) = (note.octets for note in verdict.notes if isinstance(note, TraceFields))
        assert b"cv=pass;" in added
        assert b"arc=pass" in added
        assert self.arc_of(added + first) == b"pass"

    def test_what_other_policies_change_of_the_header_is_sealed_as_it_will_be(self) -> None:
        """The signature has to fit what leaves."""
        message = b"Cc: gone@example.org\r\n" + MESSAGE
        spans, added = ((0, 22),), b"Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
        fields = self.fields(TEAM, message=message, notes=(*NOTES, RemovedFields(spans), AddedFields(added)))
        content = revised(MessageContent([message], len(message), b""), spans, added)
        assert self.arc_of(fields + content.joined()) == b"pass"

    def test_without_a_key_or_where_it_is_not_wanted_there_is_no_seal(self) -> None:
        """Mail is forwarded all the same."""
        assert b"ARC-" not in self.fields(OTHER)
        assert b"ARC-" not in self.fields(TEAM, keys=None)
        assert b"ARC-" not in self.fields(TEAM, keys=Keys(UnusableKey("another master key")))
        assert b"ARC-" not in self.fields(TEAM, message=b"To: x@example.org\r\n\r\n")

    def test_without_a_database_the_client_is_asked_to_wait(self) -> None:
        """Doubt is 4xx."""
        assert status(self.decide(TEAM, keys=Keys(StorageUnavailable("gone"))))[1:] == (451, "4.3.0")

    def test_delivered_to_tells_of_an_alias_that_is_alone(self) -> None:
        """RFC 9228. With others beside it, it would tell them of each other, who may be meant not to know."""
        assert b"Delivered-To: team@example.test\r\n" in self.fields(TEAM, REFUSED)
        assert b"Delivered-To: both@example.test\r\n" in self.fields(BOTH, keys=None)
        assert b"Delivered-To" not in self.fields(TEAM, ALICE)
        assert b"Delivered-To" not in self.fields(TEAM, BOTH)

    def test_a_message_that_comes_back_to_its_alias_is_refused(self) -> None:
        """RFC 5321 section 6.3; RFC 3463: X.4.6."""
        for field in (b"Delivered-To: TEAM@Example.test", b"delivered-to: <team@example.test>"):
            verdict = self.decide(TEAM, message=field + b"\r\n" + MESSAGE)
            assert status(verdict) == (Reject, 550, "5.4.6")

    def test_others_still_get_a_message_that_is_in_a_loop_for_one(self) -> None:
        """One reply is for all of them. The next time round the alias will be alone."""
        looping = b"Delivered-To: team@example.test\r\n" + MESSAGE
        assert isinstance(self.decide(TEAM, ALICE, message=looping), Continue)
        assert isinstance(self.decide(TEAM, BOTH, message=looping), Continue)
        for harmless in (b"Delivered-To: both@example.test", b"Delivered-To: nonsense", b"Delivered-To: \xff@x"):
            assert isinstance(self.decide(TEAM, message=harmless + b"\r\n" + MESSAGE), Continue)
