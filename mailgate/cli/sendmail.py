"""`mailgate-sendmail`: the command that programs call `sendmail`, to be linked as /usr/sbin/sendmail.

It takes a message on standard input and hands it in to mailgate, which queues it: over mailgate's Unix socket, or as
`mailgate.submission.client_settings` says. There is no queue of its own: where mailgate can't be reached it fails with
EX_TEMPFAIL, and the program keeps its message.

    -t              the recipients are those of To, Cc and Bcc, and those of the command line
    -i, -oi         a line with a dot alone does not end the message
    -f, -r ADDRESS  the reverse-path; "" or "<>" is the null path. By default the user's name at this domain
    -F NAME         the full name in From, where the message has no From
    -N WORDS        NOTIFY: never, or success,failure,delay          -R full|hdrs    RET
    -V ID           ENVID                                            -B TYPE         is seen from the message
    -bs             speaks SMTP on standard input and output
    -bi, -q...      nothing to do: succeeds at once

Other options that programs give from habit (-o..., -e, -m, -n, -v, -G, -U, and those with an argument: -A, -C, -d, -D,
-h, -L, -O, -p, -X) are taken and mean nothing here.

Exit status, by sysexits.h: 0; 64 wrong usage; 65 the message or an address is malformed; 67 no such recipient; 69
refused for another reason; 75 try again later; 77 not allowed; 78 the settings are wrong. Where only some recipients
were refused, the message has gone to the others, and the status is that of the first one refused.

Few imports stand above, and none of Twisted: cron starts this for each of its mails.
"""

from __future__ import annotations

import getopt
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailgate.outbound.plan import Delivery
    from mailgate.submission.client_settings import ClientSettings

EX_USAGE = 64
EX_DATAERR = 65
EX_NOUSER = 67
EX_UNAVAILABLE = 69
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78

_OPTIONS = "A:B:b:C:d:D:e:F:f:Gh:iL:mN:nO:o:p:q:R:r:tUV:vX:"
_WITHOUT_ARGUMENT = ("-q", "-d", "-e")  # may stand alone: -q, -q30m
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})


class _Failed(Exception):
    """It ends here."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class _Options:
    mode: str = "m"
    takes_recipients_from_header: bool = False
    ends_at_dot: bool = True
    reverse_path: str | None = None
    full_name: str | None = None
    notify: frozenset[str] | None = None
    ret: str | None = None
    envid: str | None = None
    recipients: list[str] = field(default_factory=list)


def main() -> None:
    """Run the command."""
    try:
        status = _run(sys.argv)
    except _Failed as failed:
        sys.stderr.write(f"{_name()}: {failed}\n")
        status = failed.status
    sys.exit(status)


def _name() -> str:
    return os.path.basename(sys.argv[0]) or "sendmail"  # noqa: PTH119  # pathlib costs a tenth of the whole


def _run(argv: list[str]) -> int:
    name = os.path.basename(argv[0])  # noqa: PTH119  # as above
    if name == "newaliases":
        return 0
    options = _read(argv[1:])
    if name == "mailq" or options.mode == "p":
        raise _Failed(EX_USAGE, "the queue is shown by `mailgate queue list`")
    match options.mode:
        case "m":
            return _send(options)
        case "s":
            return _pass_through(_settings())
        case "i" | "q":
            return 0
        case mode:
            raise _Failed(EX_USAGE, f"-b{mode} is not done here; see `mailgate --help`")


def _read(arguments: list[str]) -> _Options:
    options = _Options()
    arguments = [f"{word}-" if word in _WITHOUT_ARGUMENT else word for word in arguments]
    try:
        given, options.recipients = getopt.gnu_getopt(arguments, _OPTIONS)
    except getopt.GetoptError as error:
        raise _Failed(EX_USAGE, str(error)) from error
    for option, value in given:
        match option:
            case "-b":
                options.mode = value[:1]
            case "-q":
                options.mode = "q"
            case "-t":
                options.takes_recipients_from_header = True
            case "-i":
                options.ends_at_dot = False
            case "-o" if value.startswith("i"):
                options.ends_at_dot = False
            case "-f" | "-r":
                options.reverse_path = value.strip("<>")
            case "-F":
                options.full_name = value
            case "-N":
                options.notify = _notify(value)
            case "-R":
                options.ret = _one_of("-R", value, {"full": "FULL", "hdrs": "HDRS"})
            case "-V":
                options.envid = value
            case _:
                pass  # said from habit
    return options


def _notify(value: str) -> frozenset[str]:
    words = frozenset(value.upper().split(","))
    if words != {"NEVER"} and not words <= _NOTIFY:
        raise _Failed(EX_USAGE, f"-N {value}: use never, or some of success,failure,delay")
    return words


def _one_of(option: str, value: str, choices: dict[str, str]) -> str:
    chosen = choices.get(value.lower())
    if chosen is None:
        raise _Failed(EX_USAGE, f"{option} {value}: use {' or '.join(choices)}")
    return chosen


def _settings() -> ClientSettings:
    from mailgate.submission.client_settings import SettingsError, client_settings

    try:
        return client_settings()
    except SettingsError as error:
        raise _Failed(EX_CONFIG, str(error)) from error


def _send(options: _Options) -> int:
    from mailgate.submission.addresses import NotAnAddress, addresses_in, with_domain
    from mailgate.submission.handing_in import Request, hand_in, outgoing
    from mailgate.submission.program_mail import Author, lines_until_dot, program_mail

    if not options.recipients and not options.takes_recipients_from_header:
        raise _Failed(EX_USAGE, "no recipients: name them, or use -t to take them from the message")
    settings = _settings()
    text = sys.stdin.buffer.read()
    if options.ends_at_dot:
        text = lines_until_dot(text)
    user, full_name = _user()
    reverse_path = user if options.reverse_path is None else options.reverse_path
    try:
        reverse_path = with_domain(reverse_path, settings.domain) if reverse_path else ""
        author = Author(reverse_path or with_domain(user, settings.domain), options.full_name or full_name)
        mail = program_mail(text, author, settings.domain)
        named = [found.text for words in options.recipients for found in addresses_in(words)]
        recipients = [with_domain(address, settings.domain) for address in named]
        if options.takes_recipients_from_header:
            recipients += mail.recipients()
    except NotAnAddress as error:
        raise _Failed(EX_DATAERR, str(error)) from error
    if not recipients:
        raise _Failed(EX_USAGE, "the message names no recipients")
    request = Request(options.notify, options.ret, options.envid)
    delivery = hand_in(outgoing(mail.octets(), reverse_path, dict.fromkeys(recipients), request), settings)
    return _report(delivery, list(dict.fromkeys(recipients)))


def _user() -> tuple[str, str]:
    """The name of the user that this runs as, and the full one."""
    import pwd

    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return f"uid{os.getuid()}", ""
    return entry.pw_name, entry.pw_gecos.partition(",")[0].replace("&", entry.pw_name.capitalize())


def _report(delivery: Delivery, recipients: list[str]) -> int:
    """Say what went wrong; the exit status."""
    status = 0
    for outcome in delivery.outcomes:
        if outcome.result.value != "delivered":
            sys.stderr.write(f"{_name()}: {recipients[outcome.queue_id]}: {outcome.reply}\n")
            status = status or _status_of(outcome.result.value == "failed", outcome.status)
    if delivery.outcomes:
        return status
    trouble = delivery.trouble
    if trouble is None:
        raise _Failed(EX_TEMPFAIL, "mailgate said nothing")
    raise _Failed(_status_of(trouble.status.startswith("5"), trouble.status), trouble.reply)


#   status-code = class "." subject "." detail       ; RFC 3463 section 2
def _status_of(is_final: bool, code: str) -> int:
    """The exit status for a reply that refuses."""
    if not is_final:
        return EX_TEMPFAIL
    subject = code.split(".")[1:2]
    match subject:
        case ["1"]:
            return EX_DATAERR if code.endswith((".3", ".7")) else EX_NOUSER
        case ["5" | "6"]:
            return EX_DATAERR
        case ["7"]:
            return EX_NOPERM
        case _:
            return EX_UNAVAILABLE


def _pass_through(settings: ClientSettings) -> int:
    """SMTP between standard input and output and mailgate's socket."""
    import select
    import socket

    if not settings.socket:
        raise _Failed(EX_CONFIG, "-bs needs mailgate's Unix socket: set socket in sendmail.toml")
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(settings.socket)
            inputs = [connection.fileno(), 0]
            while True:
                for ready in select.select(inputs, [], [])[0]:
                    octets = os.read(ready, 65_536)
                    if ready and not octets:
                        return 0
                    if ready:
                        sys.stdout.buffer.write(octets)
                        sys.stdout.buffer.flush()
                    elif octets:
                        connection.sendall(octets)
                    else:
                        inputs.remove(0)
                        connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise _Failed(EX_TEMPFAIL, f"{settings.socket}: {error.strerror}") from error
