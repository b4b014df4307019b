"""Authentication-Results: ours written, and those that pretend to be ours found.

What a message says of its own authentication is worth nothing unless we wrote it: every field that claims our
authserv-id is found, however it is written, so that it can be taken out. A field that can't be read is taken to claim
it as soon as our name is in it, since a program behind us may read it otherwise.

Standards: RFC 8601 sections 2.2 (grammar), 2.7 (methods), 5 (removing fields); RFC 7208 section 9.1 (Received-SPF);
RFC 6008 (header.b); RFC 8617 section 4.1.1 (ARC).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mailgate.auth.results import ArcResult, AuthorFault, DkimResult, DmarcResult, SpfResult
from mailgate.smtp.grammar import domain_key

_FIELD = re.compile(rb"(?im)^authentication-results[ \t]*:(?:[^\r\n]|\r\n[ \t])*+(?:\r\n|\Z)")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`{|}~/@:]+")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]")
_LINE_CHARS = 78


def claims(header: bytes, authserv_id: str) -> tuple[tuple[int, int], ...]:
    """Where in a header section the Authentication-Results fields are that claim that authserv-id: start and end."""
    return tuple(found.span() for found in _FIELD.finditer(header) if _claims(found[0].partition(b":")[2], authserv_id))


def _claims(body: bytes, authserv_id: str) -> bool:
    text = body.decode("utf-8", "replace")
    # Comments may stand before the id and hide it; quotes may surround it.
    stripped = _without_comments(text)
    if stripped is None:
        return authserv_id.lower() in text.lower()
    head = stripped.partition(";")[0].strip(" \t\r\n")
    if head.startswith('"'):
        head = re.sub(r"\\(.)", r"\1", head[1:].partition('"')[0])
    # A version may follow the id; and a name that was folded apart may be put together again by whoever reads it.
    words = head.split()
    joined = "".join(words)
    names = {words[0] if words else "", joined, joined.rstrip("0123456789")}
    return any(_same_name(name, authserv_id) for name in names)


def _same_name(one: str, other: str) -> bool:
    try:
        return domain_key(one) == domain_key(other)
    except ValueError:
        return one.strip(".").lower() == other.lower()


def _without_comments(text: str) -> str | None:
    """The text with each comment become a blank; None where one has no end, or ends that never began."""
    kept: list[str] = []
    depth, position, is_quoted = 0, 0, False
    while position < len(text):
        char = text[position]
        if char == "\\" and (is_quoted or depth):
            if not depth:
                kept.append(text[position : position + 2])
            position += 2
            continue
        if char == '"' and not depth:
            is_quoted = not is_quoted
        if is_quoted or char not in "()":
            if not depth:
                kept.append(char)
        elif char == "(":
            depth += 1
            kept.append(" ")
        else:
            depth -= 1
            if depth < 0:
                return None
        position += 1
    return None if depth or is_quoted else "".join(kept)


def authentication_results(
    authserv_id: str,
    *,
    spf: Sequence[SpfResult] = (),
    dkim: Sequence[DkimResult] = (),
    arc: ArcResult | None = None,
    dmarc: DmarcResult | AuthorFault | None = None,
    client_address: str = "",
) -> bytes:
    """Our field, with every result, ending in CRLF. "none" where nothing was checked (section 2.2)."""
    results: list[str] = []
    for each in spf:
        property_ = "smtp.helo" if each.identity == "helo" else "smtp.mailfrom"
        value = each.domain if each.identity == "helo" or not each.sender else each.sender
        results.append(
            _result("spf", each.result.value, each.problem, [(property_, value)], f"client {client_address}")
        )
    results += [
        _result(
            "dkim",
            signature.result.value,
            signature.problem,
            [
                ("header.d", signature.domain),
                ("header.i", signature.identity),
                ("header.s", signature.selector),
                ("header.a", signature.algorithm),
                ("header.b", signature.signature),
            ],
            f"{signature.key_bits} bits" if signature.key_bits else "",
        )
        for signature in dkim
    ]
    if not dkim and spf:
        results.append("dkim=none")
    if arc is not None:
        results.append(_result("arc", arc.result.value, arc.problem, [("header.oldest-pass", str(arc.oldest_pass))]))
    match dmarc:
        case DmarcResult():
            policy = f"p={dmarc.published_policy} applied={dmarc.policy}" if dmarc.policy else ""
            results.append(
                _result("dmarc", dmarc.result.value, dmarc.problem, [("header.from", dmarc.author_domain)], policy)
            )
        case AuthorFault():
            results.append(_result("dmarc", "permerror", dmarc.problem, []))
        case None:
            pass
    return _folded(f"Authentication-Results: {authserv_id}", results or ["none"])


def received_spf(spf: SpfResult, *, receiver: str, client_address: str, helo: str) -> bytes:
    """Our Received-SPF field for one identity, ending in CRLF (RFC 7208 section 9.1)."""
    pairs = [
        ("identity", spf.identity),
        ("client-ip", client_address),
        ("helo", helo),
        ("envelope-from", spf.sender),
        ("receiver", receiver),
        ("mechanism", spf.mechanism),
        ("problem", spf.problem),
    ]
    head = f"Received-SPF: {spf.result.value}"
    return _folded(head, [f"{key}={_value(value)}" for key, value in pairs if value], separates_head=False)


def _result(method: str, result: str, problem: str, properties: Iterable[tuple[str, str]], comment: str = "") -> str:
    parts = [f"{method}={result}"]
    if comment:
        parts.append(f"({_comment(comment)})")
    if problem:
        parts.append(f"reason={_quoted(problem)}")
    parts += [f"{name}={_value(value)}" for name, value in properties if value]
    return " ".join(parts)


def _value(value: str) -> str:
    """A value that can't be read as anything else: as it is where it is a token, else quoted."""
    return value if _TOKEN.fullmatch(value) and "=" not in value else _quoted(value)


def _quoted(text: str) -> str:
    shown = _NOT_PRINTABLE.sub("?", text)
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _comment(text: str) -> str:
    return re.sub(r"[()\\]", "", _NOT_PRINTABLE.sub("?", text))


def _folded(head: str, results: Sequence[str], *, separates_head: bool = True) -> bytes:
    """A field a result a line, long lines folded at blanks outside quotes."""
    lines = [head + (";" if separates_head else "")]
    for number, result in enumerate(results, 1):
        end = ";" if number < len(results) else ""
        line = "\t"
        for word in re.findall(r'(?:"(?:[^"\\]|\\.)*"|[^ "])+', result + end):
            if len(line) + len(word) > _LINE_CHARS and line.strip():
                lines.append(line.rstrip(" "))
                line = "\t "
            line += word + " "
        lines.append(line.rstrip(" "))
    return ("\r\n".join(lines) + "\r\n").encode("ascii", "replace")
