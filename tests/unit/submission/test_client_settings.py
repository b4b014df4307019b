"""The file that says where programs hand in their mail."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailgate.submission.client_settings import DEFAULT_SOCKET, SettingsError, client_settings, read_settings


def settings_file(folder: Path, text: str) -> Path:
    path = folder / "sendmail.toml"
    path.write_text(text)
    return path


def test_a_server_with_a_password(tmp_path: Path) -> None:
    """RFC 8314: TLS from the first octet by default; files stand beside the settings."""
    (tmp_path / "secret").write_text("pass word\n")
    path = settings_file(
        tmp_path, 'host = "mail.x.test"\nusername = "a@x.test"\npassword_file = "secret"\ndomain = "x.test"\n'
    )
    settings = read_settings(path)
    assert (settings.host, settings.port, settings.tls, settings.socket) == ("mail.x.test", 465, "implicit", "")
    assert (settings.username, settings.password, settings.domain) == ("a@x.test", "pass word", "x.test")
    assert not settings.is_local
    assert "pass word" not in repr(settings)


def test_the_socket_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable names another file, for tests and for users of their own."""
    monkeypatch.setenv("MAILGATE_SENDMAIL", str(settings_file(tmp_path, 'domain = "x.test"\n')))
    settings = client_settings()
    assert (settings.socket, settings.domain, settings.is_local) == (DEFAULT_SOCKET, "x.test", True)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("::1234", False),
        ("192.0.2.1", False),
    ],
)
def test_only_loopback_is_this_machine(tmp_path: Path, host: str, *, is_local: bool) -> None:
    """There no certificate is verified, and a password may go without TLS: no name that somebody else may have."""
    assert read_settings(settings_file(tmp_path, f'host = "{host}"\n')).is_local is is_local


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sockets = 1", "sockets: this key is not known; use one of "),
        ("password = 'x'", "password: this key is not known"),
        ("port = '25'", "port: '25' is not a number"),
        ("host = 25", "host: 25 is not a text"),
        ("host = 'x'\nsocket = '/x'", "host: socket is set too"),
        ("host = 'x.test'\ntls = 'none'", 'tls: "none" would show'),
        ("host = 'x.test'\ntls = 'tls'", "tls: use"),
        ("host = 'x.test'\nusername = 'a'", "username and password_file belong together"),
        ("password_file = 'missing'", "No such file"),
        ("=", "Invalid"),
    ],
)
def test_a_fault_is_told_with_what_would_be_right(tmp_path: Path, text: str, problem: str) -> None:
    """Nothing is sent by settings that were not understood."""
    with pytest.raises(SettingsError) as caught:
        read_settings(settings_file(tmp_path, text))
    assert problem in str(caught.value)
