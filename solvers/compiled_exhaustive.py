"""`solvers.exhaustive.reachable` compiled with numba: whether problems have solutions, and which numbers compiled
solvers take. The plain module is the reference, and a property test shows that both agree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apr.errors import DataError
from apr.jit import Int, compiled
from envs.countdown.log_arrays import MAX_NUMBERS, Ints

Bools = npt.NDArray[np.bool_]

BOUND = 2**52


def check_bound(numbers: Ints, targets: Ints) -> None:
    """Raise `DataError` (a `ValueError`) unless the compiled solvers are exact on `numbers` int64[N, n] and `targets`
    int64[N]: 2 to 6 numbers, none negative, and for each problem product of (number + 1) plus n * target below 2**52.

    No value or sum of values that are reached from the numbers exceeds that product, since (a + 1) * (b + 1) is more
    than a + b and a * b. Six numbers up to 400 are within it. Beyond it `reachable` and `search` still hold.
    """
    if numbers.ndim != 2 or not 2 <= numbers.shape[1] <= MAX_NUMBERS or targets.shape != numbers.shape[:1]:
        raise DataError(
            f"compiled solvers take numbers of shape [N, 2 to {MAX_NUMBERS}] and targets of shape [N], not "
            f"{list(numbers.shape)} and {list(targets.shape)}: give problems of equally many numbers"
        )
    if numbers.dtype != np.int64 or targets.dtype != np.int64:
        raise DataError(f"numbers and targets are of type int64, not {numbers.dtype} and {targets.dtype}: convert them")
    largest = np.prod(numbers + 1.0, axis=1) + numbers.shape[1] * targets.astype(np.float64)
    wrong = np.flatnonzero((numbers.min(axis=1) < 0) | (targets < 0) | (largest >= BOUND))
    if wrong.size:
        raise DataError(
            f"{targets[wrong[0]]} from {numbers[wrong[0]].tolist()} is negative or too large for compiled solvers, whose "
            "integers have 64 bits: use the plain ones (solvers.exhaustive.reachable, solvers.search.search)"
        )


def solvable(numbers: Ints, targets: Ints) -> Bools:
    """Whether each target is reachable using every number once, by the rules of `envs.countdown.verify`.

    `numbers` int64[N, n] in any order, `targets` int64[N]; bool[N]. Raises `DataError` beyond `check_bound`.
    """
    check_bound(numbers, targets)
    found = np.zeros(len(targets), np.bool_)
    _solvable(np.ascontiguousarray(numbers), np.ascontiguousarray(targets), found)
    return found


@compiled
def _solvable(numbers: Ints, targets: Ints, found: Bools) -> None:
    size = numbers.shape[1]
    rows = np.zeros((MAX_NUMBERS + 1, MAX_NUMBERS), np.int64)
    cursors = np.zeros((MAX_NUMBERS + 1, 3), np.int64)
    for problem in range(len(targets)):
        rows[size, :size] = numbers[problem]
        found[problem] = _reaches(rows, cursors, size, targets[problem])


@compiled
def _reaches(rows: Ints, cursors: Ints, size: Int, target: Int) -> bool:
    """Whether `target` is reachable from the `size` numbers in `rows[size]`. Depth first: `rows[s]` has the numbers
    when s are left, and `cursors[s]` the next step to try on them: the places of two numbers and an operator."""
    if size == 2:
        return bool(_two_reach(rows[2, 0], rows[2, 1], target))
    left = size
    cursors[left] = (0, 1, 0)
    while left <= size:
        if left == 3:
            if _three_reach(rows[3, 0], rows[3, 1], rows[3, 2], target):
                return True
            left += 1
        elif cursors[left, 0] == left - 1:  # all tried
            left += 1
        elif _take_step(rows[left], cursors[left], rows[left - 1], left):
            left -= 1
            cursors[left] = (0, 1, 0)
    return False


@compiled
def _take_step(numbers: Ints, cursor: Ints, fewer: Ints, size: Int) -> bool:
    """Write to `fewer` what the step at `cursor` leaves of the `size` numbers, and move the cursor on; False if the
    step is illegal, or leaves the same as an earlier one."""
    i, j, operator = cursor
    a, b = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
    others = 0
    for k in range(size):
        if k != i and k != j:
            fewer[others] = numbers[k]
            others += 1
    if operator < 3:
        cursor[2] = operator + 1
    elif j < size - 1:
        cursor[:] = (i, j + 1, 0)
    else:
        cursor[:] = (i + 1, i + 2, 0)
    if operator == 0:
        fewer[others] = a + b
    elif operator == 1:
        fewer[others] = a * b
    elif operator == 2:
        fewer[others] = a - b
        return bool(b > 0)  # else like a + b
    elif b > 1 and a % b == 0:
        fewer[others] = a // b
    else:
        return False  # a / 1 is like a * 1
    return True


@compiled
def _three_reach(x: Int, y: Int, z: Int, target: Int) -> bool:
    return _pair_reaches(x, y, z, target) or _pair_reaches(x, z, y, target) or _pair_reaches(y, z, x, target)


@compiled
def _pair_reaches(x: Int, y: Int, other: Int, target: Int) -> bool:
    """Whether `target` is reachable by a step on `x` and `y`, then one with `other`."""
    a, b = max(x, y), min(x, y)
    if _two_reach(a + b, other, target) or _two_reach(a * b, other, target) or _two_reach(a - b, other, target):
        return True
    return bool(b > 1 and a % b == 0 and _two_reach(a // b, other, target))


@compiled
def _two_reach(x: Int, y: Int, target: Int) -> bool:
    a, b = max(x, y), min(x, y)
    if a + b == target or a - b == target or a * b == target:
        return True
    # target * b may wrap around and then equal a by chance, so only an exact quotient counts
    return bool(b > 0 and target * b == a and a // b == target)
