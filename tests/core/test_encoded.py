"""What does not train is encoded once, for all epochs and trials, and no number depends on who did it."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmx.config import TrialSpec
from mmx.errors import InputError, TrialError
from mmx.registry import Registry
from mmx.sweep import Plan
from mmx.trial import Bench, Outcome, run_trial
from mmx.trial.encoded import open_split

CPU = torch.device("cpu")
PLUGIN = '''
import torch
from typing import ClassVar

from mmx import Component, hookimpl
from mmx.builtin.adapters.full import Full
from mmx.contracts import Encoder, Tokens
from mmx.transformer import LORA_TARGETS, Transformer
from mmx_datasets.toy_world import ToyWorld

class Staged(Encoder):
    """A class token and one of the vector, through three blocks; counts the rows that it embeds."""

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = LORA_TARGETS
    accepts_prompts: ClassVar[bool] = True
    embedded: ClassVar[list[int]] = []

    def __init__(self, example):
        super().__init__()
        self.width, self.depth, self.prompt_layers = 8, 4, 3
        self.linear = torch.nn.Linear(len(example), 16)
        self.transformer = Transformer(8, depth=3, heads=2, dropout=0.1)

    def embed(self, raw):
        self.embedded.append(len(raw))
        return self.linear(raw).unflatten(1, (2, 8))

    def forward(self, raw, prompts=None):
        values = self.transformer(self.embed(raw), prompts=prompts)
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool))

    def advance(self, state, start, stop):
        x = state.values if isinstance(state, Tokens) else self.embed(state)
        x = self.transformer.advance(x, max(0, start - 1), stop - 1)
        return Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool))

class Lazy:
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

class OnDisk(ToyWorld):
    """May give other inputs each time, for all that is known."""

    in_memory = False

    def split(self, name):
        return Lazy(super().split(name))

class ChosenLater(Full):
    """Says that it looks at gradients first."""

    calibration_batches = 1

    def apply(self, module):
        module.requires_grad_(False)

@hookimpl
def register_adapters():
    return [Component("chosen_later", f"{__name__}:ChosenLater")]

@hookimpl
def register_datasets():
    return [Component("on_disk", f"{__name__}:OnDisk")]

@hookimpl
def register_encoders():
    return [Component("staged", f"{__name__}:Staged")]
'''
STAGED = {"encoders": {"m0": "staged", "m1": "staged"}, "adapter": "frozen"}
LAST_BLOCK = {"name": "lora", "rank": 2, "targets": r"transformer\.blocks\.2\..*(query|value)"}
CACHED = {"training.frozen_cache_gigabytes": 1}

SpecOf = Callable[..., TrialSpec]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmx" / "encoded"


@pytest.fixture(scope="module")
def widened(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    path = tmp_path_factory.mktemp("plugin") / "components_in_stages.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return Registry.load(files=[path])


@pytest.fixture
def embedded(widened: Registry) -> list[int]:
    """The numbers of rows that encoders embedded, in order."""
    found: list[int] = widened.load_class("encoder", "staged").embedded  # type: ignore[attr-defined]
    found.clear()
    return found


@pytest.fixture
def spec_of(plan_toy: Callable[..., Plan], widened: Registry) -> SpecOf:
    return lambda *changes: (
        plan_toy({k: v for c in (STAGED, *changes) for k, v in c.items()}, widened).cells[0].spec
    )


def run(spec: TrialSpec, registry: Registry) -> Outcome:
    return run_trial(spec, Bench(registry), CPU)


def outputs(outcome: Outcome) -> np.ndarray:
    assert outcome.predictions is not None
    return np.concatenate([own.ravel() for own in outcome.predictions.outputs.values()])


def tables(spec: TrialSpec, registry: Registry, split: str = "train") -> dict[str, int | None]:
    """Give the stages from which the modalities go on that have a table."""
    bench = Bench(registry)
    opened = open_split(spec, bench, bench.model(spec), split, CPU)
    return {m: table.stage for m, table in opened.tables.items()}


@pytest.mark.parametrize("adapter", ["frozen", LAST_BLOCK], ids=["frozen", "the first blocks frozen"])
def test_numbers_do_not_depend_on_what_lay_in_the_cache(
    spec_of: SpecOf, widened: Registry, adapter: Any
) -> None:
    spec = spec_of(CACHED, {"adapter": adapter})
    first, again = run(spec, widened), run(spec, widened)
    assert np.array_equal(outputs(first), outputs(again), equal_nan=True)


def test_numbers_are_those_of_encoding_each_time_but_for_rounding(spec_of: SpecOf, widened: Registry) -> None:
    found, expected = (outputs(run(spec_of(c), widened)) for c in (CACHED, {}))
    assert np.allclose(found, expected, atol=1e-5, equal_nan=True)


def test_a_frozen_encoder_sees_each_sample_once(
    spec_of: SpecOf, widened: Registry, embedded: list[int]
) -> None:
    spec = spec_of(CACHED)
    run(spec, widened)
    sizes = [spec.dataset.options[f"{name}_size"] for name in ("train", "val", "test")]
    assert sum(n for n in embedded if n > 1) == 2 * sum(sizes)
    embedded.clear()
    run(replace(spec, training=replace(spec.training, epochs=3)), widened)
    assert set(embedded) == {1}  # an example tells the shape


def test_a_sweep_over_ranks_shares_the_frozen_first_blocks(
    spec_of: SpecOf, widened: Registry, embedded: list[int]
) -> None:
    assert tables(spec_of(CACHED, {"adapter": LAST_BLOCK}), widened) == {"m0": 3, "m1": 3}
    embedded.clear()
    assert tables(spec_of(CACHED, {"adapter": {**LAST_BLOCK, "rank": 1}}), widened) == {"m0": 3, "m1": 3}
    assert set(embedded) == {1}


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "prompt"},
        {"adapter": "chosen_later"},
        {"adapter": "full"},
        {"dataset.name": "on_disk"},
    ],
    ids=["prompts go in", "what trains is chosen later", "all trains", "inputs may be others each time"],
)
def test_nothing_is_kept_of_what_is_no_function_of_the_input(
    spec_of: SpecOf, widened: Registry, changes: dict[str, Any]
) -> None:
    assert tables(spec_of(CACHED, changes), widened) == {}


def test_nothing_is_kept_where_a_teacher_sees_the_batches(spec_of: SpecOf, widened: Registry) -> None:
    phases = [{}, {"procedure": "distillation"}]
    stages = spec_of(CACHED, {"training.phases": phases, "fusion": "mean_logits"}).stages()
    assert [tables(stage, widened) != {} for stage in stages] == [True, False]


@pytest.mark.parametrize("changes", [{"dataset.generator_seed": 1}, {"encoders.m0": "mlp"}, {"seed": 1}])
def test_other_inputs_options_or_weights_are_other_tables(
    spec_of: SpecOf, widened: Registry, cache: Path, changes: dict[str, Any]
) -> None:
    spec = spec_of(CACHED)
    tables(spec, widened)
    kept = len(list(cache.glob("??/*.npy")))
    other = replace(spec, seed=1) if "seed" in changes else spec_of(CACHED, changes)
    tables(other, widened)
    assert len(list(cache.glob("??/*.npy"))) > kept


def test_rows_that_lack_a_modality_are_neither_encoded_nor_read(
    spec_of: SpecOf, widened: Registry, embedded: list[int]
) -> None:
    spec = spec_of(CACHED, {"dataset.natural_missing": 0.5})
    bench = Bench(widened)
    split = open_split(spec, bench, bench.model(spec), "train", CPU)
    assert sum(n for n in embedded if n > 1) == sum(int(there.sum()) for there in split.natural.values())
    nobody = {m: torch.zeros_like(there) for m, there in split.natural.items()}
    batch = split.batch(torch.arange(8), {**nobody, "m0": split.natural["m0"]})
    assert not batch.inputs["m1"][:].tokens.valid.any()  # type: ignore[union-attr]


def test_no_room_is_told_with_the_way_out(spec_of: SpecOf, widened: Registry) -> None:
    spec = spec_of({"training.frozen_cache_gigabytes": 1e-6})
    with pytest.raises(TrialError, match=r"no room to keep what 'm0' .* 1e-06 GB allowed.*set it to 0"):
        run(spec, widened)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "full"), (TrialError, r"no room to keep what 'm0' .*set it to 0")),
        (OSError(errno.EIO, "broken"), (OSError, r"^\[Errno 5\] broken$")),
        (FileNotFoundError(errno.ENOENT, "gone", "a.png"), (OSError, r"gone: 'a.png'$")),
    ],
)
def test_only_a_full_disk_is_called_full(
    spec_of: SpecOf,
    widened: Registry,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    told: tuple[type[Exception], str],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("mmx.trial.encoded._blocks", fail)
    spec, (kind, text) = spec_of(CACHED), told
    with pytest.raises(kind, match=text):
        tables(spec, widened)


def test_how_much_disk_there_may_be_is_no_part_of_a_point(spec_of: SpecOf) -> None:
    points = [spec_of({"training.frozen_cache_gigabytes": gigabytes}).point for gigabytes in (0, 1, 2)]
    assert points[0] == spec_of().point != points[1] == points[2]


def test_an_encoder_without_stages_cannot_be_cut(spec_of: SpecOf, widened: Registry) -> None:
    spec = spec_of({"encoders": {"m0": "mlp", "m1": "mlp"}})
    encoder: Any = Bench(widened).model(spec).encoders["m0"]
    with pytest.raises(InputError, match="cannot be cut"):
        encoder.advance(torch.zeros(1, 16), 0, 1)
