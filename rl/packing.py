"""Samples in rows, rows in passes, passes to ranks: each token is forwarded once, and little else is.

The attention mask of a row is dense, so that its cost grows with the row's length: rows are kept short, and the tokens
of a pass lie in many of them.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from apr.config import LearnerConfig
from apr.threads.masks import mark_attended
from rl.prefixes import overlaid
from rl.samples import Sample

Row = list[Sample]
Share = list[list[Row]]  # the passes of one rank


def shares(minibatches: Sequence[Sequence[Sample]], config: LearnerConfig, ranks: int = 1) -> list[list[Share]]:
    """The passes of each of `ranks`, by minibatch. What samples of a minibatch have in common is forwarded once."""
    plans = [
        plan(overlaid(batch, config.row_tokens), config.row_tokens, config.tokens_per_pass, ranks)
        for batch in minibatches
    ]
    return [[by_rank[rank] for by_rank in plans] for rank in range(ranks)]


def plan(batch: Sequence[Sample], row_tokens: int, tokens_per_pass: int, ranks: int = 1) -> list[Share]:
    """The passes of each rank, as many for each: ranks that share a model must call it equally often. A rank without
    samples left gets passes of no rows. Takes n log n time for n samples.

    Rows of like length share a pass of at most `tokens_per_pass` padded tokens (a longer row is a pass alone).
    """
    rows = sorted(((_length(row), row) for row in pack(batch, row_tokens)), key=lambda one: one[0], reverse=True)
    passes: list[list[Row]] = []
    longest: list[int] = []  # row of each pass, its first
    for length, row in rows:
        if passes and (len(passes[-1]) + 1) * longest[-1] <= tokens_per_pass:
            passes[-1].append(row)
        else:
            passes.append([row])
            longest.append(length)
    made: list[Share] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]  # a heap: padded tokens so far
    for rows_, length in zip(passes, longest):  # each pass to the rank with the fewest tokens so far
        load, rank = loads[0]
        made[rank].append(rows_)
        heapq.heapreplace(loads, (load + len(rows_) * length, rank))
    most = max(map(len, made))
    return [[*share, *([[]] * (most - len(share)))] for share in made]


def pack(batch: Sequence[Sample], row_tokens: int) -> list[Row]:
    """Best fit, longest first: each sample into the fullest row with room for it; longer ones are rows alone."""
    rows: list[Row] = []
    free: list[int] = []  # tokens that rows have free, ascending, each number once
    rows_by_free: dict[int, list[int]] = {}  # heaps of rows
    lengths = [len(sample.block.ids) for sample in batch]
    for number in sorted(range(len(batch)), key=lambda number: (-lengths[number], number)):
        sample, length = batch[number], lengths[number]
        place = bisect.bisect_left(free, length)
        if place < len(free):
            left = free[place]
            row = heapq.heappop(rows_by_free[left])
            if not rows_by_free[left]:
                del rows_by_free[left], free[place]
            rows[row].append(sample)
        else:
            left, row = max(row_tokens, length), len(rows)
            rows.append([sample])
        left -= length
        if left not in rows_by_free:
            bisect.insort(free, left)
            rows_by_free[left] = []
        heapq.heappush(rows_by_free[left], row)
    return rows


def _length(row: Row) -> int:
    return sum(len(sample.block.ids) for sample in row)


class Pass:
    """Rows as tensors: `ids` and `positions` [rows, length]; `rows` and `before` [predicting tokens] place each token that
    predicts any, once; the others [trained tokens]: `predictors` number the token that predicts among those, `strands` the
    strands. `masked` is false where each row is one causal sequence."""

    def __init__(self, rows: Sequence[Row], device: torch.device, masked: bool = True) -> None:
        length = max([1, *map(_length, rows)])
        shape = (max(1, len(rows)), length)
        self._blocks = [[sample.block for sample in row] for row in rows] if masked else None
        ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        places: list[tuple[int, int, int]] = []  # row, index that predicts, index
        strands: list[int] = []
        for number, row in enumerate(rows):
            start = 0
            for sample in row:
                block = sample.block
                stop = start + len(block.ids)
                ids[number, start:stop] = torch.tensor(block.ids)
                positions[number, start:stop] = torch.tensor(block.positions)
                places += [(number, start + b, start + t) for b, t in zip(sample.before, sample.trained)]
                offset = strands[-1] + 1 if strands else 0
                strands += [offset + strand for strand in sample.strands]
                start = stop
        flat = [sample for row in rows for sample in row]
        self.forwarded = ids.numel() if rows else 0
        self.ids, self.positions = ids.to(device), positions.to(device)
        rows_, before, after = torch.tensor(places, dtype=torch.long).reshape(-1, 3).T
        self.targets = ids[rows_, after].to(device)
        predicting, predictors = torch.unique(rows_ * length + before, return_inverse=True)
        self.rows, self.before = (predicting // length).to(device), (predicting % length).to(device)
        self.predictors = predictors.to(device)
        self.strands = torch.tensor(strands, dtype=torch.long, device=device)

        def per_token(name: str) -> Tensor:
            values = [value for sample in flat for value in getattr(sample, name)]
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.sampler, self.advantages = per_token("logprobs"), per_token("advantages")
        self.weights, self.kl_weights = per_token("weights"), per_token("kl_weights")
        self.lags = per_token("lags")

    @property
    def mask(self) -> Tensor | None:
        """Whether a token attends to another, [rows, 1, length, length]. It is made anew each time, from pointers, so that the
        device holds the mask of one pass at a time."""
        if self._blocks is None:
            return None
        rows, length = self.ids.shape
        mask = np.zeros((rows, 1, length, length), np.bool_)
        for row, blocks in zip(mask[:, 0], self._blocks):
            start = 0
            for block in blocks:
                stop = start + len(block.ids)
                mark_attended(row[start:stop, start:stop], block)
                start = stop
        padding = np.arange(length)
        mask[:, 0, padding, padding] = True  # it attends to itself: an empty row of a softmax is no number
        return torch.from_numpy(mask).to(self.ids.device)
