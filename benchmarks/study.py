"""The study that docs/results.md tells of: does it learn, is it the spawning, and do budgets steer?

    python benchmarks/study.py [ROW ...] [--out runs/study] [--jobs 2] [--publish] [--list]

A row is a model with its evaluations; without one, all are made but those of the paper's setting (`paper_...`), whose SFT
needs a GPU: `paper_..._sft` makes it alone, and its folder can go to another machine for the rest. What is done is not done
again, and an interrupted row goes on where it was. So small a model gains little from a second thread: `--jobs` stages
run at once, on one thread each; what is timed runs alone, at the end. OUT holds a log and the facts (command, commit,
date, hardware, seconds) of each stage, and the report of all that is whole.

`--publish` puts the attempts of each evaluation made and the facts of its row into docs/results, beside what is there of
other rows, and writes the tables of docs/results.md anew (`benchmarks/findings.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from findings import CHILDREN, FACTS, PUBLISHED, SEEDS, publish_attempts, write_page

from apr.errors import AprError
from apr.runs import MANIFEST, locked

ROOT = Path(__file__).parents[1]
FREE = "learner.kl_weight=0"
LOOSE = "learner.kl_weight=0.02"
SCALED = "divide_by_deviation=true"
LONGER = ("learner.lr=1.0e-3", "learner.lr_schedule=linear")
EAGER = (FREE, *LONGER)
ALONE = 300  # problems tried one at a time, for seconds
DONE = {
    "data": "manifest.json",
    "sft": "checkpoint/model.safetensors",
    "rl": "final/model.safetensors",
    "eval": "summary.json",
}


@dataclass(frozen=True)
class Stage:
    """A call of `apr COMMAND`, whose product is the folder of its name. `timed`: to be run alone."""

    name: str
    command: str
    arguments: tuple[str, ...]
    timed: bool = False


@dataclass(frozen=True)
class Study:
    """The stages of each row, in folders below `out`, on `threads` each."""

    out: Path
    threads: int

    def done(self, stage: Stage) -> bool:
        return (self.out / stage.name / DONE[stage.command]).is_file()

    def data(self, name: str = "data", preset: str = "study") -> Stage:
        return Stage(name, "data", ("generate", "--config", preset, f"out={self.out / name}"))

    def sft(self, solver: str, seed: int = 0, *changes: str, data: str = "data", name: str = "") -> Stage:
        name = name or f"sft_{solver}{SEEDS[seed]}"
        own = (f"data={self.out / data}", f"solver={solver}", f"out={self.out / name}")
        return Stage(name, "sft", ("--config", "study", *own, *_seed(seed), f"threads={self.threads}", *changes))

    def rl(self, name: str, start: Stage, *changes: str, data: str = "data") -> Stage:
        own = (f"data={self.out / data}", f"checkpoint={self.out / start.name}/checkpoint", f"out={self.out / name}")
        threads = (f"engine.threads={self.threads}", f"learner.threads={self.threads}")
        return Stage(name, "rl", ("--config", "study", *own, *threads, *changes))

    def evaluation(
        self, name: str, checkpoint: str, protocol: str, *changes: str, data: str = "data", preset: str = "study",
        alone: bool = False,
    ) -> Stage:  # fmt: skip
        folder = f"eval/{name}"
        own = (f"data={self.out / data}", f"checkpoint={self.out / checkpoint}", f"protocol={protocol}")
        threads = () if alone else (f"engine.threads={self.threads}",)
        return Stage(
            folder, "eval", ("--config", preset, *own, f"out={self.out / folder}", *threads, *changes), timed=alone
        )

    def main(self, seed: int) -> Iterator[tuple[str, list[Stage]]]:
        """SFT on either teacher's demonstrations, and equal RL from there: greedily and at T=1; and whether SFT had
        levelled off."""
        for solver, protocol in (("spawn_join", "spawn_join"), ("serial", "serial")):
            sft = self.sft(solver, seed)
            tried = self.both(sft.name, f"{sft.name}/checkpoint", protocol)
            yield sft.name, [self.data(), sft, *tried, *self.levels(sft, protocol)]
            name = f"rl_{solver}{SEEDS[seed]}"
            rl = self.rl(name, sft, f"protocol={protocol}", *_seed(seed))
            yield name, [self.data(), sft, rl, *self.both(name, f"{name}/final", protocol)]

    def both(self, name: str, checkpoint: str, protocol: str, *changes: str, data: str = "data") -> list[Stage]:
        return [
            self.evaluation(f"{name}_T{t}", checkpoint, protocol, f"temperature={t}", *changes, data=data)
            for t in (0, 1)
        ]

    def levels(self, sft: Stage, protocol: str, *changes: str, data: str = "data") -> list[Stage]:
        """Validation after four fifths of SFT, and at its end."""
        own = ("split=validation", "problems=1200", *changes)
        return [
            self.evaluation(f"{sft.name}_{share}", f"{sft.name}/{place}", protocol, *own, data=data)
            for share, place in (("80", "snapshots/0.8"), ("100", "checkpoint"))
        ]

    def nested(self) -> Iterator[tuple[str, list[Stage]]]:
        """One level of spawns and two, by teachers of equal work. Attempts are three times as dear as elsewhere:
        RL has fewer of them."""
        data = self.data("data_nested", "study_nested")
        limits, sized = "limits={context: 300, threads: 64, depth: 2}", ("problems_per_step=12", "steps=80")
        for solver in ("one_level", "two_levels"):
            sft = self.sft(solver, 0, "model.window=300", data=data.name)
            rl = self.rl(f"rl_{solver}", sft, limits, *sized, data=data.name)
            fewer = (limits, "problems=2000")
            tried = [
                *self.both(sft.name, f"{sft.name}/checkpoint", "spawn_join", *fewer, data=data.name),
                *self.both(rl.name, f"{rl.name}/final", "spawn_join", *fewer, data=data.name),
            ]
            yield rl.name, [data, sft, rl, *tried, *self.levels(sft, "spawn_join", limits, data=data.name)]

    def paper(self) -> Iterator[tuple[str, list[Stage]]]:
        """The published setting, as far as minutes of a GPU go: the paper's two teachers, and the serial one that is
        spawn_join's equal. SFT can be made by itself, where there is a GPU."""
        data = self.data("paper_data", "paper_small")
        place = f"data={self.out / data.name}"
        for solver, protocol in (("sos_plus", "serial"), ("spawn_join", "spawn_join"), ("unfolded", "serial")):
            name = f"paper_{solver}"
            sft = Stage(name, "sft", ("--config", "paper_small", place, f"solver={solver}", f"out={self.out / name}"))
            yield f"{name}_sft", [data, sft]
            # Fewer problems where a core decodes for seconds each: one long thread, or greedily children without end.
            dear = {"sos_plus": (), "spawn_join": (0,), "unfolded": (0, 1)}[solver]
            tried = []
            for t in (1, 0):
                changes = (f"temperature={t}", *(("problems=100",) if t in dear else ()))
                tried.append(self.evaluation(
                    f"{name}_T{t}", f"{name}/checkpoint", protocol, *changes, data=data.name, preset="paper_small"
                ))  # fmt: skip
            yield name, [data, sft, *tried]

    def rows(self) -> dict[str, list[Stage]]:
        """Each with all that it needs; shared stages are made once."""
        main = [dict(self.main(seed)) for seed in SEEDS]
        rows = main[0]
        start = self.sft("spawn_join")
        steered = {  # budgets; and a control that can learn nothing
            "rl_span": ("reward.soft_span={budget: 60, weight: 0.25}",),
            "rl_context": ("reward.budgets.context=64", "reward.soft_context={budget: 48, weight: 0.2}"),
            "rl_work": ("reward.soft_work={budget: 150, weight: 0.25}",),
            "rl_null": ("shuffle_advantages=true",),
            # Not held to the SFT model; then with longer steps, which shrink to nothing; and with these, loosely held.
            "rl_free_span": (FREE, "reward.soft_span={budget: 60, weight: 0.5}"),
            "rl_free_context": (FREE, "reward.budgets.context=64", "reward.soft_context={budget: 48, weight: 0.2}"),
            "rl_eager": EAGER,
            "rl_eager_span": (*EAGER, "reward.soft_span={budget: 60, weight: 0.3}"),
            "rl_eager_context": (*EAGER, "reward.budgets.context=54", "reward.soft_context={budget: 44, weight: 0.2}"),
            "rl_loose": (LOOSE, *LONGER),
            "rl_loose_span": (LOOSE, *LONGER, "reward.soft_span={budget: 60, weight: 0.4}"),
            # Advantages divided by their group's deviation: where all succeed, all that counts is the price; else, success.
            "rl_scaled_span": (SCALED, "reward.soft_span={budget: 60, weight: 0.2}"),
            "rl_scaled_loose_span": (SCALED, LOOSE, *LONGER, "reward.soft_span={budget: 60, weight: 0.2}"),
        }
        for name, changes in steered.items():
            evaluations = self.both(name, f"{name}/final", "spawn_join")
            rows[name] = [self.data(), start, self.rl(name, start, *changes), *evaluations]
        weighed = ("rl_spawn_join", "rl_span", "rl_eager", "rl_eager_span", "rl_loose", "rl_loose_span")
        many = [  # enough to tell a loss of two points
            self.evaluation(f"{name}_10000", f"{name}/final", "spawn_join", "problems=10000") for name in weighed
        ]
        for solver, protocol in (("spawn_join", "spawn_join"), ("serial", "serial")):  # had SFT levelled off by then?
            half = self.sft(solver, 0, "tokens=8000000", "snapshots=[]", name=f"sft_{solver}_half")
            rows[half.name] = [self.data(), half, *self.both(half.name, f"{half.name}/checkpoint", protocol)]
        rows["span_10000"] = [*(stage for name in weighed for stage in rows[name]), *many]
        children = self.sft("children")
        asked = [
            self.evaluation(f"children_{n}", f"{children.name}/checkpoint", "spawn_join", condition)
            for n in CHILDREN
            for condition in [f"condition={{kind: children, value: {n}}}"]
        ]
        rows["children"] = [self.data(), children, *asked]
        rows |= dict(self.nested()) | dict(self.paper())
        for seed in main[1:]:
            rows |= seed
        models = {f"{stage}_{solver}": solver for solver in ("serial", "spawn_join") for stage in ("sft", "rl")}
        timed = [
            self.evaluation(f"{name}_{how}", f"{name}/{place}", solver, *changes, alone=True)
            for name, solver in models.items()
            for place in ["final" if name.startswith("rl") else "checkpoint"]
            for how, changes in (
                ("alone", ("in_flight=1", f"problems={ALONE}")),
                ("load", ("in_flight=256", "problems=2000")),
            )
        ]
        rows["prices"] = [*(stage for name in models for stage in rows[name][:3] if stage.command != "eval"), *timed]
        return rows


def _seed(seed: int) -> tuple[str, ...]:
    return (f"seed={seed}",) if seed else ()


class Runner:
    """Makes the stages of rows, several at a time: always the first that is not done and lacks nothing."""

    def __init__(self, study: Study, rows: list[list[Stage]]) -> None:
        self.study = study
        self.path = study.out / FACTS
        self.facts = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.changed = threading.Condition()
        self.running: set[str] = set()
        self.stopped = False
        self.needs: dict[Stage, list[Stage]] = {}  # in the order in which they are to be made
        for row in rows:
            for place, stage in enumerate(row):
                self.needs.setdefault(stage, [other for other in row[:place] if other.command != "eval"])

    def run(self, jobs: int) -> None:
        """All, and then what is timed, one by one. Raises `SystemExit` if a stage failed, `KeyboardInterrupt` if interrupted,
        once the others have ended; no further one begins."""
        for timed, workers in ((False, jobs), (True, 1)):
            with ThreadPoolExecutor(workers) as pool:
                try:
                    for one in [pool.submit(self.work, timed) for _ in range(workers)]:
                        one.result()
                except BaseException:
                    self.stop()
                    raise

    def work(self, timed: bool) -> None:
        while stage := self.next(timed):
            try:
                self.make(stage)
            except BaseException:
                self.stop()
                raise
            finally:
                with self.changed:
                    self.running.remove(stage.name)
                    self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def next(self, timed: bool) -> Stage | None:
        """The next to make, as soon as there is one; None if there will be none."""
        with self.changed:
            while not self.stopped:
                open_ = [one for one in self.needs if one.timed is timed and not self.study.done(one)]
                free = (
                    one for one in open_ if one.name not in self.running and all(map(self.study.done, self.needs[one]))
                )
                if not open_:
                    return None
                if stage := next(free, None):
                    self.running.add(stage.name)
                    return stage
                self.changed.wait()
        return None

    def make(self, stage: Stage) -> None:
        """Run one, its lines to a log and to the console."""
        log = self.study.out / "logs" / f"{stage.name.replace('/', '_')}.log"
        log.parent.mkdir(exist_ok=True)
        command = " ".join(("apr", stage.command, *stage.arguments))
        print(f"{stage.name}: {command}", flush=True)
        begun = stage.command == "rl" and (self.study.out / stage.name / "checkpoints").is_dir()
        arguments = ("--resume", str(self.study.out / stage.name)) if begun else stage.arguments
        started = time.monotonic()
        try:
            with log.open("a", buffering=1, encoding="utf-8") as kept, subprocess.Popen(
                [sys.executable, "-m", "apr.cli", stage.command, *arguments], cwd=ROOT, encoding="utf-8", errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            ) as process:  # fmt: skip
                assert process.stdout is not None
                for line in process.stdout:
                    kept.write(line)
                    if "|" in line:
                        print(f"{stage.name}: {line.rstrip()}", flush=True)
        finally:  # what was interrupted took its time as well
            with self.changed:
                seconds = self.facts.get(stage.name, {}).get("seconds", 0.0) + time.monotonic() - started
                made = {"command": command, "seconds": round(seconds, 1)}
                self.facts[stage.name] = made | made_with(self.study.out / stage.name)
                self.path.write_text(json.dumps(self.facts, indent=1), encoding="utf-8")
        if process.returncode:
            sys.exit(f"{stage.name} ended with status {process.returncode}: see {log}; the same command goes on")


def made_with(folder: Path) -> dict[str, str]:
    """What a run's manifest tells of its making; nothing if it never began."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: manifest[name] for name in ("commit", "hardware", "started") if name in manifest}


def unasked(rows: dict[str, list[Stage]]) -> list[str]:
    """Those that two cores can make."""
    return [name for name in rows if not name.startswith("paper_")]


def told(rows: dict[str, list[Stage]]) -> list[Stage]:
    """What the report is of: the first seed's greedy evaluations, also one at a time, and RL runs; not those on other
    problems, of half a training or of widths asked for, which would crowd its figures."""
    stages = {stage.name: stage for row in rows.values() for stage in row}
    return [
        stage
        for name, stage in stages.items()
        if not any(word in name for word in ("seed", "level", "half", "paper"))
        and (stage.command == "rl" or name.endswith(("_T0", "_alone")))
    ]


def report(study: Study, rows: dict[str, list[Stage]]) -> None:
    """Of all that is whole."""
    whole = sorted((stage.name for stage in told(rows) if study.done(stage)), key=_order)
    if not whole:
        return
    runs = [str(study.out / name) for name in whole]
    seconds = {
        name: one["seconds"] for name, one in json.loads((study.out / FACTS).read_text(encoding="utf-8")).items()
    }
    (study.out / "stages.json").write_text(
        json.dumps(seconds, indent=1), encoding="utf-8"
    )  # where a report looks for wall times
    command = ["report", *runs, "--out", str(study.out / "report"), "--title", "The study on two cores"]
    if status := subprocess.run([sys.executable, "-m", "apr.cli", *command], cwd=ROOT).returncode:
        sys.exit(status)


def _order(name: str) -> tuple[int, str]:
    """Serial first, then spawned, then what RL made of either: each is compared with the one before it."""
    first = ("eval/sft_serial", "eval/rl_serial", "eval/sft_spawn", "eval/rl_spawn", "eval/")
    return next((place for place, start in enumerate(first) if name.startswith(start)), len(first)), name


def publish(study: Study, rows: dict[str, list[Stage]]) -> None:
    """Attempts and facts of what is whole into docs/results, the report's summary with its figures beside them."""
    facts = json.loads((PUBLISHED / FACTS).read_text(encoding="utf-8")) if (PUBLISHED / FACTS).is_file() else {}
    known = json.loads((study.out / FACTS).read_text(encoding="utf-8"))
    for stage in {stage.name: stage for row in rows.values() for stage in row}.values():
        if study.done(stage) and stage.name in known and facts.get(stage.name) != known[stage.name]:
            facts[stage.name] = known[stage.name]
            if stage.command == "eval":
                publish_attempts(study.out / stage.name)
    PUBLISHED.mkdir(exist_ok=True)
    (PUBLISHED / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    write_page()
    if absent := [stage.name for stage in told(rows) if stage.name in facts and not study.done(stage)]:
        print(f"the published report stays: {study.out} lacks what it tells of {', '.join(absent)}")
        return
    for name in ("figures", "data", "summary.md"):
        source, target = study.out / "report" / name, PUBLISHED / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("attempts.csv.gz"))
        else:
            shutil.copy(source, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="rows made at once; default: one a core"
    )
    parser.add_argument("--publish", action="store_true", help="write what is whole into docs/results")
    parser.add_argument("--list", action="store_true", help="name the rows, and what of them is done")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: at least one")
    study = Study(given.out, threads=1 if given.jobs > 1 else len(os.sched_getaffinity(0)))
    rows = study.rows()
    if unknown := [name for name in given.rows if name not in rows]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(rows)}")
    if given.list:
        for name, stages in rows.items():
            print(f"{name:22} {sum(map(study.done, set(stages)))} of {len(set(stages))} stages done")
        return
    try:
        with locked(given.out):  # facts are written by one
            Runner(study, [rows[name] for name in given.rows or unasked(rows)]).run(given.jobs)
            report(study, rows)
            if given.publish:
                publish(study, rows)
    except AprError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")


if __name__ == "__main__":
    main()
