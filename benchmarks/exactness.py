"""Is "solvable" right? Compares `solvers.compiled.solvable` with a brute force that shares nothing with it.

python benchmarks/exactness.py

The solvers merge two numbers at a time. The brute force here splits the numbers into two groups in every way, and
combines all values of one with all values of the other. Both follow the rules of `envs/countdown/verify.py`.
"""

from __future__ import annotations

import argparse
from functools import lru_cache

import numpy as np

from apr.seeds import derive_rng
from solvers.compiled import solvable

Values = np.ndarray  # distinct int64 values, ascending


def combined(a: Values, b: Values) -> Values:
    """All results of one operation on a value of `a` and one of `b`."""
    x, y = np.maximum.outer(a, b).ravel(), np.minimum.outer(a, b).ravel()
    divides = (y > 0) & (x % np.maximum(y, 1) == 0)
    return np.unique(np.concatenate([x + y, x - y, x * y, x[divides] // y[divides]]))


@lru_cache(maxsize=4096)
def values(numbers: tuple[int, ...]) -> Values:
    """All values of expressions that use every one of `numbers` once."""
    if len(numbers) == 1:
        return np.array(numbers, dtype=np.int64)
    return np.unique(np.concatenate([combined(values(a), values(b)) for a, b in splits(numbers)]))


def splits(numbers: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """`numbers` in two groups that are not empty, each way once; the first number is in the first group."""
    rest = numbers[1:]
    found = []
    for mask in range(2 ** len(rest) - 1):
        inside = [n for i, n in enumerate(rest) if mask >> i & 1]
        outside = [n for i, n in enumerate(rest) if not mask >> i & 1]
        found.append(((numbers[0], *inside), tuple(outside)))
    return found


def reaches(numbers: tuple[int, ...], target: int) -> bool:
    """Whether `target` is a value of all `numbers`; the last operation is turned round, not tried."""
    for first, second in splits(numbers):
        a, b = values(first), values(second)
        wanted = [target - a, a - target, target + a]
        if target:
            wanted += [
                target // a[(a > 0) & (target % np.maximum(a, 1) == 0)],
                a[a % target == 0] // target,
                a[a > 0] * target,
            ]
        elif 0 in a or 0 in b:  # nothing times 0; 0 divided by something
            return True
        if any(np.isin(one[one >= 0], b[b > 0] if i == 4 else b).any() for i, one in enumerate(wanted)):
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=10_000, help="of 3 to 5 numbers")
    parser.add_argument("--large", type=int, default=300, help="of 6 numbers")
    arguments = parser.parse_args()
    rng = derive_rng(0, "exactness")
    # Six numbers reach nearly every small target: larger ones leave some out of reach.
    for sizes, count, largest in (((3, 4, 5), arguments.problems, 100), ((6,), arguments.large, 20_000)):
        drawn = [(tuple(sorted(rng.randint(1, 99) for _ in range(rng.choice(sizes)))), rng.randint(10, largest))
                 for _ in range(count)]  # fmt: skip
        agree = found = 0
        for numbers, target in drawn:
            fast = bool(solvable(np.array([numbers], dtype=np.int64), np.array([target], dtype=np.int64))[0])
            slow = reaches(numbers, target)
            agree += fast == slow
            found += slow
        print(f"{' or '.join(map(str, sizes))} numbers: {agree} of {count} agree, {found} are solvable", flush=True)


if __name__ == "__main__":
    main()
