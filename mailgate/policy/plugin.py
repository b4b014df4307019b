"""How a policy becomes known: a plugin that names it, says what it can be tuned by, and makes it.

A plugin is an object at module level of a file in a folder `mailgate/plugins/` anywhere on Python's path, as Twisted
finds plugins. It provides `mailgate.interfaces.IPolicyProvider`; the two below make one of a class or of a function:

    @policy("no-subject", Stage.END_OF_DATA)
    def no_subject(request):
        if not fields_of(request.content.header(), b"Subject"):
            return Reject(reply(550, "5.7.1", "A subject, please"))
        return Continue()

Standards: Twisted's plugin system.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from twisted.internet.threads import deferToThreadPool
from twisted.plugin import IPlugin, getPlugins
from zope.interface import implementer

import mailgate.plugins
from mailgate.interfaces import IPolicy, IPolicyProvider

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.threadpool import ThreadPool

    from mailgate.dns.settle import Resolver
    from mailgate.policy.stage import Request, Stage
    from mailgate.policy.verdict import Verdict

THREADS = 8


@dataclass(frozen=True, slots=True)
class Services:
    """What a policy may use. Shared by all policies of a node."""

    reactor: Any  # Any: Twisted's reactor has more interfaces than a type can name
    time: Callable[[], float]  # seconds since the epoch
    resolver: Resolver
    hostname: str
    threads: ThreadPool  # of THREADS threads, for policies that block


@dataclass(frozen=True, slots=True)
class NoOptions:
    """For a policy that can't be tuned."""


@implementer(IPlugin, IPolicyProvider)
class PolicyPlugin:
    """A provider made of its parts. `make` is called with the options and the Services, once for each use."""

    def __init__(
        self, name: str, make: Callable[[Any, Services], IPolicy], options: type[Any] = NoOptions
    ) -> None:  # Any: a dataclass of the policy's own
        self.name = name
        self.options = options
        self.make = make


@implementer(IPolicy)
class FunctionPolicy:
    """A policy whose opinion is a function's of the request."""

    def __init__(
        self,
        name: str,
        stages: Iterable[Stage],
        function: Callable[..., Verdict | Awaitable[Verdict]],
        after: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.stages = frozenset(stages)
        self.after = tuple(after)
        self._function = function

    def decide(self, request: Request) -> Verdict | Awaitable[Verdict]:
        """The function's answer."""
        return self._function(request)


def policy(
    name: str, *stages: Stage, after: Iterable[str] = (), options: type[Any] = NoOptions
) -> Callable[[Callable[..., Verdict | Awaitable[Verdict]]], PolicyPlugin]:
    """Make a plugin of a function, plain or async, that is given the request at each of the stages.

    With `options`, a frozen dataclass whose fields all have defaults, the function is given an instance of it as well.
    `after` names policies whose notes of the same stage it wants to see.
    """

    def make_plugin(function: Callable[..., Verdict | Awaitable[Verdict]]) -> PolicyPlugin:
        def make(chosen: Any, services: Services) -> IPolicy:
            bound = functools.partial(function, options=chosen) if options is not NoOptions else function
            if getattr(function, "runs_in_thread", False):
                bound = functools.partial(_in_thread, services, bound)
            return FunctionPolicy(name, stages, bound, after)

        return PolicyPlugin(name, make, options)

    return make_plugin


def in_thread(function: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """Run a function that blocks in one of a few threads; it stands below `@policy`.

    The stage's deadline holds as for any other; a thread that is late finishes all the same, and nobody hears it.
    """
    function.runs_in_thread = True  # type: ignore[attr-defined]  # a mark on a function
    return function


def _in_thread(services: Services, function: Callable[..., Any], request: Request) -> Deferred[Any]:
    # Any: a Verdict, which the chain checks
    return deferToThreadPool(services.reactor, services.threads, function, request)


class Provider(Protocol):
    """What an IPolicyProvider looks like to the type checker."""

    name: str
    options: type[Any]  # Any: a dataclass of the policy's own

    def make(self, options: Any, services: Services) -> IPolicy: ...  # noqa: D102  # the interface's


def providers() -> Mapping[str, Provider]:
    """Every policy that is installed, by the name that `use` gives; of two alike, the built-in one."""
    found: dict[str, Provider] = {}
    for provided in getPlugins(IPolicyProvider, mailgate.plugins):
        plugin: Provider = cast("Provider", provided)
        is_ours = type(plugin).__module__.startswith("mailgate.") and plugin.name in _BUILT_IN
        if plugin.name not in found or is_ours:
            found[plugin.name] = plugin
    return found


_BUILT_IN = frozenset({"spf", "dkim", "arc", "dmarc"})
