"""The APR paper's tables and figures (arXiv 2504.15466) from our evaluations, with the published numbers beside them.

Ours and theirs share axes only where the evaluations are in the paper's setting; else theirs are charts of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apr.evaluation.baselines import pass_at, samples_by_problem
from apr.evaluation.metrics import Attempt, Summary, summarise
from apr.report import published
from apr.report.chart import THEIRS, Chart, Series
from apr.report.entries import Entry

NAMES = {  # what is compared before and after RL (figures 5 and 7)
    "accuracy": "accuracy", "work": "total tokens (work)", "tokens per thread": "tokens per thread",
    "branches": "children started",
}  # fmt: skip


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper: ours, and theirs (empty where ours have it on their axes). `number`: in the paper."""

    title: str
    number: str
    note: str
    their_note: str
    ours: Sequence[Chart]
    theirs: Sequence[Chart]


def paper_figures(entries: Sequence[Entry]) -> list[PaperFigure]:
    """Figures 4a and 8 (by temperature), 4b (ours are the report's own curves), 6, 5 and 7; those that there is data for."""
    shared = in_the_papers_setting(entries)
    paced = [one for one in entries if not one.alone] or list(entries)
    temperatures = sorted({one.config.temperature for one in paced})
    places = {variant: place for place, variant in enumerate(dict.fromkeys(one.variant for one in entries))}
    pairs = [_joined(_tokens(paced, t, places), _published_tokens(t), shared) for t in temperatures]
    title = f"{published.SOURCE}, figure 4b, T=1"
    windows = Chart("published_window", title, "context window, tokens", "accuracy", published.by_window())
    by_tokens, by_clock = _latency(entries, places)
    their_tokens, their_clock = _published_latency()
    spans = _joined(by_tokens, their_tokens, shared and temperatures == [1.0])
    figures = [
        PaperFigure(
            "Accuracy by total tokens", "figures 4a and 8",
            "Points on a line: children asked for, or samples voted over. Total tokens are the mean work of a problem.",
            "The paper draws its point of 9 children at T=1 (74.0%) but leaves it out of its line; here it is on it. Which of "
            "its points are of how many children was inferred; its SoS+ is conditioned on 4,096 tokens, and its tokens at "
            "T=0.1 and 0.5 are taken to be those at T=1.",
            [ours for ours, _ in pairs], [theirs for _, theirs in pairs if theirs],
        ),
        PaperFigure(
            "Accuracy by context window", "figure 4b", "", "At T=1; ours is the first curve under Results.", [], [windows],
        ),
        PaperFigure(
            "Accuracy by latency", "figure 6",
            "Sequential tokens are span_sampled; milliseconds are of one problem at a time where such an evaluation is given, "
            "on the hardware named below.",
            "At T=1; milliseconds of one problem on eight A6000 GPUs.",
            [spans[0], by_clock], [chart for chart in (spans[1], their_clock) if chart],
        ),
    ]  # fmt: skip
    if gains := before_and_after(entries):
        figures.append(
            PaperFigure(
                "Before and after RL", "figures 5 and 7", "", "Greedy, at their own size.",
                [_bars(gains, quantity) for quantity in NAMES], [_published_bars(quantity) for quantity in NAMES],
            )
        )  # fmt: skip
    return figures


def before_and_after(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Each evaluation of an RL model with that of its teacher's SFT model, all else being equal: one sample a problem,
    under load, at the lowest temperature that an RL model was evaluated at."""

    def settings(one: Entry) -> tuple[object, ...]:
        c = one.config
        return one.solver, one.problem_set, one.asked, c.limits, c.temperature, c.condition, c.samples, one.alone

    coldest = min((one.config.temperature for one in entries if one.tuned and not one.alone), default=0.0)
    entries = [
        one for one in entries if one.config.temperature == coldest and one.config.samples == 1 and not one.alone
    ]
    before = {settings(one): one for one in reversed(entries) if not one.tuned and one.solver}
    return [(before[settings(one)], one) for one in entries if one.tuned and settings(one) in before]


def in_the_papers_setting(entries: Sequence[Entry]) -> bool:
    """Whether all evaluations are: only then do published numbers stand beside ours."""
    return bool(entries) and all(map(_in_the_papers_setting, entries))


def _in_the_papers_setting(one: Entry) -> bool:
    problems = one.evaluation.problems.values()
    return one.config.limits.context == published.WINDOW and all(map(published.is_one_of_theirs, problems))


def _joined(ours: Chart, theirs: Chart | None, shared: bool) -> tuple[Chart, Chart | None]:
    """Theirs on the axes of ours, if these are shared, and nothing of its own then."""
    if theirs is None or not shared:
        return ours, theirs
    places = len(ours.series)
    moved = [replace(one, place=places + i) for i, one in enumerate(theirs.series)]
    return replace(ours, series=[*ours.series, *moved]), None


def _point(summary: Summary, x: float) -> tuple[float, float, float, float]:
    return (x, summary.accuracy, *summary.interval)


def _line(name: str, place: int, points: Sequence[tuple[float, float, float, float]], labels: Sequence[str]) -> Series:
    x, y, low, high = ([point[i] for point in points] for i in range(4))
    return Series(name, x, y, "line", place, low, high, labels)


def _lines(entries: Sequence[Entry], x: Callable[[Summary], float], places: Mapping[str, int]) -> list[Series]:
    """For each model a line over the children or the context asked for, fewest first, where nothing else differs; what was not
    asked for anything is points, one a temperature. One sample a problem."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for one in entries:
        if one.config.samples == 1:
            condition = one.config.condition
            alike = () if condition is None else (condition.kind, one.config.temperature)
            groups.setdefault((one.circumstances, *alike), []).append(one)
    heats = len({one.config.temperature for one in entries}) > 1
    lines: list[Series] = []
    for group in groups.values():
        group.sort(key=_degree)
        condition = group[0].config.condition
        name = f"{group[0].model}, {condition.kind} asked for" if condition else group[0].variant
        if name in {line.name for line in lines}:  # another window, say: its own label tells
            name = group[0].title
        labels = [f"{_degree(one):g}" if condition else f"T={_degree(one):g}" if heats else "" for one in group]
        points = [_point(one.summary, x(one.summary)) for one in group]
        line = _line(name, places[group[0].variant], points, labels)
        lines.append(line if condition else replace(line, kind="points"))
    return lines


def _degree(one: Entry) -> float:
    """Where it stands among its like: by what was asked for, or by temperature."""
    return one.config.condition.value if one.config.condition else one.config.temperature


def _tokens(entries: Sequence[Entry], temperature: float, places: Mapping[str, int]) -> Chart:
    own = [one for one in entries if one.config.temperature == temperature]
    series = _lines(own, lambda summary: summary.costs["work"].mean, places)
    voted = [one for one in own if one.config.samples > 1]
    for number, one in enumerate(voted):
        groups = samples_by_problem(one.attempts)
        for i, (kind, vote) in enumerate((("cons", one.majority), ("pass", pass_at))):
            votes = [_votes(groups, vote, n) for n in range(1, one.config.samples + 1)]
            points = [_point(summary, summary.costs["work"].mean) for summary in votes]
            series.append(_line(f"{one.label} {kind}@n", len(places) + 2 * number + i, points, []))
    title = f"accuracy by total tokens, T={temperature:g}"
    return Chart(f"tokens_T{temperature:g}", title, "total tokens", "accuracy", series)


def _votes(groups: Sequence[Sequence[Attempt]], vote: Callable[[Sequence[Attempt]], Attempt], n: int) -> Summary:
    return summarise(f"{n}", [vote(group[:n]) for group in groups])


def _published_tokens(temperature: float) -> Chart | None:
    title = f"{published.SOURCE}, T={temperature:g}"
    series = published.by_tokens(temperature)
    return Chart(f"published_tokens_T{temperature:g}", title, "total tokens", "accuracy", series) if series else None


def _latency(entries: Sequence[Entry], places: Mapping[str, int]) -> list[Chart]:
    alone = [one for one in entries if one.alone]
    timed = alone or entries
    charts = [
        ("latency_tokens", "accuracy by sequential tokens", "span, sampled tokens",
         _lines([one for one in entries if not one.alone] or entries, lambda s: s.costs["span_sampled"].mean, places)),
        ("latency_ms", f"accuracy by milliseconds, {'one problem alone' if alone else 'under load'}", "milliseconds",
         _lines(timed, lambda s: 1000 * s.costs["seconds"].mean, places)),
    ]  # fmt: skip
    return [Chart(name, title, x, "accuracy", series) for name, title, x, series in charts]


def _published_latency() -> list[Chart]:
    halves = (
        ("tokens", "sequential tokens", published.BY_SPAN),
        ("ms", "milliseconds, one problem on 8 GPUs", published.BY_MILLISECONDS),
    )
    return [
        Chart(f"published_latency_{name}", f"{published.SOURCE}: {x}", x, "accuracy", published.by_latency(points))
        for name, x, points in halves
    ]


def _bars(pairs: Sequence[tuple[Entry, Entry]], quantity: str) -> Chart:
    series = []
    for place, stage in enumerate(("before RL", "after RL")):
        values = [_quantity(pair[place], quantity) for pair in pairs]
        low, high = ([value[i] for value in values] for i in (1, 2))
        if quantity != "accuracy":
            low, high = [], []
        y = [value[0] for value in values]
        labels = [_word(value, quantity) for value in y]
        x = [float(i) for i in range(len(pairs))]
        series.append(Series(stage, x, y, "bars", place, low, high, labels))
    names = [after.variant for _, after in pairs]
    return Chart(
        f"rl_gain_{quantity.replace(' ', '_')}", NAMES[quantity], "", NAMES[quantity], series,
        "share" if quantity == "accuracy" else "zero", categories=names,
    )  # fmt: skip


def _quantity(one: Entry, quantity: str) -> tuple[float, float, float]:
    """The value, and the ends of its interval (of accuracies alone)."""
    if quantity == "accuracy":
        return (one.summary.accuracy, *one.summary.interval)
    value = one.systems.tokens_per_thread if quantity == "tokens per thread" else one.summary.costs[quantity].mean
    return value, value, value


def _published_bars(quantity: str) -> Chart:
    had: Mapping[str, tuple[float, float]] = {
        model: numbers[quantity] for model, numbers in published.BEFORE_AFTER.items() if quantity in numbers
    }
    scale = 0.01 if quantity == "accuracy" else 1.0
    series = []
    for place, stage in enumerate(("before RL", "after RL")):
        y = [pair[place] * scale for pair in had.values()]
        labels = [_word(value, quantity) for value in y]
        x = [float(i) for i in range(len(had))]
        series.append(Series(stage, x, y, "bars", place, labels=labels, source=THEIRS))
    return Chart(
        f"published_rl_gain_{quantity.replace(' ', '_')}", f"{published.SOURCE}: {NAMES[quantity]}", "", NAMES[quantity],
        series, "share" if quantity == "accuracy" else "zero", categories=list(had),
    )  # fmt: skip


def _word(value: float, quantity: str) -> str:
    return f"{value:.1%}" if quantity == "accuracy" else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
