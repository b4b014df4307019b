"""Submission through a real mailgate, over its Unix socket: who may send as whom, and what is asked of delivery.

The message is looked for in PostgreSQL, where delivery would find it.
"""

from __future__ import annotations

import json
import os
import secrets
import smtplib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dkim
import pytest
from click.testing import CliRunner, Result

from mailgate.cli.main import main
from tests.integration.test_unix_listener import UnixSmtp
from tests.support import postgres
from tests.support.accounts import set_password
from tests.support.certificates import Authority
from tests.support.gate import TREE, Gate, eventually, free_port

ALICE, BOB, CRON = "alice@example.test", "bob@example.test", "cron@example.test"


class Server:
    """The process, its port, and its socket."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.socket_path = folder / "submission.sock"
        self.proxied_path = folder / "proxied.sock"
        self.relay_port = free_port()
        self.tls_ports = {"implicit": free_port(), "starttls": free_port()}
        self.dsn = postgres.fresh_database()
        master_key = folder / "master.key"
        master_key.write_text(secrets.token_hex(32))
        master_key.chmod(0o600)
        self.gate = Gate(
            log=log,
            mailboxes=(ALICE, BOB, CRON),
            dsn=self.dsn,
            settings=f"""
            [listener.local]
            role = "submission"
            tls = "none"
            endpoints = ["unix:{self.socket_path}:mode=666"]
            [listener.proxied]
            role = "submission"
            tls = "none"
            endpoints = ["unix:{self.proxied_path}:mode=666"]
            proxy_from = ["127.0.0.1"]
            [listener.relay]
            role = "mx"
            tls = "none"
            auth = "always"
            addresses = ["127.0.0.1"]
            port = {self.relay_port}
            [listener.submissions]
            role = "submission"
            tls = "implicit"
            addresses = ["127.0.0.1"]
            port = {self.tls_ports["implicit"]}
            [listener.submission]
            role = "submission"
            tls = "starttls"
            addresses = ["127.0.0.1"]
            port = {self.tls_ports["starttls"]}
            [submission]
            messages_per_day = 50
            local_users = {{ {os.getuid()} = "{CRON}" }}
            [[route]]
            domains = ["*"]
            to = "smtp://127.0.0.1:{free_port()}"
            [signing]
            master_key_file = "{folder}/master.key"
            """,
        )

    def query(self, sql: str) -> list[tuple[object, ...]]:
        return postgres.query(self.dsn, f"SET search_path = mailgate; {sql}")

    def connect(self) -> smtplib.SMTP:
        return UnixSmtp(str(self.socket_path), 25, "host.example.test", 20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="mg-") as folder:  # pytest's are too long for a socket's name
        Path(folder).chmod(0o755)
        server = Server(Path(folder), tmp_path_factory.mktemp("submission") / "log")
        try:
            server.gate.start()
            yield server
            assert server.gate.tracebacks() == []
        finally:
            server.gate.close()
            postgres.drop_database(server.dsn)


def test_a_program_of_this_machine_is_the_account_of_its_user(server: Server) -> None:
    """unix(7): the kernel says who it is. Date and Message-ID are added, and Bcc goes (RFC 6409 section 8)."""
    with server.connect() as client:
        message = f"From: {CRON}\r\nTo: {ALICE}\r\nBcc: {BOB}\r\nSubject: nightly\r\n\r\nDone.\r\n"
        assert client.sendmail(CRON, [ALICE, BOB], message) == {}
    (((content, account),)) = server.query(
        "SELECT convert_from(m.content, 'UTF8'), t.authenticated FROM message m JOIN transaction t USING (id)"
        " WHERE m.subject = 'nightly'"
    )
    assert account == CRON
    assert isinstance(content, str)
    date, message_id, rest = content.split("\r\n", 2)
    assert date.startswith("Date: ")
    assert message_id.startswith("Message-ID: <")
    assert message_id.endswith("@mail.example.test>")
    assert rest == f"From: {CRON}\r\nTo: {ALICE}\r\nSubject: nightly\r\n\r\nDone.\r\n"


@contextmanager
def refusal(code: int, start: bytes) -> Iterator[None]:
    with pytest.raises(smtplib.SMTPResponseException) as caught:
        yield
    assert caught.value.smtp_code == code
    assert isinstance(caught.value.smtp_error, bytes)
    assert caught.value.smtp_error.startswith(start), caught.value.smtp_error


def test_a_program_sends_as_nobody_else(server: Server) -> None:
    """RFC 6409 section 6.1; in MAIL FROM and in From."""
    with server.connect() as client:
        with refusal(550, b"5.7.1 MAIL FROM names alice@example.test, which is not yours"):
            client.sendmail(ALICE, [BOB], f"From: {CRON}\r\n\r\nx\r\n")
        with refusal(550, b"5.7.1 From names alice@example.test, which is not yours"):
            client.sendmail(CRON, [BOB], f"From: {ALICE}\r\n\r\nx\r\n")


def test_where_mx_offers_auth_an_account_sends_as_nobody_else_either(server: Server) -> None:
    """Who authenticates relays; so what holds for submission holds there, and for nobody who has not."""
    set_password(server.dsn, ALICE, "correct horse")
    with smtplib.SMTP("127.0.0.1", server.relay_port, "host.example.test", 20) as client:
        message = f"From: {BOB}\r\nBcc: {CRON}\r\nSubject: relay\r\n\r\nx\r\n"
        assert client.sendmail(BOB, [ALICE], message) == {}
        client.ehlo()
        client.login(ALICE, "correct horse")
        with refusal(550, b"5.7.1 MAIL FROM names bob@example.test, which is not yours"):
            client.sendmail(BOB, ["x@elsewhere.example"], message)
        with refusal(550, b"5.7.1 From names bob@example.test, which is not yours"):
            client.sendmail(ALICE, ["x@elsewhere.example"], message)
        assert client.sendmail(ALICE, ["x@elsewhere.example"], message.replace(BOB, ALICE)) == {}
    contents = server.query(
        "SELECT convert_from(content, 'UTF8') LIKE '%Bcc:%' FROM message WHERE subject = 'relay' ORDER BY id"
    )
    assert contents == [(True,), (False,)]


def test_what_is_sent_is_signed_as_it_leaves(server: Server) -> None:
    """RFC 6376: by both keys, over the fields that were added and without those that were removed; dkimpy verifies."""
    config = str(server.gate.folder / "mailgate.toml")
    records: dict[str, str] = {}
    for arguments in (("generate", "example.test", "--json"), ("activate", "example.test", "--force")):
        result = CliRunner().invoke(main, ["--config", config, "dkim", *arguments])
        assert result.exit_code == 0, result.output
        if "--json" in arguments:
            records = {record["name"]: record["content"] for record in json.loads(result.stdout)}
    assert len(records) == 2

    def published(name: bytes, **_options: object) -> bytes | None:
        content = records.get(name.decode().rstrip("."))
        return None if content is None else content.encode()

    with server.connect() as client:
        message = f"From: {CRON}\r\nTo: {ALICE}\r\nBcc: {BOB}\r\nSubject: signed\r\n\r\nDone.  \r\n\r\n\r\n"
        assert client.sendmail(CRON, [ALICE], message) == {}
    ((octets,),) = server.query("SELECT message_octets(id) FROM message WHERE subject = 'signed'")
    assert isinstance(octets, memoryview)
    sent = bytes(octets)
    assert sent.count(b"DKIM-Signature: ") == 2
    verifier = dkim.DKIM(sent)
    assert [verifier.verify(idx=number, dnsfunc=published) for number in range(2)] == [True, True]
    for field in (b"date", b"message-id", b"from:from"):
        assert field in sent.replace(b"\r\n\t", b"").lower().partition(b"h=")[2].partition(b";")[0]


def test_a_message_that_was_sent_again_is_taken_once(server: Server) -> None:
    """The 250 was lost: the resend is known by what the client sent, not by the Message-ID that we add."""
    message = f"From: {CRON}\r\nTo: {ALICE}\r\nSubject: again\r\n\r\nx\r\n"
    replies = []
    for _ in range(2):
        client = server.connect()
        client.ehlo()
        client.mail(CRON)
        client.rcpt(ALICE)
        replies.append(client.data(message))
        client.close()  # without QUIT
        eventually(lambda: server.query("SELECT is_lost FROM unconfirmed") in ([(True,)], []), "the loss is known")
    assert replies[0] == replies[1]
    assert server.query("SELECT count(*) FROM message WHERE subject = 'again'") == [(1,)]


def test_mail_for_elsewhere_is_queued_with_what_was_asked(server: Server) -> None:
    """RFC 4865 and RFC 2852; REQUIRETLS is not offered in plain text (RFC 8689 section 2)."""
    with server.connect() as client:
        client.ehlo()
        assert client.esmtp_features["futurerelease"].startswith("604800 20")
        assert client.esmtp_features["deliverby"] == "60"
        assert not client.has_extn("requiretls")
        options = ["HOLDFOR=3600", "BY=7200;R"]
        assert (
            client.sendmail(CRON, ["x@elsewhere.example"], f"From: {CRON}\r\nSubject: held\r\n\r\nx\r\n", options) == {}
        )
    ((recipient, sender, held, due, mode),) = server.query(
        "SELECT recipient, sender, round(extract(epoch FROM due_at - q.created_at)),"
        " round(extract(epoch FROM deliver_by - q.created_at)), deliver_by_mode"
        " FROM queue q JOIN message m ON m.id = q.message_id WHERE m.subject = 'held'"
    )
    assert (recipient, sender, int(held), int(due), mode) == ("x@elsewhere.example", CRON, 3600, 7200, "R")  # type: ignore[call-overload]  # numbers


def test_a_user_without_an_account_has_to_authenticate(server: Server) -> None:
    """RFC 6409 section 4.3: 530 5.7.0."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setuid(65534)
            with UnixSmtp(str(server.socket_path), 25, "host.example.test", 20) as client:
                client.ehlo()
                answer = client.mail(CRON)
                code = 0 if answer[0] == 530 and answer[1].startswith(b"5.7.0") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "header", [b"PROXY UNKNOWN\r\n", b"PROXY TCP4 192.0.2.7 192.0.2.25 4711 25\r\n"], ids=["unknown", "known"]
)
def test_whoever_comes_through_a_proxy_has_to_authenticate(server: Server, header: bytes) -> None:
    """The kernel tells the proxy's user then, and not who speaks."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(server.proxied_path))
        connection.sendall(header + f"EHLO host.example.test\r\nMAIL FROM:<{CRON}>\r\nQUIT\r\n".encode())
        with connection.makefile("rb") as answers:
            said = answers.read().splitlines()
    assert said[-2].startswith(b"530 5.7.0"), said


# ---------------------------------------------------------------- the command that programs call sendmail


@dataclass(frozen=True, slots=True)
class Sendmail:
    """`mailgate-sendmail` as a process of its own."""

    settings: Path

    def run(self, text: str, *arguments: str, name: str = "sendmail") -> tuple[int, str]:
        """Exit status, and what it said."""
        program = f"import sys; sys.argv[0] = {name!r}; from mailgate.cli.sendmail import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(TREE), "MAILGATE_SENDMAIL": str(self.settings)},
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout.decode()


@pytest.fixture
def sendmail(server: Server, tmp_path: Path) -> Sendmail:
    settings = tmp_path / "sendmail.toml"
    settings.write_text(f'socket = "{server.socket_path}"\ndomain = "example.test"\n')
    return Sendmail(settings)


def test_mail_of_cron_arrives(server: Server, sendmail: Sendmail) -> None:
    """As cron writes it: local parts alone, no Date, LF, -i and -t, and a dot in the text."""
    text = 'From: "(Cron Daemon)" <cron>\nTo: alice\nSubject: Cron <root@host> run\n\nfirst\n.\nlast\n'
    assert sendmail.run(text, "-i", "-FCronDaemon", "-odi", "-oem", "-fcron", "-t") == (0, "")
    ((content, reverse_path),) = server.query(
        "SELECT convert_from(content, 'UTF8'), reverse_path FROM message WHERE subject = 'Cron <root@host> run'"
    )
    assert reverse_path == CRON
    assert isinstance(content, str)
    assert content.endswith(
        f'From: "(Cron Daemon)" <{CRON}>\r\nTo: {ALICE}\r\nSubject: Cron <root@host> run\r\n\r\nfirst\r\n.\r\nlast\r\n'
    )


def test_what_sendmail_is_asked_for_notices_is_queued(server: Server, sendmail: Sendmail) -> None:
    """RFC 3461: NOTIFY, RET and ENVID."""
    arguments = ("-f", "cron", "-N", "success,failure", "-R", "hdrs", "-V", "id-7", "x@elsewhere.example")
    assert sendmail.run("Subject: notices\nFrom: cron\n\nx\n", *arguments) == (0, "")
    ((notify, ret, envid),) = server.query(
        "SELECT notify, ret, envid FROM queue q JOIN message m ON m.id = q.message_id WHERE m.subject = 'notices'"
    )
    assert (notify, ret, envid) == (["FAILURE", "SUCCESS"], "HDRS", "id-7")


GOOD = f"From: {CRON}\nSubject: x\n\nx\n"


@pytest.mark.parametrize(
    ("text", "arguments", "status", "said"),
    [
        (GOOD, ("-f", "cron", "alice"), 0, ""),
        (GOOD, ("-f", "", "alice"), 0, ""),
        (GOOD, ("-f", "cron"), 64, "no recipients"),
        (GOOD, ("-f", "cron", "-t"), 64, "the message names no recipients"),
        (GOOD, ("-Z", "alice"), 64, "-Z"),
        (GOOD, ("-bd",), 64, "-bd"),
        (GOOD, ("-f", "cron", "two words"), 65, "is no address"),
        ("To: two words\n\n", ("-t",), 65, "is no address"),
        ("From: cron, \nFrom: cron\n\n", ("-f", "cron", "alice"), 65, "550 5.6.0"),
        (GOOD, ("-f", "cron", "nobody"), 67, "nobody@example.test: 550 5.1.1"),
        (GOOD, ("-f", "cron", "alice", "nobody"), 67, "nobody@example.test: 550 5.1.1"),
        (GOOD, ("-f", "alice", "bob"), 77, "550 5.7.1 MAIL FROM names alice@example.test"),
        (f"From: {ALICE}\n\n", ("-f", "cron", "bob"), 77, "550 5.7.1 From names alice@example.test"),
        ("", ("-q30m",), 0, ""),
        ("", ("-bi",), 0, ""),
        ("", ("-bp",), 64, "mailgate queue list"),
    ],
)
def test_the_exit_status_says_what_to_do(
    sendmail: Sendmail, text: str, arguments: tuple[str, ...], status: int, said: str
) -> None:
    """sysexits.h."""
    code, output = sendmail.run(text, *arguments)
    assert code == status, output
    assert said in output


def test_a_server_that_is_not_there_is_tried_again_later(tmp_path: Path) -> None:
    """EX_TEMPFAIL; settings that are wrong are EX_CONFIG."""
    settings = tmp_path / "sendmail.toml"
    settings.write_text(f'socket = "{tmp_path}/none"\ndomain = "example.test"\n')
    code, output = Sendmail(settings).run(GOOD, "alice")
    assert (code, "No such file or directory" in output) == (75, True)
    settings.write_text("sockets = 1\n")
    assert Sendmail(settings).run(GOOD, "alice")[0] == 78


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_where_there_is_no_socket_a_program_logs_in_over_loopback(server: Server, tmp_path: Path, tls: str) -> None:
    """RFC 8314 section 3.3; whose certificate it is matters as soon as somebody is named who vouches for it."""
    set_password(server.dsn, BOB, "battery staple")
    settings, password = tmp_path / "sendmail.toml", tmp_path / "password"
    password.write_text("battery staple\n")
    lines = (
        f'host = "127.0.0.1"\nport = {server.tls_ports[tls]}\ntls = "{tls}"\ndomain = "example.test"\n'
        f'username = "{BOB}"\npassword_file = "{password}"\n'
    )
    settings.write_text(lines)
    sendmail = Sendmail(settings)
    message = f"From: {BOB}\nTo: {ALICE}\nSubject: by {tls}\n\nHello.\n"
    assert sendmail.run(message, "-t", "-i", "-f", BOB) == (0, "")
    ((account, protocol),) = server.query(
        "SELECT t.authenticated, convert_from(m.trace, 'UTF8') ~ 'with ESMTPSA' FROM message m"
        f" JOIN transaction t USING (id) WHERE m.subject = 'by {tls}'"
    )
    assert (account, protocol) == (BOB, True)
    result = CliRunner().invoke(main, ["send", "--settings", str(settings), "--from", BOB, "--to", ALICE], input="x")
    assert result.exit_code == 0, result.output

    password.write_text("wrong\n")
    code, said = sendmail.run(message, "-t", "-f", BOB)
    assert (code, "535" in said) == (77, True), said
    password.write_text("battery staple\n")
    other = Authority(tmp_path, datetime.now(UTC)).certificate_file
    settings.write_text(f'{lines}ca_file = "{other}"\n')
    code, said = sendmail.run(message, "-t", "-f", BOB)
    assert (code, "certificate" in said or "self-signed" in said) == (75, True), said


def test_programs_may_speak_smtp_to_it(sendmail: Sendmail) -> None:
    """sendmail -bs: the dialogue on standard input and output."""
    code, output = sendmail.run("EHLO host.example.test\r\nQUIT\r\n", "-bs")
    assert code == 0
    assert output.startswith("220 mail.example.test")
    assert "221 2.0.0" in output


def test_sendmail_starts_without_twisted() -> None:
    """It is started for each mail of cron."""
    program = (
        "import sys, mailgate.cli.sendmail, mailgate.submission.handing_in, mailgate.submission.program_mail,"
        " mailgate.submission.client_settings; print(sorted({'twisted', 'OpenSSL', 'psycopg2', 'click', 'ssl'}"
        " & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env={**os.environ, "PYTHONPATH": str(TREE)}, check=True
    )
    assert done.stdout == b"[]\n"


# ---------------------------------------------------------------- mailgate send


def sent_by_hand(sendmail: Sendmail, *arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(main, ["send", "--settings", str(sendmail.settings), *arguments], input=text)


def test_a_person_sends_a_message_with_a_file(server: Server, sendmail: Sendmail, tmp_path: Path) -> None:
    """What stands on standard input, to three people, one of them unseen."""
    (tmp_path / "note.txt").write_text("attached\n")
    arguments = ["--from", f"Night <{CRON}>", "--to", "alice", "--cc", BOB, "--bcc", CRON, "-s", "By hand"]
    result = sent_by_hand(sendmail, *arguments, "--attach", str(tmp_path / "note.txt"), text="Hello.\n")
    assert (result.exit_code, result.output[:25]) == (0, "handed in for 3 recipient"), result.output
    ((content, recipients),) = server.query(
        "SELECT convert_from(m.content, 'UTF8'), (SELECT count(*) FROM recipient r WHERE r.transaction_id = m.id)"
        " FROM message m WHERE m.subject = 'By hand'"
    )
    assert recipients == 3
    assert isinstance(content, str)
    assert f"To: {ALICE}\r\nCc: {BOB}\r\n" in content
    assert content.count(CRON) == 1
    assert 'filename="note.txt"' in content


def test_a_whole_message_goes_as_it_is(server: Server, sendmail: Sendmail) -> None:
    """Its header says whom it is for."""
    text = f"From: {CRON}\nTo: {ALICE}\nSubject: Whole\nX-Mark: 1\n\nHello.\n"
    result = sent_by_hand(sendmail, "--from", CRON, "--message", "-", "--json", text=text)
    assert result.exit_code == 0, result.output
    assert [(json.loads(line)["recipient"], json.loads(line)["result"]) for line in result.output.splitlines()] == [
        (ALICE, "delivered")
    ]
    assert server.query("SELECT count(*) FROM message WHERE subject = 'Whole'") == [(1,)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--from", ALICE, "--to", BOB), 1, "MAIL FROM names alice@example.test, which is not yours"),
        (("--from", CRON, "--to", "nobody"), 1, "nobody@example.test: 550 5.1.1"),
        (("--from", CRON), 2, "nobody to send to; use --to"),
        (("--from", "two words", "--to", BOB), 2, "is no address"),
        (("--from", f"{CRON}, {BOB}", "--to", BOB), 2, "is not one address"),
        (("--from", CRON, "--to", BOB, "--require-tls"), 1, "REQUIRETLS"),  # not offered here (RFC 8689 section 2)
    ],
)
def test_what_went_wrong_is_told(sendmail: Sendmail, arguments: tuple[str, ...], code: int, said: str) -> None:
    """Exit status 1 where it was refused, 2 where it was called wrongly."""
    result = sent_by_hand(sendmail, *arguments)
    assert (result.exit_code, said in result.output) == (code, True), result.output
