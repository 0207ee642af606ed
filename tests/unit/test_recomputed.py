"""A report's numbers against those that `tests/recompute.py`, which shares no code with it, works out from the traces."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from apr.config import DataConfig, EvalConfig
from apr.data.generate import demonstrations, generate
from apr.data.store import problems_hash, read_problems
from apr.presets import check, dump
from apr.report.build import build_report
from apr.threads.codec import TraceWriter
from apr.threads.trace import Strand, Trace
from apr.tokens.compact import CompactDialect

sys.path.insert(0, str(Path(__file__).parents[1]))
import recompute  # noqa: E402 (found by the line above)

SOLVERS = {"sos_plus": {"protocol": "serial"}, "spawn_join": {"protocol": "spawn_join", "spawn_depth": 1}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recomputed") / "data"
    content = {
        "problems": {"numbers": 3, "low": 1, "high": 12, "target_low": 10, "target_high": 30}, "train": 8, "validation": 2,
        "test": 40, "workers": 1, "out": folder,
        "solvers": SOLVERS,
    }  # fmt: skip
    generate(check(DataConfig, content, "test"))
    return folder


def timed(trace: Trace) -> Trace:
    """Solvers take no time: a second a sampled token, children side by side; some of each prompt was cached."""
    ended: dict[object, float] = {}
    strands: list[Strand] = []
    for strand in trace.strands:
        started = max((ended[before] for before in strand.after), default=0.0)
        ended[strand.id] = started + len(strand.sampled) / 7
        strands.append(replace(strand, started=started, ended=ended[strand.id], cached=1))
    assert trace.costs is not None
    costs = replace(trace.costs, seconds=max(ended.values()), prefilled=trace.costs.prefilled - len(strands))
    return replace(trace, strands=tuple(strands), costs=costs)


def evaluation(folder: Path, data: Path, solver: str, seeds: list[int], **changes: object) -> Path:
    """As `apr eval` would write it, had the solver been the model: one sample a problem for each seed."""
    config = check(EvalConfig, {"data": data, "protocol": SOLVERS[solver]["protocol"], "samples": len(seeds), "limits": {},
                                "temperature": 1.0, "seed": 0, "split": "test", "out": folder, **changes}, "test")  # fmt: skip
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(config))
    options = check(DataConfig, {"solvers": SOLVERS}, "test").solvers[solver]
    problems = read_problems(data, "test")
    dialect = CompactDialect()
    tries = [list(demonstrations(problems, solver, options, seed, dialect=dialect)) for seed in seeds]
    with TraceWriter(folder / "traces.jsonl.gz") as writer:
        for number in range(len(problems)):
            for sample, traces in enumerate(tries):
                writer.append(replace(timed(traces[number]), sample=sample))
    facts = {
        "kind": "eval", "card": {"solver": solver, "trained": ["sft"]}, "dialect": dialect.name,
        "vocabulary": dialect.vocabulary.hash, "traces": len(problems) * len(seeds),
        "data_hash": problems_hash(data, "test"), "checkpoint_hash": f"{solver}",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


def test_every_number_can_be_worked_out_again(data: Path, tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / "serial", data, "sos_plus", [0]),
        evaluation(tmp_path / "spawned", data, "spawn_join", [0]),
        evaluation(tmp_path / "voted", data, "sos_plus", [1, 2, 3]),
    ]
    out = tmp_path / "report"
    build_report(folders, None, out, "Report")
    found = recompute.check(out, folders)
    assert found.wrong == [] and found.count > 3_000

    results = out / "data" / "results.csv"
    lines = results.read_text().splitlines()
    column = lines[0].split(",").index("accuracy")
    cells = lines[1].split(",")
    cells[column] = str(float(cells[column]) + 0.001)
    results.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    assert len(recompute.check(out, folders).wrong) == 1  # it notices
