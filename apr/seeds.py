"""One seed, many named streams: each stream is SHA-256 of (seed, name, key), never `seed + i`, never `hash()`."""

import hashlib
import random


def derive_seed(seed: int, name: str, *key: object) -> int:
    """A 63-bit seed for the stream `name` at `key`; equal arguments give equal seeds on every machine."""
    text = "\x1f".join([str(seed), name, *map(str, key)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive_rng(seed: int, name: str, *key: object) -> random.Random:
    """A `random.Random` seeded with `derive_seed(seed, name, *key)`."""
    return random.Random(derive_seed(seed, name, *key))
