"""A line a trial, where the variable names a file."""

import json

from mmx_trial_journal import trial_ended

SPEC = {"strategy": {"name": "skip"}, "seed": 3}


def test_each_trial_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MMX_TRIAL_JOURNAL", str(tmp_path / "journal.jsonl"))
    trial_ended(SPEC, {"state": "done", "reason": "", "metrics": {"summary/clean": 0.5}})
    trial_ended(SPEC, {"state": "failed", "reason": "it fell"})
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [(line["state"], line["clean"]) for line in lines] == [("done", 0.5), ("failed", None)]


def test_nothing_is_written_where_nobody_asks(tmp_path, monkeypatch):
    monkeypatch.delenv("MMX_TRIAL_JOURNAL", raising=False)
    monkeypatch.chdir(tmp_path)
    trial_ended(SPEC, {"state": "done", "reason": ""})
    assert list(tmp_path.iterdir()) == []
