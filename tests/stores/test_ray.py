"""On a Ray cluster a sweep is what it is elsewhere: every point once, whatever becomes of nodes and tasks."""

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient

from mmx.cli.open import open_plan
from mmx.cli.run import run as run_command
from mmx.config import RunSpec
from mmx.contracts import Tracker, TrialRecord
from mmx.errors import ConfigError, InputError, Stopped
from mmx.sweep import Known, Limits, Plan, Watcher, open_search, open_tracker
from mmx.sweep import claims as claims_module
from mmx.sweep.call import Call

# Read by Ray when it is imported: all of the cluster listens on loopback alone, and needs no token at home.
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="disabled")
ray = pytest.importorskip("ray", reason="no Ray here: pip install 'mmx[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from mmx.sweep.cluster import connection, driver, job  # noqa: E402

Changes = dict[str, Any]
Nodes = list[Any]
SMALL = {"object_store_memory": 80 * 2**20}
SECRET = "only-for-the-store"  # noqa: S105 of no store
PLUGIN = '''
import os
import time
from pathlib import Path

from mmx import Component, hookimpl
from mmx.contracts import Filled, Strategy


class Staged(Strategy):
    """Leaves tokens as they are; files say when training waits, fails, or ends its process."""

    def __init__(self, seed: int, option: int = 0) -> None:
        super().__init__()
        self.seed, self.steps = seed, 0

    def fill(self, tokens, presence, targets):
        if self.training:
            self.steps += 1
            if Path(f"fail-{self.seed}").exists():
                raise ValueError("told to fail")
            if Path(f"die-{self.seed}").exists():
                os._exit(1)
            while self.steps > 2 and Path("wait").exists():
                time.sleep(0.02)
        return Filled(tokens)


@hookimpl
def register_strategies():
    return [Component("staged", f"{__name__}:Staged")]
'''


def wait_for(what: str, happens: Callable[[], bool]) -> None:
    """Wait until something happens, a minute at most."""
    until = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < until, f"in vain: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def several() -> Iterator[Nodes]:
    """Ray's own cluster of several nodes on one machine: a head that runs nothing, and two nodes."""
    group = os.getpgrp()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    os.setpgid(0, group)  # Ray leaves the group, and Ctrl-C would not reach the tests
    yield [made, *(made.add_node(num_cpus=1, **SMALL) for _ in range(2))]
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def nodes(several: Nodes) -> Nodes:
    """The cluster, connected; its processes live from test to test."""
    if not ray.is_initialized():
        ray.init(address=several[0].address, log_to_driver=False, logging_level="ERROR")
    return several


class Sweep:
    """A sweep file in a folder of its own."""

    def __init__(self, folder: Path, make: Callable[..., dict[str, Any]]) -> None:
        self.folder = folder
        self.make = make
        self.address = f"sqlite:///{folder}/mlflow.db"
        self.path = folder / "sweep.yaml"
        (folder / "staged.py").write_text(PLUGIN, encoding="utf-8")

    def write(self, changes: Changes | None = None) -> Path:
        """Write the file."""
        own = {"plugins": ["./staged.py"], "strategy": "staged", "search.seeds": [0, 1]}
        self.path.write_text(json.dumps(self.make({**own, **(changes or {})})), encoding="utf-8")
        return self.path

    def run(self, changes: Changes | None = None, executor: str = "ray", **options: Any) -> int:
        """Run, and give the exit code."""
        return run_command(self.write(changes), executor=executor, device="cpu", **options)

    @property
    def records(self) -> list[TrialRecord]:
        """The trials that the store holds, the latest attempt of each."""
        plan = open_plan(self.path)
        return open_tracker(plan.registry, self.address).records("toy")

    def metrics(self) -> dict[tuple[str, int], dict[str, float]]:
        """Everything that was measured, but for what it cost."""
        return {
            (r.point, r.seed): {k: v for k, v in r.metrics.items() if not k.startswith("cost/")}
            for r in self.records
        }

    def statuses(self) -> list[str]:
        """How MLflow's runs of trials stand, every attempt."""
        client = MlflowClient(tracking_uri=self.address)
        experiment = client.get_experiment_by_name("toy")
        runs = client.search_runs([experiment.experiment_id], "tags.`mmx.role` = 'trial'")
        return sorted(run.info.status for run in runs)

    def under_way(self, trials: int) -> None:
        """Wait until so many trials have a checkpoint."""
        there = self.folder.glob
        wait_for("checkpoints", lambda: len(list(there(".mmx/toy/checkpoints/*.pt"))) == trials)


@pytest.fixture
def sweep(stores: Path, toy: Callable[..., dict[str, Any]]) -> Sweep:
    return Sweep(stores, toy)


@pytest.fixture
def meanwhile() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Do something while a sweep runs; what it raises is the test's failure."""
    faults: list[BaseException] = []
    threads: list[threading.Thread] = []

    def start(act: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                act()
            except BaseException as error:
                faults.append(error)

        threads.append(threading.Thread(target=guarded))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()
    assert faults == []


# Without a cluster.


def test_ray_that_is_not_there_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "mmx.sweep.cluster")
    with pytest.raises(InputError, match=r"pip install 'mmx\[ray\]'"):
        importlib.import_module("mmx.sweep.cluster")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cpu": 0}, r"resources\.cpu: 0 must be above 0"),
        ({"gpu": 1.5}, r"resources\.gpu: 1\.5 must be a share below 1, or whole"),
        ({"num_gpus": 1}, r"resources\.num_gpus: unknown key. Did you mean 'gpu'\?"),
        ({"memory": 4}, r"resources\.memory: 4 is in bytes"),
    ],
)
def test_resources_that_no_cluster_can_give_are_refused(
    plan_toy: Callable[..., Plan], asked: dict[str, float], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        plan_toy({"run.resources": asked})


@pytest.mark.parametrize(
    ("asked", "device", "given"),
    [
        ({}, "cpu", (1, 0)),
        ({}, "cuda:0", (1, 1)),
        ({"cpu": 2.0, "gpu": 0.5}, "cpu", (2, 0.5)),
        ({"cpu": 4.0}, "cuda:0", (4, 1)),
    ],
)
def test_trial_has_a_processor_and_on_such_a_device_a_gpu_unless_the_file_says_otherwise(
    asked: dict[str, float], device: str, given: tuple[float, float]
) -> None:
    options = job.needs(RunSpec(resources=asked), [device])
    assert (options["num_cpus"], options["num_gpus"]) == given


def test_resources_of_a_clusters_own_are_passed_on() -> None:
    options = job.needs(RunSpec(resources={"large_disk": 1.0, "memory": 4e9}), ["cpu"])
    assert (options["resources"], options["memory"]) == ({"large_disk": 1}, 4_000_000_000)


def test_places_that_a_task_is_told_hang_on_no_folder(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    sweep.write()
    plan = open_plan(Path("sweep.yaml"))
    call = Call(plan, Mock(spec=Tracker), open_search(plan), Mock(spec=Watcher), Limits(), Known())
    told = job.job_of(call, "call", job.needs(plan.sweep.run, ["cpu"])).sweep
    assert told.store.tracking == f"sqlite:///{sweep.folder}/mlflow.db"
    assert told.store.study == f"sqlite:///{sweep.folder}/optuna.db"
    assert (told.run.folder, told.source) == (f"{sweep.folder}/.mmx", f"{sweep.folder}/sweep.yaml")


@pytest.mark.parametrize(
    "address", ["http://host:5000", "postgresql://host/name", "journal:////disk/optuna.log"]
)
def test_address_that_holds_everywhere_stays_as_it_is(address: str) -> None:
    assert job.absolute(address) == address


def test_sqlite_is_refused_on_several_machines(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = open_plan(sweep.write())
    hosts = [{"Alive": True, "NodeManagerAddress": f"192.0.2.{i}"} for i in (1, 2)]
    monkeypatch.setattr(ray, "nodes", lambda: hosts)
    with pytest.raises(InputError, match=r"has 2: store\.tracking 'sqlite:.*; store\.study 'sqlite:"):
        connection.check_stores(plan.sweep)
    monkeypatch.setattr(ray, "nodes", lambda: hosts[:1])
    connection.check_stores(plan.sweep)


@pytest.mark.parametrize(
    ("address", "told"),
    [("127.0.0.1:9", "is no cluster"), ("ray://127.0.0.1:10001", "is Ray's client")],
)
def test_address_of_no_cluster_is_refused_at_once(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, address: str, told: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"'{address}' {told}"):
        sweep.run()


def test_password_on_the_command_line_is_kept_from_rays_dashboard(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(sys, "argv", ["mmx", "run", "store.study=postgresql://me:secret@host/name"])
    with pytest.raises(InputError, match="holds a password"):
        sweep.run()


def test_claim_of_a_lost_try_of_the_same_task_is_ended_at_once(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = open_plan(sweep.write())
    with monkeypatch.context() as there:
        there.setattr(claims_module, "this_worker", lambda: "elsewhere:1:1.00")
        for task in ("call:0", "call:1"):
            open_search(plan, task).claims().make(task, {})
    assert open_search(plan, "call:1").claims().reclaim() == {1: "its worker elsewhere:1:1.00 was lost"}


# On a cluster.


@pytest.mark.long
def test_cluster_of_its_own_comes_and_goes_without_a_trace(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = os.getpgrp(), signal.getsignal(signal.SIGTERM)
    assert sweep.run({"run.workers": 1}) == 0
    assert not ray.is_initialized()
    assert (os.getpgrp(), signal.getsignal(signal.SIGTERM)) == before
    told = capfd.readouterr()
    assert "Ray: 1 node(s)" in told.out and "[2/2]" in told.out and told.err == ""


def test_points_have_the_numbers_of_a_plain_run(nodes: Nodes, sweep: Sweep) -> None:
    assert sweep.run() == 0
    found = sweep.metrics()
    assert sweep.run(executor="local", fresh=True) == 0
    assert len(found) == 2 and found == sweep.metrics()


@pytest.mark.long
def test_second_run_runs_nothing(nodes: Nodes, sweep: Sweep) -> None:
    assert sweep.run(max_trials=1) == 0
    assert sweep.statuses() == ["FINISHED"]
    assert sweep.run() == 0 and sweep.run() == 0
    assert sweep.statuses() == ["FINISHED", "FINISHED"]


@pytest.mark.long
def test_point_that_fails_fails_alone(nodes: Nodes, sweep: Sweep) -> None:
    (sweep.folder / "fail-1").touch()
    assert sweep.run({"run.retry_failed": 1}) == 1
    assert {r.seed: (r.state, r.attempt) for r in sweep.records} == {0: ("done", 1), 1: ("failed", 2)}


@pytest.mark.long
def test_failure_ends_the_call_where_it_is_told_to(nodes: Nodes, sweep: Sweep) -> None:
    (sweep.folder / "fail-0").touch()
    assert sweep.run({"run.on_error": "stop", "run.workers": 1}) == 1
    assert sweep.statuses() == ["FAILED"]


@pytest.mark.long
def test_tuned_cell_gets_its_budget_and_added_seeds(nodes: Nodes, sweep: Sweep) -> None:
    tune = {"strategy.option": {"low": 1, "high": 1000}}
    changes = {"search.tune": tune, "search.trials_per_cell": 2, "search.seeds": [0]}
    assert sweep.run(changes) == 0
    first = {r.point for r in sweep.records}
    assert len(first) == 2
    assert sweep.run({**changes, "search.seeds": [0, 1]}) == 0
    assert sorted((r.point, r.seed) for r in sweep.records) == sorted((p, s) for p in first for s in (0, 1))
    assert sweep.statuses() == ["FINISHED"] * 4


@pytest.mark.long
def test_what_another_worker_holds_is_run_only_when_it_gives_up(
    nodes: Nodes,
    sweep: Sweep,
    meanwhile: Callable[[Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "AGAIN", 0.3)
    assert sweep.run(max_trials=0) == 0
    plan = open_plan(sweep.path)
    with monkeypatch.context() as there:
        there.setattr(claims_module, "this_worker", lambda: "elsewhere:1:1.00")
        claim = open_search(plan).claims().make(f"{plan.cells[0].spec.point}/1", {})

    def give_up() -> None:
        wait_for("one that is done", lambda: any(r.state == "done" for r in sweep.records))
        time.sleep(0.5)
        assert [r.seed for r in sweep.records] == [0]
        claim.release("stopped")

    meanwhile(give_up)
    assert sweep.run() == 0
    assert sweep.statuses() == ["FINISHED", "FINISHED"]


@pytest.mark.long
def test_ctrl_c_stops_tasks_after_their_epoch_and_the_next_run_carries_on(
    nodes: Nodes, sweep: Sweep, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    (sweep.folder / "wait").touch()

    def interrupt() -> None:
        sweep.under_way(2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.0)
        (sweep.folder / "wait").unlink()

    meanwhile(interrupt)
    with pytest.raises(Stopped):
        sweep.run({"training.epochs": 4})
    assert sweep.statuses() == ["KILLED", "KILLED"]
    assert sweep.run({"training.epochs": 4}) == 0
    assert sweep.statuses() == ["FINISHED", "FINISHED", "KILLED", "KILLED"]


def test_secrets_of_stores_are_in_none_of_rays_logs(
    nodes: Nodes, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    assert sweep.run() == 0
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = [path for path in session.rglob("*") if path.is_file()]
    assert logs and [p.name for p in logs if SECRET.encode() in p.read_bytes()] == []


@pytest.mark.long
def test_trial_that_kills_its_workers_fails_and_the_others_go_on(nodes: Nodes, sweep: Sweep) -> None:
    (sweep.folder / "die-0").touch()
    assert sweep.run() == 1
    states = {r.seed: r.state for r in sweep.records}
    assert states == {0: "failed", 1: "done"}
    assert "RUNNING" not in sweep.statuses()


@pytest.mark.long
def test_every_point_is_finished_once_though_a_node_dies(
    nodes: Nodes, sweep: Sweep, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    made, _, victim = nodes
    (sweep.folder / "wait").touch()

    def kill_a_node() -> None:
        sweep.under_way(2)
        made.remove_node(victim, allow_graceful=False)
        wait_for("the loss", lambda: "KILLED" in sweep.statuses())
        (sweep.folder / "wait").unlink()

    meanwhile(kill_a_node)
    changes = {"training.epochs": 3, "search.seeds": [0, 1, 2]}
    assert sweep.run(changes) == 0
    found = sweep.metrics()
    assert sweep.statuses() == ["FINISHED"] * 3 + ["KILLED"]
    log = "".join(p.read_text(encoding="utf-8") for p in sweep.folder.glob(".mmx/toy/logs/*.log"))
    assert log.count(" starts, ") == 4
    assert sweep.run(changes, executor="local", fresh=True) == 0
    assert len(found) == 3 and found == sweep.metrics()
