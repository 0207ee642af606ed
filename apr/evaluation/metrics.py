"""What evaluations report: pure functions over attempts.

An `Attempt` is one try at one problem, by whatever means: a single trace, or a vote over several sampled traces
(`apr.evaluation.baselines`). All functions here take traces or attempts alike. A trace whose engine was lost is never
scored: it is counted as lost, and left out of every rate and cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from apr.threads.costs import parallel
from apr.threads.trace import Outcome, StopReason, Trace

Z = 1.959963984540054  # of the normal distribution, for 95%
COSTS = (
    "context", "reach", "work", "work_sampled", "span", "span_sampled", "parallelism", "parallelism_sampled", "acceleration",
    "threads", "width", "depth", "spawns", "branches", "parallel_tokens", "prefilled", "seconds", "parallel_seconds",
)  # fmt: skip
RATIOS = ("parallelism", "parallelism_sampled", "acceleration")  # of the costs before them

METRICS: dict[str, str] = {
    "accuracy": "Share of problems whose answer the verifier accepts; every scored attempt counts, whyever it stopped.",
    "interval": "Wilson's 95% interval for the accuracy. Several samples of a problem are not independent: their number is "
    "then cut by the design effect, from the spread between problems.",
    "stop": "Why the root thread stopped: it answered, it gave no answer, its text was malformed, or a limit was hit.",
    "context": "Most tokens that any one strand had before it, injected, and sampled: the window that was needed.",
    "reach": "The largest position at which a token stood, plus one: what the model's window bounds. It differs from the "
    "context where strands see several others.",
    "work": "Tokens of all threads together: injected (copies left out) and sampled.",
    "work_sampled": "Sampled tokens of all threads together.",
    "span": "Tokens, injected and sampled, on the longest chain of strands that wait for each other.",
    "span_sampled": "Sampled tokens on the longest chain of strands that wait for each other: latency in tokens, and what "
    "limits and budgets of the span count.",
    "parallelism": "work / span; 1 for a serial attempt.",
    "parallelism_sampled": "work_sampled / span_sampled; 1 for a serial attempt. Multiverse's #parallel (arXiv 2506.09991), "
    "and AsyncThink's concurrency (arXiv 2510.26658) where every thread that runs samples a token a step.",
    "acceleration": "1 - span_sampled / work_sampled: ThreadWeaver's ratio (arXiv 2512.07843); 0 for a serial attempt.",
    "threads": "Threads ever spawned, the root included, also those that had no room to start.",
    "depth": "Deepest nesting of threads; the root has depth 0.",
    "spawns": "Spawns that started at least one child.",
    "branches": "Children that started.",
    "parallel_tokens": "Sampled tokens of all threads but the root.",
    "prefilled": "Prompt tokens that the engine did not find in its prefix cache.",
    "parallel_seconds": "Seconds of the attempt in which at least one child ran.",
    "width": "Most threads alive at once, waiting parents included, if all that can run decode one token a step.",
    "seconds": "Wall clock of the attempt while the engine served all the others too (under load), unless said.",
    "p50, p90, p99": "Smallest value that this share of the attempts (50, 90, 99 of 100) does not exceed.",
    "accuracy within a cost": "Share of all problems solved by an attempt that cost at most this much. For context, "
    "this is what a smaller window would leave of the same attempts: a lower bound where threads are spawned, since "
    "a child cut short need not fail its trace.",
    "cons@n": "n sampled attempts side by side; the answer given most often counts (first seen wins ties). Answers that the "
    "environment calls equal vote together. Missing and blank answers do not vote. Of more samples, the first n are taken.",
    "mean@n": "Accuracy and costs of single samples, averaged over n of each problem.",
    "pass@n": "n sampled attempts side by side; solved if any is. Needs a verifier that no one has at test time.",
    "costs of cons@n, pass@n": "Work, threads and width add up over the samples; context, reach, span and seconds are those "
    "of the largest, since the samples run side by side.",
    "McNemar": "Exact two-sided test on the problems that only one of two models solved.",
    "gain": "Points of accuracy between two models on the same problems. Its 95% interval is the adjusted Wald interval for "
    "paired proportions (Agresti and Min, Statistics in Medicine 24, 2005): half a problem is added to each of four "
    "outcomes; it ends at -100 and +100 points.",
    "ms per span token": "Mean seconds of an attempt / mean sampled span, in milliseconds; alone or under load as stated.",
    "alone, under load": "Attempts run one at a time, or as many at once as is stated. Both on the hardware named below.",
    "DP": "Degree of parallelism: parallel_tokens / work_sampled over all attempts (ASPD, arXiv 2508.08895).",
    "ABN": "Average branch number: children that started / spawns, over all attempts (ASPD).",
    "PPD": "Share of the attempts with at least one spawn (ASPD).",
    "TPS": "Sampled tokens of all threads a second of the attempts' own seconds (ASPD). Counts tokens, not answers: a "
    "model that writes more in parallel scores higher at equal latency.",
    "P-TPS": "Sampled tokens of children a second in which a child ran (ASPD).",
    "tokens per thread": "work / threads, over all attempts; the APR paper's tokens per sequence (figure 5).",
    "within": "Share of the attempts that kept every budget; success is correct and within.",
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one problem. `costs` has every name of `COSTS` (tokens, threads, ratios, seconds); `vote`: the key under
    which its answer votes, None if it does not."""

    problem: str
    correct: bool
    stop: StopReason
    answer: str | None
    costs: Mapping[str, float]
    sample: int = 0
    vote: str | None = None

    @property
    def lost(self) -> bool:
        """The engine was lost on the way: not scored."""
        return self.stop is StopReason.ENGINE_LOST


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of one cost over attempts; a percentile is a value that occurred."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """Problems solved by one of two models alone, of `n` that both tried, and the exact two-sided p-value."""

    n: int
    only_a: int
    only_b: int
    p_value: float

    @property
    def gain(self) -> float:
        """Accuracy of a less that of b."""
        return (self.only_a - self.only_b) / self.n

    @property
    def gain_interval(self) -> tuple[float, float]:
        """The adjusted Wald interval of the gain, 95% (Agresti and Min 2005, `Wald+2`)."""
        return self.gain_bounds(Z)

    def gain_bounds(self, z: float) -> tuple[float, float]:
        """The same, reaching `z` standard deviations to either side, within -1 and 1."""
        n, apart, alone = self.n + 2, self.only_a - self.only_b, self.only_a + self.only_b + 1
        reach = z * math.sqrt(alone - apart**2 / n) / n
        return max(-1.0, apart / n - reach), min(1.0, apart / n + reach)


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of a report; `dataclasses.asdict` makes it plain data. `lost` attempts are not among the `n` scored."""

    name: str
    description: str
    n: int
    lost: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    stops: dict[str, int]
    costs: dict[str, Spread]


def lost(trace: Trace) -> bool:
    """Whether any of its threads lost the engine."""
    return any(thread.stop is StopReason.ENGINE_LOST for thread in trace.threads)


def attempt(trace: Trace) -> Attempt:
    """The view of a single trace. Raises `ValueError` if it was not verified, or has no costs."""
    if trace.outcome is None or trace.costs is None:
        raise ValueError(f"the trace of problem {trace.problem['id']} has no outcome or no costs: verify it first")
    beside = parallel(trace.threads, trace.strands)
    known = trace.costs
    if known.reach is None:  # a trace of an earlier version
        known = replace(known, reach=max((strand.end for strand in trace.strands), default=0))
    of_trace = {name: float(getattr(known, name)) for name in COSTS if hasattr(known, name)}
    of_children = {
        "spawns": float(beside.spawns),
        "branches": float(beside.branches),
        "parallel_tokens": float(beside.tokens),
        "parallel_seconds": beside.seconds,
    }
    return Attempt(
        problem=trace.problem["id"],
        correct=trace.outcome.correct and not lost(trace),
        stop=StopReason.ENGINE_LOST if lost(trace) else trace.outcome.stop,
        answer=trace.answer,
        costs=with_ratios({**of_trace, **of_children}),
        sample=trace.sample,
        vote=_vote(trace, trace.outcome),
    )


def _vote(trace: Trace, outcome: Outcome) -> str | None:
    """The environment's key; in traces of earlier versions, which have none, the answer as it stands."""
    answer = (trace.answer or "").strip()
    return (outcome.vote or answer) if answer else None


def with_ratios(costs: Mapping[str, float]) -> dict[str, float]:
    """The costs in the order of `COSTS`, with those that are ratios of others worked out."""
    span, work, sampled = (costs[name] for name in ("span", "work", "work_sampled"))
    longest = costs["span_sampled"]
    ratios = {
        "parallelism": work / span if span else 1.0,
        "parallelism_sampled": sampled / longest if longest else 1.0,
        "acceleration": 1.0 - longest / sampled if sampled else 0.0,
    }
    return {name: ratios[name] if name in RATIOS else costs[name] for name in COSTS}


def attempts(tries: Iterable[Trace | Attempt]) -> list[Attempt]:
    """Traces and attempts alike, as attempts."""
    return [attempt(one) if isinstance(one, Trace) else one for one in tries]


def interval(successes: float, n: float) -> tuple[float, float]:
    """Wilson's 95% interval of a rate; (0, 1) if nothing was tried. `n` may be an effective number."""
    if n == 0:
        return 0.0, 1.0
    rate, spread_ = successes / n, Z**2 / n
    middle = (rate + spread_ / 2) / (1 + spread_)
    reach = math.sqrt(rate * (1 - rate) * spread_ + spread_**2 / 4) / (1 + spread_)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def clustered_interval(scored: Sequence[Attempt]) -> tuple[float, float]:
    """`interval` of the accuracy where a problem may have been tried several times: of as many attempts as would be worth
    the same if they were independent (Kish's design effect), at least one a problem."""
    problems: dict[str, list[bool]] = {}
    for one in scored:
        problems.setdefault(one.problem, []).append(one.correct)
    n, m = len(scored), len(problems)
    rate = sum(one.correct for one in scored) / n
    if n == m or m < 2 or rate in (0.0, 1.0):
        return interval(rate * m, m)
    residues = (sum(tries) - rate * len(tries) for tries in problems.values())
    variance = m / (m - 1) * sum(residue**2 for residue in residues) / n**2
    effective = min(float(n), max(float(m), rate * (1 - rate) / variance if variance else n))
    return interval(rate * effective, effective)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """Compare two models on the same problems, in the same order. Raises `ValueError` on unequal lengths."""
    if len(a) != len(b):
        raise ValueError(f"cannot pair {len(a)} results with {len(b)}: both models must try the same problems")
    only_a = sum(x and not y for x, y in zip(a, b))
    only_b = sum(y and not x for x, y in zip(a, b))
    if only_a + only_b == 0:
        return McNemar(len(a), 0, 0, 1.0)
    from scipy.stats import binomtest

    return McNemar(len(a), only_a, only_b, float(binomtest(only_a, only_a + only_b, 0.5).pvalue))


def compare(a: Sequence[Trace | Attempt], b: Sequence[Trace | Attempt]) -> McNemar:
    """`mcnemar` on the problems that both tried and neither lost.

    Raises `ValueError` if there are none, or if a model has several attempts at one problem.
    """
    results_a, results_b = (_by_problem(one) for one in (a, b))
    shared = [problem for problem in results_a if problem in results_b]
    if not shared:
        raise ValueError("the two models share no problem: evaluate both on the same ones")
    return mcnemar([results_a[problem] for problem in shared], [results_b[problem] for problem in shared])


def summarise(name: str, tries: Iterable[Trace | Attempt], description: str = "") -> Summary:
    """Accuracy, stops and costs of attempts. Raises `ValueError` if none of them can be scored."""
    every = attempts(tries)
    scored = [one for one in every if not one.lost]
    if not scored:
        raise ValueError(f"{name}: none of {len(every)} attempts can be scored; evaluate again")
    correct = sum(one.correct for one in scored)
    stops = Counter(one.stop.value for one in scored)
    return Summary(
        name=name,
        description=description,
        n=len(scored),
        lost=len(every) - len(scored),
        correct=correct,
        accuracy=correct / len(scored),
        interval=clustered_interval(scored),
        stops={stop.value: stops[stop.value] for stop in StopReason if stops[stop.value]},
        costs={cost: spread([one.costs[cost] for one in scored]) for cost in COSTS},
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and percentiles of at least one value."""
    ordered = sorted(values)
    p50, p90, p99 = (ordered[-(-len(ordered) * share // 100) - 1] for share in (50, 90, 99))
    return Spread(sum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def accuracy_by_cost(tries: Sequence[Trace | Attempt], cost: str) -> tuple[list[float], list[float]]:
    """Share of all scored attempts that are correct and cost at most x, at each x that occurs, ascending.

    `cost` is a name of `COSTS`, such as context, work or span_sampled. Both lists have the same length.
    """
    scored = [one for one in attempts(tries) if not one.lost]
    solved = Counter(one.costs[cost] for one in scored if one.correct)
    x = sorted({one.costs[cost] for one in scored})
    y, total = [], 0
    for value in x:
        total += solved[value]
        y.append(total / len(scored))
    return x, y


def _by_problem(tries: Sequence[Trace | Attempt]) -> dict[str, bool]:
    scored = [one for one in attempts(tries) if not one.lost]
    results = {one.problem: one.correct for one in scored}
    if len(results) != len(scored):
        raise ValueError("a model has several attempts at one problem: vote over them, or take one of them, first")
    return results
