"""What a report holds, before it is a page, a summary and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apr.report.chart import Chart, Table
from apr.report.comparisons import Question
from apr.report.entries import Row
from apr.report.paper import PaperFigure


@dataclass(frozen=True)
class RunFacts:
    """What this report was made with, not its evaluations. `seconds`: wall time per stage."""

    command: str
    commit: str
    date: str
    hardware: str
    versions: Mapping[str, str]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """All that a report shows. `notices`: what a reader must know before the numbers. `published`: the paper's tables where
    ours do not hold them. `settings`: in what the evaluations differ. `runs`: the RL runs, in what they differ, their curves.
    `view`: HTML of the trace view."""

    title: str
    lead: str
    notices: Sequence[str]
    facts: RunFacts
    rows: Sequence[Row]
    results: Table
    curves: Sequence[Chart]
    questions: Sequence[Question]
    comparisons: Table
    paired: Table
    temperatures: Table
    published: Table | None
    paper: Sequence[PaperFigure]
    prices: Table
    other_systems: Table
    settings: Table
    in_force: Table
    budgets: tuple[Table, Sequence[Chart]] | None = None
    runs: tuple[Table, Table, Sequence[Chart]] | None = None
    view: str = ""

    @property
    def tables(self) -> list[Table]:
        """Every table with something in it, but for the published ones."""
        tables = [self.comparisons, self.results, self.paired, self.temperatures]
        tables += [self.prices, self.other_systems, self.settings, self.in_force]
        tables += [self.budgets[0]] if self.budgets else []
        tables += [*self.runs[:2]] if self.runs else []
        return [table for table in tables if table.records]

    @property
    def charts(self) -> list[Chart]:
        charts = [*self.curves, *(self.budgets[1] if self.budgets else ()), *(self.runs[2] if self.runs else ())]
        return charts + [chart for figure in self.paper for chart in (*figure.ours, *figure.theirs)]
