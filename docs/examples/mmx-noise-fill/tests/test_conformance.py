"""The laws that every strategy obeys, tried on this one."""

from mmx.testing import Case, parametrize_with_checks


@parametrize_with_checks("mmx-noise-fill")
def test_component_obeys(case: Case) -> None:
    case.check()
