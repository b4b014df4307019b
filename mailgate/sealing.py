"""The master key: what keys in the database are encrypted with, so that a copy of the database alone signs nothing.

AES-256-GCM: what was sealed for one purpose opens for that purpose only, and what was changed does not open. The key
comes from the file that the configuration names, else from a systemd credential (`LoadCredential=master-key:...`, also
encrypted with `LoadCredentialEncrypted=`), else, where the database is embedded and so is in the same data folder, from
a file made there. The rest of mailgate knows it by the first digits of its hash.

Not here: what is sealed (`mailgate.storage.signing_keys`).

Standards: NIST SP 800-38D (GCM; section 8.2.2: nonces of 96 random bits, for at most 2**32 sealings).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CREDENTIAL = "master-key"  # how the service manager calls it
_FILE = "master.key"  # in the data folder
_SYSTEM_CREDENTIALS = Path("/run/credentials/mailgate.service")  # where root finds what the running service was given

_KEY_OCTETS = 32
_NONCE_OCTETS = 12
_MAX_FILE_OCTETS = 1024
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{64}")


class UnusableKey(Exception):
    """There is no master key, or it is not the one that is needed; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class MasterKey:
    """32 octets, and where they came from."""

    octets: bytes = field(repr=False)
    source: str  # for people: a file

    @property
    def id(self) -> str:
        """What names it without telling it: the first 16 hexadecimal digits of its SHA-256."""
        return hashlib.sha256(self.octets).hexdigest()[:16]

    def seal(self, octets: bytes, purpose: str) -> bytes:
        """The octets, encrypted; `open` gives them back for the same purpose."""
        nonce = os.urandom(_NONCE_OCTETS)
        return nonce + AESGCM(self.octets).encrypt(nonce, octets, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """What was sealed for that purpose. @raises UnusableKey: it was not, or not by this key, or was changed."""
        try:
            return AESGCM(self.octets).decrypt(sealed[:_NONCE_OCTETS], sealed[_NONCE_OCTETS:], purpose.encode())
        except (InvalidTag, ValueError):
            raise UnusableKey(
                f"what the database holds for {purpose} does not open with the master key {self.id} of {self.source}"
            ) from None


def find_master_key(file: Path | None, environ: Mapping[str, str], *, made_in: Path | None = None) -> MasterKey | None:
    """The master key, or None where nobody has given one.

    `file` is what the configuration names; `made_in` is the data folder, where one is made if none is given.

    @raises UnusableKey: what is there can't be read, is no key, or can be read by everybody.
    """
    if file is not None:
        return read_master_key(file)
    folder = environ.get("CREDENTIALS_DIRECTORY")
    for credential in (Path(folder) / CREDENTIAL if folder else None, _SYSTEM_CREDENTIALS / CREDENTIAL):
        if credential is not None and os.access(credential, os.R_OK):
            return read_master_key(credential)
    if made_in is None:
        return None
    path = made_in / _FILE
    try:
        if not path.exists():
            _make(path)
    except OSError as error:
        raise UnusableKey(f"{path}: a master key can't be made: {error.strerror}") from error
    return read_master_key(path)


def read_master_key(path: Path) -> MasterKey:
    """The key in that file: 64 hexadecimal digits, 32 octets, or those in base64. @raises UnusableKey: it holds none.

    32 octets that anybody could type are a pass phrase, and no key.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_FILE_OCTETS)
    except OSError as error:
        raise UnusableKey(f"{path}: the master key can't be read: {error.strerror}") from error
    if mode & 0o007:
        raise UnusableKey(f"{path}: everybody may read this master key; `chmod 600 {path}` ends that")
    octets = content
    if content.isascii():
        text = content.strip()
        try:
            is_hexadecimal = _HEXADECIMAL.fullmatch(text) is not None
            octets = bytes.fromhex(text.decode()) if is_hexadecimal else base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            octets = b""
    if len(octets) != _KEY_OCTETS:
        raise UnusableKey(f"{path}: it holds no master key, which `openssl rand -hex 32` would make")
    return MasterKey(octets, str(path))


def _make(path: Path) -> None:
    """Make a key in that file, whole or not at all; if another process was faster, its key stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(_KEY_OCTETS).hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if os.geteuid() == 0:  # the command line may be root's where the service is not
            owner = path.parent.stat()
            os.chown(draft, owner.st_uid, owner.st_gid)
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)
