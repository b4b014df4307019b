"""The opening of a session as a client: from the greeting, over EHLO, STARTTLS and AUTH, until mail may go.

A reply goes in; out comes the next command, or that TLS is to be started, that the session is ready, or why it never
will be. 421 doesn't get here: it means the same everywhere.

    greeting 220 -> EHLO -> [STARTTLS 220 -> handshake -> EHLO] -> [AUTH ... 235] -> ready
                     5xx -> HELO ---------------------------------------------------> ready

Not here: the handshake, and whether what it came to is good enough.

Standards: RFC 5321 sections 3.1 and 3.2; RFC 2033 section 4.1 (LHLO); RFC 3207 (STARTTLS); RFC 4954 (AUTH); RFC 8314
section 3 (TLS before the greeting); RFC 8689 section 4.2.1 (REQUIRETLS).
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Literal, TypeAlias

from mailgate.outbound.plan import TlsDemand, TlsLevel, Trouble, TroubleKind
from mailgate.sasl.client import ExchangeError, Mechanism, mechanisms
from mailgate.smtp.client_extension import NO_EXTENSIONS, Extensions, parse_extensions
from mailgate.smtp.client_reply import ReceivedReply, Stage
from mailgate.smtp.client_state import Awaited, Phase

if TYPE_CHECKING:
    from mailgate.outbound.plan import Credentials, TlsUsed

MAX_COMMAND_OCTETS = 512  # RFC 5321 section 4.5.3.1.4

# A command to send, of which `awaited` says what it is; that TLS is to be started; that mail may go; or why not.
Step: TypeAlias = bytes | Literal[Phase.HANDSHAKE, Phase.READY] | Trouble


class Opening:
    """The opening of one session."""

    def __init__(
        self,
        *,
        protocol: Literal["smtp", "lmtp"],
        helo: str,
        tls_demand: TlsDemand,
        credentials: Credentials | None,
        needs_requiretls: bool,
        is_local: bool,
    ) -> None:
        """As `mailgate.smtp.client.ClientSession` has it."""
        self._protocol = protocol
        self._helo = helo
        self._tls_demand = tls_demand
        self._credentials = credentials
        self._needs_requiretls = needs_requiretls
        self._is_local = is_local
        self._mechanisms: list[Mechanism] = []  # of SASL, still to try; the first is being tried
        self._initial: bytes | None = None  # a first response that the server has to ask for
        self._exchange_error = ""  # why the exchange was cancelled
        self.awaited = Awaited.GREETING
        self.extensions: Extensions = NO_EXTENSIONS
        self.tls: TlsUsed | None = None
        self.tls_result = ""  # RFC 8460 section 4.3: why there is no TLS, where mail goes all the same

    def tls_started(self, tls: TlsUsed) -> Step | None:
        """Go on inside TLS. What was said before it counts no more. None where the greeting is still to come."""
        self.tls = tls
        self.extensions = NO_EXTENSIONS
        return None if self._tls_demand.is_implicit else self._hello()

    def replied(self, answer: ReceivedReply, *, is_followed: bool) -> Step:
        """What follows from a reply; `is_followed` says that the host has sent octets behind it."""
        code = answer.code
        if self.awaited is Awaited.AUTH:
            return self._authenticated(answer)
        if 300 <= code < 400:
            text = f"The host sent this for {self.awaited.value}: {answer.text()}"
            return Trouble(TroubleKind.PROTOCOL, text, "4.5.0")
        if self.awaited is Awaited.STARTTLS:
            return self._tls_answered(answer, is_followed=is_followed)
        if self.awaited is Awaited.EHLO and code >= 500 and self._may_do_without_ehlo:
            return self._command(f"HELO {self._helo}", Awaited.HELO)
        if code >= 400:
            return _refusal(answer)
        if self.awaited is Awaited.GREETING:
            return self._hello()
        self.extensions = parse_extensions(answer) if self.awaited is Awaited.EHLO else NO_EXTENSIONS
        return self._greeted()

    def _command(self, line: str, awaited: Awaited) -> bytes:
        self.awaited = awaited
        return line.encode("ascii") + b"\r\n"

    def _hello(self) -> bytes:
        verb = "LHLO" if self._protocol == "lmtp" else "EHLO"
        return self._command(f"{verb} {self._helo}", Awaited.EHLO)

    @property
    def _insists_on_tls(self) -> bool:
        return self._tls_demand.level not in (TlsLevel.NONE, TlsLevel.OPPORTUNISTIC)

    @property
    def _may_do_without_ehlo(self) -> bool:
        """RFC 5321 section 3.2: HELO is for servers that refuse EHLO. What needs an extension gains nothing by it."""
        needs_extension = (
            self._credentials is not None or self._needs_requiretls or (self.tls is None and self._insists_on_tls)
        )
        return self._protocol == "smtp" and not needs_extension

    # ------------------------------------------------------------ TLS

    def _greeted(self) -> Step:
        if self.tls is not None or self._tls_demand.level is TlsLevel.NONE:
            return self._secured()
        if self.extensions.starttls:
            return self._command("STARTTLS", Awaited.STARTTLS)
        return self._without_tls("The host does not offer STARTTLS")

    def _tls_answered(self, answer: ReceivedReply, *, is_followed: bool) -> Step:
        if answer.code >= 400:
            return self._without_tls(f"The host refuses STARTTLS: {answer.text()}")
        if is_followed:
            # RFC 3207 section 5: what came behind the reply was not protected, and whoever put it there means harm.
            return Trouble(TroubleKind.PROTOCOL, "There is input behind the reply to STARTTLS", "4.7.5")
        self.awaited = Awaited.HANDSHAKE
        return Phase.HANDSHAKE

    def _without_tls(self, why: str) -> Step:
        if self._insists_on_tls:
            return Trouble(TroubleKind.TLS, why, "4.7.4", tls_result="starttls-not-supported")
        self.tls_result = "starttls-not-supported"
        return self._secured()

    def _secured(self) -> Step:
        """There is TLS, or there need not be."""
        if self._needs_requiretls and not self.extensions.requiretls:
            # RFC 8689 section 4.2.1: another host of the route may offer it.
            return Trouble(TroubleKind.TLS, "The host does not offer REQUIRETLS (RFC 8689)", "5.7.30")
        if self._credentials is None:
            return Phase.READY
        self._mechanisms = mechanisms(
            self.extensions.mechanisms,
            self._credentials.username,
            self._credentials.password,
            lambda: base64.b64encode(os.urandom(18)),
            is_private=self.tls is not None or self._is_local,
        )
        return self._authenticate("The host offers no AUTH mechanism that may be used on this connection")

    # ------------------------------------------------------------ AUTH

    def _authenticate(self, why: str) -> Step:
        """Begin with the next mechanism, or give up for that reason."""
        if not self._mechanisms:
            return Trouble(TroubleKind.GREETING, why, "4.7.0")
        mechanism = self._mechanisms[0]
        line = f"AUTH {mechanism.name}"
        initial = mechanism.initial()
        if initial is not None:
            # RFC 4954 section 4: an initial response that makes the command too long waits to be asked for.
            whole = f"{line} {_base64(initial)}"
            if len(whole) + 2 <= MAX_COMMAND_OCTETS:
                line, initial = whole, None
        self._initial = initial
        return self._command(line, Awaited.AUTH)

    def _authenticated(self, answer: ReceivedReply) -> Step:
        mechanism = self._mechanisms[0]
        if self._exchange_error or answer.code in (504, 534):
            why = self._exchange_error or answer.text()
            self._exchange_error = ""
            self._mechanisms.pop(0)
            return self._authenticate(f"Authentication by {mechanism.name} failed: {why}")
        if 300 <= answer.code < 400:
            try:
                response = self._response(mechanism, answer)
            except ExchangeError as error:
                self._exchange_error = str(error)
                return self._command("*", Awaited.AUTH)
            return self._command(_base64(response), Awaited.AUTH)
        if answer.code >= 400:
            return _refusal(answer)
        if not mechanism.is_complete:
            return Trouble(TroubleKind.GREETING, "The host did not prove that it knows the password", "4.7.0")
        self._mechanisms.clear()
        return Phase.READY

    def _response(self, mechanism: Mechanism, answer: ReceivedReply) -> bytes:
        if self._initial is None:
            return mechanism.respond(_from_base64(answer.lines[0]))
        response, self._initial = self._initial, None
        return response


def _refusal(answer: ReceivedReply) -> Trouble:
    return Trouble(TroubleKind.GREETING, answer.text(), answer.status(Stage.SESSION), is_remote=True)


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def _from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ExchangeError("the challenge is not base64") from error
