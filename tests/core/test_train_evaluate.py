"""One loop and one evaluation: reproducible, honest about validation and test, exact where promised."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mmx import Component
from mmx.builtin.protocols.per_cell import PerCell
from mmx.builtin.protocols.per_modality import PerModality
from mmx.builtin.protocols.per_sample import PerSample
from mmx.contracts import Dataset, Filled, Sample, Strategy
from mmx.data import Split
from mmx.errors import DivergedError, TrialError
from mmx.evaluate import (
    Predictions,
    as_columns,
    mask_digest,
    predict_patterns,
    realised_rates,
    scores_at,
    target_rate,
)
from mmx.protocols import all_patterns, draw_presence
from mmx.registry import Offer, Registry
from mmx.scores import Score, correct
from mmx.sweep import Plan
from mmx.tasks import SingleLabel
from mmx.testing import world
from mmx.train import Monitor, fit
from mmx.trial import Outcome, run_trial
from mmx_datasets.toy_world import ToyWorld

PlanToy = Callable[..., Plan]
CPU = torch.device("cpu")


def curve_point(predictions: Predictions, score: Score, protocol: Any, rate: Any, seed: int) -> float:
    return scores_at(predictions, [score], protocol, rate, seed, "test")[score.name]


class Journal(ToyWorld):
    """Notes which split is opened when."""

    events: ClassVar[list[str]] = []

    def split(self, name: str) -> Any:
        """Note it."""
        self.events.append(name)
        return super().split(name)


class OnDisk(ToyWorld):
    """Does not fit in memory."""

    in_memory = False


class Rows(Dataset):
    """A handful of complete samples of the kit's world."""

    in_memory = True

    def __init__(self, modalities: tuple[str, ...]) -> None:
        self.modalities = dict.fromkeys(modalities, "vector")
        self.task = world.task()

    def split(self, name: str) -> list[Sample]:
        """Give seven rows."""
        batch = world.batch_of({m: [1] * 7 for m in self.modalities})
        return [
            Sample(f"{name}{i}", {m: batch.inputs[m][i] for m in self.modalities}, int(batch.target[i]))
            for i in range(7)
        ]


class Exploding(Strategy):
    """Its loss is NaN from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def fill(self, tokens: Any, presence: Any, targets: Any) -> Filled:
        """Explode."""
        self.steps += self.training
        extra = float("nan") if self.steps > 2 else 0.0
        return Filled(tokens, {"extra": torch.tensor(extra)} if self.training else {})


class Silent(Strategy):
    """Gives NaN in evaluation only."""

    def fill(self, tokens: Any, presence: Any, targets: Any) -> Filled:
        """Fail quietly."""
        factor = 1.0 if self.training else float("nan")
        return Filled({m: t._replace(values=t.values * factor) for m, t in tokens.items()})


@pytest.fixture(scope="module")
def widened(registry: Registry) -> Registry:
    """The registry, with this module's components."""
    found = Registry()
    found.offers = list(registry.offers)
    for kind, cls in (
        ("dataset", Journal),
        ("dataset", OnDisk),
        ("strategy", Exploding),
        ("strategy", Silent),
    ):
        found.offers.append(Offer(kind, Component(cls.__name__, f"{__name__}:{cls.__name__}"), "tests", "1"))
    return found


def outcome_of(
    plan: Plan, seed: int = 0, on_epoch: Callable[..., None] = lambda epoch, figures: None
) -> Outcome:
    return run_trial(replace(plan.cells[0].spec, seed=seed), plan.bench, CPU, on_epoch)


def numbers(outcome: Outcome) -> dict[str, Any]:
    return {k: v for k, v in outcome.metrics.items() if not k.startswith("cost/")}


# --------------------------------------------------------------------------------------- reproducibility


@pytest.mark.parametrize("strategy", ["zero_fill", "mask_token"])
def test_same_spec_gives_bit_equal_numbers_and_weights(plan_toy: PlanToy, strategy: str) -> None:
    found = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)
        found.append(outcome_of(plan_toy({"strategy": strategy})))
    assert numbers(found[0]) == numbers(found[1])
    assert all(torch.equal(t, found[1].state[n]) for n, t in found[0].state.items())


def test_trial_does_not_depend_on_what_ran_before_it(plan_toy: PlanToy) -> None:
    plan = plan_toy()
    first = outcome_of(plan)
    outcome_of(plan, seed=5)
    assert numbers(outcome_of(plan)) == numbers(first)


def test_seeds_share_evaluation_masks_but_not_numbers(plan_toy: PlanToy) -> None:
    plan = plan_toy()
    first, second = outcome_of(plan, seed=0), outcome_of(plan, seed=1)
    assert first.mask_digest == second.mask_digest
    assert numbers(first) != numbers(second)


def test_strategies_share_evaluation_masks(plan_toy: PlanToy) -> None:
    digests = {outcome_of(plan_toy({"strategy": s})).mask_digest for s in ("skip", "mask_token")}
    assert len(digests) == 1


def test_another_missing_seed_gives_other_evaluation_masks(plan_toy: PlanToy) -> None:
    digests = {outcome_of(plan_toy({"missing.seed": seed})).mask_digest for seed in (0, 1)}
    assert len(digests) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_where_the_data_lie_changes_no_number(plan_toy: PlanToy, widened: Registry, workers: int) -> None:
    changes = {"strategy": "mask_token", "training.epochs": 1}
    memory = outcome_of(plan_toy(changes))
    disk = {**changes, "dataset.name": "OnDisk", "training.loader_workers": workers}
    assert numbers(outcome_of(plan_toy(disk, widened))) == numbers(memory)


# ------------------------------------------------------------------------------------------------ training


def test_loss_that_is_no_number_stops_the_trial_with_advice(plan_toy: PlanToy, widened: Registry) -> None:
    plan = plan_toy({"strategy": "Exploding"}, widened)
    with pytest.raises(DivergedError, match=r"(?s)nan in epoch 1.*extra nan.*training\.learning_rate"):
        outcome_of(plan)


def test_predictions_that_are_no_numbers_fail_the_trial(plan_toy: PlanToy, widened: Registry) -> None:
    with pytest.raises(TrialError, match=r"training\.learning_rate"):
        outcome_of(plan_toy({"strategy": "Silent"}, widened))


def test_test_split_is_opened_after_training_has_ended(plan_toy: PlanToy, widened: Registry) -> None:
    Journal.events.clear()
    plan = plan_toy({"dataset.name": "Journal"}, widened)
    outcome_of(plan, on_epoch=lambda epoch, figures: Journal.events.append(f"epoch {epoch}"))
    assert Journal.events.count("test") == 1
    assert Journal.events.index("test") > Journal.events.index("epoch 1")


def test_figures_of_training_hold_nothing_of_the_test_split(plan_toy: PlanToy) -> None:
    seen: list[str] = []
    outcome_of(plan_toy(), on_epoch=lambda epoch, figures: seen.extend(figures))
    assert {name.split("/")[0] for name in seen} == {"train", "val"}


def scripted(plan: Plan, figures: list[float], **training: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Train with made-up validation figures; give the model, the fit and each epoch's state."""
    spec = plan.cells[0].spec
    model, split = plan.bench.model(spec), plan.bench.split(spec, "train")
    told, states = iter(figures), []

    def on_epoch(epoch: int, seen: dict[str, float]) -> None:
        states.append({n: t.detach().clone() for n, t in model.state_dict().items()})

    options = replace(spec.training, epochs=len(figures), **training)
    fitted = fit(
        model, plan.bench.procedure(spec, model), split, split.natural, options, Monitor("val/x", True),
        lambda: {"val/x": next(told)}, 0, CPU, on_epoch,
    )  # fmt: skip
    return model, fitted, states


def same_state(model: Any, state: dict[str, Any]) -> bool:
    return all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("figures", "best"),
    [([0.1, 0.9, 0.5], 1), ([0.9, 0.9, 0.1], 0), ([0.1, 0.2, 0.3], 2), ([math.nan, 0.2, 0.1], 1)],
)
def test_epoch_that_validation_found_best_is_restored(
    plan_toy: PlanToy, figures: list[float], best: int
) -> None:
    model, fitted, states = scripted(plan_toy(), figures)
    assert fitted.best_epoch == best
    assert same_state(model, states[best])
    assert not same_state(model, states[best - 1])


@pytest.mark.parametrize(("patience", "epochs"), [(0, 5), (1, 2), (2, 5)])
def test_training_stops_after_so_many_epochs_without_a_better_one(
    plan_toy: PlanToy, patience: int, epochs: int
) -> None:
    _, fitted, _ = scripted(plan_toy(), [0.5, 0.4, 0.6, 0.5, 0.4], patience=patience)
    assert len(fitted.history) == epochs


def test_lower_is_better_where_the_figure_is_an_error() -> None:
    monitor = Monitor("val/loss", higher_is_better=False)
    assert monitor.better(0.1, 0.2) and not monitor.better(0.3, 0.2) and not monitor.better(math.nan, 0.2)


def test_batches_of_one_row_train(plan_toy: PlanToy) -> None:
    plan = plan_toy()
    before = plan.bench.model(plan.cells[0].spec).state_dict()
    model, fitted, _ = scripted(plan, [0.5], batch_size=1)
    assert not same_state(model, before)
    assert math.isfinite(fitted.history[0]["train/loss"])


def test_training_lowers_the_loss(plan_toy: PlanToy) -> None:
    _, fitted, _ = scripted(plan_toy(), [0.1] * 6)
    assert fitted.history[-1]["train/loss"] < 0.8 * fitted.history[0]["train/loss"]


def test_learning_rate_that_is_too_high_is_told_as_divergence(plan_toy: PlanToy) -> None:
    with pytest.raises(TrialError, match=r"training\.learning_rate"):
        outcome_of(plan_toy({"training.learning_rate": 1e38, "training.gradient_clip": 0.0}))


# -------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def finished(plan_toy: PlanToy) -> Outcome:
    return outcome_of(plan_toy())


@pytest.mark.parametrize("score", ["accuracy", "macro_f1", "auroc"])
def test_rate_zero_is_the_complete_pattern(finished: Outcome, score: str) -> None:
    for target in ("any", "m0", "m1"):
        curve = finished.metrics[f"robustness/{score}_missing_{target}"]
        assert curve[0] == pytest.approx(finished.metrics[f"pattern/{score}_has_m0.m1"][0])


@pytest.mark.parametrize("score", ["accuracy", "macro_f1", "auroc"])
@pytest.mark.parametrize(("target", "left"), [("m0", "m1"), ("m1", "m0")])
def test_rate_one_of_a_modality_is_the_pattern_without_it(
    finished: Outcome, score: str, target: str, left: str
) -> None:
    curve = finished.metrics[f"robustness/{score}_missing_{target}"]
    assert curve[100] == pytest.approx(finished.metrics[f"pattern/{score}_has_{left}"][0])


def test_curve_of_one_modality_is_linear_in_the_rate(finished: Outcome) -> None:
    curve = finished.metrics["robustness/accuracy_missing_m0"]
    assert curve[50] == pytest.approx((curve[0] + curve[100]) / 2)


def test_shapley_values_add_up_to_what_is_above_chance(finished: Outcome) -> None:
    total = sum(finished.metrics[f"contribution/shapley_{m}"][0] for m in ("m0", "m1"))
    targets = finished.predictions.targets  # type: ignore[union-attr]
    chance = max(np.bincount(targets)) / len(targets)
    assert total == pytest.approx(finished.metrics["summary/clean"][0] - chance)


def made_up(count: int = 2, rows: int = 12, natural: bool = False) -> Predictions:
    """Make predictions of every pattern, NaN where a row lacks a modality by nature."""
    random = np.random.default_rng(0)
    names = world.names(count)
    there = {m: torch.ones(rows, dtype=torch.bool) for m in names}
    if natural:
        there["m0"][:4] = False
    patterns = {p: random.dirichlet(np.ones(3), rows) for p in all_patterns(names)}
    ids = [f"s{i}" for i in range(rows)]
    blank = Predictions(ids, random.integers(3, size=rows), there, patterns, names)
    outputs = {p: np.where(blank.has(p)[:, None], o, np.nan) for p, o in patterns.items()}
    return replace(blank, outputs=outputs)


@pytest.mark.parametrize("natural", [False, True], ids=["complete", "natural"])
@pytest.mark.parametrize("rate", [0.4, {"m0": 0.7}, {"m0": 0.2, "m1": 0.6}], ids=str)
@pytest.mark.parametrize("protocol", [PerModality(), PerSample(), PerCell()], ids=lambda p: type(p).__name__)
def test_curve_is_the_expectation_over_draws(protocol: Any, rate: Any, natural: bool) -> None:
    if isinstance(protocol, PerCell) and rate == {"m0": 0.2, "m1": 0.6}:
        return  # refused: one rate for all
    predictions, score = made_up(natural=natural), Score("accuracy", correct, per_sample=True)
    drawn = []
    for seed in range(400):
        presence = draw_presence(protocol, rate, predictions.ids, predictions.natural, seed)
        hits = [
            correct(predictions.outputs[frozenset(m for m in presence if presence[m][i])][i : i + 1],
                    predictions.targets[i : i + 1])[0]
            for i in range(12)
        ]  # fmt: skip
        drawn.append(float(np.mean(hits)))
    error = max(np.std(drawn) / math.sqrt(len(drawn)), 1e-9)
    exact = curve_point(predictions, score, protocol, rate, 0)
    assert abs(exact - np.mean(drawn)) <= 5 * error


def test_score_that_is_no_mean_is_drawn_the_same_each_time() -> None:
    predictions, score = made_up(rows=40), SingleLabel(3).score("macro_f1")
    points = [curve_point(predictions, score, PerModality(), 0.5, seed) for seed in (0, 0, 1)]
    assert points[0] == points[1] != points[2]


def test_mean_score_does_not_depend_on_the_seed_of_draws() -> None:
    predictions, score = made_up(rows=40), SingleLabel(3).score("accuracy")
    points = {curve_point(predictions, score, PerModality(), 0.5, seed) for seed in (0, 1)}
    assert len(points) == 1


def test_any_means_all_modalities_and_a_name_only_that_one() -> None:
    assert target_rate("any", 0.3) == 0.3 and target_rate("m1", 0.3) == {"m1": 0.3}


STRATEGIES = [o for o in Registry.load().offers if o.kind == "strategy"]


@pytest.mark.parametrize("offer", STRATEGIES, ids=lambda o: o.component.name)
def test_all_patterns_take_one_encoding_unless_the_encoding_hangs_on_the_pattern(
    registry: Registry, offer: Offer
) -> None:
    fusion = registry.find("fusion", "transformer")
    model = world.assemble(registry, offer, fusion, 3)
    split = Split(Rows(model.modalities), "test", model.modalities)
    rows = dict.fromkeys(model.modalities, 0)
    for m, encoder in model.encoders.items():

        def count(module: Any, given: Any, out: Any, m: str = m) -> None:
            rows[m] += len(given[0])

        encoder.register_forward_hook(count)
    predict_patterns(model, split, CPU, batch_size=3)
    times = 4 if model.strategy.encodes_by_pattern else 1  # a modality is part of four patterns of three
    assert rows == dict.fromkeys(model.modalities, times * len(split))


def test_predictions_do_not_depend_on_the_batch_size(plan_toy: PlanToy) -> None:
    plan = plan_toy({"strategy": "mask_token", "dataset.natural_missing": 0.3})
    spec = plan.cells[0].spec
    model, split = plan.bench.model(spec), plan.bench.split(spec, "val")
    first, second = (predict_patterns(model, split, CPU, batch_size=size) for size in (5, 256))
    for pattern, outputs in first.outputs.items():
        np.testing.assert_allclose(outputs, second.outputs[pattern], atol=1e-5)


@pytest.mark.parametrize("strategy", ["skip", "zero_fill", "mean_fill", "mask_token"])
def test_data_that_lack_modalities_by_nature_work_end_to_end(plan_toy: PlanToy, strategy: str) -> None:
    outcome = outcome_of(plan_toy({"strategy": strategy, "dataset.natural_missing": 0.4}))
    assert all(math.isfinite(v) for by_step in outcome.metrics.values() for v in by_step.values())
    predictions = outcome.predictions
    assert predictions is not None
    complete = frozenset({"m0", "m1"})
    lacking = ~predictions.has(complete)
    assert 0 < lacking.sum() < len(lacking)
    assert np.isnan(predictions.outputs[complete][lacking]).all()
    for m in ("m0", "m1"):
        realised = outcome.metrics[f"missing/realised_rate_{m}"]
        assert realised[0] == pytest.approx(float((~predictions.natural[m]).double().mean()))
        assert realised[0] <= realised[50] <= realised[100]


def test_table_of_predictions_has_a_row_for_each_pattern_that_a_sample_can_have() -> None:
    predictions = made_up(natural=True)
    columns = as_columns(predictions)
    assert len(columns["id"]) == 12 + 8 + 8
    assert columns["pattern"].count("m0.m1") == 8 and np.isfinite(columns["output_0"]).all()


def test_digest_of_masks_tells_them_apart() -> None:
    first = {"m0": torch.tensor([True, False])}
    assert mask_digest([first]) == mask_digest([{"m0": torch.tensor([True, False])}])
    assert mask_digest([first]) != mask_digest([{"m0": torch.tensor([False, True])}])


def test_realised_rate_is_the_share_that_is_absent() -> None:
    assert realised_rates({"m0": torch.tensor([True, False, False, True])}) == {"m0": 0.5}


def test_selection_has_the_twin_of_every_summary(finished: Outcome) -> None:
    summaries = {n.removeprefix("summary/") for n in finished.metrics if n.startswith("summary/")}
    selections = {n.removeprefix("selection/") for n in finished.metrics if n.startswith("selection/")}
    assert selections == summaries


def test_patterns_that_were_not_asked_for_are_not_told(plan_toy: PlanToy) -> None:
    outcome = outcome_of(plan_toy({"missing.eval.patterns": ["m0"]}))
    assert [n for n in outcome.metrics if n.startswith("pattern/accuracy")] == ["pattern/accuracy_has_m0"]


def epochs_of(outcome: Outcome) -> Iterator[int]:
    yield from outcome.metrics["train/loss"]


def test_training_is_told_by_epoch(finished: Outcome) -> None:
    assert list(epochs_of(finished)) == [0, 1] == list(finished.metrics["val/accuracy"])
