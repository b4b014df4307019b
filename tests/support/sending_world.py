"""Two nodes on one queue, hosts that take their mail, and a DNS that leads from the one to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from tests.support import postgres
from tests.support.dispatch import Dispatch, Hosts, Node
from tests.support.gate import free_port
from tests.support.name_server import NameServer
from tests.support.sink import Conduct, Sink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path


class SendingWorld:
    """The parts. The hosts listen; the nodes are not started until `start`."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        network: str,
        *,
        domains: Sequence[str] = (),
        conducts: Sequence[Conduct] = (Conduct(),),
        dsn: str | None = None,
        nodes: int = 2,
        settings: str = "",
        seed: int = 1,
    ) -> None:
        """Make it in that network, "127.1.2"; the stack ends it.

        There is a host for each of `conducts`, and they are the MX hosts of each domain, in this order. Without `dsn`
        there is a database on the run's own server. `settings` are more keys of [outbound].
        """
        self.zone = Zone()
        port = free_port()
        self.sinks = tuple(
            stack.enter_context(Sink(f"{network}.{10 + number}", port, conduct=conduct, seed=seed))
            for number, conduct in enumerate(conducts)
        )
        for domain in domains:
            self.publish(domain, *self.sinks)
        hosts = Hosts(stack.enter_context(NameServer(self.zone)), port, self.sinks)
        if dsn is None:
            dsn = postgres.fresh_database()
            stack.callback(postgres.drop_database, dsn)
        self.nodes = tuple(
            Node(f"{network}.{number}", dsn=dsn, log=folder / f"log-{number}", hosts=hosts, settings=settings)
            for number in range(1, nodes + 1)
        )
        for node in self.nodes:
            stack.callback(node.close)
        self.dispatch = Dispatch(dsn, self.nodes, hosts)

    def start(self) -> None:
        """Start the nodes."""
        for node in self.nodes:
            node.start()

    def conduct(self, conduct: Conduct) -> None:
        """Have all hosts behave so from now on."""
        for sink in self.sinks:
            sink.conduct = conduct

    def publish(self, domain: str, *sinks: Sink) -> None:
        """Have mail for that domain go to these, in this order."""
        for preference, sink in enumerate(sinks, 1):
            name = f"mx{preference}.{domain}"
            self.zone.add(domain, RecordType.MX, (preference, name))
            self.zone.add(name, RecordType.A, sink.host)

    def tracebacks(self) -> list[str]:
        """What went wrong in a node in a way that nobody had thought of."""
        return [traceback for node in self.nodes for traceback in node.gate.tracebacks()]
