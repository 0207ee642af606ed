"""What other systems of the family report of themselves, from our attempts, so that tables compare.

Definitions are in `apr.evaluation.metrics.METRICS`, sources beside them. Ratios are of totals over the attempts, except
#parallel and the acceleration ratio, which are means of the attempts' own, as their papers have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apr.evaluation.metrics import Attempt


@dataclass(frozen=True, slots=True)
class Systems:
    """One model by the measures of others. None where nothing was spawned, or no time was taken."""

    parallel: float  # Multiverse's #parallel, AsyncThink's concurrency
    acceleration: float  # ThreadWeaver
    dp: float  # ASPD, from here on
    abn: float | None
    ppd: float
    tps: float | None
    p_tps: float | None
    tokens_per_thread: float  # APR
    ms_per_span_token: float | None


def systems(attempts: Sequence[Attempt]) -> Systems:
    """The measures over all scored attempts. Raises `ValueError` if there are none."""
    scored = [one for one in attempts if not one.lost]
    if not scored:
        raise ValueError("no attempt can be scored: evaluate again")

    def total(cost: str) -> float:
        return sum(one.costs[cost] for one in scored)

    return Systems(
        parallel=total("parallelism_sampled") / len(scored),
        acceleration=total("acceleration") / len(scored),
        dp=total("parallel_tokens") / max(total("work_sampled"), 1.0),
        abn=_ratio(total("branches"), total("spawns")),
        ppd=sum(one.costs["spawns"] > 0 for one in scored) / len(scored),
        tps=_ratio(total("work_sampled"), total("seconds")),
        p_tps=_ratio(total("parallel_tokens"), total("parallel_seconds")),
        tokens_per_thread=total("work") / total("threads"),
        ms_per_span_token=_ratio(1000 * total("seconds"), total("span_sampled")) if total("seconds") else None,
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
