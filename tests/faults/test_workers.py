"""Workers that die, hang, come late or are taken for dead: everything is done, and nothing is done twice."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forking
import psutil
import pytest
from disturbed import Make, Place

WAITING: dict[str, Any] = {"strategy": "waiting", "search": {"seeds": [0, 1]}}
WORKERS = ("run", "sweep.yaml", "--workers", "2")
WORKER = ("worker", "sweep.yaml")
LEASE = {"run": {"lease": 2}}
TAKEN = "it was taken for dead and given to another worker; its result is not counted"


def lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def extra_epochs(found: Place, whole: Place) -> int:
    """Count the epochs that were trained more than once."""
    return len(found.lines(forking.EPOCHS)) - len(whole.lines(forking.EPOCHS))


# ------------------------------------------------------------------------------------------------ deaths


def test_worker_that_is_killed_is_replaced_and_its_trial_carried_on(place: Make, undisturbed: Make) -> None:
    found, whole = place(WAITING), undisturbed(WAITING)
    process = found.start(["cheap_workers"], command=WORKERS)
    os.kill(found.held(2)[0], signal.SIGKILL)
    found.go()
    assert found.wait(process) == 0, found.said()
    found.check_like(whole)
    assert "died (signal 9, which the system sends when memory runs out); see .mmx/toy/logs" in found.said()
    assert extra_epochs(found, whole) == 1
    assert sorted(run.status for run in found.runs()) == ["FINISHED", "FINISHED", "KILLED"]


@pytest.mark.long
def test_workers_whose_parent_was_killed_leave_after_the_epoch(place: Make, undisturbed: Make) -> None:
    found, whole = place(WAITING), undisturbed(WAITING)
    process = found.start(["cheap_workers"], command=WORKERS)
    workers = found.held(2)
    os.kill(process, signal.SIGKILL)
    assert found.wait(process) == -9
    found.go()
    found.wait_until(lambda: not any(map(lives, workers)))
    assert {run.status for run in found.runs()} == {"KILLED"}
    assert found.run() == 0
    found.check_like(whole)
    assert extra_epochs(found, whole) == 0


def test_group_of_processes_that_was_killed_is_carried_on(place: Make, undisturbed: Make) -> None:
    found, whole = place(WAITING), undisturbed(WAITING)
    process = found.start(["cheap_workers"], command=WORKERS)
    found.held(2)
    os.killpg(process, signal.SIGKILL)
    found.wait(process)
    found.go()
    assert found.run() == 0, found.said()
    found.check_like(whole)
    assert extra_epochs(found, whole) == 2


def test_trial_that_kills_its_workers_is_given_up_and_the_rest_is_done(place: Make) -> None:
    # With a pruner later seeds wait for the first, which must not be for ever.
    axes = {"axes": {"strategy.name": ["deadly", "skip"]}, "seeds": [0, 1], "pruner": {"name": "median"}}
    found = place({"search": axes})
    assert found.run(["cheap_workers"], command=WORKERS) == 1, found.said()
    found.check_nothing_runs()
    told = {
        (run.params["strategy"], run.key[1], run.status, run.tags["mmx.state_reason"]) for run in found.runs()
    }
    for seed in (0, 1):
        assert ("skip", seed, "FINISHED", "") in told
        reason = "its workers died 2 times, the last: signal 9, which the system sends when memory runs out"
        assert ("deadly", seed, "FAILED", reason) in told


@pytest.mark.parametrize("number", range(2))
@pytest.mark.long
def test_worker_that_is_killed_at_a_random_moment_is_replaced(
    place: Make, undisturbed: Make, number: int
) -> None:
    changes = {"search": {"axes": {"strategy.name": ["skip", "zero_fill"]}, "seeds": [0, 1]}}
    found, whole = place(changes), undisturbed(changes)
    moment = random.Random(number).randint(1, len(whole.lines(forking.TRACE)) // 4)
    fault = ["in_workers", ["kill_first_at", moment]]
    assert found.run(["cheap_workers"], fault, command=WORKERS) == 0, found.said()
    assert len(found.lines(forking.KILLED)) == 1
    found.check_like(whole)
    assert extra_epochs(found, whole) <= 1


@pytest.mark.long
def test_workers_that_die_before_they_begin_anything_end_the_call(place: Make) -> None:
    found = place({"search": {"seeds": [0, 1]}})
    fault = ["in_workers", ["kill_on", "optuna: insert trials"]]
    assert found.run(["cheap_workers"], fault, command=WORKERS) == 1, found.said()
    assert found.said().count("died (signal 9") == 5  # run.max_consecutive_failures
    assert "mmx: workers died before they could begin a trial (signal 9" in found.said()
    assert found.runs() == []


@pytest.mark.long
def test_no_more_workers_start_than_there_is_to_do(place: Make) -> None:
    found = place({"search": {"seeds": [0, 1]}})
    command = ("run", "sweep.yaml", "--workers", "4")
    for more, starts in ((("--max-trials", "1"), 2), ((), 3), ((), 3)):
        assert found.run(["cheap_workers"], command=(*command, *more)) == 0
        assert len(found.lines(forking.STARTS)) == starts


# --------------------------------------------------------------------------------------- real processes


@pytest.mark.long
def test_workers_share_the_processors_and_leave_their_logs(
    place: Make, undisturbed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, whole = place(WAITING), undisturbed(WAITING)
    monkeypatch.chdir(found.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{found.folder}/mlflow.db")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    command = [sys.executable, "-c", "from mmx.cli import main; main()", *WORKERS]
    with (found.folder / forking.OUT).open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        found.held(2)
        found.go()
        assert process.wait(60) == 0, found.said()
    found.check_like(whole)
    assert found.lines("threads.txt") == [str(max(1, (os.cpu_count() or 1) // 2))]
    (logs,) = (path.parent for path in found.folder.glob("mlartifacts/*/*/artifacts/worker-0.log"))
    for number in (0, 1):
        text = (logs / f"worker-{number}.log").read_text(encoding="utf-8")
        assert "-waiting-s" in text and "epoch 2: " in text


# --------------------------------------------------------------------------------------- several callers


@pytest.mark.long
def test_two_calls_at_the_same_time_share_the_work(place: Make, undisturbed: Make) -> None:
    changes = {"search": {"axes": {"strategy.name": ["skip", "zero_fill"]}, "seeds": [0, 1]}}
    found, whole = place(changes), undisturbed(changes)
    processes = [found.start(), found.start()]
    assert [found.wait(process) for process in processes] == [0, 0], found.said()
    found.check_like(whole)
    assert len(found.runs()) == 4 and extra_epochs(found, whole) == 0


@pytest.mark.long
def test_two_calls_at_the_same_time_share_a_budget(place: Make) -> None:
    found = place(TUNED)
    processes = [found.start(), found.start()]
    assert [found.wait(process) for process in processes] == [0, 0], found.said()
    found.check_nothing_runs()
    values = [values for _, values in found.tried()]
    assert len(values) == len(set(values)) == 3
    assert len(found.finished()) == len(found.runs()) == 6


@pytest.mark.long
def test_what_another_call_had_begun_is_not_run_again(place: Make, undisturbed: Make) -> None:
    found, whole = place(WAITING), undisturbed(WAITING)
    first = found.start(["hold_on", "copyfileobj.*keep_trial", "first"])
    found.go()
    found.wait_for("first-held")
    second = found.start()
    found.wait_until(lambda: "s1  done" in found.said())
    (found.folder / "first-go").touch()
    assert (found.wait(first), found.wait(second)) == (0, 0), found.said()
    found.check_like(whole)
    assert len(found.runs()) == 2


@pytest.mark.long
def test_worker_that_replaces_another_knows_what_its_call_has_done(place: Make, undisturbed: Make) -> None:
    changes = {"strategy": "waiting", "search": {"seeds": [0, 1, 2]}}
    found, whole = place(changes), undisturbed(changes)
    first = found.start(["cheap_workers"], command=WORKERS)
    victim, other = found.held(2)
    del other
    os.kill(victim, signal.SIGSTOP)
    found.go()
    found.wait_until(lambda: found.said().count("  done") >= 2)
    second = found.start(command=("run", "sweep.yaml", "--max-trials", "0"))
    assert found.wait(second) == 0
    os.kill(victim, signal.SIGKILL)
    assert found.wait(first) == 0, found.said()
    found.check_like(whole)
    assert len(found.runs()) == 4


def test_worker_joins_a_call(place: Make, undisturbed: Make) -> None:
    found, whole = place(WAITING), undisturbed(WAITING)
    call = found.start()
    found.held()
    worker = found.start(command=WORKER)
    found.held(2)
    found.go()
    assert (found.wait(call), found.wait(worker)) == (0, 0), found.said()
    found.check_like(whole)
    assert len(found.runs()) == 2


def test_worker_of_a_sweep_that_nobody_began_says_how_to_begin_it(place: Make) -> None:
    found = place()
    assert found.run(command=WORKER) == 2
    assert (
        "nobody has begun the sweep 'toy'; begin it with: mmx run sweep.yaml --max-trials 0" in found.said()
    )


# ------------------------------------------------------------------------------------------ other machines

STORES = {"SQLite": {}, "a journal": {"store.study": "journal:///optuna.log"}}


@pytest.mark.parametrize("store", STORES)
def test_worker_elsewhere_that_gives_no_sign_of_life_is_replaced(
    place: Make, undisturbed: Make, store: str
) -> None:
    found, whole = place({**WAITING, **LEASE, **STORES[store]}), undisturbed(WAITING)
    process = found.start(["other_host", "elsewhere"])
    os.kill(found.held()[0], signal.SIGKILL)
    found.wait(process)
    found.go()
    begun = time.monotonic()
    assert found.run() == 0, found.said()
    assert time.monotonic() - begun > 1.0
    assert "gave no sign of life for 2 s" in found.said()
    found.check_like(whole)
    assert extra_epochs(found, whole) == 1


@pytest.mark.parametrize("store", STORES)
@pytest.mark.long
def test_worker_elsewhere_that_lives_is_left_alone(place: Make, undisturbed: Make, store: str) -> None:
    found, whole = place({**WAITING, "run.lease": 4, **STORES[store]}), undisturbed(WAITING)
    there = found.start(["other_host", "elsewhere"])
    found.held()
    here = found.start()
    found.held(2)
    time.sleep(6.0)
    found.go()
    assert (found.wait(there), found.wait(here)) == (0, 0), found.said()
    found.check_like(whole)
    assert len(found.runs()) == 2 and "sign of life" not in found.said()


@pytest.mark.parametrize("store", STORES)
def test_worker_that_was_taken_for_dead_does_not_count_its_result(
    place: Make, undisturbed: Make, store: str
) -> None:
    found, whole = place({**WAITING, **LEASE, **STORES[store]}), undisturbed(WAITING)
    found.go()
    held = ["hold_on", "copyfileobj.*keep_trial", "late"]
    late = found.start(["other_host", "elsewhere"], ["still_heart"], held)
    found.wait_for("late-held")
    assert found.run() == 0, found.said()
    (found.folder / "late-go").touch()
    assert found.wait(late) == 0, found.said()
    found.check_like(whole)
    taken = [run for run in found.runs() if run.tags["mmx.worker"].startswith("elsewhere")]
    assert [(run.status, run.reason) for run in taken] == [("KILLED", TAKEN)]


@pytest.mark.long
def test_worker_that_is_taken_for_dead_while_it_counts_its_result_is_not_replaced_too(
    place: Make, undisturbed: Make
) -> None:
    found, whole = place({**WAITING, **LEASE}), undisturbed(WAITING)
    found.go()
    late = found.start(["other_host", "elsewhere"], ["still_heart"], ["hold_on", "claims._end", "late"])
    found.wait_for("late-held")
    here = found.start()
    time.sleep(5.0)
    (found.folder / "late-go").touch()
    assert (found.wait(late), found.wait(here)) == (0, 0), found.said()
    found.check_like(whole)


# ------------------------------------------------------------------------------------------ deleted stores


def test_run_that_was_deleted_is_run_again(place: Make, undisturbed: Make) -> None:
    changes = {"search": {"seeds": [0, 1]}}
    found, whole = place(changes), undisturbed(changes)
    assert found.run() == 0
    (deleted,) = (run for run in found.runs() if run.key[1] == 1)
    found.delete(deleted)
    assert found.run() == 0
    found.check_like(whole)
    assert len(found.runs()) == 2


@pytest.mark.long
def test_run_that_is_deleted_while_it_runs_fails_alone(place: Make, undisturbed: Make) -> None:
    found, whole = place(WAITING), undisturbed(WAITING)
    process = found.start()
    found.held()
    found.delete(*found.runs())
    found.go()
    assert found.wait(process) == 0, found.said()
    assert [run.key[1] for run in found.runs()] == [1]
    assert found.run() == 0
    found.check_like(whole)


TUNED = {
    "search": {
        "tune": {"training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
        "trials_per_cell": 3,
        "seeds": [0, 1],
    }
}


@pytest.mark.long
def test_search_store_that_was_deleted_is_made_again_from_the_results(
    place: Make, undisturbed: Make, blank_stores: Path
) -> None:
    found, whole = place(TUNED), undisturbed(TUNED)
    assert found.run() == 0
    shutil.copy(blank_stores / "optuna.db", found.folder / "optuna.db")
    assert found.run() == 0, found.said()
    found.check_like(whole)
    assert len(found.runs()) == 6 and extra_epochs(found, whole) == 0


@pytest.mark.long
def test_result_store_that_was_deleted_is_filled_again_with_what_was_tried(
    place: Make, undisturbed: Make, blank_stores: Path
) -> None:
    found, whole = place(TUNED), undisturbed(TUNED)
    assert found.run() == 0
    shutil.copy(blank_stores / "mlflow.db", found.folder / "mlflow.db")
    shutil.rmtree(found.folder / "mlartifacts")
    assert found.run() == 0, found.said()
    found.check_like(whole)


# ------------------------------------------------------------------------------------------------- races


@pytest.mark.long
def test_trial_that_begins_while_another_looks_for_dead_workers_is_left_alone(
    place: Make, undisturbed: Make
) -> None:
    found, whole = place(WAITING), undisturbed(WAITING)
    looking = found.start(["hold_on", "commit in claims.refresh < reclaim.reclaim <", "looking"])
    found.wait_for("looking-held")
    running = found.start()
    found.held()
    (found.folder / "looking-go").touch()
    found.held(2)
    assert {run.status for run in found.runs()} == {"RUNNING"}
    found.go()
    assert (found.wait(looking), found.wait(running)) == (0, 0), found.said()
    found.check_like(whole)


@pytest.mark.long
def test_parent_that_falls_takes_its_workers_with_it(place: Make, undisturbed: Make) -> None:
    found, whole = place(WAITING), undisturbed(WAITING)
    process = found.start(["cheap_workers"], ["fall_on_death"], command=WORKERS)
    workers = found.held(2)
    os.kill(workers[0], signal.SIGKILL)
    assert found.wait(process, 30.0) == 1
    assert not any(map(lives, workers)) and "it fell" in found.said()
    found.go()
    assert found.run() == 0
    found.check_like(whole)
