"""The search core that all heuristic solvers share: a hybrid of breadth-first and depth-first search on Countdown.

At a node: make all children, keep the best `beam` by heuristic, and look at them in a fixed order. A last step is
tested at once. Any other child is either *promising*, and searched right away (depth first, or by a child thread), or
queued and visited later, best first (breadth first).

The published paper and code of APR (arXiv 2504.15466) differ in several choices. Each is an option here, and the
bugs of the code are in none of them:

* `promising`: `per_child` decides for each child (the paper's algorithms), `per_node` for all children of a node at
  once (the code); `promising_share` is 0.1 in the paper, 0.9 (APR) or 0.5 (SoS+) in the code, whose child threads know
  no promising nodes (`child_promising_share: 0`).
* `heuristic`: `sum_to_factors` is the paper's, `numbers_to_factors` the code's.
* `order`: of the kept children. The code lists them shuffled, then searches them best first; a fixed order is far
  easier to learn for a greedy student.
* `duplicates`: the code keeps children that differ only in the step that made them; they take places in the beam.

The original Stream of Search (arXiv 2404.03683) is in it too: its breadth-first solver has no promising nodes, its
depth-first solver only such, pruned by `prune: target` (heuristic above the target) instead of a beam, best first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from apr.seeds import SplitMix64
from envs.countdown.log import Event, Node, Promising, Queued, SearchLog, Spawned, Step, Tested, Visited

Heuristic = Literal["sum_to_factors", "numbers_to_factors", "numbers_to_target"]
Order = Literal["canonical", "heuristic", "shuffled"]


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How one search goes. `value_cap`: children with a larger number are never looked at (None: no cap)."""

    beam: int
    child_beam: int
    promising_share: float = 1.0
    promising: Literal["per_child", "per_node"] = "per_child"
    heuristic: Heuristic = "numbers_to_factors"
    order: Order = "canonical"
    child_promising_share: float | None = None  # of child threads; None: as the root's
    prune: Literal["beam", "target"] = "beam"
    duplicates: bool = False
    spawn_depth: int = 0  # levels at which promising children go to child threads; 0 is serial search
    wave: int | None = None  # children of one spawn; the next ones follow if none of these succeeds (None: all at once)
    value_cap: int | None = None


def steps(x: int, y: int) -> Iterator[Step]:
    """The legal steps on two numbers: results are non-negative integers, division is exact."""
    a, b = max(x, y), min(x, y)
    yield Step(a, "+", b, a + b)
    yield Step(a, "-", b, a - b)
    yield Step(a, "*", b, a * b)
    if b > 0 and a % b == 0:
        yield Step(a, "/", b, a // b)


def children(node: Node, value_cap: int | None = None, duplicates: bool = False) -> list[Node]:
    """The nodes one step on, in canonical order (pairs of the ascending numbers, then + - * /); of nodes with equal
    numbers only the first, unless `duplicates`."""
    found: list[Node] = []
    seen: set[tuple[int, ...]] = set()
    for i, j in combinations(range(len(node.numbers)), 2):
        rest = node.numbers[:i] + node.numbers[i + 1 : j] + node.numbers[j + 1 :]
        for step in steps(node.numbers[i], node.numbers[j]):
            numbers = tuple(sorted((*rest, step.result)))
            if (value_cap is None or step.result <= value_cap) and (duplicates or numbers not in seen):
                seen.add(numbers)
                found.append(Node(numbers, (*node.path, step)))
    return found


def factors(n: int) -> list[int]:
    """The positive factors of `n`; of 0, which every number divides, only itself."""
    return [f for f in range(1, n + 1) if n % f == 0] or [n]


def distance(numbers: tuple[int, ...], target: int, heuristic: Heuristic) -> float:
    """How far numbers look from the target. Paper: min over factors f of |sum - f|; code: sum over numbers of the
    distance to the nearest factor, 1 left out; `numbers_to_target`: mean distance of the numbers from the target (the
    other heuristic of Stream of Search). A single number is as far as it is from the target."""
    if len(numbers) == 1:
        return abs(numbers[0] - target)
    if heuristic == "numbers_to_target":
        return sum(abs(n - target) for n in numbers) / len(numbers)
    if heuristic == "sum_to_factors":
        return min(abs(sum(numbers) - f) for f in factors(target))
    beyond_one = [f for f in factors(target) if f != 1] or [target]
    return sum(min(abs(n - f) for f in beyond_one) for n in numbers)


def search(
    target: int, start: Node, options: SearchOptions, rng: SplitMix64, level: int = 0, first: bool = True
) -> SearchLog:
    """Search from `start` as one thread; `level` counts the threads above it. `first`: `start` is in the prompt or the
    message already, so no `Visited` event opens the log."""
    thread = _Thread(target, options, rng, level)
    solution = thread.explore(start, announce=not first)
    return SearchLog(target, start, tuple(thread.events), solution)


class _Thread:
    def __init__(self, target: int, options: SearchOptions, rng: SplitMix64, level: int) -> None:
        self.target = target
        self.options = options
        self.rng = rng
        self.level = level
        self.beam = options.beam if level == 0 else options.child_beam
        own_share = options.child_promising_share if level else None
        self.share = options.promising_share if own_share is None else own_share
        self.spawns = level < options.spawn_depth
        self.events: list[Event] = []

    def explore(self, start: Node, announce: bool) -> tuple[Step, ...] | None:
        """Best-first over the queued nodes, starting with `start`; the path of the first solution found."""
        queue = [(0.0, 0, start)]
        queued = 0
        while queue:
            _, _, node = heapq.heappop(queue)
            if announce:
                self.events.append(Visited(node))
            announce = True
            now: list[Node] = []
            later: list[Node] = []
            for child, promising in self._kept(node):
                if len(child.numbers) == 1:
                    self.events.append(Tested(child.path[-1], self.target))
                    if child.numbers[0] == self.target:
                        return child.path
                elif promising:
                    self.events.append(Promising(child))
                    now.append(child)
                else:
                    self.events.append(Queued(child))
                    later.append(child)
            if self.options.order == "shuffled":
                now.sort(key=self._distance)
            solution = self._explore_now(now)
            if solution is not None:
                return solution
            for child in later:
                queued += 1
                heapq.heappush(queue, (self._distance(child), queued, child))
        return None

    def _explore_now(self, nodes: list[Node]) -> tuple[Step, ...] | None:
        """Promising nodes: by child threads where spawning is allowed and worth it, else depth first."""
        if self.spawns and len(nodes) > 1:
            wave = self.options.wave or len(nodes)
            for first in range(0, len(nodes), wave):
                told = nodes[first : first + wave]
                logs = tuple(search(self.target, node, self.options, self.rng, self.level + 1) for node in told)
                self.events.append(Spawned(logs))
                found = next((log.solution for log in logs if log.solution is not None), None)
                if found is not None:
                    return found
            return None
        for node in nodes:
            solution = self.explore(node, announce=True)
            if solution is not None:
                return solution
        return None

    def _kept(self, node: Node) -> list[tuple[Node, bool]]:
        """The best children by heuristic, in the order in which they are looked at, and whether each is promising."""
        o = self.options
        best = children(node, o.value_cap, o.duplicates)
        if o.prune == "target":
            best = [child for child in best if self._distance(child) <= self.target]
        ranked = sorted(range(len(best)), key=lambda i: self._distance(best[i]))
        kept = ranked[: self.beam] if o.prune == "beam" else ranked
        best = [best[i] for i in (kept if o.order == "heuristic" else sorted(kept))]
        if o.order == "shuffled":
            self.rng.shuffle(best)
        if o.promising == "per_node":
            promising = self.rng.random() < self.share
            return [(child, promising) for child in best]
        return [(child, self.rng.random() < self.share) for child in best]

    def _distance(self, node: Node) -> float:
        return distance(node.numbers, self.target, self.options.heuristic)


def unfold(log: SearchLog) -> SearchLog:
    """The serial search that does what `log` has child threads do: their searches one by one, in spawn order, up to the
    first success. Both then show the same searches and solve the same problems: what differs is spawning."""
    events: list[Event] = []
    for event in log.events:
        if not isinstance(event, Spawned):
            events.append(event)
            continue
        for child in map(unfold, event.children):
            events += (Visited(child.start), *child.events)
            if child.solution is not None:
                return SearchLog(log.target, log.start, tuple(events), child.solution)
    return SearchLog(log.target, log.start, tuple(events), log.solution)
