"""Attention over lists of slots: each new token reads the keys and values of the slots that it is told, and of no others.

Keys are cached after rotation, and attention does not care about their order. So no mask is needed, whatever strands see: a
strand is a list of slots and a next position. `Keys` holds the slots; `register` makes transformers call `attend`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import prange, set_num_threads  # type: ignore[import-untyped]
from torch import Tensor

from apr.jit import compiled_parallel

NAME = "apr_shared"  # of the attention function, to transformers


@dataclass
class Reads:
    """What the tokens of one forward pass write and read.

    `slots` [tokens]: where each writes its keys and values; `lists`: lists of slots, one after the other; token i reads
    `lists[starts[i] : starts[i] + lengths[i]]`, its own slot included.
    """

    slots: npt.NDArray[np.int64]
    lists: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


class Keys:
    """Keys and values of all layers: [key heads, slots, head size] each."""

    def __init__(self, layers: int, heads: int, size: int, slots: int, like: Tensor) -> None:
        def rows() -> list[Tensor]:
            return [torch.zeros(heads, slots, size, dtype=like.dtype, device=like.device) for _ in range(layers)]

        self.keys, self.values = rows(), rows()
        self.reads: Reads | None = None  # of the pass under way


def register() -> None:
    """Make `attn_implementation=NAME` known to transformers. The attention modules of a model so loaded need `apr_keys`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*arguments: Any, **named: Any) -> None:
    return None


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float | None = None, **options: Any
) -> tuple[Tensor, None]:
    """Write the keys and values [1, key heads, tokens, head size] of one layer, then read for the queries [1, heads, tokens,
    head size]. Returns [1, tokens, heads, head size]."""
    held: Keys = module.apr_keys
    reads = held.reads
    assert reads is not None
    keys, values = held.keys[module.layer_idx], held.values[module.layer_idx]
    slots = torch.from_numpy(reads.slots).to(keys.device)
    keys[:, slots] = key[0]
    values[:, slots] = value[0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if keys.device.type == "cpu" and keys.dtype == torch.float32:
        _, heads, tokens, size = query.shape
        out = torch.empty(tokens, heads, size)
        rows = query[0].transpose(0, 1).contiguous()
        _read(
            rows.numpy(),
            keys.numpy(),
            values.numpy(),
            reads.lists,
            reads.starts,
            reads.lengths,
            np.float32(scale),
            out.numpy(),
        )
        return out[None], None
    return _gathered(query, keys, values, reads, scale), None


@compiled_parallel
def _read(query: Any, keys: Any, values: Any, lists: Any, starts: Any, lengths: Any, scale: Any, out: Any) -> None:
    """Softmax attention of each token and head over its list, in the order of the list."""
    tokens, heads, size = query.shape
    group = heads // keys.shape[0]
    for row in prange(tokens * heads):
        token, head = row // heads, row % heads
        shared = head // group
        start, length = starts[token], lengths[token]
        scores = np.empty(length, np.float32)
        most = np.float32(-np.inf)
        for i in range(length):
            slot = lists[start + i]
            score = np.float32(0)
            for d in range(size):
                score += query[token, head, d] * keys[shared, slot, d]
            scores[i] = score * scale
            most = max(most, scores[i])
        total = np.float32(0)
        for i in range(length):
            scores[i] = math.exp(scores[i] - most)
            total += scores[i]
        sums = np.zeros(size, np.float32)
        for i in range(length):
            slot = lists[start + i]
            share = scores[i] / total
            for d in range(size):
                sums[d] += share * values[shared, slot, d]
        for d in range(size):
            out[token, head, d] = sums[d]


def _gathered(query: Tensor, keys: Tensor, values: Tensor, reads: Reads, scale: float) -> Tensor:
    """The same by gathering the slots of each token, padded to the longest list, and torch's own attention."""
    longest = int(reads.lengths.max())
    places = np.minimum(reads.starts[:, None] + np.arange(longest), len(reads.lists) - 1)
    slots = torch.from_numpy(reads.lists[places]).to(keys.device)  # [tokens, longest]
    seen = torch.from_numpy(np.arange(longest) < reads.lengths[:, None]).to(keys.device)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query[0].transpose(0, 1)[:, :, None],
        keys[:, slots].transpose(0, 1),
        values[:, slots].transpose(0, 1),
        attn_mask=seen[:, None, None],
        scale=scale,
        enable_gqa=True,
    )  # [tokens, heads, 1, head size]
    return attended.transpose(1, 2).transpose(0, 1)


def use_threads(count: int) -> None:
    """How many threads the compiled reading takes."""
    set_num_threads(count)
