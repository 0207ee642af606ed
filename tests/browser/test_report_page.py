"""What a reader does with the report, in a real browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser


def test_an_error_in_a_page_is_noticed(tmp_path: Path, browser: Any, open_page: Callable[..., Any]) -> None:
    """The fixture's own check: it must see what it is there to see."""
    file = tmp_path / "bad.html"
    file.write_text('<!doctype html><img src="http://127.0.0.1:9/x.png"><script>nothing()</script>')
    opened = open_page(file)
    opened.page.wait_for_timeout(100)
    assert any(fault.startswith("thrown") for fault in opened.faults)
    assert any(fault.startswith("asked") for fault in opened.faults)
    opened.faults.clear()
