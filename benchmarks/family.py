"""One search in every grammar: students of teachers that differ in their protocol alone, and what RL makes of them.

    python benchmarks/family.py [STUDENT ...] [--rl] [--out runs/family] [--jobs 2] [--publish]

A student is called like its teacher: a protocol, or `waves`, whose parents spawn three children at a time. Each is tiny_cpu's
model, trained on as many tokens of its teacher's demonstrations, and evaluated on the same problems by the same engine
(`shared`, which serves all of them), greedily and at T=1; those of spawn_join also with `join=first`. `--rl` goes on with equal
RL from there, without budgets. What is done is not done again. `--publish` puts the attempts into docs/family and writes the
table of docs/family.md anew; a test between two students is the exact McNemar test on the problems that both tried.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from findings import compared, put_between, read_attempts, write_attempts
from study import Runner, Stage, Study

from apr.data.shards import shard_facts
from apr.data.store import DEMONSTRATIONS, demonstrations_paths, merged
from apr.errors import AprError
from apr.evaluation.metrics import interval
from apr.protocols import PROTOCOLS, SHARING
from apr.runs import locked

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- written by benchmarks/family.py -->\n"
PAGE, KEPT = ROOT / "docs" / "family.md", ROOT / "docs" / "family"
WINDOW = 600  # positions; no demonstration reaches farther
CONTEXT = 700  # tokens that a strand may see: more than any demonstration's
TOKENS = 6_000_000
STUDENTS = {**{name: name for name in PROTOCOLS}, "waves": "spawn_join"}  # the protocol of each
COSTS = ("work", "span_sampled", "context", "reach", "threads")
BEFORE = "spawn_join"  # whom the others are compared with


class Tried(NamedTuple):
    """One attempt."""

    correct: bool
    stop: str
    work: int
    span_sampled: int
    context: int
    reach: int
    threads: int


def stages(study: Study, student: str, with_rl: bool) -> list[Stage]:
    """All that a student needs."""
    protocol = STUDENTS[student]
    context = CONTEXT if protocol in SHARING else WINDOW  # a chain's tokens are its positions
    data = Stage("data", "data", ("generate", "--config", "family", f"out={study.out / 'data'}"))
    place = f"data={study.out / data.name}"
    sft = Stage(f"sft_{student}", "sft", (
        "--config", "tiny_cpu", place, f"solver={student}", f"model.window={WINDOW}", f"tokens={TOKENS}",
        f"out={study.out}/sft_{student}", f"threads={study.threads}",
    ))  # fmt: skip
    served = (
        f"protocol={protocol}", "engine.kind=shared", f"engine.threads={study.threads}",
        f"limits={{context: {context}, reach: {WINDOW}, threads: 16, depth: 1}}",
    )  # fmt: skip

    def tried(name: str, checkpoint: str) -> list[Stage]:
        ways = {"": (), "_first": ("join=first",)} if protocol == "spawn_join" else {"": ()}
        return [
            Stage(f"eval/{name}{way}_T{t}", "eval", (
                "--config", "tiny_cpu", place, f"checkpoint={study.out}/{checkpoint}", *served, *changes, f"temperature={t}",
                f"out={study.out}/eval/{name}{way}_T{t}",
            ))
            for way, changes in ways.items()
            for t in (0, 1)
        ]  # fmt: skip

    made = [data, sft, *tried(sft.name, f"{sft.name}/checkpoint")]
    if with_rl:
        name = f"rl_{student}"
        rl = Stage(name, "rl", (
            "--config", "tiny_cpu", place, f"checkpoint={study.out}/{sft.name}/checkpoint", *served,
            "reward.budgets.context=null", "reward.budgets.span_sampled=null", f"learner.row_tokens={CONTEXT}",
            "learner.tokens_per_pass=8192", f"learner.threads={study.threads}", f"out={study.out}/{name}",
        ))  # fmt: skip
        made += [rl, *tried(name, f"{name}/final")]
    return made


def publish(study: Study) -> None:
    """Attempts, facts and what the teachers' demonstrations cost, of all that is whole; then the page."""
    KEPT.mkdir(exist_ok=True)
    for folder in sorted((study.out / "eval").iterdir()):
        if (folder / "summary.json").is_file():
            write_attempts(folder, KEPT, Tried)
    shutil.copy(study.out / "facts.json", KEPT / "facts.json")
    teachers = {
        name: merged(
            [
                json.loads(shard_facts(path, DEMONSTRATIONS)["statistics"])
                for path in demonstrations_paths(study.out / "data", name)
            ]
        )
        for name in STUDENTS
    }
    (KEPT / "teachers.json").write_text(json.dumps(teachers, indent=1) + "\n", encoding="utf-8")
    write_page()


def attempts(name: str) -> dict[str, Tried] | None:
    return read_attempts(KEPT / f"{name}.csv.gz", Tried)


def table(stage: str, temperature: int) -> list[str]:
    """Students of one stage, each beside the one of `BEFORE`."""
    reference = attempts(f"{stage}_{BEFORE}_T{temperature}")
    lines = [
        "| student | correct | 95% | against spawn_join | malformed | work | span, sampled | context | reach | threads |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for student in [*STUDENTS, f"{BEFORE}_first", "waves_first"]:
        tried = attempts(f"{stage}_{student}_T{temperature}")
        if tried is None:
            continue
        right = sum(one.correct for one in tried.values())
        low, high = interval(right, len(tried))
        beside = "–"
        if reference is not None and student != BEFORE:
            test = compared(tried, reference)
            beside = f"{100 * test.gain:+.1f} points (p = {test.p_value:.1g})"
        bad = sum(one.stop == "malformed" for one in tried.values()) / len(tried)
        costs = (f"{statistics.fmean(getattr(one, cost) for one in tried.values()):.1f}" for cost in COSTS)
        cells = (
            f"`{student.removesuffix('_first')}`" + ", join=first" * student.endswith("_first"),
            f"{right / len(tried):.1%}",
            f"{low:.1%} to {high:.1%}",
            beside,
            f"{bad:.1%}",
            *costs,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def demonstrations() -> list[str]:
    """What one search costs in each grammar: means over the demonstrations."""
    lines = [
        "| teacher | solved | sampled | work | span, sampled | context | threads |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in json.loads((KEPT / "teachers.json").read_text(encoding="utf-8")).items():
        costs = ("work_sampled", "work", "span_sampled", "context", "threads")
        means = (f"{found[cost] / found['rows']:.1f}" for cost in costs)
        solved = f"{found['solved'] / found['rows']:.1%}"
        lines.append(f"| {' | '.join((f'`{name}`', solved, *means))} |")
    return lines


def write_page() -> None:
    """The tables, between the marks of the page."""
    written = ["**The demonstrations**", "", *demonstrations()]
    for stage, title in (("sft", "After SFT"), ("rl", "After equal RL")):
        for temperature, how in ((0, "greedily"), (1, "at T=1")):
            lines = table(stage, temperature)
            if len(lines) > 2:
                written += ["", f"**{title}, {how}**", "", *lines]
    put_between(PAGE, BEGIN, "\n".join(written))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", metavar="STUDENT", help=f"of {', '.join(STUDENTS)}; default: all")
    parser.add_argument("--rl", action="store_true", help="equal RL as well")
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="stages at once, on one thread each"
    )
    parser.add_argument("--publish", action="store_true", help="write what is whole into docs/family")
    given = parser.parse_args()
    if unknown := [name for name in given.students if name not in STUDENTS]:
        parser.error(f"no student {', '.join(unknown)}; there are {', '.join(STUDENTS)}")
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: at least one")
    study = Study(given.out, threads=1 if given.jobs > 1 else len(os.sched_getaffinity(0)))
    try:
        with locked(given.out):
            Runner(study, [stages(study, name, given.rl) for name in given.students or STUDENTS]).run(given.jobs)
            if given.publish:
                publish(study)
    except AprError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")


if __name__ == "__main__":
    main()
