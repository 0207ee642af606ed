"""A report's numbers against those that `tests/recompute.py`, which shares no code with it, works out from the traces."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import recompute
from solver_evaluations import evaluation, make_data

from apr.report.build import build_report
from apr.threads.codec import TraceWriter, read_traces
from apr.threads.trace import Trace
from envs.countdown.env import Countdown


def test_every_number_can_be_worked_out_again(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    folders = [
        evaluation(tmp_path / "serial", data, "sos_plus", [0]),
        evaluation(tmp_path / "spawned", data, "spawn_join", [0]),
        evaluation(tmp_path / "voted", data, "sos_plus", [1, 2, 3]),
        evaluation(tmp_path / "tuned", data, "spawn_join", [4], trained=("sft", "rl"), temperature=0.0),
    ]
    out = tmp_path / "report"
    build_report(folders, None, out, "Report")
    found = recompute.check(out, folders)
    assert found.wrong == [] and found.count > 3_000

    for count, (name, key) in enumerate(
        (("results", "accuracy"), ("comparisons", "work_ratio"), ("paired", "gain")), 1
    ):
        path = out / "data" / f"{name}.csv"
        with path.open() as file:
            lines = list(csv.DictReader(file))
        lines[0][key] = str(float(lines[0][key]) + 0.001)
        with path.open("w") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        assert len(recompute.check(out, folders).wrong) == count  # it notices


def test_comparisons_of_other_problems_can_be_worked_out_again(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / "serial", make_data(tmp_path / "data"), "sos_plus", [0], limits={"context": 4096}),
        evaluation(
            tmp_path / "spawned", make_data(tmp_path / "other", high=60), "spawn_join", [0], limits={"context": 4096}
        ),
    ]
    out = tmp_path / "report"
    build_report(folders, None, out, "Report")
    with (out / "data" / "comparisons.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert any(line["equal"] == "1" and line["paired"] == "0" and line["p_value"] for line in lines)
    assert recompute.check(out, folders).wrong == []
    assert "Newcombe" in (out / "summary.md").read_text()


def reworded(trace: Trace) -> Trace:
    """Three samples say the same: as it was, with the operands of all + and * swapped, of the first; two say a wrong thing."""
    assert trace.outcome is not None
    if trace.sample > 2:
        return replace(trace, answer="1+1=3", outcome=replace(trace.outcome, correct=False))
    swaps = {0: -1, 1: 0, 2: 1}[trace.sample]  # how many: none, all, one
    answer = trace.answer if swaps < 0 else re.sub(r"(\d+)([+*])(\d+)=", r"\3\2\1=", trace.answer or "", count=swaps)
    vote = Countdown().canonical(answer) if answer else None
    return replace(trace, answer=answer, outcome=replace(trace.outcome, vote=vote))


def test_votes_for_one_derivation_in_other_words_are_counted_together(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "voted", make_data(tmp_path / "data"), "sos_plus", [1] * 5)
    traces = [reworded(trace) for trace in read_traces(folder / "traces.jsonl.gz")]
    (folder / "traces.jsonl.gz").unlink()
    with TraceWriter(folder / "traces.jsonl.gz") as writer:
        for trace in traces:
            writer.append(trace)
    build_report([folder], None, tmp_path / "report", "Report")
    rows = {row["model"]: row for row in csv.DictReader((tmp_path / "report" / "data" / "results.csv").open())}
    solved = sum(trace.correct for trace in traces if trace.sample == 0)
    assert solved > 10
    assert int(rows["SoS+ SFT cons@5"]["correct"]) == solved == int(rows["SoS+ SFT pass@5"]["correct"])
    assert recompute.check(tmp_path / "report", [folder]).wrong == []
