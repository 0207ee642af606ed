"""One seed, many named streams: each stream is SHA-256 of (seed, name, key), never `seed + i`, never `hash()`."""

import hashlib
import random
from typing import Any


def derive_seed(seed: int, name: str, *key: object) -> int:
    """A 63-bit seed for the stream `name` at `key`; equal arguments give equal seeds on every machine."""
    text = "\x1f".join([str(seed), name, *map(str, key)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive_rng(seed: int, name: str, *key: object) -> random.Random:
    """A `random.Random` seeded with `derive_seed(seed, name, *key)`."""
    return random.Random(derive_seed(seed, name, *key))


_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


class SplitMix64:
    """The SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014): a few integer operations a number, so that compiled
    solvers (`solvers.compiled`) draw the same stream as plain ones."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        """The next 64 bits."""
        self._state = (self._state + _GOLDEN) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def random(self) -> float:
        """Uniform in [0, 1): 53 bits."""
        return (self.next() >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        """Uniform in 0..n-1, up to a bias of n / 2**53."""
        return int(self.random() * n)

    def shuffle(self, items: list[Any]) -> None:
        """In place (Fisher and Yates), from the last place down."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
