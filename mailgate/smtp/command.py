"""Commands: one line of the client in, a value out, or a CommandError with the reply that is due.

Says what a line means, not whether it may come now: the order of commands, and which extensions were offered, are the
business of `mailgate.smtp.session`. Replies repeat nothing of what the client sent.

A line is looked at in time linear in its length. Nearly all MAIL and RCPT commands match one pattern; what does not
match it goes through the whole grammar, with the same result where both apply.

Standards: RFC 5321 section 4.1 (commands), RFC 1870 (SIZE), RFC 3030 (BDAT), RFC 3207 (STARTTLS), RFC 3461 (DSN
parameters), RFC 4954 (AUTH), RFC 6152 (BODY), RFC 6531 (SMTPUTF8), RFC 6533 (utf-8 ORCPT), RFC 8689 (REQUIRETLS),
RFC 4865 with erratum 2040 (HOLDFOR, HOLDUNTIL), RFC 2852 (BY), RFC 3339 (date-time), RFC 2034 and RFC 3463 (enhanced
status codes).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from mailgate.envelope import (
    NO_MAIL_PARAMETERS,
    NO_RCPT_PARAMETERS,
    Address,
    ForwardPath,
    MailParameters,
    RcptParameters,
    ReversePath,
)
from mailgate.smtp.grammar import (
    MAX_DOMAIN_OCTETS,
    MAX_LABEL_OCTETS,
    MAX_LOCAL_PART_OCTETS,
    GrammarError,
    decode_utf_8_address,
    decode_xtext,
    parse_mailbox,
    parse_path,
)
from mailgate.smtp.reply import ProtocolError, reply

MAX_ENVID_CHARS = 100  # RFC 3461 section 4.4, as encoded
MAX_ORCPT_CHARS = 500  # RFC 3461 section 4.2, as encoded


class CommandError(ProtocolError):
    """This line is no command of ours; `reply` says why."""


@dataclass(frozen=True, slots=True)
class Ehlo:
    """EHLO. `name` is a domain, an address literal, or something alike that is safe to write into a trace field."""

    name: str


@dataclass(frozen=True, slots=True)
class Helo:
    """HELO; `name` as in Ehlo."""

    name: str


@dataclass(frozen=True, slots=True)
class Mail:
    """MAIL FROM. Times that count from the command on are kept apart: a line does not say when it came."""

    reverse_path: ReversePath
    is_internationalized: bool = False  # something in the command is not ASCII: SMTPUTF8 must be among the parameters
    hold_for_seconds: int | None = None  # HOLDFOR
    deliver_by_seconds: int | None = None  # BY; below zero where the time has passed already

    def path_at(self, now: float) -> ReversePath:
        """The reverse-path with all times absolute, given when the command came."""
        path = self.reverse_path
        if self.hold_for_seconds is None and self.deliver_by_seconds is None:
            return path
        parameters = path.parameters
        if self.hold_for_seconds is not None:
            parameters = replace(parameters, hold_until=now + self.hold_for_seconds)
        if self.deliver_by_seconds is not None:
            parameters = replace(parameters, deliver_by=now + self.deliver_by_seconds)
        return replace(path, parameters=parameters)


@dataclass(frozen=True, slots=True)
class Rcpt:
    """RCPT TO. The address of the bare `<Postmaster>` has the domain ""."""

    forward_path: ForwardPath
    is_internationalized: bool = False  # something in the command is not ASCII: SMTPUTF8 must have come with MAIL


@dataclass(frozen=True, slots=True)
class Data:
    """DATA."""


@dataclass(frozen=True, slots=True)
class Bdat:
    """BDAT: so many octets follow the command's CRLF."""

    size_octets: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Rset:
    """RSET."""


@dataclass(frozen=True, slots=True)
class Noop:
    """NOOP, with or without an argument."""


@dataclass(frozen=True, slots=True)
class Vrfy:
    """VRFY."""

    argument: str


@dataclass(frozen=True, slots=True)
class Expn:
    """EXPN."""

    argument: str


@dataclass(frozen=True, slots=True)
class Help:
    """HELP, with or without an argument."""


@dataclass(frozen=True, slots=True)
class Quit:
    """QUIT."""


@dataclass(frozen=True, slots=True)
class StartTls:
    """STARTTLS."""


@dataclass(frozen=True, slots=True)
class Auth:
    """AUTH. `initial` is the decoded initial response: b"" where the client sent "=", None where it sent none."""

    mechanism: str  # in upper case
    initial: bytes | None = field(default=None, repr=False)  # a credential


Command = Ehlo | Helo | Mail | Rcpt | Data | Bdat | Rset | Noop | Vrfy | Expn | Help | Quit | StartTls | Auth

_NOT_RECOGNIZED = reply(500, "5.5.1", "Command not recognized")
_NOT_IMPLEMENTED = reply(502, "5.5.1", "Command not implemented")
_NOT_A_COMMAND = reply(
    500, "5.5.2", "Syntax error: a command is a word, and what belongs to it, in printable characters"
)
_NOT_UTF_8 = reply(500, "5.5.2", "Syntax error: not UTF-8")
_NO_ARGUMENT_ALLOWED = reply(501, "5.5.4", "Syntax error: this command takes no argument")
_ARGUMENT_NEEDED = reply(501, "5.5.4", "Syntax error: this command needs an argument")
_BAD_NAME = reply(501, "5.5.4", "Syntax error: give your host name or address literal")
_BAD_MAIL = reply(501, "5.5.4", "Syntax: MAIL FROM:<address> [parameters]")
_BAD_RCPT = reply(501, "5.5.4", "Syntax: RCPT TO:<address> [parameters]")
_NULL_RECIPIENT = reply(501, "5.1.3", "Bad recipient address syntax: the null path is for senders only")
_BAD_BDAT = reply(501, "5.5.4", "Syntax: BDAT size [LAST]")
_BAD_AUTH = reply(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]")
_BAD_BASE64 = reply(501, "5.5.2", "Syntax error: the initial response is not valid base64")
_BAD_PARAMETER = reply(501, "5.5.4", "Syntax error: parameters are KEYWORD or KEYWORD=value, with spaces between them")
_NO_TRACE = reply(555, "5.5.4", "BY with a trace (T) is not implemented")
_HELD_TWICE = reply(501, "5.5.4", "Syntax error: HOLDFOR and HOLDUNTIL exclude each other")
_PARAMETER_TWICE = reply(501, "5.5.4", "Syntax error: a parameter was given twice")
UNKNOWN_MAIL_PARAMETER = reply(555, "5.5.4", "MAIL FROM parameter not recognized or not implemented")
_UNKNOWN_RCPT_PARAMETER = reply(555, "5.5.4", "RCPT TO parameter not recognized or not implemented")

# Words that RFC 5321 or its forerunners know and that are not done here: 502 rather than 500 (section 4.2.4).
_KNOWN_VERBS = frozenset({"ETRN", "SAML", "SEND", "SOML", "TURN"})

# The usual MAIL and RCPT: a Dot-string of ASCII atext without quotes and routes, an LDH domain, and of the parameters
# those that large senders give, in the order in which they give them. A subset of the grammar; see `grammar.py`.
_USUAL_ATEXT = r"[0-9A-Za-z!#$%&'*+\-/=?^_`{|}~]"
_USUAL_LOCAL = rf"{_USUAL_ATEXT}++(?:\.{_USUAL_ATEXT}{_USUAL_ATEXT}*+)*+"
_USUAL_DOMAIN = r"[A-Za-z0-9]++(?:[.\-][A-Za-z0-9][A-Za-z0-9]*+|(?=--)-)*+"
_USUAL = re.compile(
    r"(?:[Rr][Cc][Pp][Tt] [Tt][Oo]:|([Mm][Aa][Ii][Ll] [Ff][Rr][Oo][Mm]:))"
    rf"<({_USUAL_LOCAL})@({_USUAL_DOMAIN})>"
    r"(?: SIZE=([0-9]{1,20}))?(?: BODY=(8BITMIME|7BIT))?"
)


def parse_command(line: bytes) -> Command:
    """The command that this line holds. `line` comes without its CRLF.

    @raises CommandError: with the reply to send.
    """
    command = _BARE.get(line)
    if command is not None:
        return command
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(_NOT_UTF_8) from error
    match = _USUAL.fullmatch(text)
    if match is not None:
        usual = _usual_command(match)
        if usual is not None:
            return usual
    return _parse_any(text)


def _usual_command(match: re.Match[str]) -> Mail | Rcpt | None:
    """The command that matched the fast pattern; None where the whole grammar has to have a closer look."""
    mail, local, domain, size, body = match.groups()
    if len(local) > MAX_LOCAL_PART_OCTETS or len(domain) > MAX_LABEL_OCTETS:
        return None
    address = Address(local, domain)
    if mail is None:
        return Rcpt(ForwardPath(address)) if size is None and body is None else None
    if size is None and body is None:
        return Mail(ReversePath(address))
    return Mail(ReversePath(address, MailParameters(None if size is None else int(size), body)))


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _parse_any(text: str) -> Command:
    # RFC 5321 section 4.1.1: "SMTP servers SHOULD tolerate trailing white space before the terminating <CRLF>".
    text = text.rstrip(" \t")
    if _CONTROL.search(text):
        raise CommandError(_NOT_A_COMMAND)
    verb, _, argument = text.partition(" ")
    if not verb.isascii():  # upper() would make an S of U+017F
        raise CommandError(_NOT_RECOGNIZED)
    verb = verb.upper()
    parse = _PARSERS.get(verb)
    if parse is not None:
        return parse(argument)
    if not verb:
        raise CommandError(_NOT_A_COMMAND)
    raise CommandError(_NOT_IMPLEMENTED if verb in _KNOWN_VERBS else _NOT_RECOGNIZED)


# Looser than `Domain / address-literal`: hosts say underscores, bare IP addresses and odd literals, and RFC 5321
# section 4.1.4 forbids to refuse mail because the name does not verify. What would end or nest a clause of a trace
# field (RFC 5322's specials, blanks, controls) is not let in. Not UTF-8 either: RFC 6531 section 3.2 comes after EHLO.
_NAME = re.compile(r"[!#-'*+\-./0-9:=?A-Z\[\]^_`a-z{|}~]++")


def _parse_name(argument: str) -> str:
    argument = argument.lstrip(" ")
    if len(argument) > MAX_DOMAIN_OCTETS or not _NAME.fullmatch(argument):
        raise CommandError(_BAD_NAME)
    return argument


def _parse_ehlo(argument: str) -> Ehlo:
    return Ehlo(_parse_name(argument))


def _parse_helo(argument: str) -> Helo:
    return Helo(_parse_name(argument))


#   mail = "MAIL FROM:" Reverse-path [SP Mail-parameters] CRLF
# RFC 5321 section 3.3: "spaces are not permitted on either side of the colon following FROM in the MAIL command or TO
# in the RCPT command". Scanners, alarm systems and scripts that write SMTP by hand put one behind it all the same, and
# it is unambiguous; one is taken.
_FROM = re.compile(r" *+FROM: ?+", re.IGNORECASE | re.ASCII)
_TO = re.compile(r" *+TO: ?+", re.IGNORECASE | re.ASCII)


def _parse_mail(argument: str) -> Mail:
    start = _FROM.match(argument)
    if start is None:
        raise CommandError(_BAD_MAIL)
    try:
        address, end = parse_path(argument, start.end())
    except GrammarError as error:
        raise CommandError(reply(501, "5.1.7", f"Bad sender address syntax: {error}")) from error
    parameters, hold_for_seconds, deliver_by_seconds = _mail_parameters(_parse_parameters(argument, end))
    return Mail(ReversePath(address, parameters), not argument.isascii(), hold_for_seconds, deliver_by_seconds)


#   rcpt = "RCPT TO:" ( "<Postmaster@" Domain ">" / "<Postmaster>" / Forward-path ) [SP Rcpt-parameters] CRLF
_POSTMASTER = re.compile(r"<(postmaster)>", re.IGNORECASE | re.ASCII)


def _parse_rcpt(argument: str) -> Rcpt:
    start = _TO.match(argument)
    if start is None:
        raise CommandError(_BAD_RCPT)
    address: Address | None
    postmaster = _POSTMASTER.match(argument, start.end())
    if postmaster is not None:
        address, end = Address(postmaster[1], ""), postmaster.end()
    else:
        try:
            address, end = parse_path(argument, start.end())
        except GrammarError as error:
            raise CommandError(reply(501, "5.1.3", f"Bad recipient address syntax: {error}")) from error
        if address is None:
            raise CommandError(_NULL_RECIPIENT)
    parameters = _rcpt_parameters(_parse_parameters(argument, end))
    return Rcpt(ForwardPath(address, parameters), not argument.isascii())


#   Mail-parameters = esmtp-param *(SP esmtp-param)
#   esmtp-param     = esmtp-keyword ["=" esmtp-value]
#   esmtp-keyword   = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-")
#   esmtp-value     = 1*(%d33-60 / %d62-126)          ; RFC 6531 adds UTF8-non-ascii
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9\-]*+)(?:=([!-<>-~\xa0-\U0010ffff]++))?")


def _parse_parameters(argument: str, start: int) -> list[tuple[str, str | None]]:
    """The parameters behind the path, keywords in upper case and each but once; None stands for no value."""
    if start == len(argument):
        return []
    if argument[start] != " ":
        raise CommandError(_BAD_PARAMETER)
    found: list[tuple[str, str | None]] = []
    seen: set[str] = set()
    for word in argument[start:].split(" "):
        if not word:
            continue
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise CommandError(_BAD_PARAMETER)
        keyword = match[1].upper()
        if keyword in seen:
            raise CommandError(_PARAMETER_TWICE)
        seen.add(keyword)
        found.append((keyword, match[2]))
    return found


def _mail_parameters(given: list[tuple[str, str | None]]) -> tuple[MailParameters, int | None, int | None]:
    """The parameters, and the seconds of HOLDFOR and of BY."""
    if not given:
        return NO_MAIL_PARAMETERS, None, None
    size_octets: int | None = None
    body: str | None = None
    smtputf8 = requires_tls = False
    ret: str | None = None
    envid: str | None = None
    auth: str | None = None
    hold_for_seconds: int | None = None
    hold_until: float | None = None
    by: _By | None = None
    for keyword, value in given:
        match keyword:
            case "SIZE":
                size_octets = _size(value)
            case "BODY":
                body = _one_of(keyword, value, "7BIT", "8BITMIME")
            case "SMTPUTF8":
                smtputf8 = _present(keyword, value)
            case "RET":
                ret = _one_of(keyword, value, "FULL", "HDRS")
            case "ENVID":
                envid = _envid(value)
            case "AUTH":
                auth = _submitter(value)
            case "REQUIRETLS":
                requires_tls = _present(keyword, value)
            case "HOLDFOR":
                hold_for_seconds = _hold_for(value)
            case "HOLDUNTIL":
                hold_until = _hold_until(value)
            case "BY":
                by = _by(value)
            case _:
                raise CommandError(UNKNOWN_MAIL_PARAMETER)
    if hold_for_seconds is not None and hold_until is not None:
        raise CommandError(_HELD_TWICE)
    parameters = MailParameters(
        size_octets,
        body,
        smtputf8,
        ret,
        envid,
        auth,
        requires_tls,
        hold_until,
        None,
        by.mode if by is not None else "",
    )
    return parameters, hold_for_seconds, by.seconds if by is not None else None


def _rcpt_parameters(given: list[tuple[str, str | None]]) -> RcptParameters:
    if not given:
        return NO_RCPT_PARAMETERS
    notify: frozenset[str] | None = None
    orcpt: str | None = None
    for keyword, value in given:
        match keyword:
            case "NOTIFY":
                notify = _notify(value)
            case "ORCPT":
                orcpt = _orcpt(value)
            case _:
                raise CommandError(_UNKNOWN_RCPT_PARAMETER)
    return RcptParameters(notify, orcpt)


def _bad_value(keyword: str) -> CommandError:
    return CommandError(reply(501, "5.5.4", f"Syntax error in the value of the parameter {keyword}"))


def _present(keyword: str, value: str | None) -> bool:
    """True for a parameter that takes no value."""
    if value is not None:
        raise _bad_value(keyword)
    return True


#   size-value = 1*20DIGIT
_SIZE = re.compile(r"[0-9]{1,20}")


def _size(value: str | None) -> int:
    if value is None or not _SIZE.fullmatch(value):
        raise _bad_value("SIZE")
    return int(value)


def _one_of(keyword: str, value: str | None, *choices: str) -> str:
    upper = value.upper() if value is not None and value.isascii() else None
    if upper not in choices:
        raise _bad_value(keyword)
    return upper


def _envid(value: str | None) -> str:
    """RFC 3461 section 4.4: at most 100 characters of xtext, made of printable ASCII."""
    if value is None or len(value) > MAX_ENVID_CHARS:
        raise _bad_value("ENVID")
    try:
        envid = decode_xtext(value)
    except GrammarError as error:
        raise _bad_value("ENVID") from error
    if not envid.isascii():
        raise _bad_value("ENVID")
    return envid


def _submitter(value: str | None) -> str:
    """RFC 4954 section 5: a mailbox as xtext, or `<>`."""
    if value is None:
        raise _bad_value("AUTH")
    try:
        submitter = decode_xtext(value)
        if submitter != "<>":
            parse_mailbox(submitter)
    except GrammarError as error:
        raise _bad_value("AUTH") from error
    return submitter


#   future-release-interval  = future-release-integer
#   future-release-integer   = %x31-39 *8DIGIT
#   future-release-date-time = date-time                   ; RFC 3339 section 5.6, by erratum 2040
_INTERVAL = re.compile(r"[1-9][0-9]{0,8}")
_DATE_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]{1,9})?"
    r"(?:[Zz]|([+\-])([0-9]{2}):([0-9]{2}))"
)


def _hold_for(value: str | None) -> int:
    if value is None or not _INTERVAL.fullmatch(value):
        raise _bad_value("HOLDFOR")
    return int(value)


def _hold_until(value: str | None) -> float:
    """Seconds since the epoch. A fraction of a second is left out; a leap second is the one after it."""
    match = _DATE_TIME.fullmatch(value) if value is not None else None
    if match is None:
        raise _bad_value("HOLDUNTIL")
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    sign, offset_hours, offset_minutes = match.groups()[6:]
    try:
        moment = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
    except ValueError as error:
        raise _bad_value("HOLDUNTIL") from error
    if second > 60 or (sign is not None and (int(offset_hours) > 23 or int(offset_minutes) > 59)):
        raise _bad_value("HOLDUNTIL")
    seconds = moment.timestamp() + (second == 60)
    if sign is None:
        return seconds
    offset = timedelta(hours=int(offset_hours), minutes=int(offset_minutes)).total_seconds()
    return seconds - offset if sign == "+" else seconds + offset


@dataclass(frozen=True, slots=True)
class _By:
    """The value of BY."""

    seconds: int
    mode: Literal["N", "R"]


#   deliverby-param = "BY"
#   deliverby-value = by-time ";" by-mode [by-trace]
#   by-time         = ["-" / "+"] 1*9digit
#   by-mode         = "N" / "R"
#   by-trace        = "T"
_BY = re.compile(r"([+\-]?[0-9]{1,9});([NRnr])([Tt]?)")


def _by(value: str | None) -> _By:
    """RFC 2852 section 4: what is to be returned when the time is over needs time that is not.

    We tell nobody when a message is passed on, so who asks for that trace is refused rather than left waiting.
    """
    match = _BY.fullmatch(value) if value is not None else None
    if match is None:
        raise _bad_value("BY")
    if match[3]:
        raise CommandError(_NO_TRACE)
    seconds, mode = int(match[1]), match[2].upper()
    if mode == "R" and seconds <= 0:
        raise _bad_value("BY")
    return _By(seconds, "R" if mode == "R" else "N")


_NOTIFY_WORDS = frozenset({"SUCCESS", "FAILURE", "DELAY"})


def _notify(value: str | None) -> frozenset[str]:
    """RFC 3461 section 4.1: NEVER alone, or a list of the others."""
    if value is None or not value.isascii():
        raise _bad_value("NOTIFY")
    words = frozenset(value.upper().split(","))
    if not words <= _NOTIFY_WORDS and words != {"NEVER"}:
        raise _bad_value("NOTIFY")
    return words


#   original-recipient-address = addr-type ";" xtext
#   addr-type                  = atom
#   utf-8-type-addr            = "utf-8;" utf-8-enc-addr        ; RFC 6533 section 3
_ADDRESS_TYPE = re.compile(r"[0-9A-Za-z!#$%&'*+\-/=?^_`{|}~]++")


def _orcpt(value: str | None) -> str:
    if value is None or len(value) > MAX_ORCPT_CHARS:
        raise _bad_value("ORCPT")
    address_type, _, encoded = value.partition(";")
    if not encoded or not _ADDRESS_TYPE.fullmatch(address_type):
        raise _bad_value("ORCPT")
    is_utf_8 = address_type.lower() == "utf-8"
    try:
        address = decode_utf_8_address(encoded) if is_utf_8 else decode_xtext(encoded)
    except GrammarError as error:
        raise _bad_value("ORCPT") from error
    if not is_utf_8 and not address.isascii():
        raise _bad_value("ORCPT")
    return f"{address_type};{address}"


#   bdat-cmd   = "BDAT" SP chunk-size [ SP end-marker ] CR LF
#   chunk-size = 1*DIGIT
#   end-marker = "LAST"
_BDAT = re.compile(r" *+([0-9]{1,20})(?: ++(LAST))?", re.IGNORECASE | re.ASCII)


def _parse_bdat(argument: str) -> Bdat:
    match = _BDAT.fullmatch(argument)
    if match is None:
        raise CommandError(_BAD_BDAT)
    return Bdat(int(match[1]), match[2] is not None)


#   auth-command     = "AUTH" SP sasl-mech [SP initial-response] *(CRLF [base64]) [CRLF cancel-response]
#   initial-response = base64 / "="
#   sasl-mech        = 1*20mech-char                   ; RFC 4422
#   mech-char        = UPPER-ALPHA / DIGIT / HYPHEN / UNDERSCORE
_AUTH = re.compile(r" *+([A-Za-z0-9_\-]{1,20})(?: ++([!-~]++))?")


def _parse_auth(argument: str) -> Auth:
    match = _AUTH.fullmatch(argument)
    if match is None:
        raise CommandError(_BAD_AUTH)
    mechanism, encoded = match.groups()
    if encoded is None:
        return Auth(mechanism.upper())
    if encoded == "=":
        return Auth(mechanism.upper(), b"")
    try:
        return Auth(mechanism.upper(), binascii.a2b_base64(encoded, strict_mode=True))
    except binascii.Error as error:
        raise CommandError(_BAD_BASE64) from error


def _needs_argument(kind: type[Vrfy] | type[Expn]) -> Callable[[str], Command]:
    def parse(argument: str) -> Command:
        argument = argument.lstrip(" ")
        if not argument:
            raise CommandError(_ARGUMENT_NEEDED)
        return kind(argument)

    return parse


def _takes_none(command: Command) -> Callable[[str], Command]:
    def parse(argument: str) -> Command:
        if argument:
            raise CommandError(_NO_ARGUMENT_ALLOWED)
        return command

    return parse


def _takes_any(command: Command) -> Callable[[str], Command]:
    return lambda _: command


_BARE: dict[bytes, Command] = {b"DATA": Data(), b"RSET": Rset(), b"NOOP": Noop(), b"QUIT": Quit()}

_PARSERS: dict[str, Callable[[str], Command]] = {
    "EHLO": _parse_ehlo,
    "HELO": _parse_helo,
    "MAIL": _parse_mail,
    "RCPT": _parse_rcpt,
    "DATA": _takes_none(Data()),
    "BDAT": _parse_bdat,
    "RSET": _takes_none(Rset()),
    "NOOP": _takes_any(Noop()),
    "VRFY": _needs_argument(Vrfy),
    "EXPN": _needs_argument(Expn),
    "HELP": _takes_any(Help()),
    "QUIT": _takes_none(Quit()),
    "STARTTLS": _takes_none(StartTls()),
    "AUTH": _parse_auth,
}
