"""The conformance kit: the laws of every kind of component, tried on whatever is installed.

In a plugin's own tests:

    import pytest
    from mmx.testing import NotHere, cases

    @pytest.mark.parametrize("case", cases(distribution="my-plugin"), ids=str)
    def test_conformance(case):
        try:
            case.run()
        except NotHere as reason:
            pytest.skip(str(reason))
"""

from dataclasses import dataclass

from mmx.registry import Offer, Registry
from mmx.testing.checks import CHECKS
from mmx.testing.laws import Check, NotHere

__all__ = ["CHECKS", "Case", "NotHere", "cases"]


@dataclass(frozen=True)
class Case:
    """One check of one component."""

    registry: Registry
    offer: Offer
    check: Check

    def __str__(self) -> str:
        return f"{self.offer.kind}-{self.offer.component.name}-{self.check.__name__}"

    def run(self) -> None:
        """Raise AssertionError where the law is broken, NotHere where it cannot be tried."""
        self.check(self.registry, self.offer)


def cases(registry: Registry | None = None, distribution: str | None = None) -> list[Case]:
    """List every check of every component, or of one distribution's."""
    found = registry or Registry.load()
    return [
        Case(found, offer, check)
        for offer in found.offers
        if distribution in (None, offer.distribution)
        for check in CHECKS[offer.kind]
    ]
