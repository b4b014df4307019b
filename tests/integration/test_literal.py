"""Literals, read back by a real server: the same values come out, whatever goes in."""

from __future__ import annotations

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import make_dsn
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from mailgate.storage import literal
from mailgate.storage.errors import DatabaseRefused
from mailgate.storage.pool import Connection
from tests.support import postgres
from tests.support.waiting import reactor

LATIN = "Grüße aus Köln, und viel Text in ASCII, wie er in Mail steht. ".encode("iso-8859-1")
_many = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
# Strings that look for a way out, besides all others.
_texts = st.one_of(st.text(), st.text("'\"\\{},x0 \0\r\nNUL;-/*$é\U0001f600", max_size=30))
_octets = st.one_of(
    st.binary(max_size=3000),
    st.binary(max_size=50),
    st.lists(st.sampled_from([b"'", b"\\", b"\\x", LATIN, b"\0"])).map(b"".join),
)


class LiteralTests(TestCase):
    """One synchronous connection with the settings that `settle` makes."""

    def setUp(self) -> None:
        self.dsn = postgres.fresh_database()
        self.addCleanup(postgres.drop_database, self.dsn)
        self.database = psycopg2.connect(self.dsn)
        self.addCleanup(self.database.close)
        self.database.autocommit = True
        self.database.set_client_encoding("UTF8")

    def value_of(self, expression: bytes) -> object:
        with self.database.cursor() as cursor:
            cursor.execute(b"SELECT " + expression)
            rows = cursor.fetchall()
        assert len(rows) == 1
        assert len(rows[0]) == 1
        return rows[0][0]

    def test_any_octets_come_back(self) -> None:
        @_many
        @given(_octets)
        @example(b"")
        @example(bytes(range(256)))
        @example(bytes(range(1, 256)))
        @example(LATIN * 100)
        @example("Zażółć gęślą jaźń, '\\x41' \\000".encode())
        @example(b"\\x41")
        @example(b"\xc3")
        @example(b"\xed\xa0\x80")  # a surrogate: Python and PostgreSQL agree that this is no UTF-8
        @example(b"\xf4\x90\x80\x80")  # above U+10FFFF
        @example(b"\xc0\xa7")  # an overlong quote
        @example(b"\x80'" * 50 + b"a" * 2000)
        def check(value: bytes) -> None:
            returned = self.value_of(literal.octets(value))
            assert isinstance(returned, memoryview)
            assert returned.tobytes() == value

        check()

    def test_any_array_of_octets_comes_back(self) -> None:
        @_many
        @given(st.lists(_octets, max_size=5))
        @example([])
        def check(values: list[bytes]) -> None:
            returned = self.value_of(literal.octets_array(values))
            assert isinstance(returned, list)
            assert [each.tobytes() for each in returned] == values

        check()

    def test_short_octets_come_back(self) -> None:
        @_many
        @given(st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=5))
        def check(values: list[bytes | None]) -> None:
            expression = literal.encoded(literal.short_octets_array(values)) + b"::bytea[]"
            returned = self.value_of(expression)
            assert isinstance(returned, list)
            assert [None if each is None else each.tobytes() for each in returned] == values

        check()

    def test_any_text_comes_back_but_for_nul_and_lone_surrogates(self) -> None:
        @_many
        @given(_texts)
        @example("'; DROP TABLE message; --")
        @example("\\'")
        @example("\0'\0")
        @example("\ud800'")
        def check(value: str) -> None:
            expected = value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
            assert self.value_of(literal.encoded(literal.text(value))) == expected

        check()

    def test_any_array_of_texts_comes_back(self) -> None:
        @_many
        @given(st.lists(st.one_of(st.none(), _texts), max_size=6))
        @example([])
        @example(["NULL", None, "", '"', "}", "\\", "\\\\'"])
        @example(["{a,b}", "\0", " "])
        def check(values: list[str | None]) -> None:
            expected = [
                None if value is None else value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
                for value in values
            ]
            assert self.value_of(literal.encoded(literal.text_array(values)) + b"::text[]") == expected

        check()

    def test_numbers_come_back(self) -> None:
        for values, kind in (
            ([1, None, -(2**63), 2**63 - 1], b"bigint[]"),
            ([1795440000.123456, 0.5, None], b"double precision[]"),
            ([True, False, None], b"boolean[]"),
            ([], b"bigint[]"),
        ):
            assert self.value_of(literal.encoded(literal.number_array(values)) + b"::" + kind) == values

    def test_mail_that_is_almost_ascii_is_not_doubled_in_size(self) -> None:
        assert len(literal.octets(LATIN * 100)) < len(LATIN) * 110
        assert len(literal.octets(b"plain text\r\n" * 100)) < 1300


class SettleTests(TestCase):
    """What literals rest on is made sure before they are used."""

    async def setting_after_settle(self, options: str, setting: str) -> object:
        dsn = postgres.fresh_database()
        self.addCleanup(postgres.drop_database, dsn)
        connection = Connection(reactor, make_dsn(dsn, options=options), name="test", setup=literal.settle)
        self.addCleanup(lambda: Deferred.fromCoroutine(connection.stop()))
        connection.start()
        await connection.connected(10)
        return (await connection.execute(f"SELECT current_setting('{setting}')"))[0][0]

    async def test_standard_strings_are_turned_on_where_they_are_off(self) -> None:
        option = "-c standard_conforming_strings=off"
        assert await self.setting_after_settle(option, "standard_conforming_strings") == "on"

    async def test_the_client_encoding_is_utf8_where_it_is_another(self) -> None:
        assert await self.setting_after_settle("-c client_encoding=LATIN1", "client_encoding") == "UTF8"

    async def test_a_database_of_another_encoding_is_refused(self) -> None:
        answers: list[tuple[str, ...]] = [("UTF8", "SQL_ASCII", "on")]

        async def execute(_: str) -> list[tuple[str, ...]]:
            return answers

        with pytest.raises(DatabaseRefused):
            await literal.settle(execute)
