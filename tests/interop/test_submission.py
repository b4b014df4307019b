"""People's programs hand mail in: msmtp, swaks, smtplib and nodemailer, at 465 and after STARTTLS at 587.

Standards: RFC 4954 (AUTH), RFC 8314 (implicit TLS), RFC 6409, RFC 7677 and 9266 (SCRAM bound to TLS 1.3).
"""

from __future__ import annotations

import re

import pytest

from tests.interop.clients import (
    Came,
    Client,
    Door,
    Login,
    TlsKind,
    by_msmtp,
    by_nodemailer,
    by_smtplib,
    by_swaks,
    logs_in_by_gsasl,
)
from tests.interop.messages import message, new_mark
from tests.interop.world import ALICE, BOB, PASSWORD, World
from tests.support.unavailable import Unavailable

CLIENTS = {"smtplib": by_smtplib, "swaks": by_swaks, "msmtp": by_msmtp, "nodemailer": by_nodemailer}
MECHANISMS = {
    "smtplib": ("PLAIN", "LOGIN"),
    "swaks": ("PLAIN", "LOGIN"),
    "msmtp": ("PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "on"),
    "nodemailer": ("PLAIN", "LOGIN"),
}
# Some of them end what they send with another line end.
BODY = b".dots\r\n..and more\r\n.\r\nend\r\n"
WAYS = [(name, mechanism) for name, mechanisms in MECHANISMS.items() for mechanism in mechanisms]


def handed_in(client: Client, door: Door, login: Login, message: bytes, recipient: str = ALICE) -> Came:
    """What came of it; without the program, the test is skipped."""
    try:
        return client(door, login, BOB, recipient, message)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(("name", "mechanism"), WAYS)
@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_a_program_logs_in_and_sends(world: World, name: str, mechanism: str, tls: TlsKind) -> None:
    mark = new_mark()
    sent = message(BOB, ALICE, mark, BODY)
    assert handed_in(CLIENTS[name], world.door(tls), Login(BOB, PASSWORD, mechanism), sent) is Came.SENT
    kept = world.kept(mark.encode())
    assert kept.reverse_path == BOB
    # msmtp asks for SMTPUTF8 wherever it is offered.
    assert re.search(r" with (ESMTPSA|UTF8SMTPSA) ", kept.trace)
    assert kept.content.partition(b"\r\n\r\n")[2].rstrip() == BODY.rstrip()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_wrong_password_is_refused(world: World, name: str) -> None:
    """535 5.7.8 (RFC 4954 section 6), which each of them understands as that."""
    login = Login(BOB, "not-the-password", "PLAIN")
    assert handed_in(CLIENTS[name], world.door("starttls"), login, message(BOB, ALICE, "never")) is Came.NO_LOGIN


@pytest.mark.parametrize("name", CLIENTS)
def test_a_password_is_not_asked_for_in_plain_text(world: World, name: str) -> None:
    """Without TLS nothing is offered, so that no program sends its password (RFC 4954 section 4, RFC 8314)."""
    login = Login(BOB, PASSWORD, "PLAIN")
    assert handed_in(CLIENTS[name], world.door("none"), login, message(BOB, ALICE, "never")) is Came.NOT_OFFERED


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"])
def test_gnu_sasl_logs_in(world: World, mechanism: str) -> None:
    """The library under msmtp; its own tool binds SCRAM to the channel too (RFC 9266)."""
    assert gsasl_logs_in(world, Login(BOB, PASSWORD, mechanism), has_channel=mechanism.endswith("-PLUS"))


def test_scram_with_a_wrong_password_is_refused(world: World) -> None:
    assert not gsasl_logs_in(world, Login(BOB, "not-the-password", "SCRAM-SHA-256-PLUS"), has_channel=True)


def test_scram_that_somebody_has_kept_from_binding_is_refused(world: World) -> None:
    """The client could bind and believes that we can't: somebody changed our list on the way (RFC 5802 section 6)."""
    assert not gsasl_logs_in(world, Login(BOB, PASSWORD, "SCRAM-SHA-256"), has_channel=True)


def gsasl_logs_in(world: World, login: Login, *, has_channel: bool) -> bool:
    try:
        return logs_in_by_gsasl(world.door("starttls"), login, has_channel=has_channel)
    except Unavailable as reason:
        pytest.skip(str(reason))
