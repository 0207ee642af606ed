"""What several of the integration tests start from."""

from pathlib import Path

import pytest

from apr.cli import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of two numbers with serial demonstrations: 8, 2 and 3 problems."""
    (tmp_path / "data.yaml").write_text(
        "env: {name: countdown, numbers: 2, low: 1, high: 9, target_low: 2, target_high: 20}\n"
        "train: 8\nvalidation: 2\ntest: 3\nsolvers: {sos_plus: {protocol: serial}}\n"
    )
    assert main(["data", "generate", "--config", str(tmp_path / "data.yaml"), f"out={tmp_path / 'data'}"]) == 0
    return tmp_path / "data"
