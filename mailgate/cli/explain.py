"""`mailgate explain`: why something became of an id what did: the checks, what they rest on, and the rule that decided.

The id may have stood in a reply, a header or a line of the log: that of a message, a transaction or a session. Shown is
what the record has; nothing is checked anew, and nothing is asked in the DNS. What a message says is for `mailgate
show`.

Standards: RFC 8601 (the words for results), RFC 9990 section 3.1.5 (reasons for overrides).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import click

from mailgate.cli.address import readable, readable_address
from mailgate.cli.database import Database, Failure, Invocation, pass_invocation
from mailgate.cli.output import clean, json_line, local_time, print_fields, size
from mailgate.cli.queue import Attempt
from mailgate.cli.record import Session
from mailgate.cli.show import Transaction, id_argument
from mailgate.ids import encode_id

Json = dict[str, Any]  # Any: what JSON is; an object from a jsonb column, or for --json


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found, what policies said, and what both name: DNS answers and configurations."""

    results: list[Json]
    verdicts: list[Json]
    answers: dict[int, Json]
    configurations: dict[str, Json]

    def answers_of(self, result: Json) -> list[Json]:
        """The answers that a result rests on; one that is not kept any longer has only its digest."""
        return [self.answers.get(digest, {"digest": str(digest)}) for digest in result.get("answers", ())]

    def records(self) -> Json:
        """What JSON says of it: nothing refers to something else any more."""
        return {
            "results": [
                {**result, "answers": self.answers_of(result)} if "answers" in result else result
                for result in self.results
            ],
            "verdicts": [
                {**verdict, "configuration": self.configurations.get(verdict.get("fingerprint", ""))}
                for verdict in self.verdicts
            ],
        }


def _evidence(database: Database, row: tuple[Any, ...] | None) -> Evidence:
    results, verdicts = ([], []) if row is None else (row[0] or [], row[1] or [])
    digests = sorted({digest for result in results for digest in result.get("answers", ())})
    fingerprints = sorted({verdict["fingerprint"] for verdict in verdicts if "fingerprint" in verdict})
    names = ("name", "type", "outcome", "rcode", "records", "ttl_seconds", "is_authenticated", "answered_at", "detail")
    answers = database.rows("dns_answers", digests=digests) if digests else []
    configurations = database.rows("policy_configurations", fingerprints=fingerprints) if fingerprints else []
    return Evidence(
        results,
        verdicts,
        {digest: dict(zip(names, values, strict=True)) for digest, *values in answers},
        {
            fingerprint: {"policy": policy, "options": options, "first_seen_at": first_seen_at}
            for fingerprint, policy, options, first_seen_at in configurations
        },
    )


@dataclass(frozen=True, slots=True)
class Recipient:
    """A forward-path and what became of its copy."""

    position: int
    forward_path: str
    is_accepted: bool
    reply: str
    disposition: str | None
    policy: str | None
    reason: str | None

    def text(self) -> str:
        """For people."""
        if not self.is_accepted:
            return f"{self.forward_path}: {self.reply}" + (f" (policy {self.policy})" if self.policy else "")
        if self.disposition:
            return f"{self.forward_path}: {self.disposition} by {self.policy or 'a policy'}: {self.reason or ''}"
        return self.forward_path

    def record(self) -> Json:
        """What JSON says of it."""
        return {
            "forward_path": self.forward_path,
            "accepted": self.is_accepted,
            "reply": self.reply,
            "disposition": self.disposition,
            "policy": self.policy,
            "reason": self.reason,
        }


@click.command(short_help="Say why a message was accepted, refused or put into Junk.")
@click.argument("identifier", metavar="ID", type=id_argument)
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@pass_invocation
def explain(invocation: Invocation, identifier: int, as_json: bool) -> None:
    """Say what was checked of the transaction, message or session of that ID, and which rule decided.

    The ID is the one of the reply ("550 ... [ID]", "250 ... Accepted as ID"), of our Received field, or of the log.
    """
    with invocation.database() as database:
        row = database.row("find_transaction", id=identifier)
        if row is not None:
            _explain_transaction(database, identifier, Transaction(*row), as_json=as_json)
            return
        found = database.row("find_session", id=identifier)
        session = None if found is None else Session(*found)
        ended_at = None if session is None else session.ended_at
        transactions = database.rows("transactions_of", id=identifier, ended_at=ended_at)
        if session is not None or transactions:
            _explain_session(database, identifier, session, transactions, as_json=as_json)
            return
        if database.row("find_message", id=identifier) is not None:
            raise Failure(
                f"message {encode_id(identifier)} is here, and no record of how it came: it was imported, or the record"
                " is not kept any longer"
            )
    raise Failure(
        f"there is no message, transaction or session {encode_id(identifier)} in the record (a session is recorded when"
        " it has ended)"
    )


# ---------------------------------------------------------------- a transaction


def _explain_transaction(database: Database, identifier: int, transaction: Transaction, *, as_json: bool) -> None:
    evidence = _evidence(database, database.row("evidence_of_transaction", id=identifier))
    recipients = [Recipient(*row) for row in database.rows("fates_of", id=identifier)]
    deliveries = database.rows("deliveries_of", id=identifier)
    waiting = [recipient for (recipient,) in database.rows("waiting_for", id=identifier)]
    attempts = [Attempt(*row) for row in database.rows("list_attempts", id=identifier)]
    row = database.row("find_session", id=transaction.session_id)
    session = None if row is None else Session(*row)
    if as_json:
        record = {
            "id": encode_id(identifier),
            "reverse_path": transaction.reverse_path,
            "size_octets": transaction.size_octets,
            "transaction": transaction.record(),
            "recipients": [recipient.record() for recipient in recipients],
            **evidence.records(),
            "deliveries": [
                {"mailbox": readable(local, domain), "folder": folder, "uid": uid, "flags": flags}
                for local, domain, folder, uid, flags in deliveries
            ],
            "to_be_sent": waiting,
            "attempts": [asdict(attempt) for attempt in attempts],
            "dialogue": None if session is None else session.dialogue.splitlines(),
        }
        click.echo(json_line(record))
        return
    print_fields(
        [
            ("ID", encode_id(identifier)),
            ("When", local_time(transaction.ended_at)),
            ("Client", _client(transaction.client_address, transaction.client_port, transaction.helo)),
            ("Protocol", f"{transaction.protocol} on {transaction.listener} at {transaction.node}"),
            ("TLS", transaction.tls()),
            ("Account", transaction.authenticated or ""),
            ("Envelope from", transaction.reverse_path or "<>"),
            *(("Envelope to", recipient.text()) for recipient in recipients),
            ("Size", size(transaction.size_octets) if transaction.size_octets is not None else ""),
            ("Session", encode_id(transaction.session_id)),
        ]
    )
    _section("What became of it", _outcome(transaction, evidence, recipients))
    _print_evidence(evidence, recipients)
    if transaction.is_kept:
        where = [
            f"{readable(local, domain)}: folder {folder}, UID {uid}" for local, domain, folder, uid, _ in deliveries
        ]
        where += [f"{recipient}: waits to be sent" for recipient in waiting]
        if not where:
            where = ["It has left." if attempts else "Nowhere any more: it has been removed since."]
        _section("Where it is", where)
    if attempts:
        _section("Delivery to other hosts", _tried(attempts))
    if session is not None:
        _section("Dialogue", session.dialogue.splitlines())
    else:
        _section("Dialogue", ["It is recorded when the session has ended."])


def _tried(attempts: Iterable[Attempt]) -> Iterator[str]:
    for attempt in attempts:
        when = local_time(attempt.attempted_at)
        unclear = (
            ", but the host may have it: the connection was lost behind the message" if attempt.is_ambiguous else ""
        )
        yield f"{readable_address(attempt.recipient)}, {when}: {attempt.result}{unclear}"
        if attempt.host:
            place = attempt.address or ""
            place += f" port {attempt.port}" if attempt.port else ""
            yield f"    by {attempt.host} ({place})"
            if attempt.tls_version:
                verified = "verified" if attempt.tls_is_verified else "not verified"
                asked = f", asked for by {attempt.tls_source}" if attempt.tls_source not in (None, "default") else ""
                yield f"    over {attempt.tls_version} {attempt.tls_cipher}, the host's name {verified}{asked}"
            else:
                yield "    in plain text"
        yield f"    {'it said' if attempt.is_remote else 'we say'}: {attempt.reply}"


def _outcome(transaction: Transaction, evidence: Evidence, recipients: Iterable[Recipient]) -> Iterator[str]:
    stage = "" if transaction.is_kept else f" at {transaction.stage}"
    yield f"{transaction.disposition}{stage}: {transaction.reply or 'the client left without a reply'}"
    if transaction.policy:
        yield f"Decided by the policy {transaction.policy}."
    elif transaction.disposition in ("refused", "deferred"):
        deciding = sorted({r.policy for r in recipients if r.policy and not r.is_accepted})
        if deciding:
            yield f"Decided by the policy {', '.join(deciding)}, which took none of the recipients."
        else:
            yield "Decided by the rules of the dialogue itself, not by a policy."
    elif transaction.disposition != "abandoned":
        yield "No policy objected."
    if transaction.reason:
        yield f"Reason: {transaction.reason}"
    for result in evidence.results:
        if result["kind"] == "override":
            yield f"Otherwise than the author's domain asks for: {result.get('reason')} ({result.get('comment')})"


# ---------------------------------------------------------------- a session


def _explain_session(
    database: Database,
    identifier: int,
    session: Session | None,
    transactions: list[tuple[Any, ...]],
    *,
    as_json: bool,
) -> None:
    evidence = _evidence(database, database.row("evidence_of_session", id=identifier))
    if as_json:
        record = {
            "id": encode_id(identifier),
            "session": None if session is None else session.record(),
            **evidence.records(),
            "transactions": [
                {
                    "id": encode_id(id_),
                    "reverse_path": reverse_path,
                    "disposition": disposition,
                    "stage": stage,
                    "policy": policy,
                    "reply": reply,
                }
                for id_, reverse_path, disposition, stage, policy, reply in transactions
            ],
        }
        click.echo(json_line(record))
        return
    if session is None:
        print_fields([("ID", encode_id(identifier)), ("Session", "it has not ended yet, or its record was lost")])
    else:
        print_fields(
            [
                ("ID", encode_id(identifier)),
                ("Began", local_time(session.started_at)),
                ("Ended", f"{local_time(session.ended_at)} ({session.ending})"),
                ("Client", _client(session.client_address, session.client_port, session.helo)),
                ("TLS", " ".join(filter(None, (session.tls_version, session.tls_cipher))) or "none"),
                ("Account", session.authenticated or ""),
                ("Listener", f"{session.listener} at {session.node}"),
            ]
        )
    _print_evidence(evidence, ())
    _section(
        "Transactions",
        [
            f"{encode_id(id_)} from {reverse_path or '<>'}: {disposition} at {stage}"
            + (f" by {policy}" if policy else "")
            + (f": {reply}" if reply else "")
            for id_, reverse_path, disposition, stage, policy, reply in transactions
        ]
        or ["None."],
    )
    if session is not None:
        _section("Dialogue", session.dialogue.splitlines())


# ---------------------------------------------------------------- what both show


def _print_evidence(evidence: Evidence, recipients: Iterable[Recipient]) -> None:
    names = {recipient.position: recipient.forward_path for recipient in recipients}
    _section("Checks", _checks(evidence, names) if evidence.results else ["Nothing was found that is recorded."])
    if evidence.verdicts:
        _section("What policies said", _said(evidence, names))


def _checks(evidence: Evidence, names: dict[int, str]) -> Iterator[str]:
    for result in evidence.results:
        title, *details = _told(result)
        yield title + _about(result, names)
        for detail in details:
            yield f"    {detail}"
        for answer in evidence.answers_of(result):
            yield from _answer(answer)


def _told(result: Json) -> Iterator[str]:
    """A result in words: its title, then what there is to say of it."""
    left = {name: value for name, value in result.items() if name not in ("kind", "recipient", "answers")}

    def take(name: str) -> str:
        return _value(left.pop(name, ""))

    match result["kind"]:
        case "spf":
            yield f"SPF of {take('identity')} {take('domain')}: {take('result')}"
            yield f"sender: {take('sender')}"
            if "mechanism" in left:
                yield f'decided by "{take("mechanism")}" in the record'
        case "dkim":
            number = int(take("position") or 0) + 1
            by = f"by {take('domain')} with the selector {take('selector')}" if "domain" in left else "by nobody"
            yield f"DKIM, signature {number}, {by}: {take('result')}"
            key = f", a key of {take('key_bits')} bits" if "key_bits" in left else ""
            yield f"b={take('signature')}, {take('algorithm')}{key}, for {take('identity')}"
            if "body_length_octets" in left:
                yield f"only the first {take('body_length_octets')} octets of the body are signed (l=)"
            if left.pop("is_testing", False):
                yield "the key says that its domain only tests (t=y)"
        case "dmarc":
            yield f"DMARC of the author's domain {take('author_domain')}: {take('result')}"
            if "policy_domain" in left:
                tests = ", and says that it only tests (t=y)" if left.pop("is_testing", False) else ""
                yield f"{take('policy_domain')} publishes {take('published_policy') or 'nothing'}{tests}"
                yield f"that means for this message: {take('policy') or 'nothing'}"
                aligned = [word for word in ("SPF", "DKIM") if left.pop(f"aligned_{word.lower()}", False)]
                yield f"passed for the author's domain: {' and '.join(aligned) or 'neither SPF nor DKIM'}"
        case "arc":
            yield f"ARC: {take('result')}"
            if "sealers" in left:
                yield f"sealed by {', then by '.join(left.pop('sealers'))}"
            for instance, said in enumerate(left.pop("sealed_results", ()), 1):
                yield f"the results sealed as {instance}: {said}"
        case "author-fault":
            yield f"The author can't be told: {take('problem')}"
        case "trusted-forwarder":
            yield f"A trusted forwarder, {take('sealer')}, handed the message to us"
            yield f"DMARC passed for the author's domain when the message was with {take('witness')}"
        case "override":
            action = take("action")
            yield f"Something else than the author's domain asks for{f': {action}' if action else ''}"
            yield f"because: {take('reason')} ({take('comment')})"
        case kind:
            yield f"{kind}: {take('result')}"
    for name, value in left.items():
        yield f"{name.replace('_', ' ')}: {_value(value)}"


def _about(of: Json, names: dict[int, str]) -> str:
    position = of.get("recipient")
    return "" if position is None else f" (for {names.get(position, f'recipient {position}')})"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(map(_value, value)) or "(none)"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_value(item)}" for name, item in sorted(value.items())) + "}"
    return str(value)


def _answer(answer: Json) -> Iterator[str]:
    if "name" not in answer:
        yield f"    DNS: answer {answer['digest']} is not kept any longer"
        return
    answered_at: datetime = answer["answered_at"]
    said = [f"{answer['name']} {answer['type']}"]
    if answer["outcome"] != "answer":
        rcode = answer["rcode"] or "nobody answered"
        said.append(f"{answer['outcome']} ({', '.join(filter(None, (rcode, answer['detail'])))})")
    said.append(f"TTL {answer['ttl_seconds']} s")
    if answer["is_authenticated"]:
        said.append("authenticated by DNSSEC")
    yield f"    DNS: {', '.join(said)}, at {local_time(answered_at)}"
    for record in answer["records"]:
        yield f"        {record}"


def _said(evidence: Evidence, names: dict[int, str]) -> Iterator[str]:
    shown: set[str] = set()
    for verdict in evidence.verdicts:
        reason = f": {verdict['reason']}" if verdict.get("reason") else ""
        said = f"{verdict['policy']} at {verdict['stage']}: {verdict['verdict']}"
        yield said + reason + _about(verdict, names)
        fingerprint = verdict.get("fingerprint", "")
        configuration = evidence.configurations.get(fingerprint)
        if not fingerprint or fingerprint in shown:
            continue
        shown.add(fingerprint)
        if configuration is None:
            yield f"    configuration {fingerprint}, of which nothing is recorded"
            continue
        since = local_time(configuration["first_seen_at"])
        yield f"    configuration {fingerprint}, of the policy {configuration['policy']}, known since {since}"
        for name, value in sorted(configuration["options"].items()):
            yield f"        {name} = {_value(value)}"


def _client(address: str, port: int | None, helo: str | None) -> str:
    return f"{address}{f' port {port}' if port else ''}{f' ({helo})' if helo else ''}"


def _section(title: str, lines: Iterable[str]) -> None:
    """Print a title and lines; of each line its indentation is kept, and nothing that a terminal would obey."""
    click.echo()
    click.secho(title, bold=True)
    for line in lines:
        text = line.lstrip(" ")
        click.echo(f"  {' ' * (len(line) - len(text))}{clean(text)}")
