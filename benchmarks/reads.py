"""What writing a token costs after long sources, for three memories: `python -m benchmarks.reads`.

Models are untrained, sources random: what is measured is time and bytes, see `benchmarks.documents` for quality. A
source is read and stored once; every token of the target is then written by a step of the decoder, which reads the
memory twice. Beside the step is the read alone, of one of the two.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.documents import MEMORIES, RESULTS, VOCABULARY, cost, make, write
from benchmarks.report import table

LENGTHS = (512, 2048, 8192, 32768, 131072)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reads", description="Time tokens after long sources.")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="N", help="tokens of sources")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    date = datetime.now(UTC)
    results: list[dict[str, Any]] = []
    for length in options.lengths:
        for memory in MEMORIES:
            results.append({"length": length, "memory": memory, **cost(make(memory, VOCABULARY, 0).eval(), length)})
            print(results[-1], file=sys.stderr)
    write("reads", date, results, page, options.out)


def page(facts: dict[str, str], results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    rows = [
        (
            f"{found['length']:,}",
            found["memory"],
            f"{1e3 * found['read']:.3g} ms",
            f"{1e3 * found['token']:.3g} ms",
            f"{1e3 * found['lookup']:.3g} ms",
            f"{found['bytes'] / 2**20:.3g} MiB",
        )
        for found in results
    ]
    columns = ("source tokens", "memory", "reading", "a written token", "of it a read", "stored")
    head = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    assert __doc__ is not None
    return "\n\n".join(["# READS", head, __doc__.split("\n\n", 1)[1].strip(), table(columns, rows)]) + "\n"


if __name__ == "__main__":
    main()
