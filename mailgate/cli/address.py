"""Addresses and domains as people type and read them: A- or U-form in, keys for the database, U-form out."""

from __future__ import annotations

import click
import idna

from mailgate.envelope import Address
from mailgate.smtp.grammar import GrammarError, domain_key, local_key, parse_mailbox


def domain_argument(value: str) -> str:
    """The key of the domain that was typed: "xn--bcher-kva.example" or "[192.0.2.1]".

    @raises click.BadParameter: it is no domain.
    """
    try:
        return domain_key(value)
    except GrammarError as error:
        raise click.BadParameter(f"{value!r}: {error}") from error


def address_argument(value: str) -> Address:
    """The address that was typed, with both parts as the keys that the database has.

    @raises click.BadParameter: it is no address.
    """
    address = target_argument(value)
    return Address(local_key(address.local), address.domain)


def target_argument(value: str) -> Address:
    """The address that was typed, perhaps one elsewhere, where case may matter (RFC 5321 section 2.4).

    @raises click.BadParameter: it is no address.
    """
    try:
        address = parse_mailbox(value)
        return Address(address.local, domain_key(address.domain))
    except GrammarError as error:
        raise click.BadParameter(f"{value!r}: {error}") from error


def readable_domain(name: str) -> str:
    """The domain in U-form, or as it is where that is no valid IDNA2008 name."""
    if "xn--" not in name:
        return name
    try:
        return idna.decode(name)
    except UnicodeError:  # idna.IDNAError is one
        return name


def readable_address(text: str) -> str:
    """An address of the database with its domain in U-form."""
    local, at, domain = text.rpartition("@")
    return f"{local}@{readable_domain(domain)}" if at else text


def readable(local_part: str, domain: str) -> str:
    """The address of that local part and domain, quoted where it must be, in U-form."""
    return str(Address(local_part, readable_domain(domain)))
