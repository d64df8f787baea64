"""A sweep that is killed at any moment, again and again, ends with the numbers of one that was not.

Nothing is finished twice, nothing is left running, and a kill costs at most the epoch in which it comes.
"""

import random
import re
from collections.abc import Collection
from typing import Any

import forking
import pytest
from disturbed import Make, Place

GRID = {"search": {"axes": {"strategy.name": ["skip", "zero_fill"]}, "seeds": [0, 1]}}
RATES = {"training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}
KINDS: dict[str, dict[str, Any]] = {
    "grid": GRID,
    "tuned": {"search": {"tune": RATES, "trials_per_cell": 3, "seeds": [0, 1]}, "training.epochs": 2},
    "phases": {
        "training.phases": [{"adapter": "full", "epochs": 2}, {"adapter": "bitfit", "epochs": 2}],
        "search": {"seeds": [0, 1]},
    },
    "pruned": {
        "search": {
            "axes": {"training.learning_rate": [0.03, 1e-6, 1e-7]},
            "pruner": {"name": "median", "n_startup_trials": 1},
            "seeds": [0, 1],
        },
    },
}
MOST_KILLS = 4


@pytest.mark.parametrize("number", range(16))
def test_sweep_that_is_killed_at_random_moments_ends_as_if_it_had_not_been(
    place: Make, undisturbed: Make, number: int
) -> None:
    kind = list(KINDS)[number % len(KINDS)]
    expected, found = undisturbed(KINDS[kind]), place(KINDS[kind])
    chance = random.Random(number)
    events = len(expected.lines(forking.TRACE))
    moments = [chance.randint(1, events)]
    while len(moments) < MOST_KILLS and chance.random() < 0.4:
        moments.append(chance.randint(1, events))
    codes = [found.run(["kill_at", moment]) for moment in moments]
    assert codes[0] == -9, found.said()
    assert found.run() == 0, found.said()
    check(found, expected)


def test_what_is_killed_covers_pruned_trials(undisturbed: Make) -> None:
    assert "pruned by median" in " ".join(run.reason for run in undisturbed(KINDS["pruned"]).runs())


def check(found: Place, expected: Place) -> None:
    kills = found.lines(forking.KILLED)
    try:
        found.check_like(expected)
        trained, needed = (len(p.lines(forking.EPOCHS)) for p in (found, expected))
        assert trained <= needed + len(kills), f"{trained} epochs were trained, {needed} are enough"
    except AssertionError as error:
        raise AssertionError(f"{error}\nkilled at: {kills}\n{found.said()}") from error


def gaps(expected: Place, known: Collection[str] = ()) -> list[str]:
    """List the different events of a sweep, as they come; a commit is followed by another event anyway."""
    labels = dict.fromkeys(expected.lines(forking.TRACE))
    dull = re.compile(r".*: commit|step|unlink|rmtree|\w+: insert (latest_metrics|params|study_directions)")
    return [label for label in labels if not dull.match(label) and label not in known]


def walk(found: Place, labels: list[str]) -> None:
    """Kill the sweep at each event in turn."""
    for label in labels:
        code = found.run(["kill_on", label])
        assert code == -9, f"'{label}' never came, exit code {code}\n{found.said()}"


def test_sweep_that_is_killed_between_any_two_writes_ends_as_if_it_had_not_been(
    place: Make, undisturbed: Make
) -> None:
    expected, found = undisturbed(GRID), place(GRID)
    walk(found, gaps(expected))
    assert found.run() == 0, found.said()
    check(found, expected)


def test_search_that_is_killed_between_any_two_writes_suggests_the_same(
    place: Make, undisturbed: Make
) -> None:
    expected, found = undisturbed(KINDS["tuned"]), place(KINDS["tuned"])
    labels = gaps(expected, known=set(gaps(undisturbed(GRID))))
    assert len(labels) > 5
    walk(found, labels)
    assert found.run() == 0, found.said()
    check(found, expected)


def test_trial_that_fails_while_its_process_is_killed_is_told_as_failed_in_the_end(
    place: Make, undisturbed: Make
) -> None:
    changes = {"search": {"axes": {"strategy.name": ["failing", "skip"]}}}
    whole, found = place(changes, "whole"), place(changes)
    assert whole.run(["trace"]) == 1
    labels = gaps(whole, known=set(gaps(undisturbed(GRID))))
    assert len(labels) > 2
    walk(found, labels)
    assert found.run() == 1
    found.check_nothing_runs()
    last = {run.params["strategy"]: run for run in found.runs()}
    assert last["failing"].status == "FAILED" and "in no mood" in last["failing"].reason
    assert last["skip"].status == "FINISHED"
