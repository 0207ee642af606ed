"""`solvers.search` compiled with numba: the kernel of `solvers.compiled`, from problems to search logs as arrays.

The plain module is the reference and says what each option means; here is only what differs. Children, random numbers
and equals in a queue come in the same order, and distances are the same floats, exact below the bound of `check_bound`.
The calls of `_Thread.explore` are a stack here, since numba keeps no recursive function (`apr.jit`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from apr.jit import Int, compiled
from envs.countdown import log_arrays as layout
from envs.countdown.log_arrays import Ints
from solvers.compiled_types import Floats, Problems, Rules, Seeds, Space

_SUM_TO_FACTORS, _NUMBERS_TO_FACTORS, _NUMBERS_TO_TARGET = range(3)  # places in `HEURISTICS`
_CANONICAL, _HEURISTIC, _SHUFFLED = range(3)  # places in `ORDERS`
_ADD, _SUBTRACT, _MULTIPLY, _DIVIDE = range(4)  # places in `envs.countdown.compact.OPERATORS`


class _Task(NamedTuple):
    """One problem."""

    target: Int
    factors: Ints
    beams: tuple[Int, Int]


NODES, EVENTS, _QUEUE, _FULL = range(4)  # counters: how much is used, and whether something did not fit

# A search under way, one inside the other: the thread's level; where its queue begins; how many promising nodes wait
# for their own searches, how many of these have begun, and whether child threads make them; the solution found, or
# NO_NODE.
_LEVEL, _BOTTOM, _WAITING, _BEGUN, _SPAWNS, _SOLUTION = range(6)


@compiled
def search_from(problem: Int, given: Problems, rules: Rules, space: Space, found: Ints) -> Int:
    """Search the problems from `problem` on, as far as there is room; the first that is not done. `found` int64[3, N]:
    ends, roots and solutions of `LogArrays`."""
    counters = space.counters
    while problem < len(given.targets):
        root, first_event = counters[NODES], counters[EVENTS]
        factors = given.factors[given.factor_ends[problem - 1] if problem else 0 : given.factor_ends[problem]]
        task = _Task(given.targets[problem], factors, (given.beams[problem], given.child_beams[problem]))
        space.rng[0] = given.seeds[problem]
        solution = _search(space, task, rules, given.numbers[problem])
        if counters[_FULL]:
            counters[NODES], counters[EVENTS], counters[_QUEUE], counters[_FULL] = root, first_event, 0, 0
            break
        found[0, problem], found[1, problem], found[2, problem] = counters[EVENTS], root, solution
        problem += 1
    return problem


@compiled
def _add_event(space: Space, kind: Int, argument: Int) -> None:
    event = space.counters[EVENTS]
    if event == len(space.events):
        space.counters[_FULL] = 1
        return
    space.events[event, 0] = kind
    space.events[event, 1] = argument
    space.counters[EVENTS] = event + 1


@compiled
def _search(space: Space, task: _Task, rules: Rules, numbers: Ints) -> Int:
    """The whole search of one problem: the solution's node, or NO_NODE. Once `counters[_FULL]` is set, it ends, and
    what it has written is of no use."""
    counters = space.counters
    node = counters[NODES]
    if node == len(space.nodes):
        counters[_FULL] = 1
        return layout.NO_NODE
    counters[NODES] += 1
    space.nodes[node, layout.PARENT] = layout.NO_NODE
    space.nodes[node, layout.SIZE] = len(numbers)
    space.nodes[node, layout.NUMBERS : layout.NUMBERS + len(numbers)] = numbers
    depth = np.int64(0)
    _begin_search(space, depth, depth)
    announce = False
    while not counters[_FULL]:
        if announce:
            _add_event(space, layout.VISITED, node)
        _look_at(space, task, rules, depth, node)
        while _is_over(space, depth):
            search = space.searches[depth]
            counters[_QUEUE] = search[_BOTTOM]
            if depth == 0:
                _add_event(space, layout.JOINED, search[_SOLUTION])
                return search[_SOLUTION]
            depth -= 1
            _end_inner(space, depth, search[_SOLUTION], rules)
        search = space.searches[depth]
        if search[_BEGUN] < search[_WAITING]:
            node = space.now[depth, search[_BEGUN]]
            search[_BEGUN] += 1
            announce = rules.unfold or not search[_SPAWNS]
            _begin_search(space, depth + 1, search[_LEVEL] + search[_SPAWNS])
            depth += 1
        else:
            node = _pop(space, search[_BOTTOM])
            announce = True
    return layout.NO_NODE


@compiled
def _begin_search(space: Space, depth: Int, level: Int) -> None:
    search = space.searches[depth]
    search[_LEVEL] = level
    search[_BOTTOM] = space.counters[_QUEUE]
    search[_WAITING] = search[_BEGUN] = search[_SPAWNS] = 0
    search[_SOLUTION] = layout.NO_NODE


@compiled
def _is_over(space: Space, depth: Int) -> bool:
    """Whether the search at `depth` has nothing left to do."""
    search = space.searches[depth]
    found = search[_SOLUTION] != layout.NO_NODE
    return bool(search[_BEGUN] == search[_WAITING] and (found or space.counters[_QUEUE] == search[_BOTTOM]))


@compiled
def _end_inner(space: Space, depth: Int, found: Int, rules: Rules) -> None:
    """Tell the search at `depth` that one of its inner ones has ended, with `found`."""
    search = space.searches[depth]
    if search[_SOLUTION] == layout.NO_NODE:
        search[_SOLUTION] = found
    threads = search[_SPAWNS] and not rules.unfold
    if threads:
        _add_event(space, layout.JOINED, found)
    # The first success ends the others; threads of a wave go on beside each other, and there is no wave after it.
    if search[_SOLUTION] != layout.NO_NODE and (not threads or search[_BEGUN] % rules.wave == 0):
        search[_WAITING] = search[_BEGUN]
    elif threads and search[_BEGUN] % rules.wave == 0:
        _spawn(space, depth, rules)


@compiled
def _spawn(space: Space, depth: Int, rules: Rules) -> None:
    """Say that the next wave of those that wait at `depth` is spawned, if any wait."""
    search, now = space.searches[depth], space.now[depth]
    wave = min(search[_WAITING] - search[_BEGUN], rules.wave)
    if wave > 0:
        _add_event(space, layout.SPAWNED, wave)
        for i in range(search[_BEGUN], search[_BEGUN] + wave):
            _add_event(space, layout.MESSAGE, now[i])


@compiled
def _look_at(space: Space, task: _Task, rules: Rules, depth: Int, node: Int) -> None:
    """One round of `_Thread.explore`: test the children of `node`, queue them, or let them wait for their searches."""
    search, now = space.searches[depth], space.now[depth]
    first = space.counters[NODES]
    count = _keep_children(space, task, rules, node, min(search[_LEVEL], 1))
    search[_WAITING] = search[_BEGUN] = search[_SPAWNS] = 0
    waiting = np.int64(0)
    for child in range(first, first + count):
        if space.nodes[child, layout.SIZE] == 1:
            _add_event(space, layout.TESTED, child)
            if space.nodes[child, layout.RESULT] == task.target:
                search[_SOLUTION] = child
                return
        elif space.promising[child - first]:
            _add_event(space, layout.PROMISING, child)
            now[waiting] = child
            waiting += 1
        else:
            _add_event(space, layout.QUEUED, child)
            _push(space, search[_BOTTOM], child)
    if rules.order == _SHUFFLED:
        _sort_by_distance(now, waiting, space.distances)
    search[_WAITING] = waiting
    search[_SPAWNS] = search[_LEVEL] < rules.spawn_depth and waiting > 1
    if search[_SPAWNS] and not rules.unfold:
        _spawn(space, depth, rules)


@compiled
def _push(space: Space, bottom: Int, node: Int) -> None:
    """Into the heap `queue[bottom:]`. Nodes of equal distance leave it in the order of their rows, which is that of
    their coming."""
    queue, distances = space.queue, space.distances
    at = space.counters[_QUEUE]
    space.counters[_QUEUE] = at + 1
    while at > bottom:
        parent = bottom + (at - bottom - 1) // 2
        if not _before(distances, node, queue[parent]):
            break
        queue[at] = queue[parent]
        at = parent
    queue[at] = node


@compiled
def _pop(space: Space, bottom: Int) -> Int:
    """The nearest node of the heap `queue[bottom:]`, which holds one."""
    queue, distances = space.queue, space.distances
    top = space.counters[_QUEUE] - 1
    space.counters[_QUEUE] = top
    nearest, moved = queue[bottom], queue[top]
    at = bottom
    while True:
        child = bottom + 2 * (at - bottom) + 1
        if child >= top:
            break
        if child + 1 < top and _before(distances, queue[child + 1], queue[child]):
            child += 1
        if not _before(distances, queue[child], moved):
            break
        queue[at] = queue[child]
        at = child
    queue[at] = moved
    return nearest


@compiled
def _before(distances: Floats, one: Int, other: Int) -> bool:
    return bool(distances[one] < distances[other] or (distances[one] == distances[other] and one < other))


@compiled
def _sort_by_distance(places: Ints, count: Int, distances: Floats) -> None:
    """Sort the first `count` of `places`, stably, by the distance of each."""
    for i in range(1, count):
        place = places[i]
        at = i
        while at > 0 and distances[places[at - 1]] > distances[place]:
            places[at] = places[at - 1]
            at -= 1
        places[at] = place


# --- the children of a node


@compiled
def _keep_children(space: Space, task: _Task, rules: Rules, node: Int, thread: Int) -> Int:
    """`_Thread._kept` of the reference: write the best children as new nodes, in the order in which they are looked at,
    and draw which are promising. How many they are."""
    drafts, kept = space.drafts, space.kept
    count = _draft_children(space, task, rules, node)
    for i in range(count):
        kept[i] = i
    _sort_by_distance(kept, count, space.draft_distances)
    if not rules.prune_target:
        count = min(count, task.beams[thread])
    if rules.order != _HEURISTIC:
        _sort_by_distance(kept, count, space.canonical)
    if rules.order == _SHUFFLED:
        for i in range(count - 1, 0, -1):
            j = int(_next_random(space.rng) * (i + 1))
            kept[i], kept[j] = kept[j], kept[i]
    drawn = _next_random(space.rng) if rules.per_node else 0.0
    for i in range(count):
        space.promising[i] = (drawn if rules.per_node else _next_random(space.rng)) < rules.shares[thread]
    first = space.counters[NODES]
    if first + count > len(space.nodes):
        space.counters[_FULL] = 1
        return 0
    for i in range(count):
        for column in range(layout.NODE_WIDTH):
            space.nodes[first + i, column] = drafts[kept[i], column]
        space.distances[first + i] = space.draft_distances[kept[i]]
    space.counters[NODES] = first + count
    return count


@compiled
def _draft_children(space: Space, task: _Task, rules: Rules, node: Int) -> Int:
    """`children` of the reference, those pruned by the target left out: rows and distances into the drafts."""
    size = space.nodes[node, layout.SIZE]
    numbers = space.nodes[node, layout.NUMBERS : layout.NUMBERS + size]
    count = np.int64(0)
    for i in range(size):
        for j in range(i + 1, size):
            a, b = numbers[j], numbers[i]
            for operator in range(4):
                if operator == _ADD:
                    result = a + b
                elif operator == _SUBTRACT:
                    result = a - b
                elif operator == _MULTIPLY:
                    result = a * b
                elif b > 0 and a % b == 0:
                    result = a // b
                else:
                    continue
                if result > rules.value_cap:
                    continue
                _draft(space, count, node, i, j, operator, result)
                if not rules.duplicates and _is_repeated(space, count, size - 1):
                    continue
                left = space.drafts[count, layout.NUMBERS : layout.NUMBERS + size - 1]
                distance = _distance(left, task, rules.heuristic)
                if rules.prune_target and distance > task.target:
                    continue
                space.draft_distances[count] = distance
                count += 1
    return count


@compiled
def _draft(space: Space, place: Int, node: Int, i: Int, j: Int, operator: Int, result: Int) -> None:
    """Write the child of `node` in which `result` replaces the `i`-th and `j`-th of its numbers."""
    parent, draft = space.nodes[node], space.drafts[place]
    size = parent[layout.SIZE]
    draft[layout.PARENT] = node
    draft[layout.SIZE] = size - 1
    draft[layout.A] = parent[layout.NUMBERS + j]
    draft[layout.OPERATOR] = operator
    draft[layout.B] = parent[layout.NUMBERS + i]
    draft[layout.RESULT] = result
    at = layout.NUMBERS
    placed = False
    for k in range(size):
        if k != i and k != j:
            number = parent[layout.NUMBERS + k]
            if not placed and result < number:
                draft[at] = result
                at += 1
                placed = True
            draft[at] = number
            at += 1
    if not placed:
        draft[at] = result


@compiled
def _is_repeated(space: Space, place: Int, size: Int) -> bool:
    """Whether the numbers of the draft at `place` are those of an earlier one."""
    drafts, hashes = space.drafts, space.draft_hashes
    hashed = np.uint64(0)
    for k in range(layout.NUMBERS, layout.NUMBERS + size):
        hashed = hashed * _GOLDEN + np.uint64(drafts[place, k])
    hashes[place] = hashed
    for other in range(place):
        if hashes[other] == hashed:
            equal = True
            for k in range(layout.NUMBERS, layout.NUMBERS + size):
                equal = equal and drafts[other, k] == drafts[place, k]
            if equal:
                return True
    return False


# --- heuristics and random numbers


@compiled
def _distance(numbers: Ints, task: _Task, heuristic: Int) -> float:
    """`solvers.search.distance`; exact below the bound."""
    total = np.int64(0)
    if len(numbers) == 1:
        return float(abs(numbers[0] - task.target))
    if heuristic == _SUM_TO_FACTORS:
        for number in numbers:
            total += number
        return float(_to_nearest(total, task.factors))
    if heuristic == _NUMBERS_TO_TARGET:
        for number in numbers:
            total += abs(number - task.target)
        return total / len(numbers)
    for number in numbers:
        total += _to_nearest(number, task.factors)
    return float(total)


@compiled
def _to_nearest(number: Int, factors: Ints) -> Int:
    if number >= factors[-1]:
        return number - factors[-1]
    above = 0
    while factors[above] < number:
        above += 1
    if above == 0:
        return factors[0] - number
    return min(factors[above] - number, number - factors[above - 1])


# SplitMix64 as in `apr.seeds`
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_11, _27, _30, _31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


@compiled
def _next_random(state: Seeds) -> float:
    """`SplitMix64.random` of the generator whose state is in `state[0]`."""
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return float((z ^ (z >> _31)) >> _11) * 2.0**-53
