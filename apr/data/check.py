"""`apr data verify`: every problem solvable, splits disjoint, every solution in every demonstration right."""

from __future__ import annotations

from pathlib import Path

from apr.data.store import demonstrations_file, problems_file, read_demonstrations, read_problems
from apr.errors import DataError
from envs.countdown.env import SPLITS
from envs.countdown.verify import verify


def check_folder(folder: Path) -> str:
    """One line of counts. Raises `DataError` that names the file, the row and the fault."""
    owner: dict[tuple[int, ...], str] = {}
    counts = []
    for split in SPLITS:
        problems = read_problems(problems_file(folder, split))
        counts.append(f"{len(problems)} {split}")
        for row, problem in enumerate(problems):
            numbers = tuple(problem["numbers"])
            if owner.setdefault(numbers, split) != split:
                where = problems_file(folder, split)
                raise DataError(
                    f"{where}, row {row}: numbers {numbers} are in the {owner[numbers]} split too; make it again"
                )
    lines = [f"{folder}: {', '.join(counts)} problems, no number multiset in two splits"]
    for path in sorted((folder / "demonstrations").glob("*.parquet")):
        traces = solved = 0
        for row, trace in enumerate(read_demonstrations(demonstrations_file(folder, path.stem))):
            verdict = verify(trace.problem["numbers"], trace.problem["target"], trace.answer)
            if trace.correct != verdict.ok:
                raise DataError(
                    f"{path}, row {row}: says correct={trace.correct}, but the verifier says: {verdict.reason}"
                )
            traces += 1
            solved += trace.correct
        lines.append(f"{path.stem}: {traces} demonstrations, {solved} solved, every solution verified")
    return "\n".join(lines)
