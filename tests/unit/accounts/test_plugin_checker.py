"""Another checker of passwords, brought by a plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

import mailgate.plugins
from mailgate.accounts.authenticator import CHECK_SECONDS, REFUSED, UNAVAILABLE, Authenticator, Offer
from mailgate.accounts.bans import Guard
from mailgate.accounts.plugin import UnusableChecker, make_checker
from mailgate.dns.zone import Zone
from mailgate.policy.plugin import PolicyThreads, Services
from mailgate.storage.credentials import Bounds, Failures
from tests.support.accounts import NoFailures, view

EXAMPLE = """
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer
from zope.interface import implementer
from mailgate.accounts.plugin import CheckerPlugin

@implementer(ICredentialsChecker)
class WordChecker:
    credentialInterfaces = (IUsernamePassword,)
    def __init__(self, services):
        self.hostname = services.hostname
    def requestAvatarId(self, credentials):
        if credentials.checkPassword(b"open sesame"):
            return credentials.username
        return defer.fail(UnauthorizedLogin())

word = CheckerPlugin("word", WordChecker)
broken = CheckerPlugin("broken", lambda services: 1 / 0)
nothing = CheckerPlugin("nothing", lambda services: object())
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "word_checker.py").write_text(EXAMPLE, "utf-8")
    monkeypatch.setattr(mailgate.plugins, "__path__", [*mailgate.plugins.__path__, str(tmp_path)])
    yield


def services() -> Services:
    return Services(Clock(), Clock().seconds, Zone(), "mail.example.test", PolicyThreads())


def authenticator(checker: Any, clock: Clock, failures: Failures) -> Authenticator:
    # Any: a checker of twisted.cred
    return Authenticator(clock, checker, Guard(clock, failures, Bounds()), {"submission": Offer.TLS})


def answer_of(clock: Clock, answer: object) -> object:
    if not isinstance(answer, Deferred):
        return answer
    found: list[object] = []
    answer.addBoth(found.append)
    clock.advance(1.0)
    return found[0] if found else None


@pytest.mark.usefixtures("plugin")
def test_a_plugin_checks_passwords_in_place_of_the_database() -> None:
    """What it can't check is not offered, and its failures are counted like any."""
    clock, failures = Clock(), NoFailures()
    ours = authenticator(make_checker("word", services()), clock, failures)
    assert ours.mechanisms(view()) == ("PLAIN", "LOGIN")
    step = ours.begin("PLAIN", view()).step(b"\0Alice@example.test\0open sesame")
    assert answer_of(clock, step) == "alice@example.test"
    step = ours.begin("PLAIN", view()).step(b"\0Alice@example.test\0open barley")
    assert answer_of(clock, step) is REFUSED
    assert failures.counted == ["alice@example.test"]


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ldap", "'ldap' is no checker that is installed; use one of broken, database, nothing, word"),
        ("broken", "division by zero"),
        ("nothing", "makes no checker"),
    ],
)
def test_a_checker_that_can_not_be_had_is_named(name: str, message: str) -> None:
    """A start must not end in a traceback."""
    with pytest.raises(UnusableChecker, match=message):
        make_checker(name, services())


class Checker:
    """A checker that answers as it is told."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def requestAvatarId(self, credentials: object) -> object:
        return self._answer


def test_a_checker_that_does_not_answer_is_given_up() -> None:
    """454 4.7.0, and no failure: whether the password is right is unknown."""
    clock, failures = Clock(), NoFailures()
    step = authenticator(Checker(Deferred()), clock, failures).begin("PLAIN", view()).step(b"\0a@b.test\0secret")
    assert isinstance(step, Deferred)
    found: list[object] = []
    step.addBoth(found.append)
    clock.advance(CHECK_SECONDS - 1)
    assert found == []
    clock.advance(1)
    assert found == [UNAVAILABLE]
    assert failures.counted == []
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("avatar_id", [(), b"\xff"])
def test_a_checker_that_names_nobody_lets_nobody_in(avatar_id: object) -> None:
    """twisted.cred's checkers may answer that a client is anonymous."""
    clock, failures = Clock(), NoFailures()
    step = authenticator(Checker(defer.succeed(avatar_id)), clock, failures).begin("PLAIN", view()).step(b"\0a@b.c\0d")
    answer = answer_of(clock, step)
    assert not isinstance(answer, str)
    assert answer is not UNAVAILABLE


def test_mechanisms_follow_the_listener_and_the_state_of_the_session() -> None:
    """Never in plain text, unless the operator says so of a listener."""
    offers = {"submission": Offer.TLS, "local": Offer.ALWAYS, "smtp": Offer.NEVER}
    clock = Clock()
    ours = Authenticator(clock, Checker(defer.fail(UnauthorizedLogin())), Guard(clock, NoFailures(), Bounds()), offers)
    for listener, in_tls, in_plain_text in (
        ("submission", ("PLAIN", "LOGIN"), ()),
        ("local", ("PLAIN", "LOGIN"), ("PLAIN", "LOGIN")),
        ("smtp", (), ()),
        ("unheard-of", (), ()),
    ):
        assert ours.mechanisms(view(listener=listener)) == in_tls
        assert ours.mechanisms(view(listener=listener, tls=None)) == in_plain_text
