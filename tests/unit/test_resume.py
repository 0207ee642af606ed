"""What a resumed RL run must share with the run so far, as far as that can be told without a model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from apr.checkpoints.folder import ModelFolder
from apr.config import RlConfig
from apr.errors import CheckpointError, RunDirectoryError
from apr.presets import check
from apr.runs import run_directory
from rl.resume import check_resumed

LORA: dict[str, Any] = {"learner": {"lora": {"rank": 2}}}
KL: dict[str, Any] = {"learner": {"kl_weight": 0.1}}
BOTH: dict[str, Any] = {"learner": {"kl_weight": 0.1, "lora": {"rank": 2}}}


def model(folder: Path, weights: str = "weights") -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_text(weights)
    (folder / "config.json").write_text("{}")
    return folder


class Run:
    """The folder of an RL run, its starting checkpoint beside it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.start = model(folder / "start")
        self.folder = folder
        self.options = options
        facts = {"data_hash": "d", "checkpoint_hash": check_hash(self.start), "algorithm": 2}
        with run_directory(folder / "run", self.config(), **facts):
            pass

    def config(self, **more: Any) -> RlConfig:
        content = {"checkpoint": self.start, "data": self.folder / "data", **self.options, **more}
        return check(RlConfig, {**content, "out": self.folder / "run"}, "test")

    def resumed(self, step: int | None = 3, data_hash: str = "d", **more: Any) -> str | None:
        return check_resumed(self.config(**more), data_hash, step)

    def forget(self, *facts: str, keys: tuple[str, ...] = ()) -> None:
        """Make it a run of an earlier version: without these facts in its manifest and keys in its configuration."""
        for path, names, load, dump in (
            (self.folder / "run" / "manifest.json", facts, json.loads, json.dumps),
            (self.folder / "run" / "config.yaml", keys, yaml.safe_load, yaml.safe_dump),
        ):
            content = load(path.read_text())
            path.write_text(dump({name: value for name, value in content.items() if name not in names}))


def check_hash(folder: Path) -> str:
    return ModelFolder.open(folder).hash


@pytest.mark.parametrize("options", [{}, LORA, KL, BOTH], ids=str)
@pytest.mark.parametrize("step", [None, 3])
def test_another_starting_checkpoint_is_refused(options: dict[str, Any], step: int | None, tmp_path: Path) -> None:
    run = Run(tmp_path, **options)
    other = model(tmp_path / "other", "other weights")
    said = r"differs: checkpoint_hash \(was \w{12}, is \w{12}\).*`checkpoint` set to where its own is now"
    with pytest.raises(RunDirectoryError, match=said):
        run.resumed(step, checkpoint=other)
    shutil.copytree(other, run.start, dirs_exist_ok=True)  # another model in its place
    with pytest.raises(RunDirectoryError, match=said):
        run.resumed(step)


@pytest.mark.parametrize("options", [{}, LORA, KL, BOTH], ids=str)
@pytest.mark.parametrize("step", [None, 3])
def test_a_run_goes_on_where_data_and_checkpoint_have_moved(
    options: dict[str, Any], step: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, **options)
    begun_with = check_hash(run.start)
    moved = run.start.rename(tmp_path / "moved")
    assert run.resumed(step, checkpoint=moved, data=tmp_path / "moved_data") == begun_with
    assert not capsys.readouterr().err
    with pytest.raises(RunDirectoryError, match=r"differs: data_hash \(was d, is e\)"):
        run.resumed(step, data_hash="e", checkpoint=moved, data=tmp_path / "moved_data")


@pytest.mark.parametrize(
    ("options", "step", "reader"),
    [
        (LORA, 3, "learner.lora"),
        (KL, 3, "learner.kl_weight"),
        (BOTH, 3, "lora.*kl_weight"),
        ({}, None, "no checkpoint"),
    ],
    ids=str,
)
def test_a_missing_starting_checkpoint_that_is_read_is_named(
    options: dict[str, Any], step: int | None, reader: str, tmp_path: Path
) -> None:
    run = Run(tmp_path, **options)
    shutil.rmtree(run.start)
    with pytest.raises(CheckpointError, match=rf"{reader}.*no model in {run.start}: set `checkpoint`"):
        run.resumed(step)


def test_a_missing_starting_checkpoint_that_nothing_reads_stops_no_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    begun_with = check_hash(run.start)
    shutil.rmtree(run.start)
    assert run.resumed() == begun_with
    with pytest.raises(RunDirectoryError, match=r"differs: checkpoint \(was "):  # a slip of the pen is no move
        run.resumed(checkpoint=tmp_path / "typo")


@pytest.mark.parametrize("options", [{}, LORA, KL], ids=str)
def test_an_earlier_versions_run_is_taken_as_it_is_and_says_so(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, **options)
    run.forget("checkpoint_hash")
    assert run.resumed() is None
    [said] = capsys.readouterr().err.splitlines()
    assert "recorded no checkpoint_hash" in said and "was not compared" in said and str(run.start) in said
    moved = run.start.rename(tmp_path / "moved")
    with pytest.raises(RunDirectoryError, match="recorded no checkpoint_hash, so put that back where it was"):
        run.resumed(checkpoint=moved)
    moved.rename(run.start)
    assert run.resumed(step=None) == check_hash(run.start)  # it begins with this one


@pytest.mark.parametrize(
    ("facts", "keys", "told"),
    [
        ((), (), False),
        (("algorithm",), (), False),  # of a version that had the rule, but no number for it
        (("algorithm",), ("redraws",), True),
        (("algorithm", "kind"), ("redraws", "constant"), True),
    ],
)
def test_another_rule_of_denominators_is_told(
    facts: tuple[str, ...], keys: tuple[str, ...], told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    run.forget(*facts, keys=keys)
    run.resumed()
    said = capsys.readouterr().err
    assert ("version 1 of the algorithm" in said and "from step 3 on" in said) == told and said.count("\n") == told
    run.resumed(step=None)  # no step was made by it
    assert not capsys.readouterr().err
