"""The client's side of SMTP and LMTP, without I/O: octets of a host in; octets to send, and what became of mail, out.

`ClientSession` holds every state change of a dialogue. Whoever owns the connection

    gives it what was received            receive(), connection_lost(), time_out()
    takes what is to be sent              take_output(), after any other call
    starts TLS                            when `phase` is HANDSHAKE; then tls_started()
    hands over messages                   send(), while `is_usable`; two at a time where `has_pipelining`
    feeds content                         while `wanted` is not None: content() or content_failed()
    takes what became of messages         take_deliveries(): each message once, whatever happens
    closes the connection                 when `phase` is CLOSED; `trouble` says why, None after QUIT

and counts the time that the host takes, for what `awaited` names, since `replies` last changed.

With PIPELINING, MAIL, RCPT and DATA go in one write, and so do the content of a message, its end, and MAIL, RCPT and
DATA of the next: one round trip a message. Whatever a transaction came to, the next one finds the host in a state that
is known, if need be by RSET.

Not here: how a session is opened (`mailgate.smtp.client_opening`), what replies come to for each recipient
(`mailgate.smtp.client_transaction`), which host is spoken to, whether its TLS is good enough.

Standards: RFC 5321 sections 3.3, 4.1, 4.2 and 4.3; RFC 2033 (LMTP), 2920 (PIPELINING), 3030 (CHUNKING), 9422 (LIMITS);
`mailgate.smtp.client_command` has those of the parameters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, assert_never

from mailgate.outbound.plan import Delivery, Trouble, TroubleKind
from mailgate.smtp.client_command import mail_command, rcpt_command, refusal_of
from mailgate.smtp.client_framing import END_OF_DATA
from mailgate.smtp.client_opening import Opening, Step
from mailgate.smtp.client_reply import ReceivedReply, ReplyError, ReplyParser, Stage
from mailgate.smtp.client_state import Awaited, Phase
from mailgate.smtp.client_transaction import Sending, Transaction
from mailgate.smtp.reply import Reply, reply

if TYPE_CHECKING:
    from mailgate.outbound.plan import (
        Credentials,
        Endpoint,
        OutgoingContent,
        OutgoingMessage,
        OutgoingRecipient,
        TlsDemand,
        TlsUsed,
    )
    from mailgate.smtp.client_extension import Extensions

# From this size on, content goes by BDAT where it is offered: a host that will not have it can say so at any chunk,
# while DATA has to be heard out. Below, chunks save nothing: with DATA a message costs no more round trips.
CHUNKED_FROM_OCTETS = 1024 * 1024

UNREADABLE = reply(451, "4.3.0", "The message could not be read; it will be tried again")


_DEAF = (Phase.HANDSHAKE, Phase.CLOSED)
_STAGES = {Awaited.MAIL: Stage.MAIL, Awaited.RCPT: Stage.RCPT}


class ClientSession:
    """One connection to one host."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        protocol: Literal["smtp", "lmtp"],
        helo: str,
        tls_demand: TlsDemand,
        time: Callable[[], float],
        credentials: Credentials | None = None,
        needs_requiretls: bool = False,
        is_local: bool = False,
    ) -> None:
        """`time` gives seconds since the epoch. `is_local` says that the connection doesn't leave the machine."""
        self._endpoint = endpoint
        self._protocol = protocol
        self._is_relay = protocol == "smtp" or not is_local
        self._time = time
        self._opening = Opening(
            protocol=protocol,
            helo=helo,
            tls_demand=tls_demand,
            credentials=credentials,
            needs_requiretls=needs_requiretls,
            is_local=is_local,
        )
        self._parser = ReplyParser()
        self._output: list[bytes] = []
        self._expected: deque[tuple[Awaited, Transaction | None]] = deque()
        self._unsent: deque[tuple[bytes, Awaited, Transaction]] = deque()  # commands, where there is no PIPELINING
        self._waiting: deque[Sending] = deque()  # for their transaction to begin
        self._sendings: list[Sending] = []  # that have not ended
        self._open: Transaction | None = None  # whose end of data has not been sent
        self._wants_content = False
        self._transactions = 0  # begun so far; at most one of them has content to send
        self._needs_reset = False
        self._is_quitting = False
        self._has_carried = False  # a transaction has ended
        self._replies_at_rest = 0  # received when a message came to a session that had nothing to do
        self._messages_left: int | None = None
        self._deliveries: list[tuple[object, Delivery]] = []
        self.trouble: Trouble | None = None
        self.is_broken_off = False  # by us, in the middle of a message: the host must not hear its end
        self.replies = 0  # received so far
        if tls_demand.is_implicit:
            self.phase = Phase.HANDSHAKE
        else:
            self.phase = Phase.OPENING
            self._expected.append((Awaited.GREETING, None))

    # ------------------------------------------------------------ what the owner asks

    @property
    def extensions(self) -> Extensions:
        """What the host offers."""
        return self._opening.extensions

    @property
    def tls(self) -> TlsUsed | None:
        """The TLS that there is."""
        return self._opening.tls

    @property
    def tls_result(self) -> str:
        """RFC 8460 section 4.3: why there is no TLS, where it was asked for and mail goes all the same."""
        return self._opening.tls_result

    @property
    def has_pipelining(self) -> bool:
        """Whether a second message may be handed over before the first has ended."""
        return self.extensions.pipelining

    @property
    def outstanding(self) -> int:
        """How many messages have not ended."""
        return len(self._sendings)

    @property
    def is_usable(self) -> bool:
        """Whether another message may be handed over."""
        left = self._messages_left
        return self.phase is Phase.READY and not self._is_quitting and (left is None or left > len(self._waiting))

    @property
    def awaited(self) -> Awaited:
        """What the host owes us first."""
        if self._expected:
            return self._expected[0][0]
        if self._wants_content:
            return Awaited.CONTENT
        return Awaited.HANDSHAKE if self.phase is Phase.HANDSHAKE else Awaited.NOTHING

    @property
    def wanted(self) -> tuple[OutgoingContent, int, int] | None:
        """Of which content the piece of which number is to be given next, and in which transaction of the session."""
        transaction = self._open
        if not self._wants_content or transaction is None:
            return None
        return transaction.sending.message.content, transaction.piece_number, self._transactions

    def take_output(self) -> bytes:
        """What is to be sent now."""
        output = self._output
        if not output:
            return b""
        octets = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return octets

    def take_deliveries(self) -> list[tuple[object, Delivery]]:
        """The messages that have ended, each with the token with which it was handed over."""
        deliveries = self._deliveries
        if deliveries:
            self._deliveries = []
        return deliveries

    # ------------------------------------------------------------ what the owner brings

    def receive(self, data: bytes) -> None:
        """Take octets of the host."""
        if self.phase in _DEAF:
            return  # there may be any number of them until the connection is gone
        parser = self._parser
        parser.feed(data)
        try:
            # What comes after the end, or before TLS, is for nobody.
            while self.phase not in _DEAF and (answer := parser.next()) is not None:
                self.replies += 1
                self._replied(answer)
        except ReplyError as error:
            self._fail(TroubleKind.PROTOCOL, f"The host does not speak SMTP: {error}", "4.5.0")

    def tls_started(self, tls: TlsUsed) -> None:
        """The handshake is done, and its result is good enough. What was said before it counts no more."""
        self.phase = Phase.OPENING
        self._step(self._opening.tls_started(tls))

    def send(self, message: OutgoingMessage, token: object = None) -> None:
        """Send a message. Where the session is not usable, it ends at once, without outcomes."""
        if not self._sendings:
            self._replies_at_rest = self.replies
        sending = Sending(message, token, self._time())
        self._sendings.append(sending)
        if not self.is_usable:
            self._finish(sending)
            return
        refusal = refusal_of(message, self.extensions, sending.started_at, is_relayed=self._is_relay)
        if refusal is not None:
            sending.decided_all(refusal)
            self._finish(sending)
            return
        self._waiting.append(sending)
        self._go_on()

    def content(self, piece: bytes, *, ends_piece: bool = True) -> None:
        """The piece that is `wanted`, whole or in parts; b"" behind the last."""
        transaction = self._open
        assert transaction is not None  # noqa: S101  # it was wanted
        if piece:
            octets = transaction.lines.feed(piece)
            if not transaction.uses_chunks:
                self._output.append(octets)
            elif octets:
                self._output.append(b"BDAT %d\r\n" % len(octets) + octets)
                self._expected.append((Awaited.CHUNK, transaction))
            transaction.piece_number += ends_piece
            return
        self._wants_content = False
        transaction.is_read = True
        if not self._expected:
            self._send_end(transaction)

    def _send_end(self, transaction: Transaction) -> None:
        """End the content: every chunk of it has been taken, and the host may have the message."""
        rest = transaction.lines.finish()
        self._output.append(b"BDAT %d LAST\r\n" % len(rest) + rest if transaction.uses_chunks else rest)
        # LMTP: a reply for each recipient that was accepted (RFC 2033 section 4.2), to BDAT LAST as well.
        replies = len(transaction.accepted) if self._protocol == "lmtp" else 1
        self._expected.extend([(Awaited.END, transaction)] * replies)
        self._open = None
        self._go_on()

    def content_failed(self) -> None:
        """The piece that is wanted can't be had.

        Behind DATA nothing but the end of the connection keeps the host from taking half of a message for a whole one.
        """
        transaction = self._open
        assert transaction is not None  # noqa: S101  # it was wanted
        transaction.unreadable(UNREADABLE)
        if transaction.uses_chunks:
            self._give_up(transaction)
        else:
            self.is_broken_off = True
            self._close(None)

    def quit(self) -> None:
        """End the session, once the messages that were handed over have ended."""
        self._is_quitting = True
        if self.phase is Phase.READY:
            self._go_on()

    def connection_lost(self, reason: str) -> None:
        """The connection is gone; `reason` is one line."""
        if self.phase is Phase.QUITTING or self._was_left:
            self._close(None)
        elif self.phase is not Phase.CLOSED:
            where = f" while waiting for {self.awaited.value}" if self.awaited is not Awaited.NOTHING else ""
            self._fail(TroubleKind.LOST, f"The connection was lost{where}: {reason}", "4.4.2")

    @property
    def _was_left(self) -> bool:
        """Whether the host has only left a session that had nothing to do, perhaps as a message came to it.

        Any host may (RFC 5321 section 4.5.3.2.7). That is no trouble, and says nothing of the message.
        """
        return (
            self.phase is Phase.READY
            and self._has_carried
            and (not self._sendings or self._replies_at_rest == self.replies)
        )

    def connect_failed(self, reason: str) -> None:
        """There is no connection; `reason` is one line."""
        self._fail(TroubleKind.CONNECT, reason, "4.4.1")

    def time_out(self) -> None:
        """The host has taken too long for what is awaited."""
        if self.phase is Phase.QUITTING:
            self._close(None)
        elif self.phase is not Phase.CLOSED:
            self._fail(TroubleKind.TIMEOUT, f"Timed out while waiting for {self.awaited.value}", "4.4.2")

    def tls_failed(self, reason: str, tls_result: str) -> None:
        """The handshake failed, or its result is not good enough."""
        self._fail(TroubleKind.TLS, f"TLS failed: {reason}", "4.7.5", tls_result=tls_result)

    # ------------------------------------------------------------ replies

    def _replied(self, answer: ReceivedReply) -> None:
        if not self._expected:
            self._unasked(answer)
            return
        awaited, transaction = self._expected.popleft()
        code = answer.code
        if code == 421:
            self._shut_down(answer, awaited, transaction)
        elif transaction is None:
            self._replied_outside(answer, awaited)
        elif 300 <= code < 400 and awaited is not Awaited.DATA:
            self._expected.appendleft((awaited, transaction))
            self._out_of_order(answer, awaited)
        elif awaited is Awaited.END:
            if self._protocol == "lmtp":
                transaction.ended_for_one(answer)
            else:
                transaction.ended(answer)
            if not transaction.is_open:
                self._ended(transaction)
        elif awaited is Awaited.MAIL:
            if code >= 400:
                transaction.refused(answer)
                self._envelope_answered(transaction)
            else:
                self._send_next()
        elif awaited is Awaited.RCPT:
            transaction.answered(answer)
            self._envelope_answered(transaction)
        elif awaited is Awaited.DATA:
            self._replied_to_data(answer, transaction)
        elif awaited is Awaited.CHUNK:
            self._replied_to_chunk(answer, transaction)
        elif awaited is Awaited.NO_END:
            self._ended(transaction)

    def _replied_to_data(self, answer: ReceivedReply, transaction: Transaction) -> None:
        if answer.code >= 400:
            transaction.ended(answer)
            self._give_up(transaction)
        elif answer.code < 300:
            self._out_of_order(answer, Awaited.DATA)
        elif transaction.is_open:
            self._wants_content = True
        elif self._protocol == "lmtp":
            # RFC 2033 section 4.2 has no reply for nobody: where one comes from all the same can't be known.
            self._out_of_order(answer, Awaited.DATA)
        else:
            # RFC 2920 section 3.1: "If none of the RCPT TO commands succeeded and DATA did: send a single dot."
            self._output.append(END_OF_DATA)
            self._expected.append((Awaited.NO_END, transaction))
            self._open = None
            self._needs_reset = True

    def _replied_to_chunk(self, answer: ReceivedReply, transaction: Transaction) -> None:
        if transaction is not self._open:
            pass  # an earlier chunk was refused, and this one was on its way
        elif answer.code >= 400:
            transaction.ended(answer)
            self._give_up(transaction)
        elif transaction.is_read and not self._expected:
            self._send_end(transaction)

    def _envelope_answered(self, transaction: Transaction) -> None:
        """MAIL was refused, or a RCPT answered: see whether there is a point in going on."""
        if not transaction.is_answered:
            self._send_next()
        elif self._expected and self._expected[0][1] is transaction:
            pass  # pipelined: the replies to the rest are on their way
        elif not transaction.is_open:
            self._unsent.clear()
            self._give_up(transaction)
        elif transaction.uses_chunks:
            self._wants_content = True
        else:
            self._send_next()

    def _replied_outside(self, answer: ReceivedReply, awaited: Awaited) -> None:
        """A reply that belongs to no transaction."""
        if awaited is Awaited.QUIT:
            self._close(None)
        elif awaited is not Awaited.RSET:
            self._step(self._opening.replied(answer, is_followed=self._parser.has_more))
        elif answer.code >= 300:
            self._out_of_order(answer, awaited)
        else:
            self._send_next()

    def _step(self, step: Step | None) -> None:
        """Go on with the opening."""
        match step:
            case bytes():
                self._output.append(step)
                self._expected.append((self._opening.awaited, None))
            case Phase.HANDSHAKE:
                self.phase = Phase.HANDSHAKE
            case Phase.READY:
                self.phase = Phase.READY
                self._messages_left = self.extensions.max_messages
                self._go_on()
            case Trouble():
                self._close(step)
                if step.kind is not TroubleKind.PROTOCOL:
                    # RFC 5321 section 3.1: a server that refuses at the greeting waits for QUIT.
                    self._output.append(b"QUIT\r\n")
            case None:
                self._expected.append((self._opening.awaited, None))
            case _:
                assert_never(step)

    # ------------------------------------------------------------ transactions

    def _go_on(self) -> None:
        """Begin the next transaction if it is its turn; if none is left, do as the owner wants."""
        while self._open is None and self._waiting and (self.extensions.pipelining or not self._expected):
            sending = self._waiting.popleft()
            if self._messages_left is not None:
                if self._messages_left <= 0:
                    self._finish(sending)
                    continue
                self._messages_left -= 1
            self._begin(sending)
        if self._is_quitting and self.phase is Phase.READY and not self._sendings and not self._expected:
            self.phase = Phase.QUITTING
            self._output.append(b"QUIT\r\n")
            self._expected.append((Awaited.QUIT, None))

    def _begin(self, sending: Sending) -> None:
        extensions, message = self.extensions, sending.message
        mail = mail_command(message, extensions, self._time())
        if isinstance(mail, Reply):
            sending.decided_all(mail)
            self._finish(sending)
            return
        limit = extensions.max_recipients
        untried = sending.untried
        if limit is None or len(untried) <= limit:
            sending.untried = []
        else:
            untried, sending.untried = untried[:limit], untried[limit:]
        recipients: list[OutgoingRecipient] = []
        commands: list[bytes] = []
        for recipient in untried:
            rcpt = rcpt_command(recipient, extensions, is_smtputf8=message.is_smtputf8)
            if isinstance(rcpt, Reply):
                sending.decided(recipient, rcpt)
            else:
                recipients.append(recipient)
                commands.append(rcpt)
        if not recipients:
            self._wait_or_finish(sending)
            return
        uses_chunks = (
            extensions.chunking and extensions.pipelining and message.content.size_octets >= CHUNKED_FROM_OCTETS
        )
        transaction = Transaction(sending, recipients, has_dsn=extensions.dsn, uses_chunks=uses_chunks)
        self._open = transaction
        self._transactions += 1
        if self._needs_reset:
            self._needs_reset = False
            self._output.append(b"RSET\r\n")
            self._expected.append((Awaited.RSET, None))
        if extensions.pipelining:
            output, expected = self._output, self._expected
            output.append(mail)
            output += commands
            expected.append((Awaited.MAIL, transaction))
            rcpt_entry = (Awaited.RCPT, transaction)
            expected.extend([rcpt_entry] * len(commands))
            if not uses_chunks:
                output.append(b"DATA\r\n")
                expected.append((Awaited.DATA, transaction))
            return
        self._unsent.append((mail, Awaited.MAIL, transaction))
        self._unsent.extend((command, Awaited.RCPT, transaction) for command in commands)
        self._unsent.append((b"DATA\r\n", Awaited.DATA, transaction))
        self._send_next()

    def _send_next(self) -> None:
        """Without PIPELINING: the next command, once all before it have been answered."""
        if self._unsent and not self._expected:
            command, awaited, transaction = self._unsent.popleft()
            self._output.append(command)
            self._expected.append((awaited, transaction))

    def _give_up(self, transaction: Transaction) -> None:
        """End a transaction before its end of data; the host may think that it goes on."""
        self._open = None
        self._wants_content = False
        self._needs_reset = True
        self._ended(transaction)

    def _ended(self, transaction: Transaction) -> None:
        self._has_carried = True
        transaction.finish(may_go_on=True)
        self._wait_or_finish(transaction.sending)
        self._go_on()

    def _wait_or_finish(self, sending: Sending) -> None:
        if sending.untried:
            self._waiting.append(sending)
        else:
            self._finish(sending)

    def _finish(self, sending: Sending) -> None:
        self._sendings.remove(sending)
        self._deliveries.append(
            (
                sending.token,
                Delivery(
                    sending.message.message_id,
                    self._endpoint,
                    self.tls,
                    sending.started_at,
                    self._time(),
                    tuple(sending.outcomes),
                    self.trouble,
                ),
            )
        )

    # ------------------------------------------------------------ the end

    def _unasked(self, answer: ReceivedReply) -> None:
        """A host that speaks without being asked says that it will close the connection, or is confused."""
        if answer.code == 421:
            self._fail(TroubleKind.SHUTDOWN, answer.text(), answer.status(Stage.SESSION), is_remote=True)
        else:
            self._fail(TroubleKind.PROTOCOL, f"The host said, unasked: {answer.text()}", "4.5.0")

    def _out_of_order(self, answer: ReceivedReply, awaited: Awaited) -> None:
        self._fail(TroubleKind.PROTOCOL, f"The host sent this for {awaited.value}: {answer.text()}", "4.5.0")

    def _shut_down(self, answer: ReceivedReply, awaited: Awaited, transaction: Transaction | None) -> None:
        if self.phase is Phase.QUITTING:
            self._close(None)
            return
        if transaction is not None and awaited is not Awaited.NO_END:
            if awaited is Awaited.END and self._protocol == "lmtp":
                transaction.ended_for_one(answer)  # for the others, nobody knows
            else:
                transaction.shut_down(answer, _STAGES.get(awaited, Stage.DATA))
            transaction.finish(may_go_on=False)
        self._fail(TroubleKind.SHUTDOWN, answer.text(), answer.status(Stage.SESSION), is_remote=True)

    def _fail(
        self, kind: TroubleKind, text: str, status: str, *, is_remote: bool = False, tls_result: str = ""
    ) -> None:
        self._close(Trouble(kind, text, status, is_remote, tls_result))

    def _close(self, trouble: Trouble | None) -> None:
        """Nothing more is sent or read; each message that has not ended does so with what is known."""
        self.phase = Phase.CLOSED
        self.trouble = trouble
        transactions = {id(entry): entry for awaited, entry in self._expected if entry is not None}
        for awaited, transaction in self._expected:
            if awaited is Awaited.END and transaction is not None:
                transaction.unknown()
        if self._open is not None:
            transactions[id(self._open)] = self._open
        for transaction in transactions.values():
            transaction.finish(may_go_on=False)
        self._expected.clear()
        self._unsent.clear()
        self._waiting.clear()
        self._output.clear()
        self._open = None
        self._wants_content = False
        for sending in tuple(self._sendings):
            self._finish(sending)
