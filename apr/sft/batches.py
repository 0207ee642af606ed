"""Rows as tensors for a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from apr.sft.rows import IGNORED, told_block
from apr.threads.masks import mark_attended


def collate(rows: Sequence[Mapping[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """Rows of `apr.sft.examples.COLUMNS`, padded to the longest.

    `input_ids`, `position_ids` and `shift_labels` (for each token the one that it predicts, or -100): [rows, tokens];
    `attention_mask`: 1 where there is a token, [rows, tokens], if all rows are causal sequences, and else whether a token
    attends to another, [rows, 1, tokens, tokens]; `tokens`: how many there are.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    shape = (len(rows), max(lengths))
    ids = np.full(shape, max(pad, 0), np.int64)
    targets = np.full(shape, IGNORED, np.int64)
    positions = np.zeros(shape, np.int64)
    for row, (one, length) in enumerate(zip(rows, lengths)):
        ids[row, :length] = one["input_ids"]
        targets[row, :length] = one["targets"]
        positions[row, :length] = range(length)
    if any(row["segments"] for row in rows):
        mask = np.zeros((shape[0], 1, shape[1], shape[1]), np.bool_)
        for row, (one, length) in enumerate(zip(rows, lengths)):
            block = told_block(one["input_ids"], one["segments"])
            positions[row, :length] = block.positions
            mark_attended(mask[row, 0, :length, :length], block)
        every = np.arange(shape[1])
        mask[:, 0, every, every] = True  # a padding token attends to itself: an empty row of a softmax is no number
    else:
        mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "shift_labels": torch.from_numpy(targets),
        "attention_mask": torch.from_numpy(mask if mask.ndim == 4 else mask.astype(np.int64)),
        "tokens": torch.tensor(sum(lengths)),
    }
