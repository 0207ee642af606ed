"""The report: complete, self-contained, and safe against what models write."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from apr.evaluation.metrics import Attempt, compare
from apr.report.figures import SERIES, accuracy_panel, rl_panels
from apr.report.html import Comparison, Report, Row, RunFacts, Teacher, write_report
from apr.seeds import SplitMix64
from apr.threads.serial import Serial
from apr.threads.spawn_join import SpawnJoin
from apr.threads.trace import Costs, StopReason, Trace
from apr.tokens.compact import CompactDialect
from apr.tokens.encode import encode
from apr.tokens.log import Node
from solvers.search import SearchOptions, search

DIALECT = CompactDialect()
PROBLEMS = [((3, 5, 8), 24), ((2, 9, 11), 29), ((4, 6, 7), 45), ((1, 2, 3), 50)]
HOSTILE = '</script><img src="https://example.org/x" onerror="alert(1)"> & "quoted"'
FACTS = RunFacts(
    "apr report", "abc123", "2030-01-02", "2 cores", {"torch": "2.13.0"}, {"seed": 7}, {"sft": 61.0, "rl": 3_700.0}
)


def attempts(depth: int) -> list[Trace]:
    protocol = SpawnJoin(DIALECT.vocabulary.control) if depth else Serial(DIALECT.vocabulary.control)
    traces = []
    for numbers, target in PROBLEMS:
        log = search(target, Node(numbers, ()), SearchOptions(6, 3, spawn_depth=depth), SplitMix64(0))
        problem = {"id": f"{target}:{numbers}", "numbers": list(numbers), "target": target}
        traces.append(encode(log, DIALECT, protocol, problem))
    return traces


def report(**changes: Any) -> Report:
    serial, spawned = attempts(0), attempts(1)
    whole = Report(
        title="Does it pay?",
        rows=[
            Row.of("serial", serial, "one line", Teacher("SoS+ solver", 3, 4)),
            Row.of("spawned", spawned, "threads"),
        ],
        comparisons=[Comparison("spawned", "serial", compare(spawned, serial), "More or less.")],
        limits={"context": 160, "work": None},
        budgets={"span_sampled": 120},
        facts=FACTS,
        curves=[{"step": 0, "reward/success": 0.5, "eval/accuracy": 0.4}, {"step": 1, "reward/success": 0.6}],
        traces=spawned[:2] + serial[:1],
        lead="In short.",
    )
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
        self.data: dict[str, Any] = {}
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
        if self.open and self.open[-1] == "script":
            if data.startswith("{"):
                self.data = json.loads(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def write(tmp_path: Path, content: Report, text: Callable[[Sequence[int]], str] = DIALECT.vocabulary.text) -> str:
    path = tmp_path / "report.html"
    write_report(path, content, text)
    return path.read_text()


def test_report_holds_results_plots_and_facts(tmp_path: Path) -> None:
    content = report()
    source = write(tmp_path, content)
    page = Page(source)
    for row in content.rows:
        assert f"{row.summary.accuracy:.1%}" in page.text
        assert row.summary.name in page.text and row.summary.description in page.text
    assert "75.0%" in page.text and "SoS+ solver, 4 problems" in page.text
    assert all(words in page.text for words in ("In short.", "More or less.", "points on 4 problems; p = 1.000"))
    assert all(words in page.text for words in ("worknone", "span_sampled120", "1 min 01 s", "1 h 01 min", "abc123"))
    assert source.count('role="img" aria-label="accuracy against') == 3
    assert source.count('aria-label="RL:') == 1
    assert len(page.data["traces"]) == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]  # nothing half-written stays behind


def test_report_is_self_contained(tmp_path: Path) -> None:
    source = write(tmp_path, report())
    page = Page(source)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))  # inline SVGs do not share ids
    assert not re.search(r"@import|url\((?!#)|\bfetch\(|XMLHttpRequest|<link", source)
    assert set(re.findall(r"https?://[^\"' ]+", source)) <= {"http://www.w3.org/2000/svg"}


def test_equal_reports_make_equal_files(tmp_path: Path) -> None:
    assert write(tmp_path, report()) == write(tmp_path, report())


def test_text_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    traces = attempts(1)
    hostile = replace(traces[0], answer=HOSTILE, problem={"id": HOSTILE, "question": HOSTILE})
    row = Row.of(HOSTILE, [hostile], HOSTILE, Teacher(HOSTILE, 0, 0))
    content = report(
        title=HOSTILE, lead=HOSTILE, rows=[row], traces=[hostile], limits={HOSTILE: HOSTILE},
        comparisons=[Comparison(HOSTILE, HOSTILE, compare([hostile], [hostile]), HOSTILE)],
        facts=RunFacts(HOSTILE, HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, {}, {}),
    )  # fmt: skip
    clean = Page(write(tmp_path, report()))
    page = Page(write(tmp_path, content, text=lambda ids: HOSTILE * len(ids)))
    assert "img" not in page.tags
    scripts = [one.tags.count("script") - len(one.data["traces"]) for one in (page, clean)]
    assert scripts == [2, 2]  # an index and a script beside the traces
    assert set(page.data["spellings"][0]["pieces"].values()) == {HOSTILE}
    assert page.data["traces"][0]["answer"] == HOSTILE


def test_comparison_needs_its_rows(tmp_path: Path) -> None:
    test = compare(attempts(0), attempts(1))
    with pytest.raises(ValueError, match="'nobody'"):
        write(tmp_path, report(comparisons=[Comparison("serial", "nobody", test, "")]))
    twice = [Row.of("serial", attempts(0)), Row.of("serial", attempts(1))]
    with pytest.raises(ValueError, match="one row of each name"):
        write(tmp_path, report(rows=twice, comparisons=[Comparison("serial", "serial", test, "")]))
    assert not list(tmp_path.iterdir())


def test_report_without_rl_traces_or_teachers(tmp_path: Path) -> None:
    rows = [Row.of("alone", attempts(0))]
    page = Page(write(tmp_path, report(rows=rows, comparisons=[], curves=[], traces=[], budgets={})))
    assert "Reinforcement learning" not in page.text and "its solver itself" not in page.text
    assert "No traces were sampled" in page.text


def test_curves_reach_the_accuracy() -> None:
    tries = [Attempt(str(i), i < 7, StopReason.ANSWERED, None, {"context": 10.0 * (i + 1)}) for i in range(10)]
    svg = accuracy_panel([("a", tries), ("never tried", [])], "context", budget=50)
    assert "var(--s0)" in svg and "var(--s1)" not in svg
    assert ">80%<" in svg or ">70%<" in svg
    assert "budget" in svg and "currentColor" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)  # no colour of its own, so that dark pages stay readable


def test_rl_panels_plot_what_is_there() -> None:
    assert rl_panels([]) == []
    assert rl_panels([{"step": 0, "time/step": float("nan"), "loss/policy": "n/a", "other": 1.0}]) == []
    records = [{"step": i, "reward/success": 0.01 * i, "mismatch/kl": 0.0} for i in range(60)]
    records[30]["eval/accuracy"] = 0.5
    success, mismatch = rl_panels(records)
    assert "correct within budgets" in success and "accuracy (validation)" in success
    assert "correct (training)" not in success
    assert 'aria-label="RL: sampler against learner by step"' in mismatch


def test_page_serves_light_dark_and_print(tmp_path: Path) -> None:
    source = write(tmp_path, report())
    assert "prefers-color-scheme: dark" in source and "@media print" in source
    light, dark = (source.count(f"--s{SERIES - 1}: #"), source.count(f"--s{SERIES}: #"))
    assert (light, dark) == (2, 0)  # each series colour is set for light and for dark


def test_costs_of_votes_make_a_row(tmp_path: Path) -> None:
    traces = [replace(trace, costs=Costs(400, 390, 100, 90, 100, 4, 4, 0, 9, 2.5)) for trace in attempts(0)]
    page = Page(write(tmp_path, report(rows=[Row.of("cons@4", traces)], comparisons=[])))
    assert "4.33" in page.text and "2.50" in page.text
