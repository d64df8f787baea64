"""Checkpoints: what is broken off is carried on to the same bits, and a bad file or disk harms nothing."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

import mmx.trial
from mmx import Component
from mmx.config import TrialSpec
from mmx.contracts import Batch, Filled, Strategy
from mmx.errors import DivergedError
from mmx.registry import Offer, Registry
from mmx.sweep import Plan
from mmx.testing import resuming
from mmx.trial import Bench, Outcome, checkpoint, code, run_trial
from mmx.trial.checkpoint import Checkpoint
from mmx.trial.code import phase_keys
from mmx.worker import this_worker
from mmx_datasets.toy_world import ToyWorld
from mmx_strategies.zero_fill import ZeroFill

PlanToy = Callable[..., Plan]
Told = list[tuple[int, dict[str, float]]]
CPU = torch.device("cpu")
LATE = {"strategy": "skip", "fusion": "mean_logits", "missing.train.rate": 0.0}
UNI = [{"modalities": ["m0"]}, {"modalities": ["m1"]}]


class OnDisk(ToyWorld):
    """Does not fit in memory."""

    in_memory = False


class Gambler(ZeroFill):
    """Adds noise from the global random states of NumPy and Python."""

    def fill(self, tokens: Any, presence: Any, targets: Any) -> Filled:
        """Gamble."""
        factor = 1 + 0.1 * self.training * (np.random.standard_normal() + random.gauss())
        return super().fill(
            {m: t._replace(values=t.values * factor) for m, t in tokens.items()}, presence, None
        )


class Forgetful(ZeroFill):
    """Counts its steps where no checkpoint looks."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def fill(self, tokens: Any, presence: Any, targets: Any) -> Filled:
        """Fade."""
        self.steps += self.training
        faded = {m: t._replace(values=t.values / (1 + self.steps)) for m, t in tokens.items()}
        return super().fill(faded, presence, None)


@pytest.fixture(scope="module")
def widened(registry: Registry) -> Registry:
    """The registry, with this module's components."""
    found = Registry()
    found.offers = list(registry.offers)
    for kind, cls in (("dataset", OnDisk), ("strategy", Gambler), ("strategy", Forgetful)):
        found.offers.append(Offer(kind, Component(cls.__name__, f"{__name__}:{cls.__name__}"), "tests", "1"))
    return found


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget that a disk was full in another test."""
    monkeypatch.setattr(checkpoint, "_told", [])


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    """Let no warning pass that a test does not wait for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def run(
    spec: TrialSpec, registry: Registry, folder: Path | None, stop: int | None = None
) -> tuple[Outcome, Told]:
    """Run a trial with everything built anew, by default to its end."""
    told: Told = []

    def on_epoch(epoch: int, figures: dict[str, float]) -> bool:
        told.append((epoch, dict(figures)))
        if epoch == stop:
            raise KeyboardInterrupt
        return False

    bench = Bench(registry, folder)
    outcome = run_trial(spec, bench, CPU, on_epoch)
    bench.forget(spec, CPU)  # as a sweep does once the result is stored
    return outcome, told


def break_off(spec: TrialSpec, registry: Registry, folder: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(spec, registry, folder, stop)


def numbers(outcome: Outcome) -> dict[str, Any]:
    return {k: v for k, v in outcome.metrics.items() if not k.startswith("cost/") and "seconds" not in k}


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert numbers(found) == numbers(expected)
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(t, expected.state[n]) for n, t in found.state.items())


def files(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def only_checkpoint(folder: Path) -> Path:
    (path,) = (folder / "checkpoints").iterdir()
    return path


@pytest.fixture
def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the batches that are trained on."""
    from mmx.builtin.procedures.joint import Joint

    seen: list[int] = []
    steps = Joint.steps

    def spying(self: Any, model: Any, batch: Batch) -> Any:
        seen.append(len(batch.ids))
        return steps(self, model, batch)

    monkeypatch.setattr(Joint, "steps", spying)
    return seen


# ---------------------------------------------------------------------------------------- the same bits

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "patience": {"training.patience": 2, "training.epochs": 6, "training.learning_rate": 0.05},
    "dropout": {
        "fusion": {"name": "transformer", "dropout": 0.3, "heads": 2},
        "adapter": {"name": "lora", "rank": 2, "dropout": 0.3},
    },
    "hides at random": {"strategy": "modality_dropout"},
    "running mean": {"strategy": "mean_fill"},
    "random states of NumPy and Python": {"strategy": "Gambler"},
    "bfloat16": {"training.precision": "bfloat16", "adapter": "lora"},
    "loader processes": {
        "dataset.name": "OnDisk",
        "training.loader_workers": 1,
        "strategy": "modality_dropout",
    },
    "histories of losses": {"strategy": "skip", "fusion": "confidence", "procedure": "qmf"},
    "noise on gradients": {"strategy": "skip", "fusion": "concat", "procedure": "ogm_ge"},
    "projection": {
        "strategy": "skip",
        "fusion": "entropy",
        "procedure": {"name": "alternating", "reset": "never"},
    },
    "projection before": {
        "strategy": "skip",
        "fusion": "entropy",
        "procedure": {"name": "alternating", "reset": "never", "update": "before"},
    },
    "calibration": {**LATE, "adapter": {"name": "scale_shift", "budget": 0.5}},
    "phases": {
        **LATE,
        "training.epochs": 2,
        "training.phases": [*UNI, {"adapter": "lora", "procedure": "distillation"}],
    },
    "restart": {
        **LATE,
        "training.epochs": 2,
        "training.phases": [{}, {"procedure": "distillation", "restart": True}],
    },
}
EPOCHS = {"patience": 5, "phases": 6, "restart": 4}
"""Of the cases that are broken off after every one; the others train 3 and are broken off after two."""
BREAKS = [(name, epoch) for name in CASES for epoch in range(EPOCHS.get(name, 2))]


@pytest.fixture(scope="module")
def unbroken(plan_toy: PlanToy, widened: Registry) -> Callable[[str], tuple[TrialSpec, Outcome, Told]]:
    @cache
    def make(name: str) -> tuple[TrialSpec, Outcome, Told]:
        spec = plan_toy({"training.epochs": 3, **CASES[name]}, widened).cells[0].spec
        random.seed(0)
        np.random.seed(0)
        return spec, *run(spec, widened, None)

    return make


@pytest.mark.parametrize(("name", "epoch"), BREAKS)
def test_broken_off_training_is_carried_on_to_the_same_bits(
    unbroken: Any, widened: Registry, tmp_path: Path, name: str, epoch: int
) -> None:
    spec, expected, told = unbroken(name)
    random.seed(0)
    np.random.seed(0)
    break_off(spec, widened, tmp_path, epoch)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    found, again = run(spec, widened, tmp_path)
    assert_same(found, expected)
    assert again == told


def test_cases_train_as_many_epochs_as_they_are_broken_off_after(unbroken: Any) -> None:
    assert {name: len(unbroken(name)[2]) for name in EPOCHS} == EPOCHS


def test_training_that_is_broken_off_after_every_epoch_comes_to_the_same_bits(
    unbroken: Any, widened: Registry, tmp_path: Path
) -> None:
    spec, expected, told = unbroken("phases")
    for epoch in range(len(told)):
        break_off(spec, widened, tmp_path, epoch)
    assert_same(run(spec, widened, tmp_path)[0], expected)


def test_no_epoch_is_trained_twice(
    unbroken: Any, widened: Registry, tmp_path: Path, count_steps: list[int]
) -> None:
    spec, _, _ = unbroken("plain")
    for epoch in range(3):
        break_off(spec, widened, tmp_path, epoch)
    run(spec, widened, tmp_path)
    assert len(count_steps) == 3 * 2


def test_a_killed_process_is_carried_on_by_another(unbroken: Any, registry: Registry, tmp_path: Path) -> None:
    spec, expected, _ = unbroken("dropout")
    script = f"""
        import os, signal, torch
        from mmx.config import *
        from mmx.config.specs import *
        from mmx.registry import Registry
        from mmx.trial import Bench, run_trial
        torch.set_num_threads({torch.get_num_threads()})
        def on_epoch(epoch, figures):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        from pathlib import Path
        run_trial({spec!r}, Bench(Registry.load(), Path({str(tmp_path)!r})), torch.device("cpu"), on_epoch)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    found, told = run(spec, registry, tmp_path)
    assert_same(found, expected)
    assert len(told) == 3


def test_evaluation_that_is_broken_off_costs_no_epoch(
    unbroken: Any, widened: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_steps: list[int]
) -> None:
    spec, expected, _ = unbroken("plain")

    def dying(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mmx.trial, "_evaluate_split", dying)
        with pytest.raises(KeyboardInterrupt):
            run(spec, widened, tmp_path)
    count_steps.clear()
    assert_same(run(spec, widened, tmp_path)[0], expected)
    assert count_steps == []


def test_process_that_dies_while_it_writes_leaves_the_checkpoint_before(
    unbroken: Any, widened: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_steps: list[int]
) -> None:
    spec, expected, _ = unbroken("plain")
    break_off(spec, widened, tmp_path, 0)

    def dying(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            run(spec, widened, tmp_path)
    assert len(files(tmp_path)) == 1
    count_steps.clear()
    assert_same(run(spec, widened, tmp_path)[0], expected)
    assert len(count_steps) == 2 * 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_checkpoint_lies_there_before_an_epoch_is_told(
    unbroken: Any, widened: Registry, tmp_path: Path, error: type[BaseException]
) -> None:
    def raising(epoch: int, figures: Any) -> bool:
        raise error

    spec, _, _ = unbroken("plain")
    with pytest.raises(error):
        run_trial(spec, Bench(widened, tmp_path), CPU, raising)
    state = Checkpoint(only_checkpoint(tmp_path)).read()
    assert state is not None and len(state["history"]) == 1


def test_seconds_of_all_parts_are_added_up(unbroken: Any, widened: Registry, tmp_path: Path) -> None:
    spec, _, _ = unbroken("plain")
    break_off(spec, widened, tmp_path, 0)
    file = Checkpoint(only_checkpoint(tmp_path))
    state = file.read()
    assert state is not None
    file.write({**state, "seconds": 1000.0})
    assert 1000 < run(spec, widened, tmp_path)[0].last()["cost/train_seconds"] < 1100


def test_frozen_weights_are_in_no_checkpoint(plan_toy: PlanToy, registry: Registry, tmp_path: Path) -> None:
    plan = plan_toy({"adapter": "lora"})
    break_off(plan.cells[0].spec, registry, tmp_path, 0)
    state = Checkpoint(only_checkpoint(tmp_path)).read()
    assert state is not None
    assert state["model"].keys() == plan.bench.model(plan.cells[0].spec).trained_state().keys()
    assert not any("base_layer" in name for name in state["best_state"])


# --------------------------------------------------------------------------------------------- its file


def test_nothing_is_left_when_a_trial_has_ended(unbroken: Any, widened: Registry, tmp_path: Path) -> None:
    spec, _, _ = unbroken("plain")
    break_off(spec, widened, tmp_path, 1)
    run(spec, widened, tmp_path)
    assert files(tmp_path) == []


def test_phases_that_have_ended_are_kept_in_place_of_their_checkpoints(
    unbroken: Any, widened: Registry, tmp_path: Path
) -> None:
    spec, _, _ = unbroken("phases")
    keys = phase_keys(spec, widened, CPU)
    break_off(spec, widened, tmp_path, 3)
    assert files(tmp_path) == [f"checkpoints/{keys[1]}.pt", f"phases/{keys[0]}.safetensors"]
    run(spec, widened, tmp_path)
    assert files(tmp_path) == sorted(f"phases/{key}.safetensors" for key in keys[:2])


def test_without_a_folder_nothing_is_written(
    unbroken: Any, widened: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writing(*arguments: Any) -> None:
        raise AssertionError("it wrote")

    monkeypatch.setattr(Checkpoint, "write", writing)
    run(unbroken("plain")[0], widened, None)


def test_kept_phase_outlives_its_bench(
    unbroken: Any, widened: Registry, tmp_path: Path, count_steps: list[int]
) -> None:
    spec, expected, told = unbroken("phases")
    run(spec, widened, tmp_path)
    count_steps.clear()
    found, again = run(spec, widened, tmp_path)
    assert_same(found, expected)
    assert again == told
    assert count_steps == []  # the last phase has another procedure


def test_forgetting_a_trial_needs_no_model_and_leaves_others_alone(
    unbroken: Any, widened: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, other = unbroken("plain")[0], unbroken("phases")[0]
    for one in (spec, other):
        break_off(one, widened, tmp_path, 0)
    bench = Bench(widened, tmp_path)
    monkeypatch.delattr(Bench, "model")
    monkeypatch.delattr(Bench, "split")
    bench.forget(spec, CPU)
    assert files(tmp_path) == [f"checkpoints/{phase_keys(other, widened, CPU)[0]}.pt"]
    bench.forget(other, CPU)
    assert files(tmp_path) == []


def test_forgetting_a_trial_whose_plugin_is_gone_is_no_error(
    unbroken: Any, registry: Registry, tmp_path: Path
) -> None:
    Bench(registry, tmp_path).forget(unbroken("random states of NumPy and Python")[0], CPU)


def test_trial_that_failed_by_its_own_fault_starts_over_once_forgotten(
    plan_toy: PlanToy, registry: Registry, tmp_path: Path, count_steps: list[int]
) -> None:
    plan = plan_toy()
    spec = plan.cells[0].spec
    bench = Bench(registry, tmp_path)

    def failing(epoch: int, figures: Any) -> bool:
        raise DivergedError("made up")

    for _ in range(2):
        with pytest.raises(DivergedError):
            run_trial(spec, bench, CPU, failing)
        bench.forget(spec, CPU)
    assert len(count_steps) == 2 * 2


def test_what_is_missing_is_no_reason_to_warn(tmp_path: Path) -> None:
    file = Checkpoint(tmp_path / "nowhere" / "key.pt")
    assert file.read() is None
    file.remove()


def test_file_that_vanishes_while_it_is_read_is_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Checkpoint(tmp_path / "key.pt")
    file.write({"value": 1})
    load = torch.load

    def late(path: Path, **options: Any) -> Any:
        path.unlink()
        return load(path, **options)

    monkeypatch.setattr(checkpoint.torch, "load", late)
    assert file.read() is None


def test_half_written_files_of_the_dead_are_swept_and_those_of_others_are_not(
    unbroken: Any, widened: Registry, tmp_path: Path
) -> None:
    spec, _, _ = unbroken("plain")
    (key,) = phase_keys(spec, widened, CPU)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    dead = folder / f"{key}_last-{socket.gethostname()}:{2**22 + 1}:1.00.part"
    alive = folder / f"{key}_last-elsewhere:1:1.00.part"
    for half in (dead, alive):
        half.write_bytes(b"half")
    run(spec, widened, tmp_path)
    assert files(tmp_path) == [f"checkpoints/{alive.name}"]


def test_writing_takes_a_name_of_the_process_in_the_same_folder(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(half: Path) -> None:
        seen.append(half)
        half.write_text("whole", encoding="utf-8")

    checkpoint.write_whole(tmp_path / "a" / "key.pt", write)
    assert seen[0].parent == tmp_path / "a" and this_worker() in seen[0].name
    assert files(tmp_path) == ["a/key.pt"]


def test_writing_sweeps_away_what_the_dead_have_left_of_the_same_file(tmp_path: Path) -> None:
    names = [f"{key}-{socket.gethostname()}:{2**22 + 1}:1.00.part" for key in ("key", "other")]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    checkpoint.write_whole(tmp_path / "key.pt", lambda half: half.touch())
    assert files(tmp_path) == ["key.pt", names[1]]


# ------------------------------------------------------------------------------- bad files and bad disks


class Evil:
    """Executes something when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    place = raw.index(
        torch.load(path, weights_only=True)["best_state"]["fusion.head.weight"].numpy().tobytes()
    )
    raw[place] ^= 1
    path.write_bytes(raw)


def change(path: Path, **values: Any) -> None:
    torch.save({**torch.load(path, weights_only=True), **values}, path)


def reshape(path: Path) -> None:
    state = torch.load(path, weights_only=True)["model"]
    change(path, model={n: torch.cat([t, t]) if t.ndim else t for n, t in state.items()})


BAD: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "garbage": lambda path: path.write_bytes(b"no checkpoint at all"),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": flip,
    "no state": lambda path: torch.save([1, 2], path),
    "another training": lambda path: change(path, key="0123"),
    "other frozen weights": lambda path: change(path, frozen="0123"),
    "other parameters": lambda path: change(path, model={}),
    "other shapes": reshape,
    "no optimizer": lambda path: change(path, optimizer={"state": {}, "param_groups": []}),
    "no random states": lambda path: change(path, random={}),
    "a class": lambda path: torch.save({"key": Evil()}, path),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=list(BAD))
def test_bad_checkpoint_is_told_and_dropped_and_training_starts_over(
    unbroken: Any,
    widened: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    spec, expected, told = unbroken("plain")
    break_off(spec, widened, tmp_path / "bench", 1)
    spoil(only_checkpoint(tmp_path / "bench"))
    with pytest.warns(UserWarning, match=r"^checkpoint '[^\n]*' cannot be used[^\n]*starts over$") as caught:
        found, again = run(spec, widened, tmp_path / "bench")
    assert len(caught) == 1
    assert_same(found, expected)
    assert again == told
    assert files(tmp_path) == [] and not Path("evil").exists()


KEPT: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "garbage": lambda path: path.write_bytes(b"x" * 100),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(path.read_bytes()[:-64] + bytes(64)),
}


@pytest.mark.parametrize("spoil", KEPT.values(), ids=list(KEPT))
def test_bad_kept_phase_is_told_and_trained_again(
    unbroken: Any, widened: Registry, tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    spec, expected, _ = unbroken("phases")
    run(spec, widened, tmp_path)
    spoil(tmp_path / "phases" / f"{phase_keys(spec, widened, CPU)[0]}.safetensors")
    with pytest.warns(UserWarning, match=r"kept phase .* trained again"):
        assert_same(run(spec, widened, tmp_path)[0], expected)
    assert len(files(tmp_path)) == 2


def test_full_disk_is_told_once_and_training_goes_on(
    unbroken: Any, widened: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    spec, expected, _ = unbroken("plain")
    with pytest.warns(UserWarning, match=r"No space left.*a crash would lose.*free space") as caught:
        for _ in range(2):
            assert_same(run(spec, widened, tmp_path)[0], expected)
    assert len(caught) == 1
    assert files(tmp_path) == []


def test_disk_that_is_full_in_the_middle_of_a_file_leaves_nothing_of_it(
    unbroken: Any, widened: Registry, tmp_path: Path
) -> None:
    spec, expected, _ = unbroken("plain")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.warns(UserWarning, match="a crash would lose"):
            found, _ = run(spec, widened, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(found, expected)
    assert files(tmp_path) == []


def test_folder_that_cannot_be_made_is_told_once(unbroken: Any, widened: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    spec, expected, _ = unbroken("plain")
    with pytest.warns(UserWarning, match="a crash would lose") as caught:
        assert_same(run(spec, widened, tmp_path / "file")[0], expected)
    assert len(caught) == 1


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that the process cannot write, not even where the tests run as root."""
    with TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            if os.access(folder, os.W_OK, effective_ids=True):
                pytest.skip("this user can write anywhere")
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


@pytest.mark.parametrize("name", ["plain", "phases"])
def test_read_only_folder_is_told_once_and_training_goes_on(
    unbroken: Any, widened: Registry, request: pytest.FixtureRequest, name: str
) -> None:
    spec, expected, _ = unbroken(name)
    folder = request.getfixturevalue("read_only")  # after the first run has imported all that it needs
    with pytest.warns(UserWarning, match="make it writable") as caught:
        assert_same(run(spec, widened, folder)[0], expected)
    assert len(caught) == 1
    assert files(folder) == []


def test_fault_that_is_none_of_the_disk_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        Checkpoint(tmp_path / "key.pt").write({"value": lambda: None})
    assert files(tmp_path) == []


# ----------------------------------------------------------------------------------------- other code

PLUGIN = '''
"""A strategy in one file."""
from mmx import Component, hookimpl
from mmx_strategies.zero_fill import ZeroFill

class Mine(ZeroFill):
    """{note}"""

@hookimpl
def register_strategies():
    return [Component("mine", f"{{__name__}}:Mine", "mine")]
'''


def with_plugin(path: Path, note: str) -> Registry:
    path.write_text(PLUGIN.format(note=note), encoding="utf-8")
    registry = Registry.load(files=[path])
    assert not registry.problems
    return registry


@pytest.mark.parametrize(("note", "steps"), [("as it was", 2 * 2), ("edited", 3 * 2)])
def test_edited_plugin_file_starts_over(
    unbroken: Any, tmp_path: Path, count_steps: list[int], note: str, steps: int
) -> None:
    spec = replace(unbroken("plain")[0], strategy=replace(unbroken("plain")[0].strategy, name="mine"))
    break_off(spec, with_plugin(tmp_path / "mine.py", "as it was"), tmp_path / "bench", 0)
    count_steps.clear()
    run(spec, with_plugin(tmp_path / "mine.py", note), tmp_path / "bench")
    assert len(count_steps) == steps


def test_plugin_file_that_has_only_moved_carries_on(unbroken: Any, tmp_path: Path) -> None:
    spec = replace(unbroken("plain")[0], strategy=replace(unbroken("plain")[0].strategy, name="mine"))
    keys = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        keys.append(phase_keys(spec, with_plugin(tmp_path / name / "mine.py", "note"), CPU))
    assert keys[0] == keys[1]


def test_another_version_of_a_library_starts_over(
    unbroken: Any, widened: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = unbroken("phases")[0]
    before = phase_keys(spec, widened, CPU)
    monkeypatch.setattr(code, "version", lambda name: "0.0.1")
    assert set(before).isdisjoint(phase_keys(spec, widened, CPU))


@pytest.mark.parametrize("file", ["inner/deep.py", "weights.bin"])
def test_file_of_a_package_that_changes_starts_over(
    unbroken: Any, widened: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    package = tmp_path / "made_up_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "inner" / "__init__.py").write_text("", encoding="utf-8")
    (package / "inner" / "deep.py").write_text(PLUGIN.format(note=""), encoding="utf-8")
    (package / "weights.bin").write_bytes(b"one")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    path = "made_up_package.inner.deep:Mine"
    registry.offers = [*widened.offers, Offer("strategy", Component("mine", path), "made-up", "1")]
    spec = replace(unbroken("plain")[0], strategy=replace(unbroken("plain")[0].strategy, name="mine"))
    keys = [phase_keys(spec, registry, CPU)]
    for edit in (lambda: None, lambda: (package / file).write_text("other", encoding="utf-8")):
        edit()
        code._hash.cache_clear()  # as another process would
        keys.append(phase_keys(spec, registry, CPU))
    for name in [n for n in sys.modules if n.startswith("made_up_package")]:
        del sys.modules[name]
    assert keys[0] == keys[1] != keys[2]


def test_base_of_a_component_counts_as_its_code(tmp_path: Path, unbroken: Any, widened: Registry) -> None:
    registry = with_plugin(tmp_path / "mine.py", "note")
    mine = registry.load_class("strategy", "mine")
    spec = replace(unbroken("plain")[0], strategy=replace(unbroken("plain")[0].strategy, name="mine"))
    before = phase_keys(spec, registry, CPU)
    mine.__mro__[1].__module__, kept = "test_checkpoints", mine.__mro__[1].__module__
    try:
        assert phase_keys(spec, registry, CPU) != before
    finally:
        mine.__mro__[1].__module__ = kept


def test_code_that_cannot_be_read_is_carried_on_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    code._hash.cache_clear()
    own = code._hash("nowhere", None)
    code._hash.cache_clear()
    monkeypatch.setattr(code, "this_worker", lambda: "another")
    assert code._hash("nowhere", None) != own
    code._hash.cache_clear()


def test_a_phase_has_one_key_whatever_follows(plan_toy: PlanToy, registry: Registry) -> None:
    specs = [
        plan_toy({**LATE, "training.phases": [UNI[0], last]}).cells[0].spec
        for last in ({"adapter": "lora"}, {"procedure": "qmf"})
    ]
    first, second = (phase_keys(spec, registry, CPU) for spec in specs)
    assert first[0] == second[0] and first[1] != second[1]


# ---------------------------------------------------------------------------------------- told to stop


def stopping(at: int, told: list[int]) -> Callable[[int, Any], bool]:
    def on_epoch(epoch: int, figures: Any) -> bool:
        told.append(epoch)
        return epoch == at

    return on_epoch


def test_true_ends_training_and_the_best_epoch_so_far_is_evaluated(
    unbroken: Any, widened: Registry, tmp_path: Path
) -> None:
    spec, whole, _ = unbroken("plain")
    told: list[int] = []
    bench = Bench(widened, tmp_path)
    outcome = run_trial(spec, bench, CPU, stopping(1, told))
    bench.forget(spec, CPU)
    assert told == [0, 1] == list(outcome.metrics["train/loss"])
    best = int(outcome.last()["cost/best_epoch"])
    accuracies = [whole.metrics["val/accuracy"][epoch] for epoch in (0, 1)]
    assert accuracies[best] == max(accuracies)
    assert "summary/robust_accuracy" in outcome.metrics
    assert files(tmp_path) == []


def test_true_ends_only_the_last_phase(unbroken: Any, widened: Registry) -> None:
    spec, _, _ = unbroken("phases")
    told: list[int] = []
    run_trial(spec, Bench(widened), CPU, lambda epoch, figures: told.append(epoch) or True)
    assert told == [0, 1, 2, 3, 4]


def test_who_was_told_to_stop_stays_stopped(
    unbroken: Any, widened: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _, _ = unbroken("plain")
    expected = run_trial(spec, Bench(widened), CPU, stopping(1, []))

    def dying(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mmx.trial, "_evaluate_split", dying)
        with pytest.raises(KeyboardInterrupt):
            run_trial(spec, Bench(widened, tmp_path), CPU, stopping(1, []))
    assert_same(run(spec, widened, tmp_path)[0], expected)


def test_equal_phase_of_another_trial_does_not_end_where_one_was_told_to_stop(
    plan_toy: PlanToy, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, longer = (
        plan_toy({**LATE, "training.epochs": 3, "training.phases": phases}).cells[0].spec
        for phases in ([], [{}, {"adapter": "lora"}])
    )
    assert phase_keys(alone, registry, CPU)[0] == phase_keys(longer, registry, CPU)[0]
    expected, _ = run(longer, registry, None)
    monkeypatch.setattr(Bench, "forget", lambda *arguments: None)
    run_trial(alone, Bench(registry, tmp_path), CPU, stopping(0, []))
    assert_same(run(longer, registry, tmp_path)[0], expected)


def test_true_for_a_remembered_epoch_ends_training_too(
    unbroken: Any, widened: Registry, tmp_path: Path, count_steps: list[int]
) -> None:
    spec, _, _ = unbroken("plain")
    break_off(spec, widened, tmp_path, 1)
    count_steps.clear()
    told: list[int] = []
    outcome = run_trial(spec, Bench(widened, tmp_path), CPU, stopping(0, told))
    assert told == [0, 1] == list(outcome.metrics["train/loss"])
    assert count_steps == []


# -------------------------------------------------------------------------------------------- the law


def test_law_finds_a_component_that_forgets(widened: Registry) -> None:
    with pytest.raises(AssertionError, match="hang on what was forgotten"):
        resuming.training_resumes_to_the_bit(widened, widened.find("strategy", "Forgetful"))
    assert issubclass(Forgetful, Strategy)
