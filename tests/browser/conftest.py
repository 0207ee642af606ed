"""A headless Chromium for the pages that the project writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
]  # fmt: skip


@dataclass
class Opened:
    """A page, with what went wrong in it: messages of the console, uncaught errors, and whatever it asked the network."""

    page: Any
    faults: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")  # no longer: while it is open an event loop runs, in which no other test could run one
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Opened]]:
    """`open_page(file, **context)` opens a file as a user does. At the end of a test none of its pages may have logged
    a warning or error, thrown, or asked for anything but itself."""
    contexts, every = [], []

    def open_(file: Path, **context: Any) -> Opened:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}))
        opened = Opened(contexts[-1].new_page())
        every.append(opened)
        page, own = opened.page, file.resolve().as_uri()
        page.on("pageerror", lambda error: opened.faults.append(f"thrown: {error}"))
        page.on(
            "console",
            lambda said: said.type in ("error", "warning") and opened.faults.append(f"{said.type}: {said.text}"),
        )
        page.on("request", lambda asked: asked.url.split("#")[0] != own and opened.faults.append(f"asked: {asked.url}"))
        page.goto(own)
        return opened

    yield open_
    for context in contexts:
        context.close()
    assert [fault for opened in every for fault in opened.faults] == []
