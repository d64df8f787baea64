"""Finds what dead workers left running, in both stores, and ends it, so that it can be carried on."""

from optuna.trial import FrozenTrial, TrialState

from mmx.contracts import Tracker, TrialRecord
from mmx.errors import StoreError
from mmx.sweep.claims import END, FAILED, FINISHED, KEY, REASON, RUN, TAGS
from mmx.sweep.study import Search
from mmx.worker import host_of, is_gone, this_worker

HOW = {"done": "was finished", "failed": "failed", "missing": "is to be carried on"}


def reclaim(search: Search, tracker: Tracker, thorough: bool = False) -> list[str]:
    """End the claims of workers that are gone, and their runs; give a line for each trial.

    `thorough` looks at the result store even where no claim was ended: a worker may have died in between.
    Runs are ended by a later call where that store cannot be reached now.
    """
    name = search.sweep.name
    ended: dict[str, str] = {}
    for study in search.names():
        claims = search.claims(study)
        ended |= {f"{study}#{number}": reason for number, reason in claims.reclaim().items()}
    if not ended and not thorough:
        return []
    try:
        running = tracker.running(name)
    except StoreError:
        return []
    # Read after the runs: the claim of a run is made before it.
    claims = search.claims()
    by_name = {claims.name_of(t.number): t for t in claims.refresh()}
    told = []
    for record in running:
        claim = by_name.get(record.claim)
        if claim is not None and claim.user_attrs.get(KEY) != f"{record.point}/{record.seed}":
            claim = None  # of a store that was deleted and begun anew
        state, reason = _verdict(record, claim, ended.get(record.claim, ""))
        if state:
            tags = dict(claim.user_attrs.get(TAGS, {})) if claim is not None and state == "done" else {}
            tracker.reopen(record.run_id).end(state, reason, tags)
            point = f"{record.point}, seed {record.seed}"
            told.append(f"{point}, {HOW[state]}: {reason or 'only its end was missing'}")
    return told


def _verdict(record: TrialRecord, claim: FrozenTrial | None, reason: str) -> tuple[str, str]:
    """Say how a run that is called running is to be ended; an empty state leaves it alone."""
    gone = is_gone(record.worker)
    lost = "missing", reason or f"its worker {record.worker} is gone"
    if claim is None or claim.state == TrialState.RUNNING:
        return lost if gone or (claim is None and record.claim) else ("", "")
    facts = claim.user_attrs
    if claim.state == TrialState.FAIL and END not in facts:  # it was taken from its worker
        return lost
    if not gone and host_of(record.worker) == host_of(this_worker()):
        return "", ""  # the worker is about to end it
    if claim.state in FINISHED and facts.get(RUN) != record.run_id:
        return "missing", "another worker finished its trial"
    state = "done" if claim.state in FINISHED else "failed" if facts[END] == FAILED else "missing"
    return state, facts.get(REASON, "") or ("" if state == "done" else lost[1])
