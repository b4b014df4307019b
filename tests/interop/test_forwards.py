"""An alias of ours passes mail of one server on to another, and what can't be delivered there goes back to the first.

Standards: RFC 5321 sections 3.9.1 and 6.1, RFC 3464, RFC 6376, RFC 8617; SRS has no standard.
"""

from __future__ import annotations

import re

import dkim
import pytest

from tests.interop.messages import message, new_mark, unfolded_header
from tests.interop.world import DOMAIN, World, relay

PAIRS = pytest.mark.parametrize(
    ("source", "target"), [("postfix", "exim"), ("exim", "opensmtpd"), ("opensmtpd", "postfix")]
)


@PAIRS
def test_forwarded_mail_still_proves_where_it_comes_from(world: World, source: str, target: str) -> None:
    """Its signature passes, what we found is sealed, and its reverse-path is ours so that SPF passes for us."""
    first, second, mark = world.peer(source), world.peer(target), new_mark()
    alias = world.alias(f"bob@{second.domain}")
    relay(first, message(f"bob@{first.domain}", alias, mark), f"bob@{first.domain}", alias)
    arrived = second.arrived(mark.encode())
    header = unfolded_header(arrived)
    assert re.search(rf"^Return-Path: <SRS0=[^>]+@{re.escape(DOMAIN)}>", header, re.IGNORECASE | re.MULTILINE), header
    assert world.has_opendkim_pass(arrived) in (True, None)
    if second.verifier is not None:
        passed = rf"^Authentication-Results: {second.verifier};.*dkim=pass .*header\.d={re.escape(first.domain)}"
        assert re.search(passed, header, re.MULTILINE), header
    verdict, _, reason = dkim.arc_verify(arrived, dnsfunc=world.key_record)
    assert verdict == dkim.CV_Pass, reason


@PAIRS
def test_what_an_alias_leads_to_in_vain_is_told_to_who_wrote(world: World, source: str, target: str) -> None:
    """The second server refuses; our notice finds its way back through the rewritten reverse-path."""
    first, second, mark = world.peer(source), world.peer(target), new_mark()
    alias = world.alias(f"nobody@{second.domain}")
    relay(first, message(f"bob@{first.domain}", alias, mark), f"bob@{first.domain}", alias)
    notice = first.arrived(mark.encode())
    header = unfolded_header(notice).lower()  # OpenSMTPD writes no field for the null path
    assert "return-path: <>" in header or "return-path" not in header
    assert b"\r\nReporting-MTA: dns; mail.example.test\r\n" in notice
    assert re.search(rb"\r\nDiagnostic-Code: smtp; 5\d\d ", notice)
