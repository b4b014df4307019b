"""What a policy's configuration is in the record: all of its options as JSON, and a fingerprint of them.

Two nodes, or two starts, with the same options have the same fingerprint; so a verdict of last month names the options
that it was given under, whatever the configuration file says by now.

An option whose field is declared with `repr=False` is a secret: it counts for the fingerprint, and is not shown.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

_DIGITS = 12
_SECRET = "(not shown)"  # noqa: S105  # what stands for one


@dataclass(frozen=True, slots=True)
class PolicyConfiguration:
    """A policy and its options."""

    fingerprint: str  # 12 hexadecimal digits
    policy: str  # as `use` names it
    options: str  # a JSON object


def configuration_of(policy: str, options: Any) -> PolicyConfiguration:  # Any: a dataclass of the policy's own, or None
    """The configuration of a policy, whose options are a dataclass of its own."""
    whole = _canonical([policy, _plain(options, shows_secrets=True)])
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
    return PolicyConfiguration(digest[:_DIGITS], policy, _canonical(_plain(options, shows_secrets=False) or {}))


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any, *, shows_secrets: bool) -> Any:  # Any: what JSON is
    """The value as JSON has it; what has no order is sorted."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), shows_secrets=shows_secrets)
            if field.repr or shows_secrets
            else _SECRET
            for field in fields(value)
        }
    match value:
        case str():
            return value.replace("\0", "\ufffd")  # which PostgreSQL has no way to keep
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float():
            return value
        case Enum():
            return _plain(value.value, shows_secrets=shows_secrets)
        case Mapping():
            return {str(key): _plain(item, shows_secrets=shows_secrets) for key, item in value.items()}
        case Set():
            return sorted((_plain(item, shows_secrets=shows_secrets) for item in value), key=_canonical)
        case list() | tuple():
            return [_plain(item, shows_secrets=shows_secrets) for item in value]
        case _:
            return str(value)  # an address, a network, a path
