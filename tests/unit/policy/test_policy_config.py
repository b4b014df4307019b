"""The chain in the configuration: `[[policy]]`, with a line for every fault."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from mailgate.config import USUAL_POLICIES, Config, ConfigError, load_config, reloadable_differences
from mailgate.policy.dmarc import DmarcOptions
from mailgate.policy.spf import SpfOptions
from mailgate.policy.stage import Role

BASE = """
hostname = "mail.example.test"
data_folder = "."
database.embedded = true
tls.self_signed = true
listener.smtp = { role = "mx", port = 25 }
"""


def load(folder: Path, text: str) -> Config:
    path = folder / "mailgate.toml"
    path.write_text(BASE + text, encoding="utf-8")
    return load_config(path)


def faults(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [str(fault).removeprefix(f"{folder / 'mailgate.toml'}: ") for fault in caught.value.faults]


def test_without_a_table_the_chain_is_the_usual_one(tmp_path: Path) -> None:
    """All that is built in, with its defaults, for mail from other servers."""
    policies = load(tmp_path, "").policies
    assert tuple(use.use for use in policies) == tuple(use.name for use in policies) == USUAL_POLICIES
    assert {use.listeners for use in policies} == {(Role.MX,)}
    assert {use.domains for use in policies} == {()}
    assert (policies[0].options, policies[-1].options) == (SpfOptions(), DmarcOptions())


def test_no_table_at_all_is_possible(tmp_path: Path) -> None:
    """Who wants no authentication says so."""
    assert load(tmp_path, "policy = []").policies == ()


def test_tables_are_the_chain_in_their_order(tmp_path: Path) -> None:
    """With what they say, and nothing else."""
    policies = load(
        tmp_path,
        """
        [[policy]]
        use = "dmarc"
        name = "dmarc for all"
        listeners = ["mx", "submission"]
        on_reject = "quarantine"
        trusted_forwarders = ["192.0.2.25", "2001:db8::/32"]
        overrides = { "Bücher.example" = "continue" }
        [[policy]]
        use = "spf"
        domains = ["Example.TEST", "bücher.example"]
        on_fail = "reject"
        """,
    ).policies
    assert [(use.use, use.name) for use in policies] == [("dmarc", "dmarc for all"), ("spf", "spf")]
    assert policies[0].listeners == (Role.MX, Role.SUBMISSION)
    assert policies[1].listeners == (Role.MX,)
    assert policies[1].domains == ("example.test", "xn--bcher-kva.example")
    assert policies[0].options == DmarcOptions(
        on_reject="quarantine",
        trusted_forwarders=(ipaddress.ip_network("192.0.2.25/32"), ipaddress.ip_network("2001:db8::/32")),
        overrides=(("xn--bcher-kva.example", "continue"),),
    )
    assert policies[1].options == SpfOptions(on_fail="reject")


FAULTS = {
    "a policy that is not there": (
        '[[policy]]\nuse = "smf"',
        ["policy[1].use: 'smf' is no policy that is installed; use one of arc, dkim, dmarc, spf"],
    ),
    "no use": ("[[policy]]\nname = 'x'", ["policy[1].use: it is missing; use one of arc, dkim, dmarc, spf"]),
    "a use that is no string": (
        "[[policy]]\nuse = 1",
        ["policy[1].use: 1 is no policy that is installed; use one of arc, dkim, dmarc, spf"],
    ),
    "an unknown option": (
        '[[policy]]\nuse = "dmarc"\non_rejct = "reject"',
        ["policy[1].on_rejct: there is no such key; did you mean on_reject?"],
    ),
    "another policy's option": (
        '[[policy]]\nuse = "dkim"\non_reject = "reject"',
        [
            "policy[1].on_reject: there is no such key; the keys here are use, name, listeners, domains,"
            " maximum_signatures, minimum_rsa_bits, maximum_rsa_bits, allows_body_length, allows_added_fields,"
            " allows_testing_keys, clock_skew_seconds"
        ],
    ),
    "a key of all policies, misspelt": (
        '[[policy]]\nuse = "dkim"\ndomain = ["example.test"]',
        ["policy[1].domain: there is no such key; did you mean domains?"],
    ),
    "a wrong type": (
        '[[policy]]\nuse = "spf"\nrefuses_domains_that_send_no_mail = "yes"',
        [
            "policy[1].refuses_domains_that_send_no_mail: 'yes' is neither true nor false; use true or false, without"
            " quotes"
        ],
    ),
    "a wrong word": (
        '[[policy]]\nuse = "dmarc"\non_temperror = "reject"',
        ['policy[1].on_temperror: \'reject\' is not known here; use "defer" or "continue"'],
    ),
    "a number out of bounds": (
        '[[policy]]\nuse = "dkim"\nmaximum_signatures = 0',
        ["policy[1].maximum_signatures: 0 is not a whole number in this range; use 1 to 50"],
    ),
    "an override of nobody": (
        '[[policy]]\nuse = "dmarc"\noverrides = { "ex ample" = "continue" }',
        ["policy[1].overrides.ex ample: 'ex ample' is not a domain name; use the form \"example.org\""],
    ),
    "a listener that is none": (
        '[[policy]]\nuse = "spf"\nlisteners = ["imap"]',
        ['policy[1].listeners[1]: \'imap\' is not known here; use "mx" or "submission"'],
    ),
    "a domain that is none": (
        '[[policy]]\nuse = "spf"\ndomains = ["*"]',
        ["policy[1].domains[1]: '*' is not a domain name; use the form \"mail.example.test\""],
    ),
    "a name that is none": (
        '[[policy]]\nuse = "spf"\nname = 1',
        ["policy[1].name: 1 is not a name for this policy; use a name for this policy in quotes"],
    ),
    "a name twice": (
        '[[policy]]\nuse = "spf"\n[[policy]]\nuse = "dkim"\nname = "spf"',
        ["policy: two policies are called 'spf'; give one of them another name"],
    ),
    "a table that is no list": (
        '[policy]\nuse = "spf"',
        ["policy: it is not a list of tables; write each policy as [[policy]], with its keys below"],
    ),
    "several at once": (
        '[[policy]]\nuse = "x"\n[[policy]]\nuse = "spf"\non_fial = "reject"\nlisteners = 1\non_fail = 1',
        [
            "policy[1].use: 'x' is no policy that is installed; use one of arc, dkim, dmarc, spf",
            "policy[2].listeners: 1 is not a list; use [ ], with commas between the values",
            "policy[2].on_fial: there is no such key; did you mean on_fail?",
            'policy[2].on_fail: 1 is not known here; use "continue" or "reject"',
        ],
    ),
    "a deadline of no time": (
        "[deadlines]\nmail_seconds = 0",
        ["deadlines.mail_seconds: 0 is not a time in seconds; use 0.1 to 86400"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_every_fault_has_a_line_of_its_own(text: str, expected: list[str], tmp_path: Path) -> None:
    """The key, what is wrong, and what would be right."""
    assert faults(tmp_path, text) == expected


def test_policies_and_deadlines_change_without_a_restart(tmp_path: Path) -> None:
    """A reload names only what it can't apply."""
    before = load(tmp_path, "")
    after = load(tmp_path, '[[policy]]\nuse = "spf"\n[deadlines]\nmail_seconds = 1')
    assert reloadable_differences(before, after) == ()
