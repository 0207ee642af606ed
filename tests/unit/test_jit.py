"""Compiled code runs whether or not it can be kept, and whatever lies where it is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import resource
from kernel import double
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
print(double(21))
"""
KERNEL = """
from apr.jit import compiled

@compiled
def double(number):
    return number * 2
"""


def doubled(folder: Path, limit: int = -1, **environment: str) -> str:
    """What a kernel in `folder` answers, in a process that may write files of `limit` bytes."""
    (folder / "kernel.py").write_text(KERNEL, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(limit=limit)], capture_output=True, encoding="utf-8", cwd=folder, check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.strip()


def test_code_is_kept_where_it_can_be(tmp_path: Path) -> None:
    assert doubled(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept")) == "42"
    assert list((tmp_path / "kept").rglob("*.nbi"))


def test_code_runs_where_no_folder_can_be_written(tmp_path: Path) -> None:
    """A file stands where numba would make a folder, in each place that it looks at: this holds for root too."""
    (tmp_path / "__pycache__").write_text("", encoding="utf-8")
    for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        (tmp_path / name).write_text("", encoding="utf-8")
    places = {name: str(tmp_path / name) for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    assert doubled(tmp_path, **places) == "42"
    del places["NUMBA_CACHE_DIR"]
    assert doubled(tmp_path, **places) == "42"


@pytest.mark.parametrize("spoilt", ["empty", "cut", "no cache", "a folder"])
@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
def test_code_runs_where_what_was_kept_is_spoilt(spoilt: str, pattern: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    doubled(tmp_path, NUMBA_CACHE_DIR=str(kept))
    [path] = kept.rglob(pattern)
    content = path.read_bytes()
    path.unlink()
    if spoilt == "a folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "no cache": b"not a pickle"}[spoilt])
    assert doubled(tmp_path, NUMBA_CACHE_DIR=str(kept)) == "42"
    shutil.rmtree(kept)


def test_code_runs_where_the_disk_takes_no_more(tmp_path: Path) -> None:
    assert doubled(tmp_path, limit=0, NUMBA_CACHE_DIR=str(tmp_path / "kept")) == "42"
