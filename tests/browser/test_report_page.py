"""What a reader does with the report, in a real browser."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from solver_evaluations import evaluation, make_data

from apr.config import RlConfig
from apr.presets import dump
from apr.report.build import build_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Serial, spawned, after RL, and voted over; one RL run."""
    folder = tmp_path_factory.mktemp("page")
    data = make_data(folder / "data")
    runs = [
        evaluation(folder / "serial", data, "sos_plus", [0]),
        evaluation(folder / "spawned", data, "spawn_join", [0]),
        evaluation(folder / "tuned", data, "spawn_join", [3], trained=("sft", "rl")),
        evaluation(folder / "voted", data, "sos_plus", [1, 2, 3]),
    ]
    rl = folder / "rl"
    rl.mkdir()
    (rl / "config.yaml").write_text(dump(RlConfig()))
    lines = [json.dumps({"step": i, "reward/success": i / 40, "rollout/threads": 2 + i / 10}) for i in range(40)]
    (rl / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    build_report([*runs, rl], None, folder / "report", "A report & more")
    return folder / "report"


def test_an_error_in_a_page_is_noticed(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    """The fixture's own check: it must see what it is there to see."""
    file = tmp_path / "bad.html"
    file.write_text('<!doctype html><img src="http://127.0.0.1:9/x.png"><script>nothing()</script>')
    opened = open_page(file)
    opened.page.wait_for_timeout(100)
    assert any(fault.startswith("thrown") for fault in opened.faults)
    assert any(fault.startswith("asked") for fault in opened.faults)
    opened.faults.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_figures_are_drawn_and_nothing_is_cut_off(
    report: Path, open_page: Callable[..., Any], scheme: str, width: int
) -> None:
    page = open_page(report / "report.html", color_scheme=scheme, viewport={"width": width, "height": 900}).page
    unfold(page)
    figures = page.locator("figure svg")
    assert figures.count() == len(list((report / "figures").iterdir())) > 15
    for i in range(figures.count()):
        box = figures.nth(i).bounding_box()
        assert box["width"] > 200 and box["height"] > 100
        drawn = figures.nth(i).evaluate("one => one.querySelectorAll('path, use').length")
        assert drawn > 10
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # only tables scroll sideways
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert contrast(ink, paper) > 7


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_comparisons_lead_and_published_tables_are_folded_at_the_end(
    report: Path, open_page: Callable[..., Any], scheme: str
) -> None:
    page = open_page(report / "report.html", color_scheme=scheme).page
    heads = page.locator("h2").all_inner_texts()
    assert heads[:3] == ["Does spawning pay?", "Does RL pay?", "Results"] and heads[-1] == "Published numbers"
    assert page.locator("figure.theirs").count() > 0 and not page.locator("figure.theirs").first.is_visible()
    for card in page.locator(".card").all():
        said = card.inner_text()
        assert ("ratio of" in said and "work \u00d7" in said) or "is within 15%" in said
    contrasts = (Path(__file__).parent / "contrast.js").read_text()
    assert page.evaluate(contrasts, ".card :is(h4, p, small, b, em), .notices li, .lead, .note") == []


def test_the_first_trace_shown_spawns(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report / "report.html").page  # whose first evaluation is serial
    page.wait_for_selector("#traces[data-drawn]", state="attached")
    assert (
        page.locator("#traces .lane").count() > 1 and "spawn/join" in page.locator("#traces .from").first.inner_text()
    )


def test_text_in_figures_can_be_read_in_the_dark(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report / "report.html", color_scheme="dark").page
    unfold(page)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    script = "all => all.map(one => [one.textContent, getComputedStyle(one).fill])"
    for text, fill in page.locator("figure svg text").evaluate_all(script):
        assert contrast(fill, paper) > 4.5, text


def test_all_pairs_unfold_and_traces_are_stepped_through(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report / "report.html").page
    assert not page.get_by_text("it alone", exact=True).is_visible()
    page.locator("summary").first.click()
    assert page.get_by_text("it alone", exact=True).is_visible()
    title = page.locator("#traces h3").first
    before = title.inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    assert page.locator("#traces svg").count() >= 1 and title.inner_text() != "" and before != ""


def test_it_prints(report: Path, open_page: Callable[..., Any], tmp_path: Path) -> None:
    a4 = {"width": 703, "height": 1000}  # less the margins, at 96 dots an inch
    page = open_page(report / "report.html", color_scheme="dark", viewport=a4).page
    page.emulate_media(media="print", color_scheme="dark")
    unfold(page)
    for table in page.locator("table").all():
        if table.is_visible():
            box = table.bounding_box()
            assert box["x"] + box["width"] <= a4["width"], table.inner_text()[:60]
    assert (
        contrast("rgb(255, 255, 255)", page.evaluate("getComputedStyle(document.body).color")) > 7
    )  # dark ink on paper
    page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_a_figure_file_opens_by_itself(report: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(report / "figures" / "accuracy_within_context.svg").page
    assert page.evaluate("document.documentElement.tagName") == "svg"
    assert page.locator("text").count() > 5


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
