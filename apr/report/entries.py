"""What a report is made of: evaluations and RL runs, read from their folders and named so that no two names are alike."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from apr.checkpoints.card import Card, Reward
from apr.config import EvalConfig, RlConfig
from apr.errors import DataError
from apr.evaluation.baselines import majority, pass_at, samples_by_problem
from apr.evaluation.folder import TRACES, Evaluation, read_evaluation
from apr.evaluation.metrics import Attempt, Summary, summarise
from apr.evaluation.systems import Systems, systems
from apr.presets import load_recorded
from apr.report.teachers import Teacher
from apr.runs import CONFIG, MANIFEST, recorded

SOLVERS = {"sos_plus": "SoS+", "spawn_join": "spawn/join"}  # as they are spelt in a report
METRICS = "metrics.jsonl"


def scored_problems(attempts: Sequence[Attempt]) -> int:
    """How many problems were scored, however many samples each had."""
    return len({one.problem for one in attempts if not one.lost})


@dataclass(frozen=True)
class Entry:
    """An evaluation under a label that no other has. `model`: its teacher and stage; `variant`: with what it was asked for
    or trained under, whatever the temperature. `place`: its colour."""

    label: str
    model: str
    variant: str
    place: int
    evaluation: Evaluation

    @property
    def title(self) -> str:
        """The label, and how many samples of a problem stand under it: alone under that name."""
        return self.label if self.config.samples == 1 else f"{self.label} ({self.config.samples} samples)"

    @property
    def config(self) -> EvalConfig:
        return self.evaluation.config

    @property
    def attempts(self) -> list[Attempt]:
        return self.evaluation.attempts

    @cached_property
    def summary(self) -> Summary:
        """Of all attempts."""
        return summarise(self.label, self.attempts)

    @property
    def problems(self) -> int:
        """How many problems it was scored on."""
        return scored_problems(self.attempts)

    @cached_property
    def systems(self) -> Systems:
        """The measures of other systems, of all attempts."""
        return systems(self.attempts)

    @cached_property
    def first(self) -> list[Attempt]:
        """The first sample of each problem, as paired tests take it."""
        return [one for one in self.attempts if one.sample == 0]

    def majority(self, samples: Sequence[Attempt]) -> Attempt:
        """The vote of samples of one problem: answers that their environment calls equal vote together."""
        return majority(samples)

    @property
    def sampling(self) -> str:
        return "greedy" if self.config.temperature == 0 else f"sampled at temperature {self.config.temperature:g}"

    @property
    def solver(self) -> str | None:
        """The teacher of its model."""
        return self.evaluation.card.solver

    @property
    def stages(self) -> list[str]:
        """What its model was trained in, first to last."""
        return list(self.evaluation.card.trained)

    @property
    def tuned(self) -> bool:
        """Its model went through RL."""
        return "rl" in self.stages

    @property
    def alone(self) -> bool:
        """Problems were tried one at a time: its seconds are of one problem alone."""
        return self.config.in_flight == 1

    @property
    def problem_set(self) -> tuple[str, str]:
        """Data and split: of the same, an evaluation of fewer problems is one of the first of them."""
        return self.evaluation.facts["data_hash"], self.config.split

    @property
    def asked(self) -> int:
        """How many problems it was to try."""
        return int(self.evaluation.facts["traces"]) // self.config.samples

    @property
    def circumstances(self) -> tuple[Any, ...]:
        """What must be equal for two evaluations to be points of one line: all but temperature and condition."""
        config = self.config
        return (
            self.model, self.evaluation.facts.get("checkpoint_hash"), self.problem_set, self.asked, config.limits, self.alone,
        )  # fmt: skip

    @property
    def budgets(self) -> dict[str, int]:
        """Hard budgets of the evaluation, or else those that the model was trained under."""
        return _budgets(self.evaluation)


@dataclass(frozen=True)
class RlRun:
    """An RL run: its label, configuration, manifest, and the lines of its metrics."""

    label: str
    folder: Path
    config: RlConfig
    manifest: dict[str, Any]
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One model or baseline: a result per problem, or several samples of each. `place`: its colour."""

    summary: Summary
    attempts: Sequence[Attempt]
    place: int
    teacher: Teacher | None = None

    @property
    def problems(self) -> int:
        """How many problems it was scored on."""
        return scored_problems(self.attempts)


def read_runs(folders: Sequence[Path]) -> tuple[list[Entry], list[RlRun]]:
    """The evaluations and the RL runs among `folders`. Raises `DataError` or `ConfigError` for a folder that is neither."""
    evaluations, runs = [], []
    given = [folder.resolve() for folder in folders]
    if len(set(given)) < len(given):
        twice = next(folder for folder, place in zip(folders, given) if given.count(place) > 1)
        raise DataError(f"{twice} is given twice: name each folder once")
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: name those that `apr eval` or `apr rl` wrote")
        if (folder / TRACES).is_file() or recorded(folder).get("kind") == "eval":
            evaluations.append(read_evaluation(folder))
        elif (folder / METRICS).is_file() or recorded(folder).get("kind") == "rl":
            runs.append(_rl_run(folder))
        else:
            raise DataError(
                f"{folder} holds neither an evaluation ({TRACES}) nor an RL run ({METRICS}): name folders that `apr eval` or "
                "`apr rl` wrote"
            )
    return _entries(evaluations), _distinct(runs)


def rows_of(entry: Entry, teacher: Teacher | None) -> list[Row]:
    """One row for one sample a problem; for several their mean, cons@n and pass@n."""
    n = entry.config.samples
    how = f"{entry.sampling}, one at a time" if entry.alone else entry.sampling
    if n == 1:
        return [Row(summarise(entry.label, entry.attempts, how), entry.attempts, entry.place, teacher)]
    groups = samples_by_problem(entry.attempts)
    note = f"{n} samples a problem at temperature {entry.config.temperature:g}, {len(groups)} problems"
    kinds = (("cons", "majority of", entry.majority), ("pass", "any of", pass_at))
    mean = summarise(f"{entry.label} mean@{n}", entry.attempts, f"mean of {note}")
    return [Row(mean, entry.attempts, entry.place, teacher)] + [
        Row(summarise(f"{entry.label} {kind}@{n}", tries, f"{word} {note}"), tries, entry.place + i)
        for i, (kind, word, vote) in enumerate(kinds, 1)
        for tries in [[vote(group) for group in groups]]
    ]


def budgets_of(card: Card) -> dict[str, int]:
    """The hard budgets that a model was trained under, as its card tells."""
    budgets: dict[str, int] = {} if card.reward is None else card.reward.budgets.model_dump(exclude_none=True)
    return budgets


def _entries(evaluations: Sequence[Evaluation]) -> list[Entry]:
    """Labels grow by what tells evaluations apart, plainest first: stage, budgets, temperature, pace, folder, path."""
    models = [_model(one) for one in evaluations]
    labels = [f"{model}{_condition(one)}" for model, one in zip(models, evaluations)]
    variants = labels = _apart(labels, evaluations, _under)
    labels = _apart(labels, evaluations, lambda one: f", T={one.config.temperature:g}")
    labels = _apart(labels, evaluations, lambda one: ", one at a time" if one.config.in_flight == 1 else "")
    labels = _apart(labels, evaluations, lambda one: f" ({one.folder.name})")
    alike = _alike(labels, evaluations)
    labels = [
        f"{label} in {one.folder.parent}" if same else label for label, one, same in zip(labels, evaluations, alike)
    ]
    entries = [
        Entry(label, model, variant, 0, one)
        for label, model, variant, one in zip(labels, models, variants, evaluations)
    ]
    return placed(entries, entries)


def placed(entries: Sequence[Entry], first: Sequence[Entry]) -> list[Entry]:
    """The entries with places of their own, one a row; the lowest, whose colours differ most, are for those in `first`, then
    for those that are voted over."""
    places, place = {}, 0
    titles = {one.title for one in first}
    for one in sorted(entries, key=lambda one: (one.title not in titles, one.config.samples == 1)):
        places[one.title] = place
        place += 1 if one.config.samples == 1 else 3  # its mean, cons@n and pass@n are rows of their own
    return [replace(one, place=places[one.title]) for one in entries]


def _apart(labels: list[str], evaluations: Sequence[Evaluation], part: Callable[[Evaluation], str]) -> list[str]:
    """The labels, with the part added to those that are alike and that it tells apart."""
    parts: dict[tuple[str, int], set[str]] = {}
    for label, one in zip(labels, evaluations):
        parts.setdefault((label, one.config.samples), set()).add(part(one))
    return [
        label + part(one) if len(parts[label, one.config.samples]) > 1 else label
        for label, one in zip(labels, evaluations)
    ]


def _alike(labels: list[str], evaluations: Sequence[Evaluation]) -> list[bool]:
    """Which of the labels are not alone with their number of samples."""
    counts = Counter((label, one.config.samples) for label, one in zip(labels, evaluations))
    return [counts[label, one.config.samples] > 1 for label, one in zip(labels, evaluations)]


def _model(one: Evaluation) -> str:
    solver = one.card.solver
    stage = "RL" if "rl" in one.card.trained else "SFT"
    return f"{SOLVERS.get(solver, solver)} {stage}" if solver else one.folder.name


def _budgets(one: Evaluation) -> dict[str, int]:
    own: dict[str, int] = one.config.budgets.model_dump(exclude_none=True)
    return own or budgets_of(one.card)


def _under(one: Evaluation) -> str:
    """Its hard budgets, and what RL's reward made dear beyond a soft one."""
    reward = one.card.reward or Reward()
    hard = [f", {name} ≤ {value}" for name, value in _budgets(one).items()]
    soft = [
        f", {name} dear beyond {term.budget}"
        for name, term in (("context", reward.soft_context), ("span", reward.soft_span), ("work", reward.soft_work))
        if term is not None
    ]
    return "".join([*hard, *soft])


def _condition(one: Evaluation) -> str:
    condition = one.config.condition
    if condition is None:
        return ""
    return f", {condition.value} children" if condition.kind == "children" else f", context {condition.value}"


def _rl_run(folder: Path) -> RlRun:
    config = load_recorded(RlConfig, folder / CONFIG)
    return RlRun(folder.name, folder, config, recorded(folder), read_records(folder / METRICS))


def _distinct(runs: list[RlRun]) -> list[RlRun]:
    names = Counter(run.label for run in runs)
    return [run if names[run.label] == 1 else replace(run, label=str(run.folder)) for run in runs]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of an RL run's metrics. Raises `DataError`, naming the line, if one is cut off or corrupt."""
    if not path.is_file():
        raise DataError(f"no {path}: is this an RL run? Its manifest is {path.parent / MANIFEST}")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            records.append(json.loads(line))
            if not math.isfinite(records[-1]["step"]):
                raise ValueError("step is no number")
        except (ValueError, TypeError, LookupError) as error:
            raise DataError(
                f"{path}, line {number}: cut off or corrupt ({error!r}): go on with `apr rl --resume {path.parent}`, or "
                "delete that line"
            ) from error
    return records
