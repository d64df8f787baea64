"""The conformance kit: the laws of every kind of component, tried on whatever is installed.

In a plugin's own tests:

    from mmx.testing import Case, parametrize_with_checks

    @parametrize_with_checks("my-plugin")
    def test_conformance(case: Case) -> None:
        case.check()

From the shell: `mmx plugins check my-plugin`.
"""

import traceback
from dataclasses import dataclass
from typing import Any, Literal

from mmx.errors import PluginError, did_you_mean
from mmx.registry import Offer, Registry
from mmx.testing.checks import CHECKS
from mmx.testing.laws import Check, NotHere

__all__ = ["CHECKS", "Case", "NotHere", "Verdict", "cases", "cases_of", "parametrize_with_checks"]


@dataclass(frozen=True)
class Verdict:
    """How a law was found to hold."""

    state: Literal["passed", "failed", "skipped", "expected"]
    """`expected`: it is broken, as the component declares."""
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """One law, tried on one component."""

    registry: Registry
    offer: Offer
    law: Check

    def __str__(self) -> str:
        return f"{self.offer.kind}-{self.offer.component.name}-{self.law.__name__}"

    @property
    def expected(self) -> str:
        """Why the component is known to break the law; empty: it is not."""
        return self.offer.component.expected_failures.get(self.law.__name__, "")

    def run(self) -> None:
        """Raise AssertionError where the law is broken, NotHere where it cannot be tried."""
        if self.offer.lack:
            raise NotHere(self.offer.lack)
        self.law(self.registry, self.offer)

    def verdict(self) -> Verdict:
        """Try the law, and tell how it was found; nothing is raised."""
        try:
            self.run()
        except NotHere as reason:
            return Verdict("skipped", str(reason))
        except Exception as error:  # noqa: BLE001 a stranger's component may raise anything
            if self.expected:
                return Verdict("expected", self.expected)
            return Verdict("failed", _told(error))
        if self.expected:
            return Verdict(
                "failed", f"holds, although it is declared not to ({self.expected}); declare no more"
            )
        return Verdict("passed")

    def check(self) -> None:
        """Try the law in a test of pytest: fail as it fails, skip or expect a failure with the reason."""
        import pytest

        try:
            self.run()
        except NotHere as reason:
            pytest.skip(str(reason))
        except Exception:
            if not self.expected:
                raise
            pytest.xfail(self.expected)
        if self.expected:
            pytest.fail(f"{self} holds, although it is declared not to: {self.expected}")


def cases(registry: Registry | None = None, distribution: str | None = None) -> list[Case]:
    """List every law of every component, or of one distribution's."""
    found = registry or Registry.load()
    return [
        case
        for offer in found.offers
        if distribution in (None, offer.distribution)
        for case in cases_of(found, offer)
    ]


def cases_of(registry: Registry, offer: Offer) -> list[Case]:
    """List every law of one component (PluginError where it declares to break one that is none)."""
    laws = {law.__name__: law for law in CHECKS[offer.kind]}
    for name in offer.component.expected_failures:
        if name not in laws:
            raise PluginError(
                f"{offer.kind} '{offer.component.name}' of '{offer.distribution}' expects '{name}' to fail, "
                f"which is no law of its kind.{did_you_mean(name, laws)}"
            )
    return [Case(registry, offer, law) for law in laws.values()]


def parametrize_with_checks(distribution: str) -> Any:
    """Give a decorator that calls a test with each case of an installed distribution, as `case`.

    RuntimeError where the distribution offers nothing: a test that tries nothing must not pass.
    """
    import pytest

    found = cases(distribution=distribution)
    if not found:
        raise RuntimeError(f"'{distribution}' offers no component: `mmx plugins list` tells what was found")
    return pytest.mark.parametrize("case", found, ids=str)


def _told(error: Exception) -> str:
    """Tell an error in a line: where in the kit or the component, and what."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = str(error).strip().splitlines() or [last.line or ""]
    return f"{type(error).__name__} in {last.name}, line {last.lineno}: {what[0]}"
