"""The report: one self-contained HTML file that answers whether spawning pays, where, and at what price.

No network, no server: style, plots, script and traces are inside. All text that comes from outside this module
(names, sentences, model text) is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from apr.evaluation.metrics import COSTS, METRICS, Attempt, McNemar, Summary, attempts, interval, summarise
from apr.report.figures import AXES, accuracy_panel, rl_panels, swatch
from apr.report.viewer import Source, Text, page, trace_view
from apr.runs import write_text
from apr.threads.trace import Trace

TABLE_COSTS = {
    "context": "context",
    "work": "work",
    "span_sampled": "span, sampled",
    "parallelism_sampled": "parallelism, sampled",
    "threads": "threads",
    "width": "width",
    "seconds": "seconds, under load",
}
PRICES = {"context": "context", "work": "work", "span_sampled": "span, sampled"}


@dataclass(frozen=True)
class Teacher:
    """A solver's own success on its student's problems, within the same context window."""

    name: str
    solved: int
    n: int


@dataclass(frozen=True)
class Row:
    """One model or baseline: its summary, and the attempts that the curves are drawn from."""

    summary: Summary
    attempts: Sequence[Attempt]
    teacher: Teacher | None = None

    @classmethod
    def of(
        cls, name: str, tries: Sequence[Trace | Attempt], description: str = "", teacher: Teacher | None = None
    ) -> Row:
        """The row of traces or attempts, one per problem. Raises `ValueError` if none of them can be scored."""
        return cls(summarise(name, tries, description), attempts(tries), teacher)


@dataclass(frozen=True)
class Comparison:
    """Row `a` against row `b` (by name) on the same problems, and what that says in words."""

    a: str
    b: str
    test: McNemar
    sentence: str


@dataclass(frozen=True)
class RunFacts:
    """What the numbers depend on. `seconds`: wall time per stage."""

    command: str
    commit: str
    date: str
    hardware: str
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """All that a report shows. `curves`: the lines of metrics.jsonl; `traces`: a dozen, for the view."""

    title: str
    rows: Sequence[Row]
    comparisons: Sequence[Comparison]
    limits: Mapping[str, Any]
    budgets: Mapping[str, Any]
    facts: RunFacts
    curves: Sequence[Mapping[str, Any]] = field(default=())
    traces: Sequence[Trace] = field(default=())
    lead: str = ""


def write_report(path: Path, report: Report, text: Text) -> None:
    """Write `report` to `path`, whole or not at all. `text`: token ids to text, for the trace view.

    Raises `ValueError` if a comparison names a row that is not there, or one of several of that name.
    """
    names = [row.summary.name for row in report.rows]
    for comparison in report.comparisons:
        if names.count(comparison.a) != 1 or names.count(comparison.b) != 1:
            raise ValueError(f"the comparison of {comparison.a!r} and {comparison.b!r} needs one row of each name")
    sections = [
        _header(report),
        _comparisons(report),
        _results(report),
        _curves(report),
        _section("Traces", trace_view([Source("traces", report.traces, text)]), "A dozen attempts as they ran: threads "
                 "start, run side by side and return."),
        _percentiles(report),
        _limits(report),
        _facts(report.facts),
        _definitions(),
    ]  # fmt: skip
    write_text(path, page(report.title, "\n".join(section for section in sections if section)))


def _section(title: str, body: str, note: str = "", classes: str = "") -> str:
    hint = f'<p class="note">{escape(note)}</p>\n' if note else ""
    return f'<section class="{classes}">\n<h2>{escape(title)}</h2>\n{hint}{body}\n</section>'


def _header(report: Report) -> str:
    lead = f'<p class="lead">{escape(report.lead)}</p>\n' if report.lead else ""
    made = f'<p class="note">{escape(report.facts.date)}, commit {escape(report.facts.commit)}</p>'
    return f"<header>\n<h1>{escape(report.title)}</h1>\n{lead}{made}\n</header>"


def _comparisons(report: Report) -> str:
    if not report.comparisons:
        return ""
    rows = {row.summary.name: row.summary for row in report.rows}
    swatches = {row.summary.name: swatch(index) for index, row in enumerate(report.rows)}
    cards = []
    for comparison in report.comparisons:
        a, b, test = rows[comparison.a], rows[comparison.b], comparison.test
        points = 100 * (test.only_a - test.only_b) / test.n if test.n else 0.0
        prices = "".join(
            f"<span>{escape(label)} <b>{_ratio(a.costs[cost].mean, b.costs[cost].mean)}</b></span>"
            for cost, label in PRICES.items()
        )
        tone = "clear" if test.p_value < 0.01 else "unclear"
        cards.append(
            f'<article class="card {tone}">\n<h3>{swatches[a.name]}{escape(a.name)} <small>against</small> '
            f"{swatches[b.name]}{escape(b.name)}</h3>\n"
            f'<p class="gain">{_signed(points)} <small>points on {test.n:,} problems; '
            f"p {_p_value(test.p_value)}</small></p>\n<p>{escape(comparison.sentence)}</p>\n"
            f'<p class="price"><em>price</em>{prices}</p>\n'
            f'<p class="note">solved by it alone {test.only_a:,}, by the other alone {test.only_b:,}</p>\n</article>'
        )
    return _section(
        "Does spawning pay?", f'<div class="cards">{"".join(cards)}</div>', "Points of accuracy on the same problems, "
        "with McNemar's exact test; price is the ratio of mean costs.",
    )  # fmt: skip


def _results(report: Report) -> str:
    heads = "".join(f'<th scope="col">{escape(label)}</th>' for label in TABLE_COSTS.values())
    taught = any(row.teacher for row in report.rows)
    body = []
    for index, row in enumerate(report.rows):
        s = row.summary
        low, high = s.interval
        lost = f"<br><small>{s.lost} lost</small>" if s.lost else ""
        costs = "".join(
            f"<td>{_number(s.costs[cost].mean)}<br><small>p90 {_number(s.costs[cost].p90)}</small></td>"
            for cost in TABLE_COSTS
        )
        body.append(
            f'<tr><th scope="row">{swatch(index)}{escape(s.name)}<br><small>{escape(s.description)}</small>'
            f"</th><td>{s.n:,}{lost}</td>"
            f'<td class="accuracy"><b>{s.accuracy:.1%}</b> <small>{low:.1%} to {high:.1%}</small>{_whisker(row)}</td>'
            f"{_teacher(row.teacher) if taught else ''}{costs}</tr>"
        )
    teacher_head = '<th scope="col" class="teacher">its solver itself</th>' if taught else ""
    table = (
        '<div class="wide"><table class="results">\n<thead><tr><th scope="col">model</th><th scope="col">problems</th>'
        f'<th scope="col">accuracy, 95% interval</th>{teacher_head}{heads}</tr></thead>\n<tbody>'
        f"{''.join(body)}</tbody></table></div>"
    )
    panels = "".join(
        f"<figure>{accuracy_panel([(row.summary.name, row.attempts) for row in report.rows], cost, budget)}</figure>"
        for cost in AXES
        for budget in [report.budgets.get(cost)]
    )
    legend = "".join(f"<span>{swatch(index)}{escape(row.summary.name)}</span>" for index, row in enumerate(report.rows))
    note = "Mean costs, with the 90th percentile below. Bars run from 0 to 100%; the band is the 95% interval."
    if taught:
        note += " A solver's own success (hollow mark) is its demonstrations', not its student's."
    curves = (
        f'<h3>Where, and at what price</h3>\n<p class="legend">{legend}</p>\n<div class="plots">{panels}</div>\n'
        '<p class="note">Share of all problems solved by attempts that cost at most this much. Each curve ends at its '
        "costliest attempt, with the 95% interval; the thin line beyond gains nothing.</p>"
    )
    return _section("Results", f"{table}\n{curves}", note)


def _whisker(row: Row) -> str:
    low, high = row.summary.interval
    marks = f'<i class="band" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
    marks += f'<i class="mean" style="left:{100 * row.summary.accuracy:.2f}%"></i>'
    if row.teacher and row.teacher.n:
        marks += f'<i class="own" style="left:{100 * row.teacher.solved / row.teacher.n:.2f}%"></i>'
    return f'<div class="whisker" aria-hidden="true">{marks}</div>'


def _teacher(teacher: Teacher | None) -> str:
    if teacher is None:
        return "<td></td>"
    low, high = interval(teacher.solved, teacher.n)
    rate = f"{teacher.solved / teacher.n:.1%}" if teacher.n else "not tried"
    return (
        f'<td class="teacher">{rate} <small>{low:.1%} to {high:.1%}</small><br>'
        f"<small>{escape(teacher.name)}, {teacher.n:,} problems</small></td>"
    )


def _curves(report: Report) -> str:
    panels = rl_panels(report.curves)
    if not panels:
        return ""
    figures = "".join(f"<figure>{panel}</figure>" for panel in panels)
    return _section(
        "Reinforcement learning", f'<div class="plots">{figures}</div>',
        "By optimiser step: thin lines are single steps, thick ones running means; diamonds are validation.",
    )  # fmt: skip


def _percentiles(report: Report) -> str:
    blocks = []
    for index, row in enumerate(report.rows):
        s = row.summary
        lines = "".join(
            f'<tr><th scope="row">{escape(cost)}</th>'
            + "".join(f"<td>{_number(value)}</td>" for value in (c.mean, c.p50, c.p90, c.p99, c.max))
            + "</tr>"
            for cost in COSTS
            for c in [s.costs[cost]]
        )
        stops = "".join(
            f"<span>{escape(stop.replace('_', ' '))} <b>{count:,}</b> ({count / s.n:.1%})</span>"
            for stop, count in s.stops.items()
        )
        heads = "".join(f'<th scope="col">{head}</th>' for head in ("cost", "mean", "p50", "p90", "p99", "max"))
        blocks.append(
            f'<article><h3>{swatch(index)}{escape(s.name)}</h3><p class="chips">{stops}</p><table>'
            f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></article>"
        )
    return _section(
        "All costs, and how attempts ended", f'<div class="grid">{"".join(blocks)}</div>',
        "Why the root thread stopped, in attempts; then tokens, threads, ratios and seconds.",
    )  # fmt: skip


def _limits(report: Report) -> str:
    parts = []
    for title, values, meaning in (
        ("Limits", report.limits, "stop a thread or a trace while it runs"),
        ("Budgets", report.budgets, "conditions on costs that enter the reward"),
    ):
        lines = _pairs({name: "none" if value is None else value for name, value in values.items()})
        parts.append(f"<article><h3>{title} <small>{meaning}</small></h3>{lines or '<p>none</p>'}</article>")
    return _section("Limits and budgets in force", f'<div class="grid">{"".join(parts)}</div>')


def _facts(facts: RunFacts) -> str:
    run = {"command": facts.command, "commit": facts.commit, "date": facts.date, "hardware": facts.hardware}
    stages = {stage: _duration(seconds) for stage, seconds in facts.seconds.items()}
    if stages:
        stages["together"] = _duration(sum(facts.seconds.values()))
    parts = (("Run", run), ("Wall time by stage", stages), ("Seeds", facts.seeds), ("Versions", facts.versions))
    body = "".join(f"<article><h3>{title}</h3>{_pairs(values)}</article>" for title, values in parts if values)
    return _section("How this was made", f'<div class="grid facts">{body}</div>')


def _definitions() -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in METRICS.items())
    return _section("What the words mean", f'<dl class="definitions">{lines}</dl>')


def _pairs(values: Mapping[str, Any]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(v))}</td></tr>' for name, v in values.items()
    )
    return f'<table class="pairs"><tbody>{lines}</tbody></table>' if lines else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _ratio(a: float, b: float) -> str:
    return f"\u00d7{a / b:.2f}" if b else "n/a"


def _signed(points: float) -> str:
    return f"{'+' if points > 0 else chr(0x2212) if points < 0 else ''}{abs(points):.1f}"


def _p_value(p: float) -> str:
    """As HTML, to one significant digit where it is small."""
    if p >= 0.001:
        return f"= {p:.3f}"
    return "&lt; 0.001" if p >= 1e-4 else f"&lt; 10<sup>\u2212{-math.ceil(math.log10(max(p, 1e-99)))}</sup>"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
