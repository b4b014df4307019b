"""Reports in messages: found by their looks, unpacked within bounds, and nothing that a message can be does harm."""

from __future__ import annotations

import base64
import gzip
import io
import tracemalloc
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.reports import attachment
from mailgate.reports.attachment import attachments
from mailgate.reports.dmarc_report import DmarcReport, UnreadableReport
from mailgate.reports.inbound import authenticated_as, report_in
from mailgate.reports.tls_report import TlsReport
from mailgate.reports.tls_report import write as write_tls
from tests.unit.reports.test_dmarc_report import OLD
from tests.unit.reports.test_tls_report import REPORT as TLS_REPORT

XML = OLD.encode()


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as written:
        for name, octets in files:
            written.writestr(name, octets)
    return archive.getvalue()


def part(octets: bytes, content_type: str = "application/octet-stream") -> bytes:
    return f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode() + base64.encodebytes(
        octets
    ).replace(b"\n", b"\r\n")


def message(*parts: bytes, boundary: str = '"b1"') -> bytes:
    head = f"Subject: Report Domain: x\r\nContent-Type: multipart/mixed; boundary={boundary}\r\n\r\n".encode()
    delimiter = b"--" + boundary.strip('"').encode()
    return head + b"".join(b"\r\n" + delimiter + b"\r\n" + each for each in parts) + b"\r\n" + delimiter + b"--\r\n"


TEXT = b"Content-Type: text/plain\r\n\r\nHello\r\n"


@pytest.mark.parametrize(
    "octets",
    [
        message(TEXT, part(gzip.compress(XML))),
        message(TEXT, part(zipped(("r.xml", XML)), "application/zip"), boundary="b1"),
        message(TEXT, part(zipped(("r/", b""), ("r/r.xml", XML), method=zipfile.ZIP_STORED))),
        message(part(XML, "text/xml")),
        message(TEXT, message(TEXT, part(gzip.compress(XML)), boundary='"inner"')),
        part(gzip.compress(XML), "application/gzip"),
        part(gzip.compress(XML) + b"trailing"),
        part(b"\xef\xbb\xbf" + XML),
        b"Content-Type: text/xml\r\n\r\n" + XML.replace(b"\n", b"\r\n"),
        message(TEXT, part(b"PK\x03\x04 not a zip"), part(gzip.compress(XML))),
        message(part(zipped(("x.xml", b"")).replace(b"x.xml", b"\0.xml")), part(gzip.compress(XML))),  # without a name
    ],
)
def test_a_report_is_found_however_it_is_packed(octets: bytes) -> None:
    """RFC 9990 section 3.5, and what is sent besides."""
    found = report_in(octets)
    assert isinstance(found.report, DmarcReport)
    assert found.report.report_id == "571710"


def test_a_tls_report_is_found() -> None:
    """RFC 8460 section 5.3."""
    found = report_in(message(TEXT, part(gzip.compress(write_tls(TLS_REPORT)), "application/tlsrpt+gzip")))
    assert isinstance(found.report, TlsReport)
    assert found.report == TLS_REPORT


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (message(TEXT), ""),
        (b"", ""),
        (b"Content-Type: multipart/mixed\r\n\r\nx", ""),
        (part(gzip.compress(b"<html/>")), ""),
        (part(gzip.compress(b"")), ""),
        (part(gzip.compress(XML)[:-20]), "ends before it is complete"),
        (part(b"\x1f\x8b" + b"x" * 50), "can't be unpacked"),
        (part(b"PK\x03\x04" + b"x" * 50), "can't be unpacked"),
        (part(zipped()), ""),
        (part(zipped(("r.xml", XML), method=zipfile.ZIP_LZMA)), "packed in a way"),
        (part(zipped(("r.xml", XML))[:200]), "can't be unpacked"),
        (part(gzip.compress(b"{}")), "missing"),
        (part(gzip.compress(b"<feedback/>")), "missing"),
    ],
)
def test_what_is_no_report_is_told_or_passed_over(octets: bytes, problem: str) -> None:
    """It ends with a sentence, never with a traceback."""
    found = report_in(octets)
    assert found.report is None
    assert problem in found.problem


def bomb(octets: int, beginning: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    blank = b" " * (1 << 20)
    pieces = [packer.compress(beginning)]
    pieces += [packer.compress(blank) for _ in range(octets >> 20)]
    return b"".join([*pieces, packer.flush()])


@pytest.mark.parametrize("beginning", [b"<feedback>", b"{", b""])
def test_a_bomb_is_unpacked_up_to_a_bound_and_never_held(beginning: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 MiB in 200 kB: refused on the way, in little memory."""
    monkeypatch.setattr(attachment, "MAX_UNPACKED_OCTETS", 8 << 20)
    packed = bomb(200 << 20, beginning)
    assert len(packed) < 1 << 20
    tracemalloc.start()
    try:
        found = report_in(part(packed))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.report is None
    assert peak < 24 << 20


def test_a_zip_bomb_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the archive says of its sizes is not believed."""
    monkeypatch.setattr(attachment, "MAX_UNPACKED_OCTETS", 1 << 20)
    found = report_in(part(zipped(("r.xml", b"<feedback>" + b" " * (4 << 20)))))
    assert "more than 1048576 octets" in found.problem


def test_parts_are_bounded_in_number_and_depth() -> None:
    """Ten thousand parts, or a thousand levels, are looked at as far as anybody needs."""
    many = message(*[TEXT] * 10_000, part(XML))
    assert report_in(many).report is None
    deep = part(XML)
    for level in range(1000):
        deep = message(deep, boundary=f'"level{level}"')
    assert report_in(deep).report is None
    assert len(list(attachments(message(*[part(XML)] * 100)))) < 51


@given(st.lists(st.binary(max_size=30) | st.sampled_from([XML, gzip.compress(XML), TEXT, b"\r\n--b1", b"--b1--"])))
def test_no_message_does_harm(pieces: list[bytes]) -> None:
    """Whatever it is, there is an answer."""
    report_in(b"Content-Type: multipart/mixed; boundary=b1\r\n\r\n--b1\r\n" + b"\r\n".join(pieces))


def test_damaged_packing_does_no_harm() -> None:
    """Every octet of an archive may be another."""
    for packed in (gzip.compress(XML), zipped(("r.xml", XML))):
        for position in range(0, len(packed), 3):
            damaged = bytearray(packed)
            damaged[position] ^= 0xFF
            report_in(part(bytes(damaged)))


def test_unpacking_ends_at_the_first_error() -> None:
    """The reader hears of it."""
    (found,) = attachments(part(b"\x1f\x8b\x08\x00garbage"))
    with pytest.raises(UnreadableReport):
        list(found.unpacked())


@pytest.mark.parametrize(
    ("results", "domain"),
    [
        ([], None),
        ([{"kind": "dmarc", "result": "pass", "author_domain": "google.com"}], "google.com"),
        (
            [
                {"kind": "dkim", "result": "fail", "domain": "evil.example"},
                {"kind": "dkim", "result": "pass", "domain": "relay.example"},
                {"kind": "dmarc", "result": "fail", "author_domain": "google.com"},
            ],
            "relay.example",
        ),
        ([{"kind": "spf", "result": "pass", "domain": "relay.example"}], None),
    ],
)
def test_who_sent_a_report_is_who_proved_it(results: list[dict[str, str]], domain: str | None) -> None:
    """Anybody can write a report in any name."""
    assert authenticated_as(results) == domain
