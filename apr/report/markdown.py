"""The report as Markdown: what one would paste into a pull request or a note."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from apr.report.chart import Chart, Column, Table
from apr.report.content import Report


def markdown(report: Report) -> str:
    """Lead, notices, tables and the files beside. Text from outside is escaped, so that it stays text."""
    facts = report.facts
    parts = [
        f"# {plain(report.title)}",
        plain(report.lead),
        f"{plain(facts.date)}, commit {plain(facts.commit)}, {plain(facts.hardware)}: `{facts.command.replace('`', '')}`",
        *([_list(report.notices)] if report.notices else []),
        *map(_section, report.tables),
        *([_wall_times(facts.seconds)] if facts.seconds else []),
        "## Figures\n\n" + "\n".join(map(_link, report.charts)),
        *([_folded("The paper's published numbers", _section(report.published))] if report.published else []),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(table: Table) -> str:
    text = f"## {plain(table.title)}\n\n{table_text(table)}\n\n{plain(table.note)}"
    return _folded(f"{table.title}, {len(table.records)} in all", text) if table.name == "paired" else text


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n\n{text}\n\n</details>"


def table_text(table: Table) -> str:
    """The shown columns of a table."""
    lines = [[_cell(column, record) for column in table.columns] for record in table.records]
    head = [plain(column.head) for column in table.columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def plain(text: str) -> str:
    """Text that Markdown takes as nothing but text."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _cell(column: Column, record: object) -> str:
    text, small = column.text(record), column.small(record) if column.small else ""  # type: ignore[arg-type]
    return plain(f"{text} ({small})" if small else text)


def _wall_times(seconds: Mapping[str, float]) -> str:
    lines = [f"| {plain(stage)} | {value:,.0f} |" for stage, value in seconds.items()]
    return "\n".join(["## Wall time by stage\n", "| stage | seconds |", "| --- | --- |", *lines])


def _link(chart: Chart) -> str:
    return f"- [{plain(chart.title)}](figures/{chart.name}.svg), [data](data/{chart.name}.csv)"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)
