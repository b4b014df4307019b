"""DANE with real DNSSEC: zones that are signed, plain or tampered with, seen through a resolver that validates."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import TestCase

from mailgate.dns.resolver import CachingResolver
from mailgate.outbound.plan import NoRoute, Route, TlsLevel
from mailgate.outbound.route import Router, RouterSettings
from tests.support.validating import unbound
from tests.support.waiting import reactor

DIGEST = "ab" * 32
SECURE = {
    "secure.test": f"""
@               MX    10 mx
@               MX    20 bare
mx              A     192.0.2.1
_25._tcp.mx     TLSA  3 1 1 {DIGEST}
bare            A     192.0.2.2
alias           MX    10 another
another         CNAME mx
astray          MX    10 out
out             CNAME mx.plain.test.
"""
}
PLAIN = {
    "plain.test": f"""
@               MX    10 mx
@               MX    20 mx.secure.test.
mx              A     192.0.2.3
_25._tcp.mx     TLSA  3 1 1 {DIGEST}
"""
}


class DaneTests(TestCase):
    async def route(self, port: int, domain: str, *, trusts_ad: bool = True) -> Route | NoRoute:
        resolver = CachingResolver(reactor, (("127.0.0.1", port),), trusts_ad=trusts_ad, deadline_seconds=10)
        router = Router(resolver, RouterSettings(allows_private_addresses=True), random=Random(1))
        return await router.route(domain)

    async def levels(self, port: int, domain: str, *, trusts_ad: bool = True) -> list[tuple[str, TlsLevel]]:
        route = await self.route(port, domain, trusts_ad=trusts_ad)
        assert isinstance(route, Route), route
        return [(host.name, host.tls.level) for host in route.hosts]

    async def test_only_a_signed_chain_of_answers_makes_dane(self) -> None:
        """RFC 7672 section 2.2: MX, addresses and TLSA; an alias into a plain zone ends it, and so does a plain MX."""
        with unbound(SECURE, PLAIN) as port:
            dane, other = TlsLevel.DANE, TlsLevel.OPPORTUNISTIC
            assert await self.levels(port, "secure.test") == [("mx.secure.test", dane), ("bare.secure.test", other)]
            assert await self.levels(port, "alias.secure.test") == [("another.secure.test", dane)]
            assert await self.levels(port, "astray.secure.test") == [("out.secure.test", other)]
            assert await self.levels(port, "plain.test") == [("mx.plain.test", other), ("mx.secure.test", other)]
            assert (await self.levels(port, "secure.test", trusts_ad=False))[0] == ("mx.secure.test", other)

    async def test_a_tlsa_record_that_was_tampered_with_stops_mail_to_the_host(self) -> None:
        """RFC 7672 section 2.1.2: bogus is not absent."""

        def tamper(text: str) -> str:
            assert DIGEST in text
            return text.replace(DIGEST, "cd" * 32)

        with unbound(SECURE, PLAIN, tamper=tamper) as port:
            route = await self.route(port, "secure.test")
            assert isinstance(route, Route)
            troubles = [None if host.trouble is None else host.trouble.enhanced for host in route.hosts]
            assert troubles == ["4.7.5", None]

    async def test_mx_records_that_were_tampered_with_are_a_failure(self) -> None:
        """They can't be told from an outage, and mail waits."""
        with unbound(SECURE, PLAIN, tamper=lambda text: text.replace("MX 10 mx.", "MX 10 bare.")) as port:
            route = await self.route(port, "secure.test")
            assert isinstance(route, NoRoute)
            assert (route.reply.code, route.reply.enhanced) == (451, "4.4.3")
