"""What a store could not take is kept and sent: in order, whole, once, whoever dies in between."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmx.builtin.trackers.mlflow import Mlflow
from mmx.cli import sync as sync_module
from mmx.contracts import Tracker, TrialLog, TrialRecord
from mmx.errors import InputError, MmxError, Stopped, StoreError
from mmx.sweep import journal as journal_module
from mmx.sweep import spool as spool_module
from mmx.sweep.journal import waiting
from mmx.sweep.spool import Sent, Spooling
from mmx.worker import this_worker

Record = Callable[..., TrialRecord]
DEAD = f"{socket.gethostname()}:999999999:1.00"


class Shelf(Tracker):
    """A store that is one file, so that processes share it; each call that it took is one line."""

    address = "shelf://here"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.down = False
        self.refused: set[str] = set()
        self.forgets_to_answer = False
        self.asked = 0
        self.now = 0.0
        self.clock = lambda: self.now

    def write(self, **call: Any) -> None:
        """Take a call."""
        self.reach()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(call) + "\n")
        if self.forgets_to_answer:
            raise StoreError("the shelf did not answer")

    def reach(self) -> None:
        """Fail where the store is gone."""
        self.asked += 1
        if self.down:
            raise StoreError("the shelf is gone")

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What it took, in order."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def runs(self) -> dict[str, Any]:
        """What it holds: figures by name, step and time, so that the same one is there once."""
        held: dict[str, Any] = {}
        for call in self.calls:
            run = held.setdefault(call["run"], {"opened": None, "metrics": set(), "files": {}, "end": None})
            if call["do"] == "open":
                run["opened"] = (call["title"], call["record"]["point"])
            elif call["do"] == "metrics":
                run["metrics"] |= {(k, v, call["step"], call["time"]) for k, v in call["values"].items()}
            elif call["do"] == "artifact":
                run["files"][call["name"]] = call["text"]
            else:
                run["end"] = (call["state"], call["reason"], call["time"])
        return held

    def open_sweep(self, name: str, tags: Mapping[str, str]) -> str:
        """Give the parent's id."""
        self.reach()
        return f"parent of {name}"

    def find_sweeps(self) -> list[str]:
        """List the only sweep."""
        self.reach()
        return ["toy"]

    def records(self, name: str) -> list[TrialRecord]:
        """List nothing: no test looks here."""
        return []

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """List nothing: no test looks here."""
        return {}

    def open_trial(self, title: str, record: TrialRecord) -> TrialLog:
        """Open a run, or go on with one."""
        run = record.run_id or f"run-{len(self.runs()) + 1}"
        self.write(do="open", run=run, title=title, record=spool_module.asdict(record))
        return ShelfLog(self, run)

    def find(self, run: str) -> tuple[str, TrialRecord]:
        """Find nothing: no test looks here."""
        raise InputError(run)

    def fetch(self, run_id: str, name: str, folder: Path) -> Path:
        """Bring nothing: no test looks here."""
        raise InputError(name)

    def running(self, name: str) -> list[TrialRecord]:
        """List what was opened and not ended."""
        self.reach()
        opened = {c["run"]: c["record"] for c in self.calls if c["do"] == "open"}
        ended = {run for run, held in self.runs().items() if held["end"]}
        return [TrialRecord(**{**r, "run_id": run}) for run, r in opened.items() if run not in ended]

    def reopen(self, run_id: str) -> TrialLog:
        """Go on with a run."""
        return ShelfLog(self, run_id)

    def retire(self, record: TrialRecord) -> None:
        """Do nothing: no test looks here."""

    def close_sweep(
        self, curves: Mapping[str, Any], artifacts: Sequence[Path], group_by: Sequence[str], state: str
    ) -> None:
        """Fail where the store is gone."""
        self.reach()


class ShelfLog(TrialLog):
    """A run on the shelf."""

    def __init__(self, shelf: Shelf, run_id: str) -> None:
        self.shelf = shelf
        self.run_id = run_id

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Take figures."""
        if self.shelf.refused & set(values):
            raise MmxError(f"the shelf does not take {sorted(values)}")
        now = self.shelf.clock()
        self.shelf.write(do="metrics", run=self.run_id, values=dict(values), step=step, time=now)

    def artifact(self, path: Path) -> None:
        """Take a file."""
        text = path.read_text(encoding="utf-8")
        self.shelf.write(do="artifact", run=self.run_id, name=path.name, text=text)

    def end(self, state: str, reason: str, tags: Mapping[str, str]) -> None:
        """Take the end."""
        now = self.shelf.clock()
        self.shelf.write(do="end", run=self.run_id, state=state, reason=reason, tags=dict(tags), time=now)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf.jsonl")


@pytest.fixture
def spool(shelf: Shelf, tmp_path: Path) -> Spooling:
    made = Spooling(shelf, tmp_path / "spool", every=0.0)
    made.open_sweep("toy", {})
    return made


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("first", encoding="utf-8")
    return path


def kept(spool: Spooling) -> list[Path]:
    """List the journals on disk."""
    return sorted(spool.folder.glob("*/journal.jsonl"))


def run_whole_trial(spool: Spooling, record: TrialRecord, notes: Path) -> None:
    """Make every kind of call."""
    log = spool.open_trial("t0001", record)
    log.metrics({"loss": 1.0, "score": 0.5}, 0)
    log.artifact(notes)
    log.metrics({"loss": 0.5}, 1)
    log.end("done", "", {"tag": "value"})


# ---------------------------------------------------------------------------------------------- outages


def test_store_that_answers_gets_every_call_and_nothing_is_kept(
    spool: Spooling, shelf: Shelf, record: Record, notes: Path
) -> None:
    run_whole_trial(spool, record(), notes)
    assert [c["do"] for c in shelf.calls] == ["open", "metrics", "artifact", "metrics", "end"]
    assert not spool.folder.exists()


@pytest.mark.parametrize("failing", range(5))
def test_trial_is_whole_and_in_order_wherever_the_outage_begins(
    spool: Spooling, shelf: Shelf, record: Record, notes: Path, failing: int
) -> None:
    taken = shelf.write

    def write(**call: Any) -> None:
        shelf.down = shelf.down or len(shelf.calls) == failing
        taken(**call)

    shelf.write = write  # type: ignore[method-assign]
    run_whole_trial(spool, record(), notes)
    assert len(shelf.calls) == failing and len(kept(spool)) == 1
    shelf.down, shelf.write = False, taken  # type: ignore[method-assign]
    assert spool.send() == Sent(1, 0, "")
    assert [c["do"] for c in shelf.calls] == ["open", "metrics", "artifact", "metrics", "end"]
    assert len({c["run"] for c in shelf.calls}) == 1 and not kept(spool)


def test_calls_after_an_outage_go_straight_to_the_store_again(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    log = spool.open_trial("t", record())
    shelf.down = True
    log.metrics({"loss": 1.0}, 0)
    shelf.down = False
    log.metrics({"loss": 0.5}, 1)
    assert [c.get("step") for c in shelf.calls] == [None, 0, 1] and not kept(spool)


def test_trial_that_was_opened_in_an_outage_gets_the_stores_name_once_it_is_sent(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    shelf.down = True
    log = spool.open_trial("t", record())
    assert log.run_id.startswith("spooled-")
    shelf.down = False
    log.metrics({"loss": 1.0}, 0)
    assert log.run_id == "run-1" and [c["do"] for c in shelf.calls] == ["open", "metrics"]


def test_store_that_is_gone_is_not_asked_again_before_it_is_time(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    spool.every = 3600.0
    log = spool.open_trial("t", record())
    shelf.down = True
    log.metrics({"loss": 1.0}, 0)
    asked, shelf.down = shelf.asked, False
    log.metrics({"loss": 0.5}, 1)
    spool.open_trial("t2", record("other")).end("done", "", {})
    assert shelf.asked == asked and len(kept(spool)) == 2


def test_user_is_told_once_when_the_store_goes_and_once_when_it_is_back(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    told: list[str] = []
    spool.told = told.append
    log = spool.open_trial("t", record())
    assert told == []
    shelf.down = True
    for epoch in range(3):
        log.metrics({"loss": 1.0}, epoch)
    assert told == [f"the shelf is gone; results are kept in '{spool.folder}' and sent once it is back"]
    shelf.down = False
    log.metrics({"loss": 1.0}, 3)
    log.end("done", "", {})
    assert told[1:] == ["the result store answers again; what was kept is sent"]


def test_wish_to_stop_while_the_user_is_told_loses_nothing(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    def stop(message: str) -> None:
        raise Stopped(message)

    spool.told = stop
    log = spool.open_trial("t", record())
    shelf.down = True
    log.metrics({"loss": 1.0}, 0)
    shelf.down = False
    spool.send()
    assert [c["values"] for c in shelf.calls if c["do"] == "metrics"] == [{"loss": 1.0}]


def test_slow_tries_are_made_less_often(
    spool: Spooling, shelf: Shelf, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(spool_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(spool_module, "SHARE", 4.0)
    log = spool.open_trial("t", record())

    def slow() -> None:
        now[0] += 20.0
        raise StoreError("timed out")

    shelf.reach = slow  # type: ignore[method-assign]
    log.metrics({"loss": 1.0}, 0)
    assert now[0] == 120.0
    now[0] = 190.0
    log.metrics({"loss": 1.0}, 1)
    assert now[0] == 190.0


def test_file_is_sent_as_it_was_when_it_was_kept(
    spool: Spooling, shelf: Shelf, record: Record, notes: Path
) -> None:
    log = spool.open_trial("t", record())
    shelf.down = True
    log.artifact(notes)
    notes.write_text("second", encoding="utf-8")
    log.artifact(notes)
    notes.unlink()
    shelf.down = False
    spool.send()
    assert [c["text"] for c in shelf.calls if c["do"] == "artifact"] == ["first", "second"]


def test_figures_keep_the_time_of_their_call(
    spool: Spooling, shelf: Shelf, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module.time, "time", lambda: 1000.0)
    log = spool.open_trial("t", record())
    shelf.down = True
    log.metrics({"loss": 1.0}, 0)
    monkeypatch.setattr(spool_module.time, "time", lambda: 2000.0)
    shelf.down = False
    spool.send()
    assert shelf.calls[-1]["time"] == 1000.0 and shelf.clock() == 0.0


def test_sweeps_and_records_raise_while_the_store_is_gone(spool: Spooling, shelf: Shelf) -> None:
    shelf.down = True
    for call in (
        lambda: spool.open_sweep("toy", {}),
        lambda: spool.running("toy"),
        lambda: spool.close_sweep({}, [], [], "done"),
    ):
        with pytest.raises(StoreError):
            call()


def test_callers_mistakes_are_raised_and_not_kept(
    spool: Spooling, shelf: Shelf, record: Record, tmp_path: Path
) -> None:
    shelf.refused = {"bad"}
    log = spool.open_trial("t", record())
    with pytest.raises(MmxError, match="does not take"):
        log.metrics({"bad": 1.0}, 0)
    shelf.down = True
    with pytest.raises(FileNotFoundError):
        log.artifact(tmp_path / "nothing")
    assert not kept(spool)


# ---------------------------------------------------------------------------------- other processes' trials


def as_if_dead(spool: Spooling) -> None:
    """Have the journals written by a process that no longer lives."""
    for path in kept(spool):
        header, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text(json.dumps({**json.loads(header), "worker": DEAD}) + "\n" + "".join(rest))


@pytest.fixture
def left_behind(spool: Spooling, shelf: Shelf, record: Record, notes: Path) -> Spooling:
    """What a process left that wrote a whole trial in an outage and died; as the next one sees it."""
    shelf.down = True
    run_whole_trial(spool, record(), notes)
    shelf.down = False
    as_if_dead(spool)
    return Spooling(shelf, spool.folder)


def test_trial_of_a_process_that_died_is_sent(left_behind: Spooling, shelf: Shelf) -> None:
    assert left_behind.send() == Sent(1, 0, "")
    (run,) = shelf.runs().values()
    assert run["opened"] == ("t0001", "point") and run["files"] == {"notes.txt": "first"}
    assert {m[:3] for m in run["metrics"]} == {("loss", 1.0, 0), ("score", 0.5, 0), ("loss", 0.5, 1)}
    assert run["end"][:2] == ("done", "") and not waiting(left_behind.folder)


def test_what_was_sent_is_not_sent_again(left_behind: Spooling, shelf: Shelf) -> None:
    left_behind.send()
    calls = shelf.calls
    assert left_behind.send() == Sent(0, 0, "") and shelf.calls == calls


def test_trial_that_another_process_still_writes_is_left_alone(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    log = spool.open_trial("t", record())
    shelf.down = True
    log.metrics({"loss": 1.0}, 0)
    shelf.down = False
    sent = Spooling(shelf, spool.folder).send()
    assert (sent.sent, sent.left) == (0, 1) and this_worker() in sent.reason
    log.end("done", "", {})
    assert [c["do"] for c in shelf.calls] == ["open", "metrics", "end"]


def test_trial_that_ended_is_sent_although_its_process_lives(
    spool: Spooling, shelf: Shelf, record: Record, notes: Path
) -> None:
    shelf.down = True
    run_whole_trial(spool, record(), notes)
    shelf.down = False
    assert Spooling(shelf, spool.folder).send() == Sent(1, 0, "")
    spool.open_trial("t2", record("other"))
    assert sorted(run["opened"][1] for run in shelf.runs().values()) == ["other", "point"]


def test_two_senders_at_once_send_a_trial_once(left_behind: Spooling, shelf: Shelf) -> None:
    other = Spooling(shelf, left_behind.folder)
    taken, seen = shelf.write, []

    def write(**call: Any) -> None:
        if not seen:
            seen.append(other.send())
        taken(**call)

    shelf.write = write  # type: ignore[method-assign]
    assert left_behind.send() == Sent(1, 0, "")
    assert seen == [Sent(0, 1, "another process is sending it just now")] and len(shelf.runs()) == 1


def test_line_that_a_crash_tore_off_is_passed_over(left_behind: Spooling, shelf: Shelf) -> None:
    (path,) = kept(left_behind)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-20], encoding="utf-8")
    assert left_behind.send() == Sent(1, 0, "")
    (run,) = shelf.runs().values()
    assert run["end"] is None and len(run["metrics"]) == 3


def test_line_after_a_torn_one_is_whole(spool: Spooling, shelf: Shelf, record: Record) -> None:
    log = spool.open_trial("t", record())
    shelf.down = True
    log.metrics({"loss": 1.0}, 0)
    (path,) = kept(spool)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"do": "metr')
    log.metrics({"loss": 0.5}, 1)
    shelf.down = False
    assert spool.send() == Sent(1, 0, "")
    assert [c.get("step") for c in shelf.calls] == [None, 0, 1]


# ----------------------------------------------------------------------------------------------- crashes


def die_at(moment: int, left_behind: Spooling, shelf: Shelf) -> bool:
    """Send in a process that is killed at some effect on store or disk; False: it came to its end."""
    child = os.fork()
    if child == 0:
        effects = 0

        def dying(act: Callable[..., Any]) -> Callable[..., Any]:
            def call(*values: Any, **named: Any) -> Any:
                nonlocal effects
                for work in (lambda: None, lambda: act(*values, **named)):
                    work()
                    effects += 1
                    if effects > moment:
                        os.kill(os.getpid(), signal.SIGKILL)

            return call

        journal_module.os.pwrite = dying(os.pwrite)
        journal_module.shutil.rmtree = dying(shutil.rmtree)  # type: ignore[assignment]
        shelf.write = dying(shelf.write)  # type: ignore[method-assign]
        try:
            left_behind.send()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_sender_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    left_behind: Spooling, shelf: Shelf, tmp_path: Path
) -> None:
    shutil.copytree(left_behind.folder, tmp_path / "as-it-was")
    left_behind.send()
    (wanted,) = shelf.runs().values()
    deaths = 0
    while True:
        shelf.path.unlink()
        shutil.rmtree(left_behind.folder)
        shutil.copytree(tmp_path / "as-it-was", left_behind.folder)
        if not die_at(deaths, left_behind, shelf):
            break
        left_behind.send()
        assert list(shelf.runs().values()) == [wanted], f"killed at effect {deaths}"
        left_behind.send()
        assert not list(left_behind.folder.iterdir())
        deaths += 1
    assert deaths > 20


def test_opening_whose_answer_was_lost_is_not_done_twice(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    shelf.forgets_to_answer = True
    log = spool.open_trial("t", record())
    shelf.forgets_to_answer = False
    log.end("done", "", {})
    (run,) = shelf.runs().values()
    assert run["end"] is not None and log.run_id == "run-1"


def test_other_trials_like_it_are_not_taken_for_a_trial_whose_opening_was_lost(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    spool.open_trial("t1", record(attempt=1))
    shelf.down = True
    log = spool.open_trial("t2", record(attempt=2))
    shelf.down = False
    log.end("done", "", {})
    assert log.run_id == "run-2"


# ----------------------------------------------------------------------------------------- what cannot be


def test_trial_that_the_store_refuses_keeps_no_other_back(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    shelf.down = True
    for name in ("bad", "good"):
        log = spool.open_trial(name, record(name))
        log.metrics({name: 1.0}, 0)
        log.end("done", "", {})
    shelf.down, shelf.refused = False, {"bad"}
    sent = spool.send()
    assert (sent.sent, sent.left) == (1, 1) and "does not take ['bad']" in sent.reason
    assert "remove '" in sent.reason
    shelf.refused = set()
    assert spool.send() == Sent(1, 0, "")


def test_trial_whose_calls_alone_fail_keeps_no_other_back(
    left_behind: Spooling, shelf: Shelf, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind.open_sweep("toy", {})
    shelf.down = True
    other = left_behind.open_trial("t2", record("other"))
    shelf.down = False

    def fail(*_: Any) -> None:
        raise StoreError("no space for files")

    monkeypatch.setattr(ShelfLog, "artifact", fail)
    sent = left_behind.send()
    assert (sent.sent, sent.left, sent.reason) == (1, 1, "no space for files")
    assert not other.run_id.startswith("spooled-")


def test_store_that_is_gone_is_asked_once_however_much_waits(
    spool: Spooling, shelf: Shelf, record: Record
) -> None:
    shelf.down, spool.every = True, 3600.0
    for number in range(5):
        spool.open_trial("t", record(f"point-{number}")).end("done", "", {})
    asked = shelf.asked
    sent = spool.send()
    assert (sent.sent, sent.left, sent.reason) == (0, 5, "the shelf is gone") and shelf.asked <= asked + 2


def test_trial_is_not_sent_to_a_store_without_its_sweep(left_behind: Spooling, tmp_path: Path) -> None:
    other = Shelf(tmp_path / "other.jsonl")
    other.find_sweeps = lambda: ["another"]  # type: ignore[method-assign]
    sent = Spooling(other, left_behind.folder).send()
    assert sent.left == 1 and "sweep 'toy' of shelf://here" in sent.reason and not other.calls


def test_spool_that_cannot_be_written_is_told_with_the_outage(
    shelf: Shelf, tmp_path: Path, record: Record
) -> None:
    (tmp_path / "file").touch()
    spool = Spooling(shelf, tmp_path / "file" / "spool")
    log = spool.open_trial("t", record())
    shelf.down = True
    with pytest.raises(StoreError, match=r"the shelf is gone; nor can .*file/spool.*Not a directory"):
        log.metrics({"loss": 1.0}, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here: that takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk_is_told_and_what_was_kept_before_is_sent(
    shelf: Shelf, small_disk: Path, tmp_path: Path, record: Record
) -> None:
    spool = Spooling(shelf, small_disk / "spool", every=60.0)
    spool.open_sweep("toy", {})
    log = spool.open_trial("t", record())
    shelf.down = True
    log.metrics({"loss": 1.0}, 0)
    big = tmp_path / "big.bin"
    big.write_text("x" * 10**6, encoding="utf-8")
    with pytest.raises(StoreError, match="No space left on device; free space"):
        log.artifact(big)
    with pytest.raises(StoreError, match="No space left on device"):
        for step in range(10**5):
            log.metrics({"loss": 0.5}, step)
    shelf.down = False
    assert spool.send() == Sent(1, 0, "")
    steps = [c["step"] for c in shelf.calls[1:]]
    assert steps[:3] == [0, 0, 1] and steps[1:] == list(range(len(steps) - 1))


def test_passwords_are_not_kept(spool: Spooling, shelf: Shelf, record: Record) -> None:
    shelf.hide = lambda text: text.replace("secret", "***")  # type: ignore[attr-defined]
    spool = Spooling(shelf, spool.folder)
    shelf.down = True
    spool.open_trial("t", record(params={"store": "x://me:secret@host"})).end("failed", "no secret", {})
    (path,) = kept(spool)
    assert "secret" not in path.read_text(encoding="utf-8")


# ----------------------------------------------------------------------------------------------- mmx sync


@pytest.fixture
def mmx_sync(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command, and give its exit code."""
    return lambda **options: sync_module.sync(**{"sweep": None, "store": None, "folder": None, **options})


@pytest.fixture
def waiting_trial(stores: Path, record: Record, notes: Path, monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    """A trial in the current folder's spool, of a process that is dead."""
    tracker = Mlflow(os.environ["MLFLOW_TRACKING_URI"])
    tracker.open_sweep("toy", {"mmx.objective": "loss"})
    tracker.close_sweep({}, [], [], "done")
    spool = Spooling(tracker, Path(".mmx/toy/spool"))
    spool.open_sweep("toy", {})

    def gone(*_: Any, **__: Any) -> None:
        raise StoreError("gone")

    with monkeypatch.context() as outage:
        outage.setattr(tracker, "open_trial", gone)
        run_whole_trial(spool, record(), notes)
    as_if_dead(spool)
    return tracker


def test_sync_sends_what_waits_and_says_so(
    waiting_trial: Mlflow, mmx_sync: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mmx_sync() == 0 and "1 trial(s) sent" in capsys.readouterr().out
    (found,) = waiting_trial.records("toy")
    assert (found.state, found.metrics["loss"]) == ("done", 0.5)
    assert mmx_sync() == 0 and "nothing waits" in capsys.readouterr().out


def test_sync_leaves_the_sweep_as_ended_as_it_was(
    waiting_trial: Mlflow, mmx_sync: Callable[..., int]
) -> None:
    mmx_sync()
    assert waiting_trial.client.get_run(waiting_trial.parent).info.status == "FINISHED"


def test_sync_exits_with_one_and_the_reason_where_something_is_left(
    waiting_trial: Mlflow,
    mmx_sync: Callable[..., int],
    closed_port: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmx.builtin.trackers.mlflow.OPENING", 0.0)
    assert mmx_sync(store=f"http://127.0.0.1:{closed_port}", as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["sent"], told["left"]) == (0, 1) and "Connection refused" in told["reason"]


def test_sync_of_a_sweep_sends_that_sweep_alone(
    waiting_trial: Mlflow,
    mmx_sync: Callable[..., int],
    toy: Callable[..., dict[str, Any]],
) -> None:
    shutil.copytree(".mmx/toy", ".mmx/toy@1234abcd")  # as of a sweep whose settings were changed
    for name, left in (("other", 1), ("toy", 0)):
        Path("sweep.yaml").write_text(json.dumps(toy({"name": name})), encoding="utf-8")
        assert mmx_sync(sweep=Path("sweep.yaml")) == 0
        assert waiting(Path(".mmx/toy/spool")) == waiting(Path(".mmx/toy@1234abcd/spool")) == left
