"""What a reader does with the thread viewer, in a real browser."""

import runpy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apr.report.viewer import Source, page, trace_view, write_view
from apr.threads.costs import costs
from apr.threads.trace import (
    EngineStop,
    Injected,
    Origin,
    Outcome,
    Reference,
    StopReason,
    Strand,
    StrandId,
    Thread,
    Trace,
    VersionSpan,
)
from envs.countdown.compact import CompactSpeller
from envs.countdown.env import Countdown

pytestmark = pytest.mark.browser

VOCABULARY = CompactSpeller().vocabulary
HOSTILE = '</script><img src="https://example.org/x" onerror="alert(1)"> & "quoted"'
BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "viewer.py"))
ROOT, FIRST, SECOND, AFTER = StrandId("r", 0), StrandId("r.0", 0), StrandId("r.1", 0), StrandId("r", 1)
MESSAGE = [(Origin.FORCED, "<msg>")]
RETURNED = [(Origin.FORCED, "<ret>"), (Origin.MESSAGE, "7"), (Origin.FORCED, "<ret>")]
Open = Callable[..., Any]
DESCRIBE = Countdown().describe


def ids(text: str) -> tuple[int, ...]:
    return VOCABULARY.encode(text.split())


def strand(
    key: StrandId, after: tuple[StrandId, ...], told: list[tuple[Origin, str]], said: str, times: tuple[float, float],
    sees: tuple[Reference, ...] = (),
) -> Strand:  # fmt: skip
    injected = tuple(Injected(origin, ids(run)) for origin, run in told)
    n = len(ids(said))
    logprobs = tuple(-0.25 * (i + 1) for i in range(n))
    versions = (VersionSpan(7, 0, 1), VersionSpan(8, 1, n))
    return Strand(key, sees, after, 0, injected, ids(said), EngineStop.STOP, logprobs, versions, 0, *times)


def spawned(target: int, correct: bool, timed: bool = True) -> Trace:
    """Two children; over seconds the first ends last, over tokens the second."""
    strands = (
        strand(ROOT, (), [(Origin.PROMPT, f"<bos> {target} : 3 4 ;")], "<spawn> <msg> 3 <msg> 4 </spawn>", (0.0, 1.0)),
        strand(FIRST, (ROOT,), [*MESSAGE, (Origin.MESSAGE, "3")], "3 + 4 <join> 7", (1.0, 9.0)),
        strand(SECOND, (ROOT,), [*MESSAGE, (Origin.MESSAGE, "4")], "4 * 3 = 12 <join> <eos>", (1.0, 3.0)),
        strand(AFTER, (ROOT, FIRST, SECOND), RETURNED, "<join> 7 <eos>", (9.0, 10.0), (Reference(ROOT, 6),)),
    )
    if not timed:
        strands = tuple(replace(one, started=0.0, ended=0.0) for one in strands)
    threads = (
        Thread("r", None, 0, (ROOT, AFTER), StopReason.ANSWERED, ids("7")),
        Thread("r.0", "r", 1, (FIRST,), StopReason.ANSWERED, ids("7")),
        Thread("r.1", "r", 1, (SECOND,), StopReason.NO_ANSWER),
    )
    return finished(target, correct, "spawn_join", threads, strands)


def serial(target: int, correct: bool) -> Trace:
    one = strand(ROOT, (), [(Origin.PROMPT, f"<bos> {target} : 3 4 ;")], "3 + 4 = 7 " * 6, (0.0, 20.0))
    return finished(
        target, correct, "serial", (Thread("r", None, 0, (ROOT,), StopReason.CONTEXT),), (one,), StopReason.CONTEXT
    )


def finished(
    target: int, correct: bool, protocol: str, threads: tuple[Thread, ...], strands: tuple[Strand, ...],
    stop: StopReason = StopReason.ANSWERED,
) -> Trace:  # fmt: skip
    return Trace(
        {"id": f"{target}:3-4", "numbers": [3, 4], "target": target}, protocol, 0, 0, threads, strands, "3+4=7",
        Outcome(stop, correct, "reaches the target" if correct else "misses it"), costs(threads, strands),
        {"context": 64, "span": 12, "depth": 1, "seconds": 9.5}, {"span_sampled": 9, "work": 900}, {"total": 0.75},
    )  # fmt: skip


@pytest.fixture
def sources() -> list[Source]:
    """A serial and a spawned one with problems 7, 8 and 9 in common; 10 is of the spawned one alone."""
    both = [(7, True, False), (8, True, True), (9, False, False)]
    return [
        Source(
            "spawning",
            [*(spawned(t, right) for t, right, _ in both), spawned(10, False)],
            VOCABULARY.text,
            DESCRIBE,
        ),
        Source("serial", [serial(t, right) for t, _, right in both], VOCABULARY.text, DESCRIBE),
    ]


@pytest.fixture
def view(tmp_path: Path, open_page: Open, sources: list[Source]) -> "View":
    write_view(tmp_path / "view.html", "View", sources)
    return View(open_page(tmp_path / "view.html").page)


class View:
    """The page, by what a reader sees of it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.shows_drawn()

    def shows_drawn(self) -> None:
        self.page.wait_for_selector("#traces[data-drawn]", state="attached")
        self.page.wait_for_timeout(50)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(30)

    def click(self, what: str) -> None:
        self.page.click(what)
        self.page.wait_for_timeout(30)

    def texts(self, what: str) -> list[str]:
        return [str(one).strip() for one in self.page.locator(what).all_inner_texts()]

    def text(self, what: str) -> str:
        return " ".join(" ".join(self.texts(what)).split())

    def count(self, what: str) -> int:
        return int(self.page.locator(what).count())

    @property
    def place(self) -> str:
        return self.text("#v-place")

    @property
    def titles(self) -> list[str]:
        return self.texts(".panel .title")


def test_a_trace_is_drawn_with_its_lanes_arrows_path_and_lines(view: View) -> None:
    assert (view.place, view.titles) == ("1 of 7", ["3, 4 to make 7"])
    assert view.page.locator(".lane .name").all_text_contents() == ["r", "r.0", "r.1"]
    assert view.count(".timeline .strand") == 4
    assert view.count(".arrows .spawn.head") == 2
    assert view.count(".arrows .found.head") == view.count(".arrows .empty.head") == 1
    critical = [one.get_attribute("data-strand") for one in view.page.locator(".strand.critical").all()]
    assert critical == ["0", "2", "3"]  # the second child is longer in tokens
    named = view.page.locator(".axis text.line").all_text_contents()
    assert named == ["sampled span limit 12", "sampled span budget 9"]
    assert view.count(".lanes line.line") == 2
    meters = view.text(".gauges")
    assert "context 12 limit 64" in meters and "depth 1 limit 1" in meters and "work 34 budget 900" in meters
    assert "span, sampled 16 over limit 12 over budget 9" in meters and "seconds 10 over limit 9.5" in meters
    assert "critical path: its sampled tokens are the sampled span" in view.text(".key")
    label = view.page.locator(".axis text.time").first
    tick = view.page.locator(".axis text.time").nth(1).bounding_box()
    assert (
        label.text_content() == "sampled tokens"
        and label.bounding_box()["x"] + label.bounding_box()["width"] < tick["x"]
    )
    assert "total 0.75" in view.text(".facts") and "reaches the target" in view.text(".answer")


def test_a_grandchild_that_outlasts_its_parent_is_waited_for_and_not_heard(tmp_path: Path, open_page: Open) -> None:
    """r.0 spawns and has no room to go on: its parent waits for r.0.0 too, but is told nothing by it."""
    grandchild = StrandId("r.0.0", 0)
    returned = [(Origin.FORCED, "<ret>"), (Origin.FORCED, "<ret>"), (Origin.MESSAGE, "7")]
    strands = (
        strand(ROOT, (), [(Origin.PROMPT, "<bos> 7 : 3 4 ;")], "<spawn> <msg> 3 <msg> 4 </spawn>", (0.0, 1.0)),
        strand(FIRST, (ROOT,), [*MESSAGE, (Origin.MESSAGE, "3")], "<spawn> <msg> 3 </spawn>", (1.0, 2.0)),
        strand(grandchild, (FIRST,), [*MESSAGE, (Origin.MESSAGE, "3")], "3 + 4 <join> 7 <eos>", (2.0, 5.0)),
        strand(SECOND, (ROOT,), [*MESSAGE, (Origin.MESSAGE, "4")], "<join> 7 <eos>", (1.0, 3.0)),
        strand(AFTER, (ROOT, FIRST, grandchild, SECOND), returned, "<join> 7 <eos>", (5.0, 6.0)),
    )
    threads = (
        Thread("r", None, 0, (ROOT, AFTER), StopReason.ANSWERED, ids("7")),
        Thread("r.0", "r", 1, (FIRST,), StopReason.CONTEXT),
        Thread("r.0.0", "r.0", 2, (grandchild,), StopReason.ANSWERED, ids("7")),
        Thread("r.1", "r", 1, (SECOND,), StopReason.ANSWERED, ids("7")),
    )
    trace = finished(7, True, "spawn_join", threads, strands)
    write_view(tmp_path / "view.html", "View", [Source("nested", [trace], VOCABULARY.text, DESCRIBE)])
    view = View(open_page(tmp_path / "view.html").page)
    assert view.count(".arrows .spawn.head") == 3
    assert view.count(".arrows .found.head") == 1 and view.count(".arrows .empty.head") == 2
    view.click('.timeline [data-strand="4"]')
    assert view.text(".block.chosen .messages") == "r.0 <ret> nothing r.1 <ret> 7"


def test_bars_stand_where_their_strands_run(view: View) -> None:
    def bars() -> list[tuple[float, float]]:
        boxes = [one.bounding_box() for one in view.page.locator(".strand .box").all()]
        return [(box["x"], box["width"]) for box in boxes]

    root, first, second, after = bars()
    scale = second[1] / 7  # pixels a token; that of the root has a border, being chosen
    assert [width / scale for _, width in (root, first, after)] == pytest.approx([6, 5, 3], rel=0.02)
    assert first[0] == pytest.approx(second[0], abs=1) == pytest.approx(root[0] + root[1], abs=1)
    assert after[0] == pytest.approx(second[0] + second[1], abs=1)
    limit = view.page.locator(".lanes line.limit").bounding_box()["x"]
    assert limit == pytest.approx(second[0] + 6 * scale, abs=2)


def test_a_limit_far_beyond_is_named_at_the_edge(tmp_path: Path, open_page: Open) -> None:
    far = replace(spawned(7, True), limits={"span": 4096}, budgets={"span_sampled": 20})
    write_view(tmp_path / "view.html", "View", [Source("a", [far], VOCABULARY.text, DESCRIBE)])
    view = View(open_page(tmp_path / "view.html").page)
    named = view.page.locator(".axis text.line").all_text_contents()
    assert (
        named == ["sampled span limit 4,096 \u203a", "sampled span budget 20"] and view.count(".lanes line.line") == 1
    )
    edge = view.page.locator(".lanes").bounding_box()
    for label in view.page.locator(".axis text").all():
        box = label.bounding_box()
        assert box["x"] >= edge["x"] and box["x"] + box["width"] <= edge["x"] + edge["width"]


def test_over_seconds_another_path_is_critical(view: View) -> None:
    view.press("t")
    assert view.page.get_attribute("#v-seconds", "aria-pressed") == "true"
    critical = [one.get_attribute("data-strand") for one in view.page.locator(".strand.critical").all()]
    assert critical == ["0", "1", "3"]  # the first child ends last
    assert view.page.locator(".axis text.line").all_text_contents() == ["seconds limit 9.5"]
    view.click("#v-tokens")
    assert view.count(".axis text.line") == 2


def test_without_times_there_is_no_axis_of_seconds(tmp_path: Path, open_page: Open) -> None:
    write_view(
        tmp_path / "view.html",
        "View",
        [Source("a", [spawned(7, True, timed=False)], VOCABULARY.text, DESCRIBE)],
    )
    view = View(open_page(tmp_path / "view.html").page)
    assert view.page.is_disabled("#v-seconds") and view.page.is_disabled("#v-pair")
    view.press("t", "s")
    assert view.page.get_attribute("#v-tokens", "aria-pressed") == "true" and view.count(".panel") == 1
    assert view.count("#v-source:visible") == 0


def test_the_keyboard_goes_everywhere(view: View) -> None:
    view.press("ArrowRight", "ArrowRight")
    assert view.place == "3 of 7"
    view.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert view.place == "7 of 7"
    view.press("Home")
    assert view.place == "1 of 7"
    view.press("j")
    assert view.text(".detail h4").startswith("thread r ") and view.text(".block.chosen h5").startswith("strand r#1")
    view.press("ArrowDown", "j", "j")
    assert view.text(".detail h4").startswith("thread r.1")
    assert view.page.evaluate("document.activeElement.dataset.strand") == "2"
    view.press("k")
    assert view.text(".detail h4").startswith("thread r.0")
    view.press("Enter", "ArrowRight")
    assert view.text(".inspector") == "+ token 2 of 5; id 208; logprob -0.500; probability 0.607; policy version 8"
    assert view.place == "1 of 7"  # the arrow moved over tokens, not over traces
    view.press("Escape", "ArrowRight")
    assert view.place == "2 of 7"
    view.press("?")
    assert view.page.is_visible("#v-help")
    view.press("ArrowRight", "Escape")
    assert view.place == "2 of 7" and not view.page.is_visible("#v-help")


def test_the_mouse_goes_everywhere(view: View) -> None:
    view.click("#v-next")
    assert view.titles == ["3, 4 to make 8"]
    view.click("#v-previous")
    view.page.locator("#v-slider").fill("4")
    view.page.wait_for_timeout(30)
    assert (view.place, view.titles) == ("4 of 7", ["3, 4 to make 10"])
    view.click('.strand[data-strand="1"]')
    assert view.text(".detail h4").startswith("thread r.0")
    view.click('.lane[data-lane="2"] .name')
    assert view.text(".detail h4").startswith("thread r.1")


def test_a_strand_shows_its_text_messages_logprobs_and_versions(view: View) -> None:
    view.click('.strand[data-strand="1"]')
    assert view.text(".part.injected") == "message in r <msg> 3"
    assert view.text(".part.sampled em") == (
        "sampled, 5 tokens; mean logprob -0.750; policy versions 7 (tokens 1 to 1), 8 (tokens 2 to 5)"
    )
    assert view.text(".part.sampled .ids") == "3 + 4 <join> 7"
    assert view.text(".part.out") == "message out, to r 7"
    token = view.page.locator(".part.sampled .token").first
    assert token.get_attribute("title") == "token 1 of 5; id 11; logprob -0.250; probability 0.779; policy version 7"
    token.hover()
    assert "logprob -0.250" in view.text(".inspector")
    view.click('.strand[data-strand="3"]')
    assert view.text(".block.chosen .messages") == "r.0 <ret> 7 r.1 <ret> nothing"


def test_traces_are_filtered(view: View) -> None:
    assert view.texts("#v-outcome button:visible") == ["all 7", "correct 3", "wrong 4"]
    view.click('[data-kind="wrong"]')
    assert view.place == "1 of 4" and view.text(".badge") == "\u2717 wrong"
    view.page.select_option("#v-stop", "context")
    view.page.wait_for_timeout(30)
    assert view.place == "1 of 2" and "root stopped: context" in view.text(".answer")
    view.click('[data-kind="all"]')
    view.page.select_option("#v-stop", "")
    view.page.select_option("#v-source", "0")
    view.page.wait_for_timeout(30)
    assert view.place.endswith(" of 4")
    view.page.select_option("#v-stop", "context")
    view.page.wait_for_timeout(30)
    assert view.place == "none" and "widen the filters" in view.text("#v-said") and not view.page.is_visible(".panel")


def test_search_filters_traces_and_marks_strands_and_tokens(view: View) -> None:
    view.press("/")
    view.page.keyboard.type("make 10")
    view.page.wait_for_timeout(50)
    assert (view.place, view.titles) == ("1 of 1", ["3, 4 to make 10"])
    view.page.fill("#v-search", "reaches serial")
    view.page.wait_for_timeout(50)
    assert view.place == "1 of 1" and view.titles == ["3, 4 to make 8"]
    view.page.fill("#v-search", "3 = 12")  # nowhere but in the text of a strand
    view.page.wait_for_timeout(50)
    assert view.place.endswith(" of 7") and "No problem, answer or verdict has these words" in view.text("#v-said")
    view.press("Enter", "Home")
    assert [one.get_attribute("data-strand") for one in view.page.locator(".strand.hit").all()] == ["2"]
    view.press("n")
    assert view.texts(".token.hit") == ["3", "=", "12"] and view.text(".detail h4").startswith("thread r.1")
    view.press("/", "Escape")
    assert view.count(".strand.hit") == view.count(".token.hit") == 0


def test_two_traces_of_one_problem_lie_side_by_side(view: View) -> None:
    view.press("ArrowRight", "s")
    assert (view.place, view.titles) == ("2 of 3", ["3, 4 to make 8"] * 2)
    assert view.text(".panel:nth-child(1) .from").startswith("A spawning")
    assert view.text(".panel:nth-child(2) .from").startswith("B serial")
    widths = [
        view.page.locator(f".panel:nth-child({side}) .strand .box").first.bounding_box()["width"] for side in (1, 2)
    ]
    assert widths[1] / widths[0] == pytest.approx(30 / 6, rel=0.03)  # one scale for both
    view.click('[data-kind="differ"]')
    assert view.place == "1 of 1" and view.texts(".badge") == ["\u2713 correct", "\u2717 wrong"]
    view.press("x", "k", "Enter", "ArrowRight")
    assert view.text(".panel:nth-child(2) .inspector").startswith("+ token 2 of 30")
    view.page.select_option("#v-a", "1")
    view.page.select_option("#v-b", "0")
    view.page.wait_for_timeout(50)
    assert view.text(".panel:nth-child(1) .from").startswith("A serial")
    view.click("#v-pair")
    assert view.count(".panel") == 1 and view.place.endswith(" of 7")


def test_the_first_trace_shown_spawns_if_any_does(tmp_path: Path, open_page: Open, sources: list[Source]) -> None:
    spawning, alone = sources
    write_view(tmp_path / "view.html", "View", [alone, spawning])
    view = View(open_page(tmp_path / "view.html").page)
    assert view.place == "4 of 7" and view.count(".lane") == 3
    view.press("Home")
    assert view.place == "1 of 7" and view.count(".lane") == 1
    write_view(tmp_path / "alone.html", "View", [alone])
    assert View(open_page(tmp_path / "alone.html").page).place == "1 of 3"


def test_panels_are_stacked_where_it_is_narrow(tmp_path: Path, open_page: Open, sources: list[Source]) -> None:
    write_view(tmp_path / "view.html", "View", sources)
    view = View(open_page(tmp_path / "view.html", viewport={"width": 420, "height": 800}).page)
    view.press("s")
    first, second = (view.page.locator(".panel").nth(i).bounding_box() for i in (0, 1))
    assert second["y"] >= first["y"] + first["height"] and first["x"] == second["x"]
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 420  # nothing sticks out


def test_samples_of_one_problem_lie_side_by_side_too(tmp_path: Path, open_page: Open) -> None:
    samples = [replace(spawned(7, i == 1), sample=i) for i in range(3)]
    write_view(tmp_path / "view.html", "View", [Source("a", samples, VOCABULARY.text, DESCRIBE)])
    view = View(open_page(tmp_path / "view.html").page)
    view.press("s", "ArrowRight")
    assert view.place == "2 of 2" and [one.split(" \u00b7 ")[2].strip() for one in view.texts(".place")] == [
        "sample 1",
        "sample 2",
    ]


def test_hostile_text_stays_text(tmp_path: Path, open_page: Open) -> None:
    trace = spawned(7, False)
    assert trace.outcome is not None
    hostile = replace(
        trace, answer=HOSTILE, problem={"id": HOSTILE, "question": HOSTILE}, protocol=HOSTILE, reward={HOSTILE: 1.0},
        outcome=replace(trace.outcome, reason=HOSTILE), limits={HOSTILE: HOSTILE, "span": HOSTILE}, budgets={"__proto__": 3},
    )  # fmt: skip

    def text(ids: Sequence[int]) -> str:
        return HOSTILE * len(ids)

    write_view(tmp_path / "view.html", HOSTILE, [Source(HOSTILE, [hostile], text)], lambda: [HOSTILE])
    opened = open_page(tmp_path / "view.html")
    opened.page.on("dialog", lambda dialog: opened.faults.append(dialog.message))
    view = View(opened.page)
    assert view.count("img") == 0 and view.titles == [HOSTILE]
    assert HOSTILE in view.text(".answer") and HOSTILE in view.text("h1") and HOSTILE in view.text(".warning")
    view.click('.strand[data-strand="1"]')
    assert view.texts(".part.sampled .token") == [HOSTILE] * 5
    view.page.fill("#v-search", "onerror")
    view.page.wait_for_timeout(50)
    assert view.count(".token.hit") > 0 and view.count("img") == 0


def test_many_traces_of_many_threads(tmp_path: Path, open_page: Open) -> None:
    write_view(
        tmp_path / "view.html",
        "View",
        [Source("many", BENCHMARK["random_traces"](200, 20), VOCABULARY.text, DESCRIBE)],
    )
    view = View(open_page(tmp_path / "view.html").page)
    assert view.place == "1 of 200" and view.count(".lane") == 20
    view.press("End")
    assert view.place == "200 of 200" and view.count("#v-outcome button") == 4
    for _ in range(30):  # quicker than traces are drawn: the last one asked for is shown
        view.page.keyboard.press("ArrowLeft")
    view.page.wait_for_function("document.getElementById('traces').dataset.drawn === '169'")
    for _ in range(25):
        view.page.keyboard.press("j")
    chosen = view.page.locator(".strand.chosen").bounding_box()
    around = view.page.locator(".timeline").bounding_box()
    assert around["y"] < chosen["y"] < around["y"] + around["height"]  # scrolled to


def test_threads_without_strands_and_long_names_are_drawn(tmp_path: Path, open_page: Open) -> None:
    whole = spawned(7, True)
    deep = Thread("r.0" + ".12" * 14, "r.0", 15, (), StopReason.DEPTH)
    silent = finished(8, False, "serial", (Thread("r", None, 0, (), StopReason.CONTEXT),), (), StopReason.CONTEXT)
    traces = [replace(whole, threads=(*whole.threads, deep)), silent]
    write_view(tmp_path / "view.html", "View", [Source("a", traces, VOCABULARY.text, DESCRIBE)])
    view = View(open_page(tmp_path / "view.html", viewport={"width": 420, "height": 800}).page)
    lane = view.page.locator('.lane[data-lane="3"]')
    assert "had no room to start" in lane.text_content() and lane.locator(".name").text_content().startswith("\u2026")
    name, stop = (lane.locator(what).first.bounding_box() for what in (".name", ".stop"))
    assert name["x"] + name["width"] <= stop["x"]
    view.press("ArrowRight", "j", "Enter", "t")
    assert view.titles == ["3, 4 to make 8"] and view.text(".detail") == "This trace has no strands."


def test_a_page_that_is_cut_off_says_so(tmp_path: Path, open_page: Open, sources: list[Source]) -> None:
    write_view(tmp_path / "view.html", "View", sources)
    whole = (tmp_path / "view.html").read_text()
    (tmp_path / "view.html").write_text(whole[: whole.index('<script type="text/plain" id="apr-trace-6">')])
    view = View(open_page(tmp_path / "view.html").page)
    view.press("End")
    assert "cannot be shown: this page is cut off: trace 7 of 7 is missing" in view.text("#v-said")
    view.press("ArrowLeft")
    assert view.titles == ["3, 4 to make 8"] and view.text("#v-said") == ""


def test_in_a_report_keys_are_the_view_s_only_when_it_has_the_focus(
    tmp_path: Path, open_page: Open, sources: list[Source]
) -> None:
    (tmp_path / "report.html").write_text(page("Report", f"<h2>Traces</h2>{trace_view(sources)}"))
    view = View(open_page(tmp_path / "report.html").page)
    view.press("ArrowRight")
    assert view.place == "1 of 7"
    view.click(".panel .title")
    view.press("ArrowRight", "ArrowRight")
    assert view.place == "3 of 7"
    view.click(".strand.chosen")
    view.press("ArrowRight", "ArrowRight")  # the focus outlives the bar that had it
    assert view.place == "5 of 7"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(tmp_path: Path, open_page: Open, sources: list[Source], scheme: str) -> None:
    """Contrast as WCAG 2 counts it: 4.5 for text, of all that the view writes."""
    write_view(tmp_path / "view.html", "View", sources)
    view = View(open_page(tmp_path / "view.html", color_scheme=scheme).page)
    view.press("ArrowRight")
    texts = "#traces :is(button:enabled, p, small, em, b, .token, .badge, .axis text, .lanes text)"
    assert view.page.evaluate((Path(__file__).parent / "contrast.js").read_text(), texts) == []
