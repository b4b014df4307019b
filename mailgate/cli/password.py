"""Passwords at the command line: asked for or read, never an argument, and stored as what checks them.

An argument would stand in the shell's history and in the list of processes.

Standards: RFC 4013 (the form of a password), RFC 9106 and RFC 5802 (what is stored).
"""

from __future__ import annotations

import os
import sys

import click

from mailgate.accounts.passwords import UnusablePassword, hash_password, prepared_password, salt_of, selector_of
from mailgate.cli.database import Database, Failure, octets_of
from mailgate.envelope import Address

_MIN_CHARS = 8
_SALT_SECRET = "scram-salt"  # noqa: S105  # its name
_SECRET_OCTETS = 32


def ask_for_password(address: str) -> bytes:
    """The password that was typed twice or, off a terminal, the first line of standard input; prepared.

    @raises Failure: it can't be one.
    """
    if sys.stdin.isatty():
        text: str = click.prompt(f"Password for {address}", hide_input=True, confirmation_prompt="The same again")
    else:
        text = sys.stdin.readline().rstrip("\r\n")
    try:
        password = prepared_password(text)
    except UnusablePassword as error:
        raise Failure(str(error)) from error
    if len(password.decode()) < _MIN_CHARS:
        raise Failure(f"a password has {_MIN_CHARS} characters at least; put it on standard input, or type it")
    return password


def store_password(database: Database, mailbox_id: int, address: Address, name: str, password: bytes) -> bool:
    """Whether it was stored. The account's own, "", replaces another; an app password does not: its name is taken."""
    # All passwords of an account have one salt, which follows from a secret that all nodes share.
    database.run("share_secret", name=_SALT_SECRET, octets=os.urandom(_SECRET_OCTETS))
    ((secret,),) = database.rows("find_secret", name=_SALT_SECRET)
    argon2, verifier = hash_password(password, salt_of(octets_of(secret), str(address)))
    stored = database.run(
        "replace_password" if name == "" else "add_app_password",
        mailbox_id=mailbox_id,
        name=name,
        selector=None if name == "" else selector_of(password),
        argon2=argon2,
        scram_sha256=verifier.text(),
    )
    return stored > 0
