import os
import subprocess
import sys
from pathlib import Path

import pytest

from exlstm import __version__, cli, info
from exlstm.arguments import UsageError, flags
from exlstm.tasks import TASKS, forecast

ALL = ", ".join(TASKS)
COMMON = [
    "--data",
    "--out",
    "--steps",
    "--minutes",
    "--seed",
    "--device",
    "--resume",
    "--model.pattern",
    "--model.width",
    "--model.arch",
]


def run(*words: str) -> int:
    return cli.main(list(words))


def python(*words: str, code: str | None = None, **kwargs) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "exlstm"]
    return subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, **kwargs)


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "data.csv").write_text("ds,y\n2024-01-01,1\n")
    for name, text in {"broken": "{", "other": '{"a": 1}', "future": '{"task": "juggle"}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("trian", "exlstm has no command 'trian'; did you mean exlstm train?"),
        ("forecast", "exlstm has no command 'forecast'; did you mean exlstm train forecast?"),
        ("help", "exlstm has no command 'help'; did you mean exlstm --help?"),
        ("--hep", "exlstm has no option '--hep'; did you mean exlstm --help?"),
        ("zzz", "exlstm has no command 'zzz'; exlstm --help lists what there is"),
        ("train", f"exlstm train needs a task, one of: {ALL}"),
        ("train --data x.csv", f"exlstm train needs a task before its options, one of: {ALL}"),
        ("train forcast", "there is no task 'forcast'; did you mean exlstm train forecast?"),
        ("train juggle", f"there is no task 'juggle'; expected one of: {ALL}"),
        ("train forecast --horizn 3", "exlstm train forecast has no option --horizn; did you mean --horizon?"),
        (
            "train forecast data.csv",
            "exlstm train forecast takes no argument 'data.csv' here; did you mean --data data.csv?",
        ),
        ("train forecast --steps few", "exlstm train forecast: --steps: expected a whole number, got 'few'"),
        (
            "train forecast --model.arch mamba",
            "exlstm train forecast: --model.arch: expected 'xlstm', 'lstm', 'gru', 'transformer', got 'mamba'",
        ),
        ("train forecast --resume", "expected a run in runs/forecast, found none; name its folder with --out"),
        ("evaluate", "exlstm evaluate needs the folder of a run first, such as runs/forecast/..."),
        ("evaluate nowhere", "there is no folder nowhere; give the folder of a run, which exlstm train makes"),
        ("evaluate empty", "empty is not the folder of a run: it has no config.json"),
        ("evaluate data.csv", "data.csv is a file; give the folder of a run first, which exlstm train makes"),
        ("evaluate broken", "broken is not the folder of a run: its config.json is not a run's"),
        ("evaluate other", "other is not the folder of a run: its config.json is not a run's"),
        (
            "evaluate future",
            "future is a run of the task 'juggle', which this version of exlstm does not have",
        ),
        (
            "predict nowhere --horizon 3",
            "there is no folder nowhere; give the folder of a run, which exlstm train makes",
        ),
        ("predict --out x.csv", "exlstm predict needs the folder of a run first, such as runs/forecast/..."),
        ("info torch", "exlstm info takes no arguments, got 'torch'"),
    ],
)
def test_a_wrong_command_gets_one_sentence_and_exit_code_2(folders, capsys, words, sentence):
    assert run(*words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {sentence}\n"
    assert captured.out == ""


def test_the_flags_of_train_forecast_stay_what_they_are():
    assert flags(forecast.Train) == [
        *COMMON,
        "--horizon",
        "--test-windows",
        "--frequency",
        "--id-column",
        "--time-column",
        "--target",
        "--future",
        "--past",
        "--static",
    ]
    assert flags(forecast.Evaluate) == ["--device"]
    assert flags(forecast.Predict) == ["--out", "--device", "--horizon"]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_the_common_options_and_the_three_functions(task):
    module = cli._module(task)
    assert flags(module.Train)[: len(COMMON)] == COMMON
    assert {"--device"} <= set(flags(module.Evaluate)) & set(flags(module.Predict))
    assert all(callable(getattr(module, name)) for name in ("train", "evaluate", "predict"))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", ["train", "evaluate", "predict", "info"]),
        ("--help", ["train", "evaluate", "predict", "info"]),
        ("train --help", list(TASKS)),
        ("info --help", ["versions"]),
    ],
)
def test_help_is_printed_on_the_standard_output(capsys, words, found):
    assert run(*words.split()) == 0
    captured = capsys.readouterr()
    assert all(word in captured.out for word in found)
    assert captured.err == ""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("train forecast --help", [*COMMON, "--horizon", "electricity"]),
        ("evaluate --help", ["RUN", "--device"]),
        ("predict --help", ["RUN", "FILE", "--out"]),
    ],
)
def test_help_of_a_command_lists_its_options(capsys, words, found):
    with pytest.raises(SystemExit) as left:
        run(*words.split())
    assert not left.value.code
    output = capsys.readouterr().out
    assert all(word in output for word in found)


def test_version_is_printed(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"exlstm {__version__}\n"


def test_info_runs(capsys):
    assert run("info") == 0
    assert "mlstm" in capsys.readouterr().out


def raising(statement: str, module: str):
    """A function of `module` that runs the statement."""
    namespace = {"__name__": module}
    exec(f"def show():\n    {statement}", namespace)
    return namespace["show"]


@pytest.mark.parametrize(
    ("statement", "module"),
    [
        ("int('x')", "exlstm.something"),
        ("{}['key']", "exlstm.something"),
        ("assert False", "exlstm.something"),
        ("raise ValueError('shapes differ')", "numpy.something"),
    ],
)
def test_a_bug_is_not_hidden(monkeypatch, statement, module):
    monkeypatch.setattr(info, "show", raising(statement, module))
    with pytest.raises((ValueError, LookupError, AssertionError)):
        run("info")


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("raise ValueError('expected this,\\n  got that=')", "expected this, got --that"),
        ("open('no/such/file')", "no/such/file: No such file or directory"),
        ("raise OSError(28, 'No space left on device')", "No space left on device"),
    ],
)
def test_a_mistake_or_a_refusal_of_the_system_is_told_in_one_sentence(monkeypatch, capsys, statement, sentence):
    monkeypatch.setattr(info, "show", raising(statement, "exlstm.something"))
    assert run("info") == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_usage_error_is_told_whoever_raises_it(monkeypatch, capsys):
    def show():
        raise UsageError("do it otherwise")

    monkeypatch.setattr(info, "show", show)
    assert run("info") == 2
    assert capsys.readouterr().err == "error: do it otherwise\n"


def test_interrupt_ends_with_130(monkeypatch, capsys):
    monkeypatch.setattr(info, "show", raising("raise KeyboardInterrupt", "exlstm.something"))
    assert run("info") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_help_loads_neither_torch_nor_pandas_nor_matplotlib():
    result = python(
        code="""
import sys
from exlstm.cli import main
try:
    main(["train", "forecast", "--help"])
except SystemExit:
    pass
print(sorted({"torch", "pandas", "numpy", "matplotlib", "jinja2"} & set(sys.modules)), file=sys.stderr)
"""
    )
    assert result.stderr == "[]\n"


def test_module_and_script_are_the_same_program():
    result = python("nonsense")
    assert result.returncode == 2
    assert (
        result.stderr
        == "error: python -m exlstm has no command 'nonsense'; python -m exlstm --help lists what there is\n"
    )


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX pipe")
def test_a_reader_that_left_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = subprocess.run(
            [sys.executable, "-m", "exlstm", "--help"], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert process.stderr == b""
    assert process.returncode == 141
