"""What a sweep was begun with, so that a file that says something else later is never mixed into it.

Values that are added to what the sweep varies (axes, methods, seeds, trials) extend it. Anything else that
numbers depend on makes a fork: a sweep of its own, with its own studies and its own experiment, named
`sweep@hash`. Data that changed under the same settings, and another objective, are refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna

from mmx.config import digest
from mmx.errors import InputError
from mmx.sweep.parameters import flat_parameters
from mmx.sweep.plan import Plan
from mmx.sweep.storage import patiently
from mmx.sweep.study import Search

SETTINGS = "mmx.settings"
DATA = "mmx.data"
FORK = "@"
PHASES = "training.phases"
Settings = dict[str, list[str]]
"""Flat key to the values that it takes in the sweep's cells."""


def settings_of(plan: Plan) -> Settings:
    """Collect what the cells say, and what is tuned."""
    found: dict[str, set[str]] = {}
    for cell in plan.cells:
        for key, value in flat_parameters(cell.spec).items():
            if key not in ("seed", "training.loader_workers"):
                told = "any" if key == "training.frozen_cache_gigabytes" else value
                found.setdefault(key, set()).add(told)
        for path, tuned in cell.raw.tune.items():
            told = json.dumps({k: v for k, v in tuned.items() if k != "when"}, sort_keys=True)
            found.setdefault(f"search.tune.{path}", set()).add(told)
    return {key: sorted(values) for key, values in sorted(found.items())}


def varied_paths(plan: Plan) -> list[str]:
    """List what the sweep varies, by the keys that trials log; with phases, all that any of them sets."""
    search = plan.sweep.search
    methods = [path for settings in search.methods.values() for path in settings]
    paths = [*search.axes, *search.tune, *methods]
    paths += [key for cell in plan.cells for item in cell.raw.assigned.items() for key in _of_phases(*item)]
    return sorted({p.removesuffix(".name").replace("encoders", "encoder", 1) for p in paths})


def _of_phases(path: str, value: Any) -> list[str]:
    """List what a setting of phases sets, as it is called outside: trials log that of the last phase."""
    if path == PHASES:
        return [key for phase in value or () for key in phase]
    return [path.split(".", 3)[3]] if path.startswith(f"{PHASES}.") and path.count(".") > 2 else []


def changes(before: Settings, now: Settings, varied: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Give what differs and is not varied: key to what it was and what it is ("nothing": it is not there)."""
    found = {}
    for key in sorted({*before, *now}):
        old, new = before.get(key, []), now.get(key, [])
        if old == new or len(old) > 1 or len(new) > 1 or _is_varied(key, varied):
            continue
        if (old and new) or not _hangs_on_varied(key, varied):
            found[key] = (old[0] if old else "nothing", new[0] if new else "nothing")
    return found


def _is_varied(key: str, varied: Sequence[str]) -> bool:
    """Tell whether a key, or the component or list that it belongs to, is varied."""
    return any(f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}.") for path in varied)


def _hangs_on_varied(key: str, varied: Sequence[str]) -> bool:
    """Tell whether a key may come and go with what is varied: an option of a part, say."""
    first = key.split(".", maxsplit=1)[0]
    return any(path.split(".", maxsplit=1)[0] == first for path in varied)


def settle(plan: Plan, search: Search, fresh: bool = False) -> dict[str, tuple[str, str]]:
    """Find the sweep or fork that the plan belongs to, and name plan and search by it.

    Gives what differs from the sweep that the name was first used for; nothing where it is that one.
    """
    name, now, varied = plan.sweep.name, settings_of(plan), varied_paths(plan)
    stored = stored_settings(search, name)
    if fresh or name not in stored:
        return {}
    before, paths = stored[name]
    different = changes(before, now, [*varied, *paths])
    if not different:
        return {}
    alike = (n for n, (was, kinds) in stored.items() if not changes(was, now, [*varied, *kinds]))
    new = f"{name}{FORK}{digest({k: v for k, (_, v) in different.items()})[:4]}"
    fork = next(alike, new)
    plan.sweep = replace(plan.sweep, name=fork)
    search.sweep = plan.sweep
    search.check_stored()
    return different


def stored_settings(search: Search, name: str) -> dict[str, tuple[Settings, list[str]]]:
    """Read what a sweep and its forks were begun with: settings, and what is varied."""
    found = {}
    for study in patiently(search.storage.get_all_studies):
        own = study.study_name == name or study.study_name.startswith(f"{name}{FORK}")
        if own and "/" not in study.study_name and SETTINGS in study.user_attrs:
            content = json.loads(study.user_attrs[SETTINGS])
            found[study.study_name] = (content["settings"], content["varied"])
    return dict(sorted(found.items()))


def keep_settings(plan: Plan, study: optuna.Study) -> None:
    """Write down what the sweep says now, beside what it said before."""
    now, varied = settings_of(plan), varied_paths(plan)
    if SETTINGS in study.user_attrs:
        content = json.loads(study.user_attrs[SETTINGS])
        varied = sorted({*varied, *content["varied"]})
        before = content["settings"]
        now = {k: sorted({*before.get(k, []), *now.get(k, [])}) for k in sorted({*before, *now})}
    text = json.dumps({"settings": now, "varied": varied})
    if study.user_attrs.get(SETTINGS) != text:
        study.set_user_attr(SETTINGS, text)


def check_data(plan: Plan, study: optuna.Study) -> None:
    """Refuse data that are not those that the sweep was begun with (InputError)."""
    known: dict[str, str] = dict(study.user_attrs.get(DATA, {}))
    for key, (name, found) in _data_digests(plan).items():
        if known.setdefault(key, found) != found:
            raise InputError(
                f"the data of dataset '{name}' are not those that the sweep '{plan.sweep.name}' was begun "
                f"with (digest {known[key]}, now {found}); put them back, give the sweep another name, or "
                f"run it anew with --fresh"
            )
    if known != study.user_attrs.get(DATA):
        study.set_user_attr(DATA, known)


def _data_digests(plan: Plan) -> Mapping[str, tuple[str, str]]:
    """Hash every different dataset of the sweep, all its splits."""
    found: dict[str, tuple[str, str]] = {}
    for cell in plan.cells:
        key = digest([cell.spec.to_dict()["dataset"], list(plan.bench.modalities(cell.spec))])
        if key not in found:
            found[key] = (cell.spec.dataset.name, plan.bench.data_digest(cell.spec))
    return found


def told(different: Mapping[str, tuple[str, str]], fork: str) -> str:
    """Tell a user of a fork."""
    name = fork.rpartition(FORK)[0]
    said = "; ".join(f"{key}: {old} before, {new} now" for key, (old, new) in different.items())
    return f"'{name}' was begun with other settings ({said}), so this is a sweep of its own: '{fork}'"
