"""The trace view: what is drawn of a trace, a page written as traces come, and what `apr view` takes and refuses."""

import base64
import gzip
import json
import re
import runpy
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import apr.report.viewer
from apr.cli import main
from apr.config import DataConfig, EvalConfig, RlConfig
from apr.errors import DataError
from apr.evaluation.folder import TRACES
from apr.presets import check
from apr.protocols.serial import Serial
from apr.protocols.spawn_join import SpawnJoin
from apr.report.spelling import spelling
from apr.report.timeline import summary, trace_data
from apr.report.viewer import NOTHING, Source, trace_view, write_view
from apr.runs import run_directory
from apr.seeds import SplitMix64
from apr.threads.codec import TraceWriter, from_json, to_json
from apr.threads.trace import Outcome, StopReason, StrandId, Thread, Trace
from apr.tokens.vocabulary import TOKENIZER_FILE
from envs.countdown.compact import CompactSpeller
from envs.countdown.env import Countdown
from envs.countdown.log import Node
from envs.countdown.wording import encode
from solvers.search import SearchOptions, search

VOCABULARY = CompactSpeller().vocabulary
PROBLEMS = [((3, 5, 8), 24), ((2, 9, 11), 29), ((4, 6, 7), 45), ((1, 2, 3), 50)]
SPELT = {"speller": "compact", "vocabulary": VOCABULARY.hash}
BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "viewer.py"))


def attempts(depth: int) -> list[Trace]:
    protocol = SpawnJoin(VOCABULARY.control) if depth else Serial(VOCABULARY.control)
    traces = []
    for numbers, target in PROBLEMS:
        log = search(target, Node(numbers, ()), SearchOptions(6, 3, spawn_depth=depth), SplitMix64(0))
        problem = {"id": f"{target}:{numbers}", "numbers": list(numbers), "target": target}
        traces.append(encode(log, CompactSpeller(), protocol, problem))
    return traces


def unpacked(page: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The index of a page, and its traces."""
    index = re.findall(r'<script type="application/json" id="apr-index">(.*?)</script>', page, re.DOTALL)
    blobs = re.findall(r'<script type="text/plain" id="apr-trace-(\d+)">(.*?)</script>', page)
    assert len(index) == 1 and [int(number) for number, _ in blobs] == list(range(len(blobs)))
    return json.loads(index[0]), [json.loads(zlib.decompress(base64.b64decode(blob))) for _, blob in blobs]


# ---- what is drawn ---------------------------------------------------------------------------------------------------
def test_timeline_follows_the_longest_chain() -> None:
    trace = max(attempts(1), key=lambda one: len(one.threads))
    data = trace_data(trace)
    assert len(trace.threads) > 2
    ends: list[int] = []
    for strand, drawn in zip(trace.strands, data["strands"]):
        waited_for = [ends[i] for i in drawn["after"]]
        assert drawn["start"] == max(waited_for, default=0)
        assert drawn["length"] == len(strand.sampled)
        assert [trace.strands[i].id for i in drawn["after"]] == list(strand.after)
        ends.append(drawn["start"] + drawn["length"])
    critical = [drawn for drawn in data["strands"] if drawn["critical"]]
    assert trace.costs is not None
    assert data["span_sampled"] == sum(drawn["length"] for drawn in critical) == trace.costs.span_sampled
    root, first, *others = data["threads"]
    spawn_end = data["strands"][root["strands"][0]]["length"]
    assert first["start"] == spawn_end and all(child["start"] == spawn_end for child in others)
    assert (root["parent"], first["parent"], first["depth"]) == (None, "r", 1)


def test_thread_without_room_is_drawn_where_its_siblings_start() -> None:
    trace = max(attempts(1), key=lambda one: len(one.threads))
    starved = Thread("r.9", "r", 1, (), StopReason.CONTEXT)
    data = trace_data(replace(trace, threads=(*trace.threads, starved)))
    assert data["threads"][-1]["start"] == data["threads"][1]["start"] > 0
    assert data["threads"][-1]["strands"] == []
    # With no sibling that started either: where the parent's first strand ends.
    alone = replace(trace, threads=(trace.threads[0], starved), strands=trace.strands[:1])
    alone = replace(alone, threads=(replace(trace.root, strands=(StrandId("r", 0),)), starved))
    assert trace_data(alone)["threads"][-1]["start"] == len(trace.strands[0].sampled)


def test_logprobs_are_rounded_and_plain_json() -> None:
    trace = attempts(0)[0]
    strand = trace.strands[0]
    logprobs = (float("-inf"), *(-1 / 3 for _ in strand.sampled[1:]))
    times = {"started": float("nan"), "ended": 1 / 3}
    scored = replace(trace, strands=(replace(strand, logprobs=logprobs, **times),), outcome=None)
    limits = replace(scored, limits={"work": None, "span": float("inf"), "context": 8, "odd": [1]})
    index, [drawn] = unpacked(trace_view([Source("a", [limits], VOCABULARY.text)]))
    assert drawn["strands"][0]["logprobs"][:2] == [None, -0.333]
    assert drawn["strands"][0]["times"] == [0.0, 0.3333]
    assert drawn["limits"] == {"span": "inf", "context": 8, "odd": "[1]"}
    assert (index["traces"][0]["correct"], index["traces"][0]["verdict"]) == (None, "not verified")


def test_the_index_says_what_a_trace_is_found_by() -> None:
    trace = replace(attempts(1)[0], answer="3*8=24", outcome=Outcome(StopReason.ANSWERED, True, "reaches"), step=3)
    line = summary(trace, Countdown().describe)
    assert line["title"] == "3, 5, 8 to make 24" and line["problem"] == trace.problem["id"]
    assert (line["answer"], line["correct"], line["verdict"], line["stop"]) == ("3*8=24", True, "reaches", "answered")
    assert (line["step"], line["sample"], line["threads"], line["timed"]) == (3, 0, len(trace.threads), False)
    assert line["spawns"] is (len(trace.threads) > 1)
    assert not summary(replace(trace, threads=trace.threads[:1]))["spawns"]
    assert summary(replace(trace, problem={"id": "x", "question": "why?"}))["title"] == "why?"
    assert summary(replace(trace, problem={"id": "x", "numbers": 3, "target": 4}))["title"] == "numbers 3, target 4"
    assert summary(replace(trace, problem={"id": "x"}), Countdown().describe)["title"] == "x"  # of another task


# ---- the page --------------------------------------------------------------------------------------------------------
def test_tokens_are_joined_as_the_tokenizer_joins_them() -> None:
    texts: list[tuple[Callable[[Sequence[int]], str], str]] = [
        (VOCABULARY.text, " "),
        (lambda ids: "".join(f" {i}" for i in ids), ""),
    ]
    for text, space in texts:
        index, _ = unpacked(trace_view([Source("a", attempts(1)[:1], text)]))
        assert index["spellings"][0]["space"] == space


def test_sources_have_a_spelling_each_and_share_an_equal_one() -> None:
    def other(ids: Sequence[int]) -> str:
        return "?" * len(ids)

    page = trace_view([Source(*one) for one in (("a", attempts(0)[:1], VOCABULARY.text), ("b", attempts(1), VOCABULARY.text),
                                                ("c", attempts(0)[1:3], other))])  # fmt: skip
    index, traces = unpacked(page)
    assert [(one["label"], one["spelling"]) for one in index["sources"]] == [("a", 0), ("b", 0), ("c", 1)]
    assert len(index["spellings"]) == 2 and set(index["spellings"][1]["pieces"].values()) == {"?"}
    assert [line["source"] for line in index["traces"]] == [0, 1, 1, 1, 1, 2, 2]
    assert traces[1] == json.loads(json.dumps(trace_data(attempts(1)[0])))


def test_no_traces_are_said_to_be_none() -> None:
    assert trace_view([]) == trace_view([Source("a", [], VOCABULARY.text)]) == NOTHING


def test_a_page_is_whole_or_not_there(tmp_path: Path) -> None:
    def breaks() -> Iterator[Trace]:
        yield from attempts(1)
        raise DataError("no more")

    out = tmp_path / "new" / "view.html"
    with pytest.raises(DataError, match="no more"):
        write_view(out, "View", [Source("a", breaks(), VOCABULARY.text)])
    assert list(out.parent.iterdir()) == []
    assert write_view(out, "<View>", [Source("a", attempts(1), VOCABULARY.text)], lambda: ["a < b"]) == 4
    assert list(out.parent.iterdir()) == [out]
    assert "<h1>&lt;View&gt;</h1>" in out.read_text() and "a &lt; b" in out.read_text()
    with pytest.raises(DataError):
        write_view(out, "View", [Source("a", breaks(), VOCABULARY.text)])
    assert "<h1>&lt;View&gt;</h1>" in out.read_text()  # what was there before is untouched


def test_memory_does_not_grow_with_the_number_of_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apr.report.viewer, "IN_MEMORY", 1 << 16)

    def peak(count: int) -> int:
        tracemalloc.start()
        source = Source("a", BENCHMARK["random_traces"](count, 20), VOCABULARY.text)
        assert write_view(tmp_path / "view.html", "View", [source]) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(120)  # what is made once and kept
    few, many = peak(15), peak(120)  # they vary by the largest trace
    assert many < few + 400_000 and (tmp_path / "view.html").stat().st_size > 1_500_000


def test_the_benchmark_s_traces_are_valid() -> None:
    for threads in (1, 2, 11, 40):
        [trace] = BENCHMARK["random_traces"](1, threads)
        assert len(trace.threads) == threads
        assert from_json(json.loads(json.dumps(to_json(trace)))) == trace


# ---- apr view --------------------------------------------------------------------------------------------------------
class Runs:
    """A folder in which evaluations and RL runs are made, and `apr view` is called."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.out = folder / "view.html"

    def evaluation(self, name: str, tries: Sequence[Trace], **facts: Any) -> Path:
        folder = self.folder / name
        with run_directory(folder, check(EvalConfig, {"out": folder}, "test"), **{**SPELT, **facts}):
            self.write(folder / TRACES, tries)
        return folder

    def rl(self, name: str, steps: dict[int, Sequence[Trace]], **facts: Any) -> Path:
        folder = self.folder / name
        with run_directory(folder, check(RlConfig, {"out": folder}, "test"), **facts):
            (folder / "traces").mkdir()
            for step, traces in steps.items():
                self.write(folder / "traces" / f"step_{step:06d}.jsonl.gz", [replace(t, step=step) for t in traces])
        return folder

    def write(self, path: Path, traces: Sequence[Trace]) -> None:
        with TraceWriter(path) as writer:
            for trace in traces:
                writer.append(trace)

    def view(self, *arguments: str | Path) -> tuple[dict[str, Any], str]:
        """The page's index, and what was said on standard error."""
        self.capsys.readouterr()
        assert main(["view", *map(str, arguments), "--out", str(self.out)]) == 0
        said = self.capsys.readouterr()
        assert str(self.out.resolve()) in said.out and said.out.count("\n") == 1
        return unpacked(self.out.read_text())[0], said.err

    def refused(self, *arguments: str | Path) -> str:
        self.capsys.readouterr()
        assert main(["view", "--out", str(self.out), *map(str, arguments)]) == 2
        said = self.capsys.readouterr()
        assert said.out == "" and said.err.startswith("apr: error: ") and "Traceback" not in said.err
        assert not self.out.exists() and not list(self.folder.rglob("*.tmp"))
        return said.err


@pytest.fixture
def runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runs:
    return Runs(tmp_path, capsys)


def test_an_evaluation_is_viewed_whole_or_in_part(runs: Runs) -> None:
    verdicts = [Outcome(StopReason.ANSWERED, i % 2 == 0, "so") for i in range(4)]
    folder = runs.evaluation("sj", [replace(one, outcome=verdict) for one, verdict in zip(attempts(1), verdicts)])
    index, said = runs.view(folder)
    assert (len(index["traces"]), index["sources"], said) == (4, [{"label": "sj", "spelling": 0}], "")
    assert "<title>Traces: sj</title>" in runs.out.read_text()
    index, _ = runs.view(folder, "--outcome", "wrong", "--title", "Mine")
    assert [line["correct"] for line in index["traces"]] == [False, False]
    assert "<title>Mine</title>" in runs.out.read_text()
    index, _ = runs.view(folder, "--outcome", "correct", "--limit", "1")
    assert [line["correct"] for line in index["traces"]] == [True]
    index, said = runs.view(runs.evaluation("counted", attempts(1), traces=4))
    assert "view counted: 4/4" in said and len(index["traces"]) == 4
    index, _ = runs.view(folder / TRACES)
    assert (len(index["traces"]), index["sources"][0]["label"]) == (4, "sj")


def test_of_an_rl_run_the_newest_step_is_viewed_or_the_one_asked_for(runs: Runs) -> None:
    run = runs.rl("rl", {0: attempts(1)[:1], 12: attempts(1)[:3]}, **SPELT)
    index, _ = runs.view(run)
    assert index["sources"][0]["label"] == "rl step 12" and [line["step"] for line in index["traces"]] == [12] * 3
    index, _ = runs.view(run, "--step", "0")
    assert index["sources"][0]["label"] == "rl step 0" and len(index["traces"]) == 1
    index, _ = runs.view(run / "traces" / "step_000000.jsonl.gz", run)
    assert [one["label"] for one in index["sources"]] == ["rl step 0", "rl step 12"]
    said = runs.view(run, runs.evaluation("sj", attempts(1)), "--step", "0")[1]
    assert said == ""


def test_an_rl_run_that_does_not_record_its_vocabulary_is_spelt_by_its_own_checkpoint(runs: Runs) -> None:
    run = runs.rl("rl", {0: attempts(1)[:1]})
    said = runs.refused(run)
    assert "is no checkpoint of this project" in said
    final = run / "checkpoints" / "step_000001"
    final.mkdir(parents=True)
    saved = {"speller": "compact", "hash": VOCABULARY.hash, "tokens": VOCABULARY.tokens}
    (final / TOKENIZER_FILE).write_text(json.dumps(saved))
    assert spelling(run)((1, 2)) == VOCABULARY.text((1, 2))
    runs.view(run)


def test_runs_of_one_name_are_told_apart_by_path(runs: Runs) -> None:
    first, second = runs.evaluation("a/eval", attempts(0)), runs.evaluation("b/eval", attempts(1))
    index, said = runs.view(first, second)
    assert [one["label"] for one in index["sources"]] == [str(first), str(second)] and said == ""


def test_sources_without_a_common_problem_are_viewed_with_a_note(runs: Runs) -> None:
    first, second = runs.evaluation("one", attempts(0)[:2]), runs.evaluation("two", attempts(1)[2:])
    index, said = runs.view(first, second)
    assert len(index["traces"]) == 4
    assert "apr: note: No two of the sources have a problem in common" in said
    assert "cannot be laid side by side" in runs.out.read_text()


def test_what_cannot_be_read_is_named_counted_and_left_out(runs: Runs) -> None:
    folder = runs.evaluation("sj", attempts(1))
    path = folder / TRACES
    good = gzip.decompress(path.read_bytes()).splitlines()
    lines = [good[0], b'{"schema": "apr.trace/1"}', good[1], good[2][:200], b"\xff<b>", good[3]]
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    index, said = runs.view(folder)
    assert len(index["traces"]) == 3 and "sj: 3 lines were left out" in said
    assert all(f"{path}, line {number}: " in said for number in (2, 4, 5))
    assert "sj: 3 lines were left out" in runs.out.read_text()
    whole = gzip.compress(b"\n".join(good[:2]) + b"\n")
    path.write_bytes(whole + gzip.compress(b"\n".join(good[2:]) + b"\n")[:-30])
    index, said = runs.view(folder)
    assert 2 <= len(index["traces"]) < 4 and "1 line was left out" in said and "cut off" in said


def test_traces_that_are_json_but_unfit_are_left_out_and_those_without_verdict_or_costs_shown(runs: Runs) -> None:
    folder = runs.evaluation("sj", attempts(1))
    good = [json.loads(line) for line in gzip.decompress((folder / TRACES).read_bytes()).splitlines()]
    timed = [{**strand, "ended": float("inf")} for strand in good[1]["strands"]]
    lines = [
        {**good[0], "outcome": None, "costs": None}, {**good[1], "problem": {"id": 3}}, {**good[1], "problem": None},
        {**good[1], "strands": timed}, {**good[1], "costs": {**good[1]["costs"], "seconds": float("nan")}}, good[2],
    ]  # fmt: skip
    (folder / TRACES).write_bytes(gzip.compress("".join(f"{json.dumps(line)}\n" for line in lines).encode()))
    index, said = runs.view(folder)
    assert [line["correct"] for line in index["traces"]] == [None, good[2]["outcome"]["correct"]]
    assert "sj: 4 lines were left out" in said and said.count("malformed trace: ") == 4


def test_a_manifest_that_counts_no_traces_is_viewed_without_progress(runs: Runs) -> None:
    for odd in (True, "4", None, 4.0):
        _, said = runs.view(runs.evaluation(f"odd {odd}", attempts(1), traces=odd))
        assert said == ""


def test_no_file_but_a_page_is_overwritten(runs: Runs) -> None:
    folder = runs.evaluation("sj", attempts(1))
    for name in ("manifest.json", "config.yaml"):
        before = (folder / name).read_bytes()
        assert f"{folder / name} exists and is no page" in runs.refused(folder, "--out", folder / name)
        assert (folder / name).read_bytes() == before
    assert "exists and is no page" in runs.refused(folder, "--out", "/dev/null")
    runs.view(folder)
    runs.view(folder, "--title", "Anew")
    assert "<title>Anew</title>" in runs.out.read_text()
    runs.out.write_text("<!DOCTYPE HTML>\n<p>of another program")
    runs.view(folder)


def test_inputs_that_cannot_be_viewed_are_refused(runs: Runs) -> None:
    folder, run = runs.evaluation("sj", attempts(1)), runs.rl("rl", {3: attempts(1), 5: attempts(0)}, **SPELT)
    missing, empty = runs.folder / "nowhere", runs.folder / "empty"
    empty.mkdir()
    assert f"there is no {missing}" in runs.refused(missing)
    assert f"{empty} is no run" in runs.refused(empty)
    assert "are the same traces" in runs.refused(folder, folder / ".." / "sj")
    assert "are the same traces" in runs.refused(run, run / "traces" / "step_000005.jsonl.gz")
    assert "--limit 0 shows nothing" in runs.refused(folder, "--limit", "0")
    assert "is of RL runs, and none is given" in runs.refused(folder, "--step", "1")
    assert "no traces of step 4, only of steps 3 to 5" in runs.refused(run, "--step", "4")
    assert "is a file already: name the run's folder" in runs.refused(
        run / "traces" / "step_000003.jsonl.gz", "--step", "5"
    )
    before = (folder / TRACES).read_bytes()
    assert "holds the traces to be viewed" in runs.refused(folder, "--out", folder / TRACES)
    assert (folder / TRACES).read_bytes() == before
    assert f"{runs.folder} is a folder: name a file" in runs.refused(folder, "--out", runs.folder)
    (runs.folder / "file").write_text("")
    assert "--out" in runs.refused(folder, "--out", runs.folder / "file" / "view.html")
    loose = runs.folder / "loose" / "deep" / "traces.jsonl.gz"
    loose.parent.mkdir(parents=True)
    loose.write_bytes((folder / TRACES).read_bytes())
    assert "leave the file where the run wrote it" in runs.refused(loose)


def test_runs_without_traces_are_refused(runs: Runs) -> None:
    silent = runs.rl("silent", {}, **SPELT)
    assert "has no traces: it has made no step yet" in runs.refused(silent)
    assert "has no traces: go on with the run" in runs.refused(runs.evaluation("none", []))
    unfinished = runs.evaluation("unfinished", [])
    (unfinished / TRACES).unlink()
    assert f"run `apr eval ... out={unfinished}` to its end" in runs.refused(unfinished)
    data = runs.folder / "data"
    with run_directory(data, check(DataConfig, {"env": "countdown", "out": data, "solvers": {}}, "test")):
        pass
    assert "the folder of an `apr data`" in (said := runs.refused(data)) and "name an evaluation" in said
    wrong = [replace(one, outcome=Outcome(StopReason.NO_ANSWER, False, "no")) for one in attempts(1)]
    assert "is correct: leave --outcome out" in runs.refused(runs.evaluation("wrong", wrong), "--outcome", "correct")


def test_files_that_are_no_traces_or_of_another_version_are_refused(runs: Runs) -> None:
    folder = runs.evaluation("sj", attempts(1))
    path = folder / TRACES
    good = path.read_bytes()
    path.write_bytes(b"not gzip at all")
    assert f"nothing in {path} can be read: {path}, line 1: the file is corrupt" in runs.refused(folder)
    path.write_bytes(good + gzip.compress(b'{"schema": "apr.trace/2"}\n'))
    said = runs.refused(folder)
    assert f"{path}, line 5: " in said and "read it with a version of apr that knows 'apr.trace/2'" in said


def test_traces_that_cannot_be_spelt_are_refused(runs: Runs) -> None:
    other = runs.evaluation("other", attempts(1), speller="chat", vocabulary="0123")
    assert "is no checkpoint of this project" in runs.refused(other)
    manifest = other / "manifest.json"
    manifest.write_text(json.dumps({"kind": "eval"}))
    assert "manifest.json is missing, corrupt, or without a fact" in runs.refused(other)
    manifest.write_text("{")
    assert "manifest.json is corrupt" in runs.refused(other)
    (runs.evaluation("bare", attempts(1)) / "config.yaml").unlink()
    assert "no configuration file" in runs.refused(runs.folder / "bare")
    [trace] = attempts(0)[:1]
    for token in (1 << 31, -1, 1 << 70):
        beyond = replace(trace, threads=(replace(trace.root, message=(token,)),))
        said = runs.refused(runs.evaluation(f"beyond {token}", [beyond]))
        assert f"has the token {token}, which is not in its run's vocabulary" in said


def test_an_id_of_the_model_that_is_no_token_is_shown_as_one(runs: Runs) -> None:
    [trace] = attempts(0)[:1]
    padded = replace(trace, threads=(replace(trace.root, message=(len(VOCABULARY),)),))
    index, said = runs.view(runs.evaluation("padded", [padded]))
    assert said == "" and "\ufffd" in json.dumps(index, ensure_ascii=False)
