"""What the study found: its tests, worked out from the attempts in docs/results, into the tables of docs/results.md.

    python benchmarks/findings.py

Needs no run: `docs/results/attempts` has what counts of every attempt, one file for each evaluation. A test between two models
is the exact McNemar test on the problems that both tried; an interval of a difference is the adjusted Wald one for
paired proportions (Agresti and Min 2005), as in the report. Rows that are not there yet are left out.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import statistics
from collections.abc import Callable, Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import NamedTuple, TypeVar

from apr.evaluation.folder import read_evaluation
from apr.evaluation.metrics import McNemar, interval, mcnemar
from apr.report.published import TABLES as TABLES_1_TO_3
from apr.report.published import TEMPERATURES

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
FACTS = "facts.json"
BEGIN, END = "<!-- written by benchmarks/findings.py -->\n", "<!-- end -->\n"
STEERED = (
    "rl_span", "rl_context", "rl_work", "rl_null", "rl_free_span", "rl_free_context", "rl_eager", "rl_eager_span",
    "rl_eager_context", "rl_loose", "rl_loose_span", "rl_scaled_span", "rl_scaled_loose_span",
)  # fmt: skip
SEEDS = {0: "", 1: "_seed1", 2: "_seed2"}  # what the names of a seed's models end in
WINDOWS = (64, 96, 128, 400)  # contexts at which the students are compared; no attempt may exceed the last
CHILDREN = (2, 4, 6, 8, 10, 12)  # asked for in the prompt
WIDTHS = ((0, 3), (4, 5), (6, 7), (8, 15))  # children, by which attempts are counted
JUDGED = 64  # the context budget
NESTED_WINDOWS = (96, 240, 300)  # the same, for one level of spawns and two
STUDENT = {2: 12.706, 3: 4.303}  # the 97.5% point of Student's distribution, by the number of seeds
OWN_END = ("answered", "no_answer")  # how an attempt stops that no limit cut and no error spoilt
ONE_SIDED = 1.6448536269514722  # the normal distribution's 95% point


class Tried(NamedTuple):
    """One attempt; costs in tokens, `seconds` of wall clock."""

    correct: bool
    stop: str
    context: int
    work: int
    span_sampled: int
    threads: int
    seconds: float


Attempts = dict[str, Tried]
Row = TypeVar("Row", bound=NamedTuple)


def write_attempts(folder: Path, kept: Path, kind: type[NamedTuple]) -> None:
    """The attempts of an evaluation's folder as a small table, `KEPT/NAME.csv.gz`: of each the fields of `kind`, which are
    `correct`, `stop` and costs."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("problem", *kind._fields))
    for one in read_evaluation(folder).attempts:
        costs = (f"{one.costs[name]:.3f}" if name == "seconds" else int(one.costs[name]) for name in kind._fields[2:])
        table.writerow((one.problem, int(one.correct), one.stop.value, *costs))
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"{folder.name}.csv.gz").write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def read_attempts(path: Path, kind: type[Row]) -> dict[str, Row] | None:
    """By problem, in the order in which they were drawn; None if that evaluation is not there."""
    if not path.is_file():
        return None
    rows = csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode()))
    number = [float if name == "seconds" else int for name in next(rows)[3:]]
    return {
        problem: kind(correct == "1", stop, *(read(cost) for read, cost in zip(number, costs)))
        for problem, correct, stop, *costs in rows
    }


def publish_attempts(folder: Path) -> None:
    """The attempts of one of the study's evaluations."""
    write_attempts(folder, PUBLISHED / "attempts", Tried)


@cache
def attempts(name: str) -> Attempts | None:
    """Those of one of the study's evaluations."""
    return read_attempts(PUBLISHED / "attempts" / f"{name}.csv.gz", Tried)


def compared(a: dict[str, Row], b: dict[str, Row], holds: Callable[[Row], bool] = lambda one: one.correct) -> McNemar:
    """The two models on the problems that both tried; `holds` says what counts as solved."""
    shared = [problem for problem in a if problem in b]
    return mcnemar([holds(a[problem]) for problem in shared], [holds(b[problem]) for problem in shared])


def worst_loss(test: McNemar) -> float:
    """The lower end of the one-sided 95% interval of a's accuracy less b's, by the adjusted Wald method."""
    return test.gain_bounds(ONE_SIDED)[0]


def within(context: int) -> Callable[[Tried], bool]:
    return lambda one: one.correct and one.context <= context


def mean(tried: Attempts, cost: str, over: Attempts | None = None) -> float:
    """Of the problems that `over` tried as well."""
    return statistics.fmean(getattr(one, cost) for problem, one in tried.items() if over is None or problem in over)


def rate(tried: Attempts, holds: Callable[[Tried], bool] = lambda one: one.correct) -> str:
    solved = sum(map(holds, tried.values()))
    low, high = interval(solved, len(tried))
    return f"{100 * solved / len(tried):.1f}% ({100 * low:.1f}-{100 * high:.1f})"


def signed(test: McNemar) -> str:
    low, high = test.gain_interval
    return f"{100 * test.gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def p(test: McNemar) -> str:
    return f"{test.p_value:.1g}" if test.p_value < 0.01 else f"{test.p_value:.2f}"


def whole(test: McNemar) -> str:
    return f"{signed(test)}, {test.only_a}:{test.only_b}, p = {p(test)}"


Row = tuple[str, ...]


def models() -> Iterator[Row]:
    """Every evaluation on test problems: accuracy and mean costs."""
    for path in sorted((PUBLISHED / "attempts").glob("*.csv.gz")):
        name = path.name.removesuffix(".csv.gz")
        if name.endswith(("_80", "_100", "_alone", "_load")):
            continue
        tried = attempts(name)
        assert tried is not None
        costs = (f"{mean(tried, cost):,.0f}" for cost in ("context", "work", "span_sampled"))
        yield name, f"{len(tried):,}", rate(tried), *costs, f"{mean(tried, 'threads'):.1f}", rate(tried, within(128))


def levelled() -> Iterator[Row]:
    """Whether SFT went on for long enough: validation after four fifths of it and at its end, greedily; and test problems after
    a training of half as many tokens, whose learning rate came to zero as well, and after the whole one."""
    for solver in ("serial", "spawn_join", "children", "one_level", "two_levels"):
        for ending in SEEDS.values():
            name = f"sft_{solver}{ending}"
            pairs = [
                ("validation, from 80% of it", f"{name}_80", f"{name}_100"),
                *((f"test, T={t}, from half", f"{name}_half_T{t}", f"{name}_T{t}") for t in (0, 1)),
            ]
            for what, earlier, later in pairs:
                before, after = attempts(earlier), attempts(later)
                if before and after:
                    test = compared(after, before)
                    told = "yes" if test.gain < 0.005 else "**no**"
                    yield (
                        name,
                        what,
                        rate(before),
                        rate(after),
                        signed(test),
                        f"{test.only_a}:{test.only_b}",
                        p(test),
                        told,
                    )


def spawning() -> Iterator[Row]:
    """Spawn/join against serial, both taught the same searches, by how much context an attempt may take."""
    for stage in ("sft", "rl"):
        for temperature in (0, 1):
            for seed, ending in SEEDS.items():
                spawned = attempts(f"{stage}_spawn_join{ending}_T{temperature}")
                serial = attempts(f"{stage}_serial{ending}_T{temperature}")
                if spawned and serial:
                    tests = [compared(spawned, serial, within(context)) for context in WINDOWS]
                    longer = mean(spawned, "span_sampled") / mean(serial, "span_sampled")
                    dearer = mean(spawned, "work") / mean(serial, "work")
                    yield (
                        stage.upper(), str(temperature), str(seed),
                        *map(whole, tests),
                        f"{longer:.2f}", f"{dearer:.2f}",
                    )  # fmt: skip


def gains() -> Iterator[Row]:
    """What RL adds to the SFT model it began from."""
    pairs = [
        (f"rl_{s}{e}", f"sft_{s}{e}")
        for s in ("serial", "spawn_join", "one_level", "two_levels")
        for e in SEEDS.values()
    ]
    pairs += [(name, "sft_spawn_join") for name in STEERED]
    for name, start in pairs:
        for temperature in (0, 1):
            after, before = attempts(f"{name}_T{temperature}"), attempts(f"{start}_T{temperature}")
            if after and before:
                test = compared(after, before)
                costs = (f"{mean(before, c):.0f} to {mean(after, c):.0f}" for c in ("context", "work", "span_sampled"))
                yield name, str(temperature), signed(test), f"{test.only_a}:{test.only_b}", p(test), *costs


def over_seeds() -> Iterator[Row]:
    """The gains above as means over the seeds of SFT and RL, with Student's 95% interval between seeds, which holds for further
    seeds on these problems; the exact tests hold for further problems with these seeds."""
    students = ("serial", "spawn_join")
    told = [  # what, T, which attempts have the gain, over which others, within which context
        (f"spawn/join over serial, {stage.upper()}, within {context}", t, f"{stage}_spawn_join*_T{t}", f"{stage}_serial*_T{t}",
         context)
        for stage in ("sft", "rl") for context in WINDOWS for t in (0, 1)
    ]  # fmt: skip
    told += [(f"RL over SFT, {s}", t, f"rl_{s}*_T{t}", f"sft_{s}*_T{t}", WINDOWS[-1]) for s in students for t in (0, 1)]
    told += [(f"SFT's last fifth, {s}, validation", 0, f"sft_{s}*_100", f"sft_{s}*_80", WINDOWS[-1]) for s in students]
    for what, temperature, later, earlier, context in told:
        pairs = [tuple(attempts(name.replace("*", seed)) for name in (later, earlier)) for seed in SEEDS.values()]
        gains = [100 * compared(a, b, within(context)).gain for a, b in pairs if a and b]
        if len(gains) > 1:
            half = STUDENT[len(gains)] * statistics.stdev(gains) / len(gains) ** 0.5
            centre = statistics.fmean(gains)
            each = ", ".join(f"{gain:+.1f}" for gain in gains)
            low, high = max(-100.0, centre - half), min(100.0, centre + half)
            yield what, str(temperature), each, f"{centre:+.1f} ({low:+.1f} to {high:+.1f})"


def nesting() -> Iterator[Row]:
    """Two levels of spawns against one on four numbers, taught by teachers of equal work, by how much context an attempt may
    take; costs are two levels' over one level's."""
    for stage in ("sft", "rl"):
        for temperature in (0, 1):
            two, one = attempts(f"{stage}_two_levels_T{temperature}"), attempts(f"{stage}_one_level_T{temperature}")
            if two and one:
                tests = [compared(two, one, within(context)) for context in NESTED_WINDOWS]
                ratios = (mean(two, cost) / mean(one, cost) for cost in ("context", "span_sampled", "work"))
                yield (
                    stage.upper(), str(temperature), rate(one), rate(two),
                    *map(whole, tests),
                    *(f"{ratio:.2f}" for ratio in ratios),
                )  # fmt: skip


def forced() -> Iterator[Row]:
    """SFT with the number of children asked for in the prompt, against models that choose it themselves, greedily."""
    chosen = [attempts(f"{name}_T0") for name in ("sft_spawn_join", "rl_spawn_join")]
    for n in CHILDREN:
        asked = attempts(f"children_{n}")
        if asked and all(chosen):
            gains = (whole(compared(one, asked)) for one in chosen if one)
            costs = (f"{mean(asked, c):.0f}" for c in ("context", "work", "span_sampled"))
            yield str(n), f"{mean(asked, 'threads') - 1:.1f}", rate(asked), *gains, *costs


def priced() -> Iterator[Row]:
    """RL with a cost made dear against equally many steps of RL without, from one SFT model, greedily; on 10,000 problems where
    both tried them. `free` and `eager` runs are held to the SFT model by no KL term, `loose` ones by a fifth of its weight
    elsewhere; `eager` and `loose` ones take longer steps, which shrink to nothing. In `scaled` runs advantages are divided by
    their group's deviation."""
    pairs = (
        ("rl_span", "rl_spawn_join", "span_sampled"),
        ("rl_free_span", "rl_spawn_join", "span_sampled"),
        ("rl_eager_span", "rl_spawn_join", "span_sampled"),
        ("rl_eager_span", "rl_eager", "span_sampled"),
        ("rl_loose_span", "rl_spawn_join", "span_sampled"),
        ("rl_loose_span", "rl_eager", "span_sampled"),
        ("rl_loose_span", "rl_loose", "span_sampled"),
        ("rl_scaled_span", "rl_spawn_join", "span_sampled"),
        ("rl_scaled_loose_span", "rl_spawn_join", "span_sampled"),
        ("rl_work", "rl_spawn_join", "work"),
    )
    for name, reference, cost in pairs:
        for ending in ("_10000", "_T0"):
            under, free = attempts(name + ending), attempts(reference + ending)
            if under and free:
                test = compared(under, free)
                spent, before = mean(under, cost, free), mean(free, cost, under)
                saved = f"{before:.0f} to {spent:.0f} ({100 * (spent / before - 1):+.1f}%)"
                yield name, reference, f"{test.n:,}", cost, saved, signed(test), f"{100 * worst_loss(test):+.1f}"
                break


def bounded() -> Iterator[Row]:
    """RL under a hard budget of context, and without one: how many attempts end by themselves within 64 tokens, and are correct
    there; and what that costs where there is room."""
    budgets = {"rl_spawn_join": "none", "rl_context": "64", "rl_free_context": "64", "rl_eager_context": "54"}
    for name, budget in budgets.items():
        for temperature in (0, 1):
            tried, free = attempts(f"{name}_T{temperature}"), attempts(f"rl_spawn_join_T{temperature}")
            if tried and free:
                ended = rate(tried, lambda one: one.stop in OWN_END and one.context <= JUDGED)
                lost = "" if tried is free else signed(compared(tried, free))
                yield name, budget, str(temperature), ended, rate(tried, within(JUDGED)), rate(tried), lost


def widths() -> Iterator[Row]:
    """How many children a parent asks for, greedily: the share of attempts, and how many of those are correct."""
    for name in ("sft_spawn_join", "rl_spawn_join", "rl_eager", "rl_eager_span", "rl_free_span", "rl_context"):
        tried = attempts(f"{name}_T0")
        if tried:
            told = []
            for low, high in WIDTHS:
                group = [one.correct for one in tried.values() if low < one.threads <= high + 1]
                told.append(
                    f"{100 * len(group) / len(tried):.0f}%, {100 * statistics.fmean(group):.0f}%" if group else "none"
                )
            yield name, f"{mean(tried, 'threads') - 1:.1f}", *told


def published() -> Iterator[Row]:
    """Four numbers from 1-99 in a window of 4,096 tokens, as published (arXiv 2504.15466, tables 1-3): a student of 10M
    parameters after 75 million tokens beside the paper's of 228M. `unfolded` is the serial teacher that is spawn_join's
    equal, which the paper has not. Tokens here are of the compact speller, about a third as many as in the paper's
    wording."""
    for name, theirs in (("sos_plus", "SoS+"), ("spawn_join", "APR"), ("unfolded", None)):
        for temperature in (0, 1):
            tried = attempts(f"paper_{name}_T{temperature}")
            if not tried:
                continue
            accuracy = TABLES_1_TO_3[theirs][TEMPERATURES.index(temperature)] if theirs else None
            costs = (f"{mean(tried, cost):,.0f}" for cost in ("context", "work", "span_sampled"))
            cut = rate(tried, lambda one: one.stop not in OWN_END)
            others = [(other, attempts(f"paper_{other}_T{temperature}")) for other in ("sos_plus", "spawn_join")]
            gains = (whole(compared(tried, rest)) if rest and other != name else "" for other, rest in others)
            yield (
                name, str(temperature), f"{len(tried)}", rate(tried), f"{accuracy}%" if accuracy else "", *costs,
                f"{mean(tried, 'threads') - 1:.1f}", cut, *gains,
            )  # fmt: skip


def prices() -> Iterator[Row]:
    """Seconds a problem, alone and under load, greedily, timed with nothing else on the machine."""
    for name in ("sft_serial", "rl_serial", "sft_spawn_join", "rl_spawn_join"):
        alone, load = attempts(f"{name}_alone"), attempts(f"{name}_load")
        if alone and load:
            seconds, span, work = (mean(alone, cost) for cost in ("seconds", "span_sampled", "work"))
            rates = (f"{1000 * seconds / span:.2f}", f"{1000 * mean(load, 'seconds') / mean(load, 'span_sampled'):.1f}")
            yield name, f"{seconds:.3f}", f"{mean(load, 'seconds'):.2f}", f"{span:.0f}", f"{work:.0f}", *rates


def stages() -> Iterator[Row]:
    """Where each number comes from; minutes are of stages side by side, one a core, and some beside other programs."""
    path = PUBLISHED / FACTS
    for name, facts in sorted(json.loads(path.read_text(encoding="utf-8")).items()) if path.is_file() else ():
        minutes = f"{facts['seconds'] / 60:.1f}"
        yield name, f"`{facts['command']}`", facts["commit"], facts["started"][:10], minutes, facts["hardware"]


TABLES: dict[str, tuple[Callable[[], Iterator[Row]], Row]] = {
    "Models": (
        models, ("evaluation", "problems", "accuracy", "context", "work", "span_sampled", "threads", "within context 128"),
    ),
    "Had SFT levelled off?": (
        levelled, ("model", "on", "before", "at its end", "gain, points", "alone", "p", "gain below 0.5"),
    ),
    "Is it the spawning?": (
        spawning,
        ("stage", "T", "seed", *(f"gain within context {context}" for context in WINDOWS), "span_sampled", "work"),
    ),
    "What does RL add?": (gains, ("model", "T", "gain, points", "alone", "p", "context", "work", "span_sampled")),
    "Over the seeds": (over_seeds, ("gain, points", "T", "by seed", "mean")),
    "Is RL more than width enforced?": (
        forced,
        ("asked for", "children", "accuracy", "SFT's gain over it", "RL's gain over it", "context", "work", "span_sampled"),
    ),
    "Does nesting pay?": (
        nesting,
        ("stage", "T", "one level", "two levels", *(f"gain within context {context}" for context in NESTED_WINDOWS),
         "context", "span_sampled", "work"),
    ),
    "Does a price steer?": (
        priced, ("model", "against", "problems", "cost", "mean cost", "accuracy", "not below (95%)"),
    ),
    "Does a budget bind?": (
        bounded,
        ("model", "trained within", "T", "ended within 64", "correct within 64", "correct", "against none"),
    ),
    "How wide?": (widths, ("model", "children", *(f"{low}-{high}" for low, high in WIDTHS))),
    "How far does the paper's setting get?": (
        published,
        ("teacher", "T", "problems", "accuracy", "published", "context", "work", "span_sampled", "children",
         "cut off or malformed", "gain over sos_plus", "gain over spawn_join"),
    ),
    "Prices": (
        prices, ("model", "seconds alone", "under load", "span_sampled", "work", "ms a span token, alone", "under load"),
    ),
    "Stages": (stages, ("stage", "command", "commit", "date", "minutes", "hardware")),
}  # fmt: skip


def tables() -> str:
    """All tables that have a row, as Markdown, each under what it says."""
    parts = []
    for title, (rows, head) in TABLES.items():
        if found := list(rows()):
            lines = ["| " + " | ".join(cells) + " |" for cells in (head, ("---",) * len(head), *found)]
            parts.append(f"### {title}\n\n{cleandoc(rows.__doc__ or '')}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def put_between(page: Path, mark: str, text: str) -> None:
    """Put text into a page between two marks. Raises `ValueError` if they are not there."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(mark)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the marks {mark.strip()} and {END.strip()}, between which the tables go")
    page.write_text(f"{before}{mark}\n{text}\n{END}{after}", encoding="utf-8")


def write_page() -> None:
    """Put the tables into docs/results.md."""
    put_between(PAGE, BEGIN, tables())


if __name__ == "__main__":
    write_page()
