"""Whoever ends a sweep early, a user, a limit, a fault, loses nothing of what was finished."""

import os
import signal

import forking
import pytest
from disturbed import Make, Place

WAITING = {"strategy": "waiting", "search": {"seeds": [0, 1]}}
WORKERS = ("run", "sweep.yaml", "--workers", "2")
BOTH = [("run", "sweep.yaml"), WORKERS]


@pytest.fixture
def whole(undisturbed: Make) -> Place:
    """The same sweep, without disturbance."""
    return undisturbed(WAITING)


# ------------------------------------------------------------------------------------------ users, schedulers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", BOTH)
def test_sweep_that_is_asked_to_stop_ends_after_the_epoch_and_goes_on_from_there(
    place: Make, whole: Place, command: tuple[str, ...], number: int
) -> None:
    found = place(WAITING)
    process = found.start(["cheap_workers"], command=command)
    workers = found.held(1 + (command is WORKERS))
    os.kill(process, number)
    found.asked(*workers)
    found.go()
    assert found.wait(process) == 130, found.said()
    assert "stopped; what was finished is kept, the next `mmx run` carries on" in found.said()
    found.check_nothing_runs()
    begun = found.runs()
    assert {(r.status, r.reason) for r in begun} == {("KILLED", "interrupted")}
    assert len(list(found.folder.glob(".mmx/*/checkpoints/*.pt"))) == len(begun)
    assert found.run() == 0, found.said()
    found.check_like(whole)
    assert len(found.lines(forking.EPOCHS)) == len(whole.lines(forking.EPOCHS))


@pytest.mark.long
def test_terminal_that_tells_workers_too_is_heard_once(place: Make, whole: Place) -> None:
    found = place(WAITING)
    process = found.start(["cheap_workers"], command=WORKERS)
    workers = found.held(2)
    os.killpg(process, signal.SIGINT)
    found.asked(*workers)
    found.go()
    assert found.wait(process) == 130, found.said()
    found.check_nothing_runs()
    assert found.said().count("Traceback") == 0, found.said()
    assert found.run() == 0
    found.check_like(whole)


@pytest.mark.long
def test_terminal_that_tells_workers_that_still_start_is_heard_once(place: Make) -> None:
    found = place(WAITING)
    process = found.start(["cheap_workers", 0.5], command=WORKERS)
    found.wait_until(lambda: len(found.lines(forking.STARTS)) == 2)
    os.killpg(process, signal.SIGINT)
    assert found.wait(process, 20.0) == 130, found.said()
    logs = [path.read_text(encoding="utf-8") for path in found.folder.glob(".mmx/toy/logs/*.log")]
    assert "Traceback" not in "".join([found.said(), *logs])
    assert found.runs() == []


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.long
def test_second_request_to_stop_is_obeyed_at_once(
    place: Make, whole: Place, command: tuple[str, ...]
) -> None:
    found = place(WAITING)
    process = found.start(["cheap_workers"], command=command)
    workers = found.held(1 + (command is WORKERS))
    os.killpg(process, signal.SIGINT)
    found.asked(process, *workers)
    os.killpg(process, signal.SIGINT)
    assert found.wait(process, 20.0) == 130, found.said()
    found.check_nothing_runs()
    found.go()
    assert found.run() == 0
    found.check_like(whole)


# ------------------------------------------------------------------------------------------------- limits

FAILING = {"strategy": "failing", "search": {"seeds": [0, 1, 2, 3]}}


def states(found: Place) -> list[str]:
    return sorted(run.status for run in found.runs())


@pytest.mark.long
def test_max_trials_holds_for_all_workers_together(place: Make) -> None:
    found = place({"search": {"seeds": [0, 1, 2, 3]}})
    assert found.run(["cheap_workers"], command=(*WORKERS, "--max-trials", "3")) == 0
    assert states(found) == ["FINISHED"] * 3


@pytest.mark.long
def test_timeout_lets_workers_begin_nothing_new(place: Make, whole: Place) -> None:
    found = place({"strategy": "waiting", "search": {"seeds": [0, 1, 2, 3]}})
    process = found.start(["cheap_workers"], ["long_ago"], command=(*WORKERS, "--timeout", "30m"))
    found.held(2)
    (found.folder / "late").touch()
    found.go()
    assert found.wait(process) == 0, found.said()
    assert states(found) == ["FINISHED"] * 2


@pytest.mark.parametrize("limit", [("--fail-after", "2"), ("run.max_consecutive_failures=2",)])
@pytest.mark.long
def test_failures_of_all_workers_are_counted_together(place: Make, limit: tuple[str, ...]) -> None:
    found = place(FAILING)
    assert found.run(["cheap_workers"], command=(*WORKERS, *limit)) == 1
    assert states(found) in (["FAILED"] * 2, ["FAILED"] * 3)  # the other worker may have begun one


# ------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("strategy", ["greedy", "hungry"])
def test_trial_that_runs_out_of_memory_fails_with_advice_and_the_rest_is_done(
    place: Make, strategy: str
) -> None:
    found = place({"search": {"axes": {"strategy.name": [strategy, "skip"]}}})
    assert found.run() == 1
    told = {run.params["strategy"]: (run.status, run.reason) for run in found.runs()}
    assert told["skip"][0] == "FINISHED"
    assert told[strategy][0] == "FAILED"
    assert told[strategy][1].startswith("out of memory: lower training.batch_size (now 8)")


def test_full_disk_ends_the_call_and_loses_nothing(place: Make, whole: Place) -> None:
    found = place(WAITING)
    found.go()
    assert found.run(["full_disk", "predictions.parquet"]) == 1
    assert "No space left on device; free space there" in found.said(), found.said()
    assert found.run() == 0
    found.check_like(whole)
    assert len(found.lines(forking.EPOCHS)) == len(whole.lines(forking.EPOCHS))
