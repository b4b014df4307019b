"""The configuration: what it holds, and a line for every fault."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailgate.config import Config, ConfigError, load_config, reloadable_differences
from mailgate.policy.stage import Role
from mailgate.toml import Fault, entries
from tests.support.certificates import Authority

NOBODY = 65_534
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

GOOD = """\
hostname = "mail.example.test"
data_folder = "."

[database]
embedded = true

[listener.smtp]
role = "mx"
port = 25

[tls]
self_signed = true
"""


@pytest.fixture(autouse=True)
def _plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "host.example.test")  # the real one may ask the DNS
    for name in ("CREDENTIALS_DIRECTORY", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"):
        monkeypatch.delenv(name, raising=False)


def load(folder: Path, text: str, *, opens_files: bool = True) -> Config:
    path = folder / "mailgate.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, opens_files=opens_files, now=NOW)


def faults(folder: Path, text: str) -> list[str]:
    """The lines without the file's name, and with "." for the folder."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    start = f"{folder / 'mailgate.toml'}: "
    lines = [str(fault) for fault in caught.value.faults]
    assert all(line.startswith(start) for line in lines)
    return [line.removeprefix(start).replace(str(folder), ".") for line in lines]


# ---------------------------------------------------------------- what is right


def test_values_are_parsed(tmp_path: Path) -> None:
    """The program gets networks, paths and enums, not strings."""
    config = load(
        tmp_path,
        """
        hostname = "Mail.BÜCHER.example"
        data_folder = "var"
        postmaster = "admin@example.test"
        [database]
        dsn = "host=/run/postgresql,192.0.2.1 dbname=mailgate target_session_attrs=read-write"
        wait_seconds = 2
        accept_data_loss = "a crash may lose mail that was acknowledged"
        [listener.smtp]
        role = "mx"
        port = 25
        addresses = ["192.0.2.1", "2001:DB8:0::1"]
        proxy_from = ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]
        [listener.inherited]
        role = "submission"
        tls = "implicit"
        endpoints = ["systemd:domain=INET6:name=smtps", "unix:/run/mailgate.sock"]
        [tls]
        self_signed = true
        [dns]
        servers = ["192.0.2.1", "192.0.2.1:5353", "2001:DB8:0::1", "[2001:db8::1]:5353"]
        [retention]
        folders = { Spam = 7 }
        [bootstrap]
        mailboxes = ["alice@example.test"]
        """,
    )
    smtp, inherited = config.listeners
    assert config.hostname == config.node == "mail.xn--bcher-kva.example"
    assert config.data_folder == tmp_path / "var"
    assert config.database.embedded_folder == tmp_path / "var" / "postgres"
    assert (config.database.wait_seconds, config.database.is_data_loss_accepted) == (2.0, True)
    assert (smtp.name, smtp.role, smtp.tls, smtp.port) == ("smtp", Role.MX, "starttls", 25)
    assert smtp.addresses == ("192.0.2.1", "2001:db8::1")
    assert smtp.proxy_from == tuple(
        map(ipaddress.ip_network, ("192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32")),
    )
    assert (inherited.role, inherited.port, inherited.endpoints[1]) == (
        Role.SUBMISSION,
        None,
        "unix:/run/mailgate.sock",
    )
    assert config.dns.servers == (
        ("192.0.2.1", 53),
        ("192.0.2.1", 5353),
        ("2001:db8::1", 53),
        ("2001:db8::1", 5353),
    )
    assert config.retention.folders == (("Spam", 7),)
    assert config.bootstrap.mailboxes == ("alice@example.test",)


def test_the_host_name_is_the_machines_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a dot, the full name is asked for; what is no domain name can't be greeted with."""
    text = GOOD.replace('hostname = "mail.example.test"\n', "")
    monkeypatch.setattr("socket.gethostname", lambda: "Host.Example.test")
    assert load(tmp_path, text).hostname == "host.example.test"
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    monkeypatch.setattr("socket.getfqdn", lambda: "host.example.org")
    assert load(tmp_path, text).hostname == "host.example.org"
    monkeypatch.setattr("socket.getfqdn", lambda: "my_host")
    assert faults(tmp_path, text) == [
        "hostname: it is missing, and this machine's own name, 'my_host', is not a domain name; add it"
    ]


def test_a_relative_path_starts_at_the_file_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service runs in /, an operator anywhere."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "a.toml").write_text(GOOD.replace('"."', '"../var"'))
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("etc/a.toml")).data_folder == tmp_path / "var"


def test_the_configuration_is_loaded_without_a_reactor() -> None:
    """Importing the global reactor installs it: only tap.py may."""
    code = "import sys, mailgate.config; sys.exit('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- what is wrong

FAULTS = tomllib.loads((Path(__file__).parent / "config_faults.toml").read_text())["fault"]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case["lines"][0].split(": ")[0])
def test_a_fault_is_one_line_that_names_the_key_and_what_would_be_right(tmp_path: Path, case: dict[str, Any]) -> None:
    """An operator corrects the file by the line alone."""
    if "add" in case:
        text = f"{GOOD}\n{case['add']}\n"
    else:
        assert GOOD.count(case["change"]) == 1
        text = GOOD.replace(case["change"], case["to"])
    assert faults(tmp_path, text) == case["lines"]


def test_all_faults_are_said_at_once(tmp_path: Path) -> None:
    """A fault hides no other, and what follows from it is not said again."""
    text = """
    hostnam = "mail.example.test"
    hostname = "a b"
    [database]
    embedded = 1
    dsn = 2
    [listener.one]
    role = "mxx"
    port = 70000
    backlog = 0
    [listener.two]
    role = "mx"
    port = 25
    [listener.three]
    role = "mx"
    port = 25
    [tls]
    certificate = [{ certificate = "a", key = "b" }, 5, { names = ["x y"] }]
    """
    assert [line.split(": ")[0] for line in faults(tmp_path, text)] == [
        "hostnam",
        "hostname",
        "database.dsn",
        "database.embedded",
        "listener.one.role",
        "listener.one.port",
        "listener.one.backlog",
        "tls.certificate[1].certificate",
        "tls.certificate[1].key",
        "tls.certificate[2]",
        "tls.certificate[3].certificate",
        "tls.certificate[3].key",
        "tls.certificate[3].names[1]",
        "listener.three.port",
        "listener.three.port",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("hostname = \n", "line 1, column 12: invalid value; correct the TOML there"),
        ('a = 1\na = "\n', "line 2, column 6: illegal character '\\n'; correct the TOML there"),
        ("[a]\n[a]\n", "line 2, column 3: cannot declare ('a',) twice; correct the TOML there"),
        ("a = [", "line 1: invalid value; correct the TOML there"),
    ],
)
def test_an_error_of_syntax_has_its_place(tmp_path: Path, text: str, line: str) -> None:
    """Line and column, counted from 1."""
    assert faults(tmp_path, text) == [line]


def test_a_file_that_is_not_utf_8_is_said_to_be_so(tmp_path: Path) -> None:
    """TOML 1.0: a file must be a valid UTF-8 encoded document."""
    path = tmp_path / "mailgate.toml"
    path.write_bytes(b'# ok\nhostname = "\xff"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: line 2: it is not UTF-8; save the file as UTF-8"


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    """And a folder is no file."""
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "missing.toml")
    assert str(caught.value) == (
        f"{tmp_path}/missing.toml: it can't be read: no such file or directory; "
        "name a configuration file that you may read"
    )
    with pytest.raises(ConfigError, match="is a directory"):
        load_config(tmp_path)


def test_a_fault_names_the_file_as_the_operator_did() -> None:
    """Not by a path that has been resolved."""
    fault = Fault("etc/mailgate.toml", "listener.smtp.port", "70000 is not a port", "use 1 to 65535")
    assert str(fault) == "etc/mailgate.toml: listener.smtp.port: 70000 is not a port; use 1 to 65535"


@pytest.mark.parametrize(
    "dsn", ["host=/run password='s3cret", "s3cret", "postgresql://u:s3cret@db.example.test/m", "host=/run s3cret=1"]
)
def test_a_password_is_never_shown(tmp_path: Path, dsn: str) -> None:
    """Faults go to logs and terminals."""
    lines = faults(tmp_path, GOOD.replace("embedded = true", f'dsn = "{dsn}"'))
    assert len(lines) == 1
    assert lines[0].startswith("database.dsn: ")
    assert "s3cret" not in lines[0]


def test_a_listener_without_tls_needs_no_certificate(tmp_path: Path) -> None:
    """Behind a proxy that speaks TLS, or on a Unix socket."""
    text = GOOD.replace("self_signed = true", "").replace("port = 25", 'port = 25\ntls = "none"')
    assert load(tmp_path, text).tls.certificate == ()


@pytest.mark.parametrize("host", ["localhost", "192.0.2.1", "2001:db8::1", "/run/postgresql", "@mailgate"])
def test_a_database_host_that_needs_no_look_up_is_fine(tmp_path: Path, host: str) -> None:
    """libpq looks names up in a call that blocks."""
    assert load(tmp_path, GOOD.replace("embedded = true", f'dsn = "host={host} password=x"')).database.dsn


def test_a_database_host_with_its_address_is_fine(tmp_path: Path) -> None:
    """The name then serves to check the server's certificate."""
    dsn = "host=db.example.test hostaddr=192.0.2.1 sslmode=verify-full"
    assert load(tmp_path, GOOD.replace("embedded = true", f'dsn = "{dsn}"')).database.dsn == dsn


# ---------------------------------------------------------------- sockets from systemd


def test_a_socket_that_systemd_did_not_pass_on_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it passed on others. Without any, as in check-config, the name can't be judged."""
    text = GOOD.replace("port = 25", 'endpoints = ["systemd:domain=INET6:name=smtp"]')
    assert load(tmp_path, text).listeners[0].endpoints == ("systemd:domain=INET6:name=smtp",)
    monkeypatch.setenv("LISTEN_FDNAMES", "web:smtps")
    assert faults(tmp_path, text) == [
        "listener.smtp.endpoints[1]: 'systemd:domain=INET6:name=smtp': no such socket was inherited; "
        "systemd gave web:smtps; see FileDescriptorName="
    ]


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp:abc", "tcp:", "systemd:domain=INET6", "tcp:25:colour=red", ""])
def test_what_twisted_can_not_parse_is_no_endpoint(tmp_path: Path, endpoint: str) -> None:
    """Its own parser is asked, and nothing is bound."""
    lines = faults(tmp_path, GOOD.replace("port = 25", f'endpoints = ["{endpoint}"]'))
    assert len(lines) == 1
    assert lines[0].startswith(f"listener.smtp.endpoints[1]: '{endpoint}' is not an endpoint (")


# ---------------------------------------------------------------- certificates and keys


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, NOW)


def with_certificate(certificate: str, key: str) -> str:
    return GOOD.replace("self_signed = true", f'certificate = [{{ certificate = "{certificate}", key = "{key}" }}]')


def test_a_certificate_and_its_key_are_fine(tmp_path: Path, authority: Authority) -> None:
    """Paths are made absolute, names are in A-form."""
    authority.issue("mail")
    text = with_certificate("mail.pem", "mail.key").replace(
        "mail.key", 'mail.key", names = ["*.BÜCHER.example", "b.test'
    )
    text = text.replace('b.test" }', 'b.test"] }')
    (files,) = load(tmp_path, text).tls.certificate
    assert (files.certificate, files.key) == (tmp_path / "mail.pem", tmp_path / "mail.key")
    assert files.names == ("*.xn--bcher-kva.example", "b.test")


@pytest.mark.parametrize(
    ("certificate", "key", "lines"),
    [
        (
            "missing.pem",
            "mail.key",
            [
                "tls.certificate[1].certificate: ./missing.pem can't be read: no such file or directory; "
                "use a file that mailgate may read"
            ],
        ),
        (
            "mail.pem",
            "missing.key",
            [
                "tls.certificate[1].key: ./missing.key can't be read: no such file or directory; "
                "use a file that mailgate may read"
            ],
        ),
        (
            "mail.key",
            "mail.key",
            [
                "tls.certificate[1].certificate: ./mail.key holds no certificate in PEM form; "
                "use a PEM file, its chain included"
            ],
        ),
        (
            "mail.pem",
            "junk.key",
            [
                "tls.certificate[1].key: ./junk.key holds no private key in PEM form; "
                "use a PEM file without a passphrase"
            ],
        ),
        (
            "mail.pem",
            "other.key",
            [
                "tls.certificate[1].key: ./other.key is not the key of the first certificate in ./mail.pem; "
                "use the key that the certificate was made for"
            ],
        ),
        (
            "expired.pem",
            "expired.key",
            ["tls.certificate[1].certificate: ./expired.pem expired on 2026-02-28 12:00 UTC; renew it"],
        ),
        (
            "early.pem",
            "early.key",
            [
                "tls.certificate[1].certificate: ./early.pem is valid only from 2026-03-02 12:00 UTC on; "
                "wait, or set the clock right"
            ],
        ),
        (
            "open.pem",
            "open.key",
            ["tls.certificate[1].key: others than its owner may use ./open.key (mode 0640); do chmod 600 ./open.key"],
        ),
    ],
)
def test_a_pair_that_can_not_be_served_is_a_fault(
    tmp_path: Path, authority: Authority, certificate: str, key: str, lines: list[str]
) -> None:
    """Before anything binds, not at the first handshake."""
    authority.issue("mail")
    authority.issue("other")
    authority.issue("expired", days=(-9, -1))
    authority.issue("early", days=(1, 9))
    authority.issue("open", mode=0o640)
    (tmp_path / "junk.key").write_text("junk")
    (tmp_path / "junk.key").chmod(0o600)
    assert faults(tmp_path, with_certificate(certificate, key)) == lines


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o620, 0o644, 0o777])
def test_a_key_is_for_its_owner_alone(tmp_path: Path, authority: Authority, mode: int) -> None:
    """Group and others may neither read nor change it."""
    authority.issue("mail", mode=mode)
    (line,) = faults(tmp_path, with_certificate("mail.pem", "mail.key"))
    assert f"(mode {mode:04o})" in line


def test_a_password_for_a_route_is_for_its_owner_alone(tmp_path: Path) -> None:
    """As a key is."""
    password = tmp_path / "password"
    password.write_text("secret")
    password.chmod(0o644)
    route = '[[route]]\ndomains = ["*"]\nto = "smtp://relay.test"\nusername = "gate"\npassword_file = "password"\n'
    (line,) = faults(tmp_path, f"{GOOD}\n{route}")
    assert line.startswith("route[1].password_file: others than its owner may use ./password (mode 0644)")
    password.chmod(0o400)
    assert load(tmp_path, f"{GOOD}\n{route}").routes[0].password_file == password


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """A folder whose owner is not root, and that owner's rights: root may do everything."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_a_key_that_mailgate_may_not_read_is_a_fault(unprivileged_folder: Path) -> None:
    """Else it would be found at the first handshake."""
    Authority(unprivileged_folder, NOW).issue("mail", mode=0o000)
    (line,) = faults(unprivileged_folder, with_certificate("mail.pem", "mail.key"))
    assert "permission denied" in line


def test_a_folder_that_mailgate_may_not_write_is_a_fault(unprivileged_folder: Path) -> None:
    """The embedded database and the self-signed certificate are kept there."""
    (unprivileged_folder / "var").mkdir(mode=0o500)
    assert faults(unprivileged_folder, GOOD.replace('"."', '"var"')) == [
        "database.embedded_folder: mailgate may not write to ./var; give it to the user that mailgate runs as",
        "data_folder: mailgate may not write to ./var; give it to the user that mailgate runs as",
    ]


def test_a_credential_of_systemd_may_have_any_mode(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd.exec(5): the folder belongs to the service; the files in it are mode 0440 with some versions."""
    authority.issue("mail", mode=0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    text = with_certificate("mail.pem", "$CREDENTIALS_DIRECTORY/mail.key")
    assert load(tmp_path, text).tls.certificate[0].key == tmp_path / "mail.key"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "elsewhere"))
    assert len(faults(tmp_path, with_certificate("mail.pem", "mail.key"))) == 1
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert faults(tmp_path, text) == [
        "tls.certificate[1].key: '$CREDENTIALS_DIRECTORY/mail.key' needs systemd, which is not there; "
        "use LoadCredential= in the unit, or a path"
    ]


def test_certificates_and_self_signed_exclude_each_other(tmp_path: Path, authority: Authority) -> None:
    """Which of them should be served?"""
    authority.issue("mail")
    text = with_certificate("mail.pem", "mail.key") + "self_signed = true\n"
    assert faults(tmp_path, text) == ["tls.self_signed: there are certificates too; take one of them out"]


def test_a_command_that_may_not_open_the_keys_still_reads_the_rest(tmp_path: Path) -> None:
    """`mailgate inbox` run by an operator: the database is all that it needs."""
    text = with_certificate("missing.pem", "$CREDENTIALS_DIRECTORY/missing.key").replace('"."', '"no/such/folder"')
    config = load(tmp_path, text, opens_files=False)
    assert config.data_folder == tmp_path / "no/such/folder"
    with pytest.raises(ConfigError):
        load(tmp_path, text.replace("25", "0"), opens_files=False)


# ---------------------------------------------------------------- reload


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ("", "", ()),
        ("port = 25", "port = 26", ("listener.smtp.port",)),
        ("listener.smtp", "listener.other", ("listener.smtp", "listener.other")),
        ("mail.example.test", "mx.example.test", ("hostname", "node", "reports.organization")),
        ("embedded = true", "embedded = true\npool_connections = 5", ("database.pool_connections",)),
        ("[tls]", "[limits]\nrecipients = 5\n[tolerate]\nnul_from = ['192.0.2.1']\n[tls]\nhandshake_seconds = 5", ()),
        ("[tls]", "[shutdown]\nseconds = 5\n[tls]", ("shutdown.seconds",)),
    ],
)
def test_a_reload_knows_what_needs_a_restart(tmp_path: Path, old: str, new: str, keys: tuple[str, ...]) -> None:
    """SIGHUP applies [tls], [limits] and [tolerate]."""
    before = load(tmp_path, GOOD)
    after = load(tmp_path, GOOD.replace(old, new) if old else GOOD)
    assert reloadable_differences(before, after) == keys


# ---------------------------------------------------------------- whatever is written

SECTIONS = ["", "database", "listener.smtp", "listener", "tls", "limits", "tolerate", "retention", "bootstrap", "x"]
KEYS = sorted(
    {entry.key for entry in entries(Config)}
    | {"dsn", "role", "port", "addresses", "endpoints", "certificate", "client_ca", "folders", "nul_from", "mailboxes"}
)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9).map(lambda value: round(value, 3)),
    st.text(max_size=20),
    st.sampled_from(["tcp:25", "systemd:name=a", "ssl:1", "unix:", "192.0.2.0/24", "*.test", "a@b.test", "mx", "\\:x"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(SECTIONS), st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4), max_size=4
    )
)
def test_whatever_is_written_is_a_configuration_or_faults(
    tmp_path: Path, sections: dict[str, dict[str, object]]
) -> None:
    """Never a traceback."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in sections.pop("", {}).items()]
    for name, section in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in section.items()]
    path = tmp_path / "any.toml"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as caught:
        load_config(path, now=NOW)
    assert all("\n" not in str(fault) for fault in caught.value.faults)


def test_time_is_an_argument(tmp_path: Path, authority: Authority) -> None:
    """And the clock's, where none is given."""
    authority.issue("mail", days=(-1, 1))
    path = tmp_path / "mailgate.toml"
    path.write_text(with_certificate("mail.pem", "mail.key"))
    load_config(path, now=NOW)
    with pytest.raises(ConfigError, match="expired"):
        load_config(path, now=NOW + timedelta(days=2))


def test_what_only_openssl_refuses_is_a_fault_too(tmp_path: Path) -> None:
    """Its security level refuses short RSA keys, which all else takes."""
    key = rsa.generate_private_key(65_537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "mail.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "mail.key").touch(mode=0o600)
    (tmp_path / "mail.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (line,) = faults(tmp_path, with_certificate("mail.pem", "mail.key"))
    assert line == "tls: ./mail.pem can't be served: ee key too small; use another file"


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    """A reload reads the file on the reactor."""
    path = tmp_path / "mailgate.toml"
    os.mkfifo(path)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "it is not a file" in str(caught.value.faults[0])
