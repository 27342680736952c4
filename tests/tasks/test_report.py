import re
from html.parser import HTMLParser

import numpy as np
import pytest

from exlstm.tasks.figures import INK, MODEL, Picture, axes, loss_curve, picture
from exlstm.tasks.report import Number, Report, Section, Table, render, write_report

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """The elements of a page; complains when they do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def drawing(caption: str = "A line.", *, wide: bool = False) -> Picture:
    with axes(wide=wide) as drawn:
        drawn.plot(np.arange(5), np.random.default_rng(7).normal(size=5), color=MODEL, marker="o", label="a < b")
        drawn.set_xlabel("step")
        drawn.legend()
        return picture(drawn, caption, description='A "line" & more.', wide=wide)


@pytest.fixture(scope="module")
def page() -> str:
    return render(
        Report(
            kicker="a kind",
            title="Title <script>alert(1)</script>",
            headline="One sentence.",
            numbers=[Number("0.5", "MASE", "of 1")],
            sections=[
                Section(
                    "Everything",
                    text="Some text & more.",
                    table=Table(["", "A"], [["one", "1"], ["two", "2"]], frozenset({(1, 1)}), "A note."),
                    pictures=[drawing(), drawing("Another."), drawing("Wide.", wide=True)],
                    notes=["note <1>"],
                    facts={"key": "value"},
                    command="do --this 'and that'",
                ),
                Section("Nothing"),
                Section("Folded", text="Hidden.", folded=True),
            ],
            footer="The end.",
        )
    )


def test_page_is_well_formed(page):
    tags = Page(page).tags
    assert tags.count("section") == 3
    assert tags.count("figure") == tags.count("svg") == 3
    assert tags.count("details") == 1


def test_page_loads_nothing(page):
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    references = [value for name, value in parsed.attributes if name in ("href", "src", "xlink:href", "srcset")]
    assert all(value is not None and value.startswith("#") for value in references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page


def test_text_is_escaped(page):
    assert "<script" not in page
    assert "note &lt;1&gt;" in page
    assert "a &lt; b" in page
    assert 'aria-label="A &quot;line&quot; &amp; more."' in page


def test_no_two_elements_share_an_id(page):
    ids = [value for name, value in Page(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_only_the_stressed_cell_is_stressed(page):
    assert re.findall(r'<td class="strong">(.*?)</td>', page) == ["2"]


def test_what_is_empty_is_left_out(page):
    empty = page[page.index("<h2>Nothing</h2>") : page.index("<h2>Folded</h2>")]
    assert not re.search(r"<(p|dl|ul|table|figure|pre)\b", empty)


def test_figures_take_colours_and_fonts_from_the_page():
    svg = drawing().svg
    assert "var(--model)" in svg
    assert not re.search(r"#0[1-6]0", svg)
    assert "font-family" not in svg
    assert svg.startswith("<svg ")
    assert not re.search(r"<svg[^>]* (width|height)=", svg)


def test_figure_fits_a_phone_without_shrinking_its_text_below_nine_pixels():
    svg, width_of_a_card = drawing().svg, 330
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) * width_of_a_card / width >= 9


def test_same_drawing_gives_the_same_text():
    assert drawing().svg == drawing().svg


def test_every_colour_has_a_light_and_a_dark_value(page):
    style = page[page.index("<style>") : page.index("</style>")]
    used = set(re.findall(r"var\((--[a-z]+)\)", page))
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)
    for colour in used:
        assert f"{colour}:" in light
        assert f"{colour}:" in dark.split("\n* {")[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "model", "second", "third"])
def test_colours_stand_out_from_the_card_as_text_must(page, scheme, name):
    """Contrast of at least 4.5, WCAG 2.2, success criterion 1.4.3."""
    blocks = page.split("@media (prefers-color-scheme: dark)", 1)
    block = blocks[0] if scheme == "light" else blocks[1]
    colour, card = (re.search(rf"--{key}: (#[0-9a-f]{{6}})", block)[1] for key in (name, "card"))
    brighter, darker = sorted((luminance(colour), luminance(card)), reverse=True)
    assert (brighter + 0.05) / (darker + 0.05) >= 4.5


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_loss_curve_names_the_best_step():
    history = [
        *({"step": step, "kind": "train", "loss": 1 / step} for step in range(1, 40)),
        {"step": 10, "kind": "validation", "loss": 0.5},
        {"step": 20, "kind": "validation", "loss": 0.3},
        {"step": 30, "kind": "validation", "loss": None},
        {"step": 40, "kind": "validation", "loss": 0.4},
    ]
    assert "step 20." in loss_curve(history).caption


@pytest.mark.parametrize("history", [[], [{"step": 1, "kind": "train", "loss": -2.0}]])
def test_loss_curve_of_next_to_nothing_is_drawn(history):
    assert "<svg" in loss_curve(history).svg


def test_ink_is_drawn_as_the_pages_ink():
    with axes() as drawn:
        drawn.plot([0, 1], [0, 1], color=INK)
        assert "stroke: var(--ink)" in picture(drawn, "", description="").svg


def test_report_is_written_whole(tmp_path):
    report = Report("k", "t", "h", [], [])
    write_report(tmp_path / "report.html", report)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
