"""Rewards: success within budgets, each part logged by name.

`correct` is the verifier's verdict, `within` that every hard budget held, `success` both. Soft penalties subtract from
successful traces only, and together less than a success is worth: no cheap failure is ever preferred to a dearer
success, and none to another failure. Bonuses for parallel work add to successful traces only. A function of the user's own
(`reward.function`) takes the place of all this, and is logged beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from apr.config import RewardConfig
from apr.errors import ConfigError, JudgeError
from apr.threads.trace import Costs, Outcome, Trace
from apr.user_code import load
from envs.base import Verdict


def rewarded(trace: Trace, config: RewardConfig) -> Trace:
    """The trace with its reward parts and their `total`. Raises `ValueError` on a trace without verdict or costs."""
    if trace.outcome is None or trace.costs is None:
        raise ValueError("only a verified trace with costs can be rewarded")
    correct = float(trace.outcome.correct)
    within = float(config.budgets.within(trace.costs))
    success = correct * within
    parts = {"correct": correct, "within": within, "success": success}
    total = success
    for name, soft in (
        ("context", config.soft_context),
        ("span_sampled", config.soft_span),
        ("work", config.soft_work),
    ):
        if soft is not None:
            excess = max(0.0, getattr(trace.costs, name) / soft.budget - 1.0)
            parts[f"penalty_{name}"] = success * soft.weight * min(1.0, excess)
            total -= parts[f"penalty_{name}"]
    if config.function is not None:
        total = parts["function"] = _own(trace, trace.outcome, config.function)
    bonuses = {
        "acceleration": (config.acceleration, acceleration(trace.costs)),
        "concurrency": (config.concurrency, trace.costs.parallelism_sampled),
    }
    for name, (bonus, amount) in bonuses.items():
        if bonus is not None:
            parts[f"bonus_{name}"] = success * bonus.weight * min(1.0, amount / bonus.cap)
            total += parts[f"bonus_{name}"]
    return replace(trace, reward={**parts, "total": total}, budgets=config.budgets.model_dump(exclude_none=True))


def reward_function(name: str) -> Callable[[Trace, Verdict], float]:
    """The user's function. Raises `ConfigError` if it is not there, or cannot be called."""
    function: Callable[[Trace, Verdict], float] = load(name, "reward.function")
    if not callable(function):
        raise ConfigError(f"reward.function={name} is not a function of trace and verdict")
    return function


def _own(trace: Trace, outcome: Outcome, name: str) -> float:
    """What the user's function says of a trace. Raises `JudgeError` if it fails, or returns no finite number."""
    verdict = Verdict(
        outcome.correct, outcome.reason, float(outcome.correct) if outcome.score is None else outcome.score
    )
    function = reward_function(name)
    try:
        reward = float(function(trace, verdict))
    except Exception as error:  # noqa: BLE001 - the user's code: whatever it raises
        raise JudgeError(
            f"reward.function={name} failed on a trace of problem {trace.problem['id']!r}: {type(error).__name__}: {error}. "
            "Mend it; --resume goes on"
        ) from error
    if not math.isfinite(reward):
        raise JudgeError(
            f"reward.function={name} returned {reward} for problem {trace.problem['id']!r}: return a finite number"
        )
    return reward


def acceleration(costs: Costs) -> float:
    """1 - L_crit / L_tot of ThreadWeaver (arXiv 2512.07843), in sampled tokens: 0 for a serial trace."""
    return 1.0 - costs.span_sampled / costs.work_sampled if costs.work_sampled else 0.0
