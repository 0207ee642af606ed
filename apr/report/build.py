"""`apr report`: from the folders of evaluations and RL runs to a folder with the page, a summary, figures and data.

report.html             self-contained: opens without network or server
summary.md              the same tables as Markdown
figures/NAME.svg        each figure, and data/NAME.csv the points it was drawn from
data/NAME.csv           each table, with more columns than it shows
data/attempts.csv.gz    every attempt with its costs, from which the evaluations' numbers can be worked out again
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apr.errors import DataError, RunDirectoryError
from apr.evaluation.folder import TRACES
from apr.evaluation.metrics import COSTS
from apr.report import comparisons, tables
from apr.report.chart import SERIES, Table, csv_text
from apr.report.charts import AXES, accuracy_within, budget_charts, rl_charts
from apr.report.content import Report, RunFacts
from apr.report.entries import Entry, RlRun, Row, placed, read_runs, rows_of
from apr.report.html import html
from apr.report.markdown import markdown
from apr.report.paper import in_the_papers_setting, paper_figures
from apr.report.spelling import describing, spelling
from apr.report.teachers import Teachers
from apr.report.viewer import Source, trace_view
from apr.runs import CONFIG, flat, manifest, whole_folder
from apr.threads.trace import Trace

PAGE, SUMMARY, FIGURES, DATA = "report.html", "summary.md", "figures", "data"
ATTEMPTS = "attempts.csv.gz"
SHOWN_TRACES = 12
MAIN = 8  # evaluations that curves and traces are shown of, at most


def build_report(folders: Sequence[Path], data: Path | None, out: Path, title: str, env: str | None = None) -> str:
    """Write the report into the folder `out`, whole or not at all; returns a line that names its page.

    `env`: that of the teachers, where it is a file.

    What evaluations cannot be compared on (other problems, missing attempts) is said in the report, and no paired test
    is made of it. Raises `DataError` or `ConfigError` for folders that hold no run, `SchemaError` for traces of a newer
    schema, `RunDirectoryError` if `out` cannot be written or holds something else.
    """
    _check_out(out)
    entries, runs = read_runs(folders)
    report = _report(entries, runs, Teachers(data, env), title, _seconds(out.parent / "stages.json"))
    for notice in report.notices:
        print(f"apr: {notice}", file=sys.stderr)
    try:
        with whole_folder(out) as folder:
            _write(folder, report, entries)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {out} ({error.strerror}): name another folder with --out") from error
    return f"report: {(out / PAGE).resolve()}"


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunDirectoryError(f"{out} is a file: name a folder with --out, such as {out.with_suffix('')}")
    if out.is_dir() and any(out.iterdir()) and not (out / DATA / ATTEMPTS).is_file():
        raise RunDirectoryError(f"{out} holds something else than a report: name another folder with --out")


def _report(
    entries: Sequence[Entry], runs: Sequence[RlRun], teachers: Teachers, title: str, seconds: dict[str, float]
) -> Report:
    entries = placed(entries, _plain(entries))
    plain = _plain(entries)
    main = plain[:MAIN]
    rows = [row for one in entries for row in rows_of(one, _teacher(one, teachers))]
    facts = manifest()
    drawn = {one.label for one in main}
    shown = [
        row for row in rows if row.summary.name in drawn or "cons@" in row.summary.name or "pass@" in row.summary.name
    ]
    if len(shown) > SERIES:
        shown = [row for row in shown if "pass@" not in row.summary.name]
    teaching = [row.teacher for row in rows if row.teacher]
    questions = comparisons.questions(main, entries, teaching)
    shared = in_the_papers_setting(entries)
    kept = {cost: sorted({one.budgets[cost] for one in main if cost in one.budgets}) for cost in AXES}
    return Report(
        title=title, lead=_lead(main),
        notices=[*notices(entries), *_left_out(entries, main, shown, runs), *teachers.missing],
        facts=RunFacts(
            facts["command"], facts["commit"], time.strftime("%Y-%m-%d"), facts["hardware"], facts["versions"], seconds
        ),
        rows=rows, results=tables.results(rows), curves=accuracy_within(shown[:SERIES], kept), questions=questions,
        comparisons=comparisons.equal_costs(questions), paired=comparisons.paired(entries),
        temperatures=tables.temperatures(entries, shared), published=None if shared else tables.published_temperatures(),
        paper=paper_figures(entries),
        prices=tables.prices(entries), other_systems=tables.other_systems(entries), settings=_settings(entries),
        in_force=tables.in_force(entries), runs=_runs(runs),
        budgets=(tables.budgets(entries), budget_charts(plain)) if any(one.budgets for one in entries) else None,
        view=trace_view(_sources(main)),
    )  # fmt: skip


def _teacher(one: Entry, teachers: Teachers) -> Any:
    return teachers.of(one.evaluation, one.label) if one.config.samples == 1 else None


def _plain(entries: Sequence[Entry]) -> list[Entry]:
    """The evaluations that stand for their models: one sample a problem, several problems at once, at the lowest temperature,
    nothing asked for in the prompt, or else the most; the nearest to that where a model has no such evaluation."""
    models = [(one.variant.partition(",")[0], one.evaluation.facts.get("checkpoint_hash")) for one in entries]
    plainest = {model: min(_plainness(one) for own, one in zip(models, entries) if own == model) for model in models}
    return [one for model, one in zip(models, entries) if _plainness(one) == plainest[model]]


def _plainness(one: Entry) -> tuple[Any, ...]:
    asked = one.config.condition.value if one.config.condition else None
    return one.config.samples > 1, asked is not None, -(asked or 0), one.alone, one.config.temperature


def _left_out(
    entries: Sequence[Entry], main: Sequence[Entry], shown: Sequence[Row], runs: Sequence[RlRun]
) -> list[str]:
    """What of many evaluations and runs is in tables only."""
    said = []
    models = len({one.evaluation.facts.get("checkpoint_hash") for one in entries})
    if len(main) == MAIN < models:
        said.append(f"Cards and traces are of the first {MAIN} of {models} models; tables have all.")
    if len(shown) > SERIES:
        said.append(f"Curves are of the first {SERIES} of {len(shown)} rows; tables have all.")
    if len(runs) > SERIES:
        said.append(f"RL curves are of the first {SERIES} of {len(runs)} runs; tables have all.")
    return said


def notices(entries: Sequence[Entry]) -> list[str]:
    """What a reader must know before the numbers: attempts that are missing, problems and limits that are not the same."""
    said = []
    for one in entries:
        skipped, missing = one.evaluation.skipped, one.evaluation.missing
        if skipped:
            named = "; ".join(skipped[:3]) + ("; and more" if len(skipped) > 3 else "")
            said.append(f"{one.title}: {len(skipped)} lines of its traces cannot be read and were skipped ({named}).")
        if missing:
            asked, again = one.evaluation.facts["traces"], one.evaluation.folder / CONFIG
            cure = f"`apr eval --config {again} out={one.evaluation.folder}`"
            said.append(
                f"{one.title}: {missing} of {asked} attempts are missing; its numbers are of the other {len(one.attempts)}. "
                + (
                    f"Finish it with {cure}."
                    if not skipped
                    else f"Delete {one.evaluation.folder / TRACES} and call {cure}."
                )
            )
    said += [
        f"{one.title}: contact with training: {contact}."
        for one in entries
        if (contact := one.evaluation.contact) is not None and contact.shared
    ]
    sets: dict[str, list[str]] = {}
    for one in entries:
        data_hash, split = one.problem_set
        sets.setdefault(f"split {split} of data {data_hash[:8]}", []).append(one.title)
    if len(sets) > 1:
        told = "; ".join(f"{problems}: {', '.join(titles)}" for problems, titles in sets.items())
        said.append(
            f"Not all were evaluated on the same problems: paired tests are made on those that two have in common. {told}."
        )
    most = {
        one.problem_set: max(other.asked for other in entries if other.problem_set == one.problem_set)
        for one in entries
    }
    few = [one for one in entries if one.asked < most[one.problem_set]]
    if fewer := ", ".join(f"{one.title} ({one.asked:,} of {most[one.problem_set]:,})" for one in few):
        said.append(
            f"Evaluated on fewer problems than others: {fewer}. Paired tests are made on those that both tried; other "
            "differences may be ones of problems."
        )
    if len({one.config.temperature for one in _plain(entries)}) > 1:
        said.append("Not all models were evaluated at one temperature: differences between them may be its effect.")
    if len({one.config.threshold for one in entries}) > 1:
        told = "; ".join(
            f"{one.title}: {'its own verdict' if one.config.threshold is None else f'a score of {one.config.threshold:g}'}"
            for one in entries
        )
        said.append(
            f"Not all count the same answers as correct: no accuracy compares with another's. The verifier asks for {told}."
        )
    for one in entries[1:]:
        first = entries[0]
        limits, others = one.config.limits.model_dump(), first.config.limits.model_dump()
        if changed := [f"{key} {limits[key]} instead of {others[key]}" for key in limits if limits[key] != others[key]]:
            said.append(f"{one.title} was evaluated under other limits than {first.title}: {', '.join(changed)}.")
    return said


def _lead(main: Sequence[Entry]) -> str:
    how = {one.sampling for one in main}
    noted = {one.label: f" ({one.sampling})" if len(how) > 1 else "" for one in main}
    parts = [
        f"{one.label} {one.summary.accuracy:.1%} with {one.summary.costs['work'].mean:,.0f} tokens of work{noted[one.label]}"
        for one in main
    ]
    if not main:
        return "RL runs alone: no evaluation is among the folders."
    what = "Greedy accuracy" if how == {"greedy"} else "Accuracy" if len(how) > 1 else f"Accuracy, {how.pop()},"
    if len({(one.problem_set, one.asked) for one in main}) > 1:
        return f"{what}, on problems that are not all the same: {', '.join(parts)}."
    windows = {one.config.limits.context for one in main}
    window = (
        f"a context window of {windows.pop():,}" if len(windows) == 1 else "context windows that are not all the same"
    )
    return f"{what} on {len(main[0].first)} {main[0].config.split} problems in {window}: {', '.join(parts)}."


def _settings(entries: Sequence[Entry]) -> Table:
    told = {
        one.title: {
            **flat(one.config.model_dump(mode="json")),
            **{f"[{key}]": one.evaluation.facts.get(key) for key in ("commit", "data_hash", "checkpoint_hash")},
        }
        for one in entries
    }
    return tables.differences("settings", "What differs between the evaluations", told)


def _runs(runs: Sequence[RlRun]) -> tuple[Table, Table, list[Any]] | None:
    if not runs:
        return None
    told = {
        run.label: {
            **flat(run.config.model_dump(mode="json")),
            **{f"[{key}]": run.manifest.get(key) for key in ("commit", "data_hash", "hardware")},
        }
        for run in runs
    }
    return (
        tables.rl_runs(runs),
        tables.differences("rl_changes", "What was changed between the runs", told),
        rl_charts(runs),
    )


def _sources(main: Sequence[Entry]) -> list[Source]:
    """Traces of the same few problems for each model, evenly spread over the problems of the first. If any attempt spawns,
    one of them does: the view opens with it."""
    if not main:
        return []
    ids = list(main[0].evaluation.problems)
    each = max(1, SHOWN_TRACES // len(main))
    chosen = [ids[i * len(ids) // each] for i in range(each)]
    spawning = [tried.problem for one in main for tried in one.first if tried.costs["branches"] > 0]
    if spawning and not set(spawning) & set(chosen):
        chosen[0] = spawning[0]
    return [
        Source(one.label, _picked(one, set(chosen)), spelling(one.evaluation.folder), describing(one.evaluation.folder))
        for one in main
    ]


def _picked(one: Entry, chosen: set[str]) -> Iterator[Trace]:
    return (trace for trace in one.evaluation.traces() if trace.sample == 0 and trace.problem["id"] in chosen)


def _write(folder: Path, report: Report, entries: Sequence[Entry]) -> None:
    for name in (FIGURES, DATA):
        (folder / name).mkdir()
    (folder / PAGE).write_text(html(report), encoding="utf-8")
    (folder / SUMMARY).write_text(markdown(report), encoding="utf-8")
    for table in [*report.tables, *([report.published] if report.published else [])]:
        (folder / DATA / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
    for chart in report.charts:
        (folder / FIGURES / f"{chart.name}.svg").write_text(chart.file(), encoding="utf-8")
        (folder / DATA / f"{chart.name}.csv").write_text(chart.csv(), encoding="utf-8")
    head = ("model", "problem", "sample", "correct", "stop", "answer", *COSTS)
    lines = [
        (one.title, tried.problem, tried.sample, int(tried.correct), tried.stop.value, tried.answer,
         *(tried.costs[cost] for cost in COSTS))
        for one in entries
        for tried in one.attempts
    ]  # fmt: skip
    (folder / DATA / ATTEMPTS).write_bytes(gzip.compress(csv_text(head, lines).encode(), mtime=0))


def _seconds(path: Path) -> dict[str, float]:
    """Wall time by stage, as the quickstart writes it beside its report; empty if it did not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {str(stage): float(seconds) for stage, seconds in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is corrupt ({error!r}): delete it, or write the report elsewhere with --out"
        ) from error
