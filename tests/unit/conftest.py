"""Fixtures shared by unit tests. What they import is imported when they are asked for: most tests need none of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from places import Place


@pytest.fixture(scope="session")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `data_sets.EASY`, to be read only."""
    from data_sets import config

    from apr.data.generate import generate

    out = tmp_path_factory.mktemp("data") / "set"
    generate(config(out))
    return out


@pytest.fixture(scope="session")
def place_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from places import make_data

    return make_data(tmp_path_factory.mktemp("evaluation") / "data")


@pytest.fixture
def place(place_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    from places import Place

    import apr.evaluation.run
    from apr.checkpoints.folder import ModelFolder

    made = Place(tmp_path, place_data)
    made.checkpoint()
    monkeypatch.setattr(apr.evaluation.run, "build_engine", made.engine)
    monkeypatch.setattr(ModelFolder, "check_finite", lambda folder: None)  # its weights are a word
    return made
