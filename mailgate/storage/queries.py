"""The statements of `queries.sql` by name.

A statement is a template in octets: `QUERIES["name"] % {b"parameter": octets}`. What is put in has been made by
`mailgate.storage.literal`.
"""

from __future__ import annotations

import re
from importlib import resources

_STATEMENT = re.compile(r"^-- (\w+): [^\n]*\n(.*?)(?=^-- \w+: |\Z)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"^ *-- .*(?:\n|\Z)", re.MULTILINE)


def read_queries(source: str) -> dict[str, bytes]:
    """The statements of such a file, without their comments."""
    return {
        match[1]: " ".join(_COMMENT.sub("", match[2]).split()).encode("ascii") for match in _STATEMENT.finditer(source)
    }


QUERIES = read_queries(resources.files("mailgate.storage").joinpath("queries.sql").read_text("utf-8"))
