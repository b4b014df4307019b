"""Every example in docs/policies.md works as it stands there.

Each Python block becomes a plugin file on the path, and does in a chain what its scenario below says; each TOML block
is a configuration that loads. An example without a scenario fails.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.trial import unittest

import mailgate.plugins
from mailgate.auth.results import DmarcResult, Result
from mailgate.config import Config, load_config
from mailgate.dns.zone import Zone
from mailgate.envelope import Address, ForwardPath, ReversePath
from mailgate.message import MessageContent
from mailgate.policy.chain import Chain, Member
from mailgate.policy.plugin import FunctionPolicy, PolicyThreads, Services, make_policy, providers
from mailgate.policy.stage import RecipientView, Request, Role, SessionView, Stage, TransactionView
from mailgate.policy.verdict import Continue, Decision, Discard, Quarantine, Reject
from mailgate.smtp.reply import reply
from tests.support.waiting import reactor

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text("utf-8")
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", PAGE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
TOML = [text for language, text in BLOCKS if language == "toml"]

BASE = """
hostname = "mail.example.test"
data_folder = "."
database.embedded = true
tls.self_signed = true
listener.smtp = { role = "mx", port = 25 }
"""

SESSION = SessionView(1, "mx", Role.MX, "192.0.2.7", 40000, "192.0.2.7/32", "192.0.2.25", 25, 0.0, "client.example.org")
OK = reply(250, "2.1.5", "Recipient ok")


def names_in(code: str) -> str:
    """The policy that a block makes."""
    (name,) = re.findall(r'(?:@policy|= PolicyPlugin)\("([a-z-]+)"', code)
    return str(name)


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("site") / "mailgate" / "plugins"
    folder.mkdir(parents=True)
    modules = []
    for number, code in enumerate(PYTHON):
        (folder / f"example{number}.py").write_text(code, "utf-8")
        modules.append(f"mailgate.plugins.example{number}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailgate.plugins, "__path__", [*mailgate.plugins.__path__, str(folder)])
        yield
    for name in modules:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def load(folder: Path, text: str) -> Config:
    path = folder / "mailgate.toml"
    path.write_text(BASE + text, "utf-8")
    return load_config(path)


def message(octets: bytes) -> MessageContent:
    return MessageContent([octets], len(octets), hashlib.sha256(octets).digest())


LETTER = message(b"From: bob@example.org\r\nSubject: Hello\r\n\r\nHello.\r\n")


def transaction(*recipients: str, sender: str | None = "bob@example.org") -> TransactionView:
    paths = [ForwardPath(address(recipient)) for recipient in recipients]
    views = tuple(RecipientView(path, True, OK) for path in paths)
    return TransactionView(2, 0.0, ReversePath(address(sender) if sender else None), views)


def address(text: str) -> Address:
    local, _, domain = text.partition("@")
    return Address(local, domain)


def at_end(content: MessageContent = LETTER, *recipients: str) -> Request:
    return Request(Stage.END_OF_DATA, SESSION, transaction(*(recipients or ("alice@example.test",))), content=content)


def test_there_are_examples() -> None:
    """Else the tests below would prove nothing."""
    assert len(PYTHON) >= 6
    assert len(TOML) >= 6
    assert {language for language, _ in BLOCKS} == {"python", "toml"}


@pytest.mark.parametrize("number", range(len(TOML)))
def test_a_configuration_in_the_page_loads(number: int, tmp_path: Path) -> None:
    """As it stands, below what every configuration needs; and its policies can be made and chained."""
    config = load(tmp_path, TOML[number])
    services = Services(reactor, reactor.seconds, Zone(), "mail.example.test", PolicyThreads())
    known = providers()
    members = [Member(make_policy(known[use.use], use.options, services), name=use.name) for use in config.policies]
    Chain(reactor, members)
    assert len(config.policies) == (TOML[number].count("[[policy]]") or 4)


def test_the_first_configuration_is_the_default(tmp_path: Path) -> None:
    """The page says so."""
    assert load(tmp_path, TOML[0]).policies == load(tmp_path, "").policies


class ExampleTests(unittest.TestCase):
    """What each policy of the page does."""

    def setUp(self) -> None:
        self.zone = Zone("7.2.0.192.bl.example.org A 127.0.0.2")
        self.threads = PolicyThreads()
        self.threads.start()
        self.addCleanup(self.threads.abandon)
        self.tried: set[str] = set()

    async def decide(self, name: str, request: Request, *others: Any, **options: Any) -> Any:
        """The verdict of a chain with that policy. Any: a Verdict."""
        services = Services(reactor, reactor.seconds, self.zone, "mail.example.test", self.threads)
        provider = providers()[name]
        chain = Chain(reactor, [*others, make_policy(provider, provider.options(**options), services)])
        deciding = chain.decide(request)
        decision: Decision = await deciding if isinstance(deciding, Deferred) else deciding
        return decision.verdict

    async def test_subject_please(self) -> None:
        assert await self.decide("subject-please", at_end()) == Continue()
        bare = message(b"From: bob@example.org\r\n\r\nHello.\r\n")
        refused = await self.decide("subject-please", at_end(bare))
        assert refused == Reject(reply(550, "5.7.1", "A subject, please"))

    async def test_no_outsiders(self) -> None:
        for sender, recipient, is_refused in (
            ("bob@example.org", "staff@example.test", True),
            (None, "staff@example.test", True),
            ("carol@example.test", "staff@example.test", False),
            ("bob@example.org", "alice@example.test", False),
        ):
            path = ForwardPath(address(recipient))
            request = Request(Stage.RCPT, SESSION, transaction(sender=sender), path)
            assert isinstance(await self.decide("no-outsiders", request), Reject) is is_refused

    async def test_crowd(self) -> None:
        three = at_end(LETTER, "a@example.test", "b@example.test", "c@example.test")
        assert await self.decide("crowd", three) == Continue()
        verdict = await self.decide("crowd", three, maximum_recipients=2)
        assert verdict == Quarantine("it is for too many at once")

    async def test_proven_only(self) -> None:
        for result, expected in ((Result.PASS, Continue), (Result.NONE, Quarantine), (Result.FAIL, Quarantine)):
            note = DmarcResult(result)
            dmarc = FunctionPolicy("dmarc", [Stage.END_OF_DATA], lambda _request, note=note: Continue((note,)))
            assert isinstance(await self.decide("proven-only", at_end(), dmarc), expected)
        assert isinstance(await self.decide("proven-only", at_end()), Quarantine)

    async def test_blocklist(self) -> None:
        listed = await self.decide("blocklist", Request(Stage.CONNECT, SESSION))
        assert listed == Reject(reply(554, "5.7.1", "192.0.2.7 is on the blocklist bl.example.org"))
        for client in ("192.0.2.8", "2001:db8::1"):
            request = Request(Stage.CONNECT, replace(SESSION, client_address=client))
            assert await self.decide("blocklist", request) == Continue()
        self.zone.fail("7.2.0.192.bl.example.org")
        assert await self.decide("blocklist", Request(Stage.CONNECT, SESSION)) == Continue()

    async def test_known_bad(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="mailgate-test-"))
        self.addCleanup(shutil.rmtree, folder)
        digests = folder / "known-bad.txt"
        digests.write_text("00\n")
        assert await self.decide("known-bad", at_end(), digests=str(digests)) == Continue()
        digests.write_text(f"00\n{LETTER.sha256.hex()}\n")
        assert await self.decide("known-bad", at_end(), digests=str(digests)) == Discard("known by its digest")


@pytest.mark.parametrize("code", PYTHON, ids=names_in)
def test_an_example_has_a_scenario(code: str) -> None:
    """Or nobody would know that it works."""
    scenario: Callable[..., Any] | None = getattr(ExampleTests, f"test_{names_in(code).replace('-', '_')}", None)
    assert scenario is not None
