"""Forecast one series with an exported forecaster: ONNX Runtime, numpy and json alone, no exlstm and no torch.

    exlstm export runs/forecast/... --to onnx --out exported
    python examples/stream_forecast.py exported demand.csv --horizon 96

The file has a row for each time, in order, with columns `ds` (ISO time) and `y` (empty where unknown), at regular
intervals. `prepare` turns its end into patches, `chunk` reads those that are known, and `step` goes on patch by patch,
as far as is asked, each line printed as soon as it is there. A new row calls for a new start from `prepare`: what a
model sees of a series is relative to the last value known.
"""

import argparse
import calendar
import csv
import json
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime


class Graph:
    """One graph of an export: arrays by name in and out."""

    def __init__(self, folder: Path, about: dict) -> None:
        self.session = onnxruntime.InferenceSession(folder / about["file"], providers=["CPUExecutionProvider"])
        self.inputs = [port["name"] for port in about["inputs"]]
        self.state = {port["output"]: port["input"] for port in about["state"]}
        self.empty = {port["input"]: np.zeros([1, *port["shape"][1:]], port["dtype"]) for port in about["state"]}
        self.names = [port["name"] for port in about["outputs"]] + [*self.state]

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = dict(zip(self.names, self.session.run(self.names, inputs), strict=True))
        return {self.state.get(name, name): array for name, array in found.items()}  # next.* becomes state.*


def phase(cycle: str, time: datetime) -> float:
    """How much of a cycle has passed, from 0 to 1; of the week in whole days."""
    day = (time.hour * 3600 + time.minute * 60 + time.second) / 86400
    if cycle == "day":
        return day
    if cycle == "week":
        return time.weekday() / 7
    return (time.timetuple().tm_yday - 1 + day) / (366 if calendar.isleap(time.year) else 365)


def main() -> None:
    parser = argparse.ArgumentParser(description="Forecast one series with an exported forecaster.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--horizon", type=int, help="steps to forecast (default: as many as trained for)")
    options = parser.parse_args()

    about = json.loads((options.folder / "graph.json").read_text(encoding="utf-8"))
    model, graphs = about["model"], {name: Graph(options.folder, each) for name, each in about["graphs"].items()}
    if unusual := [name for name in ("future", "past", "static", "categories") if model[name]]:
        raise SystemExit(f"this example forecasts series without further columns; the model reads {', '.join(unusual)}")
    with options.file.open(newline="") as file:
        rows = [(datetime.fromisoformat(row["ds"]), float(row["y"] or "nan")) for row in csv.DictReader(file)]

    horizon, patch, history = options.horizon or model["horizon"], model["patch"], model["history"]
    ahead = -(-horizon // patch)  # patches
    known = rows[-history:]
    if len(steps := {after - before for (before, _), (after, _) in pairwise(rows)}) != 1:
        raise SystemExit(
            f"expected two rows or more, all the same time apart; {options.file} has {len(steps)} intervals"
        )
    (step,) = steps
    times = [known[-1][0] + n * step for n in range(1 - history, ahead * patch + 1)]
    y = np.full(history, np.nan, np.float32)
    y[history - len(known) :] = [value for _, value in known]
    place = np.arange(-history, ahead * patch)
    window = {
        "y": y[None],
        "inside": ((place >= -len(rows)) & (place < horizon))[None],
        "phase": np.array([[phase(cycle, time) for cycle in model["cycles"]] for time in times], np.float32)[None],
    }
    prepare, chunk, go_on = graphs["prepare"], graphs["chunk"], graphs["step"]
    made = prepare({name: window[name] for name in prepare.inputs})

    def patches(which: int | slice) -> dict[str, np.ndarray]:
        return {name: x[:, which] if name not in ("about", "scale") else x for name, x in made.items()}

    context = model["context_patches"]
    found = chunk(patches(slice(context)) | chunk.empty)
    print("ds", *(f"q{level:g}" for level in model["levels"]), sep=",")
    for n in range(ahead):
        state = {name: found[name] for name in go_on.empty}
        found = go_on({name: x for name, x in patches(context + n).items() if name in go_on.inputs} | state)
        for m, quantiles in enumerate(found["quantiles"][0]):
            if n * patch + m < horizon:
                time = times[history + n * patch + m]
                print(time.isoformat(sep=" "), *(f"{q:.7g}" for q in quantiles), sep=",", flush=True)


if __name__ == "__main__":
    main()
