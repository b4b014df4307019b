"""Plays a transcript against a session, with the input cut and the answers delayed as wanted.

The format is described in README.md beside this file. A `Player` owns one session, the way a connection does: it does
what each action says, by the rules that the transcript has set, and keeps what was sent, stored and recorded.

A transcript is a list of turns. A turn is what the client sends without waiting, what it then hears, and what has to
hold afterwards. Directives that change the world stand between turns, and nothing is sent over them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mailgate.ids import IdGenerator
from mailgate.message import MessageContent
from mailgate.policy.stage import Request, Role, SessionView, Stage, TlsState
from mailgate.policy.verdict import Continue, Decision, Defer, Discard, Quarantine, Reject, Verdict
from mailgate.smtp.actions import Authenticate, Close, Decide, StartTls, Store, Yield
from mailgate.smtp.framing import Tolerance
from mailgate.smtp.reply import Reply, reply
from mailgate.smtp.session import Limits, Session, Settings
from mailgate.storage.records import IncomingMessage, SessionRecord, TransactionRecord

HOSTNAME = "mx.example.test"
NOW = 1_790_000_000.0
TLS = TlsState("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|\((.)\*([0-9]+)\)|(.))")
_NAMED = re.compile(rb"\{([a-z0-9]+)\}")
_SIMPLE = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}


class TranscriptError(Exception):
    """The transcript itself is wrong."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """What the chain says at a stage, for all paths or one."""

    stage: Stage
    path: str | None
    verdict: Verdict

    def applies(self, request: Request) -> bool:
        if request.stage is not self.stage or self.path is None:
            return request.stage is self.stage
        if request.stage is Stage.RCPT:
            return str(request.forward_path) == self.path
        assert request.transaction is not None
        return str(request.transaction.reverse_path) == self.path


@dataclass(slots=True)
class Turn:
    """What the client sends in one go, what it hears, and what has happened then."""

    line: int
    sent: bytes = b""
    heard: bytes = b""  # {name} stands for an id
    facts: list[str] = field(default_factory=list)
    directives: list[str] = field(default_factory=list)  # come before the turn

    def joined_with(self, other: Turn) -> Turn:
        return Turn(
            self.line, self.sent + other.sent, self.heard + other.heard, self.facts + other.facts, self.directives
        )


@dataclass(slots=True)
class Transcript:
    """A dialogue, and the world that it takes place in."""

    name: str
    given: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    @property
    def is_cut_freely(self) -> bool:
        """Whether what is heard is the same however the input is cut and whenever we answer."""
        return "given fed whole" not in self.given

    def pipelined(self) -> Transcript:
        """The same dialogue with a client that waits for nothing but what changes between turns."""
        joined: list[Turn] = []
        for turn in self.turns:
            if joined and not turn.directives:
                joined[-1] = joined[-1].joined_with(turn)
            else:
                joined.append(turn)
        return Transcript(self.name, self.given, joined)


_FACTS = ("stored", "kept", "record", "session", "confirmed", "unconfirmed", "closed", "M", "D", "with")
_DIRECTIVES = ("policy", "storage", "tls", "timeout", "shutdown", "lost", "memory")


def read_transcript(path: Path) -> Transcript:
    """The transcript in a file.

    @raises TranscriptError: a line is none of the format.
    """
    transcript = Transcript(path.stem)
    turn = Turn(0)
    transcript.turns.append(turn)
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        keyword = re.split(r"[ :-]", line, maxsplit=1)[0]
        is_input = line.startswith(("C:", "C-"))
        if line.startswith("given "):
            transcript.given.append(line)
        elif line == "hello":
            turn.heard = f"220 {HOSTNAME} ESMTP mailgate\r\n".encode("ascii")
            turn = Turn(number, b"EHLO client.example\r\n", _ehlo_reply(transcript.given))
            transcript.turns.append(turn)
        elif is_input or keyword in _DIRECTIVES:
            if turn.heard or turn.facts or (not is_input and turn.sent):
                turn = Turn(number)
                transcript.turns.append(turn)
            if is_input:
                turn.sent += _octets(line[3:]) + (b"\r\n" if line[1] == ":" else b"")
            else:
                turn.directives.append(line)
        elif line.startswith("S:"):
            turn.heard += line[3:].encode("ascii") + b"\r\n"
        elif keyword in _FACTS:
            turn.facts.append(line)
        else:
            raise TranscriptError(f"{path.name}:{number}: {line!r}")
    return transcript


def _ehlo_reply(given: list[str]) -> bytes:
    """What EHLO is answered with, for transcripts that are about something else."""
    limits = {"message_octets": "26214400", "recipients": "1000", "transactions": "1000"}
    offered: list[str] = []
    last = "STARTTLS" if "given offers STARTTLS" in given else ""
    for line in given:
        match line.split(" "):
            case ["given", "limit", name, value]:
                limits[name] = value
            case ["given", "mechanisms", *names]:
                last = f"AUTH {' '.join(names)}"
            case ["given", "offers", "REQUIRETLS"] if "given TLS" in given:
                offered.append("REQUIRETLS")
            case ["given", "offers", "FUTURERELEASE", seconds]:
                latest = datetime.fromtimestamp(NOW + int(seconds), UTC)
                offered.append(f"FUTURERELEASE {seconds} {latest:%Y-%m-%dT%H:%M:%SZ}")
            case ["given", "offers", "DELIVERBY", seconds]:
                offered.append(f"DELIVERBY {seconds}")
    lines = [
        HOSTNAME,
        "PIPELINING",
        f"SIZE {limits['message_octets']}",
        "8BITMIME",
        "SMTPUTF8",
        "CHUNKING",
        "ENHANCEDSTATUSCODES",
        "DSN",
        f"LIMITS RCPTMAX={limits['recipients']} MAILMAX={limits['transactions']}",
        *offered,
        *([last] if last else []),
    ]
    text = "".join(f"250-{line}\r\n" for line in lines[:-1]) + f"250 {lines[-1]}\r\n"
    return text.encode("ascii")


def _octets(text: str) -> bytes:
    """The octets of a line, in UTF-8 where nothing is escaped."""
    octets = b""
    place = 0
    for match in _ESCAPE.finditer(text):
        octets += text[place : match.start()].encode("utf-8")
        place = match.end()
        if match[1] is not None:
            octets += bytes.fromhex(match[1])
        elif match[2] is not None:
            octets += match[2].encode("utf-8") * int(match[3])
        else:
            octets += _SIMPLE[match[4]].encode("ascii")
    return octets + text[place:].encode("utf-8")


class _Exchange:
    """PLAIN, and a LOGIN that asks twice; the password of everybody is "secret"."""

    def __init__(self, mechanism: str) -> None:
        self._mechanism = mechanism
        self._said: list[bytes] = []

    def step(self, response: bytes | None) -> bytes | str | Reply:
        if response is not None:
            self._said.append(response)
        if self._mechanism == "PLAIN":
            if not self._said:
                return b""
            _, _, rest = self._said[0].partition(b"\0")
            account, _, password = rest.partition(b"\0")
        else:
            if len(self._said) < 2:
                return (b"Username:", b"Password:")[len(self._said)]
            account, password = self._said
        if password == b"secret":
            return account.decode("utf-8", "replace")
        return reply(535, "5.7.8", "Authentication credentials invalid")


class Player:
    """One session, and the world round it."""

    def __init__(self, given: list[str], *, answers_late: bool = False) -> None:
        """With `answers_late`, no action is answered before `settle` is called."""
        self._answers_late = answers_late
        self._now = NOW
        self._rules: list[PolicyRule] = []
        self._storage = "works"
        self._exchange: _Exchange | None = None
        self._waiting: list[Callable[[], None]] = []
        self.output = b""
        self.stored: list[IncomingMessage] = []
        self.records: list[TransactionRecord] = []
        self.session_record: SessionRecord | None = None
        self.confirmed: list[int] = []
        self.is_closed = self.wants_tls = False
        self.named: dict[bytes, bytes] = {}
        settings, tolerance, tls = _world(given)
        ids = IdGenerator(1, lambda: self._now)
        view = SessionView(
            ids.next(), "mx", Role.MX, "192.0.2.7", 40000, "192.0.2.7/32", "192.0.2.25", 25, NOW, tls=tls
        )
        self.session = Session(view, settings, ids, lambda: self._now, tolerance)
        self._rules += [_rule(line.split(" ")[1:]) for line in given if line.startswith("given connect ")]
        self.session.start()
        self._advance()

    def feed(self, octets: bytes) -> None:
        """Let the client send, if the connection is still there."""
        if self.session_record is not None:
            return
        self.session.receive(octets)
        self._advance()

    def settle(self) -> None:
        """Answer whatever is waited for, until nothing is."""
        while self._waiting:
            self._waiting.pop()()
            self._advance()

    def take_output(self) -> bytes:
        """What the client has heard since the last call."""
        output, self.output = self.output, b""
        return output

    def direct(self, directive: str) -> None:
        """Change the world."""
        session = self.session
        match directive.split(" "):
            case ["policy", *words]:
                self._rules.insert(0, _rule(words))
            case ["storage", how]:
                self._storage = how
            case ["tls"]:
                assert self.wants_tls, "STARTTLS did not lead to a handshake"
                self.wants_tls = False
                session.tls_started(TLS)
            case ["timeout", *what]:
                session.time_out(transaction=what == ["transaction"])
            case ["shutdown"]:
                assert session.may_be_shut_down
                session.shut_down()
            case ["memory", "exhausted"]:
                session.give_up_content()
            case ["lost"]:
                session.connection_lost()
            case _:
                raise TranscriptError(directive)
        self._advance()

    def end(self) -> None:
        """Let the connection end, if it has not ended yet."""
        if self.session_record is None:
            self.session.connection_lost()
            self._advance()

    def _advance(self) -> None:
        session = self.session
        while (not self._waiting) and (action := session.next_action()) is not None:
            self._collect()
            match action:
                case Decide(request=request):
                    self._answer(lambda request=request: session.decided(self._decide(request)))  # type: ignore[misc]  # a lambda's default
                case Store(message=message):
                    self._answer(lambda message=message: self._store(message))  # type: ignore[misc]  # as above
                case Authenticate(mechanism=mechanism, response=response):
                    if mechanism is not None:
                        self._exchange = _Exchange(mechanism)
                    self._answer(lambda response=response: self._authenticate(response))  # type: ignore[misc]  # as above
                case StartTls():
                    self.wants_tls = True
                case Yield():
                    pass
                case Close():
                    self.is_closed = True
        self._collect()

    def _collect(self) -> None:
        self.output += self.session.take_output()
        self.confirmed += self.session.take_confirmed()
        for record in self.session.take_records():
            if isinstance(record, TransactionRecord):
                self.records.append(record)
            else:
                assert self.session_record is None, "a session ends once"
                self.session_record = record

    def _answer(self, answer: Callable[[], None]) -> None:
        if self._answers_late:
            self._waiting.append(answer)
        else:
            answer()

    def _decide(self, request: Request) -> Decision:
        for rule in self._rules:
            if rule.applies(request):
                return Decision(rule.verdict, "rule")
        return Decision(Continue())

    def _store(self, message: IncomingMessage) -> None:
        if self._storage == "away":
            self.session.storage_failed()
        elif self._storage == "resend":
            self.session.stored(self.stored[0].transaction.id)
        else:
            self.stored.append(message)
            self.session.stored(message.transaction.id)

    def _authenticate(self, response: bytes | None) -> None:
        assert self._exchange is not None
        match self._exchange.step(response):
            case bytes(challenge):
                self.session.auth_challenge(challenge)
            case str(account):
                self.session.authenticated(account)
            case refusal:
                self.session.auth_refused(refusal)


def _world(given: list[str]) -> tuple[Settings, Tolerance, TlsState | None]:
    limits: dict[str, int] = {}
    tolerated: dict[str, bool] = {}
    offers_starttls = requires_tls = mechanisms_need_tls = offers_requiretls = False
    longest_hold_seconds = shortest_delivery_seconds = 0
    accepts_unauthenticated = True
    mechanisms: tuple[str, ...] = ()
    tls: TlsState | None = None
    for line in given:
        match line.split(" ")[1:]:
            case ["limit", name, value]:
                limits[name] = int(value)
            case ["offers", "STARTTLS"]:
                offers_starttls = True
            case ["offers", "REQUIRETLS"]:
                offers_requiretls = True
            case ["offers", "FUTURERELEASE", seconds]:
                longest_hold_seconds = int(seconds)
            case ["offers", "DELIVERBY", seconds]:
                shortest_delivery_seconds = int(seconds)
            case ["requires", "TLS"]:
                requires_tls = True
            case ["requires", "authentication"]:
                accepts_unauthenticated = False
            case ["mechanisms", *names]:
                mechanisms = tuple(names)
            case ["mechanisms-within-TLS", *names]:
                mechanisms, mechanisms_need_tls = tuple(names), True
            case ["tolerated", name]:
                tolerated[name] = True
            case ["TLS"]:
                tls = TLS
            case ["fed", "whole"] | ["connect", *_]:
                pass
            case _:
                raise TranscriptError(line)
    settings = Settings(
        HOSTNAME,
        Limits(**limits),
        offers_starttls,
        requires_tls,
        accepts_unauthenticated,
        lambda session: mechanisms if session.tls is not None or not mechanisms_need_tls else (),
        offers_requiretls,
        longest_hold_seconds,
        shortest_delivery_seconds,
    )
    return settings, Tolerance(**tolerated), tls


def _rule(words: list[str]) -> PolicyRule:
    stage, *rest = words
    path = rest.pop(0)[1:-1] if rest[0].startswith("<") else None
    verdict: Verdict
    match rest:
        case ["continue"]:
            verdict = Continue()
        case ["quarantine", *reason]:
            verdict = Quarantine(" ".join(reason))
        case ["discard", *reason]:
            verdict = Discard(" ".join(reason))
        case [code, enhanced, *text]:
            refusal = reply(int(code), enhanced, " ".join(text))
            verdict = Reject(refusal) if refusal.code >= 500 else Defer(refusal)
        case _:
            raise TranscriptError(f"policy {' '.join(words)}")
    return PolicyRule(Stage(stage), path, verdict)


# ------------------------------------------------------------ what is compared


@dataclass(slots=True)
class _Seen:
    """How much of what has happened was compared already."""

    stored: int = 0
    records: int = 0


def play(transcript: Transcript, *, cut: Callable[[int, bytes], Iterator[bytes]], answers_late: bool = False) -> Player:
    """Play it; `cut` says how the octets of the turn with that index are cut. Gives the player for further questions.

    @raises AssertionError: something else was heard, or has happened, than the transcript says.
    """
    player = Player(transcript.given, answers_late=answers_late)
    seen = _Seen()
    for index, turn in enumerate(transcript.turns):
        for directive in turn.directives:
            player.direct(directive)
        for piece in cut(index, turn.sent):
            player.feed(piece)
        player.settle()
        where = f"{transcript.name}:{turn.line}"
        compare(player, turn.heard, player.take_output(), where)
        _check_facts(player, turn.facts, seen, where)
        if not any(fact == "closed" for fact in turn.facts) and index < len(transcript.turns) - 1:
            assert not player.is_closed, f"{where}: the session wants to close"
    player.end()
    assert player.session_record is not None
    return player


def compare(player: Player, template: bytes, heard: bytes, where: str) -> None:
    """Whether that was heard, where each {name} stands for the same id throughout."""
    pattern = b""
    place = 0
    fresh: list[bytes] = []
    for match in _NAMED.finditer(template):
        pattern += re.escape(template[place : match.start()])
        place, name = match.end(), match[1]
        if name in player.named:
            pattern += re.escape(player.named[name])
        elif name in fresh:
            pattern += b"(?P=n_" + name + b")"
        else:
            pattern += b"(?P<n_" + name + b">[0-9a-z]{13})"
            fresh.append(name)
    pattern += re.escape(template[place:])
    found = re.fullmatch(pattern, heard)
    assert found is not None, f"{where}: expected\n{template.decode()}\nheard\n{heard.decode()}"
    for name in fresh:
        player.named[name] = found[b"n_".decode() + name.decode()]
    assert len(set(player.named.values())) == len(player.named), f"{where}: one id, two things"


def _check_facts(player: Player, facts: list[str], seen: _Seen, where: str) -> None:
    stored: list[str] = []
    records: list[str] = []
    content: list[bytes] = []
    dialogue: list[str] = []
    for fact in facts:
        keyword, _, value = fact.partition(":")
        value = value.removeprefix(" ")
        match keyword:
            case "stored":
                stored.append(value)
                content.append(b"")
            case "M":
                content[-1] += _octets(value) + b"\r\n"
            case "kept":
                assert _parameters(player.stored[-1]) == value, where
            case "with":
                assert f" with {value} ".encode() in player.stored[-1].trace.replace(b"\r\n", b" "), where
            case "record":
                records.append(value)
            case "session":
                player.end()
                record = player.session_record
                assert record is not None
                said = f"{record.ending} transactions={record.transactions} errors={record.errors}"
                assert said == value, where
            case "D":
                dialogue.append(value)
            case "confirmed":
                assert len(player.confirmed) == int(value), where
            case "unconfirmed":
                assert len(player.session.unconfirmed) == int(value), where
            case "closed":
                assert player.is_closed, f"{where}: the session goes on"
    messages, seen.stored = player.stored[seen.stored :], len(player.stored)
    assert [_summary(message) for message in messages] == stored, where
    if player.is_closed:
        player.end()
    for message, expected in zip(messages, content, strict=True):
        assert message.content.joined() == expected, where
        assert message.content.size_octets == len(expected), where
    ended, seen.records = player.records[seen.records :], len(player.records)
    found = [f"{record.disposition.value} {record.stage} {record.reply}".rstrip() for record in ended]
    compare(player, "\n".join(records).encode(), "\n".join(found).encode(), where)
    if dialogue:
        assert player.session_record is not None
        compare(player, "\n".join(dialogue).encode(), player.session_record.dialogue.encode(), where)


def _summary(message: IncomingMessage) -> str:
    assert isinstance(message.content, MessageContent)
    paths = [f"<{message.transaction.reverse_path}>"]
    paths += [f"<{recipient.forward_path}>" for recipient in message.transaction.recipients if recipient.accepted]
    reason = f": {message.reason}" if message.reason else ""
    return f"{message.disposition.value} {' '.join(paths)}{reason}"


def _parameters(message: IncomingMessage) -> str:
    mail = message.transaction.reverse_path.parameters
    words = [
        f"{name}={value}"
        for name, value in (
            ("size", mail.size_octets),
            ("body", mail.body),
            ("smtputf8", mail.smtputf8 or None),
            ("ret", mail.ret),
            ("envid", mail.envid),
            ("auth", mail.auth),
            ("requires_tls", mail.requires_tls or None),
            ("held", None if mail.hold_until is None else f"{mail.hold_until - NOW:+g}"),
            ("by", None if mail.deliver_by is None else f"{mail.deliver_by - NOW:+g};{mail.deliver_by_mode}"),
        )
        if value is not None
    ]
    for recipient in message.transaction.recipients:
        parameters = recipient.forward_path.parameters
        words.append(f"<{recipient.forward_path}>")
        if parameters.notify is not None:
            words.append("notify=" + ",".join(sorted(parameters.notify)))
        if parameters.orcpt is not None:
            words.append(f"orcpt={parameters.orcpt}")
    return " ".join(words)
