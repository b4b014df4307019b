"""Counts a connection under the policy of the recipient's domain, when it is known how its TLS went.

Standards: RFC 8460 sections 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from mailgate.outbound.connection import HostUnusable
from mailgate.outbound.plan import TlsLevel

if TYPE_CHECKING:
    from mailgate.outbound.connection import MailSender
    from mailgate.outbound.plan import Host
    from mailgate.outbound.tls_report import TlsCounts


async def counted(
    connecting: Awaitable[MailSender], host: Host, counts: TlsCounts, *, sending_address: str = ""
) -> MailSender:
    """The sender that `mailgate.outbound.connection.connect` makes to that host.

    Hosts that no published policy is about, and connections that came to no TLS for other reasons, are not counted.

    @raises HostUnusable: as `connect` does.
    """
    published = host.tls.published
    try:
        sender = await connecting
    except HostUnusable as error:
        trouble = error.trouble
        if published is not None and trouble.tls_result:
            counts.count(
                published,
                host.name,
                trouble.tls_result,
                sending_address=sending_address,
                receiving_address=error.endpoint.address,
                reason=trouble.reply,
            )
        raise
    tls = sender.tls
    result = sender.tls_result if tls is None else tls.tls_result
    if published is not None and published.type == "tlsa" and host.tls.level is TlsLevel.ENCRYPT:
        result = result or "tlsa-invalid"  # RFC 7672 section 2.2: of its records, none can be used
    if published is not None and (tls is not None or result):
        counts.count(
            published,
            host.name,
            result,
            sending_address=sending_address,
            receiving_address=sender.endpoint.address,
        )
    return sender
