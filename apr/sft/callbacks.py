"""What SFT does beside training: a line of progress, and a save when it is asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from apr.progress import time_left


class Lines(TrainerCallback):  # type: ignore[misc]
    """Prints one line for each logging step: step, loss, learning rate, tokens per second, time left."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.began = self.before = time.monotonic()
        self.first, self.tokens = state.global_step, 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now, tokens = time.monotonic(), float(logs.get("num_tokens", 0.0))
        rate = (tokens - self.tokens) / max(now - self.before, 1e-9)
        step, steps = state.global_step, state.max_steps
        left = (now - self.began) / max(step - self.first, 1) * (steps - step)
        parts = [
            f"{self.name} step {step}/{steps}", f"loss {float(logs['loss']):.4f}", f"lr {float(logs['learning_rate']):.2e}",
            f"{rate:,.0f} tokens/s", f"{time_left(left)} left",
        ]  # fmt: skip
        print(" | ".join(parts), flush=True)
        self.before, self.tokens = now, tokens


class StopWhenAsked(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint and ends the training after the step in which `stopping()` came true."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self.stopping = stopping

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.stopping() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
