"""Charts and tables as data: what the page draws is what the CSV holds.

matplotlib draws a chart with stand-in colours, which become CSS variables of the page (`--s0` to `--s7` for series,
`--muted`, `--grid`) and `currentColor`, so that one page serves light, dark and print; or, in a file of its own, the
light palette's colours. Text stays text. The palette is Okabe and Ito's, safe for colour-blind readers, and series also
differ in dash and marker, so that nothing rests on colour alone.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

SERIES = 8  # colours in the palette
CROWD = 4  # series whose legend fits between the curves; that of more goes below
DASHES: tuple[tuple[float, ...], ...] = (  # in line widths; as many as colours, so that no two of these share one
    (), (4, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5), (11, 2.5), (1.2, 3.5), (6, 1.2, 1.2, 1.2, 1.2, 1.2), (9, 1.5, 3, 1.5),
)  # fmt: skip
MARKERS = "osD^vPX*"
ASSETS = Path(__file__).parent / "assets"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # what one begins with
OURS, THEIRS = "ours", "published"

_INK, _MUTED, _GRID = "#fd0000", "#fd0001", "#fd0002"
_STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK, "axes.titlecolor": _INK, "axes.titlesize": 9.5, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": _GRID, "grid.linewidth": 0.6, "xtick.color": _MUTED, "ytick.color": _MUTED, "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK, "text.color": _INK, "legend.frameon": False, "legend.fontsize": 7.5,
    "path.simplify_threshold": 0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Points of one name. `low`, `high`: 95% intervals of y, one per point. `place`: its colour, marker, and, unless `dash`
    says otherwise, its dash. `labels`: a word per point. `source`: whose numbers they are."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Literal["line", "steps", "points", "smooth", "bars"]
    place: int = 0
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    labels: Sequence[str] = ()
    source: str = OURS
    dash: int | None = None


@dataclass(frozen=True)
class Chart:
    """A figure. `name`: of its files. `marks`: vertical lines, each with its word. `categories`: words for x = 0, 1, ...

    `y_scale`: `share` is a percentage from 0, `percent` one from anywhere, `zero` a linear axis from 0.
    """

    name: str
    title: str
    x: str
    y: str
    series: Sequence[Series]
    y_scale: Literal["share", "percent", "zero", "linear", "log"] = "share"
    log_x: bool = False
    marks: Sequence[tuple[str, float]] = ()
    categories: Sequence[str] = ()
    legend: bool = True

    def csv(self) -> str:
        """Every point: series, source, x, y, the ends of its interval, its label."""
        head = ("series", "source", self.x, self.y, "low", "high", "label")
        lines = [
            (s.name, s.source, x, y, *_at(s.low, i), *_at(s.high, i), *_at(s.labels, i))
            for s in self.series
            for i, (x, y) in enumerate(zip(s.x, s.y))
        ]
        return csv_text(head, lines)

    def svg(self) -> str:
        """For a page that has `assets/palette.css`: its colours, no fixed size, no ids that could clash."""
        return _for_page(_drawn(self), self.title, self.name)

    def file(self) -> str:
        """A file of its own: the light palette on white, and a legend, since there is no page beside it."""
        text = replace(self, legend=True).svg()
        text = text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)
        text = re.sub(r"var\((--\w+)\)", lambda found: _light()[found[1]], text).replace(
            "currentColor", _light()["--ink"]
        )
        return text.replace(">", f'><rect width="100%" height="100%" fill="{_light()["--paper"]}"/>', 1)


@dataclass(frozen=True)
class Column:
    """A column as people read it: its head, and what it says of a record, with a small note below."""

    head: str
    text: Callable[[Mapping[str, Any]], str]
    small: Callable[[Mapping[str, Any]], str] | None = None


@dataclass(frozen=True)
class Table:
    """Records, all with the same keys (`name`.csv has them all), and the columns that are shown of them."""

    name: str
    title: str
    records: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]
    note: str = ""

    def csv(self) -> str:
        head = list(self.records[0]) if self.records else []
        return csv_text(head, [[record[key] for key in head] for record in self.records])


def csv_text(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """CSV; None is empty. A text that a spreadsheet would take for a formula has an apostrophe before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([_no_formula(cell) for cell in line] for line in (head, *lines))
    return buffer.getvalue()


def _no_formula(cell: Any) -> Any:
    """`cell`, unless it is a text that begins as formulas do and is no number. Line ends are "\\n": the writer would leave
    others unquoted, and what follows them would begin a cell."""
    if isinstance(cell, str):
        cell = cell.replace("\r\n", "\n").replace("\r", "\n")
    if not isinstance(cell, str) or not cell.lstrip(" ").startswith(FORMULA):
        return cell
    return cell if re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell) else f"'{cell}"


class Look(NamedTuple):
    """What a reader tells series apart by: indices of colour, dash and marker."""

    colour: int
    dash: int
    marker: int


def look(place: int, dash: int | None = None) -> Look:
    """Of a series at `place`; `dash`: in place of the place's own. No two of the first 64 places look alike, and no two
    of the first eight share a colour, a dash or a marker."""
    block = place // SERIES
    return Look(
        place % SERIES, ((place if dash is None else dash) + block) % len(DASHES), (place + block) % len(MARKERS)
    )


def apart(series: Sequence[Series]) -> list[Series]:
    """The same series; of those that would look alike, the later ones have other places."""
    taken: set[tuple[int, int]] = set()  # colour and dash: not all kinds have a marker
    moved = []
    for one in series:
        places = range(one.place, one.place + SERIES * len(DASHES))
        place = next((place for place in places if look(place, one.dash)[:2] not in taken), one.place)
        taken.add(look(place, one.dash)[:2])
        moved.append(replace(one, place=place))
    return moved


def swatch(place: int) -> str:
    """HTML of the line that stands for a place in legends: its colour and dash."""
    colour, dash, _ = look(place)
    dashes = " ".join(f"{2 * length:g}" for length in DASHES[dash])
    style = f"stroke: var(--s{colour}); stroke-width: 2.4; stroke-dasharray: {dashes or 'none'}"
    return f'<svg class="swatch" viewBox="0 0 44 6" aria-hidden="true"><path d="M0,3 H44" style="{style}"/></svg>'


def _at(values: Sequence[Any], i: int) -> tuple[Any]:
    return (values[i] if i < len(values) else None,)


def _drawn(chart: Chart) -> str:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": chart.name}):
        figure = Figure(figsize=(4.3, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(_text(chart.title))
        axes.set_xlabel(_text(chart.x))
        if chart.y_scale not in ("share", "percent"):
            axes.set_ylabel(_text(chart.y))
        highest = max((max(s.x) for s in chart.series if s.x), default=1.0)
        width = 0.8 / max(1, sum(s.kind == "bars" for s in chart.series))
        for number, one in enumerate(apart(chart.series)):
            _draw(axes, one, highest, (width, (number - (len(chart.series) - 1) / 2) * width))
        for word, value in chart.marks:
            axes.axvline(value, color=_MUTED, linewidth=1, linestyle=(0, (2, 2)))
            top = axes.get_xaxis_transform()  # x in units, y as a share of the height
            axes.annotate(word, (value, 0.98), (3, 0), top, "offset points", color=_MUTED, fontsize=8, va="top")
        _scales(axes, chart)
        if chart.legend and (len(chart.series) > 1 or any(one.kind in ("line", "points") for one in chart.series)):
            if len(chart.series) > CROWD:
                figure.set_figheight(2.9 + 0.17 * len(chart.series))
                figure.legend(loc="outside lower left")
            else:
                axes.legend(loc="upper center" if chart.categories else "best", ncols=2 if chart.categories else 1)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _draw(axes: Any, one: Series, highest: float, bar: tuple[float, float]) -> None:
    """`highest`: the largest x of the chart. `bar`: width and offset of this series' bars."""
    if not one.x:
        return
    looks = look(one.place, one.dash)
    dashes, marker = DASHES[looks.dash], MARKERS[looks.marker]
    colour, dash = f"#fe00{looks.colour:02x}", (0, dashes) if dashes else "-"
    name = _text(f"{one.name} ({THEIRS})" if one.source == THEIRS else one.name)
    reach = _reach(one) if one.low else None
    match one.kind:
        case "steps":
            last, end = one.x[-1], one.y[-1]
            along, up = [one.x[0], *one.x], [0.0, *one.y]
            axes.plot(along, up, drawstyle="steps-post", color=colour, linestyle=dash, linewidth=1.7, label=name)
            axes.plot([last, highest], [end, end], color=colour, linewidth=0.7, alpha=0.5)
            if reach:
                whisker = [[reach[0][-1]], [reach[1][-1]]]
                axes.errorbar(last, end, whisker, color=colour, marker="o", markersize=3.5, capsize=2.5, linewidth=1)
        case "smooth":
            smooth = running_mean(one.y)
            if smooth is not one.y:
                axes.plot(one.x, one.y, color=colour, linewidth=0.7, alpha=0.35)
            axes.plot(one.x, smooth, color=colour, linestyle=dash, linewidth=1.6, label=name)
        case "bars":
            at = [x + bar[1] for x in one.x]
            axes.bar(at, one.y, bar[0] * 0.92, yerr=reach, color=colour, label=name, capsize=2, ecolor=_INK)
            tops = one.high or one.y  # words stand above the whiskers
            _words(axes, at, replace(one, y=tops), (0, 2), _INK)
        case "line" | "points":
            face = "none" if one.source == THEIRS else colour
            axes.errorbar(
                one.x, one.y, reach, color=colour, linestyle=dash if one.kind == "line" else "none", marker=marker,
                markersize=4, markerfacecolor=face, linewidth=1.3, elinewidth=0.8, capsize=2, label=name,
            )  # fmt: skip
            _words(axes, one.x, one, (5, -9), _MUTED)


def _text(words: str) -> str:
    """Words that matplotlib takes as words, whatever dollars are in them."""
    return words.replace("$", r"\$")


def _words(axes: Any, xs: Sequence[float], one: Series, offset: tuple[int, int], colour: str) -> None:
    """Each point's label beside it; above it, and centred, if the offset is upwards alone."""
    for x, y, word in zip(xs, one.y, one.labels):
        align = "left" if offset[0] else "center"
        axes.annotate(_text(word), (x, y), offset, textcoords="offset points", ha=align, fontsize=7, color=colour)


def _reach(one: Series) -> list[list[float]]:
    """Lengths of the whiskers below and above each point."""
    below = [max(y - low, 0.0) for y, low in zip(one.y, one.low)]
    return [below, [max(high - y, 0.0) for y, high in zip(one.y, one.high)]]


def _scales(axes: Any, chart: Chart) -> None:
    if chart.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if chart.categories:
        axes.set_xticks(range(len(chart.categories)), [_text(word).replace(", ", ",\n") for word in chart.categories])
        axes.tick_params(axis="x", labelsize=8 if len(chart.categories) < 4 else 5.5)
        axes.set_xlim(-0.75, len(chart.categories) - 0.25)
        axes.margins(y=0.3)  # room for the legend above the bars
        axes.grid(False, axis="x")
    if chart.y_scale == "log":
        axes.set_yscale("log")
    elif chart.y_scale in ("share", "zero"):
        axes.set_ylim(bottom=0.0)
    if chart.y_scale in ("share", "percent"):
        axes.set_yticks(
            [tick for tick in axes.get_yticks() if -1e-9 <= tick <= 1 + 1e-9 and tick >= axes.get_ylim()[0]]
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def running_mean(values: Sequence[float]) -> Sequence[float]:
    """Centred, over a tenth of the points; short series stay as they are."""
    reach = len(values) // 20
    if reach < 2:
        return values
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _for_page(text: str, label: str, salt: str) -> str:
    """matplotlib's file as an element of a page, equal for equal input."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', lambda found: _opening(found[1], label), text)
    text = re.sub(r'(id="|url\(#|href="#)(?=[mp][0-9a-f]{10})', rf"\g<1>{salt}-", text)
    text = re.sub(r'xlink:href="', 'href="', text)
    text = re.sub(r"#fe00([0-9a-f]{2})", lambda found: f"var(--s{int(found[1], 16)})", text)
    return text.replace(_INK, "currentColor").replace(_MUTED, "var(--muted)").replace(_GRID, "var(--grid)")


def _opening(box: str, label: str) -> str:
    from html import escape

    return f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">'


@cache
def _light() -> dict[str, str]:
    """The light palette's colours by variable."""
    first = (ASSETS / "palette.css").read_text(encoding="utf-8").split("}")[0]
    return dict(re.findall(r"(--\w+): (#\w+);", first))
