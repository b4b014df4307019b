"""Messages on their way out, for tests of what carries them."""

from __future__ import annotations

from typing import Any

from mailgate.outbound.plan import OutgoingMessage, OutgoingRecipient

LINES = b"Subject: Example\r\n\r\n.\r\n..two\r\nText\r\n"


class Pieces:
    """Content that is there, in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.size_octets = sum(map(len, pieces))
        self.asked: list[int] = []

    def piece(self, number: int) -> bytes:
        """As `OutgoingContent.piece`."""
        self.asked.append(number)
        return self._pieces[number] if number < len(self._pieces) else b""


def outgoing(
    *addresses: str, pieces: tuple[bytes, ...] = (LINES,), message_id: int = 1, **options: Any
) -> OutgoingMessage:
    """A message to these, whose queue ids are message_id * 100 and so on."""
    recipients = tuple(
        OutgoingRecipient(message_id * 100 + place, address)
        for place, address in enumerate(addresses or ("carol@host.test",))
    )
    return OutgoingMessage(
        message_id, options.pop("reverse_path", "alice@example.test"), recipients, Pieces(*pieces), **options
    )
