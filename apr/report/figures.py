"""Plots as inline SVG that takes its colours from the page, so that one file serves light, dark and print.

matplotlib draws with stand-in colours; `_svg` replaces them with CSS variables (`--s0` to `--s7` for series, `--muted`
and `--grid`) and `currentColor`. Text stays text. The series palette is Okabe and Ito's, safe for colour-blind
readers, and series also differ in dash, so that nothing rests on colour alone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from apr.evaluation.metrics import Attempt, accuracy_by_cost, interval

SERIES = 8  # colours in the palette
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5), (8, 2))  # in line widths
AXES = {"context": ("context window", "tokens"), "work": ("work", "tokens"), "span_sampled": ("span", "sampled tokens")}


class RlPanel(NamedTuple):
    """A plot of RL curves: metrics and their labels. Those under `eval/` are on some steps only, drawn as diamonds."""

    title: str
    metrics: dict[str, str]
    scale: Literal["share", "linear", "log"] = "linear"


RL_PANELS = (
    RlPanel(
        "success",
        {
            "reward/correct": "correct (training)",
            "reward/success": "correct within budgets (training)",
            "eval/accuracy": "accuracy (validation)",
        },
        "share",
    ),
    RlPanel("threads a trace", {"rollout/threads": "threads"}),
    RlPanel("span (sampled tokens)", {"rollout/span_sampled": "span_sampled"}),
    RlPanel("context (tokens)", {"rollout/context": "context"}),
    RlPanel("work (tokens)", {"rollout/work": "work"}),
    RlPanel("loss", {"loss/policy": "policy"}),
    RlPanel("sampler against learner", {"mismatch/abs_gap_mean": "mean |logprob gap|", "mismatch/kl": "KL"}, "log"),
    RlPanel("seconds a step", {"time/step": "step", "time/rollout": "rollout", "time/learn": "learn"}),
)

_INK, _MUTED, _GRID = "#fd0000", "#fd0001", "#fd0002"
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "path.simplify_threshold": 0.2,
}


def accuracy_panel(rows: Sequence[tuple[str, Sequence[Attempt]]], cost: str, budget: float | None = None) -> str:
    """SVG: accuracy within a cost, a step curve per row; whiskers at the curves' ends are 95% intervals.

    `rows`: name and attempts; row i takes colour `--s{i}`. `cost`: a key of `AXES`. `budget`: a line at that cost.
    """
    name, unit = AXES[cost]
    salt = f"accuracy-{cost}"
    curves = [accuracy_by_cost(attempts, cost) for _, attempts in rows]
    lowest = min((x[0] for x, _ in curves if x), default=1.0)
    highest = max((x[-1] for x, _ in curves if x), default=1.0)
    with _style(salt):
        figure, axes = _panel(f"accuracy against {name}", unit)
        for index, ((_, attempts), (x, y)) in enumerate(zip(rows, curves)):
            if not x:
                continue
            colour, end = _colour(index), y[-1]
            axes.plot(
                [x[0], *x], [0.0, *y], drawstyle="steps-post", color=colour, linestyle=_dash(index), linewidth=1.7
            )
            axes.plot([x[-1], highest], [end, end], color=colour, linewidth=0.7, alpha=0.5)
            n = sum(not one.lost for one in attempts)
            low, high = interval(round(end * n), n)
            whisker = [[max(end - low, 0.0)], [max(high - end, 0.0)]]
            axes.errorbar(x[-1], end, whisker, color=colour, marker="o", markersize=3.5, capsize=2.5, linewidth=1)
        if budget is not None:
            axes.axvline(budget, color=_MUTED, linewidth=1, linestyle=(0, (2, 2)))
            top = axes.get_xaxis_transform()  # x in tokens, y as a share of the height
            axes.annotate("budget", (budget, 0.98), (3, 0), top, "offset points", color=_MUTED, fontsize=8, va="top")
        if highest > 20 * max(lowest, 1.0):
            axes.set_xscale("log")
        _share(axes)
        return _svg(figure, f"accuracy against {name}", salt)


def rl_panels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """SVGs of what `records` (lines of metrics.jsonl, each with `step`) hold of `RL_PANELS`; empty if nothing."""
    panels = []
    for number, panel in enumerate(RL_PANELS):
        found = {name: points for name in panel.metrics if (points := _points(records, name))}
        if found:
            panels.append(_rl_panel(panel, found, f"rl-{number}"))
    return panels


def _rl_panel(panel: RlPanel, found: Mapping[str, list[tuple[float, float]]], salt: str) -> str:
    lowest = min(value for points in found.values() for _, value in points)
    with _style(salt):
        figure, axes = _panel(panel.title, "step")
        for index, (name, points) in enumerate(found.items()):
            steps, values = [step for step, _ in points], [value for _, value in points]
            colour, label = _colour(index), panel.metrics[name]
            if name.startswith("eval/"):
                axes.plot(steps, values, color=colour, marker="D", markersize=4.5, linewidth=1, label=label, zorder=5)
                continue
            smooth = _smooth(values)
            if smooth is not values:
                axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
            axes.plot(steps, smooth, color=colour, linestyle=_dash(index), linewidth=1.6, label=label)
        if panel.scale == "share":
            _share(axes)
        elif panel.scale == "log" and lowest > 0:
            axes.set_yscale("log")
        elif lowest >= 0:
            axes.set_ylim(bottom=0.0)
        if len(found) > 1:
            axes.legend(loc="best")
        return _svg(figure, f"RL: {panel.title} by step", salt)


def swatch(index: int) -> str:
    """HTML of the line that stands for row `index` in legends: its colour and dash."""
    dashes = " ".join(f"{2 * length:g}" for length in DASHES[index % len(DASHES)])
    style = f"stroke: var(--s{index % SERIES}); stroke-width: 2.4; stroke-dasharray: {dashes or 'none'}"
    return f'<svg class="swatch" viewBox="0 0 26 6" aria-hidden="true"><path d="M0,3 H26" style="{style}"/></svg>'


def _points(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) where the record has a finite value."""
    return [
        (float(record["step"]), float(record[name]))
        for record in records
        if isinstance(record.get(name), int | float) and math.isfinite(record[name])
    ]


def _smooth(values: list[float]) -> list[float]:
    """A centred running mean over a tenth of the points; short series stay as they are."""
    reach = len(values) // 20
    if reach < 2:
        return values
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _colour(index: int) -> str:
    return f"#fe00{index % SERIES:02x}"


def _dash(index: int) -> Any:
    dashes = DASHES[index % len(DASHES)]
    return (0, dashes) if dashes else "-"


def _style(salt: str) -> Any:
    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt})


def _panel(title: str, unit: str) -> tuple[Any, Any]:
    figure = Figure(figsize=(4.3, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(unit)
    return figure, axes


def _share(axes: Any) -> None:
    """From 0, in percent."""
    axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _svg(figure: Any, label: str, salt: str) -> str:
    """The figure for inlining: page colours, no fixed size, no ids that could clash, equal for equal input."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', text)
    text = re.sub(r'(id="|url\(#|href="#)(?=[mp][0-9a-f]{10})', rf"\g<1>{salt}-", text)
    text = re.sub(r'xlink:href="', 'href="', text)
    text = re.sub(r"#fe00([0-9a-f]{2})", lambda found: f"var(--s{int(found[1], 16)})", text)
    return text.replace(_INK, "currentColor").replace(_MUTED, "var(--muted)").replace(_GRID, "var(--grid)")
