"""Mail whose author's domain has a policy, or whose organization has one, found by every way up the DNS tree.

Standards: RFC 9989 sections 4.4, 4.7, 4.10 and 5.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from tests.agreement.case import Case, message
from tests.agreement.signing import KEYS, signature_field

_KNOWN = "192.0.2.1"

# DMARC records, by the domain that publishes them.
_RECORDS: dict[str, tuple[str, ...]] = {
    # Policies
    "none.test": ("v=DMARC1; p=none",),
    "quarantine.test": ("v=DMARC1; p=quarantine",),
    "reject.test": ("v=DMARC1; p=reject",),
    "sp.test": ("v=DMARC1; p=none; sp=reject",),
    "np.test": ("v=DMARC1; p=none; np=reject",),
    "sp-np.test": ("v=DMARC1; p=none; sp=quarantine; np=reject",),
    "testing.test": ("v=DMARC1; p=reject; t=y",),
    "testing-quarantine.test": ("v=DMARC1; p=quarantine; t=y",),
    "not-testing.test": ("v=DMARC1; p=reject; t=n",),
    "testing-sp.test": ("v=DMARC1; p=none; sp=reject; t=y",),
    "capitals.test": ("V=DMARC1; P=REJECT; SP=Quarantine",),
    "percent.test": ("v=DMARC1; p=reject; pct=10",),
    "blanks.test": ("v = DMARC1 ;p = reject ; adkim = s ;",),
    "unknown-tag.test": ("v=DMARC1; p=reject; foo=bar; x",),
    # Alignment
    "strict.test": ("v=DMARC1; p=reject; adkim=s; aspf=s",),
    "strict-dkim.test": ("v=DMARC1; p=reject; adkim=s",),
    "strict-spf.test": ("v=DMARC1; p=reject; aspf=s",),
    "odd-modes.test": ("v=DMARC1; p=reject; adkim=x; aspf=y",),
    # Records that are broken, or none
    "no-p.test": ("v=DMARC1; sp=reject",),
    "no-p-rua.test": ("v=DMARC1; sp=reject; rua=mailto:d@no-p-rua.test",),
    "odd-p.test": ("v=DMARC1; p=maybe",),
    "odd-p-rua.test": ("v=DMARC1; p=maybe; rua=mailto:d@odd-p-rua.test",),
    "odd-sp.test": ("v=DMARC1; p=reject; sp=maybe",),
    "odd-sp-rua.test": ("v=DMARC1; p=reject; sp=maybe; rua=mailto:d@odd-sp-rua.test",),
    "odd-np-rua.test": ("v=DMARC1; p=reject; np=maybe; rua=mailto:d@odd-np-rua.test",),
    "odd-rua.test": ("v=DMARC1; p=maybe; rua=nobody",),
    "p-twice.test": ("v=DMARC1; p=none; p=reject",),
    "unknown-twice.test": ("v=DMARC1; p=reject; foo=1; foo=2",),
    "version-2.test": ("v=DMARC2; p=reject",),
    "version-lower.test": ("v=dmarc1; p=reject",),
    "version-last.test": ("p=reject; v=DMARC1",),
    "version-only.test": ("v=DMARC1",),
    "version-blank.test": (" v=DMARC1; p=reject",),
    "commas.test": ("v=DMARC1, p=reject",),
    "several.test": ("v=DMARC1; p=reject", "v=DMARC1; p=none"),
    "same-twice.test": ("v=DMARC1; p=reject; x=1", "v=DMARC1; p=reject; x=2"),
    "among-others.test": ("hello=world", "v=DMARC1; p=reject", "v=spf1 -all"),
    "others-only.test": ("hello=world",),
    # The tree
    "tree.test": ("v=DMARC1; p=reject",),
    "deep.tree.test": ("v=DMARC1; p=quarantine",),
    "own.tree.test": ("v=DMARC1; p=quarantine; psd=n",),
    "unknown-psd.tree.test": ("v=DMARC1; p=quarantine; psd=u",),
    "odd-psd.tree.test": ("v=DMARC1; p=quarantine; psd=maybe",),
    "psd.suffix.test": ("v=DMARC1; p=reject; psd=y",),
    "org.psd.suffix.test": ("v=DMARC1; p=quarantine",),
    "several.tree.test": ("v=DMARC1; p=none", "v=DMARC1; p=quarantine"),
    "c.d.e.f.g.h.long.test": ("v=DMARC1; p=quarantine",),
    "d.e.f.g.h.long.test": ("v=DMARC1; p=reject",),
    "b.c.d.e.f.g.deeper.test": ("v=DMARC1; p=quarantine",),
}

# Domains that exist, without a DMARC record of their own.
_HOSTS = (
    "host.np.test",
    "host.sp-np.test",
    "mailed.np.test",
    "host.tree.test",
)


def add_to(zone: Zone) -> None:
    """The records that the cases rest on. Whatever is the author's domain may send from the one client."""
    for domain, records in _RECORDS.items():
        for record in records:
            zone.add(f"_dmarc.{domain}", RecordType.TXT, record.encode())
    for host in _HOSTS:
        zone.add(host, RecordType.A, "192.0.2.80")
    zone.add("six.np.test", RecordType.AAAA, "2001:db8::80")
    zone.add("mail.np.test", RecordType.MX, (10, "host.np.test"))
    zone.add("text.np.test", RecordType.TXT, b"nothing else")
    zone.add("empty.np.test", RecordType.TXT, b"above", ttl_seconds=60)
    zone.remove("empty.np.test", RecordType.TXT)
    zone.add("below.between.np.test", RecordType.A, "192.0.2.80")
    zone.add("alias.np.test", RecordType.CNAME, "host.np.test")
    zone.add("alias-lost.np.test", RecordType.CNAME, "nobody.np.test")
    zone.fail("late.np.test")
    zone.fail("_dmarc.late.test")
    zone.fail("_dmarc.late.tree.test")
    zone.add("_dmarc.own.late.test", RecordType.TXT, b"v=DMARC1; p=reject")
    zone.add("_dmarc.alias.test", RecordType.CNAME, "_dmarc.reject.test")
    zone.add("_dmarc.strings.test", RecordType.TXT, b"v=DMARC1; p=reject; rua=" + b",".join([b"mailto:a@b.test"] * 20))
    for sender in _SENDERS:
        zone.add(sender, RecordType.TXT, b"v=spf1 ip4:192.0.2.1 -all")
    for signer in _SIGNERS:
        zone.add(f"r1024._domainkey.{signer}", RecordType.TXT, KEYS["r1024"].record)


# Author, who is in MAIL FROM (and passes, from the known client), who signs.
_RELATIONS: tuple[tuple[str, str | None, str | None], ...] = (
    *((domain, None, None) for domain in _RECORDS),
    *((domain, domain, None) for domain in _RECORDS),
    *((f"news.{domain}", None, None) for domain in _RECORDS),
    *((f"news.{domain}", domain, None) for domain in _RECORDS),
    *((domain, None, f"news.{domain}") for domain in _RECORDS),
    *((domain, f"bounce.{domain}", f"news.{domain}") for domain in ("reject.test", "strict.test", "odd-modes.test")),
    *((domain, f"bounce.{domain}", None) for domain in ("strict-spf.test", "strict-dkim.test", "odd-modes.test")),
    *((domain, None, domain) for domain in ("reject.test", "strict.test", "strict-dkim.test")),
    *((f"{host}.np.test", None, None) for host in ("host", "six", "mail", "text", "empty", "between", "nobody")),
    *((f"{host}.np.test", None, None) for host in ("alias", "alias-lost", "late", "mailed", "a.b.nobody")),
    ("host.sp-np.test", None, None),
    ("nobody.sp-np.test", None, None),
    ("late.np.test", "np.test", None),
    # The tree
    ("host.tree.test", "tree.test", None),
    ("host.tree.test", "deep.tree.test", None),
    ("deep.tree.test", "tree.test", None),
    ("a.b.c.tree.test", None, "x.y.z.tree.test"),
    ("a.deep.tree.test", None, "b.tree.test"),
    ("own.tree.test", "tree.test", None),
    ("tree.test", "own.tree.test", None),
    ("a.own.tree.test", "b.own.tree.test", None),
    ("a.own.tree.test", None, "tree.test"),
    ("unknown-psd.tree.test", "tree.test", None),
    ("odd-psd.tree.test", "tree.test", None),
    ("a.several.tree.test", "tree.test", None),
    # Under a public suffix
    ("shop.psd.suffix.test", None, None),
    ("shop.psd.suffix.test", "shop.psd.suffix.test", None),
    ("a.shop.psd.suffix.test", None, "b.shop.psd.suffix.test"),
    ("shop.psd.suffix.test", None, "other.psd.suffix.test"),
    ("shop.psd.suffix.test", "psd.suffix.test", None),
    ("psd.suffix.test", None, "shop.psd.suffix.test"),
    ("org.psd.suffix.test", None, "a.org.psd.suffix.test"),
    ("a.org.psd.suffix.test", "org.psd.suffix.test", None),
    ("a.org.psd.suffix.test", None, "psd.suffix.test"),
    # Many labels
    ("a.b.c.d.e.f.g.h.long.test", None, None),
    ("a.b.c.d.e.f.g.h.long.test", "d.e.f.g.h.long.test", None),
    ("c.d.e.f.g.h.long.test", None, "d.e.f.g.h.long.test"),
    ("b.c.d.e.f.g.h.long.test", None, "e.f.g.h.long.test"),
    ("a.b.c.d.e.f.g.deeper.test", None, None),
    ("z.a.b.c.d.e.f.g.deeper.test", None, None),
    ("y.z.a.b.c.d.e.f.g.deeper.test", None, "b.c.d.e.f.g.deeper.test"),
    # No record at all
    ("nothing.test", None, None),
    ("nothing.test", "nothing.test", "nothing.test"),
    ("news.nothing.test", "nothing.test", None),
    # No answer
    ("late.test", None, None),
    ("late.test", "late.test", None),
    ("below.late.test", None, None),
    ("own.late.test", None, None),
    ("own.late.test", "own.late.test", None),
    ("own.late.test", None, "below.own.late.test"),
    ("late.tree.test", "tree.test", None),
    ("a.late.tree.test", "tree.test", None),
    ("tree.test", "late.tree.test", None),
    ("reject.test", "late.tree.test", None),
    # Others
    ("alias.test", None, None),
    ("strings.test", None, None),
    ("reject.test", "none.test", "quarantine.test"),
    ("reject.test", "notreject.test", "test"),
    ("reject.test", "REJECT.test", None),
)

_SENDERS = frozenset(sender.lower() for _, sender, _ in _RELATIONS if sender is not None) | {"forwarder.example"}
_SIGNERS = frozenset(signer for _, _, signer in _RELATIONS if signer is not None)


def cases(random: Random) -> Iterator[Case]:
    """All of them, once."""
    for author, sender, signer in _RELATIONS:
        content = message(random, f"Bob <bob@{author}>")
        if signer is not None:
            content = signature_field(content, signer, key="r1024") + content
        yield Case(
            f"dmarc/{author}, SPF {sender or 'of another'}, DKIM {signer or 'none'}",
            content,
            client_address=_KNOWN,
            reverse_path=f"bob@{sender or 'forwarder.example'}",
        )
