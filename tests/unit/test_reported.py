"""Reports of evaluations: whole, rightly labelled, or refused with a way out."""

import csv
import gzip
import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import PROBLEMS, Place

from apr.cli import main
from apr.config import DataConfig, RlConfig
from apr.data.generate import generate
from apr.errors import ConfigError, DataError, EngineLostError, RunDirectoryError, SchemaError, UserError
from apr.evaluation.run import evaluate
from apr.presets import check, dump, load
from apr.threads.codec import TraceWriter, from_json, read_traces, to_json


def lead(page: str) -> str:
    found = re.search(r'<p class="lead">(.*?)</p>', page)
    assert found is not None
    return re.sub(r" with [\d,]+ tokens of work", "", found[1])


def test_a_report_needs_no_checkpoint(place: Place) -> None:
    place.checkpoint("tuned", trained=["sft", "rl"])
    folders = [place.evaluation("before"), place.evaluation("after", checkpoint=place.folder / "tuned")]
    first = lead(place.report(*folders))
    shutil.rmtree(place.folder / "model")
    shutil.rmtree(place.folder / "tuned")
    assert lead(place.report(*folders)) == first
    assert (
        first == f"Greedy accuracy on {PROBLEMS} test problems in a context window of 128: SoS+ SFT 0.0%, SoS+ RL 0.0%."
    )


def test_the_lead_names_what_each_accuracy_costs(place: Place) -> None:
    assert re.search(r"SoS\+ SFT 0.0% with \d+ tokens of work", place.report(place.evaluation()))


def test_evaluations_of_the_same_kind_go_by_what_tells_them_apart(place: Place) -> None:
    place.checkpoint("tuned", trained=["sft", "rl"])
    place.checkpoint("again", trained=["sft", "rl"], reward={"budgets": {"work": 90, "context": None}})
    folders = [
        place.evaluation(name, checkpoint=place.folder / name.removeprefix("e_")) for name in ("e_tuned", "e_again")
    ]
    assert "SoS+ RL 0.0%, SoS+ RL, work ≤ 90 0.0%" in lead(place.report(*folders))
    place.checkpoint("soft", trained=["sft", "rl"], reward={"soft_span": {"budget": 60, "weight": 0.25}})
    soft = place.evaluation("soft", checkpoint=place.folder / "soft")
    assert "SoS+ RL 0.0%, SoS+ RL, span dear beyond 60 0.0%" in lead(place.report(folders[0], soft))
    hot = place.evaluation("hot", checkpoint=place.folder / "tuned", temperature=0.5)
    page = place.report(folders[0], hot)
    assert "SoS+ RL, T=0 0.0%" in lead(page) and "SoS+ RL, T=0.5" in page
    other = place.evaluation("more/e_again", checkpoint=place.folder / "again")
    page = lead(place.report(folders[1], other))
    assert f"SoS+ RL in {folders[1].parent} 0.0%, SoS+ RL in {other.parent} 0.0%" in page
    assert "SoS+ RL (e_again) 0.0%, SoS+ RL (third) 0.0%" in lead(
        place.report(folders[1], place.evaluation("third", checkpoint=place.folder / "again"))
    )
    shutil.rmtree(place.out)
    assert "given twice" in place.refused(DataError, folders[0], place.folder / "x" / ".." / "e_tuned")


def notices(page: str) -> list[str]:
    found = re.search(r'<ul class="notices".*?>(.*?)</ul>', page)
    return re.findall("<li>(.*?)</li>", html.unescape(found[1])) if found else []


def paired(place: Place) -> dict[str, str]:
    """The first paired test of the report."""
    with (place.out / "data" / "paired.csv").open() as file:
        return next(csv.DictReader(file))


def test_other_limits_are_told(place: Place) -> None:
    page = place.report(place.evaluation("a"), place.evaluation("b", limits={"context": 64}))
    said = notices(page)
    assert "SoS+ SFT (b) was evaluated under other limits than SoS+ SFT (a): context 64 instead of 128." in said
    assert "context windows that are not all the same" in lead(page)


def test_other_problems_are_told_and_not_paired(place: Place) -> None:
    same = [place.evaluation("a"), place.evaluation("b")]
    page = place.report(*same)
    assert not notices(page)
    table = place.out / "data" / "paired.csv"
    assert len(table.read_text().splitlines()) == 2
    page = place.report(same[0], place.evaluation("c", split="validation"))
    said = notices(page)
    assert len(said) == 1 and "paired tests are made on those that two have in common" in said[0]
    assert "split test of data" in said[0] and "split validation of data" in said[0]
    assert not table.exists()


def test_fewer_of_the_same_problems_are_told_and_paired_on_those(place: Place) -> None:
    page = place.report(place.evaluation("a"), place.evaluation("d", problems=2))
    said = notices(page)
    assert len(said) == 1 and "Evaluated on fewer problems than others: SoS+ SFT (d) (2 of 4)." in said[0]
    assert paired(place)["n"] == "2"


def test_other_temperatures_are_told_and_paired(place: Place) -> None:
    place.checkpoint("other", solver="other")
    page = place.report(
        place.evaluation("a"), place.evaluation("hot", checkpoint=place.folder / "other", temperature=1.0)
    )
    assert any("Not all models were evaluated at one temperature" in one for one in notices(page))
    assert paired(place)["n"] == "4"


def test_other_thresholds_are_told(place: Place) -> None:
    place.checkpoint("other", solver="other")
    strict, lax = place.evaluation("a"), place.evaluation("lax", checkpoint=place.folder / "other", threshold=0.5)
    assert any("its own verdict" in one and "a score of 0.5" in one for one in notices(place.report(strict, lax)))


def test_many_evaluations_say_what_is_not_drawn(place: Place) -> None:
    for number in range(10):
        place.checkpoint(f"m{number}", solver=f"s{number}")
    budgets = {"context": 64}
    many = [place.evaluation(f"e{n}", checkpoint=place.folder / f"m{n}", budgets=budgets) for n in range(10)]
    said = notices(place.report(*many))
    points = (place.out / "data" / "budgets_context.csv").read_text().splitlines()[1:]
    assert len({point.partition(",")[0] for point in points}) == len(points) == 10
    assert "Cards and traces are of the first 8 of 10 models; tables have all." in said


def test_sampled_attempts_are_not_called_greedy(place: Place) -> None:
    sampled, greedy = place.evaluation("sampled", temperature=0.5), place.evaluation("greedy")
    alone = lead(place.report(sampled))
    assert alone.startswith("Accuracy, sampled at temperature 0.5, on") and "reedy" not in alone
    place.checkpoint("other", solver="other")
    other = place.evaluation("other_eval", checkpoint=place.folder / "other")
    both = lead(place.report(sampled, other))
    assert "SoS+ SFT 0.0% (sampled at temperature 0.5), other SFT 0.0% (greedy)" in both and "Greedy" not in both
    assert lead(place.report(sampled, greedy)).startswith(
        "Greedy accuracy"
    )  # of one model the greedy one stands for both


def test_votes_stand_beside_the_greedy_row(place: Place) -> None:
    page = place.report(place.evaluation("one"), place.evaluation("many", samples=2, temperature=1.0, problems=2))
    assert "SoS+ SFT cons@2" in page and "any of 2 samples a problem at temperature 1, 2 problems" in page


def test_an_interrupted_evaluation_says_what_is_missing(place: Place) -> None:
    whole = place.evaluation("whole")
    place.dies_at = 3
    with pytest.raises(EngineLostError):
        place.evaluation()
    folder, place.dies_at = place.folder / "eval", 1_000
    page = place.report(whole, folder)
    said = notices(page)
    assert len(said) == 1 and "2 of 4 attempts are missing; its numbers are of the other 2" in said[0]
    assert paired(place)["n"] == "2"  # those that both tried
    command = re.search(r"`apr (.*?)`", said[0])
    assert command is not None and main(command[1].split()) == 0  # as it says
    assert not notices(place.report(whole, folder))
    (folder / "traces.jsonl.gz").write_bytes(b"")
    shutil.rmtree(place.out)
    assert "holds no trace that can be read" in place.refused(DataError, folder)


def test_a_line_that_cannot_be_read_is_named_and_skipped(place: Place) -> None:
    folder = place.evaluation()
    path = folder / "traces.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    path.write_bytes(gzip.compress(b"\n".join([lines[0], lines[1][:40], *lines[2:]]) + b"\n"))
    said = notices(place.report(folder))
    assert "1 lines of its traces cannot be read and were skipped" in said[0] and f"{path}, line 2:" in said[0]
    assert "1 of 4 attempts are missing" in said[1]
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n")[:-20])
    assert "the file is cut off here" in notices(place.report(folder))[0]


def test_traces_of_a_newer_schema_are_refused(place: Place) -> None:
    folder = place.evaluation()
    path = folder / "traces.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).replace(b'"apr.trace/1"', b'"apr.trace/2"', 1)
    path.write_bytes(gzip.compress(lines))
    said = place.refused(SchemaError, folder)
    assert f"{path}, line 1" in said and "'apr.trace/2'" in said and "a version of apr that knows" in said


def spoil(name: str, content: str | None) -> Callable[[Path], Path]:
    def spoilt(folder: Path) -> Path:
        path = folder / name
        path.unlink() if content is None else path.write_text(content)
        return path

    return spoilt


@pytest.mark.parametrize(
    "spoilt",
    [
        spoil("config.yaml", None),
        spoil("config.yaml", ""),
        spoil("config.yaml", "a: ["),
        spoil("config.yaml", "samples: many"),
        spoil("config.yaml", "samples: 1"),
        spoil("manifest.json", None),
        spoil("manifest.json", "{"),
        spoil("manifest.json", '{"card": [], "speller": "compact", "vocabulary": "a", "traces": 4, "data_hash": "a"}'),
        spoil("traces.jsonl.gz", "no gzip"),
    ],
)
def test_a_spoilt_evaluation_is_named(place: Place, spoilt: Callable[[Path], Path]) -> None:
    folder = place.evaluation()
    path = spoilt(folder)
    assert str(path) in place.refused(UserError, folder)


def test_the_teacher_is_run_on_the_problems_of_the_evaluation(place: Place) -> None:
    folder = place.evaluation()
    assert f"sos_plus, {PROBLEMS} problems" in place.report(folder)
    assert f"sos_plus, {PROBLEMS} problems" in place.report(folder, data=place.data)
    shutil.rmtree(place.data)
    assert "its solver itself" not in place.report(folder)
    shutil.rmtree(place.out)
    assert "nosuch" in place.refused(DataError, folder, data=place.folder / "nosuch")


def test_a_teacher_that_the_data_does_not_know(place: Place) -> None:
    place.checkpoint(solver="someone")
    folder = place.evaluation()
    assert "someone SFT 0.0%" in lead(place.report(folder))
    shutil.rmtree(place.out)
    said = place.refused(DataError, folder, data=place.data)
    assert "no solver someone" in said and "sos_plus" in said and str(place.data) in said


def rl_run(place: Place, name: str = "rl", **changes: Any) -> Path:
    rl = place.folder / name
    rl.mkdir()
    (rl / "config.yaml").write_text(dump(check(RlConfig, changes, "test")))
    (rl / "metrics.jsonl").write_text('{"step": 0, "reward/success": 0.5}\n')
    return rl


@pytest.mark.parametrize("line", ['{"step": 1, "rew', "[1]", '{"reward/success": 1.0}', "\u2028"])
def test_curves_that_are_cut_off(place: Place, line: str) -> None:
    rl = rl_run(place)
    folder = place.evaluation()
    assert "RL: success by step" in place.report(folder, rl)
    shutil.rmtree(place.out)
    with (rl / "metrics.jsonl").open("a") as file:
        file.write(line)
    said = place.refused(DataError, folder, rl)
    assert f"{rl / 'metrics.jsonl'}, line 2" in said and f"--resume {rl}" in said
    (rl / "config.yaml").unlink()
    assert str(rl / "config.yaml") in place.refused(ConfigError, folder, rl)


def test_runs_are_compared_with_what_was_changed(place: Place) -> None:
    runs = [rl_run(place, "first"), rl_run(place, "second", learner={"lr": 1e-3}, reward={"budgets": {"work": 60}})]
    page = place.report(place.evaluation(), *runs)
    changed = (place.out / "data" / "rl_changes.csv").read_text().splitlines()
    assert changed == ["key,first,second", "reward.budgets.work,,60", "learner.lr,0.0002,0.001"]
    assert "What was changed between the runs" in page and "second: correct within budgets" in page
    assert "named" not in notices(page)
    shutil.rmtree(place.out)
    assert "given twice" in place.refused(DataError, place.folder / "eval", runs[0], runs[0])


def test_folders_that_are_no_runs(place: Place) -> None:
    assert "is no folder" in place.refused(DataError, place.folder / "nosuch")
    assert "neither an evaluation" in place.refused(DataError, place.data)


def test_rl_runs_alone_are_a_report(place: Place) -> None:
    runs = [rl_run(place, "first"), rl_run(place, "second", learner={"lr": 1e-3})]
    for given in ([runs[0]], runs):
        page = place.report(*given)
        assert lead(page) == "RL runs alone: no evaluation is among the folders."
        assert "RL: success by step" in page and "How this report was made" in page
        for missing in ("<h2>Results", "<h2>Traces", "<h2>Prices"):
            assert missing not in page
        summary = (place.out / "summary.md").read_text(encoding="utf-8")
        assert "RL runs alone" in summary and "## Results" not in summary
        assert (place.out / "data" / "rl_runs.csv").is_file()
        shutil.rmtree(place.out)
    assert main(["report", str(runs[0]), "--out", str(place.out)]) == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"data": "long"}'])
def test_wall_times_that_are_corrupt(place: Place, content: str) -> None:
    folder = place.evaluation()
    (place.folder / "stages.json").write_text(content)
    said = place.refused(DataError, folder)
    assert str(place.folder / "stages.json") in said and "delete" in said


def test_a_folder_that_only_looks_like_a_report_is_left_alone(place: Place) -> None:
    place.out.mkdir()
    (place.out / "summary.md").write_text("mine")
    with pytest.raises(RunDirectoryError, match="holds something else than a report"):
        place.report(place.evaluation())
    assert (place.out / "summary.md").read_text() == "mine"


def test_lines_that_are_readable_but_unfit_are_skipped(place: Place) -> None:
    folder = place.evaluation()
    path = folder / "traces.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    lines[1]["outcome"] = None
    lines[2] = lines[0]
    path.write_bytes(gzip.compress("".join(f"{json.dumps(line)}\n" for line in lines).encode()))
    said = notices(place.report(folder))
    assert "2 lines of its traces cannot be read" in said[0]
    assert "line 2 has no outcome" in said[0] and "line 3 tries a problem again" in said[0]
    assert f"Delete {path} and call" in said[1]


@pytest.mark.parametrize(
    "card",
    [{"solver": ["a"]}, {"trained": None}, {"reward": {"budgets": {"work": "abc"}}}, {"reward": {"budgets": {"x": 1}}}],
)
def test_cards_that_are_none(place: Place, card: dict[str, Any]) -> None:
    folder = place.evaluation()
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**facts, "card": card}))
    assert "its card is none that a checkpoint has" in place.refused(DataError, folder)
    (folder / "manifest.json").write_text(json.dumps({**facts, "traces": True}))
    assert "corrupt (traces)" in place.refused(DataError, folder)


def test_a_teacher_of_other_data_is_left_out(place: Place) -> None:
    folder = place.evaluation()
    config = place.data / "config.yaml"
    content = check(DataConfig, {**load(DataConfig, [config]).model_dump(), "seed": 5, "out": place.data}, "test")
    shutil.rmtree(place.data)
    generate(content)
    assert "its solver itself" not in place.report(folder)


def test_a_report_that_cannot_be_written(place: Place) -> None:
    folder = place.evaluation()
    assert "holds something else than a report" in place.refused(RunDirectoryError, folder, out=folder)
    assert "is a file" in place.refused(RunDirectoryError, folder, out=folder / "config.yaml")
    below = folder / "config.yaml" / "report"
    assert f"cannot write {below}" in place.refused(RunDirectoryError, folder, out=below)


def test_traces_that_lost_their_engine_are_not_scored(place: Place) -> None:
    """As they were written before a lost engine ended the evaluation."""
    folder = place.evaluation()
    traces = [
        json.loads(json.dumps(line).replace('"answered"', '"engine_lost"').replace('"no_answer"', '"engine_lost"'))
        for line in map(to_json, read_traces(folder / "traces.jsonl.gz"))
    ]
    (folder / "traces.jsonl.gz").unlink()
    with TraceWriter(folder / "traces.jsonl.gz") as writer:
        for line in traces:
            writer.append(from_json(line))
    assert "delete that file" in place.refused(DataError, folder)
    with pytest.raises(RunDirectoryError, match="delete that file"):
        evaluate(place.config())
