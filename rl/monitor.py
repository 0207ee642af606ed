"""Where metrics go: `metrics.jsonl` always, TensorBoard by default. A configured monitor must open; once a run has
started, a failing one is switched off with a warning and never stops the run."""

from __future__ import annotations

import json
import sys
import typing
from pathlib import Path

from apr.runs import write_text


class Monitor(typing.Protocol):
    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlMonitor:
    """One line a step. On resume, lines of steps that will be run again are dropped first."""

    def __init__(self, path: Path, resume_at: int) -> None:
        kept = []
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] < resume_at:
                        kept.append(line)
                except (json.JSONDecodeError, KeyError, TypeError):
                    break  # the line a kill cut short; its step runs again
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoardMonitor:
    def __init__(self, folder: Path, resume_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=resume_at)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Monitors:
    """All monitors of a run, as one that never raises after the start."""

    def __init__(self, monitors: list[Monitor]) -> None:
        self.monitors = monitors

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for monitor in list(self.monitors):
            try:
                monitor.log(step, metrics)
            except (OSError, ValueError, RuntimeError) as error:
                print(f"warning: {type(monitor).__name__} failed and is switched off: {error}", file=sys.stderr)
                self.monitors.remove(monitor)

    def close(self) -> None:
        for monitor in self.monitors:
            monitor.close()
