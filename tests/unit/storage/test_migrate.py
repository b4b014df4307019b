"""Which migrations there are, and which versions a node may work with."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from mailgate.storage.errors import DatabaseRefused
from mailgate.storage.migrate import EXPECTED_VERSION, read_migrations, refusal


def test_migrations_are_found_by_the_version_that_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "0002-add-a.sql").write_text("two")
    (tmp_path / "0010-add-b.sql").write_text("ten")
    (tmp_path / "README").write_text("not SQL")
    assert read_migrations(tmp_path) == {2: "two", 10: "ten"}


def test_a_folder_that_is_not_there_holds_none(tmp_path: Path) -> None:
    """A wheel carries no empty folders."""
    assert read_migrations(tmp_path / "none") == {}


@pytest.mark.parametrize("name", ["2-add.sql", "0002_add.sql", "add.sql"])
def test_sql_without_a_number_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(DatabaseRefused, match="NNNN-name"):
        read_migrations(tmp_path)


def test_two_migrations_to_one_version_are_refused(tmp_path: Path) -> None:
    for name in ("0002-a.sql", "0002-b.sql"):
        (tmp_path / name).write_text("")
    with pytest.raises(DatabaseRefused, match="version 2"):
        read_migrations(tmp_path)


def test_the_package_leads_from_the_first_version_to_the_expected_one() -> None:
    found = read_migrations(resources.files("mailgate.storage").joinpath("migrations"))
    assert sorted(found) == list(range(2, EXPECTED_VERSION + 1))


def test_only_the_expected_version_is_worked_with() -> None:
    assert refusal(3, 3) is None
    for version in (None, 2):
        assert "mailgate db migrate" in str(refusal(version, 3))
    assert "behind" in str(refusal(2, 3))
    assert "ahead" in str(refusal(4, 3))
