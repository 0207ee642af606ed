"""A small data set for the tests: its configuration, and where its files lie."""

from pathlib import Path
from typing import Any

from apr.config import DataConfig, EnvConfig
from apr.data.shards import shard_paths
from apr.data.store import (
    demonstrations_folder,
)
from apr.presets import check
from apr.protocols import protocol_by_name
from envs.base import Teacher, TeacherOptions
from envs.countdown.compact import CompactSpeller
from envs.countdown.teacher import SearchTeacher

COMPACT = CompactSpeller()

# 3 shards of training problems, 1 of validation, 2 of test, and for each teacher 3.
EASY = {
    "env": {
        "name": "countdown", "numbers": 3, "low": 1, "high": 9, "target_low": 5, "target_high": 30, "test_share": 0.3,
    },
    "train": 20, "validation": 5, "test": 10, "demonstrations_per_problem": 2, "shard_rows": 8,
    "solvers": {
        "sos_plus": {"protocol": "serial", "beams": [1, 3]},
        "spawn_join": {"protocol": "spawn_join", "spawn_depth": 1, "beams": [1, 3]},
    },
}  # fmt: skip
SHARDS = 12
ENV = EnvConfig.model_validate(EASY["env"]).build()


def config(out: Path, **more: Any) -> DataConfig:
    return check(DataConfig, {**EASY, **more, "out": out}, "test")


def teacher(
    options: dict[str, Any] | TeacherOptions, seed: int = 0, copies: int = 1, speller: Any = COMPACT
) -> Teacher:
    """A teacher of Countdown."""
    told = SearchTeacher.model_validate(options) if isinstance(options, dict) else options
    return Teacher(ENV, told, speller, protocol_by_name(told.protocol, speller), seed, copies)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def first(folder: Path, solver: str) -> Path:
    return shard_paths(demonstrations_folder(folder, solver), "train")[0]
