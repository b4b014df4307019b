"""One SMTP session: octets in; replies, and requests for a decision, out.

Everything that changes the state of a dialogue is in this file. It does no I/O and knows no clock but the one it is
given: whoever owns the connection hands octets to `receive`, then calls `next_action` until it answers None, does
what each action says, reports back (`decided`, `stored`, ...), and sends what `take_output` gives.

    action          what is asked                            answered by
    Decide          the chain's decision for a request       decided
    Store           make the message ours                    stored, storage_failed
    StartTls        start TLS once the output has left       tls_started
    Authenticate    take a step of a SASL exchange           auth_challenge, authenticated, auth_refused
    Yield           send the output; let others have a turn  nothing
    Close           send what is left, then close            connection_lost

One action is outstanding at a time. Input that arrives meanwhile waits; so replies leave in order, one to one, however
the client pipelines.

What the client said in vain is kept too: `take_records` gives transactions and, at its end, the session, for the
journal; `take_confirmed` the transactions whose 250 the client has shown to have heard.

Deviations. RFC 2034 puts no status code on replies to HELO and EHLO; refusals of them carry one here all the same.
RFC 3207 lets a server go on after it has dropped input that was pipelined behind STARTTLS; we end the session, because
no honest client sends such input.

Standards: RFC 5321; RFC 1870 (SIZE), 2034 and 3463 (status codes), 2920 (PIPELINING), 3030 (CHUNKING), 3207 (STARTTLS),
3461 (DSN), 4954 (AUTH), 6152 (8BITMIME), 6531 (SMTPUTF8), 9422 (LIMITS), 8689 (REQUIRETLS), 4865 (FUTURERELEASE),
2852 (DELIVERBY).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, assert_never

from mailgate.ids import encode_id
from mailgate.message import count_received_fields, revised
from mailgate.policy.stage import (
    AddedFields,
    RecipientView,
    RemovedFields,
    Request,
    SessionView,
    Stage,
    TlsState,
    TraceFields,
)
from mailgate.policy.verdict import Accept, Continue, Decision, Defer, Discard, Fate, Quarantine, Reject
from mailgate.smtp import replies
from mailgate.smtp.actions import Action, Authenticate, Close, Decide, StartTls, Store, Yield
from mailgate.smtp.command import (
    UNKNOWN_MAIL_PARAMETER,
    Auth,
    Bdat,
    Command,
    CommandError,
    Data,
    Ehlo,
    Expn,
    Helo,
    Help,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rset,
    Vrfy,
    parse_command,
)
from mailgate.smtp.command import (
    StartTls as StartTlsCommand,
)
from mailgate.smtp.framing import STRICT, ChunkFramer, DataFramer, Fault, Tolerance
from mailgate.smtp.reply import Reply
from mailgate.smtp.trace import trace_fields
from mailgate.smtp.transaction import Transaction
from mailgate.storage.records import Disposition, IncomingMessage, SessionRecord, TransactionRecord

if TYPE_CHECKING:
    from mailgate.envelope import ForwardPath, MailParameters
    from mailgate.ids import IdGenerator

_AUTH_LINE_OCTETS = 12288  # RFC 4954 section 4: base64 lines
_RECIPIENT_OCTETS = 1024  # measured: 1.15 KB with ORCPT
_USUAL_RECIPIENTS = 10
_REPLIES_AT_ONCE = 64  # before others have a turn
_DIALOGUE_ENTRIES = 200
_DIALOGUE_ENTRY_OCTETS = 512
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one session."""

    message_octets: int = 26_214_400
    recipients: int = 1000
    transactions: int = 1000
    errors: int = 20
    idle_commands: int = 1000  # since the last message: NOOP, RSET, greetings and what else brings no mail
    received_fields: int = 100
    line_octets: int = 998
    command_octets: int = 2048


@dataclass(frozen=True, slots=True)
class Settings:
    """What a session is told about the place that it serves. Shared by the sessions of a listener."""

    hostname: str
    limits: Limits = Limits()
    offers_starttls: bool = False
    requires_tls: bool = False  # MAIL is refused in plain text (530 5.7.0)
    accepts_unauthenticated: bool = True
    mechanisms: Callable[[SessionView], tuple[str, ...]] = lambda _session: ()
    offers_requiretls: bool = False  # inside TLS (RFC 8689 section 2)
    longest_hold_seconds: int = 0  # of FUTURERELEASE; 0: not offered
    shortest_delivery_seconds: int = 0  # of DELIVERBY, as long as BY has to give at least; 0: not offered
    offers_auth_in_tls: bool = False  # so that AUTH in plain text hears what it lacks


class State(Enum):
    """Where a session stands. Time-outs depend on it: those that begin with "waits for us" have none."""

    COMMAND = "waits for a command"
    DATA = "receives a message"
    CHUNK = "receives a chunk"
    AUTH = "waits for a response to a challenge"
    TLS = "waits for a handshake"
    BUSY = "waits for us"
    CLOSED = "is over"


_IDLE = (Ehlo, Helo, Rset, Noop, Vrfy, Expn, Help)


class Ending(Enum):
    """Why a session ended. The value is the word in the database."""

    QUIT = "quit"
    LOST = "lost"
    TIMEOUT = "timeout"
    LIMIT = "limit"
    REFUSED = "refused"
    SHUTDOWN = "shutdown"
    TLS_FAILED = "tls-failed"


class Session:
    """The server's side of one connection."""

    __slots__ = (
        "_action",
        "_chunk_is_last",
        "_chunk_left",
        "_chunk_octets",
        "_chunk_refusal",
        "_chunk_started_at",
        "_confirmed",
        "_connect_fate",
        "_connect_notes",
        "_continue",
        "_dialogue",
        "_errors",
        "_fate",
        "_forward_path",
        "_idle_commands",
        "_ids",
        "_input",
        "_is_unwelcome",
        "_notes",
        "_output",
        "_received_octets",
        "_records",
        "_reference",
        "_refused_notes",
        "_said_auth",
        "_settings",
        "_skipped_line",
        "_time",
        "_tolerance",
        "_transaction",
        "_transactions",
        "_unconfirmed",
        "_unconfirmed_at",
        "ending",
        "is_storing",
        "replies",
        "state",
        "view",
    )

    def __init__(
        self,
        view: SessionView,
        settings: Settings,
        ids: IdGenerator,
        time: Callable[[], float],
        tolerance: Tolerance = STRICT,
    ) -> None:
        """`view` is the connection as it begins; `time` gives seconds since the epoch."""
        self.view = view
        self.state = State.BUSY
        self.ending: Ending | None = None
        self.replies = 0  # given so far; a client that gets none makes no progress
        self._settings = settings
        self._ids = ids
        self._time = time
        self._tolerance = tolerance
        self._input = b""
        self._output: list[bytes] = []
        self._action: Action | None = None
        self._continue: Callable[[Decision], None] = self._connect_decided
        self._connect_notes: tuple[object, ...] = ()
        self._connect_fate: Fate | None = None
        self._fate: Fate | None = None  # of every message of the session, after CONNECT and HELO
        self._notes: tuple[object, ...] = ()  # of CONNECT and HELO
        self._refused_notes: tuple[object, ...] = ()  # of the last refusal there, for the record
        self._transaction: Transaction | None = None
        self._forward_path: ForwardPath | None = None
        self._chunk_left = self._chunk_octets = 0
        self._chunk_started_at = 0.0
        self._chunk_is_last = False
        self._chunk_refusal: Reply | None = None
        self.is_storing = False  # a message is on its way: whoever ends the session leaves it alone
        self._is_unwelcome = False  # 5xx was said instead of the greeting
        self._said_auth = False  # by the last command, and whatever that is no command has followed it
        self._skipped_line = b""  # how the line began that is thrown away until it ends; b"" if none is
        self._transactions = self._errors = self._idle_commands = 0
        self._reference = ""
        self._dialogue: list[bytes] = []
        self._records: list[TransactionRecord | SessionRecord] = []
        self._received_octets = 0
        self._unconfirmed: list[int] = []
        self._unconfirmed_at = 0
        self._confirmed: list[int] = []

    # ------------------------------------------------------------ towards the owner of the connection

    def start(self) -> None:
        """The connection is there (for implicit TLS: its handshake is done)."""
        self._ask(Stage.CONNECT, self._connect_decided)

    def receive(self, data: bytes) -> None:
        """Take octets. Follow with `next_action`."""
        self._received_octets += len(data)
        self._input = self._input + data if self._input else data

    def next_action(self, *, takes_input: bool = True) -> Action | None:
        """What the owner has to do next; None if there is nothing until more input or an answer comes.

        With `takes_input` false, only what follows from input that was taken before.
        """
        while True:
            if self._action is not None:
                action, self._action = self._action, None
                return action
            if not takes_input:
                return None
            match self.state:
                case State.COMMAND:
                    if len(self._output) >= _REPLIES_AT_ONCE and self._input:
                        return Yield()
                    if not self._take_command():
                        return None
                case State.DATA:
                    if not self._take_data():
                        return None
                case State.CHUNK:
                    if not self._take_chunk():
                        return None
                case State.AUTH:
                    if not self._take_auth_response():
                        return None
                case State.BUSY | State.TLS | State.CLOSED:
                    return None
                case _:
                    assert_never(self.state)

    def take_output(self) -> bytes:
        """The octets to send, in order."""
        output = self._output
        if not output:
            return b""
        octets = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return octets

    def take_records(self) -> list[TransactionRecord | SessionRecord]:
        """What has ended since the last call and has not become a message."""
        records, self._records = self._records, []
        return records

    def take_confirmed(self) -> list[int]:
        """The accepted transactions that the client went on from since the last call."""
        confirmed, self._confirmed = self._confirmed, []
        return confirmed

    @property
    def unconfirmed(self) -> list[int]:
        """The accepted transactions whose 250 the client may not have heard."""
        return self._unconfirmed

    @property
    def being_stored(self) -> int | None:
        """The transaction whose message is on its way to storage."""
        return self._open_transaction().id if self.is_storing else None

    @property
    def waiting_octets(self) -> int:
        """How much input waits to be looked at."""
        return len(self._input)

    @property
    def held_octets(self) -> int:
        """How much of a transaction is in memory: its content, and what recipients cost beyond a usual few."""
        transaction = self._transaction
        if transaction is None:
            return 0
        content = 0 if transaction.framer is None else transaction.framer.held_octets
        return content + _RECIPIENT_OCTETS * max(len(transaction.recipients) - _USUAL_RECIPIENTS, 0)

    @property
    def transaction_started_at(self) -> float | None:
        """When MAIL was given, in seconds since the epoch; None outside a transaction.

        For a chunk that belongs to no transaction and is read all the same, when it began: it has to end as well.
        """
        if self._transaction is not None:
            return self._transaction.started_at
        return self._chunk_started_at if self.state is State.CHUNK else None

    def give_up_content(self) -> None:
        """There is no memory for the message that is being received: it will be answered with 452 4.3.1."""
        transaction = self._transaction
        if transaction is not None and transaction.framer is not None:
            transaction.framer.fail(Fault.NO_MEMORY)

    def decided(self, decision: Decision) -> None:
        """The chain's answer to the last Decide."""
        if self.state is not State.CLOSED:
            self._continue(decision)

    def stored(self, transaction_id: int) -> None:
        """The message is ours: the answer to Store."""
        self.is_storing = False
        self._idle_commands = 0
        self._transaction = None
        self._unconfirmed.append(transaction_id)
        # If the connection is gone, the message is not: its sender may send it again, and is owed the same 250.
        if self.state is not State.CLOSED:
            self._unconfirmed_at = self._received_octets
            self._go_on(replies.accepted(transaction_id))

    def storage_failed(self) -> None:
        """Whether the message is ours is unknown, or it is not: the other answer to Store."""
        self.is_storing = False
        self._end_transaction(
            Disposition.DEFERRED, Stage.END_OF_DATA, replies.DATABASE_AWAY, reason="storage unavailable"
        )
        if self.state is not State.CLOSED:
            self._go_on(replies.DATABASE_AWAY)

    def tls_started(self, tls: TlsState) -> None:
        """The handshake that StartTls asked for is done: nothing that was said before it counts (RFC 3207)."""
        if self.state is State.CLOSED:
            return
        self._input = b""
        self._notes = self._connect_notes
        self._fate = self._connect_fate
        self.view = replace(self.view, tls=tls, helo=None, is_esmtp=False, authenticated=None)
        self.state = State.COMMAND

    def auth_challenge(self, challenge: bytes) -> None:
        """The exchange goes on: an answer to Authenticate."""
        if self.state is not State.CLOSED:
            self.replies += 1
            self._output.append(b"334 " + base64.b64encode(challenge) + b"\r\n")
            self.state = State.AUTH

    def authenticated(self, account: str) -> None:
        """The client is who it says: an answer to Authenticate."""
        if self.state is not State.CLOSED:
            self.view = replace(self.view, authenticated=account)
            self._said_auth = False
            self._go_on(replies.AUTHENTICATED)

    def auth_refused(self, refusal: Reply, account: str = "") -> None:
        """The credentials are wrong, or can't be checked: an answer to Authenticate. `account` is whose they are."""
        if self.state is not State.CLOSED:
            if account:
                self._dialogue_add(b"C: (as " + account.encode("utf-8", "backslashreplace") + b")")
            self._go_on(refusal)

    def time_out(self, *, transaction: bool = False) -> None:
        """The client took too long for a command or, with `transaction`, for the whole transaction."""
        self._end(replies.TRANSACTION_TIMEOUT if transaction else replies.TIMEOUT, Ending.TIMEOUT)

    def shut_down(self) -> None:
        """We are about to stop, and the client is not in the middle of a message."""
        self._end(replies.SHUTTING_DOWN, Ending.SHUTDOWN)

    @property
    def may_be_shut_down(self) -> bool:
        """Whether ending the session now loses no work: it neither sends a message nor waits for an answer of ours."""
        transaction = self._transaction
        return self.state in (State.COMMAND, State.AUTH, State.TLS) and (
            transaction is None or transaction.framer is None
        )

    def connection_lost(self, ending: Ending = Ending.LOST) -> None:
        """The connection is gone. `take_records` then gives what there is to keep of the session."""
        self.ending = self.ending or ending
        # A message that is on its way to storage is left to it: its record is the message.
        if not self.is_storing:
            self._abandon()
        self.state = State.CLOSED
        self._action = None
        self._input = b""
        self._records.append(
            SessionRecord(
                self.view,
                self._time(),
                self.ending.value,
                self._transactions,
                self._errors,
                self._dialogue_text(),
                (() if self._transactions else self._notes) + self._refused_notes,
            )
        )

    # ------------------------------------------------------------ commands

    def _take_command(self) -> bool:
        begins_at = self._received_octets - len(self._input)
        line = self._take_line(self._settings.limits.command_octets)
        if line is None:
            return False
        if isinstance(line, Reply):
            self._dialogue_add(b"C: (a line too long, or not ended by CRLF)")
            start, self._skipped_line = self._skipped_line, b""
            self._not_a_command(start, line)
            return True
        # Of a command that was on its way before the 250 was said, nobody knows whether the client has heard it.
        if self._unconfirmed and begins_at >= self._unconfirmed_at:
            self._confirmed += self._unconfirmed
            self._unconfirmed = []
        said_auth, self._said_auth = self._said_auth, line.lstrip()[:4].upper() == b"AUTH"
        try:
            command: Command | CommandError = parse_command(line)
        except CommandError as error:
            command = error
            # Some clients say their credentials without waiting to hear that nobody asks for them.
            self._said_auth = self._said_auth or said_auth
        shown = line
        if self._said_auth:
            shown = b"..." if said_auth and isinstance(command, CommandError) else self._without_credentials(line)
        self._dialogue_add(b"C: " + shown)
        if isinstance(command, CommandError):
            self._not_a_command(line[:4], command.reply)
        else:
            self._command(command)
        return True

    def _not_a_command(self, start: bytes, refusal: Reply) -> None:
        # Behind a chunk of unknown size, and behind LF alone, it is unknown what the client takes for commands: an LF
        # that somebody smuggled into an argument would else begin one.
        if start.upper() == b"BDAT" or refusal is replies.BARE_LF:
            self._end(refusal, Ending.LIMIT)
        else:
            self._go_on(refusal)

    def _take_line(self, max_octets: int) -> bytes | Reply | None:
        """The next line without its CRLF, or the reply to what is no line, or None while it is unfinished.

        With a reply, `_skipped_line` holds how the line began, for the caller to look at and to clear.
        """
        data = self._input
        end = data.find(b"\n")
        if end < 0:
            if len(data) > max_octets or self._skipped_line:
                self._skipped_line = self._skipped_line or data[:4]
                self._input = b""
            return None
        self._input = data[end + 1 :]
        if self._skipped_line or end > max_octets:
            self._skipped_line = self._skipped_line or data[:4]
            return replies.LINE_TOO_LONG
        if end and data[end - 1] == 0x0D:
            return data[: end - 1]
        return data[:end] if self._tolerance.bare_line_ends else replies.BARE_LF

    def _command(self, command: Command) -> None:
        if self._is_unwelcome and not isinstance(command, (Bdat, Quit)):
            return self._go_on(replies.UNWELCOME)
        if isinstance(command, _IDLE):
            self._idle_commands += 1
            if self._idle_commands > self._settings.limits.idle_commands:
                return self._end(replies.TOO_MANY_COMMANDS, Ending.LIMIT)
        match command:
            case Ehlo() | Helo():
                self._greet(command)
            case Mail():
                self._mail(command)
            case Rcpt():
                self._rcpt(command)
            case Data():
                self._data()
            case Bdat():
                self._bdat(command)
            case Rset():
                self._abandon()
                self._say(replies.RESET)
            case Noop():
                self._say(replies.NOOP)
            case Quit():
                self._abandon()
                self._end(replies.BYE, Ending.QUIT)
            case Vrfy():
                self._say(replies.VRFY)
            case Expn():
                self._go_on(replies.EXPN)
            case Help():
                self._say(replies.HELP)
            case StartTlsCommand():
                self._starttls()
            case Auth():
                self._auth(command)
            case _:
                assert_never(command)
        return None

    # ------------------------------------------------------------ CONNECT, HELO

    def _connect_decided(self, decision: Decision) -> None:
        refusal = self._refusal(decision)
        if refusal is not None:
            self._refused_notes = decision.notes
            if refusal.is_transient:
                self._end(refusal, Ending.REFUSED)
                return
            # "A server taking this approach MUST still wait for the client to send a QUIT before closing the
            # connection and SHOULD respond to any intervening commands with 503." (RFC 5321 section 3.1)
            self._say(refusal)
            self._is_unwelcome = True
            self.state = State.COMMAND
            return
        self._notes = self._connect_notes = decision.notes
        self._fate = self._connect_fate = _fate_of(decision)
        self._say(Reply(220, "", (f"{self._settings.hostname} ESMTP mailgate",)))
        self.state = State.COMMAND

    def _greet(self, command: Ehlo | Helo) -> None:
        before = self.view
        self.view = replace(before, helo=command.name, is_esmtp=isinstance(command, Ehlo))
        self._ask(Stage.HELO, partial(self._helo_decided, before))

    def _helo_decided(self, before: SessionView, decision: Decision) -> None:
        greeted, self.view = self.view, before
        refusal = self._refusal(decision)
        if refusal is not None:
            # Section 4.1.4: "The SMTP server MUST stay in the same state after transmitting these replies that it was
            # in before the EHLO was received."
            self._refused_notes = decision.notes
            self._go_on(refusal)
            return
        # "EHLO ... MUST clear all buffers and reset the state exactly as if a RSET command has been issued."
        self._abandon()
        self.view = greeted
        self._notes = self._connect_notes + decision.notes
        self._fate = self._connect_fate or _fate_of(decision)
        if self.view.is_esmtp:
            self._say(self._ehlo_reply())
        else:
            self._say(Reply(250, "", (self._settings.hostname,)))
        self.state = State.COMMAND

    def _ehlo_reply(self) -> Reply:
        settings, limits = self._settings, self._settings.limits
        lines = [
            settings.hostname,
            "PIPELINING",
            f"SIZE {limits.message_octets}",
            "8BITMIME",
            "SMTPUTF8",
            "CHUNKING",
            "ENHANCEDSTATUSCODES",
            "DSN",
            f"LIMITS RCPTMAX={limits.recipients} MAILMAX={limits.transactions}",
        ]
        if settings.offers_requiretls and self.view.tls is not None:
            lines.append("REQUIRETLS")
        if settings.longest_hold_seconds:
            latest = datetime.fromtimestamp(int(self._time()) + settings.longest_hold_seconds, UTC)
            lines.append(f"FUTURERELEASE {settings.longest_hold_seconds} {latest:%Y-%m-%dT%H:%M:%SZ}")
        if settings.shortest_delivery_seconds:
            lines.append(f"DELIVERBY {settings.shortest_delivery_seconds}")
        if settings.offers_starttls and self.view.tls is None:
            lines.append("STARTTLS")
        mechanisms = settings.mechanisms(self.view) if self.view.authenticated is None else ()
        if mechanisms:
            lines.append("AUTH " + " ".join(mechanisms))
        return Reply(250, "", tuple(lines))

    # ------------------------------------------------------------ MAIL, RCPT

    def _mail(self, command: Mail) -> None:
        limits, parameters = self._settings.limits, command.reverse_path.parameters
        if self.view.helo is None:
            return self._go_on(replies.HELO_FIRST)
        if self._transaction is not None:
            return self._go_on(replies.NESTED_MAIL)
        if self._settings.requires_tls and self.view.tls is None:
            return self._go_on(replies.TLS_REQUIRED)
        if not self._settings.accepts_unauthenticated and self.view.authenticated is None:
            return self._go_on(replies.AUTH_REQUIRED)
        if not self._has_offered(parameters, command):
            return self._go_on(UNKNOWN_MAIL_PARAMETER)
        if self._transactions >= limits.transactions:
            return self._end(replies.TOO_MANY_TRANSACTIONS, Ending.LIMIT)
        self._transactions += 1
        now = self._time()
        path = command.path_at(now)
        self._transaction = Transaction(self._ids.next(), now, path)
        self._transaction.notes = self._notes
        if self._fate is not None:
            self._transaction.meets(self._fate)
        self._reference = ""
        if command.is_internationalized and not parameters.smtputf8:
            return self._refuse_mail(replies.UTF8_NOT_ASKED)
        if parameters.size_octets is not None and parameters.size_octets > limits.message_octets:
            return self._refuse_mail(replies.too_large(limits.message_octets))
        late = self._wrong_time(path.parameters, now)
        if late is not None:
            return self._refuse_mail(late)
        return self._ask(Stage.MAIL, self._mail_decided)

    def _has_offered(self, parameters: MailParameters, command: Mail) -> bool:
        """Whether EHLO told, or would tell, of the extensions that these parameters need."""
        settings = self._settings
        return (
            (not parameters.requires_tls or (settings.offers_requiretls and self.view.tls is not None))
            and (
                (parameters.hold_until is None and command.hold_for_seconds is None)
                or settings.longest_hold_seconds > 0
            )
            and (not parameters.deliver_by_mode or settings.shortest_delivery_seconds > 0)
        )

    def _wrong_time(self, parameters: MailParameters, now: float) -> Reply | None:
        """Why the message can't be held for so long, or be delivered by then; None if it can."""
        settings = self._settings
        held_until, due = parameters.hold_until, parameters.deliver_by
        if held_until is not None:
            if held_until <= now:
                return replies.HELD_IN_THE_PAST
            if held_until > now + settings.longest_hold_seconds:
                return replies.held_too_long(settings.longest_hold_seconds)
        if due is not None and parameters.deliver_by_mode == "R":
            # With N nothing is lost: the notice comes as soon as may be.
            if due < now + settings.shortest_delivery_seconds:
                return replies.too_little_time(settings.shortest_delivery_seconds)
            if held_until is not None and held_until >= due:
                return replies.HELD_BEYOND_ITS_TIME
        return None

    def _mail_decided(self, decision: Decision) -> None:
        self._take_note(decision)
        refusal = self._refusal(decision)
        if refusal is not None:
            self._refuse_mail(refusal, decision.policy)
            return
        self._say(replies.SENDER_OK)
        self.state = State.COMMAND

    def _refuse_mail(self, refusal: Reply, policy: str = "") -> None:
        self._end_transaction(_disposition_of(refusal), Stage.MAIL, refusal, policy=policy)
        self._go_on(refusal)

    def _rcpt(self, command: Rcpt) -> None:
        transaction = self._transaction
        if transaction is None:
            return self._go_on(replies.HELO_FIRST if self.view.helo is None else replies.MAIL_FIRST)
        if transaction.framer is not None:
            return self._go_on(replies.BDAT_OPEN)
        self._forward_path = command.forward_path
        if transaction.accepted >= self._settings.limits.recipients:
            return self._answer_rcpt(replies.TOO_MANY_RECIPIENTS)
        if command.is_internationalized and not transaction.reverse_path.parameters.smtputf8:
            return self._answer_rcpt(replies.UTF8_NOT_ASKED)
        return self._ask(Stage.RCPT, self._rcpt_decided, forward_path=command.forward_path)

    def _rcpt_decided(self, decision: Decision) -> None:
        refusal = self._refusal(decision)
        self._answer_rcpt(refusal or replies.RECIPIENT_OK, decision.notes, _fate_of(decision))

    def _answer_rcpt(self, answer: Reply, notes: tuple[object, ...] = (), fate: Fate | None = None) -> None:
        transaction, forward_path = self._open_transaction(), self._forward_path
        assert forward_path is not None  # noqa: S101  # set by _rcpt, the only way here
        # Refused ones are kept for the record, but no more of them than of accepted ones.
        if answer.is_positive or len(transaction.recipients) < 2 * self._settings.limits.recipients:
            transaction.recipients.append(RecipientView(forward_path, answer.is_positive, answer, notes, fate))
        if answer.is_positive:
            transaction.accepted += 1
        self._go_on(answer)

    # ------------------------------------------------------------ DATA, BDAT

    def _data(self) -> None:
        transaction = self._transaction
        if transaction is None:
            return self._go_on(replies.HELO_FIRST if self.view.helo is None else replies.MAIL_FIRST)
        if transaction.framer is not None:
            return self._go_on(replies.BDAT_OPEN)
        if not transaction.accepted:
            return self._go_on(replies.NO_RECIPIENTS)
        return self._ask(Stage.DATA, self._data_decided)

    def _data_decided(self, decision: Decision) -> None:
        self._take_note(decision)
        refusal = self._refusal(decision)
        if refusal is not None:
            self._end_transaction(_disposition_of(refusal), Stage.DATA, refusal, policy=decision.policy)
            self._go_on(refusal)
            return
        limits = self._settings.limits
        self._open_transaction().framer = DataFramer(limits.message_octets, limits.line_octets, self._tolerance)
        self._say(replies.START_DATA)
        self.state = State.DATA

    def _take_data(self) -> bool:
        data = self._input
        if not data:
            return False
        framer = self._open_transaction().framer
        assert isinstance(framer, DataFramer)  # noqa: S101  # set by _data_decided, the only way into this state
        end = framer.feed(data)
        if end is None:
            self._input = b""
            return False
        self._input = data[end:]
        self._content_complete(framer)
        return True

    def _bdat(self, command: Bdat) -> None:
        # A chunk that is refused is read all the same: its octets are not commands.
        transaction = self._transaction
        self._chunk_octets = self._chunk_left = command.size_octets
        self._chunk_started_at = self._time()
        self._chunk_is_last = command.is_last
        self._chunk_refusal = None
        self.state = State.CHUNK
        if transaction is None:
            self._chunk_refusal = (
                replies.UNWELCOME
                if self._is_unwelcome
                else replies.HELO_FIRST
                if self.view.helo is None
                else replies.MAIL_FIRST
            )
        elif not transaction.accepted:
            self._chunk_refusal = replies.NO_RECIPIENTS
        elif transaction.framer is None:
            self._ask(Stage.DATA, self._bdat_decided)
        elif transaction.framer.fed_octets + command.size_octets > self._settings.limits.message_octets:
            transaction.framer.fail(Fault.TOO_LARGE)

    def _bdat_decided(self, decision: Decision) -> None:
        self.state = State.CHUNK
        self._take_note(decision)
        refusal = self._refusal(decision)
        if refusal is not None:
            self._end_transaction(_disposition_of(refusal), Stage.DATA, refusal, policy=decision.policy)
            self._chunk_refusal = refusal
            return
        limits = self._settings.limits
        framer = ChunkFramer(limits.message_octets, limits.line_octets, self._tolerance)
        self._open_transaction().framer = framer
        if self._chunk_octets > limits.message_octets:
            framer.fail(Fault.TOO_LARGE)

    def _take_chunk(self) -> bool:
        data, left = self._input, self._chunk_left
        if left:
            if not data:
                return False
            if len(data) > left:
                data, self._input = data[:left], data[left:]
            else:
                self._input = b""
            self._chunk_left = left = left - len(data)
            if self._chunk_refusal is None:
                self._chunk_framer().feed(data)
            if left:
                return False
        if self._chunk_refusal is not None:
            self._go_on(self._chunk_refusal)
            return True
        framer = self._chunk_framer()
        if self._chunk_is_last:
            framer.finish()
        if self._chunk_is_last or framer.fault is not None:
            self._content_complete(framer)
        else:
            self._go_on(Reply(250, "2.0.0", (f"{self._chunk_octets} octets received",)))
        return True

    def _chunk_framer(self) -> ChunkFramer:
        framer = self._open_transaction().framer
        assert isinstance(framer, ChunkFramer)  # noqa: S101  # set by _bdat_decided; DATA leaves no framer behind
        return framer

    # ------------------------------------------------------------ end of data

    def _content_complete(self, framer: DataFramer | ChunkFramer) -> None:
        limits = self._settings.limits
        self._dialogue_add(b"C: (%d octets of message)" % framer.size_octets)
        match framer.fault:
            case None:
                pass
            case Fault.TOO_LARGE:
                return self._refuse_content(replies.too_large(limits.message_octets), size_octets=framer.size_octets)
            case Fault.LONG_LINE:
                return self._refuse_content(replies.long_line(limits.line_octets), size_octets=framer.size_octets)
            case fault:
                return self._refuse_content(replies.FAULTS[fault], size_octets=framer.size_octets)
        transaction = self._open_transaction()
        content = transaction.content = framer.content()
        if content.header().startswith((b" ", b"\t")):
            # Below our trace fields it would be read as a part of the last of them.
            return self._refuse_content(replies.NO_FIRST_FIELD)
        if content.has_endless_header:
            return self._refuse_content(replies.ENDLESS_HEADER)
        if count_received_fields(content.header()) > limits.received_fields:
            return self._refuse_content(replies.LOOP)
        return self._ask(Stage.END_OF_DATA, self._content_decided)

    def _content_decided(self, decision: Decision) -> None:
        self._take_note(decision)
        refusal = self._refusal(decision)
        if refusal is not None:
            self._refuse_content(refusal, decision.policy)
            return
        transaction = self._open_transaction()
        transaction.meets_fates()
        accepted = replies.accepted(transaction.id)
        if transaction.discarded_by is not None:
            policy, reason = transaction.discarded_by
            self._end_transaction(Disposition.DISCARDED, Stage.END_OF_DATA, accepted, policy=policy, reason=reason)
            self._go_on(accepted)
            return
        if transaction.quarantined_by is not None and transaction.leads_elsewhere:
            self._refuse_content(replies.JUNK_FOR_ELSEWHERE, transaction.quarantined_by[0])
            return
        content = transaction.content
        assert content is not None  # noqa: S101  # set by _content_complete, the only way here
        view, received_at = transaction.view(), self._time()
        policy, reason = transaction.quarantined_by or ("", "")
        trace = trace_fields(self.view, view, self._settings.hostname, received_at)
        spans: tuple[tuple[int, int], ...] = ()
        added = b""
        for note in decision.notes:
            if isinstance(note, TraceFields):
                trace = note.octets + trace
            elif isinstance(note, RemovedFields):
                spans += note.spans
            elif isinstance(note, AddedFields):
                added = note.octets + added
        received_sha256 = content.sha256
        if spans or added:
            content = revised(content, spans, added)
        message = IncomingMessage(
            self.view,
            view,
            content,
            trace,
            Disposition.QUARANTINED if transaction.quarantined_by else Disposition.ACCEPTED,
            accepted.text(),
            received_at,
            policy,
            reason,
            received_sha256,
        )
        self.is_storing = True
        self._action = Store(message)
        self.state = State.BUSY

    def _refuse_content(self, refusal: Reply, policy: str = "", *, size_octets: int | None = None) -> None:
        self._end_transaction(
            _disposition_of(refusal), Stage.END_OF_DATA, refusal, policy=policy, size_octets=size_octets
        )
        self._go_on(refusal)

    # ------------------------------------------------------------ STARTTLS, AUTH

    def _starttls(self) -> None:
        if self.view.tls is not None:
            return self._go_on(replies.TLS_ALREADY)
        if not self._settings.offers_starttls:
            return self._go_on(replies.NO_STARTTLS)
        self._abandon()
        if self._input:
            # Whoever stands between us and the client may have put it there, for us to run inside TLS.
            return self._end(replies.INPUT_BEHIND_STARTTLS, Ending.REFUSED)
        self._say(replies.READY_FOR_TLS)
        self._action = StartTls()
        self.state = State.TLS
        return None

    def _auth(self, command: Auth) -> None:
        if self.view.helo is None:
            return self._go_on(replies.HELO_FIRST)
        if self.view.authenticated is not None:
            return self._go_on(replies.AUTH_ALREADY)
        if self._transaction is not None:
            return self._go_on(replies.AUTH_IN_TRANSACTION)
        mechanisms = self._settings.mechanisms(self.view)
        if not mechanisms:
            needs_tls = self._settings.offers_auth_in_tls and self.view.tls is None
            return self._go_on(replies.AUTH_NEEDS_TLS if needs_tls else replies.NO_AUTH)
        if command.mechanism not in mechanisms:
            return self._go_on(replies.AUTH_MECHANISM)
        self._action = Authenticate(command.mechanism, command.initial)
        self.state = State.BUSY
        return None

    def _without_credentials(self, line: bytes) -> bytes:
        """AUTH with its mechanism, if that is one of ours; anything else in the line may be a password."""
        mechanism = line.split(maxsplit=2)[1:2]
        is_ours = bool(mechanism) and mechanism[0].upper().decode("ascii", "replace") in self._settings.mechanisms(
            self.view
        )
        return b"AUTH " + mechanism[0] + b" ..." if is_ours else b"AUTH ..."

    def _take_auth_response(self) -> bool:
        line = self._take_line(_AUTH_LINE_OCTETS)
        if line is None:
            return False
        if isinstance(line, Reply):
            self._skipped_line = b""
            self._not_a_command(b"", replies.AUTH_LINE_TOO_LONG if line is replies.LINE_TOO_LONG else line)
        elif line == b"*":
            self._go_on(replies.AUTH_CANCELLED)
        else:
            try:
                response = base64.b64decode(line, validate=True)
            except binascii.Error:
                self._go_on(replies.AUTH_MALFORMED)
            else:
                self._action = Authenticate(None, response)
                self.state = State.BUSY
        return True

    # ------------------------------------------------------------ what all of them use

    def _ask(
        self, stage: Stage, answer: Callable[[Decision], None], *, forward_path: ForwardPath | None = None
    ) -> None:
        transaction = self._transaction
        self._continue = answer
        self.state = State.BUSY
        if transaction is None:
            self._action = Decide(Request(stage, self.view, notes=self._notes))
        else:
            self._action = Decide(
                Request(
                    stage,
                    self.view,
                    transaction.view(),
                    forward_path,
                    transaction.content,
                    transaction.notes,
                )
            )

    def _refusal(self, decision: Decision) -> Reply | None:
        match decision.verdict:
            case Continue() | Accept() | Quarantine() | Discard():
                return None
            case Reject(reply=refusal) | Defer(reply=refusal):
                return refusal
            case _:
                assert_never(decision.verdict)

    def _take_note(self, decision: Decision) -> None:
        transaction = self._open_transaction()
        transaction.notes += decision.notes
        fate = _fate_of(decision)
        if fate is not None:
            transaction.meets(fate)
        for position, own_fate in decision.fates:
            transaction.recipients[position] = replace(transaction.recipients[position], fate=own_fate)

    def _open_transaction(self) -> Transaction:
        transaction = self._transaction
        assert transaction is not None  # noqa: S101  # its callers are reached within a transaction only
        return transaction

    def _say(self, answer: Reply) -> None:
        if answer.code < 400:
            octets = answer.encode()
        else:
            transaction = self._transaction
            octets = answer.encode(self._reference or encode_id(transaction.id if transaction else self.view.id))
        self._reference = ""
        self.replies += 1
        self._output.append(octets)
        self._dialogue_add(octets)

    def _go_on(self, answer: Reply) -> None:
        """Say it, and wait for the next command; a refusal for good counts as an error, 421 ends the session."""
        if answer.code == 421:
            self._end(answer, Ending.REFUSED)
            return
        self._say(answer)
        self.state = State.COMMAND
        if answer.code >= 500:
            self._errors += 1
            if self._errors >= self._settings.limits.errors:
                self._end(replies.TOO_MANY_ERRORS, Ending.LIMIT)

    def _end(self, answer: Reply, ending: Ending) -> None:
        if self.state is State.CLOSED:
            return
        self._say(answer)
        self.ending = Ending.REFUSED if self._is_unwelcome else ending
        self._input = b""
        self._action = Close()
        self.state = State.CLOSED

    def _abandon(self) -> None:
        """End the open transaction, if there is one: by RSET, a greeting, STARTTLS, QUIT, or the connection's end."""
        transaction = self._transaction
        if transaction is None:
            return
        last = transaction.recipients[-1].reply if transaction.recipients else None
        if last is not None and not transaction.accepted:
            self._end_transaction(_disposition_of(last), Stage.RCPT, last)
        else:
            stage = Stage.MAIL if last is None else Stage.RCPT if transaction.framer is None else Stage.DATA
            self._end_transaction(Disposition.ABANDONED, stage, None)

    def _end_transaction(
        self,
        disposition: Disposition,
        stage: Stage,
        answer: Reply | None,
        *,
        policy: str = "",
        reason: str = "",
        size_octets: int | None = None,
    ) -> None:
        """Close the open transaction without a message; the next reply still bears its id."""
        transaction = self._open_transaction()
        content = transaction.content
        self._reference = encode_id(transaction.id)
        self._transaction = None
        self._records.append(
            TransactionRecord(
                self.view,
                transaction.view(),
                disposition,
                stage.value,
                "" if answer is None else answer.text(self._reference),
                self._time(),
                policy,
                reason,
                size_octets if content is None else content.size_octets,
                None if content is None else content.sha256,
            )
        )

    def _dialogue_add(self, octets: bytes) -> None:
        if len(self._dialogue) < _DIALOGUE_ENTRIES:
            self._dialogue.append(octets if len(octets) < _DIALOGUE_ENTRY_OCTETS else octets[:_DIALOGUE_ENTRY_OCTETS])

    def _dialogue_text(self) -> str:
        # Replies are kept as sent, with their CRLF; what is marked as the client's is a line.
        entries = [
            octets if octets.startswith(b"C: ") else b"S: " + octets.removesuffix(b"\r\n").replace(b"\r\n", b"\nS: ")
            for octets in self._dialogue
        ]
        if len(entries) == _DIALOGUE_ENTRIES:
            entries.append(b"(and more)")
        text = b"\n".join(entries).decode("ascii", "backslashreplace")
        # What the client said must neither end a line of this text nor move anybody's cursor.
        return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _fate_of(decision: Decision) -> Fate | None:
    match decision.verdict:
        case Quarantine() | Discard():
            return Fate(decision.verdict, decision.policy)
        case _:
            return None


def _disposition_of(refusal: Reply) -> Disposition:
    return Disposition.DEFERRED if refusal.is_transient else Disposition.REFUSED
