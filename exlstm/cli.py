"""The command line: `exlstm train TASK`, `evaluate RUN`, `predict RUN [FILE]`, `generate RUN`, `export RUN`, `convert`,
`data`, `info`.

The words up to the options are read here; the options belong to the task. A mistake of the person at the
keyboard ends with one sentence and exit code 2; a mistake of ours ends with a traceback.
"""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from dis import opmap
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from exlstm import __version__
from exlstm.arguments import UsageError, closest, parse
from exlstm.data.get import SOURCES, get
from exlstm.tasks import MODELS, TASKS
from exlstm.tasks.options import EvaluateOptions, GenerateOptions, PredictOptions, as_flags, restore

_COMMANDS = {
    "train": "train a model and report how good it is",
    "evaluate": "score the model of a run again",
    "predict": "use the model of a run",
    "generate": "write text with the model of a run",
    "export": "write the model of a run for ONNX Runtime, OpenVINO or torch alone",
    "convert": "turn published xLSTM weights into a model, or a model into theirs",
    "data": "fetch real data sets",
    "info": "show versions, devices and backends",
}
_WITHOUT_A_RUN = {"evaluate": EvaluateOptions, "predict": PredictOptions, "generate": GenerateOptions}
_USAGE_ERROR, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141


def main(words: Sequence[str] | None = None, *, prog: str = "exlstm") -> int:
    """Run the command line on `words` (default: what the program was called with); returns its exit code."""
    # Threads that wait for each other give way after microseconds instead of milliseconds: next to another busy
    # program, spinning makes small models 20 times slower. Read when torch is loaded, which is later.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _dispatch(prog, list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # Python flushes the standard output once more on its way out; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (UsageError, ValueError, OSError, RuntimeError) as error:
        if not is_for_the_user(error):
            raise
        _say(f"error: {_sentence(error)}")
        return _USAGE_ERROR
    return code


def is_for_the_user(error: BaseException) -> bool:
    """Whether `error` is told to the person at the keyboard rather than a bug to be traced.

    It is when a file or the system refused, or when a `raise` statement of this package made it. A ValueError
    that another library raised, or that Python raised inside this package, is a bug.
    """
    if isinstance(error, UsageError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and _is_ours(last) and _is_raise_statement(last)


def _is_ours(entry: TracebackType) -> bool:
    return entry.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "exlstm"


def _is_raise_statement(entry: TracebackType) -> bool:
    """Functions in C, such as `int` or a product of tensors, have no entry: they fail in that of their caller, and only
    the instruction there tells their error from one that the caller raised."""
    return entry.tb_frame.f_code.co_code[entry.tb_lasti] == opmap["RAISE_VARARGS"]


def _dispatch(prog: str, words: list[str]) -> int:
    match words:
        case [] | ["-h" | "--help", *_]:
            print(_help(prog))
            return 0
        case ["--version" | "-V", *_]:
            print(f"exlstm {__version__}")
            return 0
        case ["train", *rest]:
            return _train(prog, rest)
        case ["evaluate" | "predict" | "generate" as command, *rest]:
            return _use_run(prog, command, rest)
        case ["export", *rest]:
            return _export(prog, rest)
        case ["convert", *rest]:
            return _convert(prog, rest)
        case ["data", *rest]:
            return _data(prog, rest)
        case ["info", *rest]:
            return _info(prog, rest)
        case [word, *_]:
            raise UsageError(f"{prog} has no {_kind(word)} {word!r}; {_meant(prog, word)}")
        case _:
            raise AssertionError(words)


def _train(prog: str, words: list[str]) -> int:
    names = ", ".join(TASKS)
    match words:
        case ["-h" | "--help", *_]:
            print(_train_help(prog))
            return 0
        case [task, *rest] if task in TASKS:
            return _module(task).train(_train_options(prog, task, rest), prog)
        case [] | [("-" | "--"), *_]:
            raise UsageError(f"{prog} train needs a task, one of: {names}")
        case [word, *_] if word.startswith("-"):
            raise UsageError(f"{prog} train needs a task before its options, one of: {names}")
        case [word, *_]:
            near = closest(word, list(TASKS))
            hint = f"did you mean {prog} train {near}?" if near else f"expected one of: {names}"
            raise UsageError(f"there is no task {word!r}; {hint}")
        case _:
            raise AssertionError(words)


def _train_options(prog: str, task: str, words: list[str]) -> Any:
    """The options in `words`; those of a run to resume are the defaults for what is not said anew."""
    kind, command = _module(task).Train, f"{prog} train {task}"
    options = parse(kind, words, prog=command)
    if not options.resume:
        return options
    from exlstm.tasks.runs import Run

    run = Run.open(options.out) if options.out else Run.latest(task)
    stored = restore(kind, run.options) if run.task == task else options
    return replace(parse(kind, words, prog=command, default=stored), out=run.path, resume=True)


def _use_run(prog: str, command: str, words: list[str]) -> int:
    """These commands start from a run, whose task decides what further options there are."""
    folder = next((word for word in words if (Path(word) / "config.json").is_file()), None)
    if folder is None:
        if {"-h", "--help"} & set(words):
            parse(_WITHOUT_A_RUN[command], words, prog=f"{prog} {command}")
        raise UsageError(_no_run(prog, command, words))
    task = _task_of(Path(folder))
    module = _module(task)
    kind = getattr(module, command.capitalize(), None)
    if kind is None:
        what, its = ("model", "it") if task in MODELS.values() else ("run", "its model")
        raise UsageError(
            f"{folder} is a {what} of the task {task!r}, which has no {command}; {prog} predict uses {its}"
        )
    return getattr(module, command)(parse(kind, words, prog=f"{prog} {command}"), prog)


def _task_of(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        task = config["task"] if "task" in config else MODELS[config["model_type"]]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{folder} is not the folder of a run: its config.json is not a run's") from None
    if task not in (*TASKS, *MODELS.values()):
        raise UsageError(f"{folder} is a run of the task {task!r}, which this version of exlstm does not have")
    return task


def _no_run(prog: str, command: str, words: list[str]) -> str:
    if not words or words[0].startswith("-"):
        return f"{prog} {command} needs the folder of a run first, such as runs/{next(iter(TASKS))}/..."
    path = Path(words[0])
    if not path.exists():
        return f"there is no folder {path}; give the folder of a run, which {prog} train makes"
    if not path.is_dir():
        return f"{path} is a file; give the folder of a run first, which {prog} train makes"
    return f"{path} is not the folder of a run: it has no config.json"


def _export(prog: str, words: list[str]) -> int:
    from exlstm.interop.export.command import Export, export

    return export(parse(Export, words, prog=f"{prog} export"), prog)


def _convert(prog: str, words: list[str]) -> int:
    from exlstm.interop.weights.command import Convert, convert

    return convert(parse(Convert, words, prog=f"{prog} convert"))


def _data(prog: str, words: list[str]) -> int:
    match words:
        case []:
            print("\n".join(f"{name}: {source.about}\n  {source.licence}" for name, source in SOURCES.items()))
        case ["-h" | "--help", *_] | ["get", "-h" | "--help", *_]:
            print(f"usage: {prog} data\n       {prog} data get NAME\n\nList the data sets, or fetch one.")
        case ["get", name]:
            folder = get(name)
            _say(f"licence: {SOURCES[name].licence}")
            print(folder)
        case ["get"]:
            raise UsageError(f"{prog} data get needs a name, one of: {', '.join(SOURCES)}")
        case _:
            raise UsageError(f"expected {prog} data, or {prog} data get NAME, got {prog} data {' '.join(words)}")
    return 0


def _info(prog: str, words: list[str]) -> int:
    match words:
        case []:
            from exlstm import info

            info.show()
        case ["-h" | "--help", *_]:
            print(f"usage: {prog} info\n\nShow versions, devices, threads, and which backends can run here.")
        case [word, *_]:
            raise UsageError(f"{prog} info takes no arguments, got {word!r}")
    return 0


def _module(task: str) -> ModuleType:
    return import_module(f"exlstm.tasks.{task.replace('-', '_')}")


def _kind(word: str) -> str:
    return "option" if word.startswith("-") else "command"


def _meant(prog: str, word: str) -> str:
    if word in TASKS:
        return f"did you mean {prog} train {word}?"
    near = closest(word, [*_COMMANDS, "--help", "--version"]) or closest(f"--{word}", ["--help", "--version"])
    return f"did you mean {prog} {near}?" if near else f"{prog} --help lists what there is"


def _help(prog: str) -> str:
    return "\n".join(
        [
            f"usage: {prog} COMMAND ...",
            "",
            "Extended LSTMs: train, evaluate and use them on real sequences.",
            "",
            *(f"  {name:<10}{text}" for name, text in _COMMANDS.items()),
            "",
            f"  {prog} train TASK [options]              tasks: {', '.join(TASKS)}",
            f"  {prog} evaluate RUN",
            f"  {prog} predict RUN [FILE] --out FILE",
            f"  {prog} generate RUN --prompt TEXT",
            f"  {prog} export RUN --to onnx|openvino|torch-export",
            f"  {prog} convert SOURCE DEST",
            f"  {prog} data get NAME                     data: {', '.join(SOURCES)}",
            "",
            f"{prog} COMMAND --help tells more, --version the version.",
        ]
    )


def _train_help(prog: str) -> str:
    return "\n".join(
        [
            f"usage: {prog} train TASK [options]",
            "",
            *(f"  {name:<15}{text}" for name, text in TASKS.items()),
            "",
            f"{prog} train TASK --help lists the options of a task.",
        ]
    )


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        what = error.strerror or type(error).__name__
        return f"{error.filename}: {what}" if error.filename else what
    return as_flags(" ".join(str(error).split()))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")
