"""Predictions for new tables are those of the evaluation, and nothing that cannot be read is guessed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mmx.cli.app import app
from mmx.contracts import Pattern
from mmx.data import Split
from mmx.errors import InputError
from mmx.evaluate import pattern_name, predict_patterns
from mmx.protocols import all_patterns
from mmx.runs import open_run
from mmx.runs.files import read_file
from mmx.runs.predictor import ModelFacts, Predictor, predictions, predictor_of
from mmx.runs.table import Input, read_table
from mmx.sweep import Plan
from mmx.tasks import MultiLabel, Regression, SingleLabel

SOUND, PICTURE = Input("audio", (3,), "float32"), Input("image", (2, 2), "uint8")
INPUTS = {"image": PICTURE, "audio": SOUND}


def table_of(split: Split, pattern: Pattern, rows: list[int]) -> pd.DataFrame:
    """Lay rows of a split out as a user would, as if only a pattern's modalities were there."""
    batch = split.batch(torch.tensor(rows), split.natural)
    cells = {
        m: pd.Series(
            [
                v.tolist() if m in pattern and has else None
                for v, has in zip(t, batch.presence[m], strict=True)
            ],
            dtype=object,
        )
        for m, t in batch.inputs.items()
    }
    return pd.DataFrame({"id": batch.ids, **cells})


def outputs_of(table: pd.DataFrame) -> np.ndarray:
    return table[[c for c in table.columns if c.startswith("output_")]].to_numpy()


@pytest.fixture(scope="module")
def predictor(finished: Any) -> Predictor:
    return predictor_of(
        open_run(finished.tracker, finished.tracker.records("toy")[0].run_id), finished.plan.bench
    )


# ------------------------------------------------------------------------------------------- predictions


def test_predictions_are_those_of_the_evaluation_for_every_pattern(finished: Any) -> None:
    for record in finished.tracker.records("toy"):
        run = open_run(finished.tracker, record.run_id)
        stored, _, name = run.stored
        split = finished.plan.bench.split(run.spec, name)
        own = predictor_of(run, finished.plan.bench)
        for pattern, outputs in stored.outputs.items():
            found = own.predict(table_of(split, pattern, list(range(len(split)))))
            assert list(found["id"]) == split.ids
            np.testing.assert_allclose(outputs_of(found), outputs, atol=1e-6)
            assert list(found["prediction"]) == outputs.argmax(axis=1).tolist()
            assert set(found["present"]) == {pattern_name(pattern, split.modalities)}


def test_rows_of_different_patterns_in_one_table_do_not_see_each_other(
    finished: Any, predictor: Predictor
) -> None:
    run = open_run(finished.tracker, finished.tracker.records("toy")[0].run_id)
    split = finished.plan.bench.split(run.spec, "test")
    parts = [table_of(split, p, [0, 1, 2]) for p in all_patterns(split.modalities)]
    mixed = pd.concat(parts).sample(frac=1, random_state=0)
    together = predictor.predict(mixed)
    alone = pd.concat([predictor.predict(mixed.iloc[[i]]) for i in range(len(mixed))])
    assert list(together["present"]) == list(alone["present"]) and set(together["present"]) == {
        "m0", "m1", "m0.m1"
    }  # fmt: skip
    np.testing.assert_allclose(outputs_of(together), outputs_of(alone), atol=1e-6)
    assert list(together.index) == list(mixed.index)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "dataset.modality_count": 3,
            "encoders.m2": "mlp",
            "fusion": "transformer",
            "strategy": "mask_token",
        },
        {"dataset.natural_missing": 0.4, "strategy": "mean_fill"},
        {"dataset": "digits", "encoders": {"image": "tiny_vit", "audio": "tiny_ast"}, "strategy": "prompt"},
    ],
    ids=["three modalities", "natural absence", "prompts by pattern"],
)
def test_model_of_any_shape_predicts_as_it_is_evaluated(
    plan_toy: Callable[..., Plan], changes: dict[str, Any]
) -> None:
    plan = plan_toy({**changes, "missing.eval.targets": ["any"]})
    spec, bench = plan.cells[0].spec, plan.bench
    split, model = bench.split(spec, "test"), bench.model(spec).eval()
    facts = ModelFacts.of(spec, bench)
    evaluated = predict_patterns(model, split, torch.device("cpu"))
    for pattern, outputs in evaluated.outputs.items():
        rows = evaluated.has(pattern).nonzero()[0]
        found = Predictor(model, facts.task, facts.inputs).predict(table_of(split, pattern, rows.tolist()))
        np.testing.assert_allclose(outputs_of(found), outputs[rows], atol=1e-6)


def test_absent_modalities_are_never_encoded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encoder = predictor.model.encoders["m0"]
    hook = encoder.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    try:
        predictor.predict(pd.DataFrame({"m0": [None, [1.0] * 16, None], "m1": [[1.0] * 16] * 3}))
        predictor.predict(pd.DataFrame({"m1": [[1.0] * 16] * 3}))
    finally:
        hook.remove()
    assert seen == [1]


def test_table_without_rows_gives_none(predictor: Predictor) -> None:
    assert len(predictor.predict(pd.DataFrame({"m0": pd.Series([], dtype=object)}))) == 0


def test_numbers_too_large_for_the_model_are_told(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="row 1: its numbers are so large"):
        predictor.predict(pd.DataFrame({"m0": [[1.0] * 16, [3e38] * 16]}))


@pytest.mark.parametrize(
    ("task", "expected"),
    [(SingleLabel(2), [0, 1]), (MultiLabel(2), [[0], [0, 1]]), (Regression(2), [[0.6, 0.4], [0.51, 0.9]])],
    ids=["class", "labels", "values"],
)
def test_prediction_says_what_the_outputs_mean(task: Any, expected: list[Any]) -> None:
    assert predictions(np.asarray([[0.6, 0.4], [0.51, 0.9]]), task) == expected


def test_prediction_of_one_value_is_that_value() -> None:
    assert predictions(np.asarray([[0.6], [-2.0]]), Regression(1)) == [0.6, -2.0]


# --------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    "cell",
    [
        [[1, 2], [3, 4]],
        [1, 2, 3, 4],
        [1.0, 2.0, 3.0, 4.0],
        np.asarray([[1, 2], [3, 4]], dtype=np.uint8),
        np.asarray([np.asarray([1, 2]), np.asarray([3, 4])]),
        np.array([np.asarray([1, 2]), np.asarray([3, 4]), None], dtype=object)[:2],
        ((1, 2), (3, 4)),
    ],
    ids=["nested", "flat", "floats", "array", "arrays", "as Parquet gives it", "tuples"],
)
def test_cell_may_be_nested_flat_or_an_array(cell: Any) -> None:
    rows = read_table(pd.DataFrame({"image": pd.Series([cell], dtype=object)}), INPUTS)
    assert torch.equal(rows.inputs["image"], torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8))
    assert rows.presence["image"].tolist() == [True] and rows.presence["audio"].tolist() == [False]


@pytest.mark.parametrize("null", [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT], ids=repr)
def test_null_cell_is_an_absent_modality(null: Any) -> None:
    cells = pd.Series([null, [1, 2, 3]], dtype=object)
    rows = read_table(pd.DataFrame({"audio": cells, "image": [[1, 2, 3, 4]] * 2}), INPUTS)
    assert rows.presence["audio"].tolist() == [False, True]
    assert rows.inputs["audio"].tolist() == [[0, 0, 0], [1, 2, 3]]


BAD: dict[str, tuple[Any, str]] = {
    "too short": ([1, 2], r"row 1, column 'audio': has shape \[2\], wanted \[3\]"),
    "too deep": ([[1], [2], [3]], r"has shape \[3, 1\]"),
    "empty": ([], r"has shape \[0\]"),
    "number": (3.5, r"has shape \[\]"),
    "text": ("loud", "is text .'loud'. where numbers are wanted"),
    "path": ("sound.npy", "is text"),
    "bytes": (b"123", "is text"),
    "text in a list": ([1, "2", 3], "something else than numbers"),
    "null in a list": ([1, None, 3], "something else than numbers"),
    "mapping": ({"a": 1}, "something else than numbers"),
    "truth": ([True, False, True], "something else than numbers"),
    "complex": ([1j, 2, 3], "something else than numbers"),
    "ragged": ([[1], [2, 3]], "differ in length"),
    "infinite": ([1, float("inf"), 3], "NaN or infinite"),
    "NaN in a list": ([1, float("nan"), 3], "NaN or infinite"),
    "too large": ([1, 1e39, 3], "too large for float32"),
    "huge": ([1, 10**400, 3], "numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_cell_is_told_with_its_row_and_column(case: str) -> None:
    cell, told = BAD[case]
    cells = pd.Series([[1, 2, 3], cell], dtype=object)
    with pytest.raises(InputError, match=told):
        read_table(pd.DataFrame({"audio": cells}), INPUTS)


@pytest.mark.parametrize("cell", [[1, 2, 3, 4.5], [1, 2, 3, 256], [1, 2, 3, -1]], ids=str)
def test_number_that_the_type_cannot_hold_is_told(cell: list[float]) -> None:
    with pytest.raises(InputError, match="are no uint8"):
        read_table(pd.DataFrame({"image": [cell]}), INPUTS)


def test_large_whole_number_is_kept_to_the_last_digit() -> None:
    tokens = {"text": Input("text", (2,), "int64")}
    rows = read_table(pd.DataFrame({"text": [[2**53 + 1, -3]]}), tokens)
    assert rows.inputs["text"].tolist() == [[2**53 + 1, -3]]
    with pytest.raises(InputError, match="are no int64"):
        read_table(pd.DataFrame({"text": [[2**63, 0]]}), tokens)


def test_rows_without_any_modality_are_named() -> None:
    cells = pd.Series([[1, 2, 3], None, [1, 2, 3], None], dtype=object)
    with pytest.raises(InputError, match="rows 1, 3: no modality at all"):
        read_table(pd.DataFrame({"audio": cells}), INPUTS)


def test_only_the_first_bad_rows_are_named() -> None:
    with pytest.raises(InputError, match=r"row 4.*; and 95 more$") as told:
        read_table(pd.DataFrame({"audio": ["x"] * 100}), INPUTS)
    assert "row 5" not in str(told.value)


def test_columns_that_cannot_be_meant_are_told() -> None:
    good = [[1, 2, 3]]
    with pytest.raises(
        InputError, match=r"column 'adio' is neither a modality nor 'id'.*Did you mean 'audio'"
    ):
        read_table(pd.DataFrame({"adio": good, "image": [None]}), INPUTS)
    with pytest.raises(InputError, match="none of the columns image, audio"):
        read_table(pd.DataFrame({"id": ["a"]}), INPUTS)
    with pytest.raises(InputError, match="'audio' stands in the table more than once"):
        read_table(pd.DataFrame([[good[0], good[0]]], columns=["audio", "audio"]), INPUTS)


# ------------------------------------------------------------------------------------------------- files


def write(path: Path, table: pd.DataFrame) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.map(lambda c: json.dumps(c) if isinstance(c, list) else c).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_table_is_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    image = pd.Series([[[1, 2], [3, 4]], None], dtype=object)
    audio = pd.Series([None, [0.25, -1e-3, 3.0]], dtype=object)
    table = pd.DataFrame({"id": ["2020-01-01", "NA"], "image": image, "audio": audio})
    rows = read_table(read_file(write(tmp_path / f"t.{suffix}", table), INPUTS), INPUTS)
    expected = read_table(table, INPUTS)
    assert rows.ids == ["2020-01-01", "NA"]
    for m in INPUTS:
        assert torch.equal(rows.inputs[m], expected.inputs[m])
        assert torch.equal(rows.presence[m], expected.presence[m])


def test_csv_cell_may_be_an_array_file_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    np.save(tmp_path / "sounds" / "a.npy", np.arange(3.0))
    (tmp_path / "t.csv").write_text("audio\nsounds/a.npy\n", encoding="utf-8")
    rows = read_table(read_file(tmp_path / "t.csv", INPUTS), INPUTS)
    assert rows.inputs["audio"].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("way", ["up", "absolute", "link"])
def test_array_file_outside_of_the_tables_folder_is_refused(tmp_path: Path, way: str) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "secret.npy", np.arange(3.0))
    (tmp_path / "in" / "link.npy").symlink_to(tmp_path / "secret.npy")
    cell = {"up": "../secret.npy", "absolute": str(tmp_path / "secret.npy"), "link": "link.npy"}[way]
    (tmp_path / "in" / "t.csv").write_text(f"audio\n{cell}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"row 0, column 'audio': .* outside of the table's folder"):
        read_file(tmp_path / "in" / "t.csv", INPUTS)


def test_array_file_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asarray([{}, 1, 2], dtype=object), allow_pickle=True)
    (tmp_path / "t.csv").write_text("audio\na.npy\nb.npy\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"'a\.npy' cannot be read.*allow_pickle.*row 1.*'b\.npy' cannot be read"
    ):
        read_file(tmp_path / "t.csv", INPUTS)


FILES = {
    "t.txt": ("x", "is no table that can be read"),
    "t.csv": ("audio\n1;2;3\n", "row 0, column 'audio': '1;2;3' is neither a JSON list nor the path"),
    "u.csv": ("adio\n[1]\n", "Did you mean 'audio'"),
    "t.jsonl": ("{'audio': 3}\n", "cannot be read as jsonl"),
    "u.jsonl": ("[1, 2, 3]\n", "line 1: is no JSON object"),
    "t.parquet": ("x", "cannot be read as parquet"),
    "e.csv": ("", "cannot be read as csv"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    text, told = FILES[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_file(tmp_path / name, INPUTS)


# ----------------------------------------------------------------------------------------------- command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    cells = {"m0": [[1.0] * 16, None, [0.5] * 16], "m1": [[0.5] * 16, [1.0] * 16, None]}
    table = pd.DataFrame({"id": ["a", "b", "c"], **{m: pd.Series(c, dtype=object) for m, c in cells.items()}})
    return write(tmp_path / "data.jsonl", table)


@pytest.fixture
def mmx_predict(
    finished: Any, data: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    run = finished.tracker.records("toy")[0].run_id

    def call(*options: str) -> tuple[int, str]:
        given = ["predict", run, str(data), "--store", finished.address, *options]
        code = app(given, standalone_mode=False)
        return code, capsys.readouterr().out

    return call


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_command_writes_what_it_prints_as_json(
    mmx_predict: Callable[..., tuple[int, str]], tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out.{suffix}"
    code, text = mmx_predict("--json", "--out", str(out))
    written = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    told = pd.DataFrame(json.loads(text))
    assert (
        code == 0 and list(told["present"]) == ["m0.m1", "m1", "m0"] and list(told["id"]) == ["a", "b", "c"]
    )
    pd.testing.assert_frame_equal(written, told, check_dtype=False)


def test_command_prints_the_rows(mmx_predict: Callable[..., tuple[int, str]]) -> None:
    code, text = mmx_predict()
    assert code == 0 and "prediction" in text and "m0.m1" in text


def test_folder_that_is_no_model_is_told(data: Path) -> None:
    with pytest.raises(InputError, match="is no exported model"):
        app(["predict", str(data.parent), str(data)], standalone_mode=False)


def test_command_refuses_where_it_cannot_write(
    mmx_predict: Callable[..., tuple[int, str]], data: Path
) -> None:
    with pytest.raises(InputError, match=r"ends in none of \.parquet, \.csv"):
        mmx_predict("--out", "out.xlsx")
    data.rename(data.with_suffix(".csv"))
    with pytest.raises(InputError, match="there is no file"):
        mmx_predict("--out", str(data.parent / "nowhere" / "out.csv"))
