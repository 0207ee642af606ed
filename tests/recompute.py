"""Works the numbers of a report out again, from the raw traces of its evaluations and from its CSV files, and compares.

    python tests/recompute.py REPORT EVALUATION [EVALUATION ...]

Nothing of the project is imported, and definitions are those of the documentation, worked out in another way where
there is one. Prints what disagrees; exits with 1 if anything does.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

Json = dict[str, Any]
CHECKED = (
    "context", "work", "work_sampled", "span", "span_sampled", "parallelism", "parallelism_sampled", "acceleration",
    "threads", "depth", "spawns", "branches", "parallel_tokens", "prefilled", "seconds", "parallel_seconds",
)  # fmt: skip


def costs_of(trace: Json) -> dict[str, float]:
    """From the strands alone; every cost of `CHECKED`."""
    strands = {tuple(one["id"]): one for one in trace["strands"]}
    injected = {key: sum(len(ids) for _, ids in one["injected"]) for key, one in strands.items()}
    new = {
        key: sum(len(ids) for origin, ids in one["injected"] if origin != "copy") + len(one["sampled"])
        for key, one in strands.items()
    }

    @cache
    def chain(key: tuple[str, int], sampled: bool) -> int:
        own = len(strands[key]["sampled"]) if sampled else new[key]
        return own + max((chain(tuple(before), sampled) for before in strands[key]["after"]), default=0)

    def seen(key: tuple[str, int]) -> set[tuple[tuple[str, int], int]]:
        tokens = set()
        for other, length in strands[key]["sees"]:
            tokens |= seen(tuple(other)) | {(tuple(other), i) for i in range(length)}
        return tokens

    before = {key: len(seen(key)) for key in strands}
    root = trace["threads"][0]["id"]
    children = [one for one in trace["threads"] if one["id"] != root and one["strands"]]
    beside = [one for key, one in strands.items() if key[0] != root]
    work_sampled = sum(len(one["sampled"]) for one in strands.values())
    span, longest = max(chain(key, False) for key in strands), max(chain(key, True) for key in strands)
    return {
        "context": max(before[key] + injected[key] + len(one["sampled"]) for key, one in strands.items()),
        "work": sum(new.values()), "work_sampled": work_sampled, "span": span, "span_sampled": longest,
        "parallelism": sum(new.values()) / span, "parallelism_sampled": work_sampled / longest,
        "acceleration": 1 - longest / work_sampled, "threads": len(trace["threads"]),
        "depth": max(one["id"].count(".") for one in trace["threads"]),
        "spawns": len({tuple(map(tuple, strands[tuple(one["strands"][0])]["after"])) for one in children}),
        "branches": len(children), "parallel_tokens": sum(len(one["sampled"]) for one in beside),
        "prefilled": sum(before[key] + injected[key] - one["cached"] for key, one in strands.items()),
        "seconds": max(one["ended"] for one in strands.values()), "parallel_seconds": covered(beside),
    }  # fmt: skip


def covered(strands: list[Json]) -> float:
    """Seconds in which at least one of them ran: between each two neighbouring moments, one did or none did."""
    moments = sorted({moment for one in strands for moment in (one["started"], one["ended"])})
    return sum(
        end - start
        for start, end in zip(moments, moments[1:])
        if any(one["started"] <= start and end <= one["ended"] for one in strands)
    )


def wilson(k: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    middle, reach = (k + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return middle - reach, middle + reach


def mcnemar(b: int, c: int) -> float:
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    return min(1.0, 2 * tail)


class Checks:
    """Compares numbers, and keeps what disagrees."""

    def __init__(self) -> None:
        self.count = 0
        self.wrong: list[str] = []

    def same(self, what: str, told: Any, ours: Any) -> None:
        self.count += 1
        told = None if told in ("", None) else float(told)
        if (told is None) != (ours is None) or (told is not None and not math.isclose(told, ours, rel_tol=1e-9, abs_tol=1e-9)):
            self.wrong.append(f"{what}: the report says {told}, but it is {ours}")


def table(path: Path) -> list[Json]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return list(csv.DictReader(text.splitlines()))


def check(report: Path, folders: list[Path]) -> Checks:
    """Traces against attempts.csv.gz, and that against every table and figure of ours."""
    checks, data = Checks(), report / "data"
    attempts: dict[str, list[Json]] = defaultdict(list)
    for line in table(data / "attempts.csv.gz"):
        attempts[line["model"]].append(line)
    _traces(checks, list(attempts.values()), folders)
    _results(checks, table(data / "results.csv"), attempts)
    for line in table(data / "paired.csv") if (data / "paired.csv").is_file() else []:
        _paired(checks, line, _first(attempts[line["model"]]), _first(attempts[line["against"]]))
    for line in table(data / "other_systems.csv"):
        _systems(checks, line, attempts[line["model"]])
    for cost in ("context", "work", "span_sampled"):
        _curve(checks, table(data / f"accuracy_within_{cost}.csv"), attempts, cost)
    return checks


def _traces(checks: Checks, models: list[list[Json]], folders: list[Path]) -> None:
    for lines, folder in zip(models, folders, strict=True):
        traces = [json.loads(line) for line in gzip.decompress((folder / "traces.jsonl.gz").read_bytes()).splitlines()]
        for line, trace in zip(lines, traces, strict=True):
            what = f"{folder} {trace['problem']['id']} {trace['sample']}"
            checks.same(f"{what} correct", line["correct"], int(trace["outcome"]["correct"]))
            for cost, value in costs_of(trace).items():
                checks.same(f"{what} {cost}", line[cost], value)


def _first(lines: list[Json]) -> dict[str, bool]:
    return {line["problem"]: line["correct"] == "1" for line in lines if line["sample"] == "0"}


def _results(checks: Checks, rows: list[Json], attempts: dict[str, list[Json]]) -> None:
    for row in rows:
        name, solved, costs = row["model"], [], []
        voted = re.fullmatch(r"(.*) (cons|pass)@(\d+)", name)
        lines = attempts[f"{voted[1]} ({voted[3]} samples)" if voted else name]
        groups: dict[str, list[Json]] = defaultdict(list)
        for line in lines:
            groups[line["problem"]].append(line)
        for group in groups.values():
            answers = [re.sub(r"\s*([-+*/=,])\s*", r"\1", one["answer"].strip()) for one in group]
            votes = Counter(answer for answer in answers if answer)
            winner = max(votes, key=lambda answer: votes[answer]) if votes else None
            right = {answer: one["correct"] == "1" for one, answer in reversed(list(zip(group, answers)))}
            anyone = any(one["correct"] == "1" for one in group)
            solved.append(right.get(winner, False) if voted and voted[2] == "cons" else anyone)
            costs.append({"work": sum(float(one["work"]) for one in group), "span": max(float(one["span"]) for one in group)})
        n, k = len(groups), sum(solved)
        low, high = wilson(k, n)
        for key, value in (("problems", n), ("correct", k), ("accuracy", k / n), ("low", low), ("high", high)):
            checks.same(f"results, {name}, {key}", row[key], value)
        for cost in ("work", "span"):
            checks.same(f"results, {name}, {cost}", row[f"{cost}_mean"], sum(one[cost] for one in costs) / n)
        if not voted:
            for cost in CHECKED:
                values = sorted(float(line[cost]) for line in lines)
                checks.same(f"results, {name}, {cost}", row[f"{cost}_mean"], math.fsum(values) / n)
                checks.same(f"results, {name}, {cost} p90", row[f"{cost}_p90"], values[math.ceil(0.9 * n) - 1])


def _paired(checks: Checks, line: Json, ours: dict[str, bool], theirs: dict[str, bool]) -> None:
    pairs = [(ours[problem], theirs[problem]) for problem in ours if problem in theirs]
    b, c, n = pairs.count((True, False)), pairs.count((False, True)), len(pairs)
    differences = [int(x) - int(y) for x, y in pairs]
    gain = sum(differences) / n
    reach = 1.96 * math.sqrt(sum((one - gain) ** 2 for one in differences) / n / n)
    found = {
        "n": n, "only_a": b, "only_b": c, "p_value": mcnemar(b, c), "gain": gain, "low": gain - reach, "high": gain + reach,
    }  # fmt: skip
    for key, value in found.items():
        checks.same(f"paired, {line['model']} against {line['against']}, {key}", line[key], value)


def _systems(checks: Checks, row: Json, lines: list[Json]) -> None:
    total = {cost: math.fsum(float(line[cost]) for line in lines) for cost in CHECKED}

    def over(part: str, whole: str, scale: float = 1) -> float | None:
        return scale * total[part] / total[whole] if total[whole] else None

    found = {
        "parallel": total["parallelism_sampled"] / len(lines), "acceleration": total["acceleration"] / len(lines),
        "dp": over("parallel_tokens", "work_sampled"), "abn": over("branches", "spawns"),
        "ppd": sum(float(line["spawns"]) > 0 for line in lines) / len(lines), "tps": over("work_sampled", "seconds"),
        "p_tps": over("parallel_tokens", "parallel_seconds"), "tokens_per_thread": over("work", "threads"),
        "ms_per_span_token": over("seconds", "span_sampled", 1000) if total["seconds"] else None,
    }  # fmt: skip
    for key, value in found.items():
        checks.same(f"other systems, {row['model']}, {key}", row[key], value)


def _curve(checks: Checks, points: list[Json], attempts: dict[str, list[Json]], cost: str) -> None:
    x, y = list(points[0])[2:4]
    for point in points:
        if lines := attempts.get(point["series"]):
            within = sum(line["correct"] == "1" and float(line[cost]) <= float(point[x]) for line in lines)
            checks.same(f"accuracy within {cost} {point[x]}, {point['series']}", point[y], within / len(lines))


if __name__ == "__main__":
    result = check(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
    print(*result.wrong[:20], f"{result.count} numbers checked, {len(result.wrong)} wrong", sep="\n")
    sys.exit(bool(result.wrong))
