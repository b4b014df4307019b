"""Which account a program of this machine sends as: by the user that it runs as, as the kernel tells over a socket.

So a program that can't keep a password needs none, and still can't send as anybody: it has the rights of one account,
no more. Who may connect at all is the mode of the socket.

Standards: unix(7), SO_PEERCRED.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

ANY_OTHER = "*"


@dataclass(frozen=True, slots=True)
class LocalUsers:
    """The accounts by the numbers of users, and that of all others; None: those have to authenticate."""

    accounts: Mapping[int, str]
    others: str | None = None

    def account_of(self, uid: int) -> str | None:
        """The account that this user sends as."""
        return self.accounts.get(uid, self.others)


def local_users(table: Iterable[tuple[str, str]], uid_of: Callable[[str], int]) -> tuple[LocalUsers, tuple[str, ...]]:
    """The users of a table of names (or numbers, or "*") and accounts, and the names that this machine does not know.

    `uid_of` gives a name's number, and raises KeyError where there is no such user.
    """
    accounts: dict[int, str] = {}
    others: str | None = None
    unknown: list[str] = []
    for name, account in table:
        if name == ANY_OTHER:
            others = account
        elif name.isascii() and name.isdigit():
            accounts[int(name)] = account
        else:
            try:
                accounts[uid_of(name)] = account
            except KeyError:
                unknown.append(name)
    return LocalUsers(accounts, others), tuple(unknown)
