"""A resolver that validates: an Unbound on loopback that trusts zones which are signed here, and asks an NSD."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import dns.dnssec
import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rdatatype
import dns.zone
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from dns.dnssectypes import Algorithm

from tests.support.dns_server import HOST, ZONE_START, free_port, nsd

_START_SECONDS = 20.0
_MINIMUM_SECONDS = 60
_SIGNED_SECONDS = 86_400


@contextlib.contextmanager
def unbound(
    signed: Mapping[str, str], plain: Mapping[str, str], *, tamper: Callable[[str], str] = lambda text: text
) -> Iterator[int]:
    """An Unbound that knows these zones, and its port. Those of `signed` are signed, and then tampered with.

    A test that needs it is skipped where it or NSD is not installed.
    """
    program = shutil.which("unbound", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("unbound is not installed (Debian's package unbound)")
    anchors = []
    zones = dict(plain)
    for origin, text in signed.items():
        zones[origin], anchor = _signed(origin, text)
        zones[origin] = tamper(zones[origin])
        anchors.append(anchor)
    folder = Path(tempfile.mkdtemp(prefix="mailgate-unbound-"))
    try:
        with nsd(zones, minimum_seconds=_MINIMUM_SECONDS) as authority:
            port = free_port()
            (folder / "unbound.conf").write_text(_config(folder, port, authority, list(zones), anchors))
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen([program, "-d", "-c", folder / "unbound.conf"], stdout=log, stderr=log)
            try:
                if not _answers(process, port, next(iter(zones))):
                    raise AssertionError(f"unbound did not answer: {(folder / 'log').read_text()}")
                yield port
            finally:
                process.terminate()
                process.wait(10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _signed(origin: str, text: str) -> tuple[str, str]:
    """The zone's records with their signatures, without SOA and NS, which `nsd` adds; and its trust anchor."""
    start = ZONE_START.format(origin=origin, minimum=_MINIMUM_SECONDS)
    zone = dns.zone.from_text(f"{start}{text}\n", origin=f"{origin}.", relativize=False)
    private = ec.generate_private_key(ec.SECP256R1())
    key = dns.dnssec.make_dnskey(private.public_key(), Algorithm.ECDSAP256SHA256, flags=257)
    now = time.time()
    dns.dnssec.sign_zone(zone, keys=[(private, key)], inception=now - 3600, expiration=now + _SIGNED_SECONDS)
    lines = [
        f"{name} {rdataset.ttl} IN {dns.rdatatype.to_text(rdataset.rdtype)} {rdata.to_text()}"
        for name, rdataset in zone.iterate_rdatasets()
        if rdataset.rdtype not in (dns.rdatatype.SOA, dns.rdatatype.NS)
        for rdata in rdataset
    ]
    anchor = dns.dnssec.make_ds(dns.name.from_text(origin), key, "SHA256")
    return "\n".join(lines), f"{origin}. DS {anchor.to_text()}"


def _config(folder: Path, port: int, authority: int, origins: list[str], anchors: list[str]) -> str:
    lines = [
        "server:",
        f"  interface: {HOST}",
        f"  port: {port}",
        "  num-threads: 1",
        '  username: ""',
        '  chroot: ""',
        f'  directory: "{folder}"',
        f'  pidfile: "{folder}/pid"',
        "  use-syslog: no",
        "  do-not-query-localhost: no",
        "  do-ip6: no",
        '  module-config: "validator iterator"',
        *(f'  trust-anchor: "{anchor}"' for anchor in anchors),
    ]
    for origin in origins:
        lines += [f'  local-zone: "{origin}." nodefault']
    lines += ['  local-zone: "test." nodefault', "remote-control:", "  control-enable: no"]
    for origin in origins:
        lines += ["stub-zone:", f'  name: "{origin}"', f"  stub-addr: {HOST}@{authority}"]
    return "\n".join([*lines, ""])


def _answers(process: subprocess.Popen[bytes], port: int, origin: str) -> bool:
    """Whether it comes to answer."""
    query = dns.message.make_query(f"{origin}.", dns.rdatatype.SOA)
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            dns.query.udp(query, HOST, timeout=1, port=port)
        except (OSError, EOFError, dns.exception.DNSException):
            time.sleep(0.02)
            continue
        return True
    return False
