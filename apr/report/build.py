"""`apr report`: gathers evaluations and an RL run from their folders, and writes the HTML file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apr.config import DataConfig, EvalConfig, check
from apr.data.generate import CONFIG, demonstrations
from apr.data.store import read_problems
from apr.dialects import dialect_of
from apr.errors import DataError
from apr.evaluation.baselines import majority, pass_at, samples_by_problem
from apr.evaluation.metrics import compare
from apr.evaluation.run import TRACES
from apr.report.html import Comparison, Report, Row, RunFacts, Teacher, write_report
from apr.report.viewer import Text
from apr.runs import commit, hardware, manifest
from apr.sft.train import read_card
from apr.threads.codec import read_traces
from apr.threads.trace import Trace

SHOWN_TRACES = 12


@dataclass(frozen=True)
class Evaluation:
    """One folder of `apr eval`."""

    name: str
    config: EvalConfig
    traces: list[Trace]
    card: dict[str, Any]

    @property
    def stage(self) -> str:
        return "RL" if "rl" in self.card.get("trained", []) else "SFT"

    @property
    def label(self) -> str:
        solver = {"sos_plus": "SoS+", "spawn_join": "spawn/join"}.get(self.card.get("solver", ""), self.name)
        return f"{solver} {self.stage}"


def build_report(folders: Sequence[Path], rl: Path | None, data: Path | None, out: Path, title: str) -> str:
    """Write the report; returns a line that names it. Raises `DataError` for folders that hold no evaluation, or
    evaluations of different problems, which cannot be compared."""
    evaluations = [_read(folder) for folder in folders]
    greedy = [one for one in evaluations if one.config.samples == 1]
    if not greedy:
        raise DataError("no evaluation with one sample a problem among the folders given: nothing to compare")
    problems = [trace.problem["id"] for trace in greedy[0].traces]
    for one in greedy[1:]:
        if [trace.problem["id"] for trace in one.traces] != problems:
            raise DataError(
                f"{one.name} was evaluated on other problems than {greedy[0].name}: evaluate both on the same"
            )
    labels = [one.label for one in greedy]
    if len(set(labels)) < len(labels):
        raise DataError(f"two evaluations are of the same kind ({', '.join(labels)}): a report compares one of each")
    data = data or greedy[0].config.data
    rows = [row for one in evaluations for row in _rows(one, data)]
    curves = _lines(rl / "metrics.jsonl") if rl else []
    facts = manifest()
    stages = out.parent / "stages.json"
    report = Report(
        title=title, rows=rows, comparisons=_comparisons(greedy),
        limits=greedy[0].config.limits.model_dump(exclude_none=True),
        budgets=_budgets(rl) or greedy[0].config.budgets.model_dump(exclude_none=True),
        facts=RunFacts(
            facts["command"], commit(), time.strftime("%Y-%m-%d"), hardware(), facts["versions"],
            {"evaluation": greedy[0].config.seed}, json.loads(stages.read_text()) if stages.is_file() else {},
        ),
        curves=curves, traces=_chosen(greedy), lead=_lead(greedy, rows),
    )  # fmt: skip
    write_report(out, report, _text(greedy))
    return f"report: {out.resolve()}"


def _read(folder: Path) -> Evaluation:
    if not (folder / TRACES).is_file():
        raise DataError(f"{folder} holds no evaluation ({TRACES} is missing): run `apr eval ... out={folder}` first")
    config = check(EvalConfig, yaml.safe_load((folder / CONFIG).read_text()), str(folder / CONFIG))
    return Evaluation(folder.name, config, list(read_traces(folder / TRACES)), read_card(config.checkpoint))


def _text(greedy: Sequence[Evaluation]) -> Text:
    """What spells the traces of all evaluations; they must be of one dialect."""
    dialects = [dialect_of(one.config.checkpoint, one.config.dialect) for one in greedy]
    for one, dialect in zip(greedy, dialects):
        if dialect.vocabulary.hash != dialects[0].vocabulary.hash:
            raise DataError(
                f"{one.name} is of dialect {dialect.name}/{dialect.vocabulary.hash}, {greedy[0].name} is not: "
                "a report shows traces of one dialect and tokenizer"
            )
    return dialects[0].vocabulary.text


def _rows(one: Evaluation, data: Path) -> list[Row]:
    n = one.config.samples
    if n == 1:
        description = "greedy" if one.config.temperature == 0 else f"sampled at temperature {one.config.temperature:g}"
        return [Row.of(one.label, one.traces, description, _teacher(one, data))]
    groups = samples_by_problem(one.traces)
    note = f"{n} samples a problem at temperature {one.config.temperature:g}, {len(groups)} problems"
    return [
        Row.of(f"{one.label} cons@{n}", [majority(group) for group in groups], f"majority of {note}"),
        Row.of(f"{one.label} pass@{n}", [pass_at(group) for group in groups], f"any of {note}"),
    ]


def _teacher(one: Evaluation, data: Path) -> Teacher | None:
    """The solver that wrote the demonstrations, run on the same problems with the same options and window."""
    solver = one.card.get("solver")
    path = data / CONFIG
    if solver is None or not path.is_file():
        return None
    config = check(DataConfig, yaml.safe_load(path.read_text()), str(path))
    problems = read_problems(data, one.config.split)[: one.config.problems]
    traces = demonstrations(problems, solver, config.solvers[solver], config.seed, dialect=config.dialect)
    window = one.config.limits.context
    solved = sum(trace.correct and trace.costs is not None and trace.costs.context <= window for trace in traces)
    return Teacher(solver, solved, len(traces))


def _comparisons(greedy: Sequence[Evaluation]) -> list[Comparison]:
    """Each evaluation against the one before it: spawned against serial, then after against before RL."""
    result = []
    for before, after in zip(greedy, greedy[1:]):
        test = compare(after.traces, before.traces)
        gain = (test.only_a - test.only_b) / test.n * 100
        sentence = (
            f"{after.label} solves {abs(gain):.1f} points {'more' if gain >= 0 else 'fewer'} of the same {test.n} problems "
            f"than {before.label}: {test.only_a} that only it solves, against {test.only_b}."
        )
        result.append(Comparison(after.label, before.label, test, sentence))
    return result


def _lead(greedy: Sequence[Evaluation], rows: Sequence[Row]) -> str:
    accuracy = {row.summary.name: row.summary.accuracy for row in rows}
    parts = [f"{one.label} {accuracy[one.label]:.1%}" for one in greedy]
    return f"Greedy accuracy on {len(greedy[0].traces)} held-out problems at one context window: {', '.join(parts)}."


def _chosen(greedy: Sequence[Evaluation]) -> list[Trace]:
    """A dozen traces, the same few problems for each model, evenly spread over the test set."""
    each = max(1, SHOWN_TRACES // len(greedy))
    total = len(greedy[0].traces)
    places = [i * total // each for i in range(each)]
    return [one.traces[place] for place in places for one in reversed(greedy)]


def _budgets(rl: Path | None) -> dict[str, Any]:
    if rl is None:
        return {}
    reward = yaml.safe_load((rl / CONFIG).read_text())["reward"]
    hard = {name: value for name, value in reward["budgets"].items() if value is not None}
    return hard | {name: value for name, value in reward.items() if name.startswith("soft_") and value is not None}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"no {path}: is this an RL run?")
    return [json.loads(line) for line in path.read_text().splitlines()]
