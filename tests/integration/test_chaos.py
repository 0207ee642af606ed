"""The short form of `benchmarks/chaos.py`: one kill of each kind, and nothing is lost, doubled, changed or left behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# Draws the driver early, so that Ray's agents, which outlive theirs for a while, are gone by the end; then the learner and
# an engine soon after one step, so that both are made again at once, and while there are steps left.
SEED = 378


def test_a_run_survives_the_loss_of_its_driver_its_learner_and_an_engine(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "benchmarks/chaos.py", "--kills", "3", "--steps", "5", "--seed", str(SEED),
            "--out", str(tmp_path / "chaos"),
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True, timeout=500,
    )  # fmt: skip
    logs = "".join(path.read_text() for path in (tmp_path / "chaos").glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    killed = re.search(r"^killed +(.*)$", done.stdout, re.MULTILINE)
    assert killed and sorted(killed[1].split(", ")) == ["1 driver", "1 engine", "1 learner"]
