"""Our ARC set: what we found of a message that we pass on, signed and sealed.

Three fields: our Authentication-Results, a signature of the message as it leaves, and a seal over all sets so far. The
keys are those of DKIM, and only those for RSA: who verifies ARC by Ed25519 is nobody yet, and a chain with a seal that
the next host can't verify is broken there.

Not here: the validation of the chain so far (`mailgate.auth.arc`), and who seals what (`mailgate.policy.forwarding`).

Standards: RFC 8617 sections 4.1 (fields), 5.1 (sealing), 5.1.1 (what a seal covers) and 5.1.2 (a chain that failed).
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from mailgate.auth.canonical import MalformedHeader, relaxed_field
from mailgate.auth.results import Result
from mailgate.auth.signature import author_problem, read_header
from mailgate.auth.signer import BODY_FORM, message_signatures, signed_names, with_signature

if TYPE_CHECKING:
    from mailgate.auth.canonical import BodyHashes
    from mailgate.auth.private_key import PrivateKey
    from mailgate.auth.results import ArcResult
    from mailgate.auth.signature import SignedHeader

MAX_INSTANCE = 50  # RFC 8617 section 4.2.1

# In the order in which a seal covers the fields of a set (section 5.1.1).
_NAMES = (b"arc-authentication-results", b"arc-message-signature", b"arc-seal")

_INSTANCE = re.compile(rb"(?:^|;)[ \t\r\n]*+i[ \t\r\n]*+=[ \t\r\n]*+([0-9]{1,2})[ \t\r\n]*+(?:;|$)")
_FAILED = re.compile(rb"(?:^|;)[ \t\r\n]*+cv[ \t\r\n]*+=[ \t\r\n]*+fail[ \t\r\n]*+(?:;|$)", re.IGNORECASE)

# What a chain comes to, in the words of cv= (section 4.4). A result that is not final is not among them.
_CHAIN_VALIDATION = {Result.NONE: "none", Result.PASS: "pass", Result.FAIL: "fail"}


def seal(header: bytes, hashes: BodyHashes, arc: ArcResult, results: bytes, key: PrivateKey, now: float) -> bytes:
    """The three fields to put on top, each ending in CRLF; b"" where there is nothing to say.

    `header` is the header section as it leaves below them, `hashes` holds that of BODY_FORM, `arc` is what the chain in
    it has come to, `results` is our Authentication-Results field, and `now` is in seconds since the epoch. Nothing is
    added to a chain that a seal says has failed (RFC 8617 section 5.1), that is full, or that can't be judged now: it
    stays as good as it came.

    @raises MalformedHeader: nobody could verify what we say of this header section.
    """
    chain_validation = _CHAIN_VALIDATION.get(arc.result)
    fields = read_header(header)
    instance = _highest_instance(fields) + 1
    if chain_validation is None or instance > MAX_INSTANCE or _has_failed(fields):
        return b""
    problem = author_problem(fields)
    if problem:
        raise MalformedHeader(problem)
    found = b"ARC-Authentication-Results: i=%d;%s" % (instance, results.partition(b":")[2])
    signature = message_signatures(
        f"ARC-Message-Signature: i={instance}",
        fields,
        # Not ARC fields, nor results: others change those (section 4.1.2).
        signed_names(fields, more=(b"dkim-signature",)),
        hashes[BODY_FORM].sha256,
        (key,),
        now,
    )
    sealed = hashlib.sha256()
    if chain_validation != "fail":
        # Of a chain that fails here, only our own set is sealed, "as if this newest ARC Set was the only set present"
        # (section 5.1.2): the others need not even be readable.
        for older in range(1, instance):
            for name in _NAMES:
                sealed.update(_field_of(fields, name, older))
    sealed.update(relaxed_field(found))
    sealed.update(relaxed_field(signature))
    tags = (f"a={key.algorithm}", f"cv={chain_validation}", f"d={key.domain}", f"s={key.selector}", f"t={int(now)}")
    return with_signature(f"ARC-Seal: i={instance}", tags, key, sealed) + signature + found


def _highest_instance(fields: SignedHeader) -> int:
    """The highest number that any ARC field has; 0 where there is none."""
    found = [_INSTANCE.search(fields.fields[place].value) for name in _NAMES for place in fields.positions(name)]
    return max([int(match[1]) for match in found if match is not None], default=0)


def _has_failed(fields: SignedHeader) -> bool:
    return any(_FAILED.search(fields.fields[place].value) for place in fields.positions(_NAMES[2]))


def _field_of(fields: SignedHeader, name: bytes, instance: int) -> bytes:
    """That field of that set, in canonical form. A chain that did not fail has each exactly once."""
    for place in fields.positions(name):
        match = _INSTANCE.search(fields.fields[place].value)
        if match is not None and int(match[1]) == instance:
            return fields.canonical(place, is_relaxed=True)
    raise MalformedHeader(f"ARC set {instance} is not complete")
