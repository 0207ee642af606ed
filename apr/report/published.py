"""The published numbers of the APR paper (Learning Adaptive Parallel Reasoning, arXiv 2504.15466), for comparison.

Tables are as printed. Values of figures were read from the vector marks of the PDF: about 0.1 point of accuracy, and
0.5% on the other axis. The paper's setting: Countdown with four numbers from 1-99, targets 10-100, 1,000 validation
problems, a window of 4,096 tokens, a 228M-parameter Llama trained from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr.report.chart import THEIRS, Series

SOURCE = "arXiv 2504.15466"
WINDOW = 4096  # tokens

# Tables 1-3: accuracy in percent at temperature 0, 0.1, 0.5, 1; None where it was not reported.
TEMPERATURES = (0.0, 0.1, 0.5, 1.0)
TABLES: Mapping[str, tuple[float | None, ...]] = {
    "SoS": (49.5, 49.6, 47.1, 37.9),
    "SoS+": (57.3, 57.1, 52.0, 48.1),
    "SoS+ RL": (60.0, 59.3, 59.1, 58.1),
    "APR": (75.5, 75.9, 74.9, 67.8),
    "APR RL": (83.4, 82.9, 81.3, 76.4),
    "APR, 10 children": (83.2, 83.3, 83.8, 80.1),
    "APR, 10 children, RL": (83.3, 83.3, 83.8, 81.9),
    "SoS+ beam 15": (50.9, None, None, 42.5),
    "SoS+ rejection sampled": (56.5, None, None, 54.5),
}

# Figures 4a and 8: accuracy by mean total tokens. Children 2 to 10; at T=1 the paper draws the point of 9 children (74.0
# at 17,598) but leaves it out of its line, and out of figure 6. Samples 1 to 8; the tokens of their n are those of T=1.
CHILDREN = tuple(range(2, 11))
APR_BY_TOKENS: Mapping[float, tuple[tuple[float, ...], tuple[float, ...]]] = {
    0.1: (
        (3549, 5297, 7130, 8974, 10960, 13066, 15210, 17461, 19671),
        (57.9, 64.7, 68.8, 72.8, 75.0, 76.5, 78.8, 80.8, 83.3),
    ),
    0.5: (
        (3863, 5774, 7732, 9761, 11829, 13920, 16160, 18149, 20579),
        (57.6, 65.9, 68.5, 73.6, 75.6, 77.5, 79.3, 81.9, 83.8),
    ),
    1.0: (
        (3764, 5595, 7663, 9840, 12219, 14099, 15867, 17598, 20446),
        (53.5, 61.5, 65.3, 67.9, 69.8, 75.2, 76.9, 74.0, 80.1),
    ),
}
SAMPLED_TOKENS = (2841, 5721, 8583, 11450, 14289, 17162, 20033, 22912)
SAMPLED: Mapping[float, Mapping[str, tuple[float, ...]]] = {
    0.1: {"cons": (59.8, 60.9, 62.6, 63.0, 63.2, 63.6, 64.0, 64.1), "pass": (59.8, 61.6, 62.8, 63.5, 64.1, 64.4, 64.4, 64.6)},
    0.5: {"cons": (58.9, 62.4, 63.5, 64.2, 64.9, 65.7, 65.9, 66.5), "pass": (58.9, 63.6, 64.5, 65.5, 65.9, 66.6, 67.1, 67.4)},
    1.0: {"cons": (57.3, 62.6, 63.0, 64.6, 65.5, 65.8, 66.6, 66.4), "pass": (57.3, 63.3, 64.4, 65.7, 66.5, 67.5, 67.8, 68.4)},
}  # fmt: skip

# Figure 4b: accuracy within a context window, T=1.
WINDOWS = (1024, 1536, 2048, 2560, 3072, 3584, 4096)
BY_WINDOW: Mapping[str, tuple[float, ...]] = {
    "APR, 10 children": (0.0, 16.7, 47.7, 78.7, 79.8, 80.0, 80.1),
    "APR, 6 children": (2.3, 43.4, 65.8, 69.5, 69.7, 69.8, 69.8),
    "APR, 3 children": (28.2, 53.9, 58.9, 61.4, 61.5, 61.5, 61.5),
    "SoS+, context 4096": (4.8, 21.4, 31.0, 40.4, 48.7, 53.2, 57.3),
    "SoS+, context 1024": (30.2, 39.9, 42.0, 43.4, 44.0, 44.7, 45.1),
}

# Figure 6: accuracy by sequential tokens, and by milliseconds (8 A6000 GPUs, one problem alone). The points of 67.9 and
# 69.8 are absent from the latter in the paper.
BY_SPAN: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "APR": ((1833, 1984, 2161, 2283, 2386, 2403, 2404, 2460), (53.5, 61.5, 65.3, 67.9, 69.8, 75.2, 76.9, 80.1)),
    "SoS+": ((1200, 1891, 2153, 2489, 2909), (45.1, 51.0, 56.7, 56.9, 57.3)),
}
BY_MILLISECONDS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "APR": ((3558, 3995, 4624, 5185, 5866, 6589), (53.5, 61.5, 65.3, 75.2, 76.9, 80.1)),
    "SoS+": ((1993, 3327, 3770, 4444, 4957), (45.1, 51.0, 56.7, 56.9, 57.3)),
}

# Figures 5 and 7, greedy: before and after RL.
BEFORE_AFTER: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "APR": {
        "accuracy": (75.5, 83.4),
        "work": (10964, 16720),
        "tokens per thread": (1471, 1796),
        "branches": (6.1, 8.2),
    },
    "SoS+": {"accuracy": (57.3, 60.0), "work": (2201, 2660)},
    "APR, 10 children": {"accuracy": (83.2, 83.3), "work": (19895, 22265)},
}


def is_one_of_theirs(problem: Mapping[str, Any]) -> bool:
    """Whether it could be a problem of the paper: four numbers from 1-99, target 10-100."""
    numbers, target = problem.get("numbers"), problem.get("target")
    if not isinstance(numbers, list | tuple) or not all(isinstance(number, int) for number in numbers):
        return False
    return (
        len(numbers) == 4
        and min(numbers) >= 1
        and max(numbers) <= 99
        and isinstance(target, int)
        and 10 <= target <= 100
    )


def curve(name: str, x: Sequence[float], percent: Sequence[float], place: int, labels: Sequence[str] = ()) -> Series:
    """A published curve of accuracies, as shares."""
    return Series(name, x, [value / 100 for value in percent], "line", place, labels=labels, source=THEIRS)


def by_tokens(temperature: float) -> list[Series]:
    """Figure 4a (T=1) and figure 8, at one of its temperatures; empty at others."""
    if temperature not in APR_BY_TOKENS:
        return []
    tokens, accuracy = APR_BY_TOKENS[temperature]
    children = [str(n) for n in CHILDREN]
    result = [curve("APR, by children", tokens, accuracy, 0, children)]
    for place, (kind, values) in enumerate(SAMPLED[temperature].items(), 1):
        result.append(curve(f"SoS+ {kind}@n", SAMPLED_TOKENS, values, place))
    return result


def by_window() -> list[Series]:
    """Figure 4b."""
    return [curve(name, WINDOWS, values, place) for place, (name, values) in enumerate(BY_WINDOW.items())]


def by_latency(points: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]) -> list[Series]:
    """One half of figure 6: `BY_SPAN` or `BY_MILLISECONDS`."""
    return [curve(name, x, y, place) for place, (name, (x, y)) in enumerate(points.items())]
