"""Sweep files: every fault at once, with its key; hashes of content alone; cells that are all run."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mmx.cli.open import open_plan
from mmx.config import SweepSpec, digest, load_sweep, read_sweep
from mmx.errors import ConfigError, InputError
from mmx.registry import Registry
from mmx.sweep import Plan

Toy = Callable[..., dict[str, Any]]
PlanToy = Callable[..., Plan]

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "top key": ({"trainng": {}}, "trainng", "Did you mean 'training'"),
    "missing key": ({"dataset": None}, "dataset", "is missing"),
    "schema": ({"schema": 2}, "schema", "schema: 1"),
    "name": ({"name": "a/b"}, "name", "without '/'"),
    "search key": ({"search": {"seed": [0]}}, "search.seed", "Did you mean 'seeds'"),
    "run type": ({"run": {"workers": "two"}}, "run.workers", "'two' is no whole number"),
    "run boolean": ({"run": {"workers": True}}, "run.workers", "no whole number"),
    "on_error": ({"run": {"on_error": "panic"}}, "run.on_error", "continue, stop"),
    "retry": ({"run": {"retry_failed": -1}}, "run.retry_failed", "below 0"),
    "seeds twice": ({"search": {"seeds": [0, 0]}}, "search.seeds", "different"),
    "no seeds": ({"search": {"seeds": []}}, "search.seeds", "one or more"),
    "direction": ({"search": {"objective": {"cost/x": "up"}}}, "search.objective.cost/x", "'up'"),
    "objective list": ({"search": {"objective": ["summary/worst"]}}, "search.objective", "no mapping"),
    "store type": ({"store": {"tracking": 3}}, "store.tracking", "no text"),
    "component": ({"strategy": {"length": 3}}, "strategy", "is no component"),
    "search type": ({"search": 3}, "search", "no mapping"),
    "plugins": ({"plugins": [3]}, "plugins[0]", "no text"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_fault_of_form_is_told_with_its_key(toy: Toy, case: str) -> None:
    changes, key, told = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        read_sweep(json.dumps(toy(changes)), "sweep.yaml")
    assert [told in f.message for f in caught.value.faults if f.key == key] == [True]
    assert str(caught.value).startswith("sweep.yaml: 1 fault")


UNPLANNABLE: dict[str, tuple[dict[str, Any], str, str]] = {
    "training key": ({"training.epoch": 3}, "training.epoch", "Did you mean 'epochs'"),
    "training type": ({"training.epochs": "many"}, "training.epochs", "no whole number"),
    "training value": ({"training.epochs": 0}, "training.epochs", "at least 1"),
    "training section": ({"training": 3}, "training", "no mapping"),
    "missing section": ({"missing": "per_modality"}, "missing", "no mapping"),
    "encoders section": ({"encoders": "mlp"}, "encoders", "no mapping"),
    "no protocol": ({"missing": {"train": {"rate": 0.1}}}, "missing.protocol", ""),
    "rate type": ({"missing.train.rate": "often"}, "missing.train.rate", "'often'"),
    "rate value": ({"missing.train.rate": 1.5}, "missing.train.rate", "no fraction"),
    "rate stranger": ({"missing.train.rate": {"m7": 0.5}}, "missing.train.rate", "m7"),
    "target": ({"missing.eval.targets": ["m7"]}, "missing.eval.targets", "no target"),
    "pattern": ({"missing.eval.patterns": ["m0.m7"]}, "missing.eval.patterns", "no pattern"),
    "rates twice": ({"missing.eval.rates": [0.1, 0.1]}, "missing.eval.rates", "different"),
    "rates of one percent": ({"missing.eval.rates": [0.331, 0.334]}, "missing.eval.rates", ""),
    "monitor": ({"training.monitor": "val/accuracies"}, "", "val/accuracies"),
    "encoder option": ({"encoders.m0": {"name": "mlp", "dept": 2}}, "encoders.m0.dept", "'depth'"),
    "impossible size": ({"fusion": {"name": "concat", "hidden": -3}}, "", "concat"),
    "stranger modality": ({"encoders.m7": "mlp"}, "encoders.m7", "no modality 'm7'"),
    "wrong kind": ({"encoders.m0": "tiny_vit"}, "", "reads image"),
    "strategy": ({"strategy": "zero_fil"}, "strategy", "Did you mean 'zero_fill'"),
    "option type": ({"strategy": {"name": "mask_token", "alignment": "no"}}, "strategy.alignment", "'no'"),
    "option list": ({"adapter": {"name": "lora", "targets": 3}}, "adapter.targets", "3"),
    "which": ({"missing.protocol": {"name": "per_sample", "which": "m7"}}, "missing.protocol", "m7"),
    "adapter hole": ({"adapter": {"m0": "full"}}, "adapter", "'m1'"),
    "adapter stranger": ({"adapter": {"m0": "full", "m1": "full", "m7": "full"}}, "adapter.m7", "m7"),
    "nothing trains": ({"adapter": "lora", "adapter.rank": 0}, "", "frozen"),
    "objective": ({"search": {"objective": {"summary/wrst": "maximize"}}}, "search.objective", "Did you"),
    "budget": ({"search": {"trials_per_cell": 2}}, "search.trials_per_cell", "nothing is tuned"),
    "sampler": ({"search": {"sampler": "tpee"}}, "search.sampler.name", "'tpee'"),
    "axis": ({"search": {"axes": {"training.epoch": [1]}}}, "training.epoch", "Did you mean 'epochs'"),
    "axis root": ({"search": {"axes": {"stategy.name": ["skip"]}}}, "search.axes.stategy.name", "'strategy'"),
    "axis seed": ({"search": {"axes": {"seed": [1, 2]}}}, "search.axes.seed", "search.seeds"),
    "axis text": ({"search": {"axes": {"strategy.name": "skip"}}}, "search.axes.strategy.name", "no list"),
    "axis empty": ({"search": {"axes": {"strategy.name": []}}}, "search.axes.strategy.name", "no list"),
    "axis twice": ({"search": {"axes": {"training.epochs": [1, 1]}}}, "search.axes.training.epochs", "twice"),
    "axis encoder": ({"search": {"axes": {"encoders.m7.depth": [1]}}}, "search.axes.encoders.m7.depth", "m7"),
    "range order": (
        {"search": {"tune": {"training.warmup": {"low": 0.5, "high": 0.1}}}},
        "search.tune.training.warmup",
        "low below high",
    ),
    "range log": (
        {"search": {"tune": {"training.warmup": {"low": 0.0, "high": 0.1, "log": True}}}},
        "search.tune.training.warmup",
        "above 0",
    ),
    "range text": (
        {"search": {"tune": {"training.warmup": {"low": "a", "high": 0.1}}}},
        "search.tune.training.warmup",
        "must be numbers",
    ),
    "range key": (
        {"search": {"tune": {"training.warmup": {"low": 0.0, "high": 0.1, "lag": True}}}},
        "search.tune.training.warmup.lag",
        "Did you mean 'log'",
    ),
    "range log step": (
        {"search": {"tune": {"training.warmup": {"low": 0.1, "high": 0.2, "log": True, "step": 0.1}}}},
        "search.tune.training.warmup",
        "either",
    ),
    "no range": (
        {"search": {"tune": {"training.warmup": [0.1, 0.2]}}}, "search.tune.training.warmup", "choices",
    ),
    "no choices": (
        {"search": {"tune": {"training.warmup": {"choices": []}}}}, "search.tune.training.warmup.choices", "",
    ),
    "when": (
        {"search": {"tune": {"training.warmup": {"choices": [0.1], "when": "skip"}}}},
        "search.tune.training.warmup.when",
        "no mapping",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNPLANNABLE)
def test_fault_of_content_is_told_with_its_key(plan_toy: PlanToy, case: str) -> None:
    changes, key, told = UNPLANNABLE[case]
    with pytest.raises(ConfigError) as caught:
        plan_toy(changes)
    assert any(f.key == key and told in f.message for f in caught.value.faults), str(caught.value)


def test_all_faults_of_form_are_told_at_once(toy: Toy) -> None:
    changes = {"trainng": 1, "run": {"workers": "two", "worker": 2}, "search": {"seeds": []}, "schema": 7}
    with pytest.raises(ConfigError) as caught:
        read_sweep(json.dumps(toy(changes)), "sweep.yaml")
    keys = {f.key for f in caught.value.faults}
    assert keys == {"trainng", "run.workers", "run.worker", "search.seeds", "schema"}
    assert "sweep.yaml: 5 faults" in str(caught.value)


def test_all_faults_of_content_are_told_at_once(plan_toy: PlanToy) -> None:
    changes = {"strategy": "nothing", "training.epoch": 1, "fusion.name": "concat", "fusion.hiden": 4}
    with pytest.raises(ConfigError) as caught:
        plan_toy(changes)
    assert {f.key for f in caught.value.faults} == {"strategy", "training.epoch", "fusion.hiden"}


def test_faults_of_rates_and_training_are_told_at_once(plan_toy: PlanToy) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_toy({"missing.train.rate": 2.0, "training.epochs": 0, "missing.eval.targets": ["m9"]})
    keys = {f.key for f in caught.value.faults}
    assert keys == {"missing.train.rate", "training.epochs", "missing.eval.targets"}


@pytest.mark.parametrize("text", ["", "[1, 2]", "just text", "a: [1", "a: b: c", "\t"])
def test_file_that_is_no_mapping_is_the_users_mistake(text: str) -> None:
    with pytest.raises(InputError, match=r"sweep\.yaml"):
        read_sweep(text, "sweep.yaml")


def test_unresolved_reference_is_told_with_its_key(toy: Toy) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep(json.dumps(toy({"training.epochs": "${budget}"})), "sweep.yaml")
    assert [f.key for f in caught.value.faults] == ["training.epochs"]


def test_reference_to_another_key_is_resolved(toy: Toy) -> None:
    found = read_sweep(json.dumps(toy({"training.epochs": "${training.batch_size}"})), "sweep.yaml")
    assert found.trial["training"]["epochs"] == 16


def test_key_that_yaml_reads_as_a_boolean_is_told(toy: Toy) -> None:
    text = json.dumps(toy({"training": 0})).replace('"training": 0', '"training": {on: 3}')
    with pytest.raises(ConfigError, match="quote it"):
        read_sweep(text, "sweep.yaml")


def test_sweep_file_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no_such\.yaml"):
        load_sweep(tmp_path / "no_such.yaml")


def test_sweep_file_that_is_no_text_is_the_users_mistake(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="UTF-8"):
        load_sweep(path)


OVERRIDES: list[tuple[str, str, Any]] = [
    ("strategy=mask_token", "strategy", {"name": "mask_token"}),
    ("adapter=lora", "adapter", {"name": "lora"}),
    ("adapter.name=lora", "adapter", {"name": "lora"}),
    ("adapter.rank=4", "adapter", {"name": "full", "rank": 4}),
    ("encoders.m0.depth=3", "encoders", {"m0": {"name": "mlp", "depth": 3}, "m1": {"name": "mlp"}}),
    ("training.learning_rate=1e-3", "training", {"epochs": 2, "batch_size": 16, "learning_rate": 0.001}),
    ("fusion='mean_logits'", "fusion", {"name": "mean_logits"}),
    ('fusion="mean_logits"', "fusion", {"name": "mean_logits"}),
    ("dataset.root=a=b", "dataset", {**{"name": "toy_world"}, "train_size": 32, "val_size": 24,
                                     "test_size": 40, "root": "a=b"}),
]  # fmt: skip


@pytest.mark.parametrize(("override", "key", "expected"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_override_of_a_trial_key(toy: Toy, override: str, key: str, expected: Any) -> None:
    assert read_sweep(json.dumps(toy()), "sweep.yaml", [override]).trial[key] == expected


def test_override_of_an_axis_takes_the_rest_as_one_key(toy: Toy) -> None:
    found = read_sweep(json.dumps(toy()), "s", ["search.axes.adapter.rank=[1,2]", "search.seeds=[3]"])
    assert found.search.axes == {"adapter.rank": [1, 2]} and found.search.seeds == (3,)


def test_override_of_a_tuned_range(toy: Toy) -> None:
    found = read_sweep(json.dumps(toy()), "s", ["search.tune.training.warmup={low: 0.0, high: 0.5}"])
    assert found.search.tune == {"training.warmup": {"low": 0.0, "high": 0.5}}


@pytest.mark.parametrize("override", ["strategy", "=3", "training.epochs=[1", "no_such_key=1"])
def test_override_that_says_nothing_is_told(toy: Toy, override: str) -> None:
    with pytest.raises(ConfigError):
        read_sweep(json.dumps(toy()), "sweep.yaml", [override])


def test_one_seed_may_be_written_without_a_list(toy: Toy) -> None:
    assert read_sweep(json.dumps(toy({"search": {"seeds": 3}})), "s").search.seeds == (3,)


# ------------------------------------------------------------------------------------------------- hashes


def shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {k: shuffled(value[k], order) for k in keys}
    return value


@given(order=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=15)
def test_point_does_not_depend_on_the_order_of_keys(plan_toy: PlanToy, toy: Toy, order: Any) -> None:
    from mmx.sweep import plan_sweep

    plain = plan_toy()
    again = plan_sweep(read_sweep(json.dumps(shuffled(toy(), order)), "sweep.yaml"), plain.registry)
    assert again.cells[0].spec.point == plain.cells[0].spec.point


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values, order=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_digest_does_not_depend_on_the_order_of_keys(value: Any, order: Any) -> None:
    assert digest(shuffled(value, order)) == digest(value)


@given(first=json_values, second=json_values)
@settings(deadline=None, max_examples=50)
def test_digest_differs_where_content_does(first: Any, second: Any) -> None:
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (digest(first) == digest(second)) == same


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "mean_fill"}, {"training.epochs": 3}, {"missing.seed": 1}, {"missing.train.rate": 0.2},
        {"fusion": "concat"}, {"adapter": "bitfit"}, {"dataset.train_size": 33}, {"encoders.m0.depth": 1},
        {"missing.eval.rates": [0.0, 0.5]},
    ],
    ids=str,
)  # fmt: skip
def test_point_depends_on_content(plan_toy: PlanToy, change: dict[str, Any]) -> None:
    assert plan_toy(change).cells[0].spec.point != plan_toy().cells[0].spec.point


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"}, {"run": {"workers": 2}}, {"search": {"seeds": [5]}}, {"store": {"study": "x"}},
        {"strategy": {"name": "zero_fill"}}, {"training.warmup": 0.1}, {"encoders.m0.depth": 2},
    ],
    ids=str,
)  # fmt: skip
def test_point_does_not_depend_on_what_changes_no_number(plan_toy: PlanToy, change: dict[str, Any]) -> None:
    assert plan_toy(change).cells[0].spec.point == plan_toy().cells[0].spec.point


def test_point_leaves_the_seed_out(plan_toy: PlanToy) -> None:
    from dataclasses import replace

    spec = plan_toy().cells[0].spec
    assert replace(spec, seed=7).point == spec.point


@pytest.mark.parametrize(
    ("key", "whole", "real"),
    [
        ("missing.train.rate", 1, 1.0),
        ("missing.train.rate", {"m0": 1}, {"m0": 1.0}),
        ("missing.eval.rates", [0, 1], [0.0, 1.0]),
        ("training.learning_rate", 1, 1.0),
        ("strategy", {"name": "mean_fill", "momentum": 1}, {"name": "mean_fill", "momentum": 1.0}),
        ("strategy", {"name": "mask_token", "dropout": 1}, {"name": "mask_token", "dropout": 1.0}),
    ],
    ids=["rate", "rate by modality", "rates", "learning rate", "option", "optional option"],
)
def test_one_and_one_point_zero_are_one_point(plan_toy: PlanToy, key: str, whole: Any, real: Any) -> None:
    first, second = (plan_toy({key: value}).cells[0].spec.point for value in (whole, real))
    assert first == second


# -------------------------------------------------------------------------------------------------- cells


def points(plan: Plan) -> list[str]:
    return [c.spec.point for c in plan.cells]


def test_every_combination_of_the_axes_is_a_cell(plan_toy: PlanToy) -> None:
    axes = {"strategy.name": ["skip", "zero_fill"], "missing.train.rate": [0.0, 0.3, 0.6]}
    plan = plan_toy({"search": {"axes": axes}})
    found = {(c.spec.strategy.name, c.spec.missing.train.rate) for c in plan.cells}
    assert found == {(s, r) for s in axes["strategy.name"] for r in axes["missing.train.rate"]}
    assert len(set(points(plan))) == len(points(plan)) == 6


def test_equal_numbers_on_an_axis_are_one_cell(plan_toy: PlanToy) -> None:
    try:
        plan = plan_toy({"search": {"axes": {"missing.train.rate": [1, 1.0]}}})
    except ConfigError:
        return  # refused: that is telling, too
    assert len(set(points(plan))) == len(points(plan))


def test_whole_components_can_stand_on_an_axis(plan_toy: PlanToy) -> None:
    values = ["skip", {"name": "mean_fill", "momentum": 0.5}]
    plan = plan_toy({"search": {"axes": {"strategy": values}}})
    assert [c.spec.strategy.name for c in plan.cells] == ["skip", "mean_fill"]
    assert plan.cells[1].spec.strategy.options == {"momentum": 0.5}


def test_adapters_can_stand_on_an_axis_by_name(plan_toy: PlanToy) -> None:
    plan = plan_toy({"search": {"axes": {"adapter": ["full", "bitfit"]}}})
    assert [c.spec.adapters["m1"].name for c in plan.cells] == ["full", "bitfit"]


def test_condition_on_a_whole_component_axis_holds_by_its_name(plan_toy: PlanToy) -> None:
    axes = {
        "strategy": ["skip", "mask_token"],
        "strategy.alignment": {"values": [0.1, 0.2], "when": {"strategy.name": "mask_token"}},
    }
    plan = plan_toy({"search": {"axes": axes}})
    assert [c.spec.strategy.name for c in plan.cells] == ["skip", "mask_token", "mask_token"]


def test_adapter_that_is_left_out_is_lora(toy: Toy, registry: Registry) -> None:
    from mmx.sweep import plan_sweep

    data = {k: v for k, v in toy().items() if k not in ("adapter", "fusion")}
    spec = plan_sweep(read_sweep(json.dumps(data), "sweep.yaml"), registry).cells[0].spec
    assert (spec.adapters["m0"].name, spec.fusion.name, spec.procedure.name) == ("lora", "concat", "joint")


def test_conditional_axis_counts_only_where_its_condition_holds(plan_toy: PlanToy) -> None:
    axes = {
        "strategy.name": ["skip", "mask_token"],
        "strategy.alignment": {"values": [0.1, 0.2, 0.4], "when": {"strategy.name": ["mask_token"]}},
    }
    plan = plan_toy({"search": {"axes": axes}})
    assert [c.spec.strategy.name for c in plan.cells] == ["skip"] + ["mask_token"] * 3


def test_axis_over_names_keeps_for_each_name_the_options_that_fit_it(plan_toy: PlanToy) -> None:
    strategy = {"name": "mask_token", "alignment": 0.4, "momentum": 0.5}
    axes = {"strategy.name": ["skip", "mask_token", "mean_fill"]}
    plan = plan_toy({"strategy": strategy, "search": {"axes": axes}})
    skip, mask_token, mean_fill = (c.spec.strategy.options for c in plan.cells)
    assert skip == {} and mean_fill == {"momentum": 0.5}
    assert mask_token["alignment"] == 0.4 and "momentum" not in mask_token


def test_axis_over_names_refuses_an_option_that_fits_none(plan_toy: PlanToy) -> None:
    changes = {"strategy": {"name": "skip", "momentun": 0.5},
               "search": {"axes": {"strategy.name": ["skip", "mean_fill"]}}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"strategy\.momentun"):
        plan_toy(changes)


def test_axis_over_an_option_that_a_name_does_not_take_advises_a_condition(plan_toy: PlanToy) -> None:
    axes = {"strategy.name": ["skip", "mean_fill"], "strategy.momentum": [0.1, 0.5]}
    with pytest.raises(ConfigError, match=r"(?s)strategy\.momentum.*when: \{strategy\.name"):
        plan_toy({"search": {"axes": axes}})


def test_tuned_range_counts_only_where_its_condition_holds(plan_toy: PlanToy) -> None:
    tune = {
        "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "strategy.momentum": {"low": 0.1, "high": 0.9, "when": {"strategy.name": "mean_fill"}},
    }
    search = {"axes": {"strategy.name": ["skip", "mean_fill"]}, "tune": tune, "trials_per_cell": 3}
    skip, mean_fill = plan_toy({"search": search}).cells
    assert list(skip.raw.tune) == ["training.learning_rate"]
    assert list(mean_fill.raw.tune) == ["training.learning_rate", "strategy.momentum"]


def test_condition_on_a_path_that_is_no_part_of_a_trial_is_told(plan_toy: PlanToy) -> None:
    tune = {"training.warmup": {"low": 0.1, "high": 0.2, "when": {"stategy.name": "skip"}}}
    with pytest.raises(ConfigError, match="stategy"):
        plan_toy({"search": {"tune": tune}})


def test_seeds_are_no_cells(plan_toy: PlanToy) -> None:
    assert len(plan_toy({"search": {"seeds": [0, 1, 2]}}).cells) == 1


# ------------------------------------------------------------------------------------ the contract's example

EXAMPLE = """
schema: 1
name: avmnist-lora
dataset:   {name: digits}
encoders:  {image: tiny_vit, audio: tiny_ast}
adapter:   {name: lora, rank: 8, alpha_per_rank: 2, targets: default}
strategy:  mask_token
fusion:    transformer
procedure: joint
training:  {epochs: 20, batch_size: 64, learning_rate: 1.0e-3, monitor: val/accuracy}
missing:
  protocol: per_modality
  train: {rate: 0.3}
  eval:  {rates: [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0], targets: [any, image, audio], patterns: all}
  seed: 0
search:
  axes:
    strategy.name: [zero_fill, mask_token, prompt]
    adapter.rank: [2, 8]
    missing.train.rate: [0.0, 0.3, 0.6]
  tune:
    training.learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}
    strategy.length: {low: 4, high: 32, when: {strategy.name: prompt}}
  trials_per_cell: 10
  seeds: [0, 1, 2]
  objective: {summary/robust_accuracy: maximize}
  sampler: {name: tpe, seed: 0}
  pruner:  {name: none}
run:   {workers: 2, on_error: continue, max_consecutive_failures: 5, retry_failed: 1}
store: {tracking: sqlite:///mlflow.db, study: sqlite:///optuna.db}
"""


def test_example_of_the_contract_is_accepted_word_for_word(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    plan = open_plan(path)
    assert len(plan.cells) == 18
    assert plan.objective == {"summary/robust_accuracy": "maximize"}
    assert {len(c.raw.tune) for c in plan.cells if c.spec.strategy.name == "prompt"} == {2}


def test_resolved_file_reads_as_the_same_sweep(plan_toy: PlanToy, registry: Registry) -> None:
    from mmx.sweep import plan_sweep
    from mmx.sweep.artifacts import resolved

    plan = plan_toy({"search": {"axes": {"strategy.name": ["skip", "zero_fill"]}}})
    again: SweepSpec = read_sweep(OmegaConf.to_yaml(OmegaConf.create(resolved(plan.sweep))), "resolved.yaml")
    assert points(plan_sweep(again, registry)) == points(plan)


@pytest.mark.parametrize("template", ["digits.yaml", "toy.yaml"])
def test_template_that_init_writes_can_be_planned(template: str) -> None:
    from importlib.resources import files

    plan = open_plan(Path(str(files("mmx.cli").joinpath("templates", template))))
    assert plan.cells


def test_option_of_the_files_own_name_survives_an_axis_under_a_condition(plan_toy: PlanToy) -> None:
    axes = {
        "strategy.name": ["zero_fill", "skip"],
        "fusion.name": {"values": ["mean_logits"], "when": {"strategy.name": "skip"}},
    }
    plan = plan_toy({"fusion": {"name": "concat", "hidden": 8}, "search": {"axes": axes}})
    fusions = {c.spec.strategy.name: dict(c.spec.fusion.options) for c in plan.cells}
    assert fusions["zero_fill"]["hidden"] == 8
    assert "hidden" not in fusions["skip"]
