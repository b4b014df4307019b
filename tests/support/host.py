"""A host that does as it is told: what a client sends goes in, what the host answers comes out. No I/O.

It reads content with `mailgate.smtp.framing`, and is strict: a line of a command that holds CR or LF, or MAIL within a
transaction, fails the test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mailgate.smtp.framing import DataFramer

EXTENSIONS = ("PIPELINING", "SIZE 50000000", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")


@dataclass
class Host:
    """What it says to each verb is in `says`; a list is used up, one a command, its last one again and again."""

    extensions: tuple[str, ...] = EXTENSIONS
    greeting: bytes = b"220 host.test ESMTP\r\n"
    says: dict[str, bytes | list[bytes]] = field(default_factory=dict)
    is_lmtp: bool = False
    commands: list[bytes] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    _buffer: bytes = b""
    _framer: DataFramer | None = None
    _chunk_octets: int = 0
    _is_last_chunk: bool = False
    _chunks: bytes = b""
    _accepted: int = 0
    _is_open: bool = False

    def receive(self, data: bytes) -> bytes:
        """What the host answers to these octets."""
        self._buffer += data
        replies = b""
        while True:
            if self._framer is not None:
                end = self._framer.feed(self._buffer)
                if end is None:
                    self._buffer = b""
                    return replies
                self._buffer = self._buffer[end:]
                assert self._framer.fault is None, self._framer.fault
                self.messages.append(b"".join(self._framer.content().pieces))
                self._framer = None
                replies += self._ended()
                continue
            if self._chunk_octets:
                if len(self._buffer) < self._chunk_octets:
                    return replies
                replies += self._chunk()
                continue
            line, separator, rest = self._buffer.partition(b"\r\n")
            if not separator:
                return replies
            assert b"\n" not in line
            assert b"\r" not in line
            self._buffer = rest
            self.commands.append(line)
            replies += self._answer(line)

    def _answer(self, line: bytes) -> bytes:
        verb = line.split(b" ")[0].decode("ascii").upper()
        match verb:
            case "EHLO" | "LHLO":
                lines = ["host.test", *self.extensions]
                usual = "".join(f"250-{text}\r\n" for text in lines[:-1]) + f"250 {lines[-1]}\r\n"
                return self._say(verb, usual.encode())
            case "MAIL":
                assert not self._is_open, "MAIL within a transaction"
                said = self._say(verb, b"250 2.1.0 Sender ok\r\n")
                self._is_open = said.startswith(b"2")
                self._accepted = 0
                return said
            case "RCPT":
                said = self._say(verb, b"250 2.1.5 Recipient ok\r\n" if self._is_open else b"503 5.5.1 MAIL first\r\n")
                self._accepted += said.startswith(b"2")
                return said
            case "DATA":
                said = self._say(verb, b"354 Go on\r\n" if self._accepted else b"554 5.5.1 No valid recipients\r\n")
                if said.startswith(b"3"):
                    self._framer = DataFramer(100_000_000, 100_000_000)
                return said
            case "BDAT":
                words = line.split(b" ")
                self._chunk_octets = int(words[1])
                self._is_last_chunk = words[2:] == [b"LAST"]
                return b"" if self._chunk_octets else self._chunk()
            case "RSET":
                self._is_open = False
                self._chunks = b""
                return self._say(verb, b"250 2.0.0 Reset\r\n")
            case "QUIT":
                return self._say(verb, b"221 2.0.0 Bye\r\n")
            case _:
                return self._say(verb, b"500 5.5.2 What?\r\n")

    def _chunk(self) -> bytes:
        octets, self._buffer = self._buffer[: self._chunk_octets], self._buffer[self._chunk_octets :]
        self._chunk_octets = 0
        if not self._accepted:
            return b"554 5.5.1 No valid recipients\r\n"
        self._chunks += octets
        if not self._is_last_chunk:
            return self._say("BDAT", b"250 2.0.0 Chunk\r\n")
        self.messages.append(self._chunks)
        self._chunks = b""
        return self._ended()

    def _ended(self) -> bytes:
        self._is_open = False
        return b"".join(
            self._say("END", b"250 2.0.0 Accepted\r\n") for _ in range(self._accepted if self.is_lmtp else 1)
        )

    def _say(self, verb: str, usual: bytes) -> bytes:
        said = self.says.get(verb)
        if said is None:
            return usual
        if isinstance(said, bytes):
            return said
        return said.pop(0) if len(said) > 1 else said[0]
