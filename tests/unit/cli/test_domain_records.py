"""`mailgate domain records`: the records of a domain, pure."""

from __future__ import annotations

import dns.zone
import pytest

from mailgate.cli.domain_records import DomainRecord, compared, records_for
from mailgate.dns.answer import Answer, Outcome, Question, RecordType

LONG_KEY = "M" * 392  # as of RSA with 2048 bits
RECORDS = records_for(
    "example.org",
    "mail.example.org",
    ("192.0.2.25", "2001:db8::25"),
    (("r1", "rsa", LONG_KEY), ("e1", "ed25519", "abc=")),
)


def answer(wanted: DomainRecord, *records: bytes | str | tuple[int, str], outcome: Outcome = Outcome.ANSWER) -> Answer:
    """What the DNS might say."""
    return Answer(Question(wanted.name, wanted.type), outcome, records)


def test_a_name_server_can_load_what_is_printed() -> None:
    """RFC 1035 section 5.1; strings of at most 255 octets, put together by who reads them."""
    lines = [record.zone_line() for record in RECORDS if record.type is not RecordType.PTR]
    zone = dns.zone.from_text("\n".join(lines), origin="example.org.", relativize=False, check_origin=False)
    keys = zone.get_rdataset("r1._domainkey.example.org.", "TXT")
    assert keys is not None
    assert b"".join(keys[0].strings) == b"v=DKIM1; k=rsa; p=" + LONG_KEY.encode("ascii")
    assert str(zone.get_rdataset("example.org.", "MX")).endswith("10 mail.example.org.")


def test_addresses_lead_to_the_name_and_back() -> None:
    """RFC 1035 section 3.5, RFC 3596 section 2.5."""
    lines = [record.zone_line() for record in RECORDS]
    assert "25.2.0.192.in-addr.arpa. 3600 IN PTR mail.example.org." in lines
    assert "mail.example.org. 3600 IN AAAA 2001:db8::25" in lines


@pytest.mark.parametrize(
    ("name", "found", "state"),
    [
        ("example.org", (b"v=spf1 mx -all", b"other=1"), "there"),
        ("example.org", (b"v=spf1 mx include:x.example -all",), "there"),
        ("example.org", (b"v=spf1 mx -all", b"v=spf1 -all"), "different"),
        ("example.org", (b"other=1",), "missing"),
        ("_dmarc.example.org", (b"v=DMARC1; p=reject",), "there"),
        ("_dmarc.example.org", (b"v=DMARC1; p=reject", b"v=DMARC1; p=none"), "different"),
        ("r1._domainkey.example.org", (b"v=DKIM1; k=rsa; p=other",), "different"),
        ("r1._domainkey.example.org", (f"v=DKIM1; k=rsa; p={LONG_KEY}".encode("ascii"),), "there"),
    ],
)
def test_a_check_tells_what_serves_its_purpose(name: str, found: tuple[bytes, ...], state: str) -> None:
    """A DMARC record that an operator has tuned is as good; a key has to be exactly that key."""
    wanted = next(record for record in RECORDS if record.name == name and record.type is RecordType.TXT)
    assert compared(wanted, answer(wanted, *found)).state == state


def test_nothing_in_the_dns_is_missing() -> None:
    """Whichever type it is."""
    assert {compared(wanted, answer(wanted, outcome=Outcome.NXDOMAIN)).state for wanted in RECORDS} == {"missing"}


def test_a_check_finds_the_host_among_others() -> None:
    """Preferences are the operator's affair."""
    wanted = next(record for record in RECORDS if record.type is RecordType.MX)
    assert compared(wanted, answer(wanted, (5, "other.example"), (20, "mail.example.org"))).state == "there"
    assert compared(wanted, answer(wanted, (5, "other.example"))).state == "different"
    assert compared(wanted, answer(wanted, outcome=Outcome.FAILURE)).state == "unknown"
