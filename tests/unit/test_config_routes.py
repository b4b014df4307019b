"""What the configuration says of routes, as the router takes it."""

from __future__ import annotations

from pathlib import Path

from mailgate.config_routes import delivery_limits, router_settings
from mailgate.config_sending import Outbound, RouteTable
from mailgate.outbound.plan import Credentials, Route, TlsLevel


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
        "smtp://gate@relay.test:587",
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


def test_each_way_to_a_relay_has_limits_and_demands_of_its_own(tmp_path: Path) -> None:
    """Whoever only looks at the routes needs no password for that."""
    routes = (
        RouteTable(
            domains=("*",), to="smtp://relay.test", username="gate", password_file=tmp_path / "none", connections=3
        ),
        RouteTable(domains=("example.test",), to="smtp://relay.test", tls="encrypt", connections=5),
    )
    settings = router_settings(Outbound(), routes, own_names=(), reads_passwords=False)
    limits = delivery_limits(Outbound(), routes)
    found = [settings.transports.find(domain) for domain in ("example.org", "example.test")]
    assert [each and each.key for each in found] == [
        "smtp://gate@relay.test:25",
        "smtp://relay.test:25?tls=encrypt",
    ]
    assert [each and limits(Route(each.key, ())).max_connections for each in found] == [3, 5]
    assert found[0] is not None
    assert found[0].credentials is not None
    assert found[0].credentials.password == ""
