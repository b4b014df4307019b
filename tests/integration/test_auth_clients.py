"""AUTH against a real process: clients that others wrote, and what is offered where.

smtplib; msmtp and swaks where they are installed; for SCRAM-SHA-256-PLUS, which those lack, a client of the tests' own
over pyOpenSSL.
"""

from __future__ import annotations

import base64
import re
import shutil
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from OpenSSL import SSL

from mailgate.ids import decode_id
from tests.support.accounts import add_account, set_password
from tests.support.gate import Gate, eventually, free_port
from tests.support.postgres import query
from tests.support.scram_client import ScramClient

ALICE, PASSWORD = "alice@example.test", "correct horse"

NOT_VERIFIED = ssl.create_default_context()
NOT_VERIFIED.check_hostname = False
NOT_VERIFIED.verify_mode = ssl.CERT_NONE


class Server:
    """The process, and where it listens."""

    def __init__(self, log: Path) -> None:
        self.smtps, self.submission, self.local = free_port(), free_port(), free_port()
        self.gate = Gate(
            log=log,
            mailboxes=("bob@example.test",),
            settings=f"""
[listener.smtps]
role = "submission"
port = {self.smtps}
addresses = ["127.0.0.1"]
tls = "implicit"
[listener.submission]
role = "submission"
port = {self.submission}
addresses = ["127.0.0.1"]
[listener.local]
role = "submission"
port = {self.local}
addresses = ["127.0.0.1"]
tls = "none"
auth = "always"
[authentication]
failures_per_network = 1000
""",
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("auth") / "log")
    try:
        server.gate.start()
        add_account(server.gate.dsn, ALICE, PASSWORD)
        set_password(server.gate.dsn, ALICE, "app-password-of-a-phone", "phone")
        yield server
        assert server.gate.tracebacks() == []
        assert PASSWORD not in server.gate.log()
    finally:
        server.gate.close()


def over_tls(server: Server) -> smtplib.SMTP:
    return smtplib.SMTP_SSL("127.0.0.1", server.smtps, context=NOT_VERIFIED, timeout=30)


def over_starttls(server: Server) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", server.submission, timeout=30)
    client.starttls(context=NOT_VERIFIED)
    return client


def offered(client: smtplib.SMTP) -> list[str]:
    client.ehlo()
    return client.esmtp_features.get("auth", "").split()


def dialogue(server: Server, session: str) -> str:
    """What the record says of that session; "" where it is not written yet."""
    rows = query(server.gate.dsn, "SELECT dialogue FROM mailgate.session WHERE id = %s", (decode_id(session),))
    return "".join(str(text) for (text,) in rows)


# ------------------------------------------------------------ what is offered where


def test_mechanisms_are_offered_inside_tls_on_submission_and_nowhere_else(server: Server) -> None:
    """RFC 4954 section 4 and RFC 8314 section 3.3; EHLO lists them by the state of the session."""
    everything = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"]
    with over_tls(server) as client:
        assert offered(client) == everything
        client.login(ALICE, PASSWORD)
        assert offered(client) == []
    with smtplib.SMTP("127.0.0.1", server.submission, timeout=30) as client:
        assert offered(client) == []
        code, reply = client.docmd("AUTH", "PLAIN AGEAYg==")
        assert (code, reply[:7]) == (538, b"5.7.11 ")
        client.starttls(context=NOT_VERIFIED)
        assert offered(client) == everything
    with smtplib.SMTP("127.0.0.1", server.gate.port, timeout=30) as client:
        assert offered(client) == []
        client.starttls(context=NOT_VERIFIED)
        assert offered(client) == []
        assert client.docmd("AUTH", "PLAIN AGEAYg==")[0] == 502
    with smtplib.SMTP("127.0.0.1", server.local, timeout=30) as client:
        assert offered(client) == everything[1:]
        client.login(ALICE, PASSWORD)


def test_channel_binding_is_not_offered_on_tls_1_2(server: Server) -> None:
    """RFC 9266 section 1: TLS 1.2 has no exporter that both ends can be sure of."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with smtplib.SMTP_SSL("127.0.0.1", server.smtps, context=context, timeout=30) as client:
        assert offered(client) == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]


# ------------------------------------------------------------ clients


@pytest.mark.parametrize("connect", [over_tls, over_starttls])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("has_initial", [True, False])
@pytest.mark.parametrize("password", [PASSWORD, "app-password-of-a-phone"])
def test_smtplib_logs_in(server: Server, connect: object, mechanism: str, has_initial: bool, password: str) -> None:
    """With an initial response and without."""
    assert callable(connect)
    with connect(server) as client:
        client.ehlo()
        client.user, client.password = "Alice@Example.TEST", password
        authobject = getattr(client, "auth_" + mechanism.lower())
        code, reply = client.auth(mechanism, authobject, initial_response_ok=has_initial)
        assert (code, reply) == (235, b"2.7.0 Authenticated")


def test_a_wrong_password_is_refused_and_the_record_says_by_what_and_not_with_what(server: Server) -> None:
    """RFC 4954 section 6: 535 5.7.8."""
    with over_tls(server) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            client.login(ALICE, "wrong secret")
        assert (caught.value.smtp_code, caught.value.smtp_error[:6]) == (535, b"5.7.8 ")
        error = caught.value.smtp_error
        assert isinstance(error, bytes)
        session = error.decode().rpartition("[")[2].rstrip("]")
    eventually(lambda: dialogue(server, session), "the record of the session")
    assert f"C: AUTH PLAIN ...\nC: (as {ALICE})\nS: 535 5.7.8 " in dialogue(server, session)
    assert "wrong" not in dialogue(server, session)
    log = server.gate.log()
    assert f"authentication of '{ALICE}' by PLAIN from 127.0.0.1 failed in session {session}" in log
    assert "wrong secret" not in log
    assert base64.b64encode(b"\0" + ALICE.encode() + b"\0wrong secret").decode() not in log


@pytest.mark.parametrize(
    ("lines", "code", "status"),
    [
        (["AUTH PLAIN !!!"], 501, b"5.5.2"),
        (["AUTH PLAIN =", ""], 501, b"5.5.2"),
        (["AUTH PLAIN bm9uc2Vuc2U="], 501, b"5.5.2"),
        (["AUTH PLAIN", "*"], 501, b"5.7.0"),
        (["AUTH LOGIN", "YWxpY2U=", "*"], 501, b"5.7.0"),
        (["AUTH SCRAM-SHA-256", "bm9uc2Vuc2U="], 501, b"5.5.2"),
        (["AUTH SCRAM-SHA-256-PLUS", base64.b64encode(b"n,,n=a,r=b").decode()], 501, b"5.5.2"),
        (["AUTH SCRAM-SHA-256", base64.b64encode(b"y,,n=a,r=b").decode()], 535, b"5.7.8"),
        (["AUTH PLAIN", "A" * 12289], 500, b"5.5.6"),
        (["AUTH CRAM-MD5"], 504, b"5.5.4"),
        (["AUTH"], 501, b"5.5.4"),
    ],
)
def test_what_goes_wrong_has_its_reply_and_the_session_goes_on(
    server: Server, lines: list[str], code: int, status: bytes
) -> None:
    """RFC 4954 sections 4 and 6."""
    with over_tls(server) as client:
        client.ehlo()
        for line in lines:
            answer = client.docmd(line)
            if answer[0] != 334:
                break
        assert (answer[0], answer[1].split()[0]) == (code, status)
        assert client.login(ALICE, PASSWORD)[0] == 235


def test_a_connection_is_named_by_scram_plus(server: Server) -> None:
    """RFC 9266: the binding is what TLS exports, and another connection's is refused."""
    client = TlsClient(server.smtps)
    try:
        assert client.scram(client.exported()) == b"235 2.7.0 Authenticated"
    finally:
        client.close()
    client = TlsClient(server.smtps)
    try:
        assert client.scram(b"\0" * 32).startswith(b"535 5.7.8 ")
        assert client.scram(client.exported()).startswith(b"235 ")
    finally:
        client.close()


class TlsClient:
    """A client over pyOpenSSL, which unlike Python's ssl exports keying material."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setblocking(True)
        self._tls = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), self._socket)
        self._tls.set_connect_state()
        self._tls.do_handshake()
        self._read()
        self.say(b"EHLO client.example")

    def exported(self) -> bytes:
        return self._tls.export_keying_material(b"EXPORTER-Channel-Binding", 32)

    def say(self, line: bytes) -> bytes:
        self._tls.sendall(line + b"\r\n")
        return self._read()

    def scram(self, binding: bytes) -> bytes:
        """The reply to an exchange with that binding."""
        exchange = ScramClient(ALICE, PASSWORD, gs2="p=tls-exporter,,", binding=binding)
        answer = self.say(b"AUTH SCRAM-SHA-256-PLUS " + base64.b64encode(exchange.first()))
        final = exchange.final(base64.b64decode(answer.removeprefix(b"334 ")))
        answer = self.say(base64.b64encode(final))
        if not answer.startswith(b"334 "):
            return answer
        assert exchange.accepts(base64.b64decode(answer.removeprefix(b"334 ")))
        return self.say(b"")

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> bytes:
        octets = b""
        while not re.search(rb"(?:^|\n)[0-9]{3} [^\n]*\n\Z", octets):
            octets += self._tls.recv(4096)
        return octets.rstrip(b"\r\n")


@pytest.mark.skipif(shutil.which("msmtp") is None, reason="msmtp is not installed")
@pytest.mark.parametrize("mechanism", ["plain", "login", "scram-sha-256", "scram-sha-256-plus"])
def test_msmtp_sends_as_the_account(server: Server, mechanism: str) -> None:
    """libgsasl's SCRAM against ours."""
    sent = subprocess.run(
        [
            "msmtp",
            "--file=/dev/null",
            "--host=127.0.0.1",
            f"--port={server.smtps}",
            "--tls=on",
            "--tls-starttls=off",
            "--tls-certcheck=off",
            f"--auth={mechanism}",
            f"--user={ALICE}",
            f"--passwordeval=printf '%s' '{PASSWORD}'",
            f"--from={ALICE}",
            ALICE,
        ],
        input=f"From: {ALICE}\nTo: {ALICE}\nSubject: by {mechanism}\n\nHello.\n".encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    if b"invalid argument" in sent.stderr:
        pytest.skip(f"this msmtp does not know {mechanism}")
    assert (sent.returncode, sent.stderr) == (0, b"")
    rows = query(
        server.gate.dsn,
        "SELECT authenticated FROM mailgate.transaction JOIN mailgate.message USING (id) WHERE subject = %s",
        (f"by {mechanism}",),
    )
    assert rows == [(ALICE,)]


@pytest.mark.skipif(shutil.which("swaks") is None, reason="swaks is not installed")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks_authenticates(server: Server, mechanism: str) -> None:
    said = subprocess.run(
        [
            "swaks",
            f"--server=127.0.0.1:{server.submission}",
            "--tls",
            f"--auth={mechanism}",
            f"--auth-user={ALICE}",
            f"--auth-password={PASSWORD}",
            f"--from={ALICE}",
            f"--to={ALICE}",
            "--quit-after=AUTH",
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    if b"NET::SSLEAY" in said.stderr.upper() or b"not available" in said.stdout + said.stderr:
        pytest.skip("this swaks has no TLS")
    assert b"235 2.7.0 Authenticated" in said.stdout, said.stdout + said.stderr
