"""The paper's tables and figures from evaluations: what goes on which line, and when published numbers share axes."""

from pathlib import Path

import pytest
from solver_evaluations import evaluation, make_data

from apr.evaluation.baselines import pass_at, samples_by_problem
from apr.report import tables
from apr.report.chart import Chart, Series
from apr.report.entries import Entry, read_runs
from apr.report.paper import before_and_after, paper_figures


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("paper_figures") / "data")


def charts(entries: list[Entry]) -> dict[str, Chart]:
    return {chart.name: chart for figure in paper_figures(entries) for chart in (*figure.ours, *figure.theirs)}


def by_name(chart: Chart) -> dict[str, Series]:
    return {one.name: one for one in chart.series}


def test_lines_over_children_and_over_samples(data: Path, tmp_path: Path) -> None:
    asked = [
        evaluation(tmp_path / f"asked_{n}", data, "spawn_join", [n], condition={"kind": "children", "value": n})
        for n in (10, 2, 6)
    ]
    plain = evaluation(tmp_path / "plain", data, "spawn_join", [0])
    voted = evaluation(tmp_path / "voted", data, "sos_plus", [1, 2, 3])
    entries, _ = read_runs([*asked, plain, voted])
    tokens = charts(entries)["tokens_T1"]
    lines = by_name(tokens)
    assert len(tokens.series) == 4  # what differs in anything but the children asked for is no point of the same line
    assert list(lines["spawn/join SFT, children asked for"].labels) == ["2", "6", "10"]
    assert len(lines["spawn/join SFT"].x) == 1
    groups = samples_by_problem(entries[-1].attempts)
    for kind, vote in (("cons", entries[-1].majority), ("pass", pass_at)):
        line = lines[f"SoS+ SFT {kind}@n"]
        solved = [sum(vote(group[:n]).correct for group in groups) / len(groups) for n in (1, 2, 3)]
        assert list(line.y) == pytest.approx(solved)
        spent = [sum(one.costs["work"] for group in groups for one in group[:n]) / len(groups) for n in (1, 2, 3)]
        assert list(line.x) == pytest.approx(spent)
    assert {entry.label for entry in entries} >= {
        "spawn/join SFT, 2 children",
        "spawn/join SFT, 10 children",
        "spawn/join SFT",
    }


def test_published_numbers_share_axes_only_in_the_papers_setting(data: Path, tmp_path: Path) -> None:
    entries, _ = read_runs([evaluation(tmp_path / "small", data, "spawn_join", [0])])
    found = charts(entries)
    assert {one.source for one in found["tokens_T1"].series} == {"ours"}
    assert {one.source for one in found["published_tokens_T1"].series} == {"published"}

    large = make_data(tmp_path / "large_data", numbers=4, high=99)
    short = evaluation(tmp_path / "short", large, "spawn_join", [0], limits={"context": 1024})
    whole = evaluation(tmp_path / "whole", large, "spawn_join", [0], limits={"context": 4096})
    assert "published_tokens_T1" in charts(read_runs([short])[0])
    found = charts(read_runs([whole])[0])
    assert "published_tokens_T1" not in found and "published_latency_tokens" not in found
    assert {one.source for one in found["latency_ms"].series} == {"ours"}  # other hardware: never on the same axes
    assert {one.source for one in found["tokens_T1"].series} == {"ours", "published"}
    assert len({one.place for one in found["tokens_T1"].series}) == len(found["tokens_T1"].series)


def test_before_and_after_rl_are_paired_by_what_else_is_equal(data: Path, tmp_path: Path) -> None:
    before = evaluation(tmp_path / "before", data, "spawn_join", [0])
    cold = evaluation(tmp_path / "cold", data, "spawn_join", [0], temperature=0.0)
    hot = evaluation(tmp_path / "hot", data, "spawn_join", [2], trained=("sft", "rl"), temperature=1.5)
    after = evaluation(tmp_path / "after", data, "spawn_join", [1], trained=("sft", "rl"))
    other = evaluation(tmp_path / "other", data, "sos_plus", [1], trained=("sft", "rl"))
    entries, _ = read_runs([cold, other, hot, before, after])
    pairs = before_and_after(entries)
    assert [(one.evaluation.folder, two.evaluation.folder) for one, two in pairs] == [(before, after)]
    bars = charts(entries)["rl_gain_accuracy"]
    assert [list(one.y) for one in bars.series] == [
        [pytest.approx(sum(tried.correct for tried in one.attempts) / 40)] for one in pairs[0]
    ]


def test_a_table_by_temperature_names_the_models_once(data: Path, tmp_path: Path) -> None:
    entries, _ = read_runs(
        [evaluation(tmp_path / f"t{t:g}", data, "spawn_join", [0], temperature=t) for t in (0.0, 0.1, 1.0)]
    )
    table = tables.temperatures(entries, shared=True)
    ours = [record for record in table.records if record["source"] == "ours"]
    assert len(ours) == 1 and ours[0]["model"] == "spawn/join SFT" and ours[0]["T=0.5"] is None
    assert all(ours[0][f"T={t}"] is not None and ours[0][f"T={t} problems"] == 40 for t in ("0", "0.1", "1"))
    alone = tables.temperatures(entries, shared=False)
    assert len(alone.records) == 1 and "T=0.5" not in alone.records[0]
    theirs = {record["model"]: record for record in table.records if record["source"] == "published"}
    assert theirs["APR RL"]["T=0"] == pytest.approx(0.834) and theirs["SoS+ beam 15"]["T=0.5"] is None
