"""How a checker of passwords becomes known: a plugin that names it and makes it.

Found where policies are (`mailgate.policy.plugin`): an object at module level of a file in a folder `mailgate/plugins/`
on Python's path, which provides `IPlugin` and `mailgate.interfaces.ICheckerProvider`. `mailgate.accounts.authenticator`
has an example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from twisted.cred.checkers import ICredentialsChecker
from twisted.plugin import IPlugin
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mailgate.interfaces import ICheckerProvider
from mailgate.policy.plugin import plugin_modules

if TYPE_CHECKING:
    from mailgate.policy.plugin import Services

DATABASE = "database"


class UnusableChecker(ValueError):
    """No checker of that name can be had; the message is for people."""


@implementer(IPlugin, ICheckerProvider)
class CheckerPlugin:
    """A provider made of its parts."""

    def __init__(self, name: str, make: Callable[[Services], ICredentialsChecker]) -> None:
        self.name = name
        self.make = make


def checker_names() -> list[str]:
    """What `authentication.checker` may say."""
    return sorted({DATABASE, *(plugin.name for plugin in _plugins())})


def make_checker(name: str, services: Services) -> ICredentialsChecker:
    """The checker that the plugin of that name makes. @raises UnusableChecker: there is none, or it makes none."""
    found = {plugin.name: plugin for plugin in _plugins()}
    if name not in found:
        known = ", ".join(checker_names())
        raise UnusableChecker(f"authentication.checker: {name!r} is no checker that is installed; use one of {known}")
    try:
        checker = found[name].make(services)
        verifyObject(ICredentialsChecker, checker)
    except Exception as error:  # a stranger's code, which may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableChecker(f"the plugin of {name!r} makes no checker: {reason}") from error
    return checker


def _plugins() -> list[CheckerPlugin]:
    values = [value for module in plugin_modules() for value in vars(module).values()]
    return [
        cast("CheckerPlugin", value)
        for value in values
        if ICheckerProvider.providedBy(value) and IPlugin.providedBy(value)
    ]
