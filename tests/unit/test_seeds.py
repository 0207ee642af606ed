"""Streams of randomness: named, independent, and the same on every machine."""

import itertools

from apr.seeds import derive_rng, derive_seed


def test_the_derivation_is_sha256_of_seed_name_and_key() -> None:
    # The first 8 bytes of sha256("0<US>strand<US>1<US>r"), shifted right once: a change would unseed every old run.
    assert derive_seed(0, "strand", 1, "r") == 16774657076156499


def test_neighbours_and_regroupings_give_different_streams() -> None:
    seeds = [derive_seed(seed, name) for seed, name in [(0, "a"), (1, "a"), (0, "b"), (12, "a"), (1, "2a")]]
    seeds += [derive_seed(0, "a", *key) for key in [(1,), (2,), (1, 2), (12,), (2, 1), ("1 2",)]]
    assert all(a != b for a, b in itertools.combinations(seeds, 2))
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_one_key_agree_and_of_two_keys_do_not() -> None:
    draws = [derive_rng(5, "x", key).getrandbits(64) for key in ("k", "k", "l")]
    assert draws[0] == draws[1] != draws[2]
