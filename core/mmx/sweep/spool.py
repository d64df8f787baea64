"""Keeps on this machine what a result store could not take, and sends it once the store is back.

Each trial has a folder of its own with what was asked for, in order (`journal.jsonl`), copies of its files,
and what the store has of it (`sent.json`). All of it may be sent again after a crash: figures carry their
time, so that a store takes the same one only once; an opening that may have been done is looked for first.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mmx.contracts import Tracker, TrialLog, TrialRecord
from mmx.errors import MmxError, Stopped, StoreError
from mmx.sweep.journal import BusyError, Entry, Journal
from mmx.worker import is_gone, this_worker

EVERY = 15.0
"""Seconds between two tries to reach a store that is gone."""
SHARE = 4.0
"""A try that took long is followed by a wait this many times as long: training must go on."""
IDENTITY = ("point", "seed", "attempt", "worker", "claim")
"""What no two attempts share."""


@dataclass(frozen=True)
class Sent:
    """What a call of `send` did: trials whose all is now in the store, trials that wait, and why."""

    sent: int = 0
    left: int = 0
    reason: str = ""


@runtime_checkable
class Clocked(Protocol):
    """A tracker that can be told when something happened."""

    clock: Callable[[], float]


class Spooling(Tracker):
    """A tracker whose trials outlive an outage of the store: what it cannot take is kept under `folder`.

    Sweeps and records pass straight through. A trial's calls raise StoreError only where `folder` cannot be
    written either. `every` is the number of seconds between two tries to reach a store that is gone.
    """

    def __init__(self, tracker: Tracker, folder: Path, every: float = EVERY) -> None:
        self.tracker = tracker
        self.folder = folder
        self.every = every
        self.lock = threading.RLock()
        self._hide: Callable[[str], str] = getattr(tracker, "hide", str)
        self._sweep = self._entered = ""
        self._outage = ""
        self._due = 0.0
        self.told: Callable[[str], None] = _nobody
        """Who is told when the store goes and when it is back."""
        self._told = False
        self._own: dict[str, SpooledLog] = {}

    def open_sweep(self, name: str, tags: Mapping[str, str]) -> str:
        """Find or make the sweep's place."""
        self._entered = self.tracker.open_sweep(name, tags)
        self._sweep = name
        return self._entered

    def find_sweeps(self) -> list[str]:
        """List the sweeps."""
        return self.tracker.find_sweeps()

    def records(self, name: str) -> list[TrialRecord]:
        """List the trials that the store has; what is kept here is not among them."""
        return self.tracker.records(name)

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """Give a metric by step."""
        return self.tracker.history(run_id, metric)

    def find(self, run: str) -> tuple[str, TrialRecord]:
        """Find a trial that the store has."""
        return self.tracker.find(run)

    def fetch(self, run_id: str, name: str, folder: Path) -> Path:
        """Bring a file that the store has."""
        return self.tracker.fetch(run_id, name, folder)

    def running(self, name: str) -> list[TrialRecord]:
        """List what the store calls running."""
        return self.tracker.running(name)

    def retire(self, record: TrialRecord) -> None:
        """Take a trial out of account."""
        self.tracker.retire(record)

    def close_sweep(
        self,
        curves: Mapping[str, Mapping[int, float]],
        artifacts: Sequence[Path],
        group_by: Sequence[str],
        state: str,
    ) -> None:
        """Write the sweep's own figures and files."""
        self.tracker.close_sweep(curves, artifacts, group_by, state)

    def page(self, name: str) -> str:
        """Give the address of a sweep's view."""
        return self.tracker.page(name)

    def hint(self, name: str) -> str:
        """Say how to come to that view by hand."""
        return self.tracker.hint(name)

    def open_trial(self, title: str, record: TrialRecord) -> TrialLog:
        """Begin a trial, in the store or, while that is gone, here."""
        plain = replace(record, params=dict(record.params), metrics=dict(record.metrics))
        entry = {"do": "open", "time": time.time(), "title": title, "record": asdict(plain)}
        with self.lock:
            tried = self.answers()
            if tried:
                began = time.monotonic()
                try:
                    return SpooledLog(self, log=self.tracker.open_trial(title, record))
                except StoreError as error:
                    self.lost(error, began)
            log = SpooledLog(self)
            self.keep(log, {**entry, "doubtful": tried})
            return log

    def reopen(self, run_id: str) -> TrialLog:
        """Go on writing to a trial."""
        return self._own.get(run_id) or SpooledLog(self, run_id=run_id)

    def send(self) -> Sent:
        """Send all that is kept, of dead processes too; what another process still writes is left alone.

        Nothing is raised: where the store is gone, all is left for later.
        """
        with self.lock:
            began, self._outage, sent = time.monotonic(), "", 0
            journals = Journal.all(self.folder)
            reasons: dict[str, int] = {}
            for journal in journals:
                try:
                    self._deliver(journal)
                    sent += 1
                except StoreError as error:
                    reasons[str(error)] = reasons.get(str(error), 0) + 1
                    if self._store_is_gone(began):
                        break
                except Exception as error:  # noqa: BLE001 one trial that cannot be sent must not keep others
                    told = f"{error} (remove '{journal.folder}' to give it up)"
                    reasons[str(error) if isinstance(error, BusyError) else told] = 1
            self._wait(began)
            self._tell()
            return Sent(sent, len(journals) - sent, "; ".join(reasons))

    def answers(self) -> bool:
        """Tell whether to call the store now; when it is time, what is kept is sent first."""
        if (self._outage or self._own) and time.monotonic() >= self._due:
            self.send()
        return not self._outage

    def lost(self, error: StoreError, began: float) -> None:
        """Note that the store is gone, which a call found that began then."""
        self._outage = str(error)
        self._wait(began)
        self._tell()

    def apply(self, log: TrialLog, entry: Entry, file: Path | None = None) -> None:
        """Do what an entry says, at the time that it says."""
        with self._at(entry["time"]):
            if entry["do"] == "metrics":
                log.metrics(entry["values"], entry["step"])
            elif entry["do"] == "data":
                log.data(entry["name"], entry["split"], entry["digest"], entry["facts"])
            elif entry["do"] == "artifact" and file is not None:
                log.artifact(file)
            elif entry["do"] == "end":
                log.end(entry["state"], entry["reason"], entry["tags"])

    def keep(self, log: "SpooledLog", entry: Entry, file: Path | None = None) -> None:
        """Write an entry to the log's journal (StoreError where that cannot be done either)."""
        entry = _each_text(entry, self._hide)
        try:
            if log.journal is None:
                log.journal = Journal.begin(self.folder, self._header(log.run_id))
                log.run_id = log.run_id or log.journal.name
                self._own[log.journal.name] = log
            if file is None:
                log.journal.add(entry)
            else:
                log.journal.add_file(entry, file)
        except OSError as error:
            raise StoreError(
                f"{self._outage or 'the result store lacks earlier calls'}; nor can '{self.folder}' keep "
                f"what it should have taken: {error.strerror or error}; free space there or make it writable"
            ) from error

    def _header(self, run_id: str) -> Entry:
        store = getattr(self.tracker, "address", "")
        parent, worker = self._entered, this_worker()
        return {"sweep": self._sweep, "parent": parent, "store": store, "worker": worker, "run": run_id}

    def _deliver(self, journal: Journal) -> None:
        """Send what the store lacks of a trial, then forget it."""
        with journal.held() as there:
            if not there:
                return
            header, entries = journal.read()
            own = self._own.get(journal.name)
            ended = any(entry["do"] == "end" for entry in entries)
            if not (own or ended or is_gone(header["worker"])):
                raise BusyError(f"worker {header['worker']} still writes it, unless its machine is gone")
            log = self._replay(journal, header, entries)
            journal.remove()
        if own and log:
            own.log, own.run_id, own.journal = log, log.run_id, None
        self._own.pop(journal.name, None)

    def _replay(self, journal: Journal, header: Entry, entries: list[Entry]) -> TrialLog | None:
        noted = journal.noted()
        run_id = noted.get("run") or header["run"]
        log = self.tracker.reopen(run_id) if run_id else None
        for number, entry in enumerate(entries):
            if number < noted.get("done", 0):
                continue
            if log is None:
                log = self._open(journal, header, entry, bool(noted))
            self.apply(log, entry, journal.folder / entry.get("file", ""))
            journal.note(done=number + 1)
        return log

    def _open(self, journal: Journal, header: Entry, entry: Entry, begun: bool) -> TrialLog:
        """Open a trial in the store, unless a call that was cut short has done so."""
        self._enter(header)
        record = TrialRecord(**entry["record"])
        if begun or entry["doubtful"]:
            record = replace(record, run_id=self._find(header["sweep"], record))
        journal.note(opening=True)
        with self._at(entry["time"]):
            log = self.tracker.open_trial(entry["title"], record)
        journal.note(run=log.run_id)
        return log

    def _enter(self, header: Entry) -> None:
        """See that the tracker is at the trial's sweep, in the store that it was meant for."""
        name, parent = header["sweep"], header["parent"]
        if self._entered != parent and not self._sweep and name in self.tracker.find_sweeps():
            self._entered = self.tracker.open_sweep(name, {})
        if self._entered != parent:
            raise MmxError(f"the trial belongs to sweep '{name}' of {header['store'] or 'another store'}")

    def _find(self, sweep: str, record: TrialRecord) -> str:
        """Give the run that an earlier opening of the trial left, empty: none."""
        for known in (self.tracker.running, self.tracker.records):
            for other in known(sweep):
                if all(getattr(other, key) == getattr(record, key) for key in IDENTITY):
                    return other.run_id
        return ""

    def _store_is_gone(self, began: float) -> bool:
        """Tell whether the store is gone; if not, one trial alone is what it does not take."""
        try:
            self.tracker.find_sweeps()
        except StoreError as error:
            self.lost(error, began)
        return bool(self._outage)

    def _tell(self) -> None:
        """Tell once that the store is gone, and once that it is back."""
        if bool(self._outage) == self._told:
            return
        self._told = bool(self._outage)
        message = "the result store answers again; what was kept is sent"
        if self._told:
            message = f"{self._outage}; results are kept in '{self.folder}' and sent once it is back"
        with contextlib.suppress(Stopped):  # a wish to stop is heard after the epoch
            self.told(message)

    def _wait(self, began: float) -> None:
        now = time.monotonic()
        self._due = now + max(self.every, SHARE * (now - began))

    @contextlib.contextmanager
    def _at(self, moment: float) -> Iterator[None]:
        """Have the tracker log with the time of the call, whenever it is sent."""
        if not isinstance(self.tracker, Clocked):
            yield
            return
        clock, self.tracker.clock = self.tracker.clock, lambda: moment
        try:
            yield
        finally:
            self.tracker.clock = clock


class SpooledLog(TrialLog):
    """A trial's log; `log` is the store's own, `journal` where it writes instead."""

    def __init__(self, spool: Spooling, run_id: str = "", log: TrialLog | None = None) -> None:
        self.spool = spool
        self.log = log
        self.run_id = log.run_id if log else run_id
        self.journal: Journal | None = None

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log values."""
        self._do({"do": "metrics", "values": {k: float(v) for k, v in values.items()}, "step": int(step)})

    def artifact(self, path: Path) -> None:
        """Keep a file (OSError where it cannot be read)."""
        path.open("rb").close()
        self._do({"do": "artifact"}, path)

    def data(self, name: str, split: str, digest: str, facts: Mapping[str, Any]) -> None:
        """Note which data were used."""
        self._do({"do": "data", "name": name, "split": split, "digest": digest, "facts": dict(facts)})

    def end(self, state: str, reason: str, tags: Mapping[str, str]) -> None:
        """End the trial."""
        self._do({"do": "end", "state": state, "reason": reason, "tags": dict(tags)})

    def _do(self, what: Entry, file: Path | None = None) -> None:
        """Call the store; once a call was kept here, later ones are too, until all is sent."""
        entry = {**what, "time": time.time()}
        spool = self.spool
        with spool.lock:
            if spool.answers() and self.journal is None:
                began = time.monotonic()
                try:
                    self.log = self.log or spool.tracker.reopen(self.run_id)
                    spool.apply(self.log, entry, file)
                    return
                except StoreError as error:
                    spool.lost(error, began)
            spool.keep(self, entry, file)


def _nobody(message: str) -> None:
    del message


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Change every text in plain data, keys excepted."""
    if isinstance(value, dict):
        return {key: _each_text(inner, change) for key, inner in value.items()}
    return change(value) if isinstance(value, str) else value
