"""A task of the user's own, from problems to report, with Countdown and its solvers out of reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENV = f"{ROOT / 'examples' / 'sorting.py'}:Sorting"
BLOCKED = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "solvers" or name.startswith("envs.countdown"):
            raise ImportError(f"{name} is out of reach in this test")


sys.meta_path.insert(0, Blocked())
if __name__ == "__main__":
    from apr.cli import main

    sys.exit(main(sys.argv[1:]))
"""
MODEL = ["model.layers=2", "model.hidden=64", "model.heads=2", "model.intermediate=128", "model.window=64", "threads=1"]
TINY = ["engine.kind=tiny", "limits.context=64", "limits.depth=1", "protocol=spawn_join"]
REWARD = """
def graded(trace, verdict):
    return verdict.score - 0.001 * trace.costs.span_sampled
"""


@pytest.mark.slow
def test_a_task_of_ones_own_goes_from_problems_to_report(tmp_path: Path) -> None:
    (tmp_path / "apr_blocked.py").write_text(BLOCKED)
    (tmp_path / "reward.py").write_text(REWARD)

    def apr(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, str(tmp_path / "apr_blocked.py"), *arguments], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    apr("data", "generate", "--config", str(ROOT / "examples" / "sorting.yaml"), f"env.name={ENV}", "out=data")
    assert "3000 solved, every solution verified" in apr("data", "verify", "data", "--env", ENV)
    assert "is run only if you name it" in apr("data", "verify", "data", status=2)
    assert f"add env={ENV}" in apr("sft", "data=data", "solver=spawn_join", "out=sft", *MODEL, status=2)
    apr("sft", "data=data", f"env={ENV}", "solver=spawn_join", "tokens=250000", "out=sft", *MODEL)
    apr("eval", "data=data", f"env={ENV}", "checkpoint=sft", "problems=40", "out=ev", *TINY)
    assert json.loads((tmp_path / "ev" / "summary.json").read_text())["correct"] >= 4  # of 40; chance solves none
    rl = ["steps=2", "problems_per_step=4", "group_size=4", "validate_problems=8", "reward.function=reward.py:graded"]
    apr("rl", "data=data", f"env={ENV}", "checkpoint=sft", "learner.threads=1", "out=rl", *rl, *TINY)
    assert "reward/function" in (tmp_path / "rl" / "metrics.jsonl").read_text()
    apr("eval", "data=data", f"env={ENV}", "checkpoint=rl", "problems=20", "out=after", *TINY)
    apr("report", "ev", "after", "rl", "--env", ENV, "--out", "report")
    apr("view", "ev", "--env", ENV, "--out", "view.html")
    assert "digits [" in (tmp_path / "view.html").read_text()
    apr("export", "rl", "--env", ENV, "--eval", "after", "--out", "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "Its task, Sorting: Sort digits in ascending order." in card and "sort " in card
    for path in (*tmp_path.glob("report/**/*"), *tmp_path.glob("exported/*"), tmp_path / "view.html"):
        if path.is_file():
            assert b"ountdown" not in path.read_bytes(), path
    assert str(ROOT) not in card + (tmp_path / "exported" / "apr_card.json").read_text()
