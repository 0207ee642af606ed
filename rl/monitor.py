"""Where metrics go: `metrics.jsonl` always, TensorBoard by default. A configured monitor must open; once a run has
started, a failing one is switched off with a warning and never stops the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apr.config import RlConfig
from apr.errors import ConfigError, ResourceError
from apr.runs import write_text
from apr.seeds import derive_seed
from rl.parts import Monitor


class JsonlMonitor:
    """One line a step. On resume, lines of steps that will be run again are dropped first."""

    def __init__(self, path: Path, resume_at: int) -> None:
        kept = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] < resume_at:
                        kept.append(line)
                except (json.JSONDecodeError, KeyError, TypeError):
                    break  # the line a kill cut short; its step runs again
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")

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


class WandbMonitor:
    """Weights & Biases (`pip install wandb`), if `wandb` names a project. WANDB_MODE=offline writes to the run alone."""

    def __init__(self, project: str, run: Path, config: dict[str, object]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(f"wandb={project} needs the package: pip install wandb, or leave wandb out") from error
        try:
            # One W&B run for a run directory: what a resumed run logs again is dropped there, by its step.
            self.run = wandb.init(project=project, id=run_id(run), dir=str(run), config=config, resume="allow")
        except (wandb.Error, OSError) as error:
            raise ResourceError(f"W&B does not answer ({error}): WANDB_MODE=offline, or leave wandb out") from error

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


def run_id(run: Path) -> str:
    """The same for each start of a run."""
    return f"{derive_seed(0, 'wandb', run.resolve()):x}"


def open_monitors(config: RlConfig, run: Path, start: int) -> Monitors:
    """All that `config` asks for, from step `start` on."""
    monitors: list[Monitor] = [JsonlMonitor(run / "metrics.jsonl", start)]
    if config.tensorboard:
        monitors.append(TensorBoardMonitor(run / "tensorboard", start))
    if config.wandb:
        monitors.append(WandbMonitor(config.wandb, run, config.model_dump(mode="json")))
    return Monitors(monitors)


class Monitors:
    """All monitors of a run, as one that never raises after the start."""

    def __init__(self, monitors: list[Monitor]) -> None:
        self.monitors = monitors

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for monitor in list(self.monitors):
            try:
                monitor.log(step, metrics)
            except Exception as error:  # noqa: BLE001 - whatever a service's client raises, it may not stop a run
                print(f"warning: {type(monitor).__name__} failed and is switched off: {error}", file=sys.stderr)
                self.monitors.remove(monitor)

    def close(self) -> None:
        for monitor in self.monitors:
            try:
                monitor.close()
            except Exception as error:  # noqa: BLE001 - as above
                print(f"warning: {type(monitor).__name__} failed to close: {error}", file=sys.stderr)
