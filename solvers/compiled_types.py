"""What compiled searches are given, and the arrays in which they work."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from envs.countdown.log_arrays import MAX_CHILDREN, MAX_NUMBERS, NODE_WIDTH, Ints

Seeds = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

HEURISTICS = ("sum_to_factors", "numbers_to_factors", "numbers_to_target")
ORDERS = ("canonical", "heuristic", "shuffled")


class Problems(NamedTuple):
    """N problems: `numbers` int64[N, n], ascending; `targets`; `factors` int64[F], what the heuristic compares with,
    ascending, of all problems; `factor_ends` int64[N], where those of each end; beams of the root and of child threads,
    seeds. The arrays are contiguous and writable, as compiled code wants them."""

    numbers: Ints
    targets: Ints
    factors: Ints
    factor_ends: Ints
    beams: Ints
    child_beams: Ints
    seeds: Seeds


class Rules(NamedTuple):
    """`SearchOptions` without the beams, in types that compile; `shares` of the root and of child threads."""

    shares: tuple[float, float]
    per_node: bool
    heuristic: int
    order: int
    prune_target: bool
    duplicates: bool
    spawn_depth: int
    wave: int
    value_cap: int
    unfold: bool


class Space(NamedTuple):
    """Where a search writes. The first four grow with it: nodes, their distances, the queues of all searches under way
    (each a heap of nodes on top of its caller's), events. Then `counters` and `searches` (see
    `solvers.compiled_search`), the state of SplitMix64, the promising nodes that wait in each search, and of the
    children of one node: rows, distances, hashes, places of those kept, which are promising, and places in order."""

    nodes: Ints
    distances: Floats
    queue: Ints
    events: Ints
    counters: Ints
    searches: Ints
    rng: Seeds
    now: Ints
    drafts: Ints
    draft_distances: Floats
    draft_hashes: Seeds
    kept: Ints
    promising: Bools
    canonical: Floats


def new_space(capacity: int) -> Space:
    """Room for `capacity` nodes and as many events."""
    most, depths = MAX_CHILDREN, MAX_NUMBERS + 1
    return Space(
        nodes=np.empty((capacity, NODE_WIDTH), np.int64),
        distances=np.empty(capacity),
        queue=np.empty(capacity, np.int64),
        events=np.empty((capacity, 2), np.int64),
        counters=np.zeros(4, np.int64),
        searches=np.zeros((depths, 6), np.int64),
        rng=np.zeros(1, np.uint64),
        now=np.empty((depths, most), np.int64),
        drafts=np.empty((most, NODE_WIDTH), np.int64),
        draft_distances=np.empty(most),
        draft_hashes=np.empty(most, np.uint64),
        kept=np.empty(most, np.int64),
        promising=np.empty(most, np.bool_),
        canonical=np.arange(most, dtype=np.float64),
    )


def larger(space: Space) -> Space:
    """The same with twice the room."""
    return space._replace(
        nodes=np.concatenate([space.nodes, np.empty_like(space.nodes)]),
        distances=np.concatenate([space.distances, np.empty_like(space.distances)]),
        queue=np.concatenate([space.queue, np.empty_like(space.queue)]),
        events=np.concatenate([space.events, np.empty_like(space.events)]),
    )
