"""Another call of `apr sft`, as far as it comes before a model is loaded."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from apr.checkpoints.pretrained import source_hash
from apr.config import SftConfig
from apr.data.store import demonstrations_hash
from apr.errors import CheckpointError, RunDirectoryError
from apr.presets import check
from apr.runs import run_directory
from apr.sft.train import train


def base_at(place: Path, weights: str = "weights") -> Path:
    """A pretrained model: a GGUF file, or the folder of a model or of the run that made it."""
    if place.suffix == ".gguf":
        place.write_text(weights)
        return place
    folder = place / "checkpoint" if place.name == "run" else place
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(weights)
    (folder / "config.json").write_text("{}")
    return place


def config(data: Path, base: Path, out: Path, **more: Any) -> SftConfig:
    return check(SftConfig, {"data": data, "base": base, "lr": 1e-4, "out": out, **more}, "test")


def finished(data: Path, base: Path, out: Path, **facts: str) -> Path:
    """The folder of a finished training."""
    with run_directory(out, config(data, base, out), data_hash=demonstrations_hash(data, "spawn_join"), **facts):
        (out / "checkpoint").mkdir()
    return out


@pytest.mark.parametrize("name", ["model", "model.gguf", "run"])
def test_a_base_may_move_but_not_change(name: str, easy: Path, tmp_path: Path) -> None:
    base = base_at(tmp_path / name)
    run = finished(easy, base, tmp_path / "sft", base_hash=source_hash(base))
    (tmp_path / "elsewhere").mkdir()
    moved = base.rename(tmp_path / "elsewhere" / name)
    data = Path(shutil.copytree(easy, tmp_path / "data"))
    assert train(config(data, moved, run)) == run / "checkpoint"
    assert train(config(data, base, run)) == run / "checkpoint"  # gone, and a finished training does not read it
    (tmp_path / "other").mkdir()
    other = base_at(tmp_path / "other" / name, "other weights")
    with pytest.raises(RunDirectoryError, match=r"differs: base_hash \(was \w{12}, is \w{12}\).*`base` set to where"):
        train(config(easy, other, run))


@pytest.mark.parametrize("name", ["model", "model.gguf", "run"])
def test_a_base_whose_hash_is_not_known_may_not_move(
    name: str, easy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_at(tmp_path / name)
    run = finished(easy, base, tmp_path / "sft")
    assert train(config(easy, base, run)) == run / "checkpoint"
    assert "recorded no base_hash" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(RunDirectoryError, match=r"differs: base \(.*recorded no base_hash, so put that back"):
        train(config(easy, base.rename(tmp_path / "elsewhere" / name), run))


@pytest.mark.parametrize("name", ["model", "model.gguf", "nothing:model.gguf"])
def test_a_base_that_is_not_there_is_named_before_rows_are_read(name: str, easy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=name):
        train(config(easy, tmp_path / name if ":" not in name else Path(name), tmp_path / "sft"))
    assert not (tmp_path / "sft").exists()
