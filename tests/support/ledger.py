"""The ledger of a load: what was sent, what was heard of it, and whether the database agrees.

The promise under test: a message that got 250 is stored once and whole, for every recipient; one that got none is
stored once or not at all.

Standards: RFC 5321 section 4.2.5 and 6.1 (what 250 means).
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg2

from mailgate.ids import decode_id

if TYPE_CHECKING:
    from pathlib import Path

SENDER = "bob@example.org"


@dataclass(slots=True)
class Letter:
    """A message, what became of each attempt to send it, and the id that its 250 named."""

    name: str
    recipients: tuple[str, ...]
    octets: bytes
    fates: list[str] = field(default_factory=list)
    accepted_as: int | None = None
    accepted_at: float = 0.0  # by time.monotonic()

    @property
    def sha256(self) -> str:
        """Of the content."""
        return hashlib.sha256(self.octets).hexdigest()


class Ledger:
    """Every letter of a load. Also on disk, a line an event, for whoever looks for the cause."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.letters: list[Letter] = []
        self.refusals: list[str] = []  # replies that no good message should hear: 5xx
        self.delays: list[str] = []  # 4xx
        self._lock = threading.Lock()

    def add(self, letter: Letter) -> None:
        """A letter is about to be sent for the first time."""
        with self._lock:
            self.letters.append(letter)
            self._write(letter, "written", sha256=letter.sha256, recipients=letter.recipients)

    def note(self, letter: Letter, fate: str, reply: str = "") -> None:
        """One attempt has ended."""
        with self._lock:
            letter.fates.append(fate)
            if fate == "accepted":
                letter.accepted_at = time.monotonic()
                letter.accepted_as = decode_id(reply.rpartition(" ")[2])
            self._write(letter, fate, reply=reply)
            self._sort(reply)

    def heard(self, reply: str) -> None:
        """A refusal or delay before any letter was sent."""
        with self._lock:
            self._sort(reply)

    def accepted(self) -> int:
        """How many letters got their 250."""
        return sum(letter.accepted_as is not None for letter in self.letters)

    def first_accepted_after(self, moment: float) -> float | None:
        """When the first 250 after that moment was heard, by time.monotonic()."""
        return min((letter.accepted_at for letter in tuple(self.letters) if letter.accepted_at > moment), default=None)

    def findings(self, dsn: str) -> list[str]:
        """Where the database breaks the promise; empty where it keeps it."""
        with closing(psycopg2.connect(dsn)) as database, database.cursor() as cursor:
            cursor.execute(_MESSAGES)
            stored: dict[str, list[tuple[int, bool, list[str], list[str]]]] = {}
            for identifier, sha256, is_whole, mailboxes, recipients in cursor:
                stored.setdefault(sha256, []).append((identifier, is_whole, mailboxes, recipients))
            cursor.execute(_MAILBOXES)
            findings = [f"mailbox {row[0]}: {row[1:]}" for row in cursor if len(set(row[1:5])) > 1 or row[5] != row[6]]
        known = set()
        for letter in self.letters:
            known.add(letter.sha256)
            findings += _compare(letter, stored.get(letter.sha256, []))
        findings += [f"nobody has sent {rows}" for sha256, rows in stored.items() if sha256 not in known]
        return findings

    def _sort(self, reply: str) -> None:
        if reply.startswith("5"):
            self.refusals.append(reply)
        elif reply.startswith("4"):
            self.delays.append(reply)

    def _write(self, letter: Letter, event: str, **more: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"at": time.monotonic(), "letter": letter.name, "event": event, **more}) + "\n")


def _compare(letter: Letter, rows: list[tuple[int, bool, list[str], list[str]]]) -> list[str]:
    """What is wrong with how one letter is stored."""
    what = f"{letter.name} of {len(letter.octets)} octets ({', '.join(letter.fates)})"
    if len(rows) > 1:
        return [f"{what} is stored {len(rows)} times: {rows}"]
    if not rows:
        return [] if letter.accepted_as is None else [f"{what} is lost"]
    ((identifier, is_whole, mailboxes, recipients),) = rows
    findings = []
    if letter.accepted_as not in (None, identifier):
        findings.append(f"{what} is stored as {identifier}, and 250 said {letter.accepted_as}")
    if not is_whole:
        findings.append(f"{what} is not whole")
    if mailboxes != sorted(letter.recipients):
        findings.append(f"{what} is for {sorted(letter.recipients)} and is with {mailboxes}")
    if recipients != sorted(letter.recipients):
        findings.append(f"{what} is for {sorted(letter.recipients)}, and the record has {recipients}")
    return findings


_MESSAGES = """
SELECT m.id, encode(m.sha256, 'hex'),
       m.sha256 = sha256(content.octets) AND m.size_octets = octet_length(content.octets) AND t.id IS NOT NULL,
       ARRAY(SELECT b.local_part || '@' || o.name
             FROM mailgate.delivery d
             JOIN mailgate.mailbox b ON b.id = d.mailbox_id
             JOIN mailgate.domain o ON o.id = b.domain_id
             WHERE d.message_id = m.id ORDER BY 1),
       ARRAY(SELECT r.forward_path FROM mailgate.recipient r WHERE r.transaction_id = m.id ORDER BY 1)
FROM mailgate.message m
LEFT JOIN mailgate.transaction t ON t.id = m.id,
LATERAL (SELECT coalesce(m.content, (SELECT string_agg(p.octets, ''::bytea ORDER BY p.position)
                                     FROM mailgate.message_piece p WHERE p.message_id = m.id)) AS octets) AS content
"""

# Nothing is ever removed here, so that the numbers of a mailbox are 1 to the count of its deliveries, without a gap.
_MAILBOXES = """
SELECT u.mailbox_id, u.messages, u.uid_next - 1, count(d.uid), coalesce(max(d.uid), 0),
       u.octets, coalesce(sum(m.size_octets), 0)
FROM mailgate.mailbox_usage u
LEFT JOIN mailgate.delivery d USING (mailbox_id)
LEFT JOIN mailgate.message m ON m.id = d.message_id
GROUP BY u.mailbox_id
"""
