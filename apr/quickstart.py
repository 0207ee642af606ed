"""`apr quickstart`: problems, demonstrations, SFT and RL of a spawning and a serial student, evaluation, report, on two cores.

Each stage is one `apr` command in a process of its own, so that memory, threads and engines start clean, and a stage
that was interrupted goes on where it stopped when the quickstart is called again.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from apr.config import KINDS, QuickstartConfig
from apr.errors import CheckpointError, ConfigError
from apr.keys import meant
from apr.presets import available, load, preset
from apr.processes import started_by_this
from apr.runs import check_out, refuse_other, run_directory, whole_folder, write_text
from apr.user_code import NAMED

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints"
TEACHERS = {"spawn_join": "spawn_join", "sos_plus": "serial"}  # solver: protocol of its students
RL = {"spawn_join": "rl", "sos_plus": "rl_serial"}  # solver: stage and folder of its students' RL
STAGES = "stages.json"
REPORT = Path("report") / "report.html"  # within the run


@dataclass(frozen=True)
class Stage:
    """One command: `apr COMMAND ...`, skipped once it has succeeded, while what it made is there."""

    name: str
    product: Path
    arguments: list[str]


def quickstart(config: QuickstartConfig) -> int:
    """Run the stages that are still missing; returns the first failing stage's exit status, or 0.

    Raises `RunDirectoryError` if `config.out` holds stages of another configuration.
    """
    check_stages(config)
    with run_directory(config.out, config) as run:
        if config.start == "sft":
            _take_shipped(config.preset, run)
        seconds: dict[str, float] = (
            json.loads((run / STAGES).read_text(encoding="utf-8")) if (run / STAGES).is_file() else {}
        )
        stages = plan(config, run)
        for number, stage in enumerate(stages, 1):
            marker = run / "done" / stage.name
            if marker.is_file() and stage.product.exists():
                print(
                    f"[{number}/{len(stages)}] {stage.name}: done before ({seconds.get(stage.name, 0):.0f}s)",
                    flush=True,
                )
                continue
            print(f"[{number}/{len(stages)}] {stage.name}: apr {' '.join(stage.arguments)}", flush=True)
            started = time.monotonic()
            status = _run([sys.executable, "-m", "apr.cli", *stage.arguments])
            seconds[stage.name] = seconds.get(stage.name, 0.0) + time.monotonic() - started
            write_text(run / STAGES, json.dumps(seconds, indent=1))
            if status:
                print(
                    f"stage {stage.name} ended with status {status}; call the same command again to go on",
                    file=sys.stderr,
                )
                return status if status > 0 else 1
            write_text(marker, "")
        print(f"quickstart took {sum(seconds.values()) / 60:.1f} minutes; the report is {(run / REPORT).resolve()}")
    return 0


def check_stages(config: QuickstartConfig) -> None:
    """Raise `UserError` if a stage would refuse its configuration, or if `config.out` holds another quickstart.

    What earlier stages make, and later ones read, is not there yet and is not looked for.
    """
    check_out(config.out, config)
    if any((config.out / "done").glob("*")):
        refuse_other(config.out, config, ("out",))
    if config.preset not in (known := available("quickstart")):
        raise ConfigError(
            f"preset={config.preset} is none that all stages have{meant(config.preset, known)} There are: {', '.join(known)}"
        )
    if config.start == "sft":
        _shipped(config.preset)
    for stage in plan(config, config.out):
        name, *rest = stage.arguments
        if "--config" not in rest:
            continue
        overrides = rest[rest.index("--config") + 2 :]
        try:
            load(KINDS[name], [preset(name, config.preset)], overrides, NAMED)
        except ConfigError as error:
            raise ConfigError(f"stage {stage.name} (stages.{name}): {error}") from None


def plan(config: QuickstartConfig, run: Path) -> list[Stage]:
    """The stages in order."""

    def arguments(command: str, *own: str) -> list[str]:
        stage = command.split()[0]
        more: list[str] = config.stages.get(stage, [])  # type: ignore[call-overload]
        asked = {override.partition("=")[0].strip() for override in more}
        kept = [override for override in (*own, f"seed={config.seed}") if override.partition("=")[0] not in asked]
        return [*command.split(), "--config", config.preset, *kept, *more]

    def evaluation(name: str, protocol: str, checkpoint: Path, *own: str) -> Stage:
        places = (f"data={run}/data", f"checkpoint={checkpoint}", f"protocol={protocol}", f"out={run}/eval/{name}")
        return Stage(f"eval_{name}", run / "eval" / name / "summary.json", arguments("eval", *places, *own))

    stages = [Stage("data", run / "data" / "README.md", arguments("data generate", f"out={run}/data"))]
    for solver in TEACHERS:
        own = (f"data={run}/data", f"solver={solver}", f"out={run}/sft/{solver}")
        stages.append(Stage(f"sft_{solver}", run / "sft" / solver / "checkpoint", arguments("sft", *own)))
    for solver, protocol in TEACHERS.items():
        out, start = run / RL[solver], run / "sft" / solver / "checkpoint"
        places = (f"data={run}/data", f"checkpoint={start}", f"protocol={protocol}", f"out={out}")
        begun = (out / "checkpoints").is_dir()
        rl = ["rl", "--resume", str(out)] if begun else arguments("rl", *places, "cluster.address=local")
        stages.append(Stage(RL[solver], out / "final", rl))
    sampled = (f"problems={config.sampled_problems}", f"samples={config.samples}", "temperature=1.0")
    names = []
    for solver, protocol in reversed(TEACHERS.items()):  # serial first: it is what spawning is compared with
        for stage, checkpoint in (("sft", run / "sft" / solver / "checkpoint"), ("rl", run / RL[solver] / "final")):
            names.append(f"{solver}_{stage}")
            stages.append(evaluation(names[-1], protocol, checkpoint))
            if protocol == "serial":  # what votes cost and gain, after RL too
                names.append(f"{solver}_{stage}_sampled")
                stages.append(evaluation(names[-1], protocol, checkpoint, *sampled))
    folders = [str(run / "eval" / name) for name in names] + [str(run / folder) for folder in RL.values()]
    page = run / REPORT
    stages.append(Stage("report", page, ["report", *folders, "--out", str(page.parent)]))
    return stages


def _take_shipped(preset: str, run: Path) -> None:
    """Put the shipped SFT checkpoints where the SFT stages would have written them, and call those stages done."""
    for solver, source in _shipped(preset).items():
        target = run / "sft" / solver / "checkpoint"
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_folder(target) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
        write_text(run / "done" / f"sft_{solver}", "")


def _shipped(preset: str) -> dict[str, Path]:
    """The shipped checkpoint of each student. Raises `CheckpointError`."""
    places = {solver: SHIPPED / preset / solver for solver in TEACHERS}
    if not all(place.is_dir() for place in places.values()):
        raise CheckpointError(f"no shipped checkpoints for preset {preset!r} in {SHIPPED}: use start=data")
    return places


def _run(command: list[str]) -> int:
    """Run a stage; a signal to this process ends the stage in its own clean way first."""
    stage = subprocess.Popen(command, env=started_by_this())

    def forward(number: int, frame: object) -> None:
        stage.send_signal(number)

    # A terminal sends Ctrl-C to the stage as well; SIGTERM reaches only this process.
    old = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    }
    try:
        status = stage.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return status
