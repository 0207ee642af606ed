"""What a completions server may answer, checked before anything relies on it.

A server is another program, perhaps someone else's: whatever it says is data. Each token is an id of the model with a
logprob, in the order sampled; a completion ends once, with a stop token or with as many tokens as were asked for.

Example:
    stream = Stream(stop_ids=(2,), most=40, vocabulary=230)
    stream.take(b'{"choices": [{"token_ids": [7], "logprobs": {"token_logprobs": [-0.1]}}]}')  # 1, the tokens it brought
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any

from apr.threads.trace import EngineStop

ROUNDING = 1e-3  # by which a logprob may exceed 0
_REASONS = ("stop", "length")


class MalformedError(Exception):
    """An answer that no server of this protocol gives."""


class Stream:
    """What one streamed completion has brought so far. `stop` is None until it has said why it ended.

    `stop_ids`: what ends it. `most`: tokens asked for. `vocabulary`: ids below it are tokens.
    """

    def __init__(self, stop_ids: Collection[int], most: int, vocabulary: int) -> None:
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.cached = 0
        self.stop: EngineStop | None = None
        self._stop_ids = stop_ids
        self._most = most
        self._vocabulary = vocabulary

    @property
    def reached(self) -> EngineStop:
        """How the completion ends if nothing follows, by its tokens alone; `ABORT` if some would have."""
        if self.ids and self.ids[-1] in self._stop_ids:
            return EngineStop.STOP
        return EngineStop.ABORT if len(self.ids) < self._most else EngineStop.LENGTH

    def take(self, data: bytes) -> int:
        """Add what one event says, and return how many tokens it brought. Raises `MalformedError` for an event that reports
        a failure, or that cannot follow those before."""
        event = parsed(data)
        if "error" in event:
            raise MalformedError(str(event["error"])[:300])
        before = len(self.ids)
        for choice in typed(event.get("choices"), list, "choices"):
            self._choice(typed(choice, dict, "a choice"))
        usage = typed(event.get("usage") or {}, dict, "usage")
        details = typed(usage.get("prompt_tokens_details") or {}, dict, "prompt_tokens_details")
        if (cached := details.get("cached_tokens")) is not None:
            self.cached = _count(cached, "cached_tokens")
        return len(self.ids) - before

    def _choice(self, choice: dict[str, Any]) -> None:
        if (index := choice.get("index", 0)) != 0:
            raise MalformedError(f"it sent choice {index!r:.20}, and one completion was asked for")
        ids, logprobs = tokens(choice, self._vocabulary)
        if ids and self.stop is not None:
            raise MalformedError("it sent tokens after the end of the completion")
        for token, logprob in zip(ids, logprobs):
            if len(self.ids) == self._most:
                raise MalformedError(f"it sent more than the {self._most} tokens asked for")
            if self.ids and self.ids[-1] in self._stop_ids:
                raise MalformedError(f"it sent tokens after the stop token {self.ids[-1]}")
            self.ids.append(token)
            self.logprobs.append(logprob)
        if (why := choice.get("finish_reason")) is not None:
            self._end(why)

    def _end(self, why: Any) -> None:
        """Note why the completion ended. A stop token at the last place ends it, whatever the server calls that."""
        if self.stop is not None:
            raise MalformedError("it ended the completion twice")
        if not isinstance(why, str) or why not in _REASONS:
            raise MalformedError(f"it ended the completion for a reason unknown here ({why!r:.40})")
        if why == "stop" and self.reached is not EngineStop.STOP:
            raise MalformedError("it reports a stop token, and the last token is none")
        if self.reached is EngineStop.ABORT:
            raise MalformedError(
                f"it ended the completion after {len(self.ids)} of {self._most} tokens, for its length"
            )
        self.stop = self.reached


def parsed(data: bytes | str) -> dict[str, Any]:
    """The JSON object in `data`. Raises `MalformedError` for anything else."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"it sent no JSON ({type(error).__name__}): {data[:80]!r}") from error
    return dict(typed(content, dict, "the answer"))


def tokens(choice: dict[str, Any], vocabulary: int) -> tuple[list[int], list[float]]:
    """The ids of a choice and their logprobs. Raises `MalformedError` unless each is an id with the logprob of a token.

    A logprob of null or NaN is NaN: what a server makes of logits that are not finite.
    """
    ids = typed(choice.get("token_ids"), list, "token_ids")
    logprobs: list[Any] = []
    if ids or choice.get("logprobs") is not None:
        logprobs = typed(typed(choice.get("logprobs"), dict, "logprobs").get("token_logprobs"), list, "token_logprobs")
    if len(ids) != len(logprobs):
        raise MalformedError(f"{len(ids)} tokens came with {len(logprobs)} logprobs")
    for token in ids:
        if type(token) is not int or not 0 <= token < vocabulary:
            raise MalformedError(f"it sent {token!r:.40} as a token, which is no id of the model ({vocabulary} ids)")
    return ids, [_logprob(one) for one in logprobs]


def typed(value: Any, kind: type, name: str) -> Any:
    """`value`. Raises `MalformedError` unless it is of type `kind`."""
    if type(value) is not kind:
        raise MalformedError(f"{name} is not of type {kind.__name__}: {value!r:.80}")
    return value


def _logprob(value: Any) -> float:
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        raise MalformedError(f"it sent {value!r:.40} as a logprob, which is no number")
    if value > ROUNDING:
        raise MalformedError(f"it sent {value!r:.40} as a logprob, which is above 0")
    return float(value)


def _count(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise MalformedError(f"{name} is {value!r:.40}, which is no count")
    return value
