"""The master key: found, made, refused; and what it seals."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from mailgate.sealing import MasterKey, UnusableKey, find_master_key, read_master_key

KEY = MasterKey(bytes(range(32)), "a test")
OCTETS = bytes(range(128, 160))


def _file(path: Path, text: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text)
    path.chmod(mode)
    return path


def test_what_is_sealed_opens_for_its_purpose_only() -> None:
    """SP 800-38D: the purpose is authenticated with the octets."""
    sealed = KEY.seal(b"a key", "this")
    assert KEY.open(sealed, "this") == b"a key"
    assert b"a key" not in sealed
    with pytest.raises(UnusableKey, match="for that does not open"):
        KEY.open(sealed, "that")


def test_no_two_sealings_are_alike() -> None:
    """SP 800-38D section 8.2.2: a nonce is never used twice with a key."""
    assert KEY.seal(b"a key", "this") != KEY.seal(b"a key", "this")


@pytest.mark.parametrize("sealed", [b"", b"short", bytes(60)])
def test_what_was_never_sealed_does_not_open(sealed: bytes) -> None:
    """Whatever stands in the database."""
    with pytest.raises(UnusableKey):
        KEY.open(sealed, "this")


def test_changed_octets_do_not_open() -> None:
    """SP 800-38D: one bit is enough."""
    sealed = bytearray(KEY.seal(b"a key", "this"))
    for place in range(len(sealed)):
        sealed[place] ^= 1
        with pytest.raises(UnusableKey):
            KEY.open(bytes(sealed), "this")
        sealed[place] ^= 1


def test_another_key_is_told_by_its_id_and_not_by_its_octets() -> None:
    """What is logged gives nothing away."""
    other = MasterKey(bytes(32), "another file")
    with pytest.raises(UnusableKey, match=f"{other.id} of another file"):
        other.open(KEY.seal(b"a key", "this"), "this")
    assert repr(KEY) == "MasterKey(source='a test')"
    assert len(KEY.id) == 16


@pytest.mark.parametrize("text", [KEY.octets.hex().encode() + b"\n", base64.b64encode(KEY.octets), OCTETS])
def test_a_key_is_read_as_people_make_it(tmp_path: Path, text: bytes) -> None:
    """`openssl rand -hex 32`, `openssl rand -base64 32`, `openssl rand 32`."""
    assert read_master_key(_file(tmp_path / "key", text)).octets in (KEY.octets, OCTETS)


@pytest.mark.parametrize("text", [b"", b"secret", b"00" * 31, b"00" * 33, b"\xff" * 31, b"a" * 32, b"z" * 64])
def test_a_file_without_a_key_is_refused_with_what_would_make_one(tmp_path: Path, text: bytes) -> None:
    """A pass phrase is no key."""
    with pytest.raises(UnusableKey, match="openssl rand -hex 32"):
        read_master_key(_file(tmp_path / "key", text))


def test_a_key_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    """It would keep nothing secret."""
    path = _file(tmp_path / "key", KEY.octets.hex().encode(), 0o644)
    with pytest.raises(UnusableKey, match="chmod 600"):
        read_master_key(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The configuration names it: none is made in its place."""
    with pytest.raises(UnusableKey, match="No such file"):
        find_master_key(tmp_path / "key", {}, made_in=tmp_path)


def test_the_service_managers_credential_is_found(tmp_path: Path) -> None:
    """systemd.exec: $CREDENTIALS_DIRECTORY."""
    _file(tmp_path / "master-key", KEY.octets.hex().encode(), 0o400)
    found = find_master_key(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert found is not None
    assert found.octets == KEY.octets


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    """The quickstart has nobody to give it one."""
    folder = tmp_path / "data"
    made = find_master_key(None, {}, made_in=folder)
    assert made is not None
    assert (folder / "master.key").stat().st_mode & 0o777 == 0o600
    assert find_master_key(None, {}, made_in=folder) == made
    assert [path.name for path in folder.iterdir()] == ["master.key"]


def test_without_a_place_there_is_none() -> None:
    """A server's database, and nobody has named a key: that is not a fault before something has to be sealed."""
    assert find_master_key(None, {}) is None
