"""Comparisons at equal cost: does spawning pay, and does RL?

A model is compared with a rival whose mean work, context or sampled span differs from its own by no more than `TOLERANCE`;
where there is no such rival, that is the answer. Rivals are single attempts and votes, with the summed work of their samples.
pass@n is none: it needs an oracle. Of several, the one that shares the most problems with the model is taken, then the
nearest: never by accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from apr.evaluation.baselines import samples_by_problem
from apr.evaluation.metrics import Attempt, McNemar, Summary, interval, mcnemar, summarise
from apr.report.chart import Column, Table
from apr.report.entries import Entry
from apr.report.tables import p_value, signed
from apr.report.teachers import Teacher
from apr.threads.trace import StopReason

TOLERANCE = 0.15  # two mean costs are equal if neither exceeds the other by more than this share
EQUAL = {"work": "work", "context": "context", "span_sampled": "sampled span"}
SPAWNING, RL = "Does spawning pay?", "Does RL pay?"
RULE = f"Each model against a rival of equal mean cost: within {TOLERANCE:.0%} over the problems compared."
SERIAL = "serial"  # the protocol that never spawns


@dataclass(frozen=True)
class Contender:
    """What can be compared: one attempt per problem, single or a vote. `place`: its colour."""

    name: str
    entry: Entry
    attempts: Sequence[Attempt]
    place: int

    @cached_property
    def scored(self) -> dict[str, Attempt]:
        return {one.problem: one for one in self.attempts if not one.lost}


@dataclass(frozen=True)
class Unpaired:
    """Difference of two accuracies on problems of which none is shared: Newcombe's hybrid score interval (Statistics in
    Medicine 17, 1998, method 10) and Fisher's exact two-sided test."""

    solved_a: int
    n_a: int
    solved_b: int
    n_b: int

    @property
    def gain(self) -> float:
        return self.solved_a / self.n_a - self.solved_b / self.n_b

    @property
    def gain_interval(self) -> tuple[float, float]:
        a, b = self.solved_a / self.n_a, self.solved_b / self.n_b
        (low_a, high_a), (low_b, high_b) = interval(self.solved_a, self.n_a), interval(self.solved_b, self.n_b)
        return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)

    @property
    def p_value(self) -> float:
        from scipy.stats import fisher_exact

        table = [[self.solved_a, self.n_a - self.solved_a], [self.solved_b, self.n_b - self.solved_b]]
        return float(fisher_exact(table).pvalue)


@dataclass(frozen=True)
class Comparison:
    """`a` against `b`. Summaries are over the problems that were compared: those that both tried, if there are any."""

    model: Contender
    rival: Contender
    a: Summary
    b: Summary
    test: McNemar | Unpaired

    @property
    def paired(self) -> bool:
        return isinstance(self.test, McNemar)

    @property
    def alone(self) -> tuple[int | None, int | None]:
        """Problems that only one of the two solves, if they tried the same."""
        return (self.test.only_a, self.test.only_b) if isinstance(self.test, McNemar) else (None, None)

    @property
    def where(self) -> str:
        if self.paired:
            return f"on the same {self.a.n:,} problems"
        return f"on {self.a.n:,} and {self.b.n:,} problems, none of them the same"

    def ratio(self, cost: str) -> float | None:
        """Mean cost of `a` over that of `b`; None if the latter is 0."""
        a, b = self.a.costs[cost].mean, self.b.costs[cost].mean
        return a / b if b else None

    def apart(self, cost: str) -> float:
        """How far the mean costs are from equal: 0 if they are, 0.15 if one is 15% more than the other."""
        ratio = self.ratio(cost)
        return max(ratio, 1 / ratio) - 1 if ratio else math.inf

    def equal(self, cost: str) -> bool:
        return self.apart(cost) <= TOLERANCE


@dataclass(frozen=True)
class Question:
    """A model against its rivals. `kind`: of rivals, in words. `rivals`: by cost, the comparison with the one chosen, or
    else, if none is equal in that cost, with the nearest. `note`: what else a reader must know."""

    heading: str
    model: Contender
    kind: str
    rivals: dict[str, Comparison]
    note: str = ""

    @property
    def equal(self) -> dict[tuple[str, ...], Comparison]:
        """By the costs in which they are equal: the comparisons, each once."""
        costs: dict[str, list[str]] = {}
        for cost, one in self.rivals.items():
            if one.equal(cost):
                costs.setdefault(one.b.name, []).append(cost)
        return {tuple(same): self.rivals[same[0]] for same in costs.values()}

    @property
    def unequal(self) -> list[str]:
        """The costs in which no rival is equal."""
        return [cost for cost, one in self.rivals.items() if not one.equal(cost)]

    def missing(self, cost: str) -> str:
        """The sentence for a cost in which no rival is equal."""
        one = self.rivals[cost]
        spent, others = (f"{side.costs[cost].mean:,.0f}" for side in (one.a, one.b))
        far = f"{others} tokens against {spent} ({times(one.ratio(cost))})"
        return f"None of the {self.kind} is within {TOLERANCE:.0%}. The nearest is {one.b.name}: {far}."


def contenders(entry: Entry, every: bool = True) -> list[Contender]:
    """An evaluation of one sample per problem; of several, the first sample, and votes over the first k (if not `every`,
    over all of them only)."""
    n = entry.config.samples
    if n == 1:
        return [Contender(entry.label, entry, entry.attempts, entry.place)]
    groups = samples_by_problem(entry.attempts)
    votes = [
        Contender(f"{entry.label} cons@{k}{f' (first {k} of {n} samples)' if k < n else ''}", entry,
                  [entry.majority(group[:k]) for group in groups], entry.place + 1)
        for k in range(2 if every else n, n + 1)
    ]  # fmt: skip
    return [Contender(f"{entry.label}, first of {n} samples", entry, entry.first, entry.place), *votes]


def compared(a: Contender, b: Contender) -> Comparison:
    """Paired on the problems that both tried and neither lost, of whatever data; unpaired where they share none."""
    told, others_told = a.entry.evaluation.problems, b.entry.evaluation.problems
    shared = [problem for problem in a.scored if problem in b.scored and told[problem] == others_told[problem]]
    ours, theirs = ([one.scored[problem] for problem in shared or one.scored] for one in (a, b))
    solved, others = [one.correct for one in ours], [one.correct for one in theirs]
    test = mcnemar(solved, others) if shared else Unpaired(sum(solved), len(solved), sum(others), len(others))
    return Comparison(a, b, summarise(a.name, ours), summarise(b.name, theirs), test)


def questions(main: Sequence[Entry], entries: Sequence[Entry], teachers: Sequence[Teacher] = ()) -> list[Question]:
    """For each model of `main` that spawns, one against the serial rows among `entries`: those trained in the same stages,
    if there are any. For each after RL, one against those of the same teacher and protocol before it."""
    asked = []
    serial = [one for one in entries if one.config.protocol == SERIAL]
    for one in main:
        if one.config.protocol != SERIAL:
            alike = [other for other in serial if other.stages == one.stages]
            note = "" if alike else f"No serial model was trained as it was ({', '.join(one.stages) or 'untold'})."
            asked.append(_question(SPAWNING, "serial rows", one, alike or serial, teachers, note))
    for one in main:
        if one.tuned and one.solver is not None:
            kin = [
                other
                for other in entries
                if other.solver == one.solver and other.config.protocol == one.config.protocol
            ]
            asked.append(_question(RL, "rows before RL", one, [other for other in kin if not other.tuned], teachers))
    return [question for question in asked if question is not None]


def _question(
    heading: str, kind: str, one: Entry, others: Sequence[Entry], teachers: Sequence[Teacher], note: str = ""
) -> Question | None:
    """None if there are no rivals."""
    model = contenders(one)[0]
    tried = [compared(model, rival) for other in others for rival in contenders(other)]
    if not tried:
        return None
    chosen = {cost: _chosen(tried, cost) for cost in EQUAL}
    solvers = dict.fromkeys([one.solver, *(found.rival.entry.solver for found in chosen.values())])
    known = {teacher.name: teacher for teacher in reversed(teachers) if teacher.n}
    told = [f"{name} {known[name].solved / known[name].n:.1%}" for name in solvers if name in known]
    if len(told) > 1:
        note = f"{note} Their teachers' own success: {', '.join(told)}.".strip()
    return Question(heading, model, kind, chosen, note)


def _chosen(tried: Sequence[Comparison], cost: str) -> Comparison:
    """Of those equal in the cost: the one on the most problems, paired if possible, then the nearest. Else the nearest."""
    equal = [one for one in tried if one.equal(cost)]
    return min(equal or tried, key=lambda one: (*((not one.paired, -one.a.n) if equal else ()), one.apart(cost)))


def equal_costs(asked: Sequence[Question]) -> Table:
    """A record per question and rival that is equal in some costs, with the difference; and per cost in which none is equal,
    with the nearest rival."""
    records = []
    for question in asked:
        records += [_record(question, costs, one, True) for costs, one in question.equal.items()]
        records += [_record(question, (cost,), question.rivals[cost], False) for cost in question.unequal]
    columns = [
        Column("model", lambda r: r["model"], lambda r: r["question"]),
        Column("at equal", lambda r: named(r["costs"].split())),
        Column("against", lambda r: r["rival"] if r["gain"] is not None else "no rival", _not_equal),
        Column("problems", _problems),
        Column("accuracy", lambda r: _accuracy(r, "model"), lambda r: _interval(r, "model")),
        Column("the rival's", lambda r: _accuracy(r, "rival"), lambda r: _interval(r, "rival")),
        *ratio_columns(),
        *gain_columns(),
    ]
    return Table("comparisons", "Comparisons at equal cost", records, columns, f"{RULE} {note(asked)}")


def note(asked: Sequence[Question]) -> str:
    """How rivals are chosen and compared."""
    unpaired = any(not one.paired for question in asked for one in question.equal.values())
    return (
        "Of several rivals of equal cost the one that shares the most problems is taken, then the nearest. Votes count with "
        "the work of all their samples; of several samples alone, the first is compared; pass@n needs an oracle and is no "
        "rival. Differences are in points, with their 95% interval and McNemar's exact test on the problems that both tried"
        + ("; where they share none, with Newcombe's interval and Fisher's exact test." if unpaired else ".")
    )


def named(costs: Sequence[str]) -> str:
    """Costs in words: `work, context and sampled span`."""
    words = [EQUAL[cost] for cost in costs]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def paired(entries: Sequence[Entry]) -> Table:
    """Exact McNemar tests between all rows that share problems, at whatever cost."""
    every = [one for entry in entries for one in contenders(entry, every=False)]
    records = []
    for b, a in combinations(every, 2):
        found = compared(a, b)
        if found.paired:
            low, high = found.test.gain_interval
            records.append(
                {
                    "model": a.name, "against": b.name, "n": found.a.n, "only_a": found.alone[0], "only_b": found.alone[1],
                    "gain": found.test.gain, "low": low, "high": high, "p_value": found.test.p_value, **_ratios(found),
                }
            )  # fmt: skip
    columns = [
        Column("model", lambda r: r["model"], lambda r: f"against {r['against']}"),
        Column("problems", lambda r: f"{r['n']:,}"),
        *ratio_columns(),
        *gain_columns(),
        Column("it alone", lambda r: f"{r['only_a']:,}"),
        Column("the other alone", lambda r: f"{r['only_b']:,}"),
    ]
    told = (
        "At whatever cost: mind the ratios. Not corrected for the number of tests: among twenty of equals, one p below 0.05 is "
        "to be expected."
    )
    return Table("paired", "Paired tests on the same problems", records, columns, told)


def ratio_columns() -> list[Column]:
    return [_ratio_column(cost, word) for cost, word in EQUAL.items()]


def gain_columns() -> list[Column]:
    return [
        Column(
            "gain, points", lambda r: "" if r["gain"] is None else signed(r["gain"]),
            lambda r: "" if r["gain"] is None else f"{signed(r['low'])} to {signed(r['high'])}",
        ),
        Column("p", lambda r: "" if r["p_value"] is None else p_value(r["p_value"])),
    ]  # fmt: skip


def times(ratio: float | None) -> str:
    return "n/a" if ratio is None else f"\u00d7{ratio:.2f}"


def _record(question: Question, costs: Sequence[str], one: Comparison, equal: bool) -> dict[str, Any]:
    low, high = one.test.gain_interval if equal else (None, None)
    record: dict[str, Any] = {
        "question": question.heading, "model": one.a.name, "costs": " ".join(costs), "equal": int(equal), "rival": one.b.name,
        "paired": int(one.paired), "model_problems": one.a.n, "rival_problems": one.b.n, **_ratios(one),
    }  # fmt: skip
    for side, summary in (("model", one.a), ("rival", one.b)):
        record |= {
            f"{side}_accuracy": summary.accuracy, f"{side}_low": summary.interval[0], f"{side}_high": summary.interval[1],
            f"{side}_at_window": summary.stops.get(StopReason.CONTEXT.value, 0),
        }  # fmt: skip
    return record | {
        "only_model": one.alone[0] if equal else None, "only_rival": one.alone[1] if equal else None,
        "gain": one.test.gain if equal else None, "low": low, "high": high,
        "p_value": one.test.p_value if equal else None,
    }  # fmt: skip


def _ratio_column(cost: str, word: str) -> Column:
    return Column(f"{word}, ratio", lambda r: times(r[f"{cost}_ratio"]))


def _ratios(one: Comparison) -> dict[str, float | None]:
    return {f"{cost}_ratio": one.ratio(cost) for cost in EQUAL}


def _not_equal(record: Any) -> str:
    return "" if record["gain"] is not None else f"the nearest is {record['rival']}"


def _problems(record: Any) -> str:
    ours, theirs = record["model_problems"], record["rival_problems"]
    return f"{ours:,}" if record["paired"] else f"{ours:,} and {theirs:,}, others"


def _accuracy(record: Any, side: str) -> str:
    return "" if record["gain"] is None else f"{record[f'{side}_accuracy']:.1%}"


def _interval(record: Any, side: str) -> str:
    return "" if record["gain"] is None else f"{record[f'{side}_low']:.1%} to {record[f'{side}_high']:.1%}"
