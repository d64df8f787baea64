"""Methods that cannot work as written are refused when a sweep is planned, with the reason."""

from collections.abc import Callable
from typing import Any

import pytest

from mmx.errors import ConfigError
from mmx.sweep import Plan

PlanToy = Callable[..., Plan]
BASE: dict[str, Any] = {"strategy": "skip", "fusion": "mean_logits", "missing.train.rate": 0.0}
ADAPTED = {"adapter": "scale_shift"}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scale and shift of a pattern under mixed patterns": (
        {"missing.train.rate": 0.3, "training.phases": [{}, ADAPTED]},
        "belongs to one availability pattern",
    ),
    "scale and shift under mixed patterns without phases": (
        {"missing.train.rate": 0.3, **ADAPTED},
        "belongs to one availability pattern",
    ),
    "projection without a shared head": ({"procedure": "alternating"}, "one shared head"),
    "projection of a head that does not train": (
        {"fusion": "entropy", "fusion_adapter": "frozen", "procedure": "alternating"},
        "one shared head",
    ),
    "modulation without logits of modalities": (
        {"fusion": "transformer", "procedure": "ogm_ge"},
        "no logits of single modalities",
    ),
    "modulation with a hidden layer": (
        {"fusion": {"name": "concat", "hidden": 4}, "procedure": "ogm_ge"},
        "no logits of single modalities",
    ),
    "confidences without logits of modalities": (
        {"fusion": "sum", "procedure": "qmf"},
        "no logits of single modalities",
    ),
    "a student in the first phase": (
        {"training.phases": [{"procedure": "distillation"}]},
        "learns from the phase before",
    ),
    "a student without phases": ({"procedure": "distillation"}, "learns from the phase before"),
    "reading a stranger": ({"fusion": {"name": "mean_logits", "reads": ["m7"]}}, "m7"),
    "reading nobody": ({"fusion": {"name": "mean_logits", "reads": []}}, "must name some"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_is_refused_before_work_with_its_reason(
    plan_toy: PlanToy, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        plan_toy({**BASE, **changes})


ACCEPTED: dict[str, dict[str, Any]] = {
    "one set for all patterns": {
        "missing.train.rate": 0.3,
        "adapter": {"name": "scale_shift", "per_pattern": False},
    },
    "a set in a phase of one pattern, whatever is missing": {
        "missing.train.rate": 0.3,
        "training.phases": [{}, {**ADAPTED, "modalities": ["m0"]}],
    },
    "alternating without projection": {"procedure": {"name": "alternating", "projection": False}},
    "a student of the phase before": {"training.phases": [{}, {"procedure": "distillation"}]},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=list(ACCEPTED))
def test_is_planned(plan_toy: PlanToy, changes: dict[str, Any]) -> None:
    assert len(plan_toy({**BASE, **changes}).cells) == 1
