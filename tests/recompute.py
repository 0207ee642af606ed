"""Works the numbers of a report out again, from the raw traces of its evaluations and from its CSV files, and compares:
every attempt's costs, the table of results, comparisons at equal cost, paired tests, prices, temperatures, other systems'
measures, and the points of curves and of figures 4a, 6 and 8 that are of single evaluations.

    python tests/recompute.py REPORT EVALUATION [EVALUATION ...]

Nothing of the project is imported, and definitions are those of the documentation, worked out in another way where
there is one. Prints what disagrees; exits with 1 if anything does.
"""

from __future__ import annotations

import ast
import csv
import gzip
import json
import math
import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

Json = dict[str, Any]
CHECKED = (
    "context", "work", "work_sampled", "span", "span_sampled", "parallelism", "parallelism_sampled", "acceleration",
    "threads", "depth", "spawns", "branches", "parallel_tokens", "prefilled", "seconds", "parallel_seconds",
)  # fmt: skip
RIVALS = ("work", "context", "span_sampled")  # costs in which rivals are equal


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


def wilson(k: float, n: float) -> tuple[float, float]:
    z = 1.959963984540054
    middle, reach = (k + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return middle - reach, middle + reach


def clustered(groups: list[list[bool]]) -> tuple[float, float]:
    """Wilson's interval of as many attempts as would be worth these, several of each problem, were they independent."""
    m, n = len(groups), sum(map(len, groups))
    p = sum(map(sum, groups)) / n
    if n == m or p in (0, 1):
        return wilson(p * m, m)
    sizes = {len(group) for group in groups}
    assert len(sizes) == 1, "as many samples of each problem"
    rates = [sum(group) / len(group) for group in groups]
    variance = sum((rate - p) ** 2 for rate in rates) / (m - 1) / m  # of the mean of the problems' own rates
    effective = min(n, max(m, p * (1 - p) / variance)) if variance else n
    return wilson(p * effective, effective)


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
        if (told is None) != (ours is None) or (
            told is not None and not math.isclose(told, ours, rel_tol=1e-9, abs_tol=1e-9)
        ):
            self.wrong.append(f"{what}: the report says {told}, but it is {ours}")


def table(path: Path) -> list[Json]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [{key: without_guard(cell) for key, cell in line.items()} for line in csv.DictReader(text.splitlines())]


def without_guard(cell: str) -> str:
    """A cell without the apostrophe that keeps a spreadsheet from taking it for a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:].lstrip(" ")[:1] in set("=+-@\t\r\n") else cell


def check(report: Path, folders: list[Path]) -> Checks:
    """Traces against attempts.csv.gz, and that against every table and figure of ours."""
    checks, data = Checks(), report / "data"
    attempts: dict[str, list[Json]] = defaultdict(list)
    for line in table(data / "attempts.csv.gz"):
        attempts[line["model"]].append(line)
    _traces(checks, list(attempts.values()), folders)
    _results(checks, table(data / "results.csv"), attempts)
    for line in _table_if_any(data / "paired.csv"):
        a, b = _rows(attempts, line["model"]), _rows(attempts, line["against"])
        _paired(checks, f"paired, {line['model']} against {line['against']}", line, a, b)
    lines = _table_if_any(data / "comparisons.csv")
    for line in lines:
        _compared(checks, line, attempts)
    _answered(checks, lines)
    for line in table(data / "other_systems.csv"):
        _systems(checks, line, attempts[line["model"]])
    for line in table(data / "prices.csv"):
        lines = attempts[line["model"]]
        values = sorted(float(one["seconds"]) for one in lines)
        for key, value in (("mean", math.fsum(values) / len(values)), ("p50", values[math.ceil(len(values) / 2) - 1])):
            checks.same(f"prices, {line['model']}, {key}", line[f"seconds_{key}"], value)
        span = sum(float(one["span_sampled"]) for one in lines)
        checks.same(f"prices, {line['model']}, ms", line["ms_per_span_token"], 1000 * math.fsum(values) / span)
    _temperatures(checks, table(data / "temperatures.csv"), attempts)
    points = {"latency_tokens": ("span_sampled", 1), "latency_ms": ("seconds", 1000)}
    for name, (cost, scale) in {**points, **{f.stem: ("work", 1) for f in data.glob("tokens_T*.csv")}}.items():
        _points(checks, name, table(data / f"{name}.csv"), attempts, cost, scale)
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


def _table_if_any(path: Path) -> list[Json]:
    return table(path) if path.is_file() else []


Rows = dict[str, tuple[bool, dict[str, float]]]  # by problem: solved, and the three costs


def _rows(attempts: dict[str, list[Json]], name: str) -> Rows:
    """What was compared under a name: an evaluation, its first samples, or votes over the first of its samples."""
    pattern = r"(.*?)(?:, first of (?P<of>\d+) samples| cons@(?P<k>\d+)(?: \(first \d+ of (?P<n>\d+) samples\))?)"
    found = re.fullmatch(pattern, name)
    if name in attempts or found is None:
        lines, take = attempts[name], 1
    else:
        take = int(found["k"] or 1)
        lines = attempts[f"{found[1]} ({found['of'] or found['n'] or found['k']} samples)"]
    groups: dict[str, list[Json]] = defaultdict(list)
    for line in lines:
        if int(line["sample"]) < take:
            groups[line["problem"]].append(line)
    kind = "cons" if take > 1 else "mean"
    return {
        problem: (_solved(group, kind)[0], {cost: _spent(group, kind, cost)[0] for cost in RIVALS})
        for problem, group in groups.items()
    }


def _ratio(a: Rows, b: Rows, cost: str) -> float:
    """Of mean costs, over the problems that both tried, if any."""
    shared = a.keys() & b.keys()
    ours, theirs = ([rows[problem][1][cost] for problem in shared or rows] for rows in (a, b))
    return (math.fsum(ours) / len(ours)) / (math.fsum(theirs) / len(theirs))


def _compared(checks: Checks, line: Json, attempts: dict[str, list[Json]]) -> None:
    what = f"comparisons, {line['model']} against {line['rival']}"
    a, b = _rows(attempts, line["model"]), _rows(attempts, line["rival"])
    shared = a.keys() & b.keys()
    for side, rows in (("model", a), ("rival", b)):
        solved = [rows[problem][0] for problem in shared or rows]
        low, high = wilson(sum(solved), len(solved))
        values = {"problems": len(solved), "accuracy": sum(solved) / len(solved), "low": low, "high": high}
        for key, value in values.items():
            checks.same(f"{what}, {side} {key}", line[f"{side}_{key}"], value)
    equal = [cost for cost in RIVALS if 1 / 1.15 <= _ratio(a, b, cost) <= 1.15]
    checks.same(f"{what}, equal", line["equal"], int(set(line["costs"].split()) <= set(equal)))
    if line["equal"] == "1" and line["paired"] == "1":
        _paired(checks, what, {**line, "n": line["model_problems"], "only_a": line["only_model"], "only_b": line["only_rival"]},
                a, b)  # fmt: skip
    else:
        for cost in RIVALS:
            checks.same(f"{what}, {cost}", line[f"{cost}_ratio"], _ratio(a, b, cost))
    if line["equal"] == "1" and line["paired"] == "0":
        _unpaired(checks, what, line, *([solved for solved, _ in rows.values()] for rows in (a, b)))
    if line["equal"] == "0":
        for key in ("gain", "low", "high", "p_value"):
            checks.same(f"{what}, {key}", line[key], None)


def _unpaired(checks: Checks, what: str, line: Json, ours: list[bool], theirs: list[bool]) -> None:
    k, m, j, n = sum(ours), len(ours), sum(theirs), len(theirs)
    (low_a, high_a), (low_b, high_b) = wilson(k, m), wilson(j, n)
    gain = k / m - j / n
    ways = [math.comb(m, i) * math.comb(n, k + j - i) for i in range(k + j + 1)]  # of which i are ours
    found = {
        "gain": gain, "low": gain - math.hypot(k / m - low_a, high_b - j / n),
        "high": gain + math.hypot(high_a - k / m, j / n - low_b),
        "p_value": sum(way for way in ways if way <= ways[k]) / sum(ways),
    }  # fmt: skip
    for key, value in found.items():
        checks.same(f"{what}, {key}", line[key], value)


def _answered(checks: Checks, lines: list[Json]) -> None:
    """Each question has an answer for each cost, once."""
    answers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in lines:
        answers[line["question"], line["model"]] += line["costs"].split()
    for (question, model), costs in answers.items():
        checks.same(f"comparisons, {question} {model}", len(costs), len(RIVALS))
        checks.same(f"comparisons, {question} {model}, each once", len(set(costs)), len(RIVALS))


def _results(checks: Checks, rows: list[Json], attempts: dict[str, list[Json]]) -> None:
    for row in rows:
        name = row["model"]
        several = re.fullmatch(r"(.*) (mean|cons|pass)@(\d+)", name)
        kind = several[2] if several else "mean"
        lines = attempts[f"{several[1]} ({several[3]} samples)" if several else name]
        groups: dict[str, list[Json]] = defaultdict(list)
        for line in lines:
            groups[line["problem"]].append(line)
        solved = [_solved(group, kind) for group in groups.values()]
        n, k = sum(map(len, solved)), sum(map(sum, solved))
        low, high = clustered(solved)
        found = {"problems": len(groups), "attempts": n, "correct": k, "accuracy": k / n, "low": low, "high": high}
        for key, value in found.items():
            checks.same(f"results, {name}, {key}", row[key], value)
        for cost in CHECKED:
            values = [value for group in groups.values() for value in _spent(group, kind, cost)]
            if values:
                _spread(checks, f"results, {name}, {cost}", row, cost, sorted(values))


def _solved(group: list[Json], kind: str) -> list[bool]:
    """Of one problem: of each sample, or of the one that stands for all."""
    each = [one["correct"] == "1" for one in group]
    if kind == "mean":
        return each
    if kind == "pass":
        return [any(each)]
    said = [one["answer"] if one["answer"].strip() else None for one in group]
    votes = [
        sum(other is not None and same_answer(one, other) for other in said) if one is not None else 0 for one in said
    ]
    return [max(votes) > 0 and each[votes.index(max(votes))]]


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are one derivation: as many of each step, and the same ones before others that share a value with
    their result. What is no list of steps, nor an expression, is compared as text, without spaces beside marks."""
    a, b = said(a), said(b)
    x, y = derivation(a), derivation(b)
    if x is None or y is None:
        return x is y and plain(a) == plain(b)
    return x == y


def said(answer: str) -> str:
    """What stands in the last mark, or all, in plain signs."""
    pattern = r"<answer>|\\boxed\s*\{"
    if marks := re.findall(pattern, answer, re.A | re.I):
        answer = re.split(pattern, answer, flags=re.A | re.I)[-1]
        if marks[-1].startswith("<"):
            answer = re.split("</answer>", answer, flags=re.I)[0]
        else:
            depths = [answer[:i].count("{") - answer[:i].count("}") for i in range(len(answer) + 1)]
            answer = answer[: depths.index(-1) - 1] if -1 in depths else answer
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if re.fullmatch(f"{re.escape(left)}.*{re.escape(right)}", answer.strip(), re.S):
            answer = answer.strip()[len(left) : -len(right)].strip()
    for sign, others in (
        ("*", r"[×·⋅∗]|\\times(?![A-Za-z])|\\cdot(?![A-Za-z])"),
        ("/", r"[÷∕]|\\div(?![A-Za-z])"),
        ("-", "−"),
    ):
        answer = re.sub(others, sign, answer)
    return re.sub(r"\\left\s*(?=\()|\\right\s*(?=\))|\\[,;:! ]", " ", answer, flags=re.A)


def plain(answer: str) -> str:
    return answer if len(answer) > 2000 else re.sub(r"\s*([-+*/=,])\s*", r"\1", answer.strip())


def derivation(answer: str) -> Any:
    """The steps, each with how often it was there before, and the ordered pairs of those that cannot change places."""
    form = r"\s*(\d{1,24})\s*([-+*/])\s*(\d{1,24})\s*=\s*(\d{1,24})\s*"
    if len(answer) > 2000:
        return None
    found = [re.fullmatch(form, part, re.A) for part in answer.split(",")]
    written = [(int(one[1]), one[2], int(one[3]), int(one[4])) for one in found if one]
    if len(written) < len(found):
        tree, claimed = equation(answer)
        if tree is None:
            return None
        value, written = done(tree)
        if value is None or claimed not in (None, value):
            return tree, claimed
    steps: list[Any] = []
    for a, op, b, result in written:
        pair = (a, b) if op in "-/" else tuple(sorted((a, b)))
        steps.append((op, pair, result, sum(one[:3] == (op, pair, result) for one in steps)))
    tied = {(x, y) for i, y in enumerate(steps) for x in steps[:i] if x[2] in y[1] or y[2] in x[1]}
    return {*steps, *tied}


def equation(text: str) -> tuple[Any, int | None]:
    """An expression as nested tuples, operands of + and * in order, by Python's own parser; and the value that it claims."""
    text, before = re.sub(r"[ \t\n\r\f\v]", " ", text).strip(), ""
    while before != text:
        before, text = text, re.sub(r"\\[dt]?frac *\{([^{}]*)\} *\{([^{}]*)\}", r"((\1)/(\2))", text)
    left, equals, right = (part.strip() for part in text.partition("="))
    sound = re.fullmatch(r"[0-9 ()*/+-]+", left) and (re.fullmatch("[0-9]{1,24}", right) if equals else True)
    if not sound or re.search(r"[0-9]{25}|\( *\)", left):
        return None, None
    try:
        tree = nested(ast.parse(re.sub(r"(?<![0-9])0+(?=[0-9])", "", left), mode="eval").body)
    except (SyntaxError, ValueError):
        return None, None
    return (tree, int(right) if equals else None) if isinstance(tree, tuple) else (None, None)


def nested(node: ast.expr) -> Any:
    ops = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
    match node:
        case ast.Constant(int(value)):
            return value
        case ast.BinOp(left, op, right) if type(op) in ops:
            pair = [nested(left), nested(right)]
            return (ops[type(op)], *(sorted(pair, key=repr) if isinstance(op, ast.Add | ast.Mult) else pair))
    raise ValueError(f"not an operation of Countdown: {node}")


def done(tree: Any) -> tuple[int | None, list[tuple[int, str, int, int]]]:
    """The value and the steps of an expression; the smaller operand of + and * first, with equal ones in any order."""
    if isinstance(tree, int):
        return tree, []
    op, *operands = tree
    (a, before), (b, after) = (done(one) for one in operands)
    if a is None or b is None:
        return None, []
    if op in "+*" and (b, after) < (a, before):
        a, before, b, after = b, after, a, before
    legal = {"+": True, "*": True, "-": a >= b, "/": b > 0 and a % max(1, b) == 0}[op]
    value = {"+": a + b, "*": a * b, "-": a - b, "/": a // max(1, b)}[op]
    return (value if legal and value < 10**24 else None), [*before, *after, (a, op, b, value)]


def _spent(group: list[Json], kind: str, cost: str) -> list[float]:
    """Costs of one problem's samples, or of all side by side."""
    each = [float(one[cost]) for one in group]
    if kind == "mean":
        return each
    if cost in ("context", "span", "span_sampled", "depth", "seconds", "parallel_seconds"):
        return [max(each)]
    return [] if cost in ("parallelism", "parallelism_sampled", "acceleration") else [sum(each)]


def _spread(checks: Checks, what: str, row: Json, cost: str, values: list[float]) -> None:
    checks.same(f"{what} mean", row[f"{cost}_mean"], math.fsum(values) / len(values))
    checks.same(f"{what} max", row[f"{cost}_max"], values[-1])
    for share in (50, 90, 99):
        checks.same(f"{what} p{share}", row[f"{cost}_p{share}"], values[math.ceil(share * len(values) / 100) - 1])


def _paired(checks: Checks, what: str, line: Json, ours: Rows, theirs: Rows) -> None:
    pairs = [(ours[problem][0], theirs[problem][0]) for problem in ours if problem in theirs]
    b, c, n = pairs.count((True, False)), pairs.count((False, True)), len(pairs)
    # Agresti and Min: half a problem more of each of the four outcomes, then the variance of the differences as usual.
    more = [(1, b + 0.5), (-1, c + 0.5), (0, n - b - c + 1)]
    total = sum(count for _, count in more)
    middle = sum(gain * count for gain, count in more) / total
    variance = sum(count * (gain - middle) ** 2 for gain, count in more) / total / total
    reach = 1.959963984540054 * math.sqrt(variance)
    found = {
        "n": n, "only_a": b, "only_b": c, "p_value": mcnemar(b, c), "gain": (b - c) / n, "low": max(-1, middle - reach),
        "high": min(1, middle + reach), **{f"{cost}_ratio": _ratio(ours, theirs, cost) for cost in RIVALS},
    }  # fmt: skip
    for key, value in found.items():
        checks.same(f"{what}, {key}", line[key], value)


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


def _temperatures(checks: Checks, rows: list[Json], attempts: dict[str, list[Json]]) -> None:
    """Each of our numbers is the accuracy of some evaluation whose name begins with the model's."""
    for row in rows:
        for key, told in row.items():
            if row["source"] == "ours" and re.fullmatch(r"T=[\d.]+", key) and told:
                model = row["model"].partition(" (")[0]
                rates = [
                    sum(line["correct"] == "1" for line in lines) / len(lines)
                    for name, lines in attempts.items()
                    if name.startswith(model)
                ]
                checks.same(
                    f"temperatures, {row['model']}, {key}", told, min(rates, key=lambda one: abs(one - float(told)))
                )


def _points(
    checks: Checks, name: str, points: list[Json], attempts: dict[str, list[Json]], cost: str, scale: float
) -> None:
    """Points of single evaluations; those of votes are checked by their ends in the table of results."""
    for point in points:
        told, label = point["series"], point["label"]
        if lines := attempts.get(told) or attempts.get(f"{told}, {label}"):
            _, _, x, y = list(point)[:4]
            mean = scale * math.fsum(float(line[cost]) for line in lines) / len(lines)
            checks.same(f"{name}, {point['series']}, x", point[x], mean)
            solved = sum(line["correct"] == "1" for line in lines)
            checks.same(f"{name}, {point['series']}, y", point[y], solved / len(lines))


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
