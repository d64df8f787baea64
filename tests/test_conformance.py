"""Every law, over every component that is registered: a new component is tested without a new test."""

import pytest

from mmx.testing import CHECKS, Case, cases


@pytest.mark.parametrize("case", cases(), ids=str)
def test_component_obeys(case: Case) -> None:
    case.check()


def test_every_kind_has_laws() -> None:
    from mmx.registry import KINDS

    assert set(CHECKS) == set(KINDS)
    assert all(CHECKS.values())
