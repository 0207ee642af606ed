"""The figures of a report: accuracy within a cost, accuracy against costs under budgets, and the curves of RL runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from apr.evaluation.metrics import accuracy_by_cost, interval
from apr.report.chart import SERIES, Chart, Series
from apr.report.entries import Entry, RlRun, Row

AXES = {"context": ("context window", "tokens"), "work": ("work", "tokens"), "span_sampled": ("sampled span", "tokens")}


class RlPanel(NamedTuple):
    """A plot of RL curves: metrics and their words. Those under `eval/` are on some steps only."""

    name: str
    title: str
    unit: str
    metrics: Mapping[str, str]
    scale: Literal["share", "zero", "linear", "log"] = "zero"


RL_PANELS = (
    RlPanel(
        "success", "success", "share",
        {"reward/correct": "correct", "reward/success": "correct within budgets", "eval/accuracy": "validation"}, "share",
    ),
    RlPanel("threads", "threads a trace", "threads", {"rollout/threads": "threads"}),
    RlPanel("span", "span", "sampled tokens", {"rollout/span_sampled": "span"}),
    RlPanel("context", "context", "tokens", {"rollout/context": "context"}),
    RlPanel("work", "work", "tokens", {"rollout/work": "work"}),
    RlPanel("loss", "loss", "", {"loss/policy": "policy"}, "linear"),
    RlPanel(
        "mismatch", "sampler against learner", "nats",
        {"mismatch/abs_gap_mean": "mean |logprob gap|", "mismatch/kl": "KL"}, "log",
    ),
    RlPanel("seconds", "seconds a step", "seconds", {"time/step": "step", "time/rollout": "rollout", "time/learn": "learn"}),
)  # fmt: skip


def accuracy_within(rows: Sequence[Row], budgets: Mapping[str, Sequence[int]]) -> list[Chart]:
    """A step curve a row, for each cost of `AXES`, and a line at each budget; intervals are drawn at the curves' ends."""
    return [_accuracy_within(rows, cost, budgets.get(cost, ())) for cost in AXES]


def marks(budgets: Sequence[int]) -> list[tuple[str, float]]:
    return [(f"budget {budget:,}", float(budget)) for budget in budgets]


def _accuracy_within(rows: Sequence[Row], cost: str, budgets: Sequence[int]) -> Chart:
    title, unit = AXES[cost]
    series = []
    for row in rows:
        x, y = accuracy_by_cost(row.attempts, cost)
        ends = [interval(round(value * row.summary.n), row.summary.n) for value in y]
        low, high = [end[0] for end in ends], [end[1] for end in ends]
        series.append(Series(row.summary.name, x, y, "steps", row.place, low, high))
    lowest = min((one.x[0] for one in series if one.x), default=1.0)
    highest = max((one.x[-1] for one in series if one.x), default=1.0)
    return Chart(
        f"accuracy_within_{cost}", f"accuracy by {title}", unit, "accuracy", series,
        log_x=highest > 20 * max(lowest, 1.0), marks=marks(budgets), legend=False,
    )  # fmt: skip


def budget_charts(entries: Sequence[Entry]) -> list[Chart]:
    """Accuracy against the mean of each cost, a point an evaluation; a line at each budget of that cost."""
    charts = []
    for cost, (title, unit) in AXES.items():
        series = []
        for one in entries:
            low, high = one.summary.interval
            x = [one.summary.costs[cost].mean]
            series.append(Series(one.label, x, [one.summary.accuracy], "points", one.place, [low], [high]))
        kept = sorted({one.budgets[cost] for one in entries if cost in one.budgets})
        charts.append(
            Chart(
                f"budgets_{cost}", f"accuracy against mean {title}", unit, "accuracy", series, "percent",
                marks=marks(kept),
            )
        )  # fmt: skip
    return charts


def rl_charts(runs: Sequence[RlRun]) -> list[Chart]:
    """What the metrics of at most `SERIES` runs hold of `RL_PANELS`. One run: a colour per metric; several: a colour per
    run, and a dash per metric or, if there is but one, per run."""
    charts = []
    for panel in RL_PANELS:
        series = [
            Series(
                word if len(runs) == 1 else run.label if len(panel.metrics) == 1 else f"{run.label}: {word}", *found,
                "line" if metric.startswith("eval/") else "smooth", index if len(runs) == 1 else place,
                dash=index if len(panel.metrics) > 1 else None,
            )
            for place, run in enumerate(runs[:SERIES])
            for index, (metric, word) in enumerate(panel.metrics.items())
            for found in [points(run.records, metric)]
            if found[0]
        ]  # fmt: skip
        if series:
            positive = all(value > 0 for one in series for value in one.y)
            scale = panel.scale if panel.scale != "log" or positive else "linear"
            charts.append(Chart(f"rl_{panel.name}", f"RL: {panel.title} by step", "step", panel.unit, series, scale))
    return charts


def points(records: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[float], list[float]]:
    """Steps and values where the record has a finite value."""
    found = [
        (float(record["step"]), float(record[metric]))
        for record in records
        if isinstance(record.get(metric), int | float) and math.isfinite(record[metric])
    ]
    return [step for step, _ in found], [value for _, value in found]
