"""An exported model stands alone, and says what the run's model says."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmx.builtin.trackers.mlflow import Mlflow
from mmx.cli.app import app
from mmx.contracts import Tracker, TrialRecord
from mmx.errors import InputError
from mmx.evaluate import predict_patterns
from mmx.registry import Offer, Registry
from mmx.runs import StoredRun, open_run
from mmx.runs.export import ARTIFACT, Exported, export_run, is_exported, largest_difference, open_exported
from mmx.runs.predictor import FACTS, PLUGINS, WEIGHTS, ModelFacts
from mmx.runs.registering import register
from mmx.sweep import Plan
from mmx.testing.storing import stored_weights_tell_the_whole_model
from mmx.trial import Bench, run_trial

CPU = torch.device("cpu")
COMPLETE: Mapping[str, Any] = {"missing.train.rate": 0.0}
LORA = {"name": "lora", "rank": 2}
SHARED = {"name": "scale_shift", "per_pattern": False}
TRANSFORMER = {"name": "transformer", "depth": 1}
MERGED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "full": ({}, {"m0": "full: nothing to merge"}),
    "frozen": ({"adapter": "frozen"}, {"m1": "frozen: nothing to merge"}),
    "bitfit": ({"adapter": "bitfit"}, {"m0": "bitfit: nothing to merge"}),
    "lora": ({"adapter": LORA, "strategy": "mask_token"}, {"m0": "lora: merged", "m1": "lora: merged"}),
    "one each": (
        {"adapter": {"m0": LORA, "m1": "full"}},
        {"m0": "lora: merged", "m1": "full: nothing to merge"},
    ),
    "lora in the fusion": (
        {"fusion": TRANSFORMER, "fusion_adapter": {**LORA, "targets": ".*linear.*|.*mlp.*|head"}},
        {"fusion": "lora: merged"},
    ),
    "scale_shift": (
        {"adapter": "scale_shift", "strategy": "skip", **COMPLETE},
        {"m0": "scale_shift: kept: it has a set of parameters for each availability pattern"},
    ),
    "scale_shift for all rows": (
        {"adapter": SHARED},
        {"m0": "scale_shift: merged"},
    ),
    "scale_shift within a budget": (
        {"adapter": {"name": "scale_shift", "budget": 0.5}, "strategy": "skip", **COMPLETE},
        {"m0": "scale_shift: kept: it has a set of parameters for each availability pattern"},
    ),
    "phases": (
        {"adapter": LORA, "training.phases": [{"adapter": SHARED}, {}]},
        {"m0": "lora: merged"},
    ),
    "three modalities": (
        {"dataset.modality_count": 3, "encoders.m2": "mlp", "adapter": LORA},
        {"m2": "lora: merged"},
    ),
}


def stored_run(plan: Plan) -> StoredRun:
    """Train a plan's only trial, and leave what a store would hold of it."""
    spec = plan.cells[0].spec
    outcome = run_trial(spec, plan.bench, CPU)
    folder = TemporaryDirectory()
    (Path(folder.name) / "spec.json").write_text(json.dumps(spec.to_dict()), encoding="utf-8")
    save_file(dict(outcome.state), Path(folder.name) / "trained.safetensors")
    record = TrialRecord("run", spec.point, spec.seed, "done", title="t0000")
    return StoredRun(Mock(spec=Tracker), "toy", record, folder)


def difference(run: StoredRun, bench: Bench, folder: Path) -> float:
    """Give the largest difference of outputs between a run's model and what was exported."""
    split = bench.split(run.spec, "test")
    own = predict_patterns(run.model(bench), split, CPU).outputs
    found = predict_patterns(open_exported(folder).model, split, CPU).outputs
    return max(float(np.abs(own[p] - found[p]).max()) for p in own)


@pytest.fixture(scope="module")
def run(finished: Any) -> StoredRun:
    return open_run(finished.tracker, finished.tracker.records("toy")[0].run_id)


@pytest.fixture(scope="module")
def exported(finished: Any, run: StoredRun, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_run(run, finished.plan.bench, tmp_path_factory.mktemp("export") / "new" / "model")


# ----------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("case", MERGED)
def test_merged_and_unmerged_outputs_are_the_runs(
    plan_toy: Callable[..., Plan], tmp_path: Path, case: str
) -> None:
    changes, became = MERGED[case]
    plan = plan_toy({"missing.eval.targets": ["any"], **changes})
    run = stored_run(plan)
    done = export_run(run, plan.bench, tmp_path / "merged")
    assert became.items() <= done.adapters.items()
    assert difference(run, plan.bench, tmp_path / "merged") < 1e-5 and done.difference < 1e-5
    kept = export_run(run, plan.bench, tmp_path / "kept", merge=False)
    assert all(told.endswith("kept, as asked (--no-merge)") for told in kept.adapters.values())
    assert difference(run, plan.bench, tmp_path / "kept") == 0


OWN = [o for o in Registry.load().offers if o.kind in {"strategy", "fusion"}]


@pytest.mark.parametrize("offer", OWN, ids=lambda o: f"{o.kind}-{o.component.name}")
def test_every_strategy_and_fusion_is_built_from_its_facts_alone(
    plan_toy: Callable[..., Plan], registry: Registry, offer: Offer
) -> None:
    parts = {"strategy": "skip", offer.kind: {"name": offer.component.name, **offer.component.example}}
    pixels = {"dataset": {"name": "digits"}, "encoders": {"image": "tiny_vit", "audio": "tiny_ast"}}
    try:
        plan = plan_toy({**parts, "missing.eval.targets": ["any"]})
    except InputError:  # it puts prompts in, which perceptrons do not take
        plan = plan_toy({**pixels, **parts, "missing.eval.targets": ["any"]})
    spec, bench = plan.cells[0].spec, plan.bench
    facts = ModelFacts.of(spec, bench)
    again = ModelFacts.from_dict(json.loads(json.dumps(facts.to_dict())), "facts")
    assert again == facts
    model = bench.model(facts.spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    built = again.build(registry, model.state_dict())
    batch = bench.split(spec, "test").batch(torch.arange(6), bench.split(spec, "test").natural)
    assert largest_difference(model, built, batch, facts.task) == 0


def test_adapter_that_cannot_be_folded_stays_as_it_is(
    plan_toy: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.builtin.adapters.lora import Lora

    plain = Lora.fold

    def fold(self: Lora, module: Any) -> None:
        plain(self, module)
        if self.rank == 3:
            raise InputError("it is stubborn")

    plan = plan_toy({"adapter": {"m0": LORA, "m1": {"name": "lora", "rank": 3}}})
    run = stored_run(plan)
    monkeypatch.setattr(Lora, "fold", fold)
    done = export_run(run, plan.bench, tmp_path / "model")
    assert done.adapters["m0"] == "lora: merged" and done.adapters["m1"] == "lora: kept: it is stubborn"
    assert difference(run, plan.bench, tmp_path / "model") < 1e-5


def test_export_that_says_something_else_is_refused(
    plan_toy: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.builtin.adapters.full import Full

    plan = plan_toy()
    run = stored_run(plan)
    monkeypatch.setattr(Full, "fold", lambda self, module: [p.data.add_(1) for p in module.parameters()])
    with pytest.raises(InputError, match=r"differ from the run's by up to .*--no-merge"):
        export_run(run, plan.bench, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------- the folder


def test_folder_holds_no_pickle_and_no_path_of_this_machine(exported: Exported) -> None:
    files = [path for path in exported.folder.rglob("*") if path.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors", ".py", ".txt", ".yaml", ""}
    texts = [p.read_text(encoding="utf-8") for p in files if p.suffix != ".safetensors"]
    root = str(Path(__file__).parents[2])
    assert not [text for text in texts if root in text or str(exported.folder.parent) in text]
    assert not list(exported.folder.parent.glob(".*")), "what was begun is left behind"


def test_requirements_pin_what_numbers_hang_on(exported: Exported) -> None:
    lines = (exported.folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line.split("==")[0] for line in lines} == {
        "mlflow", "mmx", "numpy", "pandas", "peft", "safetensors", "torch"
    }  # fmt: skip
    assert all("==" in line for line in lines)


def test_whole_weights_are_stored(exported: Exported) -> None:
    folder = exported.folder / "artifacts" / ARTIFACT
    assert load_file(folder / WEIGHTS).keys() == open_exported(exported.folder).model.state_dict().keys()


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take datasets, the network and pickles away."""

    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("it reads what it must not")

    load = Registry.load_class
    refusing = lambda self, kind, name: refuse() if kind == "dataset" else load(self, kind, name)  # noqa: E731
    monkeypatch.setattr(Registry, "load_class", refusing)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    yield


@pytest.mark.usefixtures("cut_off")
def test_loading_reads_no_dataset_no_network_and_no_pickle(exported: Exported) -> None:
    model = mlflow.pyfunc.load_model(str(exported.folder))
    table = pd.DataFrame({"m0": pd.Series([None, [1.0] * 16], dtype=object), "m1": [[1.0] * 16] * 2})
    found = model.predict(table)
    assert list(found["present"]) == ["m1", "m0.m1"]
    pd.testing.assert_frame_equal(found, open_exported(exported.folder).predict(table))


def test_signature_names_columns_that_may_be_absent(exported: Exported) -> None:
    model = mlflow.pyfunc.load_model(str(exported.folder))
    assert model.metadata.signature.inputs.optional_input_names() == ["m0", "m1", "id"]
    names = [c.name for c in model.metadata.signature.outputs.inputs]
    assert names == ["prediction", *(f"output_{i}" for i in range(4)), "present"]


def test_input_example_can_be_predicted(exported: Exported) -> None:
    model = mlflow.pyfunc.load_model(str(exported.folder))
    example = model.metadata.load_input_example(str(exported.folder))
    assert list(model.predict(example)["present"]) == ["m0.m1", "m0"]


def test_folder_in_use_is_refused_and_an_empty_one_taken(
    finished: Any, run: StoredRun, exported: Exported, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is there already and not empty"):
        export_run(run, finished.plan.bench, exported.folder)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is there already and not empty"):
        export_run(run, finished.plan.bench, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert is_exported(export_run(run, finished.plan.bench, tmp_path / "empty").folder)
    with pytest.raises(InputError, match=r"below' cannot be written: "):
        export_run(run, finished.plan.bench, tmp_path / "file" / "below")


def test_empty_current_folder_is_taken(
    finished: Any, run: StoredRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export_run(run, finished.plan.bench, Path())
    assert is_exported(Path()) and (tmp_path / "MLmodel").is_file()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fault", ["no weights", "no facts", "other facts", "other weights", "half weights"])
def test_broken_folder_is_told(exported: Exported, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported.folder, folder)
    own = folder / "artifacts" / ARTIFACT
    facts = json.loads((own / FACTS).read_text(encoding="utf-8"))
    if fault == "no weights":
        (own / WEIGHTS).unlink()
    elif fault == "half weights":
        (own / WEIGHTS).write_bytes((own / WEIGHTS).read_bytes()[:-100])
    elif fault == "no facts":
        (own / FACTS).write_text("{", encoding="utf-8")
    elif fault == "other facts":
        (own / FACTS).write_text(
            json.dumps({k: v for k, v in facts.items() if k != "task"}), encoding="utf-8"
        )
    else:
        facts["spec"]["fusion"] = {"name": "concat"}
        (own / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(InputError):
        open_exported(folder)


MINE = """
from mmx import Component, hookimpl
from mmx.contracts import Filled, Strategy

class Plain(Strategy):
    def fill(self, tokens, presence, targets):
        return Filled(tokens)

@hookimpl
def register_strategies():
    return [Component("of_mine", f"{__name__}:Plain")]
"""


def test_one_off_plugin_goes_along(plan_toy: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    registry = Registry.load(files=[tmp_path / "mine.py"])
    plan = plan_toy({"strategy": "of_mine", "fusion": "mean"}, registry)
    export_run(stored_run(plan), plan.bench, tmp_path / "model", plugins=[tmp_path / "mine.py"])
    (tmp_path / "mine.py").unlink()
    assert (tmp_path / "model" / "artifacts" / ARTIFACT / PLUGINS / "mine.py").is_file()
    assert open_exported(tmp_path / "model").predict(pd.DataFrame({"m0": [[1.0] * 16]})).shape == (1, 6)


# ----------------------------------------------------------------------------------------------- command


def test_command_exports_what_predict_takes(
    finished: Any, run: StoredRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", run.run_id, str(tmp_path / "model"), "--store", finished.address, "--json"]
    assert app(given, standalone_mode=False) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["adapters"]["m0"] == "full: nothing to merge" and told["difference"] < 1e-6
    assert told["version"] is None and is_exported(tmp_path / "model")
    predict = ["predict", str(tmp_path / "model"), str(tmp_path / "t.jsonl"), "--json"]
    (tmp_path / "t.jsonl").write_text(json.dumps({"m1": [0.5] * 16}), encoding="utf-8")
    assert app(predict, standalone_mode=False) == 0
    assert json.loads(capsys.readouterr().out)[0]["present"] == "m1"


def test_registered_model_is_a_version_that_names_its_run(exported: Exported, stores: Path) -> None:
    tracker = Mlflow(f"sqlite:///{stores}/mlflow.db")
    tracker.open_sweep("toy", {})
    run_id = tracker.open_trial("t0000", TrialRecord("", "point", 0, "running")).run_id
    assert [register(tracker, run_id, exported.folder, "best") for _ in range(2)] == ["1", "2"]
    first, version = (tracker.client.get_model_version("best", v) for v in ("1", "2"))
    assert version.run_id == run_id
    assert first.source != version.source  # what is registered never changes
    model = mlflow.pyfunc.load_model(version.source)
    assert list(model.predict(pd.DataFrame({"m0": [[1.0] * 16]}))["present"]) == ["m0"]


def test_tracker_without_a_registry_is_told(exported: Exported) -> None:
    with pytest.raises(InputError, match="has no registry of models"):
        register(Mock(spec=Tracker), "run", exported.folder, "best")


FORGETFUL = """
import torch
from mmx import Component, hookimpl
from mmx.contracts import Filled, Strategy

class Forgetful(Strategy):
    seen = 0.0

    def fill(self, tokens, presence, targets):
        if self.training:
            self.seen += 1.0
        filled = {m: type(t)(t.values * (1 + self.seen), t.valid) for m, t in tokens.items()}
        return Filled(filled)

@hookimpl
def register_strategies():
    return [Component("forgetful", f"{__name__}:Forgetful")]
"""


def test_law_finds_what_a_run_would_not_store(tmp_path: Path) -> None:
    (tmp_path / "forgetful.py").write_text(FORGETFUL, encoding="utf-8")
    registry = Registry.load(files=[tmp_path / "forgetful.py"])
    with pytest.raises(AssertionError, match="hang on what is not stored"):
        stored_weights_tell_the_whole_model(registry, registry.find("strategy", "forgetful"))


def test_options_of_the_dataset_do_not_go_along(exported: Exported) -> None:
    """They may be paths of a machine, or tokens; the model needs nothing of the dataset any more."""
    facts = json.loads((exported.folder / "artifacts" / "mmx" / FACTS).read_text(encoding="utf-8"))
    assert facts["spec"]["dataset"] == {"name": "toy_world"}
