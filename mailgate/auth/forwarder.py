"""Whether somebody whom config trusts vouches for the author of a message that was forwarded.

A chain that passes proves who handled a message. Of what they say that they found, only `dmarc=pass` for the author's
domain matters here: a forwarder that is honest about a forgery, and most are, vouches for none.

Standards: RFC 8617 sections 4.1.1 (ARC-Authentication-Results) and 7.2; RFC 8601 section 2.2 (the grammar of results).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from mailgate.auth.results import ArcResult, Result, TrustedForwarder
from mailgate.auth.tag_list import MalformedTags, name_value


def trusted_forwarder(result: ArcResult, trusted_sealers: Sequence[str], author_domain: str) -> TrustedForwarder | None:
    """Who handed the message to us, where that is somebody trusted who says that the author is genuine.

    That is so where the chain passes, its newest seal is by a trusted sealer, and `dmarc=pass` for the author's domain
    is among what that sealer says, or what those before it say as long as they are trusted too. What stands behind
    the seal of a stranger may be that stranger's invention.
    """
    if result.result is not Result.PASS:
        return None
    for sealer, payload in zip(reversed(result.sealers), reversed(result.sealed_results), strict=True):
        if sealer not in trusted_sealers:
            return None
        if author_domain in _dmarc_passes(payload):
            return TrustedForwarder(result.sealers[-1], sealer)
    return None


#   authres-payload = [CFWS] authserv-id [CFWS] [ authres-version ] ( no-result / 1*resinfo ) [CFWS]
#   resinfo = [CFWS] ";" methodspec [ CFWS reasonspec ] [ CFWS 1*propspec ]         (RFC 8601 section 2.2)
_DMARC_PASS = re.compile(r"\s*+dmarc\s*+(?:/\s*+1\s*+)?=\s*+pass(?=\s|\Z)", re.IGNORECASE)
_HEADER_FROM = re.compile(r"\sheader\s*+\.\s*+from\s*+=\s*+([^\s;@]++)", re.IGNORECASE)


def _dmarc_passes(payload: str) -> Iterator[str]:
    """The domains for which an ARC-Authentication-Results payload says `dmarc=pass`."""
    for resinfo in _without_strangers_words(payload).split(";")[1:]:
        domain = _HEADER_FROM.search(resinfo)
        if domain is not None and _DMARC_PASS.match(resinfo):
            with suppress(MalformedTags):
                yield name_value(domain[1].encode("utf-8"))


_OUTSIDE_COMMENTS = re.compile(r'[^()"\\]++|"(?:[^"\\]++|\\.)*+"|\(')
_IN_COMMENT = re.compile(r"[^()\\]++|\\.|[()]")


def _without_strangers_words(payload: str) -> str:
    """A payload with a blank for each comment and quoted string, which may hold anything; "" if it has no sense."""
    kept: list[str] = []
    depth = position = 0
    while position < len(payload):
        match = (_IN_COMMENT if depth else _OUTSIDE_COMMENTS).match(payload, position)
        if match is None:
            return ""
        position = match.end()
        piece = match[0]
        if piece == "(":
            depth += 1
        elif piece == ")":
            depth -= 1
        elif not depth:
            kept.append(" " if piece.startswith('"') else piece)
            continue
        kept.append(" ")
    return "" if depth else "".join(kept)
