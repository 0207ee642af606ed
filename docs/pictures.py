"""Takes the README's pictures of a run's report and of the trace view, with a headless Chromium.

    python docs/pictures.py runs/quickstart_from_sft [FOLDER]

RUN is a folder of `apr quickstart`, or one with `report/` and evaluations in `eval/`. FOLDER (default: docs/pictures) gets
report.png and viewer.png. Needs the `dev` extra, and Chromium (Debian: apt-get install chromium).
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from apr.report.view import view

SHOWN = ("spawn_join_rl", "spawn_join_sft")  # evaluations, the first that is there


def take(browser: Any, page: Path, out: Path, width: int, height: int, ready: str) -> None:
    opened = browser.new_page(
        viewport={"width": width, "height": height}, device_scale_factor=1.5, color_scheme="light"
    )
    opened.goto(page.resolve().as_uri())
    opened.wait_for_selector(ready, state="attached")
    opened.screenshot(path=str(out))
    opened.close()
    print(out)


def main(run: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = next(run / "eval" / name for name in SHOWN if (run / "eval" / name).is_dir())
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        page = Path(scratch) / "view.html"
        view([evaluation], page, title="Traces", limit=200, outcome="correct")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take(browser, run / "report" / "report.html", folder / "report.png", 1120, 900, "#traces[data-drawn]")
        take(browser, page, folder / "viewer.png", 1120, 900, "#traces[data-drawn]")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/pictures"))
