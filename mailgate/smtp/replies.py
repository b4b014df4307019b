"""What the server says: the replies of a session, in the order of a dialogue.

A policy brings its own. The codes are chosen so that a client does what is right: 4xx where it may try again, 5xx where
it need not, 421 where the session ends.

Standards: RFC 5321 section 4.2.3 (codes), 4.3.2 (which command may hear what); RFC 3463 and RFC 5248 (status codes);
RFC 1870, 3207, 4954, 6531 for their own.
"""

from __future__ import annotations

from mailgate.ids import encode_id
from mailgate.message import MAX_HEADER_OCTETS
from mailgate.smtp.framing import Fault
from mailgate.smtp.reply import Reply, reply

RECIPIENT_OK = reply(250, "2.1.5", "Recipient ok")
SENDER_OK = reply(250, "2.1.0", "Sender ok")
START_DATA = reply(354, "", "End data with <CR><LF>.<CR><LF>")
RESET = reply(250, "2.0.0", "Reset")
NOOP = reply(250, "2.0.0", "Nothing done")
BYE = reply(221, "2.0.0", "Bye")
VRFY = reply(252, "2.5.0", "Not verified; send mail and see")
EXPN = reply(502, "5.5.1", "Lists are not shown")
HELP = reply(214, "2.0.0", "RFC 5321: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT STARTTLS AUTH")
READY_FOR_TLS = reply(220, "2.0.0", "Ready to start TLS")
HELO_FIRST = reply(503, "5.5.1", "Say EHLO first")
UNWELCOME = reply(503, "5.5.1", "You were refused; QUIT is all that is left")
MAIL_FIRST = reply(503, "5.5.1", "MAIL comes first")
NESTED_MAIL = reply(503, "5.5.1", "A transaction is open already; RSET ends it")
NO_RECIPIENTS = reply(554, "5.5.1", "No valid recipients")
BDAT_OPEN = reply(503, "5.5.1", "The message is being sent by BDAT")
NO_STARTTLS = reply(502, "5.5.1", "STARTTLS is not offered here")
TLS_ALREADY = reply(503, "5.5.1", "TLS is active already")
TLS_REQUIRED = reply(530, "5.7.0", "Issue STARTTLS first")
AUTH_REQUIRED = reply(530, "5.7.0", "Authentication required")
INPUT_BEHIND_STARTTLS = reply(554, "5.5.1", "Input behind STARTTLS; closing")
NO_AUTH = reply(502, "5.5.1", "AUTH is not offered here")
AUTH_NEEDS_TLS = reply(538, "5.7.11", "Encryption required: issue STARTTLS first")
AUTH_LINE_TOO_LONG = reply(500, "5.5.6", "Authentication exchange line is too long")
AUTH_MECHANISM = reply(504, "5.5.4", "That mechanism is not offered")
AUTH_ALREADY = reply(503, "5.5.1", "Authenticated already")
AUTH_IN_TRANSACTION = reply(503, "5.5.1", "AUTH is not permitted during a transaction")
AUTH_CANCELLED = reply(501, "5.7.0", "Authentication cancelled")
AUTH_MALFORMED = reply(501, "5.5.2", "That is not base64")
AUTHENTICATED = reply(235, "2.7.0", "Authenticated")
LINE_TOO_LONG = reply(500, "5.5.2", "Line too long")
BARE_LF = reply(500, "5.5.2", "A line ends in CRLF (RFC 5321 section 2.3.8); closing")
HELD_IN_THE_PAST = reply(554, "5.5.4", "HOLDUNTIL names a time that has passed")
HELD_BEYOND_ITS_TIME = reply(554, "5.5.4", "The message would be held for longer than BY gives it")
UTF8_NOT_ASKED = reply(553, "5.6.7", "That address needs SMTPUTF8 in MAIL")
TOO_MANY_RECIPIENTS = reply(452, "4.5.3", "Too many recipients; send the rest in another transaction")
TOO_MANY_TRANSACTIONS = reply(421, "4.7.0", "Too many transactions in this session; connect again")
TOO_MANY_ERRORS = reply(421, "4.7.0", "Too many errors; closing")
TOO_MANY_COMMANDS = reply(421, "4.7.0", "Too many commands and no mail; closing")
NO_MEMORY = reply(452, "4.3.1", "Insufficient system storage; try again later")
DATABASE_AWAY = reply(451, "4.3.0", "The mail system is unavailable for the moment; try again later")
SHUTTING_DOWN = reply(421, "4.3.2", "Shutting down; connect again")
TIMEOUT = reply(421, "4.4.2", "Waited too long; closing")
TRANSACTION_TIMEOUT = reply(421, "4.4.2", "The transaction took too long; closing")
ENDLESS_HEADER = reply(552, "5.3.4", f"Header section larger than {MAX_HEADER_OCTETS} octets")
NO_FIRST_FIELD = reply(550, "5.6.0", "The message begins with the rest of a header field (RFC 5322 section 2.2.3)")
# What is kept in Junk is not forwarded, and here nobody would keep it.
JUNK_FOR_ELSEWHERE = reply(550, "5.7.1", "This message is taken for junk, and its recipients' mail is forwarded")
LOOP = reply(554, "5.4.6", "Too many Received fields: this message goes round in a loop")

FAULTS = {
    Fault.BARE_LINE_END: reply(550, "5.5.2", "CR or LF alone is not a line end (RFC 5321 section 2.3.8)"),
    Fault.NUL: reply(550, "5.6.0", "NUL octet in message (RFC 5321 section 4.5.2)"),
    Fault.NO_MEMORY: NO_MEMORY,
}


def accepted(transaction_id: int) -> Reply:
    """The message is ours, under that id."""
    return Reply(250, "2.0.0", (f"Accepted as {encode_id(transaction_id)}",))


def held_too_long(seconds: int) -> Reply:
    """HOLDFOR or HOLDUNTIL is over the bound that EHLO told of (RFC 4865 section 3)."""
    return Reply(554, "5.5.4", (f"A message is held for at most {seconds} seconds",))


def too_little_time(seconds: int) -> Reply:
    """BY leaves less than the bound that EHLO told of (RFC 2852 section 4)."""
    return Reply(555, "5.5.4", (f"A message has at least {seconds} seconds to be delivered in",))


def too_large(octets: int) -> Reply:
    """SIZE, or the content, is over the bound (RFC 1870 section 6.1)."""
    return Reply(552, "5.3.4", (f"Message larger than {octets} octets",))


def long_line(octets: int) -> Reply:
    """A line is over the bound."""
    return Reply(550, "5.6.0", (f"Line longer than {octets} octets (RFC 5322 section 2.1.1)",))
