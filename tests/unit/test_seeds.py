"""Streams of randomness: named, independent, and the same on every machine."""

import itertools

from apr.seeds import derive_rng, derive_seed


def test_the_derivation_is_sha256_of_seed_name_and_key() -> None:
    # The first 8 bytes of sha256("0<US>strand<US>1<US>r"), shifted right once: a change would unseed every old run.
    assert derive_seed(0, "strand", 1, "r") == 16774657076156499


def test_neighbours_and_regroupings_give_different_streams() -> None:
    keys = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 2), (0, "a", 1, 2), (0, "a", 12), (0, "a1", 2)]
    seeds = [derive_seed(seed, name, *key) for seed, name, *key in keys]
    assert all(a != b for a, b in itertools.combinations(seeds, 2))
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_one_key_agree_and_of_two_keys_do_not() -> None:
    draws = [derive_rng(5, "x", key).getrandbits(64) for key in ("k", "k", "l")]
    assert draws[0] == draws[1] != draws[2]
