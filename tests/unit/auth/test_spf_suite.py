"""Every case of the RFC 7208 test suite, through the policy, from a zone in memory."""

from __future__ import annotations

import pytest

from mailgate.policy.spf import SpfOptions
from tests.support.spf_suite import Case, at_once, cases, result_at, zone_of


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_suite_of_the_standard_passes(case: Case) -> None:
    """RFC 7208; the section is named in each case."""
    _, verdict = at_once(case, zone_of(case), SpfOptions())
    result = result_at(verdict)
    assert result.result.value in case.results, (case.section, result)
    if case.explanation is not None:
        assert result.explanation == case.explanation, case.section


def test_the_suite_is_whole() -> None:
    """The file was not cut."""
    assert len(cases()) == 203
    assert len({case.scenario for case in cases()}) == 16
