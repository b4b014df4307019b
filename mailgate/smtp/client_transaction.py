"""One transaction of a client: which recipients it has, what the host said of each, and what that comes to.

A message is sent in one transaction, or in several where the host takes fewer recipients at a time; `Sending` is the
message, `Transaction` one go at it. Both are the memory of `mailgate.smtp.client` and know nothing of the order of a
dialogue.

    the host has said                                       the recipient is
    4xx or 5xx to MAIL, RCPT, DATA or the end of data       deferred or failed, in the host's words
    452 to RCPT, and 250 to others                          in the next transaction
    2xx to the end of data                                  delivered
    421 to any of these                                     deferred, in the host's words
    nothing, and the end of data has not been sent          without an outcome: another host may have it
    nothing, and the end of data has been sent              deferred, and ambiguous: it may come twice rather than never

Standards: RFC 5321 sections 4.2.1, 4.5.3.1.10 (too many recipients) and 4.5.4.1; RFC 2033 section 4.2 (LMTP); RFC 3463.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailgate.outbound.plan import RecipientOutcome, Result
from mailgate.smtp.client_framing import ContentLines, DotStuffer
from mailgate.smtp.client_reply import ReceivedReply, Stage
from mailgate.smtp.reply import Reply, reply

if TYPE_CHECKING:
    from mailgate.outbound.plan import OutgoingMessage, OutgoingRecipient

AMBIGUOUS = reply(451, "4.4.2", "The connection was lost behind the end of the message; the host may have taken it")


class Sending:
    """A message on its way, and what became of its recipients so far."""

    __slots__ = ("message", "outcomes", "started_at", "token", "untried")

    def __init__(self, message: OutgoingMessage, token: object, started_at: float) -> None:
        """`token` is whatever whoever sends it wants to know it by; `started_at` is in seconds since the epoch."""
        self.message = message
        self.token = token
        self.started_at = started_at
        self.untried: list[OutgoingRecipient] = list(message.recipients)  # neither decided nor in a transaction
        self.outcomes: list[RecipientOutcome] = []

    def heard(
        self, recipient: OutgoingRecipient, answer: ReceivedReply, stage: Stage, *, has_dsn: bool = False
    ) -> None:
        """The host has decided on a recipient."""
        code = answer.code
        result = Result.DELIVERED if code < 400 else Result.DEFERRED if code < 500 else Result.FAILED
        self.outcomes.append(
            RecipientOutcome(
                recipient.queue_id,
                result,
                answer.text(),
                answer.status(stage),
                relays_dsn=has_dsn and result is Result.DELIVERED,
            )
        )

    def decided(self, recipient: OutgoingRecipient, answer: Reply, *, is_ambiguous: bool = False) -> None:
        """We have decided on a recipient, without the host."""
        self.outcomes.append(
            RecipientOutcome(
                recipient.queue_id,
                Result.DEFERRED if answer.is_transient else Result.FAILED,
                answer.text(),
                answer.enhanced,
                is_remote=False,
                is_ambiguous=is_ambiguous,
            )
        )

    def decided_all(self, answer: Reply) -> None:
        """We have decided on all recipients that are left."""
        for recipient in self.untried:
            self.decided(recipient, answer)
        self.untried.clear()


class Transaction:
    """MAIL to the end of data."""

    __slots__ = (
        "_answered",
        "_put_off",
        "accepted",
        "has_dsn",
        "is_read",
        "lines",
        "piece_number",
        "recipients",
        "sending",
        "settled",
        "uses_chunks",
    )

    def __init__(
        self, sending: Sending, recipients: list[OutgoingRecipient], *, has_dsn: bool, uses_chunks: bool
    ) -> None:
        """Of these recipients of a message, for each of which RCPT is sent."""
        self.sending = sending
        self.recipients = recipients
        self.has_dsn = has_dsn
        self.uses_chunks = uses_chunks
        self.lines = ContentLines() if uses_chunks else DotStuffer()
        self.piece_number = 0  # of the content, the next to send
        self.is_read = False  # the content, to its end
        self.accepted: list[OutgoingRecipient] = []
        self.settled = 0  # so many of the accepted ones have their outcome
        self._answered = 0  # so many RCPT have been answered
        self._put_off: list[tuple[OutgoingRecipient, ReceivedReply]] = []

    @property
    def is_answered(self) -> bool:
        """Whether every RCPT has its reply."""
        return self._answered == len(self.recipients)

    @property
    def is_open(self) -> bool:
        """Whether there are accepted recipients that wait for the content and its reply."""
        return self.settled < len(self.accepted)

    def refused(self, answer: ReceivedReply) -> None:
        """MAIL was refused, and with it the whole message."""
        sending = self.sending
        for recipient in (*self.recipients, *sending.untried):
            sending.heard(recipient, answer, Stage.MAIL)
        sending.untried.clear()
        self._answered = len(self.recipients)

    def answered(self, answer: ReceivedReply) -> None:
        """The next RCPT was answered. Once MAIL has been refused, that says nothing more."""
        if self.is_answered:
            return
        recipient = self.recipients[self._answered]
        self._answered += 1
        if answer.code < 400:
            self.accepted.append(recipient)
        elif _is_too_many(answer):
            self._put_off.append((recipient, answer))
        else:
            self.sending.heard(recipient, answer, Stage.RCPT)

    def ended(self, answer: ReceivedReply) -> None:
        """All accepted recipients heard the same: to DATA, to a chunk, or to the end of data."""
        sending = self.sending
        for recipient in self.accepted[self.settled :]:
            sending.heard(recipient, answer, Stage.DATA, has_dsn=self.has_dsn)
        self.settled = len(self.accepted)

    def ended_for_one(self, answer: ReceivedReply) -> None:
        """The next accepted recipient has a reply of its own (RFC 2033 section 4.2)."""
        self.sending.heard(self.accepted[self.settled], answer, Stage.DATA, has_dsn=self.has_dsn)
        self.settled += 1

    def unreadable(self, answer: Reply) -> None:
        """The rest of the content can't be had: the accepted recipients have to wait for it."""
        for recipient in self.accepted[self.settled :]:
            self.sending.decided(recipient, answer)
        self.settled = len(self.accepted)

    def unknown(self) -> None:
        """The end of data has been sent, and no reply will come."""
        for recipient in self.accepted[self.settled :]:
            self.sending.decided(recipient, AMBIGUOUS, is_ambiguous=True)
        self.settled = len(self.accepted)

    def shut_down(self, answer: ReceivedReply, stage: Stage) -> None:
        """421, before the end of data or in place of its reply, is for all who have no outcome."""
        for recipient in (*self.accepted[self.settled :], *self.recipients[self._answered :]):
            self.sending.heard(recipient, answer, stage)
        self.settled = len(self.accepted)
        self._answered = len(self.recipients)

    def finish(self, *, may_go_on: bool) -> None:
        """Put those that were too many into the next transaction, if this one got anywhere and there may be one."""
        if may_go_on and self.accepted:
            self.sending.untried[:0] = [recipient for recipient, _ in self._put_off]
        else:
            for recipient, answer in self._put_off:
                # 552 in this sense counts as 452 (RFC 5321 section 4.5.3.1.10).
                self.sending.outcomes.append(
                    RecipientOutcome(recipient.queue_id, Result.DEFERRED, answer.text(), "4.5.3")
                )
        self._put_off.clear()


def _is_too_many(answer: ReceivedReply) -> bool:
    """Whether RCPT was refused only because there are too many in this transaction (RFC 5321 section 4.5.3.1.10)."""
    return answer.code in (452, 552) and answer.enhanced in ("", "4.5.3", "5.5.3")
