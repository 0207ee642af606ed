"""The tables of a report. Each holds every number that it was made from (`Table.csv`), and shows the telling ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from apr.contact import told
from apr.evaluation.metrics import COSTS, summarise
from apr.report import published
from apr.report.chart import OURS, THEIRS, Column, Table
from apr.report.charts import points
from apr.report.entries import Entry, RlRun, Row

_PUBLISHED = (
    "Published: 1,000 validation problems of four numbers from 1-99 in a window of 4,096 tokens, a binomial standard error of "
    "1.2-1.6 points; other problems and another model than ours unless stated. The published SoS+ here is unconditioned; in "
    "figures 4 and 8 it is conditioned on 4,096 tokens."
)
_PROBLEMS = Column("problems", lambda r: f"{r['problems']:,}")
UNTOLD = ("out",)  # keys of a configuration that every run has another value of


def results(rows: Sequence[Row]) -> Table:
    """A record per row of the report: problems, accuracy, its interval, and each cost's mean and percentiles."""
    records = []
    for row in rows:
        s = row.summary
        record: dict[str, Any] = {
            "model": s.name, "description": s.description, "problems": row.problems, "attempts": s.n, "lost": s.lost,
            "correct": s.correct, "accuracy": s.accuracy, "low": s.interval[0], "high": s.interval[1],
            "solver": row.teacher and row.teacher.name, "solver_solved": row.teacher and row.teacher.solved,
            "solver_problems": row.teacher and row.teacher.n,
        }  # fmt: skip
        for cost in COSTS:
            record |= {f"{cost}_{name}": value for name, value in asdict(s.costs[cost]).items()}
        records.append(record)
    columns = [
        Column("model", lambda r: r["model"], lambda r: r["description"]),
        _PROBLEMS,
        Column("accuracy", lambda r: f"{r['accuracy']:.1%}", lambda r: f"{r['low']:.1%} to {r['high']:.1%}"),
        Column("its solver", lambda r: _share(r["solver_solved"], r["solver_problems"])),
        *[_cost_column(cost) for cost in ("context", "work", "span_sampled", "parallelism_sampled", "threads")],
    ]
    return Table("results", "Results", records, columns, "Mean costs.")


def temperatures(entries: Sequence[Entry], shared: bool) -> Table:
    """Accuracy by model and temperature, over all samples; `shared`: with the paper's tables 1-3 below."""
    groups: dict[tuple[Any, ...], dict[float, Entry]] = {}
    for one in sorted(entries, key=lambda one: (-one.asked, one.config.samples)):
        if not one.alone:  # where there are several at a temperature, the one of most problems is taken
            key = (one.variant, one.evaluation.facts.get("checkpoint_hash"), one.problem_set, one.config.limits)
            groups.setdefault(key, {}).setdefault(one.config.temperature, one)
    alike = Counter(key[0] for key in groups)
    ours = {
        key[0]
        if alike[key[0]] == 1
        else f"{key[0]} ({', '.join(one.evaluation.folder.name for one in row.values())})": row
        for key, row in sorted(groups.items(), key=lambda item: min(map(entries.index, item[1].values())))
    }
    heats = {t for row in ours.values() for t in row}
    every = sorted(heats | set(published.TEMPERATURES)) if shared else sorted(heats)
    own: list[dict[str, Any]] = []
    for name, row in ours.items():
        record: dict[str, Any] = {"model": name, "source": OURS}
        for t in every:
            record |= _at_temperature(t, row.get(t))
        own.append(record)
    title, note = "Accuracy by temperature", "The mean of all samples, with 95% intervals."
    if not shared:
        return _by_temperature("temperatures", title, own, every, note)
    whole = f"{title} (the paper's tables 1-3)"
    return _by_temperature("temperatures", whole, [*own, *_published(every)], every, f"Ours: {note} {_PUBLISHED}")


def published_temperatures() -> Table:
    """Tables 1-3 of the paper alone."""
    every = published.TEMPERATURES
    title = "Accuracy by temperature (tables 1-3)"
    return _by_temperature("published_temperatures", title, _published(every), every, _PUBLISHED)


def _published(every: Sequence[float]) -> list[dict[str, Any]]:
    records = []
    for name, values in published.TABLES.items():
        known = dict(zip(published.TEMPERATURES, values))
        record: dict[str, Any] = {"model": name, "source": THEIRS}
        for t in every:
            value = known.get(t)
            record |= _at_temperature(t, None) | {f"T={t:g}": None if value is None else value / 100}
        records.append(record)
    return records


def _by_temperature(
    name: str, title: str, records: Sequence[dict[str, Any]], every: Sequence[float], note: str
) -> Table:
    columns = [Column("model", lambda r: r["model"]), *map(_temperature_column, every)]
    if len({record["source"] for record in records}) > 1:
        columns.insert(1, Column("whose", lambda r: r["source"]))
    return Table(name, title, records, columns, note)


def other_systems(entries: Sequence[Entry]) -> Table:
    """Each evaluation by the measures that other systems report."""
    records = [{"model": one.title, "problems": one.problems, **asdict(one.systems)} for one in entries]
    shown = {
        "parallel": "#parallel, concurrency", "acceleration": "acceleration", "dp": "DP", "abn": "ABN", "ppd": "PPD",
        "tps": "TPS", "p_tps": "P-TPS", "tokens_per_thread": "tokens per thread",
    }  # fmt: skip
    columns = [
        Column("model", lambda r: r["model"]), _PROBLEMS, *(_number_column(key, head) for key, head in shown.items()),
    ]  # fmt: skip
    note = (
        "Means and ratios over all samples. These measures are not comparable across papers: most reward extra tokens."
    )
    return Table("other_systems", "By the measures of other systems", records, columns, note)


def prices(entries: Sequence[Entry]) -> Table:
    """Seconds and milliseconds a span token, with what they were measured on."""
    records = []
    for one in entries:
        seconds = one.summary.costs["seconds"]
        engine = one.config.engine
        records.append(
            {
                "model": one.title, "problems": one.problems,
                "pace": "one at a time" if one.alone else f"up to {one.config.in_flight} at once",
                "seconds_mean": seconds.mean, "seconds_p50": seconds.p50, "seconds_p90": seconds.p90,
                "ms_per_span_token": one.systems.ms_per_span_token, "engine": engine.kind,
                "hardware": str(one.evaluation.facts.get("hardware", "unknown")),
            }
        )  # fmt: skip
    columns = [
        Column("model", lambda r: r["model"], lambda r: r["pace"]),
        _PROBLEMS,
        Column("seconds, mean", lambda r: number(r["seconds_mean"]), lambda r: f"p90 {number(r['seconds_p90'])}"),
        Column("p50", lambda r: number(r["seconds_p50"])),
        Column("ms per span token", lambda r: number(r["ms_per_span_token"])),
        Column("on", lambda r: r["hardware"], lambda r: f"engine {r['engine']}"),
    ]
    return Table("prices", "Seconds", records, columns, "Wall clock of one problem, alone or under load as stated.")


def budgets(entries: Sequence[Entry]) -> Table:
    """Each evaluation under its budgets: how many attempts kept them, and how many were also correct."""
    records = []
    for one in entries:
        kept = [all(tried.costs[cost] <= most for cost, most in one.budgets.items()) for tried in one.attempts]
        good = [replace(tried, correct=within and tried.correct) for within, tried in zip(kept, one.attempts)]
        s, success = one.summary, summarise(one.label, good)
        low, high = success.interval
        records.append(
            {
                "model": one.title, "problems": one.problems,
                "budgets": ", ".join(f"{name} ≤ {value}" for name, value in one.budgets.items()) or "none",
                "accuracy": s.accuracy, "within": sum(kept) / len(kept) if one.budgets else None,
                "success": success.accuracy, "low": low, "high": high,
                **{f"{cost}_mean": s.costs[cost].mean for cost in ("context", "work", "span_sampled")},
            }
        )  # fmt: skip
    columns = [
        Column("model", lambda r: r["model"], lambda r: f"budgets: {r['budgets']}"),
        _PROBLEMS,
        Column("accuracy", lambda r: f"{r['accuracy']:.1%}"),
        Column("within", lambda r: "" if r["within"] is None else f"{r['within']:.1%}"),
        Column("success", lambda r: f"{r['success']:.1%}", lambda r: f"{r['low']:.1%} to {r['high']:.1%}"),
        *[_cost_column(cost) for cost in ("context", "work", "span_sampled")],
    ]
    note = "Under the evaluation's budgets, or else those that the model was trained under."
    return Table("budgets", "Budgets", records, columns, note)


def differences(name: str, title: str, told: Mapping[str, dict[str, Any]]) -> Table:
    """Keys of the configurations, and facts, that are not the same for all; a column a run."""
    keys = dict.fromkeys(key for one in told.values() for key in one if key not in UNTOLD)
    differing = [key for key in keys if len({str(one.get(key)) for one in told.values()}) > 1]
    records = [{"key": key, **{label: one.get(key) for label, one in told.items()}} for key in differing]
    columns = [Column("key", lambda r: r["key"]), *(_said_column(label) for label in told)]
    return Table(name, title, records, columns, "Configuration, commit and data; what is alike is left out.")


def rl_runs(runs: Sequence[RlRun]) -> Table:
    """How each RL run went: validation accuracy, and means over its first and last ten steps."""
    records = []
    for run in runs:
        checks = _values(run.records, "eval/accuracy")
        steps = [line for line in run.records if "reward/success" in line]
        record: dict[str, Any] = {
            "run": run.label, "steps": len(steps), "commit": run.manifest.get("commit"),
            "validation_problems": run.config.validate_problems,
            "validation_first": checks[0] if checks else None, "validation_best": max(checks, default=None),
            "validation_last": checks[-1] if checks else None,
        }  # fmt: skip
        for metric in ("reward/success", "rollout/threads", "rollout/span_sampled", "rollout/work", "time/step"):
            for when, lines in (("first", steps[:10]), ("last", steps[-10:])):
                values = _values(lines, metric)
                record[f"{metric}_{when}"] = sum(values) / len(values) if values else None
        records.append(record)
    columns = [
        Column("run", lambda r: r["run"], lambda r: f"{r['steps']} steps, commit {r['commit'] or 'unknown'}"),
        _change_column("validation", "validation accuracy, first check to last", ("first", "best", "last"), _validated),
        _change_column("reward/success", "success in training"),
        *[_change_column(f"rollout/{key}", key.replace("_", " ")) for key in ("threads", "span_sampled", "work")],
        Column("seconds a step", lambda r: number(r["time/step_last"])),
    ]
    note = "Validation: the first, the best and the last check. Others: means over the first and the last ten steps."
    return Table("rl_runs", "RL runs", records, columns, note)


def in_force(entries: Sequence[Entry]) -> Table:
    """Limits and budgets of each evaluation, and what it was made with."""
    records = []
    for one in entries:
        facts, config = one.evaluation.facts, one.config
        limits = config.limits.model_dump(exclude_none=True)
        records.append(
            {
                "model": one.title, "limits": ", ".join(f"{name} {value}" for name, value in limits.items()),
                "budgets": ", ".join(f"{name} {value}" for name, value in one.budgets.items()) or "none",
                "contact with training": told(one.evaluation.contact),
                "seed": config.seed, "commit": facts.get("commit"), "started": facts.get("started"),
                "hardware": facts.get("hardware"), "checkpoint_hash": facts.get("checkpoint_hash"),
                "versions": ", ".join(f"{name} {value}" for name, value in dict(facts.get("versions") or {}).items()),
            }
        )  # fmt: skip
    shown = ("limits", "budgets", "contact with training", "commit", "started", "hardware", "versions")
    columns = [Column("model", lambda r: r["model"], lambda r: f"seed {r['seed']}"), *map(_said_column, shown)]
    note = (
        "Limits stop a thread or a trace while it runs; budgets are conditions on costs that enter reward and success. Contact "
        "with training counts problems that share with training problems what splits should not share."
    )
    return Table("in_force", "Limits, budgets, and what each evaluation was made with", records, columns, note)


def _values(records: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """The finite values of a metric."""
    return points(records, metric)[1]


def number(value: float | None) -> str:
    if value is None:
        return "n/a"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def p_value(p: float) -> str:
    """To one significant digit where it is small."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.4f}" if p >= 1e-4 else f"{p:.0e}"


def _at_temperature(t: float, one: Entry | None) -> dict[str, float | None]:
    low, high = one.summary.interval if one else (None, None)
    key = f"T={t:g}"
    return {
        key: one.summary.accuracy if one else None, f"{key} low": low, f"{key} high": high,
        f"{key} problems": one.problems if one else None,
    }  # fmt: skip


def signed(share: float) -> str:
    """A difference of two shares in points."""
    return f"{100 * share:+.1f}"


def _share(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.1%}" if part is not None and whole else ""


def _cost_column(cost: str) -> Column:
    return Column(cost.replace("_", " "), lambda r: number(r[f"{cost}_mean"]))


def _number_column(key: str, head: str) -> Column:
    return Column(head, lambda r: number(r[key]))


def _said_column(label: str) -> Column:
    return Column(label, lambda r: "" if r[label] is None else str(r[label]))


def _change_column(
    key: str,
    head: str,
    whens: Sequence[str] = ("first", "last"),
    small: Callable[[Mapping[str, Any]], str] | None = None,
) -> Column:
    return Column(head, lambda r: " → ".join(number(r[f"{key}_{when}"]) for when in whens), small)


def _validated(record: Mapping[str, Any]) -> str:
    return f"{record['validation_problems']:,} problems"


def _temperature_column(t: float) -> Column:
    key = f"T={t:g}"

    def small(record: Mapping[str, Any]) -> str:
        if record[f"{key} low"] is None:
            return ""
        return f"{record[f'{key} low']:.1%} to {record[f'{key} high']:.1%}, {record[f'{key} problems']:,} problems"

    return Column(key, lambda r: "" if r[key] is None else f"{r[key]:.1%}", small)
