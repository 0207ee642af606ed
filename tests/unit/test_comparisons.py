"""Comparisons at equal cost: which rival is taken, on which problems, and what is said where there is none."""

import csv
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_evaluations import evaluation, make_data

from apr.evaluation.baselines import samples_by_problem
from apr.report.build import build_report
from apr.report.chart import apart, look
from apr.report.comparisons import (
    RL,
    SPAWNING,
    TOLERANCE,
    Question,
    Unpaired,
    compared,
    contenders,
    equal_costs,
    paired,
    questions,
)
from apr.report.entries import Entry, read_runs, rows_of
from apr.report.paper import paper_figures
from apr.threads.trace import StopReason


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("comparisons") / "data")


@pytest.fixture(scope="module")
def entries(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    folder = tmp_path_factory.mktemp("runs")
    folders = [
        evaluation(folder / "serial", data, "sos_plus", [0], temperature=0.0),
        evaluation(folder / "voted", data, "sos_plus", [1, 2, 3]),
        evaluation(folder / "spawned", data, "spawn_join", [0], temperature=0.0),
        evaluation(folder / "tuned", data, "spawn_join", [3], trained=("sft", "rl"), temperature=0.0),
    ]
    return read_runs(folders)[0]


def scaled(entry: Entry, factor: float, **changes: object) -> Entry:
    """The entry with its costs multiplied, and other facts."""
    tries = [replace(one, costs={cost: factor * value for cost, value in one.costs.items()}) for one in entry.attempts]
    return replace(entry, evaluation=replace(entry.evaluation, attempts=tries), **changes)


def asked(main: list[Entry], every: list[Entry], heading: str = SPAWNING) -> list[Question]:
    return [one for one in questions(main, every) if one.heading == heading]


def test_what_can_be_compared(entries: list[Entry]) -> None:
    serial, voted, *_ = entries
    assert [one.name for one in contenders(serial)] == ["SoS+ SFT"]
    first, two, three = contenders(voted)
    assert first.name == "SoS+ SFT, first of 3 samples" and list(first.attempts) == voted.first
    assert two.name == "SoS+ SFT cons@2 (first 2 of 3 samples)" and three.name == "SoS+ SFT cons@3"
    groups = samples_by_problem(voted.attempts)
    assert two.attempts == [voted.majority(group[:2]) for group in groups]
    assert two.attempts[0].costs["work"] == sum(one.costs["work"] for one in groups[0][:2])
    assert [one.name for one in contenders(voted, every=False)] == [first.name, three.name]
    assert not any("pass@" in one.name for entry in entries for one in contenders(entry))


def test_votes_and_other_temperatures_are_paired_on_the_problems_that_both_tried(entries: list[Entry]) -> None:
    _, voted, spawned, _ = entries
    half = replace(spawned, evaluation=replace(spawned.evaluation, attempts=spawned.attempts[:25]))
    vote = contenders(voted)[-1]
    found = compared(contenders(half)[0], vote)
    solved = {one.problem: one.correct for one in vote.attempts}
    assert found.paired and found.a.n == found.b.n == 25 and found.where == "on the same 25 problems"
    alone = sum(one.correct and not solved[one.problem] for one in half.attempts)
    assert found.alone[0] == alone
    spent = [one.costs["work"] for one in vote.attempts[:25]]
    assert found.ratio("work") == pytest.approx(half.summary.costs["work"].mean * 25 / sum(spent))
    lost = replace(half.attempts[0], stop=StopReason.ENGINE_LOST)
    half = replace(half, evaluation=replace(half.evaluation, attempts=[lost, *half.attempts[1:]]))
    assert compared(contenders(half)[0], vote).a.n == 24


def test_a_rival_is_equal_in_cost_or_there_is_none(entries: list[Entry]) -> None:
    serial, _, spawned, _ = entries
    near, far = scaled(spawned, 1.1, label="near"), scaled(spawned, 1.2, label="far")
    rivals = [replace(one, evaluation=replace(one.evaluation, config=serial.config, facts=serial.evaluation.facts))
              for one in (near, far)]  # fmt: skip
    [found] = asked([spawned], rivals)
    [(costs, one)] = found.equal.items()
    assert (costs, one.b.name, found.unequal) == (("work", "context", "span_sampled"), "near", [])
    assert one.ratio("work") == pytest.approx(1 / 1.1) and one.test.gain == 0
    [alone] = asked([spawned], rivals[1:])
    assert not alone.equal and alone.unequal == ["work", "context", "span_sampled"]
    assert "None of the serial rows is within 15%. The nearest is far: " in alone.missing("work")
    assert "(×0.83)" in alone.missing("work")
    records = equal_costs([alone]).records
    assert [record["equal"] for record in records] == [0, 0, 0]
    assert all(record[key] is None for record in records for key in ("gain", "low", "high", "p_value", "only_model"))
    assert all(record["work_ratio"] == pytest.approx(1 / 1.2) for record in records)


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=6), st.randoms())
def test_rivals_are_chosen_by_cost_and_never_by_accuracy(
    entries: list[Entry], factors: list[float], rng: random.Random
) -> None:
    """Whoever solves more: the same rival is taken, equal if any is, of those with most problems the nearest."""
    serial, _, spawned, _ = entries
    rivals = []
    for number, factor in enumerate(factors):
        one = scaled(spawned, factor, label=f"{number}")
        tries = [replace(tried, correct=rng.random() < 0.5) for tried in one.attempts]
        rivals.append(replace(one, evaluation=replace(one.evaluation, attempts=tries, config=serial.config)))
    [found] = asked([spawned], rivals)
    apart_ = [max(factor, 1 / factor) - 1 for factor in factors]
    chosen = found.rivals["work"]
    assert apart_[int(chosen.b.name)] == pytest.approx(min(apart_))
    assert bool(found.unequal) == (min(apart_) > TOLERANCE + 1e-12) or min(apart_) == pytest.approx(TOLERANCE)


def test_more_shared_problems_go_before_nearer_costs(entries: list[Entry]) -> None:
    serial, _, spawned, _ = entries
    far = scaled(spawned, 1.1, label="far")
    near = scaled(spawned, 1.01, label="near")
    near = replace(near, evaluation=replace(near.evaluation, attempts=near.attempts[:20]))
    rivals = [replace(one, evaluation=replace(one.evaluation, config=serial.config)) for one in (near, far)]
    assert asked([spawned], rivals)[0].rivals["work"].b.name == "far"


def test_models_after_rl_meet_serial_ones_after_rl_and_themselves_before(
    entries: list[Entry], data: Path, tmp_path: Path
) -> None:
    serial, voted, spawned, tuned = entries
    for question in asked([spawned, tuned], entries):
        assert {one.rival.entry.label for one in question.rivals.values()} == {"SoS+ SFT"}
    assert "No serial model was trained as it was (sft, rl)" in asked([tuned], entries)[0].note
    after = evaluation(tmp_path / "after", data, "sos_plus", [4], trained=("sft", "rl"), temperature=0.0)
    both = [*entries, *read_runs([after])[0]]
    first, second = asked([spawned, tuned], both)
    assert {one.rival.entry.stages[-1] for one in first.rivals.values()} == {"sft"} and first.note == ""
    assert {one.rival.entry.stages[-1] for one in second.rivals.values()} == {"rl"} and second.note == ""
    rl = asked(both, both, RL)
    assert [one.model.name for one in rl] == ["spawn/join RL", "SoS+ RL"]
    for question in rl:
        for one in question.rivals.values():
            assert one.rival.entry.solver == question.model.entry.solver and not one.rival.entry.tuned
    assert asked([spawned], [spawned]) == [] and asked([tuned], [tuned], RL) == []


def test_other_problems_are_compared_unpaired_and_say_so(entries: list[Entry], tmp_path: Path) -> None:
    _, _, spawned, _ = entries
    other = evaluation(tmp_path / "other", make_data(tmp_path / "data", numbers=4), "sos_plus", [0])
    [rival] = read_runs([other])[0]
    found = compared(contenders(spawned)[0], contenders(rival)[0])
    assert not found.paired and found.alone == (None, None)
    assert found.where == "on 40 and 40 problems, none of them the same"
    assert paired([spawned, rival]).records == []
    overlapping = evaluation(tmp_path / "overlapping", make_data(tmp_path / "more", high=11), "sos_plus", [0])
    [rival] = read_runs([overlapping])[0]
    shared = {one.problem for one in spawned.attempts} & {one.problem for one in rival.attempts}
    found = compared(contenders(spawned)[0], contenders(rival)[0])
    assert found.paired and 0 < found.a.n == len(shared) < 40


def test_newcombes_interval_is_that_of_his_paper() -> None:
    """Statistics in Medicine 17 (1998), table II: method 10."""
    for (a, m, b, n), (low, high) in {
        (56, 70, 48, 80): (0.0524, 0.3339), (9, 10, 3, 10): (0.1705, 0.8090), (10, 10, 0, 10): (0.6075, 1.0),
        (0, 10, 0, 20): (-0.1611, 0.2775),
    }.items():  # fmt: skip
        assert Unpaired(a, m, b, n).gain_interval == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert Unpaired(3, 4, 1, 4).p_value == pytest.approx(0.4857, abs=1e-4)  # Fisher's tea


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_unpaired_intervals_hold_the_difference_and_stay_within_bounds(m: int, n: int, draw: st.DataObject) -> None:
    test = Unpaired(draw.draw(st.integers(0, m)), m, draw.draw(st.integers(0, n)), n)
    low, high = test.gain_interval
    assert -1 - 1e-9 <= low <= test.gain + 1e-9 and test.gain - 1e-9 <= high <= 1 + 1e-9


def test_every_pair_names_its_ratios_and_votes(entries: list[Entry]) -> None:
    records = paired(entries).records
    assert len(records) == 10  # of five rows: the votes are two, the first sample and cons@3
    assert {record["n"] for record in records} == {40} and all(record["work_ratio"] for record in records)


def test_rows_say_how_many_problems_they_had(entries: list[Entry], tmp_path: Path) -> None:
    mean, cons, any_ = rows_of(entries[1], None)
    assert (mean.problems, mean.summary.n) == (40, 120) and cons.problems == any_.problems == 40
    build_report([one.evaluation.folder for one in entries], None, tmp_path / "report", "Report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "40 problems, 120 attempts" in page
    with (tmp_path / "report" / "data" / "results.csv").open() as file:
        assert [(line["problems"], line["attempts"]) for line in csv.DictReader(file)][1] == ("40", "120")
    for name in ("prices", "other_systems"):
        with (tmp_path / "report" / "data" / f"{name}.csv").open() as file:
            assert {line["problems"] for line in csv.DictReader(file)} == {"40"}


def test_lines_of_one_model_under_several_windows_are_told_apart(data: Path, tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / f"w{window}_{n}", data, "spawn_join", [n], limits={"context": window},
                   condition={"kind": "children", "value": n})
        for window in (90, 100) for n in (2, 6)
    ]  # fmt: skip
    entries, _ = read_runs(folders)
    charts = [chart for figure in paper_figures(entries) for chart in figure.ours]
    for chart in charts:
        looks = [look(one.place, one.dash)[:2] for one in apart(chart.series)]
        assert len(looks) == len(set(looks))
    assert any(len(chart.series) == 2 for chart in charts)
