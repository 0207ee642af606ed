"""The engine seam: token ids in; token ids, logprobs, stop reason and cached tokens out.

It stands beside the session, which asks; the engines that answer are in `apr.engines`. They are asynchronous: many `generate`
calls are in flight at once, and the engine batches them. A contract test (`tests/contract/test_engine_*.py`) is passed by
every implementation.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from apr.threads.layout import Block
from apr.threads.trace import EngineStop, StrandKey, VersionSpan

Views = Literal["chain", "dag"]  # what strands of an engine may see: one causal sequence, or several strands' tokens


@dataclass(frozen=True, slots=True)
class Request:
    """One strand to sample. `ids`: the whole context, injected tokens last. `temperature` 0 is greedy.

    `block`: who sees whom among `ids`, and where they stand; its last segment is the strand itself, the others are those that
    it sees. `position`: of the first token that it samples. Engines of views `dag` are told both, and can so compute whatever
    they no longer hold; for others the block is None.

    Tokens are sampled from the full vocabulary at `temperature` (top_p 1, top_k off), so that the recorded logprobs
    are those of the distribution sampled from.
    """

    key: StrandKey
    ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    priority: int = 0  # lower runs earlier
    block: Block | None = None
    position: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine made of a request. `logprobs` are at the request's temperature (at 1 when greedy)."""

    key: StrandKey
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: EngineStop
    versions: tuple[VersionSpan, ...]
    cached: int = 0


class Engine(typing.Protocol):
    """Samples strands from one policy.

    Weights are updated in this order: `pause`, `update_weights`, `resume`. `update_weights` finishes with a
    version and clears the prefix cache, and raises `EngineError` if it could not: KV of old weights is never kept.
    A completion's `versions` name the policy of each sampled token: one span, or one for each version that a request
    was sampled from while pauses suspended it.
    """

    @property
    def views(self) -> Views:
        """What its strands may see."""
        ...

    @property
    def max_context(self) -> int:
        """Tokens that fit in one context, prompt and sampled together."""
        ...

    @property
    def max_reach(self) -> int:
        """Positions that a token may stand at are below it."""
        ...

    @property
    def version(self) -> int:
        """The policy version that new tokens come from."""
        ...

    async def generate(self, request: Request) -> Completion:
        """Sample one strand. Raises `EngineLostError` if the engine died and the request may be sent again, `EngineError` if
        the model's logits are not finite."""
        ...

    async def abort(self, key: StrandKey, after: int = 0) -> None:
        """Stop a request: its `generate` returns what was sampled so far, with `EngineStop.ABORT`. `after`: not before it has
        sampled so many tokens; one that ends by itself with the last of them is whole. The smallest of several counts."""
        ...

    async def release(self, key: StrandKey) -> None:
        """No strand of the trace of `key` will be asked for again: what is kept of it may go."""
        ...

    async def pause(self, keep: bool = False) -> None:
        """Return when no request is in flight; later requests wait for `resume`.

        `keep`: return with those in flight suspended where they are. After `resume` they sample on: from the weights
        of then, with all their KV recomputed if these have changed. `abort` ends a suspended request as any other.
        """
        ...

    async def update_weights(self, source: Any, version: int) -> None:
        """Take new weights: a mapping of names to tensors, or a folder that is whole by its marker, or those that came already
        (`apr.engines.weights`)."""
        ...

    async def resume(self) -> None: ...

    async def metrics(self) -> Mapping[str, float]:
        """Counters since the start.

        `requests` that ended, whole or aborted, with their `sampled_tokens`; of their own `ids`, those computed
        (`prefilled_tokens`) and those found in the prefix cache (`cached_tokens`); `preemptions`: how often a request
        lost its KV, for lack of room or to new weights, and had it recomputed; `busy_seconds` spent computing.
        """
        ...

    async def close(self) -> None: ...
