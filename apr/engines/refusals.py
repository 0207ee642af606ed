"""What every engine refuses, in the same words."""

from __future__ import annotations

from collections.abc import Container

from apr.errors import EngineError
from apr.threads.trace import StrandKey


def refuse_second(key: StrandKey, in_flight: Container[StrandKey]) -> None:
    """Raise `EngineError` if a request under `key` is on its way: its completion could be taken for the other's."""
    if key in in_flight:
        raise EngineError(f"{key} is in flight already; a key names one request at a time")


def not_finite(key: StrandKey) -> EngineError:
    """What a request fails with whose logits were NaN or infinite. Not retried: the same weights would say the same."""
    return EngineError(
        f"{key}: the model's logits are not finite, so what it sampled means nothing. Its weights, or the keys and values in "
        "its cache, have become NaN or infinite: go on from an earlier checkpoint, at a lower learning rate"
    )
