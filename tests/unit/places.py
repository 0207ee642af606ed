"""A folder in which evaluations are made on a scripted engine, and reported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from apr.config import DataConfig, EvalConfig
from apr.data.generate import generate
from apr.engines.scripted import ScriptedEngine
from apr.errors import EngineLostError, UserError
from apr.evaluation.run import evaluate
from apr.presets import check
from apr.report.build import build_report
from apr.threads.engine import Request
from envs.countdown.compact import CompactSpeller

VOCABULARY = CompactSpeller().vocabulary
SILENT = (VOCABULARY.control.join, VOCABULARY.control.eos)  # joins without an answer
PROBLEMS = 4


def make_data(folder: Path) -> Path:
    """Four test problems of two numbers, and a serial teacher."""
    env = {"name": "countdown", "numbers": 2, "low": 1, "high": 9, "target_low": 2, "target_high": 20}
    content = {
        "env": env, "train": 4, "validation": 2, "test": PROBLEMS, "workers": 1, "out": folder,
        "solvers": {"sos_plus": {"protocol": "serial"}},
    }  # fmt: skip
    generate(check(DataConfig, content, "test"))
    return folder


class Place:
    """A folder with `data`, checkpoints and evaluations; engines say nothing, and die at problem `dies_at`."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        self.data = Path(shutil.copytree(data, folder / "data"))
        self.out = folder / "report"
        self.dies_at = 1_000
        self.started = 0

    def engine(self, *_: Any) -> ScriptedEngine:
        self.started += 1
        seen: list[object] = []

        def script(request: Request) -> tuple[int, ...] | Exception:
            attempt = (request.key.problem, request.key.sample)
            if attempt not in seen:
                seen.append(attempt)
            return EngineLostError("gone") if len(seen) >= self.dies_at else SILENT

        return ScriptedEngine(script)

    def checkpoint(self, name: str = "model", **card: Any) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(name)
        (folder / "config.json").write_text('{"max_position_embeddings": 256}')
        VOCABULARY.save(folder)
        (folder / "apr_card.json").write_text(json.dumps({"solver": "sos_plus", "trained": ["sft"], **card}))
        return folder

    def config(self, name: str = "eval", **changes: Any) -> EvalConfig:
        given = {
            "data": self.data, "checkpoint": self.folder / "model", "protocol": "serial", "in_flight": 1,
            "limits": {"context": 128}, "out": self.folder / name,
        }  # fmt: skip
        return check(EvalConfig, {**given, **changes}, "test")

    def evaluation(self, name: str = "eval", **changes: Any) -> Path:
        evaluate(self.config(name, **changes))
        return self.folder / name

    def report(self, *folders: Path, **more: Any) -> str:
        """The text of the page, with its markup."""
        build_report(folders, more.get("data"), more.get("out", self.out), "Report")
        return (self.out / "report.html").read_text()

    def refused(self, kind: type[UserError], *folders: Path, **more: Any) -> str:
        with pytest.raises(kind) as caught:
            self.report(*folders, **more)
        assert not self.out.exists()
        return str(caught.value)
