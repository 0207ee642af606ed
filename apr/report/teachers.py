"""Solvers beside their students: the success of the one that wrote the demonstrations, on the same problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr.config import DataConfig
from apr.data.generate import teacher_of
from apr.data.store import data_env, problems_hash
from apr.data.teach import demonstrations_of
from apr.errors import DataError
from apr.evaluation.folder import Evaluation
from apr.presets import load_recorded
from apr.runs import CONFIG
from apr.spellers import speller_in
from apr.user_code import may_import
from envs.base import Env


@dataclass(frozen=True)
class Teacher:
    """A solver's own success on its student's problems, within the same context window."""

    name: str
    solved: int
    n: int


class Teachers:
    """Runs each solver once on each set of problems, with the options and the seed of its demonstrations.

    Options are in `data`, or where the evaluation's problems came from. What is not there, or is other data by now, is left
    out, unless `data` was asked for: `DataError` then.
    """

    def __init__(self, data: Path | None, env: str | None = None) -> None:
        self.data = data
        self.env = env
        self._known: dict[tuple[Any, ...], Teacher] = {}
        self._hashes: dict[tuple[Path, str], str] = {}
        self.missing: list[str] = []  # sentences that say whose success is left out, and why
        if data is not None and not (data / CONFIG).is_file():
            raise DataError(f"{data} holds no data set ({CONFIG} is missing): set --data to one, or leave it out")

    def of(self, one: Evaluation, label: str) -> Teacher | None:
        """The teacher of the evaluated model."""
        solver = one.card.solver
        folder = self.data or one.config.data
        if solver is None:
            return None
        if not (folder / CONFIG).is_file():
            self._miss(f"no data set is at {folder} from here: give its place with --data")
            return None
        config = load_recorded(DataConfig, folder / CONFIG)
        if solver not in config.solvers:
            if self.data is None:
                return None
            raise DataError(
                f"{folder / CONFIG} has no solver {solver}, which taught {label} (only {', '.join(config.solvers)}): set "
                "--data to the data that it was trained on, or leave it out"
            )
        if self.data is None and self._hash(folder, one.config.split) != one.facts["data_hash"]:
            self._miss(f"{folder} holds other problems by now")
            return None
        if not may_import(self.env or config.env.name):
            self._miss(f"{config.env.name} is a file, which is run only if you name it with --env")
            return None
        problems = [
            {name: value for name, value in problem.items() if name != "condition"} for problem in one.problems.values()
        ]
        window = one.config.limits.context
        key = (folder, solver, window, tuple(problem["id"] for problem in problems))
        if key not in self._known:
            self._known[key] = _run(data_env(folder, self.env), config, folder, solver, problems, window)
        return self._known[key]

    def _miss(self, why: str) -> None:
        notice = f"A solver's own success is not shown beside its student's: {why}."
        if notice not in self.missing:
            self.missing.append(notice)

    def _hash(self, folder: Path, split: str) -> str:
        if (folder, split) not in self._hashes:
            self._hashes[folder, split] = problems_hash(folder, split)
        return self._hashes[folder, split]


def _run(
    env: Env, config: DataConfig, folder: Path, solver: str, problems: Sequence[dict[str, Any]], window: int
) -> Teacher:
    teacher = teacher_of(config, solver, env, speller_in(folder, str(config.speller)))
    table = demonstrations_of(problems, teacher)
    rows = zip(table["solved"].to_pylist(), table["context"].to_pylist())
    solved = sum(right and context <= window for right, context in rows)
    return Teacher(solver, solved, len(problems))
