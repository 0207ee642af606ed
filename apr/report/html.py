"""The page: one self-contained HTML file that answers whether spawning pays, where, and at what price.

No network, no server: style, plots, script and traces are inside. All text that comes from outside this module
(names, sentences, model text) is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from apr.evaluation.metrics import COSTS, METRICS, Summary, interval
from apr.report.chart import THEIRS, Chart, Table, swatch
from apr.report.comparisons import EQUAL, RULE, Comparison, Question, named, note, times
from apr.report.content import Report, RunFacts
from apr.report.entries import Row
from apr.report.tables import number, p_value
from apr.report.teachers import Teacher
from apr.report.viewer import page
from apr.threads.trace import StopReason

TABLE_COSTS = {
    "context": "context", "work": "work", "span_sampled": "span, sampled", "parallelism_sampled": "parallelism, sampled",
    "threads": "threads", "width": "width", "seconds": "seconds",
}  # fmt: skip
PAPER = "Learning Adaptive Parallel Reasoning (arXiv 2504.15466)"


def html(report: Report) -> str:
    """The whole page. Without evaluations, only what RL runs and the report itself have to say."""
    if not report.rows:
        sections = [_header(report), _runs(report), _facts(report.facts)]
        return page(report.title, "\n".join(sections))
    sections = [
        _header(report),
        _comparisons(report),
        _results(report),
        _ours(report),
        _budgets(report),
        _runs(report),
        _section("Traces", report.view, "A few attempts at the same problems as they ran: threads start, run side by side and "
                 "return."),
        _settings(report),
        _section("Prices", _table(report.prices) + _table(report.other_systems)),
        _percentiles(report),
        _section(report.in_force.title, _table(report.in_force, titled=False)),
        _facts(report.facts),
        _definitions(),
        _theirs(report),
    ]  # fmt: skip
    return page(report.title, "\n".join(section for section in sections if section))


def _section(title: str, body: str, note: str = "", classes: str = "") -> str:
    hint = f'<p class="note">{escape(note)}</p>\n' if note else ""
    return f'<section class="{classes}">\n<h2>{escape(title)}</h2>\n{hint}{body}\n</section>'


def _header(report: Report) -> str:
    lead = f'<p class="lead">{escape(report.lead)}</p>\n' if report.lead else ""
    made = f'<p class="note">{escape(report.facts.date)}, commit {escape(report.facts.commit)}</p>'
    told = "".join(f"<li>{escape(notice)}</li>" for notice in report.notices)
    notices = f'<ul class="notices" role="note" aria-label="what to know first">{told}</ul>' if told else ""
    return f"<header>\n<h1>{escape(report.title)}</h1>\n{lead}{made}\n{notices}</header>"


def _comparisons(report: Report) -> str:
    sections = []
    for heading in dict.fromkeys(question.heading for question in report.questions):
        asked = [question for question in report.questions if question.heading == heading]
        sections.append(_section(heading, "".join(map(_question, asked)), RULE))
    if report.questions:
        sections.append(f'<section><p class="note">{escape(note(report.questions))}</p></section>')
    if report.paired.records:
        every = f"<details><summary>Every pair, {len(report.paired.records)} in all</summary>{_table(report.paired)}</details>"
        sections.append(f"<section>{every}</section>")
    return "\n".join(sections)


def _question(question: Question) -> str:
    told = f'<p class="note">{escape(question.note)}</p>' if question.note else ""
    cards = [_card(f"at equal {named(costs)}", one) for costs, one in question.equal.items()] + [
        f'<article class="card none"><h4>at equal {named([cost])}</h4>\n<p>{escape(question.missing(cost))}</p></article>\n'
        for cost in question.unequal
    ]
    title = (
        f"{swatch(question.model.place)}{escape(question.model.name)} <small>against {escape(question.kind)}</small>"
    )
    return f'<h3>{title}</h3>{told}<div class="cards">{"".join(cards)}</div>'


def _card(head: str, one: Comparison) -> str:
    a, b, test = one.a, one.b, one.test
    low, high = (_signed(100 * end) for end in test.gain_interval)
    prices = " ".join(f"<span>{escape(word)} <b>{times(one.ratio(cost))}</b></span>" for cost, word in EQUAL.items())
    sides = "".join(
        f"<p>{swatch(side.place)}{escape(side.name)} <b>{summary.accuracy:.1%}</b> "
        f'<small class="own">{summary.interval[0]:.1%} to {summary.interval[1]:.1%}{_at_window(summary)}</small></p>'
        for side, summary in ((one.model, a), (one.rival, b))
    )
    only_a, only_b = one.alone
    alone = "" if only_a is None else f": {only_a:,} that only the first solves, {only_b:,} only the second"
    tone = "clear" if test.p_value < 0.01 else "unclear"
    return (
        f'<article class="card {tone}"><h4>{head}</h4>\n'
        f'<p class="gain">{_signed(100 * test.gain)} <small>points ({low} to {high})</small></p>\n'
        f'<p class="price"><em>ratio of</em> {prices}</p>\n{sides}\n'
        f'<p class="note">p {_p_value(test.p_value)} {escape(one.where + alone)}</p></article>\n'
    )


def _at_window(summary: Summary) -> str:
    """How many attempts the context window cut off."""
    cut = summary.stops.get(StopReason.CONTEXT.value, 0)
    return f"; {cut / summary.n:.1%} cut off by the window" if cut else ""


def _results(report: Report) -> str:
    heads = "".join(f'<th scope="col">{escape(label)}</th>' for label in TABLE_COSTS.values())
    taught = any(row.teacher for row in report.rows)
    body = []
    for row in report.rows:
        s = row.summary
        low, high = s.interval
        lost = f"<br><small>{s.lost} lost</small>" if s.lost else ""
        costs = "".join(
            f"<td>{number(s.costs[cost].mean)}<br><small>p90 {number(s.costs[cost].p90)}</small></td>"
            for cost in TABLE_COSTS
        )
        body.append(
            f'<tr><th scope="row">{swatch(row.place)}{escape(s.name)}<br><small>{escape(s.description)}</small>'
            f"</th><td>{row.problems:,}{lost}</td>"
            f'<td class="accuracy"><b>{s.accuracy:.1%}</b> <small>{low:.1%} to {high:.1%}</small>{_whisker(row)}</td>'
            f"{_teacher(row.teacher) if taught else ''}{costs}</tr>"
        )
    teacher_head = '<th scope="col" class="teacher">its solver itself</th>' if taught else ""
    table = (
        '<div class="wide"><table class="results">\n<thead><tr><th scope="col">model</th><th scope="col">problems</th>'
        f'<th scope="col">accuracy, 95% interval</th>{teacher_head}{heads}</tr></thead>\n<tbody>'
        f"{''.join(body)}</tbody></table></div>"
    )
    note = "Mean costs, with the 90th percentile below. Bars run from 0 to 100%; the band is the 95% interval."
    if taught:
        note += " A solver's own success (hollow mark) is its demonstrations', not its student's."
    drawn = {one.name for chart in report.curves for one in chart.series}
    legend = "".join(
        f"<span>{swatch(row.place)}{escape(row.summary.name)}</span>"
        for row in report.rows
        if row.summary.name in drawn
    )
    curves = (
        f'<h3>Where, and at what price</h3>\n<p class="legend">{legend}</p>\n{_plots(report.curves)}\n'
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


def _ours(report: Report) -> str:
    """Our side of the paper's tables and figures; with theirs where ours are in the paper's setting."""
    shared = report.published is None
    parts = [_table(report.temperatures)]
    for figure in report.paper:
        charts = [*figure.ours, *figure.theirs] if shared else figure.ours
        if charts:
            told = f"{figure.note} Theirs: {figure.their_note}".strip() if shared else figure.note
            parts.append(_figure(f"{figure.title} ({figure.number})" if shared else figure.title, told, charts))
    if shared:
        told = f"{PAPER}: ours, and the published numbers labelled as theirs."
        return _section("The paper's tables and figures", "\n".join(parts), told)
    return _section("By temperature, tokens and latency", "\n".join(parts))


def _theirs(report: Report) -> str:
    """The published numbers, folded, where ours are of another setting."""
    if report.published is None:
        return ""
    parts = [_table(report.published)]
    for figure in report.paper:
        if figure.theirs:
            parts.append(_figure(f"{figure.title} ({figure.number})", figure.their_note, figure.theirs))
    body = f"<details><summary>Tables and figures of {PAPER}</summary>{''.join(parts)}</details>"
    return _section(
        "Published numbers", body, "Of other problems and larger models: none of them is comparable with ours."
    )


def _figure(title: str, told: str, charts: Sequence[Chart]) -> str:
    said = f'<p class="note">{escape(told)}</p>' if told else ""
    return f"<h3>{escape(title)}</h3>\n{said}{_plots(charts)}"


def _budgets(report: Report) -> str:
    if report.budgets is None:
        return ""
    table, charts = report.budgets
    return _section(
        "Budgets", f"{_table(table, titled=False)}\n{_plots(charts)}", "Do budgets steer? Bars are 95% intervals."
    )


def _runs(report: Report) -> str:
    if not report.runs:
        return ""
    table, differing, charts = report.runs
    between = _table(differing) if differing.records else ""
    return _section(
        "Reinforcement learning", f"{_table(table, titled=False)}\n{between}\n{_plots(charts)}",
        "By optimiser step: thin lines are single steps, thick ones running means; marks are validation.",
    )  # fmt: skip


def _settings(report: Report) -> str:
    if not report.settings.records:
        return ""
    return _section(report.settings.title, _table(report.settings, titled=False))


def _plots(charts: Sequence[Chart]) -> str:
    figures = "".join(
        f'<figure id="{chart.name}"{_marked(chart)}>{chart.svg()}</figure>' for chart in charts
    )  # fmt: skip
    return f'<div class="plots">{figures}</div>'


def _marked(chart: Chart) -> str:
    """Marks a figure of nothing but published numbers."""
    return ' class="theirs"' if all(one.source == THEIRS for one in chart.series) else ""


def _table(table: Table, titled: bool = True) -> str:
    heads = "".join(f'<th scope="col">{escape(column.head)}</th>' for column in table.columns)
    body = []
    for record in table.records:
        cells = []
        for place, column in enumerate(table.columns):
            small = escape(column.small(record)) if column.small else ""
            text = escape(column.text(record)) + (f"<br><small>{small}</small>" if small else "")
            cells.append(f'<th scope="row">{text}</th>' if place == 0 else f"<td>{text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    title = f"<h3>{escape(table.title)}</h3>\n" if titled else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'{title}<div class="wide"><table class="plain"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def _percentiles(report: Report) -> str:
    blocks = []
    for row in report.rows:
        s = row.summary
        lines = "".join(
            f'<tr><th scope="row">{escape(cost)}</th>'
            + "".join(f"<td>{number(value)}</td>" for value in (c.mean, c.p50, c.p90, c.p99, c.max))
            + "</tr>"
            for cost in COSTS
            for c in [s.costs[cost]]
        )
        stops = "".join(
            f"<span>{escape(stop.replace('_', ' '))} <b>{count:,}</b> ({count / s.n:.1%})</span>"
            for stop, count in s.stops.items()
        )
        heads = "".join(f'<th scope="col">{head}</th>' for head in ("cost", "mean", "p50", "p90", "p99", "max"))
        tried = f"{row.problems:,} problems" + (f", {s.n:,} attempts" if s.n > row.problems else "")
        blocks.append(
            f'<article><h3>{swatch(row.place)}{escape(s.name)} <small>{tried}</small></h3><p class="chips">{stops}</p><table>'
            f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></article>"
        )
    return _section(
        "All costs, and how attempts ended", f'<div class="grid">{"".join(blocks)}</div>',
        "Why the root thread stopped, in attempts; then tokens, threads, ratios and seconds.",
    )  # fmt: skip


def _facts(facts: RunFacts) -> str:
    run = {"command": facts.command, "commit": facts.commit, "date": facts.date, "hardware": facts.hardware}
    stages = {stage: _duration(seconds) for stage, seconds in facts.seconds.items()}
    if stages:
        stages["together"] = _duration(sum(facts.seconds.values()))
    parts = (("Run", run), ("Wall time by stage", stages), ("Versions", facts.versions))
    body = "".join(f"<article><h3>{title}</h3>{_pairs(values)}</article>" for title, values in parts if values)
    return _section("How this report was made", f'<div class="grid facts">{body}</div>')


def _definitions() -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in METRICS.items())
    return _section("What the words mean", f'<dl class="definitions">{lines}</dl>')


def _pairs(values: Mapping[str, Any]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(v))}</td></tr>' for name, v in values.items()
    )
    return f'<table class="pairs"><tbody>{lines}</tbody></table>' if lines else ""


def _signed(points: float) -> str:
    return f"{'+' if points > 0 else chr(0x2212) if points < 0 else ''}{abs(points):.1f}"


def _p_value(p: float) -> str:
    text = escape(p_value(p))
    return text if text.startswith("&lt;") else f"= {text}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
