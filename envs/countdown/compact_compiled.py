"""The compact speller compiled with numba: tokens of many search logs at once, from arrays (`envs.countdown.log_arrays`).

`CompactSpeller` is the reference; property tests show that both spell the same.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from apr.jit import Int, compiled
from envs.countdown import log_arrays as layout
from envs.countdown.compact import OPERATORS, CompactSpeller
from envs.countdown.log_arrays import Ints, LogArrays

Tokens = npt.NDArray[np.uint16]


class Spelled(NamedTuple):
    """`CompactSpeller.spell` of N logs with S strands and T tokens.

    `tokens` uint16[T]: what each strand samples, strands in depth-first spawn order, log after log; `strand_ends`
    int64[S]: where each strand ends in `tokens`; `row_ends` int64[N]: where each log's strands end in `strand_ends`.
    """

    tokens: Tokens
    strand_ends: Ints
    row_ends: Ints


def spell(arrays: LogArrays) -> Spelled:
    """The tokens that the strands of each log sample."""
    return Spelled(*_spell_all(arrays, _words()))


def prompt_lengths(numbers: Ints, targets: Ints) -> Ints:
    """Tokens of each `CompactSpeller.prompt` without a condition: of `numbers` int64[N, n] and `targets` int64[N]."""
    lengths: Ints = 3 + number_lengths(targets) + number_lengths(numbers).sum(axis=1)  # <bos> : ;
    return lengths


def condition_lengths(values: Ints) -> Ints:
    """Tokens that a condition of each of `values` int64[N] adds to a prompt: its kind, its value and a semicolon."""
    return 2 + number_lengths(values)


def number_lengths(numbers: Ints) -> Ints:
    """Tokens of each of `numbers`, an int64 array of any shape: its digits in base 100."""
    lengths = np.ones_like(numbers)
    while (numbers := numbers // 100).any():
        lengths += numbers > 0
    return lengths


class _Words(NamedTuple):
    """Token ids; `head`, `tail` and `operator` are the first of their kind."""

    spawn: Int
    msg: Int
    spawn_end: Int
    join: Int
    eos: Int
    head: Int
    tail: Int
    operator: Int
    equals: Int
    colon: Int
    comma: Int
    visit: Int
    queue: Int
    less: Int
    hit: Int
    more: Int


@cache
def _words() -> _Words:
    controls = ["<spawn>", "<msg>", "</spawn>", "<join>", "<eos>"]
    return _Words(*CompactSpeller().vocabulary.encode([*controls, "0", "'00", OPERATORS[0], *"=:,@~<!>"]))


class _Page(NamedTuple):
    """Where one log is spelt: its nodes and target, the tokens written and to come, the words; room for a path."""

    nodes: Ints
    target: Int
    tokens: Tokens
    words: _Words
    path: Ints


@compiled
def _spell_all(arrays: LogArrays, words: _Words) -> tuple[Tokens, Ints, Ints]:
    nodes, events = arrays.nodes, arrays.events
    row_ends = np.empty(len(arrays.ends), np.int64)
    strand_ends = np.empty(len(events), np.int64)
    tokens = np.empty(16 * len(events), np.uint16)
    path = np.empty(layout.MAX_NUMBERS, np.int64)
    at = strand = first = np.int64(0)
    for row in range(len(row_ends)):
        last, target = arrays.ends[row], arrays.targets[row]
        room = at + (last - first) * _longest_event(nodes[arrays.roots[row]], target)
        if room > len(tokens):
            larger = np.empty(2 * room, np.uint16)
            larger[:at] = tokens[:at]
            tokens = larger
        page = _Page(nodes, target, tokens, words, path)
        messages = 0
        for event in range(first, last):
            kind, argument = events[event, 0], events[event, 1]
            at = _put_event(page, at, kind, argument)
            if kind == layout.SPAWNED:
                messages = argument
            elif kind == layout.MESSAGE:
                messages -= 1
                if messages == 0:
                    at = _put(page, at, words.spawn_end)
                    strand_ends[strand] = at
                    strand += 1
            elif kind == layout.JOINED:
                strand_ends[strand] = at
                strand += 1
        row_ends[row] = strand
        first = last
    return tokens[:at].copy(), strand_ends[:strand].copy(), row_ends


@compiled
def _longest_event(root: Ints, target: Int) -> Int:
    """A bound on the tokens of any one event of the log that starts at `root`: a state with all steps but the last and
    all numbers, were all as long as the longest."""
    size, largest = root[layout.SIZE], 1
    for number in root[layout.NUMBERS : layout.NUMBERS + size]:
        largest *= number + 1  # more than any value reachable from the numbers
    width = _width(max(largest, target))
    return size * (3 * width + 3) + (size + 1) * width + 4


@compiled
def _put_event(page: _Page, at: Int, kind: Int, argument: Int) -> Int:
    """Write an event from `tokens[at]` on; where it ends. So do all that follow."""
    words = page.words
    if kind == layout.TESTED:
        return _put_test(page, at, argument)
    if kind == layout.VISITED:
        return _put_state(page, _put(page, at, words.visit), argument)
    if kind == layout.QUEUED:
        return _put_state(page, _put(page, at, words.queue), argument)
    if kind == layout.MESSAGE:
        return _put_state(page, _put(page, at, words.msg), argument)
    if kind == layout.SPAWNED:
        return _put(page, at, words.spawn)
    if kind == layout.JOINED:
        at = _put(page, at, words.join)
        if argument != layout.NO_NODE:
            at = _put_path(page, at, argument)
        return _put(page, at, words.eos)
    return at  # PROMISING is said where the node is visited or spawned


@compiled
def _put(page: _Page, at: Int, token: Int) -> Int:
    page.tokens[at] = token
    return at + 1


@compiled
def _put_number(page: _Page, at: Int, number: Int) -> Int:
    end = at + _width(number)
    for place in range(end - 1, at, -1):
        page.tokens[place] = page.words.tail + number % 100
        number //= 100
    page.tokens[at] = page.words.head + number
    return end


@compiled
def _width(number: Int) -> Int:
    width = 1
    while number >= 100:
        number //= 100
        width += 1
    return width


@compiled
def _put_step(page: _Page, at: Int, node: Int) -> Int:
    at = _put_number(page, at, page.nodes[node, layout.A])
    at = _put(page, at, page.words.operator + page.nodes[node, layout.OPERATOR])
    at = _put_number(page, at, page.nodes[node, layout.B])
    at = _put(page, at, page.words.equals)
    return _put_number(page, at, page.nodes[node, layout.RESULT])


@compiled
def _put_path(page: _Page, at: Int, node: Int) -> Int:
    """All steps that lead to `node`, which is not the problem itself."""
    steps = 0
    while page.nodes[node, layout.PARENT] != layout.NO_NODE:
        page.path[steps] = node
        node = page.nodes[node, layout.PARENT]
        steps += 1
    for i in range(steps - 1, 0, -1):
        at = _put(page, _put_step(page, at, page.path[i]), page.words.comma)
    return _put_step(page, at, page.path[0])


@compiled
def _put_state(page: _Page, at: Int, node: Int) -> Int:
    at = _put(page, _put_path(page, at, node), page.words.colon)
    for place in range(layout.NUMBERS, layout.NUMBERS + page.nodes[node, layout.SIZE]):
        at = _put_number(page, at, page.nodes[node, place])
    return _put_number(page, _put(page, at, page.words.colon), page.target)


@compiled
def _put_test(page: _Page, at: Int, node: Int) -> Int:
    at = _put_number(page, _put_step(page, at, node), page.target)
    result, words = page.nodes[node, layout.RESULT], page.words
    return _put(page, at, words.hit if result == page.target else words.less if result < page.target else words.more)
