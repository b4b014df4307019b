"""The schema: what it promises a person in psql, and what its functions compute."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from twisted.trial.unittest import TestCase

from mailgate.ids import decode_id, encode_id, first_id_at, time_of
from tests.support import postgres, stored_mail

IDS = [
    0,
    1,
    31,
    32,
    1 << 22,
    (1 << 63) - 1,
    (1 << 62) + 12345,
    *(7**n for n in range(1, 22)),
    first_id_at(1795440000.5),
]


class SchemaTestCase(TestCase):
    """A fresh database."""

    def setUp(self) -> None:
        self.dsn = postgres.fresh_database()
        self.addCleanup(postgres.drop_database, self.dsn)

    def query(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:  # Any: typed by the statement
        with closing(psycopg2.connect(self.dsn)) as database:
            database.autocommit = True
            with database.cursor() as cursor:
                cursor.execute("SET search_path = mailgate")
                cursor.execute(sql, parameters)
                return cursor.fetchall() if cursor.description else []


class DescriptionTests(SchemaTestCase):
    def test_every_table_and_view_is_described(self) -> None:
        rows = self.query(
            "SELECT relname FROM pg_class WHERE relnamespace = 'mailgate'::regnamespace"
            " AND relkind IN ('r', 'p', 'v', 'S') AND obj_description(oid, 'pg_class') IS NULL"
            " AND relname NOT LIKE '%\\_id\\_seq'"
        )
        assert rows == []

    def test_every_column_is_described(self) -> None:
        """Partitions are described by their parents."""
        rows = self.query(
            "SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
            " WHERE c.relnamespace = 'mailgate'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition"
            " AND a.attnum > 0 AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL ORDER BY 1, 2"
        )
        assert rows == []

    def test_every_function_is_described(self) -> None:
        rows = self.query(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'mailgate'::regnamespace"
            " AND obj_description(oid, 'pg_proc') IS NULL"
        )
        assert rows == []

    def test_every_index_that_is_no_constraint_states_its_query(self) -> None:
        rows = self.query(
            "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE c.relnamespace = 'mailgate'::regnamespace AND NOT c.relispartition"
            " AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid)"
            " AND obj_description(c.oid, 'pg_class') IS NULL"
        )
        assert rows == []

    def test_every_word_that_a_check_allows_is_explained(self) -> None:
        """What `column IN (...)` allows stands in the comment on the column."""
        rows = self.query(
            "SELECT c.relname, a.attname, word[1], col_description(c.oid, a.attnum)"
            " FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.conkey[1],"
            " regexp_matches(pg_get_constraintdef(k.oid), '''([A-Za-z0-9_-]+)''::text', 'g') AS word"
            " WHERE k.contype = 'c' AND c.relnamespace = 'mailgate'::regnamespace AND NOT c.relispartition"
        )
        assert len(rows) > 20
        protocol_letters = {"protocol"}
        missing = [
            (table, column, word)
            for table, column, word, comment in rows
            if column not in protocol_letters and word not in comment
        ]
        assert missing == []


class IdTests(SchemaTestCase):
    """SQL and `mailgate.ids` agree."""

    def test_the_text_of_an_id_is_the_same_in_sql_and_python(self) -> None:
        rows = self.query("SELECT id, id_text(id), id_number(id_text(id)) FROM unnest(%s::bigint[]) AS id", (IDS,))
        assert rows == [(number, encode_id(number), number) for number in IDS]

    def test_what_people_write_is_understood_the_same(self) -> None:
        for text in ("1m9x2k7q0vb3d", "1M9X2K7Q0VB3D", " [1m9x2k7q0vb3d] ", "IM9x2k7qovb3d", "lm9x2k7qOvb3d"):
            assert self.query("SELECT id_number(%s)", (text,)) == [(decode_id(text),)]

    def test_what_is_no_id_is_refused_by_both(self) -> None:
        for text in ("", "1m9x2k7q0vb3", "1m9x2k7q0vb3dd", "1m9x2k7q0vb3u", "zzzzzzzzzzzzz", "1m9x2k7q0vb3é"):
            with pytest.raises(ValueError):
                decode_id(text)
            with pytest.raises(psycopg2.DataError):
                self.query("SELECT id_number(%s)", (text,))

    def test_the_time_of_an_id_is_the_same_in_sql_and_python(self) -> None:
        for seconds in (1795440000.0, 1795440000.123, 1577836800.0):
            moment = datetime.fromtimestamp(seconds, UTC)
            ((first, back),) = self.query("SELECT id_at(%s), extract(epoch FROM id_time(id_at(%s)))", (moment, moment))
            assert abs(first - first_id_at(seconds)) <= 1 << 22
            assert abs(float(back) - time_of(first)) < 0.0005


class PartitionTests(SchemaTestCase):
    def partitions_of(self, table: str) -> list[str]:
        return [
            row[0]
            for row in self.query(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                " WHERE i.inhparent = %s::regclass ORDER BY 1",
                (table,),
            )
        ]

    def record(self, identifier: int) -> None:
        stored_mail.record_transaction(self.dsn, identifier, disposition="refused", stage="mail", reply="550 5.7.1 No")

    def test_a_new_database_has_partitions_for_this_month_and_the_next(self) -> None:
        now = datetime.now(UTC)
        following = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
        for table in ("session", "transaction", "recipient"):
            for month in (now, following):
                assert f"{table}_{month:%Y_%m}" in self.partitions_of(table)

    def test_a_row_of_today_is_in_the_partition_of_its_month(self) -> None:
        now = time.time()
        self.record(first_id_at(now))
        rows = self.query("SELECT tableoid::regclass::text FROM transaction")
        assert rows == [(f"transaction_{datetime.fromtimestamp(now, UTC):%Y_%m}",)]

    def test_a_row_without_a_partition_is_taken_by_the_default_one(self) -> None:
        self.record(first_id_at(time.time() + 400 * 86400))
        assert self.query("SELECT tableoid::regclass::text FROM transaction") == [("transaction_default",)]

    def test_what_the_default_partition_took_moves_when_its_month_is_made(self) -> None:
        later = datetime(2031, 2, 10, tzinfo=UTC).timestamp()
        self.record(first_id_at(later))
        self.query("SELECT create_partitions('2031-02-01T00:00Z', 0)")
        place = "SELECT tableoid::regclass::text FROM"
        rows = self.query(f"{place} transaction UNION ALL {place} recipient")
        assert rows == [("transaction_2031_02",), ("recipient_2031_02",)]
        assert self.query("SELECT count(*) FROM transaction_default") == [(0,)]

    def test_a_partition_has_the_constraints_and_indexes_of_its_table(self) -> None:
        definition = "SELECT count(*) FILTER (WHERE contype = %s) FROM pg_constraint WHERE conrelid = %s::regclass"
        month = f"{datetime.now(UTC):%Y_%m}"
        for table in ("session", "transaction", "recipient"):
            for kind in ("c", "p"):
                assert self.query(definition, (kind, f"{table}_{month}")) == self.query(definition, (kind, table))
            indexes = "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass"
            assert self.query(indexes, (f"{table}_{month}",)) == self.query(indexes, (table,))

    def test_the_edges_of_a_month_belong_to_it(self) -> None:
        self.query("SELECT create_partitions('2031-02-01T00:00Z', 0)")
        starts = datetime(2031, 2, 1, tzinfo=UTC).timestamp()
        ends = datetime(2031, 3, 1, tzinfo=UTC).timestamp()
        edges = [first_id_at(starts) - 1, first_id_at(starts), first_id_at(ends) - 1, first_id_at(ends)]
        for identifier in edges:
            self.record(identifier)
        rows = self.query("SELECT id FROM transaction_2031_02 ORDER BY id")
        assert rows == [(edges[1],), (edges[2],)]

    def test_making_partitions_again_changes_nothing(self) -> None:
        assert self.query("SELECT create_partitions(now(), 2)") == []

    def test_old_partitions_are_dropped_whole_months_only(self) -> None:
        self.query("SELECT create_partitions('2031-01-15T12:00Z', 3)")
        dropped = self.query("SELECT drop_partitions('2031-03-20T00:00Z')")
        names = {name for (name,) in dropped}
        assert {"session_2031_01", "transaction_2031_02", "recipient_2031_02"} <= names
        assert not any(name.endswith(("2031_03", "2031_04")) for name in names)
        assert "transaction_2031_03" in self.partitions_of("transaction")

    def test_old_rows_of_the_default_partition_are_dropped_too(self) -> None:
        old = first_id_at(datetime(2021, 1, 1, tzinfo=UTC).timestamp())
        young = first_id_at(datetime(2037, 1, 1, tzinfo=UTC).timestamp())
        self.record(old)
        self.record(young)
        self.query("SELECT drop_partitions('2022-01-01T00:00Z')")
        assert self.query("SELECT id FROM transaction") == [(young,)]


class ContentTests(SchemaTestCase):
    def test_a_message_is_trace_and_content(self) -> None:
        mailbox = stored_mail.add_mailbox(self.dsn, "alice")
        whole = stored_mail.deliver(self.dsn, mailbox, b"Subject: x\r\n\r\nbody\r\n")
        cut = stored_mail.deliver(self.dsn, mailbox, b"Subject: x\r\n\r\nbody\r\n", piece_octets=3)
        for identifier in (whole, cut):
            ((octets,),) = self.query("SELECT message_octets(%s)", (identifier,))
            assert octets.tobytes() == stored_mail.TRACE + b"Subject: x\r\n\r\nbody\r\n"
        assert self.query("SELECT message_octets(1)") == [(None,)]

    def test_content_is_never_compressed_the_slow_way(self) -> None:
        """pglz takes longer than all the rest of storing a message."""
        rows = self.query(
            "SELECT attrelid::regclass::text, attstorage, attcompression FROM pg_attribute"
            " WHERE (attrelid, attname) IN (('message'::regclass, 'content'), ('message_piece'::regclass, 'octets'))"
        )
        assert len(rows) == 2
        for _, storage, compression in rows:
            assert storage == "e" or compression == "l"

    def test_a_mailbox_gets_its_usage_when_it_is_made(self) -> None:
        mailbox = stored_mail.add_mailbox(self.dsn, "alice")
        before = int(time.time())
        rows = self.query("SELECT mailbox_id, uid_next, messages, octets, uid_validity FROM mailbox_usage")
        assert [row[:4] for row in rows] == [(mailbox, 1, 0, 0)]
        assert abs(rows[0][4] - before) <= 60

    def test_a_mailbox_with_mail_can_not_be_removed(self) -> None:
        mailbox = stored_mail.add_mailbox(self.dsn, "alice")
        stored_mail.deliver(self.dsn, mailbox, b"x\r\n")
        with pytest.raises(psycopg2.errors.ForeignKeyViolation):
            self.query("DELETE FROM mailbox WHERE id = %s", (mailbox,))
        self.query("DELETE FROM delivery")
        self.query("DELETE FROM mailbox WHERE id = %s", (mailbox,))
        assert self.query("SELECT count(*) FROM mailbox_usage") == [(0,)]


def verdict(stage: str, word: str, reason: str) -> dict[str, str]:
    """As the record keeps it."""
    return {"stage": stage, "policy": "list", "verdict": word, "reason": reason}


class ViewTests(SchemaTestCase):
    def test_inbox_shows_what_is_in_a_mailbox(self) -> None:
        mailbox = stored_mail.add_mailbox(self.dsn, "alice")
        identifier = stored_mail.deliver(self.dsn, mailbox, b"Subject: x\r\n\r\nbody\r\n", flags=["\\Seen"])
        rows = self.query('SELECT mailbox, uid, folder, flags, "from", subject, size_octets, message FROM inbox')
        assert rows == [
            (
                *("alice@example.test", 1, "INBOX", ["\\Seen"]),
                *("Carol <carol@example.org>", "Hello", 20, encode_id(identifier)),
            )
        ]

    def test_recent_refusals_starts_with_the_newest_and_sorts_nothing(self) -> None:
        """However long the record is, the newest refusals are at hand: those of transactions and those of sessions."""
        self.query(
            "INSERT INTO session (id, node, listener, role, client_address, client_port, is_esmtp, started_at,"
            " ended_at, ending, transactions, errors, dialogue)"
            " SELECT id_at(now()) + n, 'mx1', 'smtp', 'mx', '192.0.2.7', 4711, true, now(), now(),"
            " CASE n % 20 WHEN 0 THEN 'limit' ELSE 'quit' END, 1, 0, repeat('x', 300)"
            " FROM generate_series(1, 5000) AS n"
        )
        self.query(
            "INSERT INTO transaction (id, session_id, node, listener, client_address, protocol, reverse_path,"
            " disposition, stage, reply, started_at, ended_at)"
            " SELECT id, id, node, listener, client_address, 'ESMTP', '', 'refused', 'mail', '550 No', now(), now()"
            " FROM session"
        )
        self.query("ANALYZE session, transaction, recipient")
        with closing(psycopg2.connect(self.dsn)) as database, database.cursor() as cursor:
            cursor.execute("SET search_path = mailgate; SET enable_seqscan = off")
            cursor.execute("EXPLAIN SELECT * FROM recent_refusals LIMIT 20")
            plan = "\n".join(row[0] for row in cursor.fetchall())
        assert "Seq Scan" not in plan
        assert "Sort  (cost" not in plan  # "Sort Key" belongs to Merge Append
        assert "Index Scan Backward using session_" in plan
        assert "Index Scan Backward using transaction_" in plan

    def test_recent_refusals_shows_refused_recipients_and_refused_transactions(self) -> None:
        def record(stage: str, reply: str, disposition: str, *recipients: tuple[str, bool, str]) -> int:
            return stored_mail.record_transaction(
                self.dsn, disposition=disposition, stage=stage, reply=reply, recipients=recipients
            )

        ok, unknown = "250 2.1.5 Ok", "550 5.1.1 No such mailbox here"
        accepted = record(
            "end_of_data", "250 2.0.0 Ok", "accepted", ("a@x.test", True, ok), ("b@x.test", False, unknown)
        )
        at_mail = record("mail", "550 5.7.1 No", "refused")
        at_end = record("end_of_data", "451 4.3.0 Later", "deferred", ("a@x.test", True, ok))
        at_rcpt = record("rcpt", unknown, "refused", ("c@x.test", False, unknown))
        record("data", "", "abandoned", ("a@x.test", True, ok))
        rows = self.query("SELECT id, forward_path, stage, reply FROM recent_refusals")
        assert rows == [
            (encode_id(at_rcpt), "c@x.test", "rcpt", unknown),
            (encode_id(at_end), None, "end_of_data", "451 4.3.0 Later"),
            (encode_id(at_mail), None, "mail", "550 5.7.1 No"),
            (encode_id(accepted), "b@x.test", "rcpt", unknown),
        ]

    def test_recent_refusals_shows_who_was_turned_away_before_mail(self) -> None:
        """RFC 5321 section 3.1: 554 instead of 220; section 4.1.4: EHLO may be refused. There is no transaction."""
        at_connect = stored_mail.record_session(
            self.dsn,
            ending="lost",
            dialogue="S: 554 5.7.1 Listed [x]",
            verdicts=[verdict("connect", "reject", "554 5.7.1 Listed")],
        )
        at_helo = stored_mail.record_session(
            self.dsn,
            dialogue="S: 220 mx\nC: EHLO x\nS: 450-4.7.1 Later\nS: 450 4.7.1 Much later [x]\nC: QUIT\nS: 221 2.0.0 Bye",
            verdicts=[verdict("connect", "accept", ""), verdict("helo", "defer", "450 4.7.1 Later Much later")],
        )
        rows = self.query(
            "SELECT id, refused_at, host(client), helo, reverse_path, forward_path, stage, reply, policy, reason"
            " FROM recent_refusals"
        )
        assert [(row[0], *row[2:]) for row in rows] == [
            (
                *(encode_id(at_helo), "192.0.2.7", "client.example.org", None, None, "helo"),
                *("450 4.7.1 Later Much later", "list", None),
            ),
            (
                *(encode_id(at_connect), "192.0.2.7", "client.example.org", None, None, "connect"),
                *("554 5.7.1 Listed", "list", None),
            ),
        ]

    def test_recent_refusals_shows_sessions_that_we_ended(self) -> None:
        """RFC 5321 section 3.8: 421 at any time. The last line of the dialogue is the reply."""
        errors = "421 4.7.0 Too many errors; closing [x]"
        limit = stored_mail.record_session(self.dsn, ending="limit", dialogue=f"C: FOO\nS: {errors}")
        timeout = stored_mail.record_session(
            self.dsn, ending="timeout", dialogue="S: 220 mx\nS: 421 4.4.2 Waited [x]\n"
        )
        refused = stored_mail.record_session(self.dsn, ending="refused", dialogue="C: STARTTLS\nS: 554 5.5.1 No [x]")
        cut = stored_mail.record_session(self.dsn, ending="limit", dialogue="S: 220 mx\nC: NOOP\n(and more)")
        for ending in ("quit", "lost", "shutdown", "tls-failed"):
            stored_mail.record_session(self.dsn, ending=ending, dialogue="S: 421 4.3.2 Shutting down")
        rows = self.query("SELECT id, stage, reply, policy FROM recent_refusals")
        assert rows == [
            (encode_id(cut), "session", "", None),
            (encode_id(refused), "session", "554 5.5.1 No [x]", None),
            (encode_id(timeout), "session", "421 4.4.2 Waited [x]", None),
            (encode_id(limit), "session", errors, None),
        ]

    def test_a_session_turned_away_by_a_policy_is_one_refusal(self) -> None:
        """Its ending is `refused` because of the verdict."""
        identifier = stored_mail.record_session(
            self.dsn,
            ending="refused",
            dialogue="S: 421 4.3.2 Too many sessions [x]",
            verdicts=[verdict("connect", "defer", "421 4.3.2 Too many sessions")],
        )
        rows = self.query("SELECT id, stage, reply FROM recent_refusals")
        assert rows == [(encode_id(identifier), "connect", "421 4.3.2 Too many sessions")]

    def test_an_objection_that_was_only_postponed_is_no_refusal(self) -> None:
        """A policy for some domains speaks at HELO and refuses at RCPT: the client of this session heard nothing."""
        stored_mail.record_session(self.dsn, verdicts=[verdict("helo", "reject", "550 5.7.1 No")])
        assert self.query("SELECT * FROM recent_refusals") == []
