"""The project's own results on two cores: the report that docs/results.md speaks of.

    python benchmarks/study.py [ROW ...] [--out runs/study] [--publish] [--list]

A row is a model with its evaluations; without one, all are made. What is done is not done again, and an interrupted row
goes on where it was. Wall times, by stage, are kept in OUT/stages.json; the report, of all rows that are whole by then, is
OUT/report. `--publish` puts its summary, figures and data (attempts aside) into docs/results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRESET = "tiny_cpu"
SAMPLES = 8
ALONE = 200  # problems tried one at a time, for seconds
CHILDREN = (2, 4, 6, 8, 10)
TEMPERATURES = (0, 0.1, 0.5, 1)


@dataclass(frozen=True)
class Stage:
    """A command of `apr`, and the file that tells that it is done. `copied`: instead of a command, a folder to copy."""

    name: str
    product: Path
    arguments: tuple[str, ...] = ()
    copied: Path | None = None


@dataclass(frozen=True)
class Study:
    """The stages of each row, below `out`."""

    out: Path

    def data(self, name: str = "data", preset: str = PRESET) -> Stage:
        folder = self.out / name
        return Stage(name, folder / "README.md", ("data", "generate", "--config", preset, f"out={folder}"))

    def sft(self, solver: str) -> Stage:
        """The shipped checkpoint, which `apr sft --config tiny_cpu solver=...` makes."""
        source = ROOT / "checkpoints" / PRESET / solver
        return Stage(f"sft_{solver}", self.out / "sft" / solver / "model.safetensors", copied=source)

    def sft_conditioned(self) -> Stage:
        folder = self.out / "sft_conditioned"
        given = (f"data={self.out}/data_conditioned", "solver=spawn_join", f"out={folder}")
        return Stage("sft_conditioned", folder / "checkpoint" / "model.safetensors", ("sft", "--config", PRESET, *given))

    def rl(self, name: str, solver: str, *changes: str) -> Stage:
        folder = self.out / name
        own = (f"data={self.out}/data", f"checkpoint={self.out}/sft/{solver}", f"out={folder}", *changes)
        arguments = ("rl", "--config", PRESET, *own)
        if (folder / "checkpoints").is_dir():
            arguments = ("rl", "--resume", str(folder))
        return Stage(name, folder / "final" / "model.safetensors", arguments)

    def evaluation(self, name: str, checkpoint: str, protocol: str, *changes: str, data: str = "data") -> Stage:
        folder = self.out / "eval" / name
        own = (f"data={self.out}/{data}", f"checkpoint={self.out}/{checkpoint}", f"protocol={protocol}", f"out={folder}")
        return Stage(f"eval_{name}", folder / "summary.json", ("eval", "--config", PRESET, *own, *changes))

    def evaluations(self, name: str, checkpoint: str, protocol: str) -> Iterator[Stage]:
        """At each temperature, several samples at 1, and one problem at a time."""
        for temperature in TEMPERATURES:
            yield self.evaluation(f"{name}_T{temperature:g}", checkpoint, protocol, f"temperature={temperature}")
        sampled = ("temperature=1", f"samples={SAMPLES}", "problems=500")
        yield self.evaluation(f"{name}_sampled", checkpoint, protocol, *sampled)
        yield self.evaluation(f"{name}_alone", checkpoint, protocol, "in_flight=1", f"problems={ALONE}")

    def rows(self) -> dict[str, list[Stage]]:
        """Each with all that it needs; shared stages are made once."""
        base, serial, start = self.data(), self.sft("sos_plus"), self.sft("spawn_join")
        asked = [
            self.evaluation(
                f"conditioned_{n}", "sft_conditioned/checkpoint", "spawn_join", f"condition={{kind: children, value: {n}}}",
                data="data_conditioned",
            )
            for n in CHILDREN
        ]  # fmt: skip
        rows = {
            "spawn_join": [base, start, *self.evaluations("spawn_join", "sft/spawn_join", "spawn_join")],
            "rl": [base, start, self.rl("rl", "spawn_join"), *self.evaluations("rl", "rl/final", "spawn_join")],
            "sos_plus": [base, serial, *self.evaluations("sos_plus", "sft/sos_plus", "serial")],
            "children": [self.data("data_conditioned", "tiny_cpu_conditioned"), self.sft_conditioned(), *asked],
        }
        tuned = {  # equal RL of the serial model; budgets; a control that can learn nothing
            "rl_serial": ("sos_plus", "serial", "protocol=serial"),
            "rl_span": ("spawn_join", "spawn_join", "reward.budgets.span_sampled=100"),
            "rl_context": ("spawn_join", "spawn_join", "reward.budgets.context=64"),
            "rl_work": ("spawn_join", "spawn_join", "reward.budgets.work=250"),
            "rl_null": ("spawn_join", "spawn_join", "shuffle_advantages=true"),
        }
        for name, (solver, protocol, change) in tuned.items():
            greedy = self.evaluation(f"{name}_T0", f"{name}/final", protocol)
            rows[name] = [base, self.sft(solver), self.rl(name, solver, change), greedy]
        return rows


def make(stages: list[Stage], out: Path) -> None:
    """Run what is not done. A stage that fails ends the program with its status."""
    for stage in stages:
        if stage.product.is_file():
            continue
        print(f"{stage.name}: apr {' '.join(stage.arguments)}" if stage.arguments else stage.name, flush=True)
        started = time.monotonic()
        if stage.copied:
            shutil.copytree(stage.copied, stage.product.parent)
        elif status := subprocess.run([sys.executable, "-m", "apr.cli", *stage.arguments], cwd=ROOT).returncode:
            sys.exit(status)
        path = out / "stages.json"
        seconds = json.loads(path.read_text()) if path.is_file() else {}
        seconds[stage.name] = seconds.get(stage.name, 0.0) + time.monotonic() - started
        path.write_text(json.dumps(seconds, indent=1))


def _order(name: str) -> tuple[int, str]:
    """Serial first, then spawned, then what RL made of either: each is compared with the one before it."""
    first = ("eval_sos_plus", "eval_rl_serial", "eval_spawn_join", "eval_rl", "eval_")
    return next((place for place, start in enumerate(first) if name.startswith(start)), len(first)), name


def report(study: Study, rows: dict[str, list[Stage]], publish: bool) -> None:
    """Of all that is whole."""
    whole = {
        stage.name: stage.product.parent if stage.name.startswith("eval_") else study.out / stage.name
        for stages in rows.values()
        for stage in stages
        if stage.name.startswith(("eval_", "rl")) and stage.product.is_file()
    }
    runs = [str(whole[name]) for name in sorted(whole, key=_order)]
    target = study.out / "report"
    given = [*runs, "--out", str(target), "--title", "Results on two cores"]
    command = [sys.executable, "-m", "apr.cli", "report", *given]
    if status := subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(status)
    if publish:
        published = ROOT / "docs" / "results"
        shutil.rmtree(published, ignore_errors=True)
        shutil.copytree(target, published, ignore=shutil.ignore_patterns("report.html", "attempts.csv.gz"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--publish", action="store_true", help="write docs/results anew")
    parser.add_argument("--list", action="store_true", help="name the rows, and what of them is done")
    given = parser.parse_args()
    study = Study(given.out)
    rows = study.rows()
    if unknown := [name for name in given.rows if name not in rows]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(rows)}")
    if given.list:
        for name, stages in rows.items():
            print(f"{name:12} {sum(stage.product.is_file() for stage in stages)} of {len(stages)} stages done")
        return
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.rows or rows:
        make(rows[name], given.out)
    report(study, rows, given.publish)


if __name__ == "__main__":
    main()
