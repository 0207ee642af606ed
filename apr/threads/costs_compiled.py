"""The costs of many demonstrations, from their sampled tokens alone, compiled with numba.

They equal those of `apr.threads.costs` on the traces that the protocols `spawn_join` and `serial` (which never spawns)
lay out, and a property test shows it. Which tokens stand for numbers or words does not matter here, so every speller is
counted alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from apr.jit import Int, compiled
from apr.tokens.control import ControlTokens

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.uint16]


class CostArrays(NamedTuple):
    """Costs of N traces, int64[N] each, in tokens. `widest` is the most children of any one spawn of the root;
    `root_context` and `child_context` are the largest contexts of the root and of all other threads (0 without any)."""

    widest: Ints
    root_context: Ints
    child_context: Ints
    work: Ints
    work_sampled: Ints
    span_sampled: Ints
    threads: Ints


_WIDEST, _ROOT_CONTEXT, _CHILD_CONTEXT, _WORK, _WORK_SAMPLED, _SPAN_SAMPLED, _THREADS = range(7)


def count_costs(tokens: Tokens, strand_ends: Ints, row_ends: Ints, prompts: Ints, control: ControlTokens) -> CostArrays:
    """Costs of the traces whose strands sampled `tokens` uint16[T], in depth-first spawn order: `strand_ends` int64[S]
    in tokens, `row_ends` int64[N] in strands. `prompts` int64[N]: tokens of each prompt. Raises `ValueError` if the
    strands are not such traces."""
    costs = np.zeros((len(row_ends), _THREADS + 1), np.int64)
    marks = _Marks(control.spawn, control.msg, control.spawn_end, control.join)
    _count_all(tokens, strand_ends, row_ends, prompts, marks, costs)
    return CostArrays(*costs.T.copy())


class _Marks(NamedTuple):
    spawn: int
    msg: int
    spawn_end: int
    join: int


# An open thread: tokens of context before what its strand samples; sampled tokens on the longest chain before that
# strand. While its children run: where in the tokens the next one's <msg> is, or the end of the spawn block; its
# context up to the spawn; tokens that the children have returned; the longest chain that ends with one of them.
_BEFORE, _CHAIN, _NEXT, _SEEN, _RETURNED, _LATEST = range(6)
_MAX_DEPTH = 512


@compiled
def _count_all(tokens: Tokens, strand_ends: Ints, row_ends: Ints, prompts: Ints, marks: _Marks, costs: Ints) -> None:
    threads = np.zeros((_MAX_DEPTH + 1, _LATEST + 1), np.int64)
    first = np.int64(0)
    for row in range(len(row_ends)):
        _count_row(tokens, strand_ends, first, row_ends[row], prompts[row], marks, threads, costs[row])
        first = row_ends[row]


@compiled
def _count_row(
    tokens: Tokens, strand_ends: Ints, first: Int, last: Int, prompt: Int, marks: _Marks, threads: Ints, costs: Ints
) -> None:
    """Add the strands `first` to `last`, those of one trace, to its `costs`, which come as zeros."""
    depth = nothing = np.int64(0)
    _start_strand(threads[0], costs, nothing, prompt, nothing)
    for strand in range(first, last):
        begin, end = strand_ends[strand - 1] if strand else 0, strand_ends[strand]
        thread = threads[depth]
        chain = thread[_CHAIN] + end - begin
        context = _CHILD_CONTEXT if depth else _ROOT_CONTEXT
        costs[context] = max(costs[context], thread[_BEFORE] + end - begin)
        costs[_WORK_SAMPLED] += end - begin
        costs[_WORK] += end - begin
        stop = _stop(tokens, begin, end, marks)
        if tokens[stop] == marks.spawn:
            if tokens[end - 1] != marks.spawn_end:
                break
            thread[_NEXT], thread[_RETURNED], thread[_CHAIN], thread[_LATEST] = stop + 1, 0, chain, chain
            thread[_SEEN] = thread[_BEFORE] + stop - begin
            if depth == 0:
                children = 0
                for i in range(stop, end):
                    children += tokens[i] == marks.msg
                costs[_WIDEST] = max(costs[_WIDEST], children)
        elif depth == 0:
            costs[_SPAN_SAMPLED] = chain
            costs[_THREADS] += 1
            if strand == last - 1:
                return
            break
        else:
            costs[_THREADS] += 1
            depth -= 1
            thread = threads[depth]
            thread[_RETURNED] += end - stop - 1  # <ret> and the message; sampled were <join>, the message and <eos>
            thread[_LATEST] = max(thread[_LATEST], chain)
        message = thread[_NEXT]
        if tokens[message] == marks.msg:
            thread[_NEXT] = _message_end(tokens, message, marks)
            depth += 1
            if depth > _MAX_DEPTH:
                break
            _start_strand(threads[depth], costs, nothing, thread[_NEXT] - message, thread[_CHAIN])
        else:
            _start_strand(thread, costs, thread[_SEEN], thread[_RETURNED], thread[_LATEST])
    raise ValueError("strands do not make a trace: a spawn without an end, a join too many or too few, or too deep")


@compiled
def _start_strand(thread: Ints, costs: Ints, seen: Int, injected: Int, chain: Int) -> None:
    thread[_BEFORE] = seen + injected
    thread[_CHAIN] = chain
    costs[_WORK] += injected


@compiled
def _stop(tokens: Tokens, begin: Int, end: Int, marks: _Marks) -> Int:
    """Where the spawn block or the join begins with which the strand ends."""
    for i in range(end - 1, begin - 1, -1):
        if tokens[i] == marks.spawn or tokens[i] == marks.join:
            return i
    raise ValueError("a strand neither spawns nor joins")


@compiled
def _message_end(tokens: Tokens, message: Int, marks: _Marks) -> Int:
    """Where the message that begins at `message` ends: at the next <msg>, or at the end of the spawn block."""
    end = message + 1
    while tokens[end] != marks.msg and tokens[end] != marks.spawn_end:
        end += 1
    return end
