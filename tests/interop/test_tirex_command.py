"""`exlstm predict MODEL FILE` with converted weights."""

import io
import json
import shutil

import pandas as pd
import pytest

from exlstm import cli
from exlstm.data.samples import sample
from exlstm.interop import tirex
from exlstm.models.tirex import TirexForecaster
from tests.interop.tirex_cases import write


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a converted model and a CSV of demand."""
    folder = tmp_path_factory.mktemp("command")
    tirex.convert(write(folder / "model.ckpt"), folder / "tirex")
    frame = sample("electricity").tail(600).rename(columns={"ds": "time", "y": "load"})
    frame.to_csv(folder / "demand.csv", index=False)
    return folder


def run(*words):
    return cli.main([str(word) for word in words])


def test_it_forecasts_a_file(place, capsys):
    assert run("predict", place / "tirex", place / "demand.csv", "--time-column", "time", "--target", "load") == 0
    printed = capsys.readouterr()
    table = pd.read_csv(io.StringIO(printed.out), parse_dates=["time"])
    assert len(table) == 48  # a season of half-hours
    assert "licence of the weights: NXAI Community License" in printed.err
    expected = TirexForecaster.from_pretrained(place / "tirex").predict(
        place / "demand.csv", 48, time_column="time", target="load"
    )
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=1e-6)


def test_it_writes_a_table(place, capsys, tmp_path):
    words = ["--horizon", 5, "--time-column", "time", "--target", "load", "--frequency", "30min"]
    assert run("predict", place / "tirex", place / "demand.csv", *words, "--out", tmp_path / "out.parquet") == 0
    assert "forecasts of 1 series, 5 steps each" in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == 5


def test_a_licence_and_a_name_are_no_markup(place, capsys, tmp_path):
    shutil.copytree(place / "tirex", tmp_path / "tirex")
    config = tmp_path / "tirex" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"licence": "[/b] :cat: \x1b[2J"}))
    table = place / "demand.csv"
    words = ["--horizon", 5, "--time-column", "time", "--target", "load", "--frequency", "30min"]
    assert run("predict", tmp_path / "tirex", table, *words, "--out", tmp_path / "out.csv") == 0
    assert capsys.readouterr().err.startswith("licence of the weights: [/b] :cat: ?[2J\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "tirex"], "expected the series to forecast: exlstm predict tirex FILE"),
        (["predict", "tirex", "demand.csv"], "column"),
        (["predict", "tirex", "demand.csv", "--out", "x.txt"], "expected --out to end in .csv or .parquet"),
        (["predict", "tirex", "demand.csv", "--horizon", "0"], "expected --horizon to be at least 1"),
        (
            ["evaluate", "tirex"],
            "tirex is a model of the task 'zero-shot', which has no evaluate; exlstm predict uses it",
        ),
    ],
)
def test_a_mistake_ends_with_a_sentence(place, monkeypatch, capsys, words, message):
    monkeypatch.chdir(place)
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_options(place, capsys):
    with pytest.raises(SystemExit):
        run("predict", place / "tirex", "--help")
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--horizon", "--frequency", "--out", "FILE"))
