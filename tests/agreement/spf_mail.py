"""Mail from clients that a domain knows, does not know, or can't say.

Standards: RFC 7208 sections 4 to 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from tests.agreement.case import Case, message

V4, V4_OTHER = "192.0.2.1", "198.51.100.7"
V6, V6_OTHER = "2001:db8::1", "2001:db8:ffff::7"

_MANY = " ".join(f"include:count{number}.test" for number in range(10))

# The record of a domain each; `{d}` there is the domain itself.
_RECORDS = {
    "ip4": "v=spf1 ip4:192.0.2.1 -all",
    "ip4-network": "v=spf1 ip4:192.0.2.0/24 -all",
    "ip4-odd-network": "v=spf1 ip4:192.0.2.77/25 -all",
    "ip4-zero": "v=spf1 ip4:0.0.0.0/0 -all",
    "ip4-33": "v=spf1 ip4:192.0.2.0/33 -all",
    "ip4-leading-zero": "v=spf1 ip4:192.0.2.0/08 -all",
    "ip4-short": "v=spf1 ip4:192.0.2 -all",
    "ip4-nothing": "v=spf1 ip4: -all",
    "ip6": "v=spf1 ip6:2001:db8::1 -all",
    "ip6-network": "v=spf1 ip6:2001:db8::/48 -all",
    "ip6-129": "v=spf1 ip6:2001:db8::/129 -all",
    "ip6-mapped": "v=spf1 ip6:::ffff:192.0.2.1 -all",
    "all": "v=spf1 all",
    "minus-all": "v=spf1 -all",
    "softfail": "v=spf1 ip4:192.0.2.1 ~all",
    "neutral": "v=spf1 ip4:192.0.2.1 ?all",
    "no-all": "v=spf1 ip4:192.0.2.1",
    "empty": "v=spf1",
    "blanks": "v=spf1   ip4:192.0.2.1    -all   ",
    "capitals": "V=SPF1 IP4:192.0.2.1 -ALL",
    "minus-ip4": "v=spf1 -ip4:192.0.2.1 +all",
    "soft-ip4": "v=spf1 ~ip4:192.0.2.1 -all",
    "a": "v=spf1 a -all",
    "a-named": "v=spf1 a:host.spf.test -all",
    "a-network": "v=spf1 a:host.spf.test/24//48 -all",
    "a-33": "v=spf1 a:host.spf.test/33 -all",
    "a-void": "v=spf1 a:nobody.spf.test -all",
    "a-alias": "v=spf1 a:alias.spf.test -all",
    "a-address": "v=spf1 a:192.0.2.1 -all",
    "mx": "v=spf1 mx -all",
    "mx-named": "v=spf1 mx:mailed.spf.test -all",
    "mx-network": "v=spf1 mx:mailed.spf.test/24//48 -all",
    "mx-void": "v=spf1 mx:nobody.spf.test -all",
    "mx-ten": "v=spf1 mx:ten.spf.test -all",
    "mx-eleven": "v=spf1 mx:eleven.spf.test -all",
    "ptr": "v=spf1 ptr -all",
    "ptr-named": "v=spf1 ptr:spf.test -all",
    "ptr-other": "v=spf1 ptr:other.test -all",
    "exists": "v=spf1 exists:known.spf.test -all",
    "exists-void": "v=spf1 exists:nobody.spf.test -all",
    "exists-ip": "v=spf1 exists:%{ir}.list.spf.test -all",
    "exists-local": "v=spf1 exists:%{l}.users.spf.test -all",
    "exists-parts": "v=spf1 exists:%{l1r-}.users.spf.test -all",
    "exists-domain": "v=spf1 exists:%{d2}.%{o1r}.of.spf.test -all",
    "exists-helo": "v=spf1 exists:%{h}.helo.spf.test -all",
    "exists-p": "v=spf1 exists:%{p}.named.spf.test -all",
    "exists-v": "v=spf1 exists:%{v}.family.spf.test -all",
    "exists-literal": "v=spf1 exists:a%%b%_c%-d.spf.test -all",
    "macro-zero": "v=spf1 exists:%{d0}.spf.test -all",
    "macro-unknown": "v=spf1 exists:%{y}.spf.test -all",
    "macro-open": "v=spf1 exists:%{d.spf.test -all",
    "macro-percent": "v=spf1 exists:50%.spf.test -all",
    "macro-explaining": "v=spf1 exists:%{c}.spf.test -all",
    "include": "v=spf1 include:ip4.spf.test -all",
    "include-softfail": "v=spf1 include:softfail.spf.test -all",
    "include-neutral": "v=spf1 include:neutral.spf.test -all",
    "include-none": "v=spf1 include:nobody.spf.test -all",
    "include-broken": "v=spf1 include:ip4-33.spf.test -all",
    "include-late": "v=spf1 include:late.spf.test -all",
    "include-self": "v=spf1 include:include-self.spf.test -all",
    "include-nothing": "v=spf1 include -all",
    "include-network": "v=spf1 include:ip4.spf.test/24 -all",
    "include-minus": "v=spf1 -include:ip4.spf.test +all",
    "include-deep": "v=spf1 include:include.spf.test -all",
    "redirect": "v=spf1 redirect=ip4.spf.test",
    "redirect-first": "v=spf1 redirect=minus-all.spf.test ip4:192.0.2.1",
    "redirect-and-all": "v=spf1 redirect=ip4.spf.test ?all",
    "redirect-none": "v=spf1 redirect=nobody.spf.test",
    "redirect-twice": "v=spf1 redirect=ip4.spf.test redirect=ip4.spf.test",
    "redirect-late": "v=spf1 redirect=late.spf.test",
    "redirect-macro": "v=spf1 redirect=ip4.%{d2}",
    "redirect-loop": "v=spf1 redirect=redirect-loop.spf.test",
    "exp": "v=spf1 ip4:192.0.2.1 -all exp=why.spf.test",
    "exp-none": "v=spf1 ip4:192.0.2.1 -all exp=nobody.spf.test",
    "exp-twice": "v=spf1 ip4:192.0.2.1 -all exp=why.spf.test exp=why.spf.test",
    "modifier-unknown": "v=spf1 ip4:192.0.2.1 foo=bar -all",
    "modifier-twice": "v=spf1 foo=bar ip4:192.0.2.1 foo=bar -all",
    "mechanism-unknown": "v=spf1 ip4:192.0.2.1 magic:spf.test -all",
    "mechanism-unknown-first": "v=spf1 magic:spf.test ip4:192.0.2.1 -all",
    "error-behind-match": "v=spf1 ip4:0.0.0.0/0 ip6:::/0 ip4:broken",
    "all-argument": "v=spf1 ip4:192.0.2.1 all:spf.test",
    "version-10": "v=spf10 ip4:192.0.2.1 -all",
    "version-blank": " v=spf1 ip4:192.0.2.1 -all",
    "version-tab": "v=spf1\tip4:192.0.2.1 -all",
    "ten-terms": "v=spf1 " + _MANY + " ip4:192.0.2.1 -all",
    "eleven-terms": "v=spf1 " + _MANY + " a:host.spf.test ip4:192.0.2.1 -all",
    "eleven-behind-match": "v=spf1 ip4:0.0.0.0/0 ip6:::/0 " + _MANY + " a:host.spf.test -all",
    "two-voids": "v=spf1 a:void1.test a:void2.test ip4:192.0.2.1 -all",
    "three-voids": "v=spf1 a:void1.test a:void2.test a:void3.test ip4:192.0.2.1 -all",
    "three-v4-hosts": "v=spf1 a:v4a.spf.test a:v4b.spf.test a:v4c.spf.test ip6:2001:db8::1 -all",
    "late-a": "v=spf1 a:late.spf.test -all",
    "late-behind-match": "v=spf1 ip4:0.0.0.0/0 ip6:::/0 a:late.spf.test -all",
    "long": "v=spf1 " + " ".join(f"ip4:203.0.113.{number}" for number in range(1, 20)) + " ip4:192.0.2.1 -all",
}

_ZONE = """
spf.test MX 10 mx.spf.test
a.spf.test A 192.0.2.1
a.spf.test AAAA 2001:db8::1
host.spf.test A 192.0.2.1
host.spf.test AAAA 2001:db8::1
alias.spf.test CNAME host.spf.test
v4a.spf.test A 192.0.2.101
v4b.spf.test A 192.0.2.102
v4c.spf.test A 192.0.2.103
mx.spf.test MX 10 host.spf.test
mailed.spf.test MX 10 nobody.spf.test
mailed.spf.test MX 20 host.spf.test
known.spf.test A 127.0.0.2
1.2.0.192.list.spf.test A 127.0.0.2
bob-list.users.spf.test A 127.0.0.2
list.users.spf.test A 127.0.0.2
spf.test.test.of.spf.test A 127.0.0.2
mx.sender.test.helo.spf.test A 127.0.0.2
in-addr.family.spf.test A 127.0.0.2
client.ptr.spf.test.named.spf.test A 127.0.0.2
1.2.0.192.in-addr.arpa PTR liar.other.test
1.2.0.192.in-addr.arpa PTR client.ptr.spf.test
client.ptr.spf.test A 192.0.2.1
liar.other.test A 192.0.2.250
mx.sender.test TXT "v=spf1 ip4:192.0.2.1 -all"
why.spf.test TXT "see http://spf.test/?c=%{c}"
several.spf.test TXT "v=spf1 ip4:192.0.2.1 -all"
several.spf.test TXT "v=spf1 -all"
others.spf.test TXT "hello=world"
others.spf.test TXT "v=spf1 ip4:192.0.2.1 -all"
only-others.spf.test TXT "hello=world"
linked.spf.test CNAME ip4.spf.test
*.wild.spf.test TXT "v=spf1 ip4:192.0.2.1 -all"
"""


def add_to(zone: Zone) -> None:
    """The records that the cases rest on."""
    for line in _ZONE.strip().splitlines():
        _add_line(zone, line)
    for name, record in _RECORDS.items():
        zone.add(f"{name}.spf.test", RecordType.TXT, record.encode())
    zone.add("beyond-ascii.spf.test", RecordType.TXT, "v=spf1 ip4:192.0.2.1 exists:bücher.test -all".encode())
    for count in range(10):
        zone.add(f"count{count}.test", RecordType.TXT, b"v=spf1 ip4:203.0.113.1 -all")
    for count in range(1, 12):
        zone.add(f"host{count}.spf.test", RecordType.A, f"203.0.113.{count}" if count != 10 else "192.0.2.1")
        zone.add(f"host{count}.spf.test", RecordType.AAAA, "2001:db8:1::" if count != 10 else "2001:db8::1")
        zone.add("eleven.spf.test", RecordType.MX, (count, f"host{count}.spf.test"))
        if count < 11:
            zone.add("ten.spf.test", RecordType.MX, (count, f"host{count}.spf.test"))
    zone.fail("late.spf.test")


def _add_line(zone: Zone, line: str) -> None:
    name, kind, value = line.split(" ", 2)
    match RecordType(kind):
        case RecordType.TXT:
            zone.add(name, RecordType.TXT, value.strip('"').encode())
        case RecordType.MX:
            preference, host = value.split()
            zone.add(name, RecordType.MX, (int(preference), host))
        case record_type:
            zone.add(name, record_type, value)


_MORE = ("several", "others", "only-others", "linked", "late", "beyond-ascii", "nobody", "deep.er.wild")


def cases(random: Random) -> Iterator[Case]:
    """All of them, once: unsigned, from a client of each family that is mostly known, and from one that is not."""
    clients = {"known": V4, "unknown": V4_OTHER, "known, IPv6": V6, "unknown, IPv6": V6_OTHER}
    for domain in (*_RECORDS, *_MORE):
        for client, address in clients.items():
            yield Case(
                f"spf/{domain}, client {client}",
                message(random, f"bob@{domain}.spf.test"),
                client_address=address,
                reverse_path=f"bob-list@{domain}.spf.test",
            )
    for name, path, helo in (
        ("null path", "", "mx.sender.test"),
        ("null path, unknown HELO", "", "nobody.test"),
        ("null path, literal in HELO", "", "[192.0.2.1]"),
        ("null path, HELO without a dot", "", "localhost"),
        ("quoted local part", '"bob-list"@exists-local.spf.test', "mx.sender.test"),
        ("capitals", "BOB@IP4.SPF.TEST", "mx.sender.test"),
        ("no dot", "bob@localhost", "mx.sender.test"),
        ("top-level domain of digits", "bob@spf.123", "mx.sender.test"),
        ("long label", f"bob@{'a' * 63}.wild.spf.test", "mx.sender.test"),
        ("U-label", "bob@bücher.wild.spf.test", "mx.sender.test"),
    ):
        for client, address in clients.items():
            yield Case(
                f"spf/path: {name}, client {client}",
                message(random, "bob@elsewhere.test"),
                client_address=address,
                helo=helo,
                reverse_path=path,
            )
