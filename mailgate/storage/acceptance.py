"""The statement that makes a batch of messages ours: values in, SQL out.

Pure: no I/O, no decision. Which messages share a batch, and what happens when the answer is lost, is decided in
`mailgate.storage.mailbox`; what the statement does is said in schema.sql at `accept_messages`.

Standards: RFC 5321 section 4.5.3.1.8 and RFC 3461 (what is kept of the envelope).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mailgate.envelope import ForwardDestination, MailboxDestination, Resolution
from mailgate.ids import encode_id
from mailgate.message import readable_field
from mailgate.policy.verdict import Discard, Opinion, Quarantine
from mailgate.smtp.trace import protocol_word
from mailgate.storage import literal
from mailgate.storage.queries import QUERIES
from mailgate.storage.queued import QueueEntry, done_entry_of, entry_of, queue_column
from mailgate.storage.records import Disposition

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mailgate.policy.stage import RecipientView, SessionView, TransactionView
    from mailgate.storage.evidence import Evidence
    from mailgate.storage.records import IncomingMessage

FIELD_CHARS = 300  # of From, Subject and Message-ID, for people

_FOLDERS = {Disposition.ACCEPTED: "INBOX", Disposition.QUARANTINED: "Junk"}
_REFUSALS = frozenset({"reject", "defer"})
_NO_END = (None, None, None)  # of a recipient whose copy became what the message did


class NoDestination(Exception):
    """An accepted message leads nowhere; it must not be answered with 250."""


def resend_key(message: IncomingMessage) -> bytes:
    """What a message has in common with its resend: client network, envelope and content. 16 octets.

    Recipients count without order: a client may sort them anew. Refused ones don't count.
    """
    transaction = message.transaction
    paths = sorted([str(recipient.forward_path) for recipient in transaction.recipients if recipient.accepted])
    said = "\n".join([message.session.client_network, str(transaction.reverse_path), *paths])
    # What we add (a Date, a Message-ID) is another each time.
    content_sha256 = message.received_sha256 or message.content.sha256
    return hashlib.sha256(said.encode("utf-8", "surrogatepass") + b"\0" + content_sha256).digest()[:16]


def accept_statement(
    messages: Sequence[IncomingMessage],
    resend_keys: Sequence[bytes],
    evidence: Evidence,
    *,
    instance: int,
    node: str,
    confirmed: Collection[int] = (),
    lost: Collection[int] = (),
    is_in_pieces: bool = False,
) -> bytes:
    """The statement for these messages, whose ids are all different.

    `evidence` is theirs, in the same order. `is_in_pieces`: their content is in message_piece already.

    @raises NoDestination: one of them leads nowhere.
    """
    sessions = [message.session for message in messages]
    transactions = [message.transaction for message in messages]
    contents = [message.content for message in messages]
    headers = [content.header() for content in contents]
    deliveries = _Deliveries()
    for message in messages:
        deliveries.add(message)
    values = {
        "instance": str(instance),
        "node": literal.text(node),
        "confirmed": literal.number_array(confirmed),
        "lost": literal.number_array(lost),
        "session_id": literal.number_array([session.id for session in sessions]),
        "resend_key": "'{" + ",".join([key.hex() for key in resend_keys]) + "}'",
        "disposition": literal.text_array([message.disposition.value for message in messages]),
        "policy": literal.text_array([message.policy or None for message in messages]),
        "reason": literal.text_array([message.reason or None for message in messages]),
        "reply": literal.text_array([message.reply for message in messages]),
        "received_at": literal.number_array([message.received_at for message in messages]),
        "header_from": literal.text_array([readable_field(header, b"From", FIELD_CHARS) for header in headers]),
        "subject": literal.text_array([readable_field(header, b"Subject", FIELD_CHARS) for header in headers]),
        "header_message_id": literal.text_array(
            [readable_field(header, b"Message-ID", FIELD_CHARS) for header in headers]
        ),
        "size_octets": literal.number_array([content.size_octets for content in contents]),
        "sha256": literal.short_octets_array([content.sha256 for content in contents]),
        **transaction_columns(sessions, transactions, evidence),
        **recipient_columns(transactions),
        **deliveries.columns(),
        **evidence.answer_columns(),
    }
    octets = {name.encode("ascii"): literal.encoded(value) for name, value in values.items()}
    octets[b"trace"] = literal.octets_array([message.trace for message in messages])
    octets[b"content"] = b"NULL" if is_in_pieces else literal.octets_array([content.joined() for content in contents])
    return QUERIES["accept_messages"] % octets


def transaction_columns(
    sessions: Sequence[SessionView], transactions: Sequence[TransactionView], evidence: Evidence
) -> dict[str, str]:
    """What the record keeps of any transaction, accepted or not: arrays by the names of columns."""
    paths = [transaction.reverse_path for transaction in transactions]
    parameters = [path.parameters for path in paths]
    return {
        "id": literal.number_array([transaction.id for transaction in transactions]),
        "listener": literal.text_array([session.listener for session in sessions]),
        "client_address": client_addresses(sessions),
        "helo": literal.text_array([session.helo for session in sessions]),
        "protocol": literal.text_array(
            [
                protocol_word(session, is_smtputf8=given.smtputf8)
                for session, given in zip(sessions, parameters, strict=True)
            ]
        ),
        "authenticated": literal.text_array([session.authenticated for session in sessions]),
        "reverse_path": literal.text_array([str(path) for path in paths]),
        "body": literal.text_array([given.body for given in parameters]),
        "is_smtputf8": literal.number_array([given.smtputf8 for given in parameters]),
        "ret": literal.text_array([given.ret for given in parameters]),
        "envid": literal.text_array([given.envid for given in parameters]),
        "started_at": literal.number_array([transaction.started_at for transaction in transactions]),
        "results": literal.text_array(evidence.results),
        "verdicts": literal.text_array(evidence.verdicts),
    }


def recipient_columns(transactions: Sequence[TransactionView]) -> dict[str, str]:
    """Every RCPT of these transactions, refused ones included: arrays by the names of columns."""
    rows = [
        (transaction.id, position, recipient)
        for transaction in transactions
        for position, recipient in enumerate(transaction.recipients)
    ]
    paths = [recipient.forward_path for _, _, recipient in rows]
    notify = [path.parameters.notify for path in paths]
    ends = [_end_of(recipient) for _, _, recipient in rows]
    return {
        "recipient_transaction_id": literal.number_array([identifier for identifier, _, _ in rows]),
        "recipient_position": literal.number_array([position for _, position, _ in rows]),
        "recipient_forward_path": literal.text_array([str(path) for path in paths]),
        "recipient_is_accepted": literal.number_array([recipient.accepted for _, _, recipient in rows]),
        "recipient_reply": literal.text_array(
            [
                recipient.reply.text("" if recipient.accepted else encode_id(identifier))
                for identifier, _, recipient in rows
            ]
        ),
        "recipient_notify": literal.text_array(
            [None if words is None else "{" + ",".join(sorted(words)) + "}" for words in notify]
        ),
        "recipient_orcpt": literal.text_array([path.parameters.orcpt for path in paths]),
        "recipient_disposition": literal.text_array([disposition for disposition, _, _ in ends]),
        "recipient_policy": literal.text_array([policy for _, policy, _ in ends]),
        "recipient_reason": literal.text_array([reason for _, _, reason in ends]),
    }


def _end_of(recipient: RecipientView) -> tuple[str | None, str | None, str | None]:
    """What became of one recipient's copy, which policy wanted that, and why; of a refused one only the policy."""
    fate = recipient.fate
    if not recipient.accepted:
        refusals = (note for note in recipient.notes if isinstance(note, Opinion) and note.verdict in _REFUSALS)
        refusal = next(refusals, None)
        return None, refusal.policy if refusal is not None else None, None
    if fate is None:
        return _NO_END
    disposition = Disposition.QUARANTINED if isinstance(fate.verdict, Quarantine) else Disposition.DISCARDED
    return disposition.value, fate.policy or None, fate.verdict.reason or None


def client_addresses(sessions: Sequence[SessionView]) -> str:
    """The clients' addresses, without the zones of link-local ones, which inet doesn't take."""
    return literal.text_array([session.client_address.partition("%")[0] for session in sessions])


def _in_order_of_fate(recipients: Sequence[RecipientView]) -> list[tuple[int, RecipientView]]:
    """The recipients whose copy is not discarded, with their positions; those whose copy is quarantined come last.

    So a mailbox that several of them lead to has the message in Junk only if all of them want that.
    """
    kept = [
        (position, recipient)
        for position, recipient in enumerate(recipients)
        if recipient.fate is None or not isinstance(recipient.fate.verdict, Discard)
    ]
    kept.sort(key=lambda each: each[1].fate is not None)
    return kept


class _Deliveries:
    """Where some messages go: mailboxes, and addresses elsewhere; none twice for one message."""

    __slots__ = ("deliveries", "queued")

    def __init__(self) -> None:
        self.deliveries: list[tuple[int, int, str, str | None, int, float]] = []
        self.queued: list[QueueEntry] = []

    def add(self, message: IncomingMessage) -> None:
        identifier = message.transaction.id
        received_at = message.received_at
        is_null = message.transaction.reverse_path.address is None
        seen: set[int | str] = set()
        for position, recipient in _in_order_of_fate(message.transaction.recipients):
            resolution = recipient.note(Resolution) if recipient.accepted else None
            if resolution is None:
                continue
            folder = _FOLDERS[message.disposition if recipient.fate is None else Disposition.QUARANTINED]
            notify = recipient.forward_path.parameters.notify
            is_told = notify is not None and "SUCCESS" in notify and not is_null
            forwards: list[ForwardDestination] = []
            destinations = resolution.destinations
            if folder == "Junk":
                # Whoever forwards junk is taken for its source: that copy stays here, or nowhere.
                destinations = tuple(each for each in destinations if isinstance(each, MailboxDestination))
            for destination in destinations:
                match destination:
                    case MailboxDestination(mailbox_id, _, detail):
                        if mailbox_id not in seen:
                            seen.add(mailbox_id)
                            size_octets = message.content.size_octets
                            self.deliveries.append(
                                (identifier, mailbox_id, folder, detail or None, size_octets, received_at)
                            )
                    case ForwardDestination(address):
                        if address not in seen:
                            seen.add(address)
                            forwards.append(destination)
            # RFC 3461 section 5.2.7: an alias of one address hands the request on; with several, the success that can
            # be told of is ours, and the next hosts are not asked for it.
            is_expanded = len(destinations) > 1
            for forward in forwards:
                left = notify
                if is_expanded and notify is not None and "SUCCESS" in notify:
                    left = notify - {"SUCCESS"} or frozenset({"NEVER"})
                self.queued.append(entry_of(message, position, forward, left))
            if destinations and is_told and (is_expanded or not forwards):
                self.queued.append(done_entry_of(message, position, "expanded" if forwards else "delivered"))
        if not seen:
            raise NoDestination(f"{encode_id(identifier)} was accepted and leads nowhere")

    def columns(self) -> dict[str, str]:
        return {
            "delivery_message": literal.number_array([row[0] for row in self.deliveries]),
            "delivery_mailbox": literal.number_array([row[1] for row in self.deliveries]),
            "delivery_folder": literal.text_array([row[2] for row in self.deliveries]),
            "delivery_detail": literal.text_array([row[3] for row in self.deliveries]),
            "delivery_size_octets": literal.number_array([row[4] for row in self.deliveries]),
            "delivery_received_at": literal.number_array([row[5] for row in self.deliveries]),
            "queue": queue_column(self.queued),
        }
