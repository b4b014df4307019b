"""The policies that mailgate brings along, as plugins like any other.

Each object below is found by `mailgate.policy.plugin.providers`; nothing else imports this module.

Standards: none; each policy's module names its own.
"""

from __future__ import annotations

from mailgate.auth.arc import ArcOptions
from mailgate.auth.dkim import DkimOptions
from mailgate.policy.arc import ArcPolicy
from mailgate.policy.dkim import DkimPolicy
from mailgate.policy.dmarc import DmarcOptions, DmarcPolicy
from mailgate.policy.plugin import PolicyPlugin
from mailgate.policy.spf import SpfOptions, SpfPolicy

spf = PolicyPlugin(
    "spf",
    lambda options, services: SpfPolicy(options, services.resolver, services.hostname, services.time),
    SpfOptions,
)
dkim = PolicyPlugin(
    "dkim", lambda options, services: DkimPolicy(options, services.resolver, services.reactor), DkimOptions
)
arc = PolicyPlugin("arc", lambda options, services: ArcPolicy(options, services.resolver, services.reactor), ArcOptions)
dmarc = PolicyPlugin("dmarc", lambda options, services: DmarcPolicy(options, services.resolver), DmarcOptions)
