"""Policies as plugins: how they are found, made, tuned, and run in threads."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.plugin import IPlugin
from twisted.trial import unittest
from zope.interface import classImplements, implementer
from zope.interface.verify import verifyObject

import mailgate.plugins
from mailgate.config import USUAL_POLICIES
from mailgate.dns.zone import Zone
from mailgate.interfaces import IPolicy, IPolicyProvider
from mailgate.policy import plugin as plugin_module
from mailgate.policy.chain import Chain
from mailgate.policy.plugin import (
    THREADS,
    PolicyPlugin,
    PolicyThreads,
    Services,
    UnusablePolicy,
    in_thread,
    make_policy,
    policy,
    providers,
)
from mailgate.policy.stage import Request, Role, SessionView, Stage
from mailgate.policy.verdict import Continue, Decision, Defer, Reject, Verdict
from mailgate.smtp.reply import reply
from tests.support.waiting import reactor, until

SESSION = SessionView(1, "mx", Role.MX, "192.0.2.7", 40000, "192.0.2.7/32", "192.0.2.25", 25, 0.0)
REQUEST = Request(Stage.HELO, SESSION)
REJECT = Reject(reply(550, "5.7.1", "No"))


def services(threads: PolicyThreads | None = None) -> Services:
    return Services(reactor, Clock().seconds, Zone(), "mail.example.test", threads or PolicyThreads())


# ---------------------------------------------------------------- finding


class Site:
    """A folder on Python's path, as somebody would install plugins into."""

    def __init__(self, folder: Path) -> None:
        self.plugins = folder / "mailgate" / "plugins"
        self.plugins.mkdir(parents=True)
        self.written: list[str] = []

    def write(self, name: str, code: str) -> None:
        (self.plugins / f"{name}.py").write_text(code)
        self.written.append(f"mailgate.plugins.{name}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path)
    monkeypatch.setattr(mailgate.plugins, "__path__", [*mailgate.plugins.__path__, str(site.plugins)])
    monkeypatch.setattr(plugin_module, "_reported", set())
    yield site
    for name in site.written:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == "mailgate.policy.plugin":
            lines.append(str(event.get("line", event.get("log_format"))))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


GOOD = '''
from mailgate.policy.plugin import policy
from mailgate.policy.stage import Stage
from mailgate.policy.verdict import Continue

@policy("{name}", Stage.HELO)
def a_policy(request):
    """Say nothing."""
    return Continue()
'''


def test_the_policies_that_are_built_in_are_found() -> None:
    """And each makes a policy with its defaults."""
    found = providers()
    assert set(USUAL_POLICIES) <= set(found)
    for name in USUAL_POLICIES:
        assert verifyObject(IPolicyProvider, found[name])
        made = make_policy(found[name], found[name].options(), services())
        assert made.name == name


def test_a_policy_in_a_file_on_the_path_is_found(site: Site, said: list[str]) -> None:
    """And one that is put there later as well: a reload finds it."""
    site.write("one", GOOD.format(name="first"))
    assert providers()["first"].name == "first"
    site.write("two", GOOD.format(name="second"))
    assert {"first", "second", *USUAL_POLICIES} <= set(providers())
    assert said == []


def test_the_folders_are_those_where_twisted_looks() -> None:
    """`mailgate/plugins` in each folder of the path, if that is no package of its own."""
    assert str(Path(mailgate.plugins.__file__ or "").parent) in mailgate.plugins.__path__
    assert IPlugin.implementedBy(PolicyPlugin)


BROKEN = {
    "no_import": ("import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
    "no_syntax": ("def", "SyntaxError: invalid syntax (no_syntax.py, line 1)"),
    "raises": ("raise ValueError('oh')", "ValueError: oh"),
    "exits": ("import sys; sys.exit(1)", "SystemExit: 1"),
}


@pytest.mark.parametrize(("name", "code", "problem"), [(name, *rest) for name, rest in BROKEN.items()])
def test_a_broken_file_is_named_and_takes_no_other_with_it(
    name: str, code: str, problem: str, site: Site, said: list[str]
) -> None:
    """It is said once, however often one looks."""
    site.write(name, code)
    site.write("zz_fine", GOOD.format(name="fine"))
    for _ in range(3):
        assert {"fine", *USUAL_POLICIES} <= set(providers())
    assert said == [
        f"plugin mailgate.plugins.{name} is left out: its file in {site.plugins} can't be loaded: {problem}"
    ]


UNFIT = {
    "no name": ("''", "NoOptions", "it has no name"),
    "a number for a name": ("1", "NoOptions", "it has no name"),
    "options that are no dataclass": ("'x'", "dict", "its options are no dataclass"),
    "an option without a default": ("'x'", "Needy", "its option number has no default"),
    "an option of an unknown type": ("'x'", "Odd", "its options can't be read: NameError: name 'Unknown'"),
}


@pytest.mark.parametrize(("name", "options", "problem"), UNFIT.values(), ids=UNFIT.keys())
def test_a_plugin_that_can_not_be_tuned_is_left_out(
    name: str, options: str, problem: str, site: Site, said: list[str]
) -> None:
    """What the configuration reads has to be readable, whatever is in the file."""
    site.write(
        "unfit",
        f"""
from __future__ import annotations
from dataclasses import dataclass
from mailgate.policy.plugin import NoOptions, PolicyPlugin

@dataclass(frozen=True)
class Needy:
    number: int

@dataclass(frozen=True)
class Odd:
    number: Unknown = 1

unfit = PolicyPlugin({name}, None, {options})
""",
    )
    assert set(providers()) & {"x", "", 1} == set()
    (line,) = said
    assert line.startswith("plugin mailgate.plugins.unfit is left out: ")
    assert problem in line


def test_a_name_that_is_taken_stays_with_whom_it_was(site: Site) -> None:
    """What is built in can't be put out of the way by a file that is found before it."""
    for name in ("aaa", "zzz"):
        site.write(name, GOOD.format(name="dmarc"))
    assert providers()["dmarc"].options().on_reject == "reject"


# ---------------------------------------------------------------- making


@dataclass(frozen=True, slots=True)
class Words:
    refused: str = "casino"


def test_a_function_becomes_a_policy() -> None:
    """With its stages, and the policies that it wants to come after."""

    @policy("short", Stage.HELO, Stage.MAIL, after=("spf",))
    def short(_request: Request) -> Verdict:
        return REJECT

    made: Any = make_policy(short, short.options(), services())  # Any: an interface has no types
    assert verifyObject(IPolicy, made)
    assert (made.name, made.stages, made.after) == ("short", {Stage.HELO, Stage.MAIL}, ("spf",))
    assert made.decide(REQUEST) == REJECT


def test_a_function_is_given_its_options() -> None:
    @policy("words", Stage.HELO, options=Words)
    def words(_request: Request, options: Words) -> Verdict:
        return Reject(reply(550, "5.7.1", options.refused))

    for options, text in ((Words(), "casino"), (Words("lottery"), "lottery")):
        made: Any = make_policy(words, options, services())  # Any: as above
        assert made.decide(REQUEST).reply.lines == (text,)


def test_an_async_function_is_awaited() -> None:
    waiting: Deferred[Verdict] = Deferred()

    @policy("slow", Stage.HELO)
    async def slow(_request: Request) -> Verdict:
        return await waiting

    decided: list[Decision] = []
    deciding = Chain(Clock(), [make_policy(slow, slow.options(), services())]).decide(REQUEST)
    assert isinstance(deciding, Deferred)
    deciding.addCallback(decided.append)
    waiting.callback(REJECT)
    assert [decision.verdict for decision in decided] == [REJECT]


class Half:
    """Says that it is a policy, and has only the name of one."""

    name = "half"


classImplements(Half, IPolicy)  # type: ignore[misc]  # it does not


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda _options, _services: 1 / 0, "division by zero"),
        (lambda _options, _services: None, "attribute was not provided"),
        (lambda _options, _services: object(), "attribute was not provided"),
        (lambda _options, _services: Half(), "stages"),
        (lambda: None, "takes 0 positional arguments but 2 were given"),
    ],
)
def test_a_plugin_that_makes_no_policy_says_why(make: Callable[..., Any], problem: str, said: list[str]) -> None:
    """An operator reads a line, and the log has the traceback."""
    plugin = PolicyPlugin("mine", make)
    with pytest.raises(UnusablePolicy) as caught:
        make_policy(plugin, plugin.options(), services())
    assert str(caught.value).startswith("the plugin of 'mine' makes no policy: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert said == ["the plugin of policy {name} failed"]


# ---------------------------------------------------------------- threads


class ThreadTests(unittest.TestCase):
    """Policies that block, on the real reactor."""

    def setUp(self) -> None:
        self.threads = PolicyThreads()
        self.threads.start()
        self.gate = threading.Event()
        self.entered = 0
        self.together = 0
        self.most = 0
        self.lock = threading.Lock()
        self.reactor_thread = threading.get_ident()

    def tearDown(self) -> None:
        self.gate.set()
        self.threads.abandon()

    def blocking(self) -> Any:  # Any: an interface has no types
        """A policy that waits until the gate is open."""

        @policy("blocks", Stage.HELO)
        @in_thread
        def blocks(_request: Request) -> Verdict:
            assert threading.get_ident() != self.reactor_thread
            with self.lock:
                self.entered += 1
                self.together += 1
                self.most = max(self.most, self.together)
            self.gate.wait(30)
            with self.lock:
                self.together -= 1
            return REJECT

        return make_policy(blocks, blocks.options(), services(self.threads))

    async def test_a_thread_is_held_up_and_the_reactor_is_not(self) -> None:
        deciding = Chain(reactor, [self.blocking()]).decide(REQUEST)
        assert isinstance(deciding, Deferred)
        await until(reactor, lambda: self.entered == 1)
        self.gate.set()
        decision = await deciding
        assert decision.verdict == REJECT

    async def test_the_deadline_holds_for_a_thread(self) -> None:
        """What it says later, nobody hears."""
        decision = await Chain(reactor, [self.blocking()], {Stage.HELO: 0.05}).decide(REQUEST)  # type: ignore[misc]
        assert isinstance(decision.verdict, Defer)
        assert decision.policy == "blocks"
        self.gate.set()
        await until(reactor, lambda: self.together == 0)

    async def test_threads_are_bounded_and_what_nobody_waits_for_is_not_begun(self) -> None:
        chain = Chain(reactor, [self.blocking()], {Stage.HELO: 0.2})
        deciding = [chain.decide(REQUEST) for _ in range(3 * THREADS)]
        for each in deciding:
            assert isinstance((await each).verdict, Defer)  # type: ignore[misc]  # they are Deferreds
        self.gate.set()
        await until(reactor, lambda: self.together == 0)
        after = Chain(reactor, [self.blocking()]).decide(REQUEST)
        assert (await after).verdict == REJECT  # type: ignore[misc]  # as above
        assert self.most == THREADS
        assert self.entered == THREADS + 1

    async def test_what_a_thread_raises_is_451_and_named(self) -> None:
        @policy("raises", Stage.HELO)
        @in_thread
        def raises(_request: Request) -> Verdict:
            raise ZeroDivisionError

        made = make_policy(raises, raises.options(), services(self.threads))
        decision = await Chain(reactor, [made]).decide(REQUEST)  # type: ignore[misc]  # as above
        assert isinstance(decision.verdict, Defer)
        assert decision.policy == "raises"
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1  # type: ignore[no-untyped-call]  # Twisted's

    async def test_a_thread_that_hangs_keeps_nobody_from_ending(self) -> None:
        """Stopping waits for no thread, and none of them keeps the process alive."""
        deciding = Chain(reactor, [self.blocking()]).decide(REQUEST)
        assert isinstance(deciding, Deferred)
        await until(reactor, lambda: self.entered == 1)
        self.threads.abandon()
        assert all(thread.daemon for thread in self.threads.threads)
        self.gate.set()
        assert (await deciding).verdict == REJECT

    async def test_options_reach_a_function_in_a_thread(self) -> None:
        @policy("words", Stage.HELO, options=Words)
        @in_thread
        def words(_request: Request, options: Words) -> Verdict:
            return Continue((options.refused,))

        made = make_policy(words, Words("lottery"), services(self.threads))
        decision = await Chain(reactor, [made]).decide(REQUEST)  # type: ignore[misc]  # as above
        assert decision.notes == ("lottery",)
