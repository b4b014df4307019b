"""Mail of our accounts goes out to other mail servers: over TLS that is verified, signed, octet for octet.

Bob hands it in at 465; where it goes the DNS says, as for any mail. The peers' certificates are verified by the names
of their MX hosts.

Standards: RFC 5321 sections 4.5.2 and 5, RFC 3207, RFC 6376, RFC 8463, RFC 6531, RFC 3461 and 3464.
"""

from __future__ import annotations

import re

import pytest

from tests.interop.messages import LARGE, MIDDLE, SMALL, message, new_mark, unfolded_header
from tests.interop.world import BOB, NOBODY, PEERS, World
from tests.support.exim import SMART_DOMAIN
from tests.support.peer import FORWARDED

EVERY_PEER = pytest.mark.parametrize("name", [kind.name for kind in PEERS])
WITH_SMTPUTF8 = [kind.name for kind in PEERS if kind.has_smtputf8]
WITHOUT_SMTPUTF8 = [kind.name for kind in PEERS if not kind.has_smtputf8]


@EVERY_PEER
@pytest.mark.parametrize("body", [SMALL, MIDDLE, LARGE], ids=["small", "middle", "large"])
def test_mail_arrives_over_tls_as_it_was_and_its_signatures_pass(world: World, name: str, body: bytes) -> None:
    """RSA in OpenDKIM's eyes and dkimpy's, Ed25519 in dkimpy's; and in the peer's own, where it looks."""
    peer, mark = world.peer(name), new_mark()
    sent = message(BOB, f"bob@{peer.domain}", mark, body)
    world.submit(f"bob@{peer.domain}", sent, "BODY=8BITMIME")
    arrived = peer.arrived(mark.encode())
    assert arrived.endswith(sent)
    header = unfolded_header(arrived)
    received = rf"^Received: from .*mail\.example\.test.* by {re.escape(peer.host)} .*with ESMTPS "
    assert re.search(received, header, re.IGNORECASE | re.MULTILINE), header
    assert re.search(rf"Return-Path: <{re.escape(BOB)}>", header, re.IGNORECASE), header
    signatures = re.findall(r"^DKIM-Signature: .*? a=([\w-]+);", header, re.MULTILINE)
    assert sorted(signatures) == ["ed25519-sha256", "rsa-sha256"]
    assert all(world.has_dkimpy_pass(arrived, number) for number in range(len(signatures)))
    assert world.has_opendkim_pass(arrived) in (True, None)
    if peer.verifier is not None:
        assert re.search(rf"^Authentication-Results: {peer.verifier};.* dkim=pass ", header, re.MULTILINE), header


def test_a_large_message_goes_in_chunks_behind_pipelined_commands(world: World) -> None:
    """RFC 3030 and RFC 2920, as Exim notes: K for the one, L for the other, and L- where a client has waited."""
    peer, mark = world.peer("exim"), new_mark()
    sent = message(BOB, f"bob@{peer.domain}", mark, LARGE)
    world.submit(f"bob@{peer.domain}", sent, "BODY=8BITMIME")
    assert peer.arrived(mark.encode()).endswith(sent)
    noted = next(line for line in peer.log().splitlines() if " <= " in line and f"id={mark}@" in line)
    assert " K " in noted
    assert re.search(r" L\.? ", noted)


@EVERY_PEER
def test_who_writes_to_nobody_is_told_what_the_peer_said(world: World, name: str) -> None:
    """RFC 3464: a notice from us, since the peer refused the recipient."""
    peer, mark = world.peer(name), new_mark()
    world.submit(f"nobody@{peer.domain}", message(BOB, f"nobody@{peer.domain}", mark))
    notice = world.kept(mark.encode(), is_notice=True)
    assert b"Reporting-MTA: dns; mail.example.test\r\n" in notice.content
    assert re.search(rf"Remote-MTA: dns; ?{peer.host}".encode(), notice.content)
    assert f"Final-Recipient: rfc822; nobody@{peer.domain}\r\n".encode() in notice.content
    assert b"Action: failed\r\n" in notice.content
    assert re.search(rb"\r\nDiagnostic-Code: smtp; 5\d\d ", notice.content)


@EVERY_PEER
def test_the_notice_of_a_peer_reaches_who_wrote(world: World, name: str) -> None:
    """It took the message, sent it on, and was refused elsewhere (by us, as it happens)."""
    peer, mark = world.peer(name), new_mark()
    world.submit(f"{FORWARDED}@{peer.domain}", message(BOB, f"{FORWARDED}@{peer.domain}", mark))
    notice = world.kept(mark.encode(), is_notice=True)
    assert peer.host.encode() in notice.content
    assert NOBODY.encode() in notice.content


@EVERY_PEER
def test_a_peer_is_asked_for_a_notice_of_success(world: World, name: str) -> None:
    """What NOTIFY, ORCPT and ENVID asked of us is asked of the peer, who delivers (RFC 3461 section 5.2.1)."""
    peer, mark = world.peer(name), new_mark()
    recipient = f"bob@{peer.domain}"
    wanted = ("NOTIFY=SUCCESS,FAILURE", f"ORCPT=rfc822;{recipient}")
    envid = (f"ENVID={mark}", "RET=HDRS")
    world.submit(recipient, message(BOB, recipient, mark), *envid, recipient_options=wanted)
    notice = world.kept(mark.encode(), is_notice=True)
    assert re.search(rf"\r\nReporting-MTA: dns; ?{re.escape(peer.host)}\r\n".encode(), notice.content)
    assert re.search(rb"\r\nAction: (delivered|relayed)", notice.content, re.IGNORECASE)
    if peer.returns_envid:
        assert re.search(rf"\r\nOriginal-Envelope-Id: {mark}\r\n".encode(), notice.content, re.IGNORECASE)


def test_a_smarthost_is_authenticated_with(world: World) -> None:
    """RFC 4954, over TLS that is verified; Exim takes this domain's mail from nobody else."""
    peer, mark = world.peer("exim"), new_mark()
    with peer.connect() as stranger:
        stranger.mail(BOB)
        assert stranger.rcpt(f"bob@{SMART_DOMAIN}")[0] == 550
    sent = message(BOB, f"bob@{SMART_DOMAIN}", mark)
    world.submit(f"bob@{SMART_DOMAIN}", sent, "BODY=8BITMIME")
    arrived = peer.arrived(mark.encode())
    assert arrived.endswith(sent)
    assert " with esmtpsa " in unfolded_header(arrived)


@pytest.mark.parametrize("name", WITH_SMTPUTF8)
def test_an_international_address_is_reached(world: World, name: str) -> None:
    """RFC 6531: in the envelope and in the header."""
    peer, mark = world.peer(name), new_mark()
    recipient = f"jürgen@{peer.domain}"
    sent = message(BOB, recipient, mark, subject="Grüße")
    world.submit(recipient, sent, "SMTPUTF8", "BODY=8BITMIME")
    arrived = peer.arrived(mark.encode())
    assert arrived.endswith(sent)
    assert world.has_dkimpy_pass(arrived)


@pytest.mark.parametrize("name", WITHOUT_SMTPUTF8)
def test_an_international_message_is_not_mangled_for_a_peer_that_takes_none(world: World, name: str) -> None:
    """It is returned instead (RFC 6531 section 3.5)."""
    peer, mark = world.peer(name), new_mark()
    sent = message(BOB, f"bob@{peer.domain}", mark, subject="Grüße")
    world.submit(f"bob@{peer.domain}", sent, "SMTPUTF8", "BODY=8BITMIME")
    notice = world.kept(mark.encode(), is_notice=True)
    assert b"Status: 5.6.7\r\n" in notice.content
