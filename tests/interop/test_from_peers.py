"""Mail from other mail servers comes in: over TLS, octet for octet, its signatures good in everybody's eyes.

Each peer relays to the gate over STARTTLS or not at all. Postfix (by OpenDKIM) and Exim sign what their domain sends;
what OpenSMTPD relays is signed by dkimpy before.

Standards: RFC 3207 (STARTTLS), RFC 5321 section 4.5.2 (transparency), RFC 6376, RFC 3464, RFC 6531.
"""

from __future__ import annotations

import re

import pytest

from tests.interop.messages import LARGE, SMALL, message, new_mark
from tests.interop.world import ALICE, NOBODY, PEERS, World, relay
from tests.support.peer import Peer

EVERY_PEER = pytest.mark.parametrize("name", [kind.name for kind in PEERS])


def relayed(world: World, peer: Peer, text: bytes) -> tuple[bytes, bytes]:
    """What was handed to the peer, and what the gate has stored; signed by the peer or, where it doesn't, by dkimpy."""
    mark = new_mark()
    author = f"bob@{peer.domain}"
    sent = relay(peer, message(author, ALICE, mark, text), author, ALICE)
    kept = world.kept(mark.encode())
    assert kept.reverse_path == author
    assert " with ESMTPS " in kept.trace
    assert re.search(rf"dkim=pass[^;]* header\.d={re.escape(peer.domain)}", kept.trace), kept.trace
    assert "spf=pass" in kept.trace
    assert "dmarc=pass" in kept.trace
    return sent, kept.content


@EVERY_PEER
@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
def test_a_signed_message_comes_in_over_tls_as_it_was(world: World, name: str, body: bytes) -> None:
    """Its body octet for octet, dots at the beginning of lines included, and its signature passes."""
    peer = world.peer(name)
    sent, stored = relayed(world, peer, body)
    assert stored.partition(b"\r\n\r\n")[2] == sent.partition(b"\r\n\r\n")[2]
    assert world.has_dkimpy_pass(stored)
    assert world.has_opendkim_pass(stored) in (True, None)


@EVERY_PEER
def test_a_peer_hears_that_there_is_no_such_user_and_tells_the_sender(world: World, name: str) -> None:
    """It writes the notification (RFC 3464), from the null path, and the gate takes it."""
    peer = world.peer(name)
    mark = new_mark()
    with peer.connect() as client:
        client.sendmail(ALICE, [NOBODY], message(f"bob@{peer.domain}", NOBODY, mark))
    kept = world.kept(mark.encode(), is_notice=True)
    assert b"550" in kept.content
    assert NOBODY.encode() in kept.content


@pytest.mark.parametrize("name", [kind.name for kind in PEERS if kind.has_smtputf8])
def test_an_international_message_comes_in(world: World, name: str) -> None:
    """RFC 6531: in the envelope and in the header."""
    peer, mark = world.peer(name), new_mark()
    author = f"jürgen@{peer.domain}"
    sent = message(author, ALICE, mark, subject="Grüße")
    with peer.connect() as client:
        client.sendmail(author, [ALICE], sent, ["SMTPUTF8", "BODY=8BITMIME"])
    kept = world.kept(mark.encode())
    assert kept.reverse_path == author
    assert " with UTF8SMTPS " in kept.trace
    assert kept.content.endswith(sent)
