"""A client of SCRAM-SHA-256 for tests, written from RFC 5802 without any of mailgate's own code."""

from __future__ import annotations

import base64
import hashlib
import hmac


class ScramClient:
    """One exchange. `gs2` is the header of the first message; `binding` what stands behind it in c=."""

    def __init__(
        self, name: str, password: str, *, nonce: str = "client-nonce", gs2: str = "n,,", binding: bytes = b""
    ) -> None:
        self._password = password.encode()
        self._gs2 = gs2.encode()
        self._binding = binding
        self._bare = f"n={name.replace('=', '=3D').replace(',', '=2C')},r={nonce}".encode()
        self._signature = b""

    def first(self) -> bytes:
        """The client's first message."""
        return self._gs2 + self._bare

    def final(self, server_first: bytes) -> bytes:
        """The client's final message."""
        parts = dict(part.split(b"=", 1) for part in server_first.split(b","))
        salted = hashlib.pbkdf2_hmac("sha256", self._password, base64.b64decode(parts[b"s"]), int(parts[b"i"]))
        client_key = hmac.new(salted, b"Client Key", "sha256").digest()
        without_proof = b"c=" + base64.b64encode(self._gs2 + self._binding) + b",r=" + parts[b"r"]
        message = self._bare + b"," + server_first + b"," + without_proof
        client_signature = hmac.new(hashlib.sha256(client_key).digest(), message, "sha256").digest()
        proof = bytes(a ^ b for a, b in zip(client_key, client_signature, strict=True))
        server_key = hmac.new(salted, b"Server Key", "sha256").digest()
        self._signature = hmac.new(server_key, message, "sha256").digest()
        return without_proof + b",p=" + base64.b64encode(proof)

    def accepts(self, server_final: bytes) -> bool:
        """Whether the server has proved that it knows the verifier."""
        return server_final == b"v=" + base64.b64encode(self._signature)
