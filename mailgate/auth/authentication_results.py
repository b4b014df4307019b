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

# A field as `mailgate.message` finds it, and with folds before its colon too. It ends where no blank follows a CRLF.
_FIELD = re.compile(
    rb"(?im)^authentication-results[ \t]*+(?:\r\n[ \t][ \t]*+)*+:((?:[^\r]++|(?!\r\n)\r|\r\n[ \t])*+)(?:\r\n)?"
)
#   value   = token / quoted-string                                   ; RFC 2045 section 5.1
#   pvalue  = value / [[local-part] "@"] domain-name                  ; RFC 8601 section 2.2
# "=" may stand in a local part, and is not let in: there are programs that look for "dmarc=pass" and nothing else.
_PVALUE = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`{|}~]++|[A-Za-z0-9!#$%&'*+\-/^_`{|}~.]*+@[A-Za-z0-9.\-]++")
#   key-value-pair = key [CFWS] "=" ( dot-atom / quoted-string )      ; RFC 7208 section 9.1, and "=" as above
_ATEXT = r"[A-Za-z0-9!#$%&'*+\-/?^_`{|}~]"
_DOT_ATOM = re.compile(rf"{_ATEXT}++(?:\.{_ATEXT}{_ATEXT}*+)*+")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]")
_QUOTED_PAIR = re.compile(r"\\(.)")
_EQUALS_PASS = re.compile(r"=(?=[ \t]*+pass)", re.IGNORECASE)
_LINE_CHARS = 78
_MAX_VALUE_CHARS = 400  # longer ones are cut: with all its quoting, a line stays below 998 octets

# What a field has to say of whom it is from it says at its beginning. Only so much is looked at character by character,
# of one field and of all together; what goes on beyond that is up to no good.
_MAX_HEAD_CHARS = 2048
_MAX_EXAMINED_CHARS = 65_536


def claims(header: bytes, authserv_id: str) -> tuple[tuple[int, int], ...]:
    """Where in a header section the Authentication-Results fields are that claim that authserv-id: start and end."""
    found: list[tuple[int, int]] = []
    left = _MAX_EXAMINED_CHARS
    for field in _FIELD.finditer(header):
        body = field[1].replace(b"\r\n", b"").decode("utf-8", "replace")
        head, examined = _head_of(body[:_MAX_HEAD_CHARS])
        left -= examined
        if left < 0 or len(body) > _MAX_HEAD_CHARS <= examined:
            is_ours = True
        elif head is None:
            is_ours = authserv_id.lower() in body.lower()
        else:
            is_ours = _names(head, authserv_id)
        if is_ours:
            found.append(field.span())
    return tuple(found)


def _names(head: str, authserv_id: str) -> bool:
    """Whether some program might read that id in what stands before the first semicolon."""
    if "=?" in head:
        return True  # an encoded word is no id, and there are programs that decode it before they look
    head = _QUOTED_PAIR.sub(r"\1", head.replace('"', "")).strip(" \t")
    # A version may follow the id; and a name that was folded apart may be put together again by whoever reads it.
    unversioned = head.rstrip("0123456789").rstrip(" \t/")
    words = head.split()
    names = {words[0] if words else "", "".join(words), "".join(unversioned.split())}
    return any(_same_name(name, authserv_id) for name in names)


def _same_name(one: str, other: str) -> bool:
    try:
        return domain_key(one) == domain_key(other)
    except ValueError:
        return one.strip(".").lower() == other.lower()


def _head_of(text: str) -> tuple[str | None, int]:
    """What stands before the first semicolon, each comment become a blank, and how many characters were looked at.

    None where a comment or a quoted string has no end, or a comment ends that never began.
    """
    kept: list[str] = []
    depth, position, is_quoted = 0, 0, False
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\" and (is_quoted or depth):
            if not depth:
                kept.append(text[position - 1 : position + 1])
            position += 1
        elif char == '"' and not depth:
            is_quoted = not is_quoted
            kept.append(char)
        elif is_quoted or char not in "();":
            if not depth:
                kept.append(char)
        elif char == "(":
            depth += 1
            kept.append(" ")
        elif char == ")":
            depth -= 1
            if depth < 0:
                return None, position
        elif not depth:
            return "".join(kept), position
    return (None if depth or is_quoted else "".join(kept)), position


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
    results: list[list[str]] = []
    for each in spf:
        property_ = "smtp.helo" if each.identity == "helo" else "smtp.mailfrom"
        value = each.domain if each.identity == "helo" or not each.sender else each.sender
        results.append(
            _result(
                "spf",
                each.result.value,
                each.problem,
                [(property_, value)],
                client_address and f"client {client_address}",
            )
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
    if arc is not None:
        # "0" says that all of them pass (RFC 8617 section 5.2).
        oldest = str(arc.oldest_pass if arc.oldest_pass > 1 else 0) if arc.oldest_pass else ""
        results.append(_result("arc", arc.result.value, arc.problem, [("header.oldest-pass", oldest)]))
    match dmarc:
        case DmarcResult():
            properties = [("header.from", dmarc.author_domain), ("policy.dmarc", dmarc.policy)]
            results.append(_result("dmarc", dmarc.result.value, dmarc.problem, properties))
        case AuthorFault():
            results.append(_result("dmarc", "permerror", dmarc.problem, []))
        case None:
            pass
    return _folded(f"Authentication-Results: {authserv_id}", results or [["none"]])


def received_spf(spf: SpfResult, *, receiver: str, client_address: str, helo: str) -> bytes:
    """Our Received-SPF field for one identity, ending in CRLF (RFC 7208 section 9.1)."""
    pairs = [
        ("identity", spf.identity),
        ("client-ip", client_address),
        ("helo", helo),
        ("envelope-from", spf.sender if spf.identity == "mailfrom" else ""),
        ("receiver", receiver),
        ("mechanism", spf.mechanism),
        ("problem", spf.problem),
    ]
    words = [f"{key}={value if _is_plain(_DOT_ATOM, value) else _quoted(value)};" for key, value in pairs if value]
    words[-1] = words[-1].removesuffix(";")
    return _folded(f"Received-SPF: {spf.result.value}", [words], separates_head=False)


def _result(
    method: str, result: str, problem: str, properties: Iterable[tuple[str, str]], comment: str = ""
) -> list[str]:
    """The words of a result, which may be folded apart."""
    words = [f"{method}={result}"]
    if comment:
        words.append(f"({_comment(comment)})")
    if problem:
        words.append(f"reason={_quoted(problem)}")
    words += [f"{name}={_value(value)}" for name, value in properties if value]
    return words


def _value(value: str) -> str:
    """A value that can't be read as anything else: as it is where that is allowed, else quoted.

    Of an address with a local part of the more inventive kind, the domain has to do.
    """
    if _is_plain(_PVALUE, value):
        return value
    domain = "@" + value.rpartition("@")[2]
    return domain if "@" in value and _is_plain(_PVALUE, domain) else _quoted(value)


def _is_plain(form: re.Pattern[str], value: str) -> bool:
    return len(value) <= _MAX_VALUE_CHARS and form.fullmatch(value) is not None


def _quoted(text: str) -> str:
    return '"' + _shown(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _comment(text: str) -> str:
    return re.sub(r'[()\\"]', "", _shown(text))


def _shown(text: str) -> str:
    """Printable ASCII, not too long, and without what separates results or is one, since not everybody heeds quotes."""
    cut = text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 3] + "..."
    return _EQUALS_PASS.sub(":", _NOT_PRINTABLE.sub("?", cut).replace(";", ","))


def _folded(head: str, results: Sequence[Sequence[str]], *, separates_head: bool = True) -> bytes:
    """A field with a result a line, long lines folded between words."""
    lines = [head + (";" if separates_head else "")]
    for number, words in enumerate(results, 1):
        line = "\t" + words[0]
        for word in words[1:]:
            if len(line) + 1 + len(word) > _LINE_CHARS:
                lines.append(line)
                line = "\t  " + word
            else:
                line += " " + word
        lines.append(line + (";" if number < len(results) else ""))
    return ("\r\n".join(lines) + "\r\n").encode("ascii", "replace")
