"""Several processes in one trial: the figures of one process, and nobody waits for the dead."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from mmx.config import TrialSpec
from mmx.errors import DivergedError, InputError, TrialError
from mmx.registry import Registry
from mmx.sweep import Plan
from mmx.trial import Bench, Helpers, Outcome, run_trial
from mmx.trial.sharing import Draws

PlanToy = Callable[..., Plan]
OnEpoch = Callable[[int, dict[str, float]], bool]
CPU = torch.device("cpu")
LATE = {"strategy": "skip", "fusion": "mean_logits", "missing.train.rate": 0.0}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Rounding differs, because sums are taken in another order."""

PLUGIN = '''
import os
import signal
from multiprocessing import parent_process
from typing import ClassVar

import torch
from torch import nn

from mmx import Component, hookimpl
from mmx.builtin.adapters.full import Full
from mmx.contracts import Encoder, Filled, Strategy, Tokens
from mmx_datasets.toy_world import ToyWorld


class Lazy:
    """Counts what is read of it."""

    def __init__(self, samples):
        self.samples, self.reads = samples, 0
        self.contents = [(s.id, tuple(s.inputs)) for s in samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.reads += 1
        return self.samples[index]


class OnDisk(ToyWorld):
    """Does not fit in memory."""

    in_memory = False

    def split(self, name):
        return Lazy(super().split(name))


class Normed(Encoder):
    """Batch norm of the raw input, then one token."""

    kind: ClassVar[str] = "vector"
    lora_targets: ClassVar[str] = "out"

    def __init__(self, example):
        super().__init__()
        self.norm, self.width = nn.BatchNorm1d(len(example)), 8
        self.out = nn.Linear(len(example), 8)

    def forward(self, raw, prompts=None):
        values = self.out(self.norm(raw))[:, None]
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool))


class Noisy(Normed):
    """Draws random numbers in training."""

    def forward(self, raw, prompts=None):
        values, valid = super().forward(raw)
        return Tokens(nn.functional.dropout(values, 0.2, self.training), valid)


class Noting(Full):
    """Keeps the squares of the gradients that it is shown."""

    calibration_batches = 2

    def apply(self, module):
        super().apply(module)
        self.module = module
        module.register_buffer("noted", torch.zeros(()))

    def calibrate(self):
        self.module.noted += sum(p.grad.square().sum() for p in self.module.parameters())


class Trap(Strategy):
    """Fails in helpers alone, after some steps."""

    def __init__(self, how, steps=3):
        super().__init__()
        self.how, self.left = how, steps

    def fill(self, tokens, presence, targets):
        self.left -= self.training
        if self.left < 0 and parent_process() is not None:
            if self.how == "exit":
                os._exit(3)
            raise ValueError("the trap went off")
        return Filled(tokens)


@hookimpl
def register_adapters():
    return [Component("noting", f"{__name__}:Noting")]


@hookimpl
def register_datasets():
    return [Component("on_disk", f"{__name__}:OnDisk")]


@hookimpl
def register_encoders():
    return [Component("normed", f"{__name__}:Normed"), Component("noisy", f"{__name__}:Noisy")]


@hookimpl
def register_strategies():
    return [Component("trap", f"{__name__}:Trap")]
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "components.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def widened(plugin: Path) -> Registry:
    """The registry with the components of this module's plugin file."""
    return Registry.load(files=[plugin])


@pytest.fixture(scope="module")
def helpers(plugin: Path) -> Iterator[Helpers]:
    """Two processes a trial; starting the other one takes seconds, so all tests share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(plugin.parent))
        found = Helpers(2, [CPU], [plugin])
        yield found
        found.close()


@pytest.fixture
def spec_of(plan_toy: PlanToy, widened: Registry) -> Callable[..., TrialSpec]:
    return lambda changes=None: plan_toy(changes, widened).cells[0].spec


def go_on(epoch: int, figures: dict[str, float]) -> bool:
    return False


def run(
    spec: TrialSpec,
    registry: Registry,
    helpers: Helpers | None = None,
    on_epoch: OnEpoch = go_on,
    folder: Path | None = None,
) -> Outcome:
    """Run a trial with everything built anew."""
    return run_trial(spec, Bench(registry, folder), CPU, on_epoch, helpers)


def numbers(outcome: Outcome) -> dict[tuple[str, int], float]:
    return {
        (name, step): value
        for name, by_step in outcome.metrics.items()
        for step, value in by_step.items()
        if not name.startswith("cost/") and "seconds" not in name
    }


def assert_close(found: Outcome, expected: Outcome) -> None:
    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-5, nan_ok=True)
    assert found.state.keys() == expected.state.keys()
    for name, tensor in expected.state.items():
        assert torch.allclose(found.state[name], tensor, **CLOSE), name
    assert found.predictions is not None and expected.predictions is not None
    for pattern, outputs in expected.predictions.outputs.items():
        assert np.allclose(found.predictions.outputs[pattern], outputs, atol=1e-4, equal_nan=True)


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert numbers(found) == numbers(expected)
    assert all(torch.equal(found.state[n], t) for n, t in expected.state.items())


# ------------------------------------------------------------------------------------- what comes out

PHASES = [{"modalities": ["m0"]}, {"modalities": ["m1"]}, {"adapter": "lora", "procedure": "distillation"}]
ALIKE: dict[str, dict[str, Any]] = {
    "joint": {},
    "last batch of one row": {"training.batch_size": 7, "dataset.train_size": 29},
    "shares of different sizes": {"training.batch_size": 15, "training.gradient_clip": 0.01},
    "fewer rows than can be shared": {"training.batch_size": 3, "dataset.train_size": 8},
    "a modality that few rows have": {"missing.train.rate": {"m1": 0.8}, "training.batch_size": 8},
    "losses over pairs of modalities": {"strategy": "mask_token"},
    "running means of a strategy": {"strategy": "mean_fill"},
    "modalities hidden at random": {"strategy": "modality_dropout"},
    "a step a modality, projected": {
        "procedure": {"name": "alternating", "reset": "never"},
        "fusion": "entropy",
        "training.batch_size": 5,
    },
    "ranking within a batch, histories of samples": {"procedure": "qmf", "fusion": "confidence"},
    "gradients changed at random": {"procedure": "ogm_ge", "fusion": "mean_logits"},
    "an adapter that is calibrated": {
        **LATE,
        "adapter": {"name": "scale_shift", "budget": 0.5, "calibration_batches": 2},
    },
    "an adapter that looks at gradients": {"adapter": "noting"},
    "phases, the last with a teacher": {**LATE, "training.phases": PHASES},
    "rows read from disk by each": {"dataset.name": "on_disk", "training.batch_size": 5},
    "encoded before": {"adapter": "frozen", "training.frozen_cache_gigabytes": 1},
    "rows read by loaders": {"dataset.name": "on_disk", "training.loader_workers": 1},
}


@pytest.mark.parametrize("changes", ALIKE.values(), ids=list(ALIKE))
def test_two_processes_come_to_the_figures_of_one(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers, changes: dict[str, Any]
) -> None:
    spec = spec_of(changes)
    assert_close(run(spec, widened, helpers), run(spec, widened))


def test_each_process_reads_its_rows_alone(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers
) -> None:
    reads = []
    for team in (None, helpers):
        spec, bench = spec_of({"dataset.name": "on_disk"}), Bench(widened)
        samples = bench.split(spec, "train").samples
        run_trial(spec, bench, CPU, helpers=team)
        reads.append(samples.reads)  # type: ignore[attr-defined]
    rows = spec.training.epochs * len(samples)
    assert reads[0] - reads[1] == rows // 2


def test_a_process_draws_other_numbers_than_the_leader_in_between_and_the_same_ones_after() -> None:
    drawn = []
    for rank in (0, 1):
        torch.manual_seed(5)
        draws = Draws(rank, CPU)
        between = torch.rand(3)
        draws.end(draws.drew())
        drawn.append((between, torch.rand(3)))
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize("rank", [0, 1])
def test_where_nothing_is_drawn_in_between_numbers_are_those_of_one_process(rank: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draws = Draws(rank, CPU)
    assert not draws.drew()
    draws.end(drew=False)
    assert torch.equal(torch.rand(3), expected)


def test_encoders_draw_random_numbers_of_their_own_that_only_the_seed_decides(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers
) -> None:
    spec = spec_of({"encoders": {"m0": "noisy", "m1": "noisy"}})
    first = run(spec, widened, helpers)
    torch.manual_seed(17)
    assert_same(run(spec, widened, helpers), first)
    assert numbers(run(spec, widened)) != numbers(first)


def test_statistics_of_batch_norm_are_averaged_over_the_processes(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers
) -> None:
    spec = spec_of({"encoders": {"m0": "normed", "m1": "normed"}, "missing.train.rate": 0.0})
    one, two = run(spec, widened).state, run(spec, widened, helpers).state
    for m in ("m0", "m1"):
        # With equal shares the mean of their means is that of the batch; the variance within is smaller.
        assert torch.allclose(one[f"encoders.{m}.norm.running_mean"], two[f"encoders.{m}.norm.running_mean"])
        assert not torch.equal(one[f"encoders.{m}.norm.running_var"], two[f"encoders.{m}.norm.running_var"])


def test_on_epoch_ends_training_in_all_processes(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers
) -> None:
    spec = spec_of({"training.epochs": 4})
    told: list[int] = []

    def on_epoch(epoch: int, figures: dict[str, float]) -> bool:
        told.append(epoch)
        return epoch == 1

    outcome = run(spec, widened, helpers, on_epoch)
    assert told == [0, 1] and len(outcome.metrics["val/loss"]) == 2
    assert_close(outcome, run(spec, widened, None, lambda epoch, figures: epoch == 1))


def test_phases_that_were_kept_are_taken_over_by_all_processes(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers, tmp_path: Path
) -> None:
    spec = spec_of({**LATE, "training.phases": PHASES})
    first = run(spec, widened, helpers, folder=tmp_path)
    kept = sorted((tmp_path / "phases").iterdir())
    again = run(spec, widened, helpers, folder=tmp_path)
    assert len(kept) == 2
    assert_same(again, first)


def test_costs_are_those_of_the_leading_process(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers
) -> None:
    started = time.perf_counter()
    costs = run(spec_of(), widened, helpers).last()
    assert 0 < costs["cost/train_seconds"] < time.perf_counter() - started
    assert costs["cost/peak_memory_mb"] == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------------------------- what goes wrong


def test_what_is_broken_off_is_carried_on_to_the_same_bits(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers, tmp_path: Path
) -> None:
    spec = spec_of({"encoders": {"m0": "noisy", "m1": "mlp"}, "strategy": "modality_dropout"})
    expected = run(spec, widened, helpers)

    def stop(epoch: int, figures: dict[str, float]) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spec, widened, helpers, stop, tmp_path)
    assert helpers.processes == []
    told: list[int] = []
    found = run(spec, widened, helpers, lambda epoch, figures: bool(told.append(epoch)), tmp_path)
    assert told == [0, 1]
    assert_same(found, expected)


def test_a_loss_that_is_no_number_is_told_as_with_one_process(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers
) -> None:
    spec = spec_of({"training.learning_rate": 1e38, "training.gradient_clip": 0.0})
    with pytest.raises(DivergedError, match=r"training\.learning_rate"):
        run(spec, widened, helpers)


@pytest.mark.parametrize(
    ("how", "told"),
    [("raise", r"process 2 of the 2 .*ValueError: the trap went off"), ("exit", r"process 2 .*exit code 3")],
)
def test_a_helper_that_fails_ends_the_trial_with_its_reason(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers, how: str, told: str
) -> None:
    with pytest.raises(TrialError, match=told):
        run(spec_of({"strategy": {"name": "trap", "how": how}}), widened, helpers)


def test_a_helper_that_is_killed_ends_the_trial_at_once_and_is_replaced(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers
) -> None:
    killed = [0.0]

    def kill(epoch: int, figures: dict[str, float]) -> bool:
        helpers.processes[0].kill()
        killed[0] = time.monotonic()
        return False

    with pytest.raises(TrialError, match=r"process 2 of the 2 .*signal 9"):
        run(spec_of(), widened, helpers, kill)
    assert time.monotonic() - killed[0] < 10
    assert run(spec_of(), widened, helpers).predictions is not None


def test_helpers_do_not_heed_interrupts(
    spec_of: Callable[..., TrialSpec], widened: Registry, helpers: Helpers
) -> None:
    def interrupt(epoch: int, figures: dict[str, float]) -> bool:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(helpers.processes[0].pid or 0, number)
        return False

    assert run(spec_of(), widened, helpers, interrupt).predictions is not None


WORKER = """
    import json, os, sys
    import torch
    from mmx.config import read_sweep
    from mmx.registry import Registry
    from mmx.sweep import plan_sweep
    from mmx.trial import Helpers, run_trial

    if __name__ == "__main__":
        plan, cpu = plan_sweep(read_sweep(sys.argv[1], "sweep.yaml"), Registry.load()), torch.device("cpu")
        run_trial(plan.cells[0].spec, plan.bench, cpu)
        alone = [name for name in sys.modules if name.startswith("accelerate")]
        helpers = Helpers(2, [cpu])

        def on_epoch(epoch, figures):
            if epoch == 1:
                print(json.dumps([[p.pid for p in helpers.processes], alone]), flush=True)
                if sys.argv[2] == "dies":
                    os._exit(0)

        run_trial(plan.cells[0].spec, plan.bench, cpu, on_epoch, helpers)
"""


def gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module", params=["dies", "forgets them"])
def worker(
    request: pytest.FixtureRequest,
    toy: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[int], list[str]]:
    """Run a trial in a worker that closes nothing: the helpers that it had, and what of accelerate it had
    imported for a trial of one process before."""
    script = tmp_path_factory.mktemp("worker") / "worker.py"
    script.write_text(textwrap.dedent(WORKER), encoding="utf-8")
    command = [sys.executable, str(script), json.dumps(toy()), request.param]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    pids, imported = json.loads(done.stdout.splitlines()[-1])
    return pids, imported


def test_helpers_end_with_their_worker(worker: tuple[list[int], list[str]]) -> None:
    pids, _ = worker
    assert len(pids) == 1 and all(gone(pid) for pid in pids)


def test_one_process_a_trial_imports_no_accelerate(worker: tuple[list[int], list[str]]) -> None:
    _, imported = worker
    assert imported == []


def test_devices_that_processes_cannot_share_are_refused() -> None:
    with pytest.raises(InputError, match=r"run\.processes_per_trial: 2 on device 'mps'"):
        Helpers(2, [torch.device("mps")])
