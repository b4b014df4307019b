"""How a policy becomes known: a plugin that names it, says what it can be tuned by, and makes it.

A plugin is an object at module level of a file in a folder `mailgate/plugins/` anywhere on Python's path, where Twisted
has its plugins; it provides `IPlugin` and `mailgate.interfaces.IPolicyProvider`. The two below make one of a class or
of a function:

    @policy("no-subject", Stage.END_OF_DATA)
    def no_subject(request):
        if not fields_of(request.content.header(), b"Subject"):
            return Reject(reply(550, "5.7.1", "A subject, please"))
        return Continue()

The files are imported here, and not by Twisted's `getPlugins`: that one keeps a pickle beside them, which a running
server should neither write nor believe, and does not say which file is broken.

Standards: Twisted's plugin system, but for its cache.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from twisted.internet.defer import CancelledError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.plugin import IPlugin
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer
from zope.interface.verify import verifyObject

import mailgate.plugins
from mailgate.interfaces import IPolicy, IPolicyProvider
from mailgate.toml import entries

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from mailgate.dns.settle import Resolver
    from mailgate.policy.stage import Request, Stage
    from mailgate.policy.verdict import Verdict

THREADS = 8

_log = Logger()


class UnusablePolicy(ValueError):
    """A plugin that was found gives no policy; the message is for people."""


class _DaemonThread(threading.Thread):
    """A thread that does not keep the process alive."""

    def __init__(self, *arguments: Any, **more: Any) -> None:  # Any: whatever a Thread takes
        super().__init__(*arguments, **more, daemon=True)


class PolicyThreads(ThreadPool):
    """Threads for what blocks: so many at most, and nobody waits for them when the process is to end."""

    threadFactory = _DaemonThread

    def __init__(self, threads: int = THREADS, name: str = "mailgate-policies") -> None:
        super().__init__(0, threads, name)
        self._is_abandoned = False

    def abandon(self) -> None:
        """Let the threads end when they have done what they do, and don't wait for that."""
        if not self._is_abandoned:
            self._is_abandoned = True
            # To stop a pool is to join its threads: one of them may hang for good.
            threading.Thread(target=self.stop, daemon=True).start()


@dataclass(frozen=True, slots=True)
class Services:
    """What a policy may use. Shared by all policies of a node."""

    reactor: Any  # Any: Twisted's reactor has more interfaces than a type can name
    time: Callable[[], float]  # seconds since the epoch
    resolver: Resolver
    hostname: str
    threads: PolicyThreads  # for policies that block


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

    The stage's deadline holds as for any other; a thread that is late finishes all the same, and nobody hears it. What
    waited for a thread until the deadline is not begun.
    """
    function.runs_in_thread = True  # type: ignore[attr-defined]  # a mark on a function
    return function


def _in_thread(services: Services, function: Callable[..., Any], request: Request) -> Deferred[Any]:
    # Any: a Verdict, which the chain checks
    is_wanted = True

    def run() -> object:
        return function(request) if is_wanted else None

    def cancelled(failure: Failure) -> Failure:
        nonlocal is_wanted
        is_wanted = not failure.check(CancelledError)
        return failure

    return deferToThreadPool(services.reactor, services.threads, run).addErrback(cancelled)


class Provider(Protocol):
    """What an IPolicyProvider looks like to the type checker."""

    name: str
    options: type[Any]  # Any: a dataclass of the policy's own

    def make(self, options: Any, services: Services) -> IPolicy: ...  # noqa: D102  # the interface's


def providers() -> Mapping[str, Provider]:
    """Every policy that is installed, by the name that `use` gives; of two alike, the built-in one.

    What is broken is named in the log, and takes nothing else with it.
    """
    found: dict[str, Provider] = {}
    for module in plugin_modules():
        for value in list(vars(module).values()):
            if not (IPolicyProvider.providedBy(value) and IPlugin.providedBy(value)):
                continue
            plugin = cast("Provider", value)
            problem = _problem_of(plugin)
            if problem:
                report_plugin(module.__name__, f"{plugin!r}: {problem}")
            elif plugin.name not in found or module.__name__ == _BUILT_IN:
                found[plugin.name] = plugin
    return found


def make_policy(provider: Provider, options: Any, services: Services) -> IPolicy:
    """A policy for the chain. @raises UnusablePolicy: its plugin makes none."""
    try:
        policy = provider.make(options, services)
        verifyObject(IPolicy, policy)
    except Exception as error:
        _log.failure("the plugin of policy {name} failed", name=provider.name)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusablePolicy(f"the plugin of {provider.name!r} makes no policy: {reason}") from error
    return policy


_BUILT_IN = "mailgate.plugins.builtin"
_reported: set[str] = set()


def plugin_modules() -> Iterator[ModuleType]:
    """Every file of plugins that can be loaded; one that can't is named in the log."""
    importlib.invalidate_caches()
    for entry in pkgutil.iter_modules(mailgate.plugins.__path__, f"{mailgate.plugins.__name__}."):
        try:
            yield importlib.import_module(entry.name)
        except (Exception, SystemExit) as error:  # a stranger's code, which may do anything
            where = getattr(entry.module_finder, "path", "")
            report_plugin(entry.name, f"its file in {where} can't be loaded: {type(error).__name__}: {error}")


def report_plugin(name: str, problem: str) -> None:
    """Say once that something of a plugin is left out: plugins are looked for at every reload, and by every command."""
    line = f"plugin {name} is left out: {problem}"
    if line not in _reported:
        _reported.add(line)
        _log.error("{line}", line=line)


def _problem_of(plugin: object) -> str:
    """Why a provider can't be used; "" where it can."""
    name, options = getattr(plugin, "name", None), getattr(plugin, "options", None)
    if not isinstance(name, str) or not name:
        return "it has no name"
    if not isinstance(options, type) or not is_dataclass(options):
        return "its options are no dataclass"
    try:
        without = [entry.key for entry in entries(options) if entry.has_no_default]
    except Exception as error:  # a type may name anything
        return f"its options can't be read: {type(error).__name__}: {error}"
    return f"its option {without[0]} has no default" if without else ""
