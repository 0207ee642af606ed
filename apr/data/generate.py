"""`apr data generate`: problems by split, and demonstrations from each teacher, with a card that says what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apr.config import DataConfig, SolverConfig, dump, load
from apr.data.demonstrate import demonstrate
from apr.data.store import (
    demonstrations_file,
    problems_file,
    read_demonstrations,
    read_problems,
    write_demonstrations,
    write_problems,
)
from apr.errors import RunDirectoryError
from apr.progress import Progress
from apr.protocols import protocol_by_name
from apr.runs import file_hash, run_directory, write_text
from apr.threads.trace import Trace
from apr.tokens.compact import CompactDialect
from envs.countdown.env import Countdown

CONFIG = "config.yaml"


def generate(config: DataConfig) -> None:
    """Write what is missing of the data set in `config.out`; finished files are kept.

    Raises `DataError` if there are fewer problems than asked for (nothing is written then), `RunDirectoryError` if the
    folder holds other data or is in use.
    """
    _refuse_other_data(config)
    env = Countdown(config.problems, CompactDialect())
    counts = {"train": config.train, "validation": config.validation, "test": config.test}
    files = {split: problems_file(config.out, split) for split in counts}
    made = {split: env.problems(split, counts[split], config.seed) for split in counts if not files[split].is_file()}
    with run_directory(config.out, config) as out:
        for split, problems in made.items():
            write_problems(files[split], problems)
        card = out / "README.md"
        if not made and all(path.is_file() for path in (card, *(demonstrations_file(out, s) for s in config.solvers))):
            return
        problems = read_problems(files["train"])
        statistics = {}
        for name, solver in config.solvers.items():
            path = demonstrations_file(out, name)
            if path.is_file():
                traces = list(read_demonstrations(path))
            else:
                traces = demonstrations(problems, name, solver, config.seed, config.demonstrations_per_problem)
                write_demonstrations(path, traces)
            statistics[name] = _statistics(traces)
        write_text(card, _card(config, statistics))


def _refuse_other_data(config: DataConfig) -> None:
    path = config.out / CONFIG
    if not path.is_file() or not any(config.out.rglob("*.parquet")):
        return
    if load(DataConfig, [path]).model_copy(update={"out": config.out}) != config:
        raise RunDirectoryError(f"{config.out} holds data of another configuration ({path}): give another `out`")


def demonstrations(
    problems: list[dict[str, Any]], name: str, solver: SolverConfig, seed: int, per_problem: int = 1
) -> list[Trace]:
    """The teacher's traces, `per_problem` for each problem; beams are drawn anew for each."""
    dialect = CompactDialect()
    protocol = protocol_by_name(solver.protocol, dialect.vocabulary.control)
    traces = []
    with Progress(f"demonstrations {name}", len(problems) * per_problem) as progress:
        for problem in problems:
            for copy in range(per_problem):
                trace = demonstrate(problem, solver, dialect, protocol, seed, copy)
                if trace is not None:
                    traces.append(trace)
                progress.advance()
    return traces


def _statistics(traces: list[Trace]) -> dict[str, float]:
    costs = [trace.costs for trace in traces if trace.costs]
    return {
        "traces": len(traces),
        "solved": sum(trace.correct for trace in traces) / len(traces),
        "tokens": sum(cost.work for cost in costs),
        "work": sum(cost.work for cost in costs) / len(costs),
        "context": sum(cost.context for cost in costs) / len(costs),
        "context_max": max(cost.context for cost in costs),
        "threads": sum(cost.threads for cost in costs) / len(costs),
    }


def _card(config: DataConfig, statistics: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(statistics.values())))
    table = "\n".join(
        f"| {name} | " + " | ".join(f"{row[column]:,.2f}".rstrip("0").rstrip(".") for column in columns) + " |"
        for name, row in statistics.items()
    )
    hashes = {path.name: file_hash(path) for path in sorted(Path(config.out).rglob("*.parquet"))}
    return f"""# Countdown problems and demonstrations

Problems: {config.train} train, {config.validation} validation, {config.test} test. Splits share no number multiset
(each multiset belongs to the split that a hash of it and `split_seed` says).

| teacher | {" | ".join(columns)} |
|---{"|---" * len(columns)}|
{table}

`work`, `context` and `threads` are means per trace; the dialect is `compact`.

Content hashes: `{json.dumps(hashes)}`

```yaml
{dump(config)}```
"""
