"""A run's folder holds everything, belongs to one process at a time and is not taken for another's."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import exlstm
from exlstm.tasks.runs import Run

OPTIONS = {"data": Path("demand.csv"), "seed": 4, "steps": 100, "model": {"pattern": "ms", "width": 32}}


def test_a_new_run_says_what_was_asked_for_and_where_it_ran(tmp_path: Path) -> None:
    with Run.create("forecast", OPTIONS, root=tmp_path) as run:
        assert run.path.parent == tmp_path / "forecast"
    found = Run.open(run.path)
    assert found.task == "forecast"
    assert found.options == {**OPTIONS, "data": "demand.csv"}
    assert found.config["seed"] == 4
    assert found.config["environment"]["torch"] == torch.__version__
    assert found.config["environment"]["exlstm"] == exlstm.__version__
    assert found.config["environment"]["threads"] == torch.get_num_threads()
    assert found.config["environment"].keys() >= {"python", "numpy", "platform"}
    assert {path.name for path in (found.metrics, found.checkpoints, found.model, found.report)} == {
        "metrics.jsonl",
        "checkpoints",
        "model",
        "report.html",
    }


def test_runs_begun_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    runs = [Run.create("forecast", OPTIONS, root=tmp_path) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert Run.latest("forecast", tmp_path).path == runs[-1].path
    with pytest.raises(ValueError, match="found none"):
        Run.latest("classify", tmp_path)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty and not a run"):
        Run.create("forecast", OPTIONS, out=tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]
    (tmp_path / "thesis.tex").unlink()
    Run.create("forecast", OPTIONS, out=tmp_path).close()
    with pytest.raises(ValueError, match="already holds a run of the task 'forecast': resume it or"):
        Run.create("forecast", OPTIONS, out=tmp_path)
    with pytest.raises(ValueError, match="already holds a run of the task 'forecast': choose"):
        Run.create("classify", OPTIONS, out=tmp_path)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="expected a folder"):
            Run.create("forecast", OPTIONS, out=path)


def test_a_run_killed_before_it_began_can_be_begun_again(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("123456")
    (tmp_path / ".config.json.123456.tmp").write_text("{")
    assert Run.create("forecast", OPTIONS, out=tmp_path).task == "forecast"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"task": "forecast", "options": 3, "resumed": []}'])
def test_what_is_not_a_run_is_refused_in_one_sentence(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        Run.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Run.open(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        Run.open(tmp_path / "file")


def test_a_run_resumes_with_the_same_options_or_another_length(tmp_path: Path) -> None:
    Run.create("forecast", OPTIONS, out=tmp_path).close()
    with Run.resume(tmp_path, "forecast", {**OPTIONS, "steps": 200, "resume": True}) as run:
        assert run.options["steps"] == 200
    assert len(Run.open(tmp_path).config["resumed"]) == 1
    with pytest.raises(ValueError, match=r"model\.width: was 32, now 64"):
        Run.resume(tmp_path, "forecast", {**OPTIONS, "model": {"pattern": "ms", "width": 64}})
    with pytest.raises(ValueError, match="it is a run of the task 'forecast'"):
        Run.resume(tmp_path, "classify", OPTIONS)
    assert Run.open(tmp_path).options["steps"] == 200


def test_two_processes_cannot_use_one_run_and_a_dead_ones_lock_is_free(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from exlstm.tasks.runs import Run\n"
        "run = Run.create('forecast', {}, out=Path(sys.argv[1])); print('ready', flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for begin in (
        lambda: Run.resume(tmp_path, "forecast", {}),
        lambda: Run.create("forecast", {}, out=tmp_path),
    ):
        with pytest.raises(ValueError, match=f"in use by process {process.pid}"):
            begin()
    assert Run.open(tmp_path).task == "forecast"
    process.kill()
    process.communicate()
    Run.resume(tmp_path, "forecast", {}).close()


def test_scores_are_read_back(tmp_path: Path) -> None:
    with Run.create("forecast", OPTIONS, out=tmp_path) as run:
        with pytest.raises(ValueError, match=r"scores\.json"):
            run.read_scores()
        run.write_scores(
            model={"MASE": 0.55, "MAE": float("nan")},
            baselines={"seasonal_naive": {"MASE": 0.888}},
            data={"series": 1},
            seconds=12.5,
            peak_bytes=10**9,
        )
    assert Run.open(tmp_path).read_scores() == {
        "split": "test",
        "model": {"MASE": 0.55, "MAE": None},
        "baselines": {"seasonal_naive": {"MASE": 0.888}},
        "data": {"series": 1},
        "seconds": 12.5,
        "peak_bytes": 10**9,
    }
