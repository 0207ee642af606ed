"""The shared-cache engine: strands read each other's keys and values, as their protocol says, and nothing is computed twice.

A strand is a list of slots and a next position (`apr.engines.slots`). A child's list begins with its parent's; a parent that
joins over its children concatenates theirs. All strands under way are decoded together:

    _step     for each strand, oldest trace first, deepest strand first:
                what it sees and is not held    is fed: injected tokens, the last sampled token of another strand, all of a
                                                trace that was dropped
                its own next token              is fed
              one forward pass over all of them, each token writing its slot before any reads (`apr.engines.attention`)
              the strands that have all they need sample

Out of slots, the youngest trace is dropped as a whole, and computed again later from its requests. With `deterministic` each
token is forwarded alone, so that a strand is the same bit for bit whatever else is under way, dropped or not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apr.checkpoints.folder import ModelFolder
from apr.engines.attention import NAME, Keys, register, use_threads
from apr.engines.local import Flight, LocalEngine
from apr.engines.refusals import not_finite
from apr.engines.slots import Residents, Rows, Segment, TraceId
from apr.engines.weights import copy_weights
from apr.errors import CheckpointError, ConfigError, EngineError
from apr.threads.engine import Completion, Request, Views
from apr.threads.layout import Block
from apr.threads.layout import Segment as Part
from apr.threads.trace import EngineStop, StrandId, StrandKey

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PASS_TOKENS = 4096  # most tokens of one forward pass
PATIENCE = 50  # milliseconds without room before traces are dropped that nobody asks for at the moment


@dataclass(eq=False)
class Strand:
    """A request under way. `segment`: where it is held, None if it is to be computed; `draws`: a number in [0, 1) for each
    token that it may sample."""

    flight: Flight
    trace: TraceId
    order: tuple[int, int, int]
    draws: np.ndarray[Any, np.dtype[np.float64]]
    most: int
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    segment: Segment | None = None
    cached: int | None = None  # tokens found when it was first computed

    @property
    def block(self) -> Block:
        """What it sees, what it is injected and what it has sampled."""
        whole = block_of_request(self.flight.request)
        if not self.sampled:
            return whole
        *others, own = whole.segments
        ids = (*whole.ids, *self.sampled)
        stands = range(position := position_of(self.flight.request), position + len(self.sampled))
        own = Part(own.strand, own.start, len(ids), own.sees)
        return Block(ids, (*whole.positions, *stands), (*others, own))


def block_of_request(request: Request) -> Block:
    """Its block; of a request without one a single causal sequence."""
    if request.block is not None:
        return request.block
    own = Part(StrandId(request.key.thread, request.key.number), 0, len(request.ids), ())
    return Block(request.ids, tuple(range(len(request.ids))), (own,))


def position_of(request: Request) -> int:
    """Where the first token stands that it samples."""
    return request.position if request.block is not None else len(request.ids)


class SharedEngine(LocalEngine):
    """Serves a transformers causal language model on its device. `cache_bytes` bounds keys and values, `max_num_seqs` the
    strands decoded at once."""

    views: Views = "dag"

    def __init__(
        self, model: PreTrainedModel, *, max_context: int, cache_bytes: int, max_num_seqs: int = 256,
        deterministic: bool = False, threads: int | None = None, version: int = 0,
    ) -> None:  # fmt: skip
        """Raises `CheckpointError` for a model whose attention it cannot do, `ConfigError` for a cache below one context."""
        config = model.config.get_text_config()
        super().__init__(max_context, version, max_reach=int(config.max_position_embeddings))
        self._model: Any = model.eval().requires_grad_(False)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
        self._vocabulary = int(config.vocab_size)
        self._keys = _keys(model, cache_bytes)
        capacity = self._keys.keys[0].shape[1]
        if capacity < max_context:
            raise ConfigError(
                f"engine.kv_cache_mib={cache_bytes / 2**20:g} holds {capacity} tokens of this model, fewer than one context of "
                f"{max_context}: raise it, or lower limits.context"
            )
        self._residents = Residents(capacity)
        self._max_num_seqs = max_num_seqs
        self._deterministic = deterministic
        self._strands: dict[Flight, Strand] = {}
        self._arrivals = 0
        self._server: asyncio.Task[None] | None = None
        if threads is not None:
            use_threads(threads)

    @classmethod
    def from_folder(cls, folder: ModelFolder, *, dtype: str = "float32", **options: Any) -> SharedEngine:
        """Serve the model in a folder in Hugging Face format. Raises `CheckpointError` if it cannot be read."""
        from apr.checkpoints.folder import load_model

        register()
        model = load_model(folder.path, dtype, attn_implementation=NAME)
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), **options)

    # Requests.

    def _begin(self, flight: Flight) -> None:
        request = flight.request
        trace = TraceId.of(request.key)
        self._arrivals += 1
        age = self._residents.enter(trace).age
        most = min(request.max_tokens, self.max_context - len(request.ids))
        draws = np.random.Generator(np.random.Philox(request.seed)).random(most)
        self._strands[flight] = Strand(flight, trace, (age, request.priority, self._arrivals), draws, most)
        if self._server is None or self._server.done():
            self._server = asyncio.get_running_loop().create_task(self._serve())
            self._server.add_done_callback(self._served)

    def _check(self, request: Request) -> None:
        super()._check(request)
        if (position := position_of(request)) >= self.max_reach:
            raise EngineError(
                f"{request.key} would sample at position {position}, and the model's window is {self.max_reach}: lower "
                "limits.reach"
            )

    async def release(self, key: StrandKey) -> None:
        self._residents.end(TraceId.of(key))

    async def _serve(self) -> None:
        """Decode until nothing is under way."""
        starved = 0
        while self._strands:
            await self._turn()
            started = time.perf_counter()
            if not self._strands or self._step():
                starved = 0
            elif starved < PATIENCE and any(not held.flights for held in self._residents.traces.values()):
                starved += 1  # what holds the slots may be about to go on, or to end
                await asyncio.sleep(0.001)
            else:
                self._make_room()
            self._counters["busy_seconds"] += time.perf_counter() - started

    def _served(self, server: asyncio.Task[None]) -> None:
        """Whatever ended the decoding before its end, such as a lack of memory, nobody would answer these requests."""
        if not server.cancelled() and isinstance(error := server.exception(), Exception):
            self._lose(error)

    def _step(self) -> bool:
        """One token of each strand that has room; whether any had."""
        ready: list[Strand] = []
        rows = Rows()
        busy: set[TraceId] = set()
        for strand in sorted(self._strands.values(), key=lambda one: one.order)[: self._max_num_seqs]:
            if self._plan(strand, rows, busy):
                ready.append(strand)
                busy.add(strand.trace)
        if ready:
            self._sample(ready, self._forward(rows))
        return bool(ready)

    def _make_room(self) -> None:
        """No strand has room: drop the youngest trace that nobody asks for, or else give up the oldest strand."""
        residents = self._residents
        for trace in residents.youngest_first():
            if not residents.traces[trace].flights:
                residents.drop(trace)
                return
        strand = min(self._strands.values(), key=lambda one: one.order)
        self._end(strand, _too_large(strand.flight.request.key, residents.capacity))

    def _plan(self, strand: Strand, rows: Rows, busy: Collection[TraceId]) -> bool:
        """Add to `rows` what must be fed for the strand's next token, which is wanted; false if there is no room for it now."""
        if (segment := strand.segment) is not None:
            while not self._residents.free:
                if not self._drop_another(strand, busy):
                    return False
            self._residents.grown(segment, strand.sampled[-1])
            position = position_of(strand.flight.request) + len(strand.sampled) - 1
            rows.add(segment, segment.fed - 1, strand.sampled[-1:], position)
            rows.want(segment, segment.fed - 1)
            return True
        block = strand.block
        if not self._residents.agrees(strand.trace, block):
            if strand.trace in busy:  # others of it are fed in this step
                return False
            self._drop(strand.trace)
        feeds = self._residents.lacking(strand.trace, block)
        while self._residents.free < sum(len(feed.ids) for feed in feeds):
            if not self._drop_another(strand, busy):
                return False
            feeds = self._residents.lacking(strand.trace, block)  # it may have shared a prompt with what was dropped
        segments = self._residents.opened(strand.trace, block)
        for feed in feeds:
            rows.add(segments[feed.number], feed.index, feed.ids, feed.position)
        last = len(block.ids) - 1 if block.segments[-1].start < len(block.ids) else block.ends()[-1]
        number = next(i for i, part in enumerate(block.segments) if part.start <= last < part.stop)
        index = last - block.segments[number].start
        if not rows.has(segments[number], index):  # it was fed for another reader, which had no use for what follows it
            rows.add(segments[number], index, block.ids[last : last + 1], block.positions[last])
        rows.want(segments[number], index)
        strand.segment = segments[-1]
        if strand.cached is None:
            strand.cached = len(strand.flight.request.ids) - sum(len(feed.ids) for feed in feeds)
        return True

    def _drop_another(self, strand: Strand, busy: Collection[TraceId]) -> bool:
        """Drop the youngest trace that is younger than the strand's own and not in this step; whether there was one."""
        for trace in self._residents.youngest_first():
            if trace not in busy and self._residents.traces[trace].age > strand.order[0]:
                self._drop(trace)
                return True
        return False

    def _drop(self, trace: TraceId) -> None:
        """Free what is held of a trace; its strands under way will be computed again."""
        self._residents.drop(trace)
        for strand in self._strands.values():
            if strand.trace == trace and strand.segment is not None:
                strand.segment = None
                self._counters["preemptions"] += 1

    @torch.inference_mode()
    def _forward(self, rows: Rows) -> torch.Tensor:
        """Feed all rows; the logits [strands, vocabulary] of those that are wanted."""
        places = rows.wanted
        if self._deterministic:
            logits = [self._pass(rows, row, row + 1) for row in range(len(rows.ids))]
            return torch.cat([logits[place] for place in places])
        found = torch.empty(len(places), int(self._model.config.get_text_config().vocab_size))
        for start in range(0, len(rows.ids), PASS_TOKENS):
            stop = min(start + PASS_TOKENS, len(rows.ids))
            here = [number for number, place in enumerate(places) if start <= place < stop]
            made = self._pass(rows, start, stop, [places[number] - start for number in here])
            found[here] = made
        return found

    def _pass(self, rows: Rows, start: int, stop: int, keep: Sequence[int] = (0,)) -> torch.Tensor:
        device = self._model.device
        self._keys.reads = rows.reads(start, stop)
        output = self._model(
            input_ids=torch.tensor([rows.ids[start:stop]], device=device),
            position_ids=torch.tensor([rows.positions[start:stop]], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(keep or [0], device=device),
        )
        logits: torch.Tensor = output.logits[0, : len(keep)].float().cpu()
        return logits

    def _sample(self, strands: Sequence[Strand], logits: torch.Tensor) -> None:
        """A token for each strand: by its own number where the distribution's running sum passes it, or the likeliest."""
        temperatures = np.array([strand.flight.request.temperature for strand in strands])
        scaled = logits / torch.from_numpy(np.where(temperatures > 0, temperatures, 1.0)).float()[:, None]
        logprobs = torch.log_softmax(scaled, dim=-1)
        sums = logprobs.double().exp().cumsum(-1)
        draws = torch.tensor([strand.draws[len(strand.sampled)] for strand in strands], dtype=torch.float64)
        drawn = torch.searchsorted(sums, (draws * sums[:, -1])[:, None], right=True)[:, 0].clamp(
            max=logits.shape[1] - 1
        )
        tokens = torch.where(torch.from_numpy(temperatures > 0), drawn, logits.argmax(-1))
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        finite = logprobs.max(-1).values.isfinite().tolist()
        for strand, token, logprob, good in zip(strands, tokens.tolist(), chosen, finite, strict=True):
            request = strand.flight.request
            if not good:
                self._end(strand, not_finite(request.key))
                continue
            strand.sampled.append(token)
            strand.logprobs.append(logprob)
            if token in request.stop_ids:
                self._end(strand, self._whole(strand, EngineStop.STOP))
            elif len(strand.sampled) == strand.most:
                self._end(strand, self._whole(strand, EngineStop.LENGTH))
            elif len(strand.sampled) >= strand.flight.enough:
                self._end(strand, self._whole(strand, EngineStop.ABORT))

    def _whole(self, strand: Strand, stop: EngineStop) -> Completion:
        return self._completion(
            strand.flight, tuple(strand.sampled), tuple(strand.logprobs), stop, cached=strand.cached or 0
        )

    def _end(self, strand: Strand, result: Completion | Exception) -> None:
        self._forget(strand)
        self._settle(strand.flight, result)

    def _forget(self, strand: Strand) -> None:
        del self._strands[strand.flight]
        self._residents.left(strand.trace)

    # What `LocalEngine` asks.

    def _progress(self, flight: Flight) -> int:
        return len(self._strands[flight].sampled)

    def _interrupt(self, flight: Flight) -> Completion:
        strand = self._strands[flight]
        self._forget(strand)
        return self._whole(strand, EngineStop.ABORT)

    def _load(self, source: Any, version: int) -> None:
        copy_weights(self._model, self._shapes, source, version)
        for trace in list(self._residents.traces):
            self._drop(trace)

    def _release(self) -> None:
        if self._server is not None:
            self._server.cancel()
        self._strands.clear()


def _too_large(key: StrandKey, capacity: int) -> EngineError:
    return EngineError(
        f"{key}: its trace alone needs more than the {capacity} tokens that the cache holds: raise engine.kv_cache_mib, or "
        "lower limits.context or limits.threads"
    )


def _keys(model: Any, cache_bytes: int) -> Keys:
    """The cache of a model, which its attention modules are told of. Raises `CheckpointError` for attention of other kinds."""
    config = model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or ["full_attention"])}
    if kinds != {"full_attention"}:
        raise CheckpointError(
            f"this model has layers of {', '.join(sorted(kinds))}, and engine.kind=shared serves full attention only: take "
            "engine.kind=vllm with a protocol of chains"
        )
    modules = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "k_proj")]
    if len(modules) != config.num_hidden_layers or getattr(config, "attn_logit_softcapping", None):
        raise CheckpointError(
            f"engine.kind=shared does not know the attention of {type(model).__name__}: it serves models like Llama, Qwen and "
            "Gemma"
        )
    weight = modules[0].k_proj.weight
    heads = config.num_key_value_heads
    size = weight.shape[0] // heads
    per_token = 2 * len(modules) * heads * size * weight.element_size()
    keys = Keys(len(modules), heads, size, max(1, cache_bytes // per_token), weight)
    for module in modules:
        module.apr_keys = keys
    return keys
