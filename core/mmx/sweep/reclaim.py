"""Finds what dead workers left running, in both stores, and ends it, so that it can be carried on."""

from optuna.trial import FrozenTrial, TrialState

from mmx.contracts import Tracker, TrialRecord
from mmx.sweep.claims import END, FINISHED, REASON, RUN, TAGS
from mmx.sweep.study import Search
from mmx.worker import host_of, is_gone, this_worker


def reclaim(search: Search, tracker: Tracker, thorough: bool = False) -> list[str]:
    """End the claims of workers that are gone, and their runs; give a line for each trial.

    `thorough` looks at the result store even where no claim was ended: a worker may have died in between.
    """
    name = search.sweep.name
    ended: dict[str, str] = {}
    for study in search.names():
        claims = search.claims(study)
        ended |= {f"{study}#{number}": reason for number, reason in claims.reclaim().items()}
    if not ended and not thorough:
        return []
    claims = search.claims()
    by_number = {f"{name}#{t.number}": t for t in claims.refresh()}
    told = []
    for record in tracker.running(name):
        state, reason = _verdict(record, by_number.get(record.claim), ended.get(record.claim, ""))
        if state:
            tags = dict(by_number[record.claim].user_attrs.get(TAGS, {})) if state == "done" else {}
            tracker.reopen(record.run_id).end(state, reason, tags)
            how = "was finished" if state == "done" else "is to be carried on"
            told.append(f"{record.point}, seed {record.seed}, {how}: {reason or 'only its end was missing'}")
    return told


def _verdict(record: TrialRecord, claim: FrozenTrial | None, reason: str) -> tuple[str, str]:
    """Say how a run that is called running is to be ended; an empty state leaves it alone."""
    # A claim that failed without a word was taken from its worker; else the worker is about to end its run.
    taken = claim is not None and claim.state == TrialState.FAIL and END not in claim.user_attrs
    gone = taken or is_gone(record.worker)
    elsewhere = host_of(record.worker) != host_of(this_worker())
    if claim is not None and claim.state in FINISHED and (gone or elsewhere):
        if claim.user_attrs.get(RUN) == record.run_id:
            return "done", claim.user_attrs.get(REASON, "")
        return "missing", "another worker finished its trial"
    if gone or (claim is None and record.claim):
        return "missing", reason or f"its worker {record.worker} is gone"
    return "", ""
