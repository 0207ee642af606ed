"""The page, its figures and its tables: complete, self-contained, and safe against what models write."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from scored import attempt_of

from apr.config import RlConfig
from apr.evaluation.metrics import mcnemar, summarise
from apr.report import published
from apr.report.chart import DASHES, MARKERS, SERIES, Chart, Column, Series, Table, apart, look
from apr.report.charts import accuracy_within, rl_charts
from apr.report.comparisons import RL, SPAWNING, Comparison, Contender, Question, equal_costs
from apr.report.content import Report, RunFacts
from apr.report.entries import RlRun, Row
from apr.report.html import html
from apr.report.markdown import markdown
from apr.report.paper import PaperFigure
from apr.report.tables import differences, published_temperatures, results, rl_runs
from apr.report.teachers import Teacher
from apr.threads.trace import StopReason

HOSTILE = '</script><img src="https://example.org/x" onerror="alert(1)"> & "quoted" $x^2$ | `code`'
FACTS = RunFacts("apr report", "abc123", "2030-01-02", "2 cores", {"torch": "2.13.0"}, {"sft": 61.0, "rl": 3_700.0})
EMPTY = Table("empty", "Empty", [], [Column("key", lambda r: r["key"])])


def row(name: str, solved: list[bool], place: int = 0, teacher: Teacher | None = None, description: str = "") -> Row:
    tries = [attempt_of(str(i), correct, context=10.0 * (i + 1)) for i, correct in enumerate(solved)]
    return Row(summarise(name, tries, description), tries, place, teacher)


def question(a: Row, b: Row, heading: str = SPAWNING, **more: Any) -> Question:
    """Of rows on the same problems; a page draws nothing of their entries."""
    test = mcnemar(*([one.correct for one in row.attempts] for row in (a, b)))
    sides = [Contender(row.summary.name, None, row.attempts, row.place) for row in (a, b)]  # type: ignore[arg-type]
    found = Comparison(*sides, a.summary, b.summary, test)
    return Question(heading, sides[0], "serial rows", dict.fromkeys(("work", "context", "span_sampled"), found), **more)


def report(**changes: Any) -> Report:
    rows = [
        row("serial", [True, False, False, False], 0, Teacher("SoS+ solver", 3, 4), "one line"),
        row("spawned", [True, True, False, True], 1, None, "threads"),
    ]
    asked = [question(rows[1], rows[0], note="Teachers differ.")]
    whole = Report(
        title="Does it pay?", lead="In short.", notices=["Something is missing."], facts=FACTS, rows=rows,
        results=results(rows), curves=accuracy_within(rows, {"span_sampled": [120]}),
        questions=asked, comparisons=equal_costs(asked), paired=EMPTY, temperatures=EMPTY, published=published_temperatures(),
        paper=[
            PaperFigure("Theirs", "figure 1", "", "As printed.", [], [Chart("t", "theirs", "x", "y", published.by_window())])
        ],
        prices=EMPTY, other_systems=EMPTY, settings=EMPTY, in_force=EMPTY, view="<p>traces</p>",
    )  # fmt: skip
    return replace(whole, **changes)


class Page(HTMLParser):
    """Checks that tags balance, and keeps what tests look at."""

    VOID = {"meta", "br", "img", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def test_the_page_holds_results_figures_and_facts() -> None:
    content = report()
    source = html(content)
    page = Page(source)
    for one in content.rows:
        assert f"{one.summary.accuracy:.1%}" in page.text
        assert one.summary.name in page.text and one.summary.description in page.text
    assert "75.0%" in page.text and "SoS+ solver, 4 problems" in page.text
    said = ("In short.", "Something is missing.", "Teachers differ.", "at equal work, context and sampled span")
    assert all(words in page.text for words in said)
    said = ("+50.0 points (−16.6 to +83.2)", "ratio of work ×1.00 context ×1.00", "p = 0.500 on the same 4 problems")
    assert all(words in page.text for words in said)
    assert all(words in page.text for words in ("1 min 01 s", "1 h 01 min", "abc123"))
    assert source.count('role="img" aria-label="accuracy by ') == 3 and source.count('class="theirs"') == 1
    assert "<p>traces</p>" in source and "Reinforcement learning" not in page.text


def test_the_page_is_self_contained() -> None:
    source = html(report())
    page = Page(source)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))  # inline SVGs do not share ids
    assert not re.search(r"@import|url\((?!#)|\bfetch\(|XMLHttpRequest|<link", source)
    assert not re.findall(r"https?://[^\"' ]+", source.replace("http://www.w3.org/2000/svg", ""))


def test_the_summary_has_the_same_in_markdown() -> None:
    text = markdown(report())
    assert "- Something is missing." in text and "| serial (one line) | 4 | 25.0% (4.6% to 69.9%) | 75.0% |" in text
    assert "| sft | 61 |" in text and "[accuracy by sampled span](figures/accuracy_within_span_sampled.svg)" in text


def test_unequal_costs_are_a_sentence_and_no_gain() -> None:
    tries = [attempt_of(str(i), True, work=30.0) for i in range(4)]
    others = [attempt_of(str(i), i == 0) for i in range(4)]
    rows = [
        Row(summarise(name, one), one, place)
        for place, (name, one) in enumerate((("spawned", tries), ("serial", others)))
    ]
    asked = [question(*rows, heading=RL)]
    page = Page(html(report(rows=rows, questions=asked, comparisons=equal_costs(asked))))
    said = "at equal work None of the serial rows is within 15%. The nearest is serial: 10 tokens against 30 (×3.00)."
    assert said in page.text and "+75.0" not in page.text.partition("at equal work")[2]
    assert "at equal context and sampled span +75.0 points" in page.text and "work ×3.00" in page.text
    costs = {record["costs"]: record for record in equal_costs(asked).records}
    assert costs["work"]["gain"] is None and costs["work"]["work_ratio"] == 3.0
    assert (costs["context span_sampled"]["gain"], costs["context span_sampled"]["work_ratio"]) == (0.75, 3.0)


def test_published_tables_stand_folded_at_the_end_unless_ours_are_in_their_setting() -> None:
    away, within = html(report()), html(report(published=None))
    assert away.index("<h2>Published numbers") > away.index("<h2>What the words mean")
    assert away.index("<details><summary>Tables and figures of") < away.index('class="theirs"')
    assert "Published numbers" not in within and within.index('class="theirs"') < within.index(
        "<h2>What the words mean"
    )
    text = markdown(report())
    assert text.rstrip().endswith("</details>") and text.index("APR RL") > text.index("<summary>The paper")
    assert "APR RL" not in markdown(report(published=None))


def test_equal_reports_make_equal_pages() -> None:
    assert html(report()) == html(report())


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
def test_text_from_outside_cannot_become_markup() -> None:
    hostile = row(HOSTILE, [True, False], 0, Teacher(HOSTILE, 0, 0), HOSTILE)
    table = Table("t", HOSTILE, [{"key": HOSTILE}], [Column(HOSTILE, lambda r: r["key"], lambda r: r["key"])], HOSTILE)
    chart = Chart("c", HOSTILE, HOSTILE, HOSTILE, [Series(HOSTILE, [0.0], [1.0], "line", labels=[HOSTILE])], "zero")
    content = report(
        title=HOSTILE, lead=HOSTILE, notices=[HOSTILE], rows=[hostile], results=results([hostile]),
        curves=[*accuracy_within([hostile], {}), chart, replace(chart, name="d", categories=[HOSTILE])],
        questions=[replace(question(hostile, hostile), kind=HOSTILE, heading=HOSTILE, note=HOSTILE)],
        comparisons=equal_costs([question(hostile, hostile)]), prices=table, settings=table, published=table,
        facts=RunFacts(HOSTILE, HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, {}), in_force=table,
    )  # fmt: skip
    page = Page(html(content))
    assert "img" not in page.tags and "script" not in page.tags
    assert "$x^2$" in page.text  # as it is written, and not as mathematics
    text = re.sub(r"(?<!\\)`[^`]*`", "", markdown(content), count=1)  # the command is code, where all is text
    assert not re.search(r"(?<!\\)<img", text) and "| `code" not in text
    Page(chart.file())


def test_a_page_of_nothing_but_one_evaluation() -> None:
    one = row("alone", [True])
    page = Page(html(report(rows=[one], results=results([one]), questions=[], curves=[], paper=[], notices=[])))
    assert "its solver itself" not in page.text and "Does spawning pay" not in page.text


def test_the_page_serves_light_dark_and_print() -> None:
    source = html(report())
    assert "prefers-color-scheme: dark" in source and "@media print" in source
    assert (source.count(f"--s{SERIES - 1}: #"), source.count(f"--s{SERIES}: #")) == (2, 0)  # for light and for dark


def test_curves_reach_the_accuracy() -> None:
    solved = row("a", [i < 7 for i in range(10)])
    chart = accuracy_within([solved], {"context": [50]})[0]
    assert (chart.series[0].y[-1], chart.series[0].low[-1], chart.series[0].high[-1]) == (0.7, *solved.summary.interval)
    svg = chart.svg()
    assert "var(--s0)" in svg and "var(--s1)" not in svg
    assert ">80%<" in svg or ">70%<" in svg
    assert "budget" in svg and "currentColor" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)  # no colour of its own, so that dark pages stay readable


def test_no_two_series_look_alike() -> None:
    first = [look(place) for place in range(SERIES)]
    assert all(len({getattr(one, part) for one in first}) == SERIES for part in ("colour", "dash", "marker"))
    places = range(SERIES * len(DASHES))
    assert (
        len({look(place)[:2] for place in places})
        == len({(look(p).colour, look(p).marker) for p in places})
        == len(places)
    )
    assert len(set(DASHES)) == len(DASHES) == len(MARKERS) == SERIES
    same = [Series(f"{i}", [0.0, 1.0], [0.0, 1.0], "smooth", 3, dash=i % 3) for i in range(24)]
    assert len({look(one.place, one.dash)[:2] for one in apart(same)}) == 24
    drawn = re.findall(
        r"stroke-dasharray: ([^;]*);[^>]*?stroke: (var\(--s\d\))", Chart("c", "t", "x", "y", same[:3]).svg()
    )
    assert len(set(drawn)) == 2  # and the first is not dashed


def test_rl_curves_of_many_runs_are_told_apart() -> None:
    records = [{"step": i, "reward/success": 0.01 * i, "reward/correct": 0.5, "eval/accuracy": 0.1} for i in range(9)]
    chart = rl_charts([run(f"run {i}", records) for i in range(12)])[0]
    looks = [look(one.place, one.dash)[:2] for one in apart(chart.series)]
    assert len(looks) == len(set(looks)) == 3 * SERIES


def test_a_figure_file_has_colours_of_its_own() -> None:
    text = accuracy_within([row("a", [True, False])], {})[0].file()
    assert "var(" not in text and "currentColor" not in text and 'xmlns="http://www.w3.org/2000/svg"' in text
    assert "#0072b2" in text


def test_the_data_of_a_figure_is_what_it_draws() -> None:
    first = Series("a, b", [1.0, 2.0], [0.5, 0.25], "line", 0, [0.4, 0.2], [0.6, 0.3], ["x", "y"])
    series = [first, Series("c", [3.0], [1.0], "bars")]
    lines = list(csv.reader(io.StringIO(Chart("n", "t", "tokens", "accuracy", series).csv())))
    assert lines == [
        ["series", "source", "tokens", "accuracy", "low", "high", "label"],
        ["a, b", "ours", "1.0", "0.5", "0.4", "0.6", "x"],
        ["a, b", "ours", "2.0", "0.25", "0.2", "0.3", "y"],
        ["c", "ours", "3.0", "1.0", "", "", ""],
    ]


def run(label: str, records: list[dict[str, Any]]) -> RlRun:
    return RlRun(label, Path(label), RlConfig(), {}, records)


def test_rl_curves_plot_what_is_there() -> None:
    assert rl_charts([run("a", [])]) == []
    assert rl_charts([run("a", [{"step": 0, "time/step": float("nan"), "loss/policy": "n/a", "other": 1.0}])]) == []
    records = [{"step": i, "reward/success": 0.01 * i, "mismatch/kl": 0.0} for i in range(60)]
    records[30]["eval/accuracy"] = 0.5
    success, mismatch = rl_charts([run("a", records)])
    assert [one.name for one in success.series] == ["correct within budgets", "validation"]
    assert "correct within budgets" in success.svg() and mismatch.y_scale == "linear"  # 0 has no logarithm
    both = rl_charts([run("a", records), run("b", records)])[0]
    assert [(one.name, one.place) for one in both.series] == [
        ("a: correct within budgets", 0), ("a: validation", 0), ("b: correct within budgets", 1), ("b: validation", 1),
    ]  # fmt: skip


def test_runs_are_told_from_first_to_last() -> None:
    records = [{"step": i, "reward/success": i / 100, "rollout/threads": 2.0} for i in range(40)]
    records[0]["eval/accuracy"], records[39]["eval/accuracy"] = 0.25, 0.75
    record = rl_runs([run("a", records)]).records[0]
    assert (record["validation_first"], record["validation_last"], record["steps"]) == (0.25, 0.75, 40)
    assert record["reward/success_first"] == pytest.approx(0.045) and record["reward/success_last"] == pytest.approx(
        0.345
    )
    assert record["time/step_first"] is None


def test_only_what_differs_is_told() -> None:
    table = differences(
        "d", "D", {"a": {"seed": 0, "x": 1, "out": "a"}, "b": {"seed": 0, "x": 2, "out": "b", "new": None}}
    )
    assert table.records == [{"key": "x", "a": 1, "b": 2}]


def test_published_numbers_are_whole() -> None:
    """The omitted 74.0 at T=1 is there, and every curve has as many points as its axis."""
    tokens, accuracy = published.APR_BY_TOKENS[1.0]
    assert (17598, 74.0) in zip(tokens, accuracy)
    for temperature in published.APR_BY_TOKENS:
        for one in published.by_tokens(temperature):
            assert len(one.x) == len(one.y) and one.source == "published" and max(one.y) < 1
    assert all(len(values) == len(published.TEMPERATURES) for values in published.TABLES.values())
    assert all(len(one.x) == len(one.y) for one in published.by_window())
    for half in (published.BY_SPAN, published.BY_MILLISECONDS):
        assert all(len(one.x) == len(one.y) for one in published.by_latency(half))
    assert published.by_tokens(0.3) == []


def test_lost_attempts_are_counted_and_not_scored() -> None:
    tries = [attempt_of("a", True), replace(attempt_of("b", True), stop=StopReason.ENGINE_LOST)]
    one = Row(summarise("a", tries), tries, 0)
    assert "1 lost" in Page(html(report(rows=[one], results=results([one]), questions=[]))).text
