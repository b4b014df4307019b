"""A message through a real mailgate whose DNS is NSD, over UDP and, where an answer is too large for that, TCP.

Standards: RFC 7766 (TCP), RFC 6891 (EDNS), RFC 7208, RFC 6376, RFC 9989.
"""

from __future__ import annotations

from pathlib import Path

from tests.integration.test_authentication import ALICE, FRIEND, STRANGER, Sender, message
from tests.support import postgres
from tests.support.dns_server import nsd
from tests.support.gate import Gate
from tests.support.signed import RSA_2048_RECORD, sign

# Beside the SPF record stand texts that make the answer larger than the 1232 octets that a datagram may have.
_FILLER = "\n".join(f'@ TXT "{letter * 250}"' for letter in "abcdefgh")
_KEY = " ".join(f'"{RSA_2048_RECORD[start : start + 200].decode()}"' for start in range(0, len(RSA_2048_RECORD), 200))
_ZONES = {
    "strict.test": f"""
@ TXT "v=spf1 ip4:{FRIEND} -all"
{_FILLER}
_dmarc TXT "v=DMARC1; p=reject"
rsa._domainkey TXT {_KEY.replace(";", chr(92) + ";")}
""",
    "other.test": '@ TXT "v=spf1 ip4:127.0.0.0/8 -all"\nhelo TXT "v=spf1 ip4:127.0.0.0/8 -all"\n',
    "test": '@ TXT "the top"\n',
}


def test_mail_is_judged_by_what_nsd_answers_over_udp_and_tcp(tmp_path: Path) -> None:
    """SPF's answer is too large for UDP, DKIM's and DMARC's are not; a stranger without a signature is refused."""
    dsn = postgres.fresh_database()
    with nsd(_ZONES) as port:
        gate = Gate(
            log=tmp_path / "log",
            mailboxes=(ALICE,),
            dsn=dsn,
            settings=f"""
            [dns]
            servers = ["127.0.0.1:{port}"]
            spare_loopback = false
            """,
        )
        try:
            gate.start()
            sender = Sender(gate)
            subject, content = message("bob@strict.test")
            assert sender.send(content, reverse_path="bob@strict.test", client=FRIEND) == "250"
            found = sender.delivered(subject)
            assert found is not None
            assert "spf=pass" in found.trace
            assert "dmarc=pass" in found.trace
            subject, content = message("bob@strict.test")
            signed = sign(content, domain="strict.test")
            assert sender.send(signed, reverse_path="list@other.test", client=STRANGER) == "250"
            found = sender.delivered(subject)
            assert found is not None
            assert "dkim=pass" in found.trace
            assert "dmarc=pass" in found.trace
            subject, content = message("bob@strict.test")
            heard = sender.send(content, reverse_path="list@other.test", client=STRANGER)
            assert heard.startswith("550 5.7.26 ")
            assert sender.delivered(subject) is None
            assert gate.tracebacks() == []
        finally:
            gate.close()
            postgres.drop_database(dsn)
