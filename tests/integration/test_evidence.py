"""Results, verdicts and the answers that they rest on: kept with the message, or behind the reply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mailgate.policy.stage import RecipientView
from mailgate.policy.verdict import Discard, Fate, Opinion, Quarantine
from mailgate.smtp.reply import reply
from mailgate.storage.evidence import digest_of
from mailgate.storage.journal import Journal
from mailgate.storage.records import IncomingMessage
from tests.support.evidence import DKIM, DMARC, OPINION, RESULTS, SPF, SPF_RECORD, answer
from tests.support.messages import ended, incoming, recipient, refused
from tests.support.waiting import reactor
from tests.support.writing import WritingTestCase


def with_notes(record: Any, *notes: object) -> Any:  # Any: a message or the record of a transaction, as given
    """The same, with notes of its transaction."""
    return replace(record, transaction=replace(record.transaction, notes=notes))


class AcceptedTests(WritingTestCase):
    async def test_results_verdicts_and_answers_are_in_the_messages_own_commit(self) -> None:
        writer = await self.writer()
        message = with_notes(incoming(self.alice), *RESULTS, OPINION)
        await writer.store(message)
        rows = self.query(
            "SELECT count(DISTINCT xmin::text) FROM (SELECT xmin FROM message UNION ALL SELECT xmin FROM transaction"
            " UNION ALL SELECT xmin FROM dns_answer UNION ALL SELECT xmin FROM delivery) AS written"
        )
        assert rows == [(1,)]
        ((results, verdicts),) = self.query("SELECT results, verdicts FROM transaction")
        assert [result["kind"] for result in results] == [
            *("spf", "dkim", "arc", "dmarc", "author-fault", "trusted-forwarder", "override")
        ]
        assert [verdict["policy"] for verdict in verdicts] == ["dmarc"]
        named = [digest for result in results for digest in result.get("answers", ())]
        assert {row[0] for row in self.query("SELECT digest FROM dns_answer")} == set(named)

    async def test_a_message_without_notes_has_null_in_both_columns(self) -> None:
        writer = await self.writer()
        await writer.store(incoming(self.alice))
        assert self.query("SELECT results, verdicts FROM transaction") == [(None, None)]
        assert self.count("dns_answer") == 0
