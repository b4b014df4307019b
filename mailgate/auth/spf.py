"""SPF: whether a domain allows a client to use its name in HELO or MAIL.

Pure: an evaluation by pyspf that is fed with answers. pyspf knows the records, the mechanisms and their order; what it
asks of the DNS comes from `Answers`, and where it differs from the RFC it is put right here:

- macros are expanded here: any number of labels is dropped to fit 253 octets, a text of `exp=` is not shortened, zero
  and very long numbers of labels, `R`, and rejoining with dots are as in section 7.3;
- modifiers that are not known may be there often, and case does not matter in `redirect=` and `exp=` (section 6);
- a term counts towards the ten when it is evaluated, `redirect=` too (section 4.6.4);
- of void look-ups, the *terms* that meet one are counted (section 4.6.4), and an IPv6 client's question for AAAA of a
  host that has only A is none: else three IPv4 hosts in a record refuse every IPv6 client behind an `include`;
- a DNS failure in `ptr` or `%{p}` is no match or "unknown" (sections 5.5 and 7.3), and one in an explanation means that
  there is none (section 6.2): it is looked up only where the result is fail;
- the mail hosts of `mx` are asked for in order, and those behind a match count for nothing.

Whatever strangers write ends as a result, never as an exception. Records of the former type 99 are not asked for.

Standards: RFC 7208; RFC 8616 section 4 (internationalized senders); RFC 8601 section 2.7.2 (the words).
"""

# ruff: noqa: ERA001  (ABNF looks like code)
from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, NamedTuple

import spf

from mailgate.auth.results import Result, SpfResult
from mailgate.dns.answer import Answer, Answers, Missing, Outcome, Question, RecordType
from mailgate.dns.wire import ImpossibleName, normal_name

MAX_TERMS = 10  # that look something up (RFC 7208 section 4.6.4)
MAX_VOID_TERMS = 2
MAX_HOSTS = 10  # of mx and ptr
MAX_RECORDS_OCTETS = 32_768  # ours, of all records together: more are permerror, since each term costs time
MAX_EXPLANATION_CHARACTERS = 400  # ours: the rest is cut off

_MAX_NAME_CHARACTERS = 253
_MAX_LABEL_CHARACTERS = 63
_MAX_KEPT_CHARACTERS = 4096  # of a record whose terms are remembered

#   version = "v=spf1"
_VERSION = re.compile(rb"v=spf1(?: |\Z)", re.IGNORECASE)
#   modifier = redirect / explanation / unknown-modifier
#   unknown-modifier = name "=" macro-string
#   name = ALPHA *( ALPHA / DIGIT / "-" / "_" / "." )
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9\-_.]*+)=(.*+)", re.DOTALL)
#   macro-expand = ( "%{" macro-letter transformers *delimiter "}" ) / "%%" / "%_" / "%-"
#   transformers = *DIGIT [ "r" ]
#   delimiter    = "." / "-" / "+" / "," / "/" / "_" / "="
_MACRO = re.compile(r"%(?:\{([slodiphcrtv])([0-9]*+)(r?)([.\-+,/_=]*+)\}|([%_-]))", re.IGNORECASE)
# A term that asks for the name that stands in it, or for the current one.
_ASKING = re.compile(
    r"(?:[+\-?~]?include:|redirect=)(?P<record>[^%]++)|[+\-?~]?(?P<host>a|mx)(?::(?P<of>[^%/]++))?(?:/[0-9/]++)?",
    re.IGNORECASE,
)
_PRINTABLE = re.compile(r"[\x20-\x7e]*+")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]++")
_DOMAIN = re.compile(r"[a-z0-9_.\-]++")

# ip4 = "ip4" ":" ip4-network [ ip4-cidr-length ], and ip6 likewise
_NETWORK = re.compile(
    r"[+\-?~]?ip(?P<version>[46]):(?P<address>[0-9a-f.:]++)(?:/(?P<length>0|[1-9][0-9]{0,2}))?", re.IGNORECASE
)

_LITERAL_MACROS = {"%": "%", "_": " ", "-": "%20"}
_FOR_EXPLANATIONS = frozenset("crt")

# What a name comes to that is made of a local part beyond ASCII: a term with it matches nothing (RFC 8616 section 4).
_NOWHERE = "\N{REPLACEMENT CHARACTER}"

Identity = Literal["helo", "mailfrom"]


def domain_of(name: str) -> str | None:
    """The domain in A-form that SPF can be asked about, or None: no name, or one without a dot (section 4.3)."""
    try:
        domain = normal_name(name)
    except ImpossibleName:
        return None
    _, dot, top = domain.rpartition(".")
    return domain if dot and not top.isdigit() and _DOMAIN.fullmatch(domain) else None


def check(
    identity: Identity,
    client_address: str,
    sender: str,
    helo: str,
    receiver: str,
    answers: Answers,
    now: float,
) -> SpfResult:
    """The result for one identity.

    `sender` is the reverse-path, "" for the null path, and says nothing for the identity "helo". `receiver` is our
    name, `now` seconds since the epoch; both are used in explanations only.

    @raises Missing: answers are needed.
    """
    local, _, name = sender.rpartition("@")
    if identity == "helo" or not sender:
        local, name = "postmaster", helo
    domain = domain_of(name)
    if domain is None:
        return SpfResult(identity, name, f"{local}@{name}", Result.NONE, problem="this is no domain to ask about")
    query = _Query(client_address, local, domain, helo, receiver, answers, now)
    return query.result(identity, f"{local}@{domain}")


def _as_meant(local: str) -> str:
    """The local part without its quotes, which are not part of it (RFC 5321 section 4.1.2); it is never empty."""
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1], flags=re.DOTALL)
    return local or "postmaster"  # RFC 7208 section 4.3


class _Query(spf.query):  # type: ignore[misc]  # pyspf has no types
    """One evaluation by pyspf, whose look-ups are answered from what is known.

    Single letters are pyspf's: they are the macros.
    """

    def __init__(
        self, client_address: str, local: str, domain: str, helo: str, receiver: str, answers: Answers, now: float
    ) -> None:
        local = _as_meant(local)
        super().__init__(i=client_address.partition("%")[0], s=f"{local}@{domain}", h=helo, receiver=receiver)
        self.l, self.o, self.d = local, domain, domain
        self.p: str | None = None
        self.t = str(int(now))
        self.set_default_explanation("")
        self._answers = answers
        self._missing: set[Question] = set()
        self._record: str | None = None  # the domain's own
        self._record_octets = 0  # of all records so far
        self._explained_domain = ""  # what %{d} means in the explanation
        self._is_term_void = False

    def result(self, identity: Identity, sender: str) -> SpfResult:
        """What pyspf comes to. @raises Missing: answers are needed."""
        domain = self.o
        explanation = problem = ""
        try:
            word, _, text = self.check()
            if word == "fail" and text:
                explanation = self._explanation(text)
            if word in ("temperror", "permerror"):
                problem = text.partition(": ")[2]
        except Missing:
            raise
        except Exception as error:  # whatever else pyspf does not foresee is the record's fault
            word, problem = "permerror", f"it can't be evaluated: {type(error).__name__}"
        if self._missing:
            raise Missing(self._missing)
        mechanism = ""
        if word not in ("none", "temperror", "permerror"):
            mechanism = self.mechanism or "default"
        return SpfResult(
            identity,
            domain,
            sender,
            Result(word),
            mechanism=mechanism,
            record=self._record or "",
            explanation=explanation,
            problem=_one_line(problem),
            evidence=tuple(self._answers.used.values()),
        )

    # Looking up

    def _ask(self, name: str, record_type: RecordType) -> Answer:
        try:
            return self._answers.get(name, record_type)
        except Missing as missing:
            # pyspf has two bare excepts that would swallow it.
            self._missing |= missing.questions
            raise

    def dns(self, name: str, qtype: str, cnames: object = None, ignore_void: bool = False) -> list[Any]:
        """The records, in pyspf's form. @raises spf.TempError: they can't be known now."""
        name = name.removesuffix(".").lower()
        if not _is_possible(name):
            return []
        record_type = RecordType(qtype)
        answer = self._ask(name, record_type)
        match answer.outcome:
            case Outcome.ANSWER:
                return [(record,) for record in answer.records] if qtype == "TXT" else list(answer.records)
            case Outcome.FAILURE:
                raise spf.TempError(f"{record_type.value} of {name} can't be looked up now")
            case Outcome.NXDOMAIN | Outcome.NODATA:
                is_ipv4_host = record_type is RecordType.AAAA and answer.outcome is Outcome.NODATA
                if not ignore_void and not is_ipv4_host:
                    self._count_void()
                return []

    def _count_void(self) -> None:
        if not self._is_term_void:
            self._is_term_void = True
            self.void_lookups += 1
            if self.void_lookups > MAX_VOID_TERMS:
                raise spf.PermError(f"more than {MAX_VOID_TERMS} terms ask for what does not exist")

    def check_lookups(self) -> None:
        """Nothing: pyspf calls it for `redirect=` before it is known whether that will be followed."""

    def _count_term(self) -> None:
        self.lookups += 1
        self._is_term_void = False
        if self.lookups > MAX_TERMS:
            raise spf.PermError(f"more than {MAX_TERMS} terms look something up")

    def dns_spf(self, domain: str) -> str | None:
        """The domain's record, or None. @raises spf.PermError: there are several, or it is malformed."""
        is_own = self._record is None
        if is_own:
            self._record = ""
        else:
            self._count_term()
        if domain == _NOWHERE:
            return "v=spf1"
        records = [text for text in self.dns_txt(domain) if _VERSION.match(text)]
        if not records:
            return None
        if len(records) > 1:
            raise spf.PermError(f"{domain} has {len(records)} SPF records")
        record: str = records[0].decode("ascii", "backslashreplace")
        if is_own:
            self._record = record
        self._record_octets += len(records[0])
        if self._record_octets > MAX_RECORDS_OCTETS:
            raise spf.PermError(f"the records have more than {MAX_RECORDS_OCTETS} octets")
        if not records[0].isascii() or not _PRINTABLE.fullmatch(record):
            raise spf.PermError(f"the record of {domain} holds what is not printable ASCII")
        return record

    def dns_a(self, domainname: str, A: str = "A") -> list[str]:  # noqa: N803  # pyspf's name
        """The addresses of a name: the mechanisms `a` and `exists`."""
        self._count_term()
        return self._addresses(domainname, A)

    def _addresses(self, name: str, record_type: str, *, ignore_void: bool = False) -> list[str]:
        return self.dns(name, record_type, ignore_void=ignore_void) if name else []

    def _expect_addresses(self, names: Iterable[str]) -> None:
        self._answers.expect(Question(name, RecordType(self.A)) for name in names if _is_possible(name))

    def dns_mx(self, domainname: str) -> Iterator[str]:
        """The addresses of the hosts that take a domain's mail, in order: the mechanism `mx`."""
        self._count_term()
        hosts = sorted(self.dns(domainname, "MX"))
        if len(hosts) > MAX_HOSTS:
            raise spf.PermError(f"{domainname} has more than {MAX_HOSTS} MX records")
        self._expect_addresses(host for _, host in hosts)
        return (address for _, host in hosts for address in self._addresses(host, self.A))

    def validated_ptrs(self) -> list[str]:
        """The client's names that lead back to it: the mechanism `ptr`."""
        self._count_term()
        return self._validated_names(ignore_void=False)

    def _validated_names(self, *, ignore_void: bool) -> list[str]:
        reverse = ipaddress.ip_address(self.c).reverse_pointer
        try:
            names = self.dns(reverse, "PTR", ignore_void=ignore_void)[:MAX_HOSTS]
        except spf.TempError:
            return []
        self._expect_addresses(names)
        return [name for name in names if self._leads_back(name, ignore_void=ignore_void)]

    def _leads_back(self, name: str, *, ignore_void: bool) -> bool:
        try:
            return self.cidrmatch(self._addresses(name, self.A, ignore_void=ignore_void), self.cidrmax)
        except spf.TempError:
            return False

    def getp(self) -> str:
        """The value of `%{p}`."""
        if self.p is None:
            names = self._validated_names(ignore_void=True)
            below = [name for name in names if name.endswith("." + self.d)]
            self.p = self.d if self.d in names else (below + names + ["unknown"])[0]
        return self.p

    def cidrmatch(self, ipaddrs: Iterable[str], n: int) -> bool:
        """Whether one of the addresses has its first n bits in common with the client's."""
        ignored = self.cidrmax - n
        own = int(self.ipaddr) >> ignored
        return any(_number(address) >> ignored == own for address in ipaddrs)

    # Explanations

    def get_explanation(self, spec: str) -> str:
        """The name where the explanation would be found; it is looked up once it is wanted."""
        return spec

    def set_explanation(self, exp: str) -> None:
        """Keep that name, and what `%{d}` means there."""
        super().set_explanation(exp)
        self._explained_domain = self.d

    def _explanation(self, name: str) -> str:
        self.d = self._explained_domain
        try:
            texts = self.dns_txt(name, ignore_void=True)
            if len(texts) != 1:
                return ""
            return _one_line(self.expand(texts[0].decode("ascii"), stripdot=False))
        except (spf.TempError, spf.PermError, UnicodeDecodeError):
            return ""

    # Terms and macros

    def check0(self, record: str | None, recursion: int) -> Any:
        """Evaluate a record, its modifiers in the form that pyspf takes."""
        if record:
            self._answers.expect(self._questions_of(record, self.d))
            terms = _read(record) if len(record) <= _MAX_KEPT_CHARACTERS else tuple(_terms(record))
            record = " ".join(self._relevant(terms))
        return super().check0(record, recursion)

    def _relevant(self, terms: Iterable[str | _Network]) -> Iterator[str]:
        """The terms without the networks that the client is not in, which change nothing."""
        own = int(self.ipaddr)
        for term in terms:
            if isinstance(term, str):
                yield term
            elif term.address_bits == self.cidrmax and own >> term.ignored_bits == term.prefix:
                yield term.text

    def _questions_of(self, record: str, domain: str) -> Iterator[Question]:
        """What the terms of a record ask for, as far as that stands in it, and as many as may be evaluated."""
        kinds = {None: RecordType.TXT, "a": RecordType(self.A), "mx": RecordType.MX}
        for term in islice(filter(None, map(_ASKING.fullmatch, record.split(" "))), MAX_TERMS):
            name = (term["record"] or term["of"] or domain).removesuffix(".").lower()
            if _is_possible(name):
                yield Question(name, kinds[term["host"] and term["host"].lower()])

    def validate_mechanism(self, mech: str) -> Any:
        """Read a mechanism. @raises spf.PermError: it is malformed."""
        try:
            return super().validate_mechanism(mech)
        except ValueError as error:  # more digits than Python reads
            raise spf.PermError("a number is too long", mech[:40]) from error

    def expand_domain(self, arg: str) -> str:
        """The name that a domain-spec comes to. @raises spf.PermError: it is malformed."""
        if not _ends_well(arg):
            raise spf.PermError("this is no domain-spec", arg[:80])
        name = self.expand(arg)
        if not self.l.isascii() and any((macro[1] or "-") in "sSlL" for macro in _MACRO.finditer(arg)):
            return _NOWHERE
        return name

    def expand(self, s: str, stripdot: bool = True) -> str:
        """The text with its macros expanded; as a name where `stripdot` is true. @raises spf.PermError: malformed."""
        if "%" in s:
            _check_macros(s)
            s = _MACRO.sub(self._in_explanation if not stripdot else self._in_name, s)
        if not stripdot:
            return s
        s = s.removesuffix(".")
        # Labels are dropped on the left until it fits; where one is too long, nothing is left of a name anyway.
        return s if len(s) <= _MAX_NAME_CHARACTERS else s[s.find(".", len(s) - _MAX_NAME_CHARACTERS - 1) + 1 :]

    def _in_name(self, macro: re.Match[str]) -> str:
        letter = macro[1]
        if letter and letter.lower() in _FOR_EXPLANATIONS:
            raise spf.PermError("this macro is for explanations only", macro[0][:40])
        return self._in_explanation(macro)

    def _in_explanation(self, macro: re.Match[str]) -> str:
        letter, digits, reverse, delimiters, literal = macro.groups()
        if literal:
            return _LITERAL_MACROS[literal]
        value = self.getp() if letter in "pP" else str(getattr(self, letter.lower()))
        if digits or reverse or delimiters:
            value = _transformed(value, digits, reverse != "", delimiters or ".")
        return urllib.parse.quote(value, safe="", errors="replace") if letter.isupper() else value


class _Network(NamedTuple):
    """A well-formed `ip4:` or `ip6:`."""

    text: str
    address_bits: int
    ignored_bits: int
    prefix: int  # the address without those


@lru_cache(maxsize=2048)
def _read(record: str) -> tuple[str | _Network, ...]:
    """As `_terms`; the records of large providers come again and again."""
    return tuple(_terms(record))


def _terms(record: str) -> Iterator[str | _Network]:
    """The known terms of a record, with networks already read. @raises spf.PermError: it is malformed."""
    for term in _known_terms(record):
        match = _NETWORK.fullmatch(term)
        yield term if match is None else _network(match)


def _network(match: re.Match[str]) -> str | _Network:
    """The network, or the term as it stands where it may be malformed: pyspf says what is wrong with it."""
    address, length = match["address"], match["length"]
    is_ipv6 = match["version"] == "6"
    if not (spf.RE_IP6 if is_ipv6 else spf.RE_IP4).match(address):
        return match[0]
    try:
        number = int((ipaddress.IPv6Address if is_ipv6 else ipaddress.IPv4Address)(address))
    except ValueError:
        return match[0]
    bits = 128 if is_ipv6 else 32
    ignored = bits - int(length or bits)
    return _Network(match[0], bits, ignored, number >> ignored) if ignored >= 0 else match[0]


def _known_terms(record: str) -> Iterator[str]:
    """The version, the mechanisms, and the modifiers that mean something. @raises spf.PermError: it is malformed."""
    version, *terms = record.split(" ")
    yield version
    for term in terms:
        modifier = _MODIFIER.fullmatch(term)
        if modifier is None:
            yield term
        elif modifier[1].lower() in ("redirect", "exp"):
            yield f"{modifier[1].lower()}={modifier[2]}"
        else:
            _check_macros(modifier[2])


def _check_macros(text: str) -> None:
    """Return if each percent sign begins a macro. @raises spf.PermError: one does not."""
    if "%" in _MACRO.sub("", text):
        raise spf.PermError("a percent sign begins no macro", text[:80])


#   domain-spec = macro-string domain-end
#   domain-end  = ( "." toplabel [ "." ] ) / macro-expand
#   toplabel    = ( *alphanum ALPHA *alphanum ) / ( 1*alphanum "-" *( alphanum / "-" ) alphanum )
def _ends_well(spec: str) -> bool:
    if any(macro.end() == len(spec) for macro in _MACRO.finditer(spec)):
        return True
    _, dot, top = spec.removesuffix(".").rpartition(".")
    return dot != "" and top[:1] != "-" and top[-1:] != "-" and top.replace("-", "").isalnum() and not top.isdigit()


def _transformed(value: str, digits: str, is_reversed: bool, delimiters: str) -> str:
    """The value split, turned round, its last parts taken, and joined with dots (section 7.3)."""
    parts = re.split(f"[{re.escape(delimiters)}]", value)
    if is_reversed:
        parts.reverse()
    if digits:
        count = digits.lstrip("0")
        if not count:
            raise spf.PermError("a macro takes no label at all")
        if len(count) < 4:  # else there are fewer anyway
            parts = parts[-int(count) :]
    return ".".join(parts)


def _is_possible(name: str) -> bool:
    """Whether there can be such a name."""
    return (
        0 < len(name) <= _MAX_NAME_CHARACTERS
        and name.isascii()
        and all(0 < len(label) <= _MAX_LABEL_CHARACTERS for label in name.split("."))
    )


@lru_cache(maxsize=4096)
def _number(address: str) -> int:
    try:
        return int(ipaddress.ip_address(address))
    except ValueError as error:
        raise spf.PermError("this is no address", address[:80]) from error


def _one_line(text: str) -> str:
    return _NOT_PRINTABLE.sub("?", text)[:MAX_EXPLANATION_CHARACTERS]
