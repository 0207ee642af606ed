"""Do our solvers, at the settings of the published code, do what the published ones do? (arXiv 2504.15466)

python benchmarks/teachers.py

Ours are measured on fresh problems of `configs/data/paper.yaml`; theirs were measured by running the reference code on
4,000 problems. `z` is the difference in standard errors of two samples of that size: within 3 is agreement.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import sqrt

import numpy as np

from apr.config import DataConfig
from apr.data.teach import demonstrations_of
from apr.presets import load, preset
from apr.protocols import protocol_by_name
from envs.base import Teacher, TeacherOptions
from envs.countdown.compact import CompactSpeller

COMPACT = CompactSpeller()
THEIRS = 4_000  # problems that the published solvers were run on


@dataclass(frozen=True)
class Published:
    """What the published solver does with the same settings."""

    solved: float
    children_per_spawn: float | None = None
    rows: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = load(DataConfig, [preset("data", "paper")])
    serial, spawning = config.solvers["sos_plus"], config.solvers["spawn_join"]
    wide = serial.model_copy(update={"beams": list(range(1, 16)), "child_beam_max": 15})
    env = config.env.build()
    problems = list(env.problems("train", arguments.problems, arguments.seed))
    print("| solver | solved | published | z | children a spawn | published | rows | published |\n" + "|---" * 8 + "|")
    for name, solver, published in (
        ("spawn/join", spawning, Published(0.710, 6.1, 8.4)),
        ("SoS+, beams to 5", serial, Published(0.511)),
        ("SoS+, beams to 15", wide, Published(0.752)),
        ("spawn/join, no duplicates", _distinct(spawning), Published(0.710, 6.1, 8.4)),
        ("SoS+, beams to 5, no duplicates", _distinct(serial), Published(0.511)),
    ):
        print(
            row(
                name,
                problems,
                Teacher(env, solver, COMPACT, protocol_by_name(solver.protocol, COMPACT), arguments.seed),
                published,
            ),
            flush=True,
        )


def row(name: str, problems: list[dict[str, object]], teacher: Teacher, published: Published) -> str:
    """A line of the table: one solver's demonstrations beside the published ones."""
    table = demonstrations_of(problems, teacher)
    solved = float(np.mean(table["solved"].to_numpy()))
    strands = np.array([len(one) for one in table["strands"].to_pylist()])
    threads = table["threads"].to_numpy()
    spawns = (strands - threads).sum()  # each spawn splits a thread's strand in two
    p = published.solved
    z = (solved - p) / sqrt(p * (1 - p) * (1 / len(strands) + 1 / THEIRS))
    cells = [name, f"{solved:.1%}", f"{p:.1%}", f"{z:+.1f}"]
    if spawns:
        cells += [f"{(threads - 1).sum() / spawns:.2f}", f"{published.children_per_spawn}"]
        cells += [f"{strands.mean():.2f}", f"{published.rows}"]
    else:
        cells += [""] * 4
    return "| " + " | ".join(cells) + " |"


def _distinct(solver: TeacherOptions) -> TeacherOptions:
    return solver.model_copy(update={"duplicates": False})


if __name__ == "__main__":
    main()
