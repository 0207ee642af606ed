"""The study's runner and its tests: what is made, in which order, beside what; and what is concluded from attempts."""

import gzip
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from solver_evaluations import evaluation, make_data

from apr.runs import locked

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import findings  # noqa: E402 (found by the line above)
import study  # noqa: E402
from findings import Tried, compared, within, worst_loss  # noqa: E402
from study import Runner, Stage, Study  # noqa: E402


class Made(Runner):
    """Stages that only leave their product; `failing` does not. `a` and `b` wait for each other."""

    def __init__(self, out: Path, rows: list[list[Stage]], failing: str = "") -> None:
        super().__init__(Study(out, threads=1), rows)
        self.failing = failing
        self.begun: list[tuple[str, frozenset[str]]] = []  # each with what was running beside it
        self.guard, self.both = threading.Lock(), threading.Barrier(2, timeout=60)

    def make(self, stage: Stage) -> None:
        with self.guard:
            self.begun.append((stage.name, frozenset(self.running - {stage.name})))
        if stage.name in ("a", "b"):
            self.both.wait()
        if stage.name == self.failing:
            raise SystemExit("no")
        product = self.study.out / stage.name / study.DONE[stage.command]
        product.parent.mkdir(parents=True)
        product.touch()


DATA, A, B = Stage("data", "data", ()), Stage("a", "sft", ()), Stage("b", "sft", ())
TRIED, TIMED = Stage("eval/a", "eval", ()), Stage("eval/a_alone", "eval", (), timed=True)
ROWS = [[DATA, A, TRIED, TIMED], [DATA, B], [DATA, A, Stage("c", "rl", ())]]


def test_stages_run_beside_each_other_once_what_they_need_is_there(tmp_path: Path) -> None:
    runner = Made(tmp_path, ROWS)
    runner.run(jobs=2)
    beside = dict(runner.begun)
    assert len(beside) == len(runner.begun) == 6  # each once, whatever rows it is in
    assert [name for name, _ in runner.begun][0] == "data" and beside["data"] == frozenset()
    assert runner.begun[-1] == ("eval/a_alone", frozenset())
    again = Made(tmp_path, ROWS)
    again.run(jobs=2)
    assert again.begun == []


def test_a_stage_that_fails_ends_the_study_and_what_runs_beside_it_ends_well(tmp_path: Path) -> None:
    runner = Made(tmp_path, ROWS, failing="a")
    with pytest.raises(SystemExit, match="no"):
        runner.run(jobs=2)
    assert {name for name, _ in runner.begun} == {"data", "a", "b"} and (tmp_path / "b").is_dir()


class Interrupted(Made):
    """The first stage goes on until the study is told to stop; only then is there what the others need."""

    def __init__(self, out: Path, rows: list[list[Stage]]) -> None:
        super().__init__(out, rows)
        self.making = threading.Event()

    def make(self, stage: Stage) -> None:
        self.making.set()
        with self.changed:
            assert self.changed.wait_for(lambda: self.stopped, timeout=60)
        super().make(stage)


def test_once_interrupted_no_further_stage_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Interrupted(tmp_path, ROWS)

    def struck(_: Future[None]) -> None:  # where Control-C finds the main thread
        assert runner.making.wait(timeout=60)
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", struck)
    with pytest.raises(KeyboardInterrupt):
        runner.run(jobs=2)
    assert [name for name, _ in runner.begun] == ["data"]


def test_one_study_at_a_time_writes_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "--out", str(tmp_path)])
    with locked(tmp_path), pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 2 and "is in use by process" in capsys.readouterr().err


def tried(correct: bool, context: int = 50) -> Tried:
    return Tried(correct, "answered", context, 100, 60, 3, 1.0)


def test_models_are_compared_on_the_problems_that_both_tried() -> None:
    a = {"1": tried(True), "2": tried(True, 200), "3": tried(False), "only a": tried(True)}
    b = {"3": tried(True), "2": tried(False), "1": tried(False), "only b": tried(True)}
    assert (compared(a, b).n, compared(a, b).only_a, compared(a, b).only_b) == (3, 2, 1)
    assert (compared(a, b, within(128)).only_a, compared(a, b, within(128)).only_b) == (1, 1)


def test_the_one_sided_bound_is_inside_the_two_sided_interval() -> None:
    a = {str(i): tried(i % 10 != 0) for i in range(2000)}
    b = {str(i): tried(i % 9 != 0) for i in range(2000)}
    test = compared(a, b)
    assert test.gain_interval[0] < worst_loss(test) < test.gain
    # By hand: 177 and 200 solved by one alone of 2000, and a half added to each of four outcomes.
    assert (test.only_a, test.only_b) == (200, 177)
    assert worst_loss(test) == pytest.approx((23 - 1.6448536 * (378 - 23**2 / 2002) ** 0.5) / 2002)


def test_attempts_are_published_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "PUBLISHED", tmp_path / "published")
    folder = evaluation(tmp_path / "model_T0", make_data(tmp_path / "data"), "spawn_join", [0])
    findings.publish_attempts(folder)
    findings.attempts.cache_clear()
    read = findings.attempts("model_T0")
    whole = {one.problem: one for one in findings.read_evaluation(folder).attempts}
    assert read and list(read) == list(whole)
    for problem, one in read.items():
        of, stop = whole[problem].costs, whole[problem].stop.value
        costs = (of["context"], of["work"], of["span_sampled"], of["threads"], pytest.approx(of["seconds"], abs=1e-3))
        assert one == (whole[problem].correct, stop, *costs)
    assert findings.attempts("other") is None


def published(folder: Path, name: str, solved: int, context: int = 50, stop: str = "answered") -> None:
    """Ten attempts at the problems 0 to 9, of which the first `solved` are correct."""
    path = folder / "attempts" / f"{name}.csv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{i},{int(i < solved)},{stop},{context},100,{context + 10},3,1.0" for i in range(10)]
    path.write_bytes(gzip.compress("\n".join((",".join(("problem", *Tried._fields)), *rows)).encode()))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(findings, "PUBLISHED", tmp_path)
    findings.attempts.cache_clear()
    yield tmp_path
    findings.attempts.cache_clear()


def test_gains_are_averaged_over_the_seeds_that_are_there(results: Path) -> None:
    for ending, spawned, serial in (("", 8, 6), ("_seed2", 7, 6)):
        published(results, f"sft_spawn_join{ending}_T0", spawned)
        published(results, f"sft_serial{ending}_T0", serial)
    published(results, "sft_serial_seed1_T0", 6)  # the other is not there yet
    rows = {(what, t): rest for what, t, *rest in findings.over_seeds()}
    # By hand: mean 15, deviation 7.071, divided by root 2 is 5; Student's point for one degree of freedom is 12.706.
    assert rows["spawn/join over serial, SFT, within 400", "0"] == ["+20.0, +10.0", "+15.0 (-48.5 to +78.5)"]
    assert {t for _, t in rows} == {"0"} and len(rows) == len(findings.WINDOWS)


def test_an_attempt_that_a_limit_cut_did_not_end_within_its_budget(results: Path) -> None:
    published(results, "rl_spawn_join_T0", 9, context=100)
    published(results, "rl_context_T0", 8, context=64)
    published(results, "rl_free_context_T0", 8, context=64, stop="context")
    shares = {
        name: (ended.split("%")[0], correct.split("%")[0]) for name, _, _, ended, correct, *_ in findings.bounded()
    }
    assert shares == {
        "rl_spawn_join": ("0.0", "0.0"),
        "rl_context": ("100.0", "80.0"),
        "rl_free_context": ("0.0", "80.0"),
    }


def test_a_price_is_weighed_against_the_run_without_it(results: Path) -> None:
    published(results, "rl_spawn_join_T0", 9, context=90)
    published(results, "rl_span_T0", 8, context=70)
    published(results, "rl_eager_span_T0", 5)
    rows = {row[0]: row for row in findings.priced()}
    assert rows["rl_span"][1:5] == ("rl_spawn_join", "10", "span_sampled", "100 to 80 (-20.0%)")
    assert rows["rl_span"][5].startswith("-10.0 ") and rows["rl_eager_span"][1] == "rl_spawn_join"


def test_the_last_fifth_of_sft_is_averaged_over_the_seeds(results: Path) -> None:
    for ending, before, after in (("", 6, 7), ("_seed1", 6, 5)):
        published(results, f"sft_serial{ending}_80", before)
        published(results, f"sft_serial{ending}_100", after)
    [row] = findings.over_seeds()
    assert row[:3] == ("SFT's last fifth, serial, validation", "0", "+10.0, -10.0") and row[3].startswith("+0.0 ")


def test_students_of_the_papers_setting_stand_beside_its_numbers(results: Path) -> None:
    published(results, "paper_sos_plus_T0", 4)
    published(results, "paper_spawn_join_T0", 7, stop="malformed")
    published(results, "paper_unfolded_T0", 5)
    rows = {row[0]: row for row in findings.published()}
    assert {name: row[4] for name, row in rows.items()} == {"sos_plus": "57.3%", "spawn_join": "75.5%", "unfolded": ""}
    gains = {name: [cell.split(" ")[0] for cell in row[-2:]] for name, row in rows.items()}
    assert gains == {"sos_plus": ["", "-30.0"], "spawn_join": ["+30.0", ""], "unfolded": ["+10.0", "-20.0"]}
    assert rows["spawn_join"][-3].startswith("100.0%") and rows["unfolded"][-3].startswith("0.0%")


def test_what_needs_a_gpu_is_made_when_asked_for_alone(tmp_path: Path) -> None:
    rows = Study(tmp_path, threads=1).rows()
    assert {name for name in rows if name not in study.unasked(rows)} == {
        f"paper_{solver}{ending}" for solver in ("sos_plus", "spawn_join", "unfolded") for ending in ("", "_sft")
    }
    assert {stage.command for stage in rows["paper_unfolded_sft"]} == {"data", "sft"}
    assert not any("paper" in stage.name for name in study.unasked(rows) for stage in rows[name])
