"""`apr report`: gathers evaluations and an RL run from their folders, and writes the HTML file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.config import DataConfig, EvalConfig, RlConfig
from apr.data.generate import demonstrations
from apr.dialects import dialect_in
from apr.errors import DataError, RunDirectoryError
from apr.evaluation.baselines import majority, pass_at, samples_by_problem
from apr.evaluation.folder import Evaluation, read_evaluation
from apr.evaluation.metrics import compare
from apr.presets import load
from apr.report.html import Comparison, Report, Row, RunFacts, Teacher, write_report
from apr.report.spelling import spelling
from apr.report.viewer import Text
from apr.runs import CONFIG, commit, hardware, manifest
from apr.threads.trace import Trace

SHOWN_TRACES = 12
SOLVERS = {"sos_plus": "SoS+", "spawn_join": "spawn/join"}  # as they are spelt in a report


@dataclass(frozen=True)
class Labelled:
    """An evaluation under the name that the report gives it, as no other."""

    label: str
    evaluation: Evaluation

    @property
    def config(self) -> EvalConfig:
        return self.evaluation.config

    @property
    def traces(self) -> list[Trace]:
        return self.evaluation.traces

    @property
    def sampling(self) -> str:
        return "greedy" if self.config.temperature == 0 else f"sampled at temperature {self.config.temperature:g}"


def build_report(folders: Sequence[Path], rl: Path | None, data: Path | None, out: Path, title: str) -> str:
    """Write the report; returns a line that names it.

    Raises `DataError` or `ConfigError` for folders that hold no whole evaluation, and for evaluations of different
    problems or under different limits, which cannot be compared; `RunDirectoryError` if `out` cannot be written.
    """
    if out.is_dir():
        raise RunDirectoryError(f"{out} is a folder: name a file with --out, such as {out / 'report.html'}")
    evaluations = _labelled([read_evaluation(folder) for folder in folders])
    single = [one for one in evaluations if one.config.samples == 1]
    if not single:
        raise DataError("no evaluation with one sample a problem among the folders given: nothing to compare")
    _check_comparable(single, evaluations)
    rows = [row for one in evaluations for row in _rows(one, data)]
    facts = manifest()
    report = Report(
        title=title, rows=rows, comparisons=_comparisons(single),
        limits=single[0].config.limits.model_dump(exclude_none=True),
        budgets=_budgets(rl) or single[0].config.budgets.model_dump(exclude_none=True),
        facts=RunFacts(
            facts["command"], commit(), time.strftime("%Y-%m-%d"), hardware(), facts["versions"],
            {"evaluation": single[0].config.seed}, _seconds(out.parent / "stages.json"),
        ),
        curves=_curves(rl / "metrics.jsonl") if rl else [], traces=_chosen(single), lead=_lead(single, rows),
    )  # fmt: skip
    text = _text(single)
    try:
        write_report(out, report, text)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {out} ({error.strerror}): name another file with --out") from error
    return f"report: {out.resolve()}"


def _labelled(evaluations: Sequence[Evaluation]) -> list[Labelled]:
    """Each under the plainest kind of name that tells all apart: teacher and stage, the folder's name, its path."""
    kinds = (_kind, lambda one: one.folder.name, lambda one: str(one.folder))
    for kind in kinds:
        labels = [kind(one) for one in evaluations]
        if len({(label, one.config.samples) for label, one in zip(labels, evaluations)}) == len(evaluations):
            return [Labelled(label, one) for label, one in zip(labels, evaluations)]
    raise DataError(f"an evaluation is given twice ({', '.join(labels)}): name each folder once")


def _kind(one: Evaluation) -> str:
    solver = one.card.get("solver")
    stage = "RL" if "rl" in one.card.get("trained", []) else "SFT"
    return f"{SOLVERS.get(solver, solver)} {stage}" if solver else one.folder.name


def _check_comparable(single: Sequence[Labelled], evaluations: Sequence[Labelled]) -> None:
    """Raise `DataError` unless all evaluations are of the same problems (those with several samples: of some of them)
    under the same limits."""
    first = single[0]
    problems = [trace.problem["id"] for trace in first.traces]
    limits = first.config.limits.model_dump()
    for one in evaluations:
        tried = [trace.problem["id"] for trace in one.traces]
        if tried != problems if one.config.samples == 1 else not set(tried) <= set(problems):
            raise DataError(
                f"{one.evaluation.folder} was evaluated on other problems than {first.evaluation.folder}: "
                "evaluate both on the same"
            )
        own = one.config.limits.model_dump()
        if others := [f"{key} {own[key]} instead of {limits[key]}" for key in limits if own[key] != limits[key]]:
            raise DataError(
                f"{one.evaluation.folder} was evaluated under other limits than {first.evaluation.folder} "
                f"({', '.join(others)}): evaluate both under the same"
            )


def _text(single: Sequence[Labelled]) -> Text:
    """What spells the traces of all evaluations; they must be of one dialect."""
    spelt = [(one.evaluation.facts["dialect"], one.evaluation.facts["vocabulary"]) for one in single]
    for one, (name, vocabulary) in zip(single, spelt):
        if (name, vocabulary) != spelt[0]:
            raise DataError(
                f"{one.evaluation.folder} is of dialect {name}/{vocabulary}, {single[0].evaluation.folder} is not: "
                "a report shows traces of one dialect and tokenizer"
            )
    return spelling(single[0].evaluation.folder)


def _rows(one: Labelled, data: Path | None) -> list[Row]:
    n = one.config.samples
    if n == 1:
        return [Row.of(one.label, one.traces, one.sampling, _teacher(one, data))]
    groups = samples_by_problem(one.traces)
    note = f"{n} samples a problem at temperature {one.config.temperature:g}, {len(groups)} problems"
    return [
        Row.of(f"{one.label} cons@{n}", [majority(group) for group in groups], f"majority of {note}"),
        Row.of(f"{one.label} pass@{n}", [pass_at(group) for group in groups], f"any of {note}"),
    ]


def _teacher(one: Labelled, data: Path | None) -> Teacher | None:
    """The solver that wrote the demonstrations, run on the same problems with the same options and window.

    Its options are in `data`, or where the evaluation's problems came from. What is not there is left out, unless
    `data` was asked for: `DataError` then.
    """
    solver = one.evaluation.card.get("solver")
    path = (data or one.config.data) / CONFIG
    if data is not None and not path.is_file():
        raise DataError(f"{data} holds no data set ({CONFIG} is missing): set --data to one, or leave it out")
    if solver is None or not path.is_file():
        return None
    config = load(DataConfig, [path])
    if solver not in config.solvers:
        if data is None:
            return None
        raise DataError(
            f"{path} has no solver {solver}, which taught {one.label} (only {', '.join(config.solvers)}): set --data to "
            "the data that it was trained on, or leave it out"
        )
    problems = [{key: trace.problem[key] for key in ("id", "numbers", "target")} for trace in one.traces]
    dialect = dialect_in(path.parent, config.dialect)
    traces = demonstrations(problems, solver, config.solvers[solver], config.seed, dialect=dialect)
    window = one.config.limits.context
    solved = sum(trace.correct and trace.costs is not None and trace.costs.context <= window for trace in traces)
    return Teacher(solver, solved, len(problems))


def _comparisons(single: Sequence[Labelled]) -> list[Comparison]:
    """Each evaluation against the one before it: spawned against serial, then after against before RL."""
    result = []
    for before, after in zip(single, single[1:]):
        test = compare(after.traces, before.traces)
        gain = (test.only_a - test.only_b) / test.n * 100
        sentence = (
            f"{after.label} solves {abs(gain):.1f} points {'more' if gain >= 0 else 'fewer'} of the same {test.n} problems "
            f"than {before.label}: {test.only_a} that only it solves, against {test.only_b}."
        )
        result.append(Comparison(after.label, before.label, test, sentence))
    return result


def _lead(single: Sequence[Labelled], rows: Sequence[Row]) -> str:
    accuracy = {row.summary.name: row.summary.accuracy for row in rows}
    how = {one.sampling for one in single}
    noted = {one.label: f" ({one.sampling})" if len(how) > 1 else "" for one in single}
    parts = [f"{one.label} {accuracy[one.label]:.1%}{noted[one.label]}" for one in single]
    what = "Greedy accuracy" if how == {"greedy"} else "Accuracy" if len(how) > 1 else f"Accuracy, {how.pop()},"
    problems = f"{len(single[0].traces)} {single[0].config.split} problems"
    return f"{what} on {problems} at one context window: {', '.join(parts)}."


def _chosen(single: Sequence[Labelled]) -> list[Trace]:
    """A dozen traces, the same few problems for each model, evenly spread over the test set."""
    each = max(1, SHOWN_TRACES // len(single))
    total = len(single[0].traces)
    places = sorted({i * total // each for i in range(each)})
    return [one.traces[place] for place in places for one in reversed(single)]


def _budgets(rl: Path | None) -> dict[str, Any]:
    """The hard and soft budgets of an RL run. Raises `ConfigError` if it does not say."""
    if rl is None:
        return {}
    reward = load(RlConfig, [rl / CONFIG]).reward.model_dump(exclude_none=True)
    return {**reward.pop("budgets"), **reward}


def _curves(path: Path) -> list[dict[str, Any]]:
    """The lines of an RL run's metrics. Raises `DataError`, naming the line, if one is cut off or corrupt."""
    if not path.is_file():
        raise DataError(f"no {path}: is this an RL run?")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            records.append(json.loads(line))
            float(records[-1]["step"])
        except (ValueError, TypeError, LookupError) as error:
            raise DataError(
                f"{path}, line {number}: cut off or corrupt ({error!r}): go on with `apr rl --resume {path.parent}`, or "
                "delete that line"
            ) from error
    return records


def _seconds(path: Path) -> dict[str, float]:
    """Wall time by stage, as the quickstart writes it beside its report; empty if it did not."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
        return {str(stage): float(seconds) for stage, seconds in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is corrupt ({error!r}): delete it, or write the report elsewhere with --out") from error
