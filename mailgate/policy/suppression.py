"""The policy `suppression`: our accounts hear at once that an address elsewhere has failed for good lately.

Only where configuration has such addresses refused. Where the database can't be asked the recipient is taken: an
attempt too many does no harm.

Standards: RFC 3463 section 3.2 (5.1.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger
from zope.interface import implementer

from mailgate.envelope import ForwardDestination, Resolution
from mailgate.interfaces import IPolicy
from mailgate.policy.stage import Stage
from mailgate.policy.verdict import Continue, Reject
from mailgate.storage.errors import StorageUnavailable

if TYPE_CHECKING:
    from mailgate.policy.stage import Request
    from mailgate.policy.verdict import Verdict
    from mailgate.storage.suppressions import SuppressionStore

_CONTINUE = Continue()

_log = Logger()


@implementer(IPolicy)
class SuppressionPolicy:
    """Refuses suppressed addresses."""

    name = "suppression"
    stages = frozenset({Stage.RCPT})
    after = ("recipients",)

    def __init__(self, store: SuppressionStore) -> None:
        self._store = store

    async def decide(self, request: Request) -> Verdict:
        """A refusal where the recipient is elsewhere and suppressed."""
        if request.session.authenticated is None or request.forward_path is None:
            return _CONTINUE
        if not any(isinstance(each, ForwardDestination) for each in _destinations(request)):
            return _CONTINUE
        try:
            suppressed = await self._store.find(str(request.forward_path))
        except StorageUnavailable as error:
            _log.info("whether an address is suppressed is not known: {reason}", reason=str(error))
            return _CONTINUE
        return _CONTINUE if suppressed is None else Reject(suppressed.reply())


def _destinations(request: Request) -> tuple[object, ...]:
    for note in request.notes:
        if isinstance(note, Resolution):
            return note.destinations
    return ()
