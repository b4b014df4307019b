"""What the configuration says of routes, as the router takes it."""

from __future__ import annotations

from pathlib import Path

from mailgate.config_routes import router_settings
from mailgate.config_sending import Outbound, RouteTable
from mailgate.outbound.plan import Credentials, TlsLevel


def test_a_smarthost_takes_the_mail_of_all_but_those_that_are_named(tmp_path: Path) -> None:
    """The password is the file's first line."""
    (tmp_path / "password").write_text("s3cret word\nand more\n")
    settings = router_settings(
        Outbound(tls="encrypt", families="ipv4 only", dane=False, port=2525),
        (
            RouteTable(
                domains=("*",), to="smtp://relay.test:587", username="gate", password_file=tmp_path / "password"
            ),
            RouteTable(domains=("example.test", ".example.test"), tls="verify"),
        ),
        own_names=("MX.Example.org",),
        own_addresses=("192.0.2.25",),
    )
    relay = settings.transports.find("example.org")
    assert relay is not None
    assert (relay.key, relay.credentials, relay.tls) == (
        "smtp://relay.test:587",
        Credentials("gate", "s3cret word"),
        None,
    )
    for domain in ("example.test", "sub.example.test"):
        direct = settings.transports.find(domain)
        assert direct is not None
        assert direct.is_by_mx
        rule = settings.tls_rules.find(domain)
        assert rule is not None
        assert rule.level is TlsLevel.VERIFY
    assert settings.tls_rules.find("example.org") is None
    assert settings.own_names == frozenset({"mx.example.org"})
    assert settings.own_addresses == frozenset({"192.0.2.25"})
    assert (settings.address_order, settings.least_tls, settings.uses_dane) == ("ipv4-only", TlsLevel.ENCRYPT, False)
    assert settings.mx_port == 2525
