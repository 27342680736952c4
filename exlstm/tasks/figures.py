"""Matplotlib figures as inline SVG that takes its colours and fonts from the page around it.

Draw with the colours named here. They are stand-ins: in the SVG they become CSS variables of the page, so one
figure suits a light and a dark screen. Figures are drawn at the width of a phone; the page lays several of
them side by side where there is room.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#010101", "#020202", "#030303"
MODEL, SECOND, THIRD = "#040404", "#050505", "#060606"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    FAINT: "--faint",
    MODEL: "--model",
    SECOND: "--second",
    THIRD: "--third",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}
_NARROW, _WIDE, _HEIGHT = 4.0, 10.0, 2.7  # inches


@dataclass(frozen=True)
class Picture:
    """A figure as SVG text, with what stands below it and what a screen reader says instead of it."""

    svg: str
    caption: str
    wide: bool = False


@contextmanager
def axes(*, wide: bool = False, height: float = _HEIGHT) -> Iterator["Axes"]:
    """Axes to draw on, alone in a figure of the report's size and style; `height` in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE if wide else _NARROW, height))
        yield figure.add_subplot()


def picture(drawn: "Axes", caption: str, *, description: str, wide: bool = False) -> Picture:
    """What was drawn on the axes, as a picture; `description` is its text for screen readers.

    Call it inside the `with axes()` block. The same drawing always gives the same text.
    """
    figure = drawn.get_figure(root=True)
    assert figure is not None
    return Picture(_svg(figure, caption, description), caption, wide)


def _svg(figure: "Figure", caption: str, description: str) -> str:
    import matplotlib

    # Two figures on one page must not share ids; the salt makes them different, and the same on every run.
    with matplotlib.rc_context({"svg.hashsalt": caption + description}), warnings.catch_warnings():
        # Letters that matplotlib's own font lacks: they stay text, which the reader's browser has fonts for.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[a-zA-Z]+[a-zA-Z0-9_.]*">', "<g>", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"; font-family: [^;\"]*|font-family: [^;\"]*; ?", "", text)
    text = re.sub(
        r'(<svg )[^>]*?(viewBox="[^"]*")[^>]*>',
        rf'\1\2 role="img" aria-label="{escape(description)}">',
        text,
        count=1,
    )
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text).strip()


def loss_curve(history: Sequence[dict[str, Any]]) -> Picture:
    """Training and validation loss over the steps, the best marked, from the records of `metrics.jsonl`."""
    from matplotlib.ticker import LogLocator, NullLocator

    curves = {
        kind: [
            (record["step"], record["loss"])
            for record in history
            if record["kind"] == kind and record.get("loss") is not None
        ]
        for kind in ("train", "validation")
    }
    with axes() as drawn:
        for kind, colour, style in (("train", MUTED, "-"), ("validation", MODEL, "-o")):
            if curves[kind]:
                drawn.plot(*zip(*curves[kind], strict=True), style, color=colour, label=kind, markersize=3)
        caption = "Loss while training, and on the validation part of the data."
        if curves["validation"]:
            step, loss = min(curves["validation"], key=lambda point: point[1])
            drawn.plot(step, loss, "o", color=SECOND, markersize=7, label=f"best, step {step}")
            caption += f" The model kept is the one of step {step}."
        losses = [loss for curve in curves.values() for _, loss in curve]
        if losses and min(losses) > 0 and max(losses) > 10 * min(losses):
            drawn.set_yscale("log")
            drawn.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            drawn.yaxis.set_minor_locator(NullLocator())
            drawn.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
        drawn.set_xlabel("step")
        drawn.set_ylabel("loss")
        if losses:
            drawn.legend()
        return picture(
            drawn,
            caption,
            description=_describe_losses(curves["validation"] or curves["train"]),
        )


def _describe_losses(curve: Sequence[tuple[int, float]]) -> str:
    if not curve:
        return "No losses were recorded."
    (first_step, first), (last_step, last) = curve[0], curve[-1]
    return f"Line chart of the loss: {first:.3g} at step {first_step}, {last:.3g} at step {last_step}."
