import contextlib
import io
import json
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from exlstm import cli
from exlstm.data.series import read_series
from exlstm.models.forecaster import Forecaster
from exlstm.models.forecasting import RECIPE
from exlstm.tasks import conclusion, forecast, forecast_data
from exlstm.tasks.forecast_data import Split, choose_split
from exlstm.tasks.runs import Run
from exlstm.train.progress import Display

SMALL = ["--model.pattern", "m", "--model.width", "16", "--device", "cpu"]
HORIZON, WINDOWS = 5, 3


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run(*words: object) -> Outcome:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main([str(word) for word in words])
    return Outcome(code, out.getvalue(), err.getvalue())


def train(folder: Path, *words: object, data: str = "data.csv", steps: int = 4) -> Outcome:
    given = ["--horizon", HORIZON, "--test-windows", WINDOWS, "--steps", steps, *SMALL, *words]
    return run("train", "forecast", "--data", data, "--out", folder, *given)


def write_data(path: Path, *, days: int = 120) -> pd.DataFrame:
    random = np.random.default_rng(20260103)
    times = pd.date_range("2024-01-01", periods=days, freq="D")
    week = 10 + 3 * np.sin(2 * np.pi * np.arange(days) / 7)
    tables = [
        pd.DataFrame({"unique_id": name, "ds": times, "y": level * (week + random.normal(size=days))})
        for name, level in (("north", 1.0), ("south", 20.0))
    ]
    frame = pd.concat(tables, ignore_index=True)
    frame.to_csv(path, index=False)
    return frame


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    write_data(folder / "data.csv")
    return folder


@pytest.fixture(autouse=True)
def inside(workplace, monkeypatch) -> None:
    monkeypatch.chdir(workplace)


@pytest.fixture(scope="module")
def trained(workplace) -> Outcome:
    with contextlib.chdir(workplace):
        outcome = train(Path("run"))
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture
def finished(trained) -> Path:
    return Path("run")


def scores_of(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def test_run_folder_holds_everything(finished):
    for name in ("config.json", "metrics.jsonl", "scores.json", "forecasts.csv", "report.html"):
        assert (finished / name).stat().st_size > 0
    for name in ("checkpoints", "tensorboard", "model"):
        assert any((finished / name).iterdir())
    assert {"config.json", "model.safetensors"} <= {path.name for path in (finished / "model").iterdir()}


def test_scores_hold_the_model_and_both_baselines(finished):
    scores = scores_of(finished)
    assert list(scores) == ["split", "model", "baselines", "data", "seconds", "peak_bytes"]
    assert list(scores["baselines"]) == ["seasonal_naive", "ridge"]
    for values in (scores["model"], *scores["baselines"].values()):
        assert list(values) == ["MASE", "MAE", "sMAPE", "CRPS", "coverage80"]
        assert all(np.isfinite(value) for value in values.values())
    assert scores["data"]["horizon"] == HORIZON
    assert scores["data"]["windows"] == WINDOWS
    assert scores["seconds"] > 0


def test_scores_are_printed_and_progress_goes_to_the_standard_error(trained, finished):
    scores = scores_of(finished)
    for name in ("model", "seasonal naive", "ridge"):
        assert re.search(rf"^{name} ", trained.out, re.MULTILINE)
    assert f"{scores['model']['MASE']:.3f}" in trained.out
    assert "step" not in trained.out
    assert "step" in trained.err
    assert "data: 2 series, 240 steps, frequency D" in trained.err


def test_forecasts_are_kept_with_what_they_were_scored_against(finished):
    table = pd.read_csv(finished / "forecasts.csv")
    assert len(table) == 2 * WINDOWS * HORIZON
    scores = scores_of(finished)
    for column, values in {"q0.5": scores["model"], **scores["baselines"]}.items():
        # Written with seven digits of values below 300.
        assert (table["y"] - table[column]).abs().mean() == pytest.approx(values["MAE"], abs=1e-4)


def test_held_out_windows_follow_one_another_to_the_end_of_the_data(finished):
    table = pd.read_csv(finished / "forecasts.csv", parse_dates=["ds", "cutoff"])
    end = pd.date_range(end="2024-04-29", periods=WINDOWS * HORIZON, freq="D")
    for _, rows in table.groupby("unique_id"):
        assert list(rows["ds"]) == list(end)
        assert (rows["ds"] > rows["cutoff"]).all()


def test_report_shows_scores_pictures_and_the_command_and_needs_no_network(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == page.count("<svg") >= 6
    assert f"{scores_of(finished)['model']['MASE']:.3f}" in page
    assert "--horizon 5 --test-windows 3" in page
    assert not re.search(r'(src|href)="(?!#)', page)


def test_evaluating_again_gives_the_same_scores_from_any_folder(finished, trained, tmp_path, monkeypatch):
    before, folder = scores_of(finished), finished.absolute()
    (finished / "report.html").unlink()
    monkeypatch.chdir(tmp_path)
    again = run("evaluate", folder, "--device", "cpu")
    assert again.code == 0
    assert scores_of(folder) == before
    assert again.out.splitlines()[:-1] == trained.out.splitlines()[:-1]
    assert (folder / "report.html").is_file()


def test_same_seed_gives_the_same_scores_and_another_seed_does_not(finished):
    assert train(Path("same")).code == 0
    assert scores_of(Path("same"))["model"] == scores_of(finished)["model"]
    assert train(Path("other"), "--seed", 1).code == 0
    assert scores_of(Path("other"))["model"] != scores_of(finished)["model"]


def test_predictions_follow_the_data_of_the_run(finished):
    outcome = run("predict", finished, "--device", "cpu")
    assert outcome.code == 0
    table = pd.read_csv(io.StringIO(outcome.out), parse_dates=["ds"])
    assert list(table.columns) == ["unique_id", "ds", *(f"q{level / 10:g}" for level in range(1, 10))]
    for _, rows in table.groupby("unique_id"):
        assert list(rows["ds"]) == list(pd.date_range("2024-04-30", periods=HORIZON, freq="D"))
    assert (np.diff(table.filter(like="q0").to_numpy(), axis=1) >= 0).all()


def test_predictions_follow_a_file_for_any_horizon_and_go_where_they_are_told(finished):
    write_data(Path("longer.csv"), days=140)
    outcome = run("predict", finished, "longer.csv", "--out", "out/next.parquet", "--horizon", 12, "--device", "cpu")
    assert outcome.code == 0
    assert outcome.out == "forecasts of 2 series, 12 steps each: out/next.parquet\n"
    table = pd.read_parquet("out/next.parquet")
    assert len(table) == 2 * 12
    assert table["ds"].min() == pd.Timestamp("2024-05-20")
    assert [path.name for path in Path("out").iterdir()] == ["next.parquet"]


def test_interrupted_run_says_how_to_go_on_and_ends_as_if_it_had_not_been(monkeypatch):
    update = Display.update

    def interrupting(self, step, *args):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        update(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "update", interrupting)
        outcome = train(Path("cut"), steps=8)
    assert outcome.code == 130
    assert "exlstm train forecast --resume --out cut" in outcome.err
    assert outcome.out == ""
    unfinished = run("evaluate", "cut")
    assert unfinished.code == 2
    assert "exlstm train forecast --resume --out cut" in unfinished.err

    assert run("train", "forecast", "--resume", "--out", "cut").code == 0
    assert train(Path("whole"), steps=8).code == 0
    assert scores_of(Path("cut"))["model"] == scores_of(Path("whole"))["model"]


def test_interrupt_during_the_evaluation_says_how_to_go_on(monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forecast_data, "write_table", interrupt)
        outcome = train(Path("late"))
    assert outcome.code == 130
    assert "exlstm train forecast --resume --out late" in outcome.err
    assert run("train", "forecast", "--resume", "--out", "late").code == 0


def test_nothing_is_lost_when_the_report_fails(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no paper")

    monkeypatch.setattr(conclusion, "write_report", fail)
    with pytest.raises(RuntimeError, match="no paper"):
        train(Path("unreported"))
    assert scores_of(Path("unreported"))["model"]
    assert (Path("unreported") / "forecasts.csv").is_file()
    assert run("predict", "unreported", "--device", "cpu").code == 0


def test_changed_data_are_noticed(finished):
    write_data(Path("changing.csv"))
    assert train(Path("changed"), data="changing.csv").code == 0
    write_data(Path("changing.csv"), days=130)
    outcome = run("evaluate", "changed", "--device", "cpu")
    assert outcome.code == 0
    assert "is not what it was when the model was trained" in outcome.err
    assert "data_digest" in run("train", "forecast", "--resume", "--out", "changed").err


def test_any_two_columns_will_do():
    frame = write_data(Path("any.csv")).query("unique_id == 'north'")
    frame.drop(columns="unique_id").rename(columns={"ds": "day", "y": "sales"}).to_csv("any.csv", index=False)
    outcome = train(Path("two"), data="any.csv", steps=1)
    assert outcome.code == 0
    assert "read column 'day' as the time and 'sales' as the value" in outcome.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--data nothere.csv", "there is no file nothere.csv"),
        ("--data .", r"\. is a directory"),
        ("--data data.xlsx", r"expected a \.csv, .* received data\.xlsx"),
        ("--data data.csv --target sales", "no column 'sales' among .* name yours with --id-column, --time-column or"),
        ("--data data.csv --future y", "column 'y' is named for two purposes"),
        ("--data data.csv --frequency fortnight", "frequency 'fortnight' is not known"),
        ("--data data.csv --horizon 0", "expected --horizon to be at least 1, got 0"),
        ("--data data.csv --test-windows -1", "expected --test-windows to be at least 1, got -1"),
        ("--data data.csv --horizon 100", "the longest series has 120 steps, too few to hold out 1 x 100"),
        ("--data data.csv --steps 0", "expected steps to be at least 1, got 0"),
        ("--data data.csv --steps none", "training would never end"),
        ("--data data.csv --device gpu", "there is no device 'gpu' here; --device can be auto or cpu"),
        ("--data data.csv --model.pattern mmq", "pattern must be letters .* got 'mmq'"),
        ("--data data.csv --model.pattern (mm", "pattern must be letters"),
        ("--data data.csv --model.width 0", "width"),
        ("--data data.csv --out data.csv", "expected a folder for the run, got data.csv"),
        ("--data data.csv --out .", "is not empty and not a run"),
        ("--resume --out nowhere", "expected the folder of a run, got nowhere, which does not exist"),
    ],
)
def test_unusable_input_gets_one_sentence_and_leaves_no_run_behind(words, sentence):
    outcome = run("train", "forecast", *words.split())
    assert outcome.code == 2
    assert re.search(rf"^error: .*{sentence}.*\n\Z", outcome.err)
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("predict run --out next.json", r"expected --out to end in \.csv or \.parquet, got next\.json"),
        ("predict run data.csv --out data.csv", "--out would overwrite the data it forecasts, data.csv"),
        ("predict run --out data.csv", "--out would overwrite the data it forecasts, data.csv"),
        ("predict run nothere.csv", "there is no file nothere.csv"),
        ("predict run --horizon 0", "expected --horizon to be at least 1, got 0"),
        ("predict run --horizn 3", "predict has no option --horizn; did you mean --horizon?"),
        ("evaluate run --device cuda:77", "there is no device 'cuda:77' here"),
        ("train forecast --data data.csv --out run", "run already holds a run of the task 'forecast': resume it"),
        ("train forecast --resume --out run --seed 9", r"other options \(seed: was 0, now 9\); start a new run"),
    ],
)
def test_wrong_use_of_a_run_gets_one_sentence_and_changes_nothing(finished, words, sentence):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    outcome = run(*words.split())
    assert outcome.code == 2
    assert re.search(rf"^error: .*{sentence}", outcome.err)
    assert outcome.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"} == before


def test_resuming_names_no_run_twice(finished):
    """A finished run that is resumed trains no further and is scored again."""
    before = scores_of(finished)["model"]
    outcome = run("train", "forecast", "--resume", "--out", finished)
    assert outcome.code == 0
    assert scores_of(finished)["model"] == before
    assert Run.open(finished).config["resumed"]


def daily(*lengths: int):
    times = pd.date_range("2024-01-01", periods=max(lengths), freq="D")
    tables = [pd.DataFrame({"unique_id": n, "ds": times[:n], "y": np.arange(float(n))}) for n in lengths]
    return read_series(pd.concat(tables))


def test_a_run_that_never_began_leaves_no_folder_behind(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise ValueError("too little to learn from")

    monkeypatch.setitem(refuse.__globals__, "__name__", "exlstm.models.somewhere")
    monkeypatch.setattr(Forecaster, "fit", refuse)
    outcome = train(Path("never"))
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == "error: too little to learn from"
    assert not Path("never").exists()


def test_defaults_are_those_of_the_forecaster():
    options, config = forecast.Train(), Forecaster().config
    assert (options.model.pattern, options.model.width) == (config.pattern, config.width)
    assert options.steps == RECIPE.steps


@pytest.mark.parametrize(
    ("lengths", "horizon", "windows", "split"),
    [
        ((365,), None, None, Split(7, 8)),
        ((50,), None, None, Split(5, 1)),
        ((12,), None, None, Split(1, 2)),
        ((365,), 30, None, Split(30, 2)),
        ((365,), None, 3, Split(7, 3)),
        ((10_000,), 1, None, Split(1, 100)),
        ((100, 365, 400), None, None, Split(7, 8)),
    ],
)
def test_a_sixth_of_the_typical_series_is_held_out(lengths, horizon, windows, split):
    assert choose_split(daily(*lengths), horizon, windows) == split


def test_the_sample_is_split_as_its_published_scores_are():
    assert choose_split(read_series(forecast_data.sample("electricity"))) == Split(48, 14)
