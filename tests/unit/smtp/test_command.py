"""Command lines: what they mean, and the reply where they mean nothing."""

# ruff: noqa: RUF001  (look-alikes are what some cases are about)
from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.envelope import Address, ForwardPath, MailParameters, RcptParameters, ReversePath
from mailgate.smtp import command as commands
from mailgate.smtp.command import (
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
    StartTls,
    Vrfy,
    parse_command,
)
from mailgate.smtp.grammar import encode_xtext
from tests.support.addresses import ADDRESSES, ASCII_ADDRESSES

# Whatever its place in the grammar, a control character is refused.
CONTROLS = [bytes([octet]) for octet in (0, 1, 9, 10, 13, 27, 127)] + ["\x85".encode(), "\u2028".encode()]


def mail(address: Address | None, **parameters: object) -> Mail:
    return Mail(ReversePath(address, MailParameters(**parameters)))  # type: ignore[arg-type]  # a table's shorthand


def by(seconds: int, **parameters: object) -> Mail:
    return replace(mail(SMITH, **parameters), deliver_by_seconds=seconds)


def rcpt(address: Address, **parameters: object) -> Rcpt:
    return Rcpt(ForwardPath(address, RcptParameters(**parameters)))  # type: ignore[arg-type]  # a table's shorthand


SMITH = Address("Smith", "bar.com")
FRED = Address("fred", "example.test")

UNDERSTOOD: list[tuple[bytes, Command]] = [
    # RFC 5321 section 4.1.1.1 and appendix D.
    (b"EHLO bar.com", Ehlo("bar.com")),
    (b"ehlo foo.com", Ehlo("foo.com")),
    (b"HELO bar.com", Helo("bar.com")),
    (b"EHLO [192.0.2.1]", Ehlo("[192.0.2.1]")),
    (b"EHLO [IPv6:2001:db8::1]", Ehlo("[IPv6:2001:db8::1]")),
    # Not by the grammar, but said by real hosts and harmless.
    (b"EHLO 192.0.2.1", Ehlo("192.0.2.1")),
    (b"EHLO my_pc", Ehlo("my_pc")),
    (b"EHLO  two.blanks", Ehlo("two.blanks")),
    (b"EHLO trailing.blanks \t ", Ehlo("trailing.blanks")),
    (b"EHLO " + b"a" * 255, Ehlo("a" * 255)),
    # Section 4.1.1.2.
    (b"MAIL FROM:<Smith@bar.com>", mail(SMITH)),
    (b"mail from:<Smith@bar.com>", mail(SMITH)),
    (b"Mail  From:<Smith@bar.com>", mail(SMITH)),
    (b"MAIL FROM: <Smith@bar.com>", mail(SMITH)),
    (b"MAIL FROM:<Smith@bar.com> ", mail(SMITH)),
    (b"MAIL FROM:<>", mail(None)),
    (b'MAIL FROM:<"Joe Q. Public"@bar.com>', mail(Address("Joe Q. Public", "bar.com"))),
    (b"MAIL FROM:<userx@y.foo.org>", mail(Address("userx", "y.foo.org"))),
    (b"MAIL FROM:<@a.test,@b.test:c@d.test>", mail(Address("c", "d.test"))),
    (b"MAIL FROM:<c@[192.0.2.1]>", mail(Address("c", "[192.0.2.1]"))),
    # RFC 1870 section 7, RFC 6152.
    (b"MAIL FROM:<ned@thor.innosoft.com> SIZE=500000", mail(Address("ned", "thor.innosoft.com"), size_octets=500000)),
    (b"MAIL FROM:<> SIZE=0", mail(None, size_octets=0)),
    (b"MAIL FROM:<> SIZE=00000000000000000001", mail(None, size_octets=1)),
    (b"MAIL FROM:<Smith@bar.com> BODY=8BITMIME", mail(SMITH, body="8BITMIME")),
    (b"MAIL FROM:<Smith@bar.com> body=7bit size=9", mail(SMITH, body="7BIT", size_octets=9)),
    (b"MAIL FROM:<Smith@bar.com> SIZE=9 BODY=7BIT", mail(SMITH, body="7BIT", size_octets=9)),
    (b"MAIL FROM:<Smith@bar.com>  SIZE=9   BODY=7BIT ", mail(SMITH, body="7BIT", size_octets=9)),
    # RFC 6531: the parameter may be given where all is ASCII.
    (b"MAIL FROM:<Smith@bar.com> SIZE=9 SMTPUTF8", mail(SMITH, size_octets=9, smtputf8=True)),
    # RFC 3461 sections 4.3, 4.4 and 10.
    (
        b"MAIL FROM:<Alice@Pure-Heart.ORG> RET=HDRS ENVID=QQ314159",
        mail(Address("Alice", "Pure-Heart.ORG"), ret="HDRS", envid="QQ314159"),
    ),
    (b"MAIL FROM:<> RET=full ENVID=a+20b+2Bc", mail(None, ret="FULL", envid="a b+c")),
    (b"MAIL FROM:<> ENVID=" + b"x" * 100, mail(None, envid="x" * 100)),
    # RFC 4954 section 5.
    (
        b"MAIL FROM:<e=mc2@example.com> AUTH=e+3Dmc2@example.com",
        mail(Address("e=mc2", "example.com"), auth="e=mc2@example.com"),
    ),
    (b"MAIL FROM:<john+@example.org> AUTH=<>", mail(Address("john+", "example.org"), auth="<>")),
    # RFC 5321 section 4.1.1.3.
    (b"RCPT TO:<Jones@foo.com>", rcpt(Address("Jones", "foo.com"))),
    (b"RCPT TO:<fred@example.test>", rcpt(FRED)),
    (b"rcpt to: <fred@example.test>", rcpt(FRED)),
    (b"RCPT TO:<@hosta.int,@jkl.org:userc@d.bar.org>", rcpt(Address("userc", "d.bar.org"))),
    (b"RCPT TO:<Postmaster>", rcpt(Address("Postmaster", ""))),
    (b"RCPT TO:<pOSTMASTER> NOTIFY=NEVER", rcpt(Address("pOSTMASTER", ""), notify=frozenset({"NEVER"}))),
    (b"RCPT TO:<Postmaster@example.test>", rcpt(Address("Postmaster", "example.test"))),
    (b"RCPT TO:<fred@example.test.>", rcpt(Address("fred", "example.test."))),
    # RFC 3461 sections 4.1, 4.2 and 10.
    (
        b"RCPT TO:<Bob@Example.COM> NOTIFY=SUCCESS ORCPT=rfc822;Bob@Example.COM",
        rcpt(Address("Bob", "Example.COM"), notify=frozenset({"SUCCESS"}), orcpt="rfc822;Bob@Example.COM"),
    ),
    (
        b"RCPT TO:<George@Tax-ME.GOV> NOTIFY=failure,Delay ORCPT=rfc822;George+2Bx@Tax-ME.GOV",
        rcpt(
            Address("George", "Tax-ME.GOV"), notify=frozenset({"FAILURE", "DELAY"}), orcpt="rfc822;George+x@Tax-ME.GOV"
        ),
    ),
    (b"RCPT TO:<fred@example.test> ORCPT=x400;/C=us/".replace(b"=us", b"+3Dus"), rcpt(FRED, orcpt="x400;/C=us/")),
    (b"RCPT TO:<fred@example.test> NOTIFY=DELAY,DELAY", rcpt(FRED, notify=frozenset({"DELAY"}))),
    # RFC 6533 section 3.
    (b"RCPT TO:<fred@example.test> ORCPT=utf-8;j\\x{F6}rg@x.test", rcpt(FRED, orcpt="utf-8;jörg@x.test")),
    # RFC 3030 section 4.
    (b"BDAT 86 LAST", Bdat(86, True)),
    (b"BDAT 1000", Bdat(1000, False)),
    (b"bdat 0 last", Bdat(0, True)),
    # RFC 4954 section 4.1, RFC 4616.
    (b"AUTH PLAIN dGVzdAB0ZXN0ADEyMzQ=", Auth("PLAIN", b"test\0test\x001234")),
    (b"AUTH CRAM-MD5", Auth("CRAM-MD5", None)),
    (b"auth scram-sha-256-plus", Auth("SCRAM-SHA-256-PLUS", None)),
    (b"AUTH EXTERNAL =", Auth("EXTERNAL", b"")),
    # The rest.
    (b"DATA", Data()),
    (b"data \t ", Data()),
    (b"RSET", Rset()),
    (b"rset", Rset()),
    (b"NOOP", Noop()),
    (b"NOOP whatever you like", Noop()),
    (b"HELP", Help()),
    (b"HELP MAIL", Help()),
    (b"QUIT", Quit()),
    (b"qUiT", Quit()),
    (b"STARTTLS", StartTls()),
    (b"VRFY Smith", Vrfy("Smith")),
    (b"VRFY  <Smith@bar.com>", Vrfy("<Smith@bar.com>")),
    ("VRFY jörg SMTPUTF8".encode(), Vrfy("jörg SMTPUTF8")),
    (b"EXPN Example-People", Expn("Example-People")),
    # RFC 8689 section 3, RFC 4865 section 4 with erratum 2040, RFC 2852 section 4.
    (b"MAIL FROM:<Smith@bar.com> REQUIRETLS", mail(SMITH, requires_tls=True)),
    (b"MAIL FROM:<Smith@bar.com> holdfor=1", Mail(ReversePath(SMITH), hold_for_seconds=1)),
    (b"MAIL FROM:<Smith@bar.com> HOLDFOR=999999999", Mail(ReversePath(SMITH), hold_for_seconds=999_999_999)),
    (b"MAIL FROM:<Smith@bar.com> HOLDUNTIL=1970-01-02T00:00:00Z", mail(SMITH, hold_until=86_400.0)),
    (b"MAIL FROM:<Smith@bar.com> HOLDUNTIL=1970-01-02t01:00:00.25+01:00", mail(SMITH, hold_until=86_400.0)),
    (b"MAIL FROM:<Smith@bar.com> HOLDUNTIL=1970-01-01T23:30:00-00:30", mail(SMITH, hold_until=86_400.0)),
    (b"MAIL FROM:<Smith@bar.com> HOLDUNTIL=1970-01-01T23:59:60Z", mail(SMITH, hold_until=86_400.0)),
    (b"MAIL FROM:<Smith@bar.com> BY=120;R", by(120, deliver_by_mode="R")),
    (b"MAIL FROM:<Smith@bar.com> BY=+0;n", by(0, deliver_by_mode="N")),
    (b"MAIL FROM:<Smith@bar.com> BY=-999999999;N", by(-999_999_999, deliver_by_mode="N")),
]


@pytest.mark.parametrize(("line", "command"), UNDERSTOOD)
def test_a_command_is_understood(line: bytes, command: Command) -> None:
    """The examples of the RFCs, and what real clients make of them."""
    assert parse_command(line) == command


INTERNATIONALIZED: list[tuple[str, Command]] = [
    (
        "MAIL FROM:<jörg@bücher.example> SMTPUTF8",
        Mail(ReversePath(Address("jörg", "bücher.example"), MailParameters(smtputf8=True)), True),
    ),
    ("MAIL FROM:<jörg@bücher.example>", Mail(ReversePath(Address("jörg", "bücher.example")), True)),
    ("RCPT TO:<用户@例え.テスト>", Rcpt(ForwardPath(Address("用户", "例え.テスト")), True)),
    ("RCPT TO:<a@bücher.example>", Rcpt(ForwardPath(Address("a", "bücher.example")), True)),
    (
        "RCPT TO:<fred@example.test> ORCPT=utf-8;jörg@x.test",
        Rcpt(ForwardPath(FRED, RcptParameters(orcpt="utf-8;jörg@x.test")), True),
    ),
]


@pytest.mark.parametrize(("line", "command"), INTERNATIONALIZED)
def test_what_is_not_ascii_is_marked_so(line: str, command: Command) -> None:
    """RFC 6531 section 3.2: it needs SMTPUTF8 with MAIL; whether that was given, the session knows."""
    assert parse_command(line.encode()) == command


REFUSED: list[tuple[bytes, int, str]] = [
    (b"", 500, "5.5.2"),
    (b"   ", 500, "5.5.2"),
    (b" DATA", 500, "5.5.2"),
    (b"\xff", 500, "5.5.2"),
    (b"D\xc3\x84TA", 500, "5.5.1"),
    ("Rſet".encode(), 500, "5.5.1"),
    (b"XYZZY", 500, "5.5.1"),
    (b"DATA:", 500, "5.5.1"),
    (b"MAILFROM:<a@b.test>", 500, "5.5.1"),
    (b"RCPT\tTO:<a@b.test>", 500, "5.5.2"),
    (b"GET / HTTP/1.1", 500, "5.5.1"),
    # RFC 5321 section 4.2.4: known, and not done here.
    (b"TURN", 502, "5.5.1"),
    (b"etrn example.test", 502, "5.5.1"),
    (b"DATA now", 501, "5.5.4"),
    (b"RSET all", 501, "5.5.4"),
    (b"QUIT please", 501, "5.5.4"),
    (b"STARTTLS now", 501, "5.5.4"),
    (b"VRFY", 501, "5.5.4"),
    (b"VRFY  ", 501, "5.5.4"),
    (b"EXPN", 501, "5.5.4"),
    (b"EHLO", 501, "5.5.4"),
    (b"HELO ", 501, "5.5.4"),
    (b"EHLO two words", 501, "5.5.4"),
    (b"EHLO " + b"a" * 256, 501, "5.5.4"),
    (b"EHLO a(comment)", 501, "5.5.4"),
    (b"EHLO <a>", 501, "5.5.4"),
    (b"EHLO a;b", 501, "5.5.4"),
    ("EHLO bücher.example".encode(), 501, "5.5.4"),
    (b"MAIL", 501, "5.5.4"),
    (b"MAIL <a@b.test>", 501, "5.5.4"),
    (b"MAIL FROM", 501, "5.5.4"),
    (b"MAIL FROM <a@b.test>", 501, "5.5.4"),
    (b"MAIL FROM :<a@b.test>", 501, "5.5.4"),
    (b"MAIL TO:<a@b.test>", 501, "5.5.4"),
    (b"MAIL FROM:", 501, "5.1.7"),
    (b"MAIL FROM:a@b.test", 501, "5.1.7"),
    (b"MAIL FROM:  <a@b.test>", 501, "5.1.7"),
    (b"MAIL FROM:<a@b.test", 501, "5.1.7"),
    (b"MAIL FROM:<a>", 501, "5.1.7"),
    (b"MAIL FROM:<Postmaster>", 501, "5.1.7"),
    (b"MAIL FROM:<a@x..test>", 501, "5.1.7"),
    (b"MAIL FROM:<.a@b.test>", 501, "5.1.7"),
    (b"MAIL FROM:<a@b.test\xff>", 500, "5.5.2"),
    (b"MAIL FROM:<" + b"a" * 65 + b"@b.test>", 501, "5.1.7"),
    (b"MAIL FROM:<a@" + b"b" * 64 + b".test>", 501, "5.1.7"),
    (b"MAIL FROM:<a@" + b"b." * 126 + b"test>", 501, "5.1.7"),
    (b"MAIL FROM:<a@[192.0.2.256]>", 501, "5.1.7"),
    (b"RCPT", 501, "5.5.4"),
    (b"RCPT FROM:<a@b.test>", 501, "5.5.4"),
    (b"RCPT TO:<>", 501, "5.1.3"),
    (b"RCPT TO:a@b.test", 501, "5.1.3"),
    (b"RCPT TO:<a@b.test", 501, "5.1.3"),
    (b"RCPT TO:<fred>", 501, "5.1.3"),
    (b"RCPT TO:<@a.test>", 501, "5.1.3"),
    (b"RCPT TO:<a@b@c.test>", 501, "5.1.3"),
    (b"RCPT TO:<a@" + b"b" * 64 + b".test>", 501, "5.1.3"),
    # Parameters, RFC 5321 section 4.1.2 and 4.1.1.11.
    (b"MAIL FROM:<a@b.test>SIZE=1", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> =1", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> SIZE=1=2", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> -X", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> SI_ZE=1", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> SIZE=1 size=1", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> X=1", 555, "5.5.4"),
    (b"MAIL FROM:<a@b.test> NOTIFY=NEVER", 555, "5.5.4"),
    (b"RCPT TO:<a@b.test> X", 555, "5.5.4"),
    (b"RCPT TO:<a@b.test> SIZE=1", 555, "5.5.4"),
    (b"RCPT TO:<a@b.test> BODY=7BIT", 555, "5.5.4"),
    (b"MAIL FROM:<a@b.test> SIZE", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> SIZE=", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> SIZE=-1", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> SIZE=1k", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> SIZE=" + b"1" * 21, 501, "5.5.4"),
    ("MAIL FROM:<a@b.test> SIZE=١".encode(), 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BODY", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BODY=BINARYMIME", 501, "5.5.4"),
    ("MAIL FROM:<a@b.test> BODY=8BıTMIME".encode(), 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> SMTPUTF8=yes", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> RET=ALL", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> RET", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> ENVID", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> ENVID=" + b"x" * 101, 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> ENVID=a+0Ab", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> ENVID=a+2b", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> ENVID=+C3+B6", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> AUTH", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> AUTH=fred", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> AUTH=+", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> NOTIFY", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> NOTIFY=NEVER,DELAY", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> NOTIFY=SUCCESS,", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> NOTIFY=ALWAYS", 501, "5.5.4"),
    ("RCPT TO:<a@b.test> NOTIFY=ſUCCESS".encode(), 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> ORCPT=a@b.test", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> ORCPT=rfc822;", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> ORCPT=;a@b.test", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> ORCPT=rfc822;a+0D+0Ab", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> ORCPT=rfc822;+C3+B6", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> ORCPT=utf-8;\\x{A}", 501, "5.5.4"),
    (b"RCPT TO:<a@b.test> ORCPT=rfc822;" + b"x" * 500, 501, "5.5.4"),
    # RFC 3030.
    (b"BDAT", 501, "5.5.4"),
    (b"BDAT LAST", 501, "5.5.4"),
    (b"BDAT -1", 501, "5.5.4"),
    (b"BDAT 1 FIRST", 501, "5.5.4"),
    (b"BDAT 1 LAST LAST", 501, "5.5.4"),
    (b"BDAT " + b"1" * 21, 501, "5.5.4"),
    ("BDAT ١".encode(), 501, "5.5.4"),
    # RFC 4954 section 4: 501 where the base64 can't be decoded.
    (b"AUTH", 501, "5.5.4"),
    (b"AUTH PLAIN a b", 501, "5.5.4"),
    (b"AUTH " + b"A" * 21, 501, "5.5.4"),
    (b"AUTH PLAIN a", 501, "5.5.2"),
    (b"AUTH PLAIN dGVzdA", 501, "5.5.2"),
    (b"AUTH PLAIN dGVz*A==", 501, "5.5.2"),
    (b"AUTH PLAIN ====", 501, "5.5.2"),
    (b"AUTH PLAIN dA==dA==", 501, "5.5.2"),
    (b"MAIL FROM:<a@b.test> REQUIRETLS=1", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDFOR", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDFOR=0", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDFOR=-1", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDFOR=1000000000", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDUNTIL", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDUNTIL=2026-02-30T00:00:00Z", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDUNTIL=2026-02-03T00:00:61Z", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDUNTIL=2026-02-03T00:00:00", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDUNTIL=2026-02-03T00:00:00+24:00", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDUNTIL=0000-01-01T00:00:00Z", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> HOLDFOR=1 HOLDUNTIL=2026-02-03T00:00:00Z", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BY", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BY=10", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BY=10;", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BY=10;T", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BY=10;NT", 555, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BY=0;R", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BY=-1;R", 501, "5.5.4"),
    (b"MAIL FROM:<a@b.test> BY=1000000000;N", 501, "5.5.4"),
]


@pytest.mark.parametrize(("line", "code", "enhanced"), REFUSED)
def test_what_is_no_command_has_its_reply(line: bytes, code: int, enhanced: str) -> None:
    """RFC 5321 section 4.2.2, RFC 3463 sections 3.2 and 3.6."""
    with pytest.raises(CommandError) as caught:
        parse_command(line)
    assert (caught.value.reply.code, caught.value.reply.enhanced) == (code, enhanced)
    assert all(text.isascii() and text.isprintable() for text in caught.value.reply.lines)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("line", [line for line, _ in UNDERSTOOD])
def test_a_control_character_is_refused_wherever_it_stands(line: bytes, control: bytes) -> None:
    """NUL, CR and LF above all: whatever reads a log, a header or a database later need not fear them."""
    for offset in range(len(line) + 1):
        if control == b"\t" and not line[offset:].strip():
            continue  # trailing white space is tolerated
        with pytest.raises(CommandError):
            parse_command(line[:offset] + control + line[offset:])


def test_a_credential_is_not_in_the_repr() -> None:
    """Commands are logged; initial responses hold passwords."""
    assert "secret" not in repr(parse_command(b"AUTH PLAIN " + base64.b64encode(b"\0alice\0secret")))


LONG = 12_288
HOSTILE = [
    b"MAIL FROM:" + b" " * LONG,
    b"MAIL" + b" " * LONG + b"FROM:<a@b>X",
    b"MAIL FROM:<a@" + b"a-" * (LONG // 2) + b">",
    b"MAIL FROM:<" + b"a." * (LONG // 2) + b"@b>",
    b"MAIL FROM:<" + b"@a," * (LONG // 3) + b":a@b>",
    b"MAIL FROM:<" + b"@a,@" * (LONG // 4),
    b'MAIL FROM:<"' + b"\\a" * (LONG // 2),
    b'MAIL FROM:<"' + b"\\" * LONG,
    b"MAIL FROM:<a@" + b"." * LONG + b">",
    b"MAIL FROM:<a@" + "ö".encode() * (LONG // 2) + b">",
    b"MAIL FROM:<a@[" + b":" * LONG + b"]>",
    b"MAIL FROM:<a@b> " + b"A=1 " * (LONG // 4),
    b"MAIL FROM:<a@b> ENVID=" + b"+41" * (LONG // 3),
    b"RCPT TO:<a@b> NOTIFY=" + b"DELAY," * (LONG // 6),
    b"RCPT TO:<a@b> ORCPT=utf-8;" + b"\\x{" * (LONG // 3),
    b"EHLO " + b"a" * LONG,
    b"BDAT " + b"1" * LONG,
    b"AUTH PLAIN " + b"=" * LONG,
    b"AUTH " + b" " * LONG + b"(",
    b"A" * LONG,
    b" " * LONG,
    b"\t" * LONG + b"x",
]


@pytest.mark.parametrize("line", HOSTILE)
def test_a_hostile_line_is_refused(line: bytes) -> None:
    """None of them takes more than linear time, which follows from how the patterns are made: see test_patterns."""
    with pytest.raises(CommandError):
        parse_command(line)


def _path(address: Address | None) -> str:
    return f"<{'' if address is None else address}>"


XTEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)
MAIL_PARAMETERS = st.builds(
    MailParameters,
    st.none() | st.integers(0, 10**20 - 1),
    st.sampled_from([None, "7BIT", "8BITMIME"]),
    st.booleans(),
    st.sampled_from([None, "FULL", "HDRS"]),
    st.none() | XTEXT,
    st.none() | st.just("<>") | ASCII_ADDRESSES.map(str),
)
NOTIFY = st.just(frozenset({"NEVER"})) | st.frozensets(st.sampled_from(["SUCCESS", "FAILURE", "DELAY"]), min_size=1)
RCPT_PARAMETERS = st.builds(RcptParameters, st.none() | NOTIFY, st.none() | XTEXT.map(lambda text: f"rfc822;{text}"))


def _mail_words(parameters: MailParameters) -> list[str]:
    given = {
        "SIZE": parameters.size_octets,
        "BODY": parameters.body,
        "RET": parameters.ret,
        "ENVID": parameters.envid and encode_xtext(parameters.envid),
        "AUTH": parameters.auth and encode_xtext(parameters.auth),
    }
    words = [f"{keyword}={value}" for keyword, value in given.items() if value is not None]
    return [*words, "SMTPUTF8"] if parameters.smtputf8 else words


def _rcpt_words(parameters: RcptParameters) -> list[str]:
    words = []
    if parameters.notify is not None:
        words.append("NOTIFY=" + ",".join(parameters.notify))
    if parameters.orcpt is not None:
        address_type, _, address = parameters.orcpt.partition(";")
        words.append(f"ORCPT={address_type};{encode_xtext(address)}")
    return words


@given(st.none() | ADDRESSES, MAIL_PARAMETERS, st.randoms(use_true_random=False))
def test_every_mail_command_parses_to_what_it_was_made_from(
    address: Address | None, parameters: MailParameters, random: object
) -> None:
    """In whatever order the parameters stand."""
    words = _mail_words(parameters)
    random.shuffle(words)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    line = " ".join([f"MAIL FROM:{_path(address)}", *words])
    assert parse_command(line.encode()) == Mail(ReversePath(address, parameters), not line.isascii())


@given(ADDRESSES, RCPT_PARAMETERS)
def test_every_rcpt_command_parses_to_what_it_was_made_from(address: Address, parameters: RcptParameters) -> None:
    line = " ".join([f"RCPT TO:{_path(address)}", *_rcpt_words(parameters)])
    assert parse_command(line.encode()) == Rcpt(ForwardPath(address, parameters), not line.isascii())


@given(st.none() | ADDRESSES, MAIL_PARAMETERS)
def test_the_fast_pattern_and_the_whole_grammar_agree(address: Address | None, parameters: MailParameters) -> None:
    """The usual MAIL and RCPT take a short cut, which must lead to the same place."""
    for line in (
        " ".join([f"MAIL FROM:{_path(address)}", *_mail_words(parameters)]),
        f"MAIL FROM:{_path(address)} SIZE=4096",
        f"MAIL FROM:{_path(address)} BODY=8BITMIME",
        f"MAIL FROM:{_path(address)}",
        f"RCPT TO:{_path(address or FRED)}",
    ):
        assert parse_command(line.encode()) == commands._parse_any(line)


@given(
    st.integers(0, 10**20 - 1),
    st.booleans(),
    st.from_regex(r"[A-Z0-9_-]{1,20}", fullmatch=True),
    st.none() | st.binary(max_size=60),
)
def test_every_bdat_and_auth_parses_to_what_it_was_made_from(
    size_octets: int, is_last: bool, mechanism: str, initial: bytes | None
) -> None:
    assert parse_command(b"BDAT %d" % size_octets + b" LAST" * is_last) == Bdat(size_octets, is_last)
    words = [b"AUTH", mechanism.encode()]
    if initial is not None:
        words.append(base64.b64encode(initial) or b"=")
    assert parse_command(b" ".join(words)) == Auth(mechanism, initial)


def _any_case(line: bytes) -> st.SearchStrategy[bytes]:
    flips = st.lists(st.booleans(), min_size=len(line), max_size=len(line))
    return flips.map(
        lambda chosen: bytes(
            octet ^ 0x20 if flip and chr(octet).isalpha() else octet for octet, flip in zip(line, chosen, strict=True)
        )
    )


@given(
    st.sampled_from([b"DATA", b"RSET", b"NOOP", b"QUIT", b"HELP", b"STARTTLS"]).flatmap(
        lambda verb: st.tuples(st.just(verb), _any_case(verb))
    )
)
def test_verbs_have_no_case(verbs: tuple[bytes, bytes]) -> None:
    """RFC 5321 section 2.4."""
    assert parse_command(verbs[0]) == parse_command(verbs[1])


STARTS = st.sampled_from(
    [
        b"",
        b"MAIL FROM:<",
        b"RCPT TO:<",
        b"MAIL FROM:<a@b> ",
        b"RCPT TO:<a@b> ",
        b"MAIL FROM:<a@b> AUTH=",
        b"EHLO ",
        b"BDAT ",
        b"AUTH PLAIN ",
        b"RCPT TO:<a@b> ORCPT=utf-8;",
        b"VRFY ",
    ]
)
FRAGMENTS = st.sampled_from(
    [
        b"@",
        b">",
        b"<",
        b'"',
        b"\\",
        b".",
        b"a",
        b"[",
        b"]",
        b"IPv6:",
        b"::1",
        b",",
        b":",
        b" ",
        b"=",
        b"+41",
        b"SIZE",
        b"\\x{",
        b"}",
        b"FF",
        "ö".encode(),
        b"xn--",
        b"-",
        b"\0",
        b"\r",
        b"\n",
    ]
)


@given(STARTS, st.binary(max_size=60) | st.lists(FRAGMENTS, max_size=20).map(b"".join))
def test_any_octets_give_a_command_or_a_command_error(start: bytes, rest: bytes) -> None:
    """And nothing else: what a stranger sends must not end in a traceback."""
    try:
        command = parse_command(start + rest)
    except CommandError as error:
        assert error.reply.code in {500, 501, 502, 555}
        assert error.reply.enhanced
        assert len(error.reply.encode("1m9x2k7q0vb3d").split(b"\r\n")) == 2
    else:
        assert isinstance(command, Command)
