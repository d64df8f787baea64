"""Options are read off constructors, and checked before any work."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from mmx.registry.signature import REQUIRED, bind, construct, fits, options, parameters


class Component:
    """A constructor with everything in it."""

    def __init__(
        self,
        modalities: tuple[str, ...],
        width: int,
        rank: int,
        alpha: float = 2.0,
        level: Literal["input", "attention"] = "input",
        targets: str | Sequence[str] = "default",
        dropout: float | None = None,
        table: Mapping[str, float] | None = None,
        bias: bool = True,
    ) -> None:
        self.given = dict(locals())


class Bare:
    """No constructor."""


def faults_of(**given: Any) -> dict[str, str]:
    return {f.key: f.message for f in bind(Component, given, "part", "part 'x'")[1]}


def test_options_are_the_parameters_that_the_engine_does_not_fill_in() -> None:
    found = options(Component)
    assert list(found) == ["rank", "alpha", "level", "targets", "dropout", "table", "bias"]
    assert found["rank"].default is REQUIRED and found["alpha"].default == 2.0


def test_class_without_a_constructor_has_no_options() -> None:
    assert options(Bare) == {} and parameters(Bare) == {}


def test_bound_options_have_their_defaults_written_out() -> None:
    bound, faults = bind(Component, {"rank": 4}, "part", "part 'x'")
    assert not faults
    assert bound == {
        "rank": 4, "alpha": 2.0, "level": "input", "targets": "default", "dropout": None, "table": None,
        "bias": True,
    }  # fmt: skip


def test_all_faults_are_told_at_once() -> None:
    assert set(faults_of(alpah=1.0, level="middle")) == {"part.alpah", "part.level", "part.rank"}


def test_unknown_option_gets_a_did_you_mean() -> None:
    assert "Did you mean 'dropout'" in faults_of(rank=1, dropuot=0.1)["part.dropuot"]


def test_engine_parameter_is_refused() -> None:
    assert "filled in by the engine" in faults_of(rank=1, width=8)["part.width"]


def test_missing_option_is_named() -> None:
    assert "needs the option 'rank'" in faults_of()["part.rank"]


def test_whole_number_becomes_the_float_that_it_stands_for() -> None:
    bound, faults = bind(Component, {"rank": 1, "alpha": 1}, "part", "x")
    assert not faults and isinstance(bound["alpha"], float)


def test_whole_number_becomes_a_float_where_none_is_allowed_too() -> None:
    bound, faults = bind(Component, {"rank": 1, "dropout": 1}, "part", "x")
    assert not faults and isinstance(bound["dropout"], float)


TEXTS = str | Sequence[str]
LEVEL = Literal["input", "attention"]
FRACTIONS = Mapping[str, float]
FITTING = [
    (3, int), (3, float), (0.5, float), ("a", str), (True, bool), (None, None), (None, int | None),
    (3, int | None), ("input", LEVEL), (["a"], TEXTS), ("a", TEXTS), ([1, 2], list[int]),
    ([1, 2], tuple[int, ...]), ({"a": 1.0}, FRACTIONS), ({"a": 1}, dict), ("data/", Path),
    ("data/", Path | None), ("anything", Any), ([1], REQUIRED), (True, object),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), FITTING, ids=str)
def test_value_fits(value: Any, annotation: Any) -> None:
    assert fits(value, annotation)


UNFIT = [
    (True, int), (True, float), (1, bool), ("a", int), ("0.5", float), (0.5, int), (3, str), (None, int),
    (None, str), ("middle", LEVEL), ("a", list[str]), ("a", Sequence[str]), (["a"], str), ([1], int),
    ({"a": 1}, list), (["a"], FRACTIONS), ({"a": 1}, str), ("a", None), ("a", int | None), ("yes", bool),
    (True, int | None), (3, Sequence[str]), (3, list[int]), (0.5, FRACTIONS), (3, TEXTS), (3, Path),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), UNFIT, ids=str)
def test_value_does_not_fit(value: Any, annotation: Any) -> None:
    assert not fits(value, annotation)


def test_constructing_fills_in_what_is_asked_for_and_nothing_else() -> None:
    built = construct(Component, {"rank": 2}, {"modalities": ("a",), "width": 8, "seed": 1})
    assert (built.given["rank"], built.given["width"], built.given["modalities"]) == (2, 8, ("a",))
    assert isinstance(construct(Bare, {}, {"seed": 1}), Bare)
