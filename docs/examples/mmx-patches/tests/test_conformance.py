"""The laws that every encoder obeys, tried on this one."""

from mmx.testing import Case, parametrize_with_checks


@parametrize_with_checks("mmx-patches")
def test_component_obeys(case: Case) -> None:
    case.check()
