"""A small torch engine whose results are batch invariant, bit for bit: for tests, and for runs that must be exact.

Each request is decoded alone, with its own cache of keys and values, on the same shapes whatever else is in flight.
Requests take turns token by token in the caller's event loop. There is no prefix cache: `Completion.cached` is 0.
"""

from __future__ import annotations

import asyncio
import copy
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from apr.checkpoints.folder import ModelFolder
from apr.engines.local import Flight, LocalEngine
from apr.engines.refusals import not_finite
from apr.engines.weights import copy_weights
from apr.errors import EngineError
from apr.threads.engine import Completion, Request
from apr.threads.trace import EngineStop

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Sampled:
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cache: Any = None  # keys and values of all before the last token, under the weights of now; None: to be computed


class TinyEngine(LocalEngine):
    """Serves a copy of `model`, a transformers causal language model in float32, on its own device."""

    def __init__(self, model: PreTrainedModel, *, max_context: int, version: int = 0) -> None:
        super().__init__(max_context, version)
        self._model: Any = copy.deepcopy(model).eval().requires_grad_(False)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._model.named_parameters()}
        self._vocabulary = int(model.config.vocab_size)
        self._sampled: dict[Flight, _Sampled] = {}
        self._tasks: dict[Flight, asyncio.Task[None]] = {}

    @classmethod
    def from_folder(cls, folder: ModelFolder, *, max_context: int, version: int = 0) -> TinyEngine:
        """Serve the model in a folder in Hugging Face format. Raises `CheckpointError` if it cannot be read."""
        return cls(folder.load(), max_context=max_context, version=version)

    def _begin(self, flight: Flight) -> None:
        self._sampled[flight] = _Sampled()
        self._tasks[flight] = asyncio.get_running_loop().create_task(self._decode(flight))

    async def _decode(self, flight: Flight) -> None:
        request, sampled = flight.request, self._sampled[flight]
        most = min(request.max_tokens, self.max_context - len(request.ids))
        generator = torch.Generator().manual_seed(request.seed)
        stop = EngineStop.LENGTH
        try:
            while len(sampled.ids) < most:
                await self._turn()
                started = time.perf_counter()
                ids = (*request.ids, *sampled.ids) if sampled.cache is None else (sampled.ids[-1],)
                logits, sampled.cache = self._forward(ids, sampled.cache)
                token, logprob = _sample(logits, request, generator)
                self._counters["busy_seconds"] += time.perf_counter() - started
                sampled.ids.append(token)
                sampled.logprobs.append(logprob)
                if token in request.stop_ids:
                    stop = EngineStop.STOP
                    break
                if flight.enough <= len(sampled.ids) < most:
                    stop = EngineStop.ABORT
                    break
        except EngineError as error:
            self._forget(flight)
            self._settle(flight, error)
            return
        except RuntimeError as error:  # what torch raises: out of memory, and the like
            self._lose(error)
            return
        self._forget(flight)
        self._settle(flight, self._completion(flight, tuple(sampled.ids), tuple(sampled.logprobs), stop))

    @torch.no_grad()
    def _forward(self, ids: tuple[int, ...], cache: Any) -> tuple[torch.Tensor, Any]:
        """Logits [vocabulary] after the last of `ids`, and the cache grown by them."""
        inputs = torch.tensor([ids], device=self._model.device)
        output = self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1].float().cpu(), output.past_key_values

    def _progress(self, flight: Flight) -> int:
        return len(self._sampled[flight].ids)

    def _interrupt(self, flight: Flight) -> Completion:
        sampled = self._sampled[flight]
        self._tasks[flight].cancel()
        self._forget(flight)
        return self._completion(flight, tuple(sampled.ids), tuple(sampled.logprobs))

    def _forget(self, flight: Flight) -> None:
        del self._sampled[flight], self._tasks[flight]

    def _load(self, source: Any, version: int) -> None:
        copy_weights(self._model, self._shapes, source, version)
        for sampled in self._sampled.values():
            sampled.cache = None

    def _release(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._sampled.clear()


def _sample(logits: torch.Tensor, request: Request, generator: torch.Generator) -> tuple[int, float]:
    """A token and its logprob at the request's temperature; the most likely one and its logprob at 1 when greedy. Raises
    `EngineError` for logits that are not finite."""
    temperature = request.temperature
    logprobs = torch.log_softmax(logits / temperature if temperature > 0 else logits, dim=-1)
    if not logprobs.max().isfinite():  # one NaN or +inf among the logits makes all logprobs NaN
        raise not_finite(request.key)
    choice = torch.multinomial(logprobs.exp(), 1, generator=generator) if temperature > 0 else logits.argmax()
    token = int(choice)
    return token, float(logprobs[token])
