"""What the parts of mailgate are told: values made of the configuration.

Nothing below `mailgate.service` sees a Config; this is where it becomes what each part takes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mailgate.accounts.authenticator import Offer
from mailgate.config_routes import delivery_limits, router_settings
from mailgate.listener import Rules, Timeouts, Tolerated
from mailgate.outbound.connection import ClientTimeouts
from mailgate.outbound.node import DeliverySettings
from mailgate.outbound.runner import RunnerSettings
from mailgate.outbound.schedule import Schedule
from mailgate.policy.limits import NodeLimits
from mailgate.policy.stage import Role
from mailgate.reports.daily import ReportSettings
from mailgate.reports.outgoing import Reporter
from mailgate.smtp.session import Limits, Settings
from mailgate.storage.credentials import Bounds
from mailgate.storage.senders import SendingLimits

if TYPE_CHECKING:
    from mailgate.config import Config, Listener


def auth_offer(listener: Listener) -> Offer:
    """Where a listener offers AUTH."""
    if listener.auth is not None:
        return Offer(listener.auth)
    return Offer.TLS if listener.role is Role.SUBMISSION and listener.tls != "none" else Offer.NEVER


def _accepts_unauthenticated(listener: Listener) -> bool:
    """Whether mail is taken from who has not authenticated: by default where other servers bring it."""
    if listener.accepts_unauthenticated is not None:
        return listener.accepts_unauthenticated
    return listener.role is Role.MX


def sending_limits(config: Config) -> SendingLimits:
    """What an account may send in a day."""
    return SendingLimits(config.submission.messages_per_day, config.submission.recipients_per_day)


def ban_bounds(config: Config) -> Bounds:
    """What failed authentication leads to."""
    authentication = config.authentication
    return Bounds(
        authentication.failures_per_network,
        authentication.failures_per_account,
        authentication.counted_seconds,
        authentication.ban_seconds,
        authentication.maximum_ban_seconds,
    )


def node_limits(config: Config) -> NodeLimits:
    """What all sessions of a node may use together."""
    limits = config.limits
    return NodeLimits(
        limits.sessions,
        limits.sessions_per_network,
        limits.ipv4_network_bits,
        limits.ipv6_network_bits,
        limits.unlimited_networks,
        limits.memory_octets,
    )


def session_rules(config: Config, listener: Listener, *, settings: Settings | None = None) -> Rules:
    """What a listener's sessions are told. On reload `settings` are the present ones, of which the limits change."""
    limits, tolerate = config.limits, config.tolerate
    session_limits = Limits(
        message_octets=limits.message_octets,
        recipients=limits.recipients,
        transactions=limits.transactions_per_session,
        errors=limits.errors_per_session,
        idle_commands=limits.idle_commands_per_session,
        received_fields=limits.received_fields,
        line_octets=limits.line_octets,
        command_octets=limits.command_octets,
    )
    if settings is None:
        # What is asked of delivery is promised only where we deliver.
        takes_requests = config.outbound.enabled and listener.role is Role.SUBMISSION
        settings = Settings(
            config.hostname,
            session_limits,
            offers_starttls=listener.tls == "starttls",
            requires_tls=listener.requires_tls,
            accepts_unauthenticated=_accepts_unauthenticated(listener),
            offers_requiretls=config.outbound.enabled,
            longest_hold_seconds=int(config.submission.maximum_hold_seconds) if takes_requests else 0,
            shortest_delivery_seconds=int(config.submission.minimum_deliver_by_seconds) if takes_requests else 0,
            offers_auth_in_tls=auth_offer(listener) is Offer.TLS,
        )
    return Rules(
        replace(settings, limits=session_limits),
        node_limits(config),
        Timeouts(
            limits.command_seconds,
            limits.data_seconds,
            limits.transaction_seconds,
            config.tls.handshake_seconds,
            limits.goodbye_seconds,
        ),
        Tolerated(tolerate.bare_line_ends_from, tolerate.nul_from, tolerate.long_lines_from),
    )


def delivery_settings(config: Config) -> DeliverySettings:
    """How mail goes out. @raises OSError: a file with a password can't be read."""
    outbound = config.outbound
    own_names = {config.hostname, outbound.helo or config.hostname}
    own_addresses = {
        address for listener in config.listeners if listener.port == outbound.port for address in listener.addresses
    }
    return DeliverySettings(
        helo=outbound.helo or config.hostname,
        author=f"postmaster@{config.hostname}",
        router=router_settings(outbound, config.routes, own_names=own_names, own_addresses=own_addresses),
        limits=delivery_limits(outbound, config.routes),
        runner=RunnerSettings(
            Schedule(
                outbound.first_retry_seconds,
                outbound.longest_retry_seconds,
                outbound.delay_notice_seconds,
                outbound.give_up_seconds,
            ),
            max_connections=outbound.connections,
        ),
        timeouts=ClientTimeouts(
            connect=outbound.connect_seconds,
            handshake=outbound.connect_seconds,
            greeting=outbound.reply_seconds,
            hello=outbound.reply_seconds,
            mail=outbound.reply_seconds,
            rcpt=outbound.reply_seconds,
            data=outbound.reply_seconds,
            chunk=outbound.data_seconds,
            end=outbound.end_of_data_seconds,
        ),
        source_addresses=outbound.source_addresses,
        ca_file=outbound.ca_file,
        uses_mta_sts=outbound.mta_sts,
        suppress_days=outbound.suppress_days,
    )


def report_settings(config: Config) -> ReportSettings:
    """Which reports are made, and in whose name."""
    reports = config.reports
    return ReportSettings(
        Reporter(reports.organization, reports.contact or f"postmaster@{config.hostname}", config.hostname),
        dmarc=reports.dmarc,
        dmarc_without_pass=reports.dmarc_without_pass,
        tls=reports.tls,
        keep_days=reports.keep_days,
    )
