"""Sweeps: plan, run, look."""

import contextlib
import shutil
from typing import Any

from mmx.contracts import Tracker
from mmx.errors import InputError, Stopped, StoreError
from mmx.report.standings import standings
from mmx.sweep.attempt import Watcher
from mmx.sweep.call import Call
from mmx.sweep.close import Result, close_sweep, describe_sweep, keep_log
from mmx.sweep.devices import device_names
from mmx.sweep.engine import Known
from mmx.sweep.facts import STATES, plan_facts
from mmx.sweep.limits import Limits, Stopping
from mmx.sweep.log import Logged
from mmx.sweep.places import (
    log_file,
    open_search,
    open_stores,
    open_tracker,
    spool_folder,
    sweep_folder,
    tracking_address,
)
from mmx.sweep.plan import Plan, plan_sweep
from mmx.sweep.reclaim import reclaim
from mmx.sweep.settings import check_data, keep_settings, settle, told
from mmx.sweep.spool import Spooling
from mmx.sweep.study import Search
from mmx.worker import this_worker


def run_sweep(
    plan: Plan,
    tracker: Tracker,
    device: str,
    watcher: Watcher,
    limits: Limits,
    fresh: bool = False,
) -> Result:
    """Run what is missing of a sweep and bring its parent run up to date.

    `device`: a name, several joined by commas, or auto. Raises Stopped where the user asked to stop: what was
    finished is kept, and what was begun is carried on by the next call from its last epoch.
    """
    search = open_search(plan)
    different = settle(plan, search, fresh)
    if different:
        watcher.told(told(different, plan.sweep.name))
    kept = Spooling(tracker, spool_folder(plan.sweep))
    if fresh:
        forget(plan, kept, search)
    main = search.study(plan.sweep.name)
    check_data(plan, main)
    keep_settings(plan, main)
    parent = kept.open_sweep(plan.sweep.name, {"mmx.objective": next(iter(plan.objective))})
    call, facts = _prepare(plan, kept, search, watcher, limits)
    describe_sweep(plan, kept.reopen(parent), facts)
    search.begin_call()
    try:
        with Stopping() as call.stopping:
            call.run(device_names(device))
    except BaseException:
        with contextlib.suppress(StoreError):  # what ended the call is told, not what came of it
            close_sweep(plan, kept)
        raise
    finally:
        search.heart.stop()
    kept.send()
    return close_sweep(plan, kept)


def join_sweep(plan: Plan, device: str, watcher: Watcher) -> None:
    """Work on a sweep that `mmx run` has begun, beside whoever else does, until nothing is left to claim.

    InputError where nobody has begun it. Raises Stopped where the user asked to stop.
    """
    search, tracker = open_stores(plan)
    different = settle(plan, search)
    if plan.sweep.name not in search.names():
        fork = f"{told(different, plan.sweep.name)}; " if different else ""
        advice = f"begin it with: mmx run {plan.sweep.source} --max-trials 0"
        raise InputError(f"{fork}nobody has begun the sweep '{plan.sweep.name}'; {advice}")
    check_data(plan, search.study(plan.sweep.name))
    parent = tracker.reopen(tracker.open_sweep(plan.sweep.name, {}))
    log = log_file(plan.sweep, this_worker().rpartition(":")[0].replace(":", "-"))
    call, _ = _prepare(plan, tracker, search, Logged.to(watcher, log), Limits())
    call.patient = False
    try:
        with Stopping() as call.stopping:
            call.run_here(device_names(device))
    finally:
        search.heart.stop()
        keep_log(parent, log)
    tracker.send()
    counts = plan_facts(plan, tracker.records(plan.sweep.name))["counts"]
    if not counts["missing"] and not counts["running"]:
        close_sweep(plan, tracker)


def _prepare(
    plan: Plan, tracker: Spooling, search: Search, watcher: Watcher, limits: Limits
) -> tuple[Call, dict[str, Any]]:
    """Catch up with what happened before, and see what there is to do; give the plan's facts too.

    What an earlier call could not send is sent, and what dead workers left running is ended.
    """
    plan.bench.folder = sweep_folder(plan.sweep)
    tracker.told = watcher.told
    sent = tracker.send()
    if sent.sent:
        watcher.told(f"{sent.sent} trial(s) that were kept on disk are now in the result store")
    for message in reclaim(search, tracker, thorough=True):
        watcher.told(message)
    records = tracker.records(plan.sweep.name)
    facts = plan_facts(plan, records)
    watcher.sweep_started(len(facts["points"]), facts["counts"]["done"])
    return Call(plan, tracker, search, watcher, limits, Known.of(records, plan.objective)), facts


def forget(plan: Plan, tracker: Tracker, search: Search) -> None:
    """Take everything that was run out of account."""
    for record in tracker.records(plan.sweep.name):
        tracker.retire(record)
    search.forget()
    shutil.rmtree(sweep_folder(plan.sweep), ignore_errors=True)


__all__ = [
    "STATES",
    "Known",
    "Limits",
    "Plan",
    "Result",
    "Stopped",
    "Watcher",
    "join_sweep",
    "open_search",
    "open_stores",
    "open_tracker",
    "plan_facts",
    "plan_sweep",
    "run_sweep",
    "settle",
    "standings",
    "told",
    "tracking_address",
]
