"""Run directories: locked while in use, and whatever is written is whole or not there."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from apr.config import EvalConfig, RlConfig, SftConfig
from apr.errors import ResourceError, RunDirectoryError
from apr.presets import load
from apr.runs import (
    check_kind,
    commit,
    hardware,
    refuse_other,
    remove_folder,
    run_directory,
    whole_folder,
    write_bytes,
    write_text,
)

CONFIG = RlConfig()
ROOT = Path(__file__).parents[2]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".old")))


def test_a_run_directory_holds_its_configuration_and_a_manifest(tmp_path: Path) -> None:
    with run_directory(tmp_path / "a" / "run", CONFIG, data_hash="abc") as run:
        assert load(RlConfig, [run / "config.yaml"]) == CONFIG
        manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data_hash"] == "abc"
    assert manifest["versions"]["torch"] and manifest["python"] == sys.version.split()[0]
    assert {"command", "started", "commit", "hardware"} <= manifest.keys()
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == CONFIG.seed


def test_a_second_holder_is_told_who_holds_it(tmp_path: Path) -> None:
    with run_directory(tmp_path, CONFIG):
        before = (tmp_path / "config.yaml").read_bytes()
        other = run_directory(tmp_path, CONFIG.model_copy(update={"seed": 5}))
        with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()}"), other:
            pass
        assert (tmp_path / "config.yaml").read_bytes() == before
    with run_directory(tmp_path, CONFIG):
        pass  # free again


def test_a_killed_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from apr.config import RlConfig
from apr.runs import run_directory
with run_directory(Path({str(tmp_path)!r}), RlConfig()):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RunDirectoryError, match=f"process {holder.pid}"), run_directory(tmp_path, CONFIG):
        pass
    holder.kill()
    holder.communicate()
    with run_directory(tmp_path, CONFIG):
        pass


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunDirectoryError, match="another `out`"), run_directory(path, CONFIG):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_directory_is_of_one_kind(tmp_path: Path) -> None:
    check_kind(tmp_path / "nothing", "rl")
    with run_directory(tmp_path, CONFIG):
        pass
    before = (tmp_path / "config.yaml").read_bytes()
    said = "an `apr rl`, not of an `apr eval`"
    with pytest.raises(RunDirectoryError, match=said), run_directory(tmp_path, EvalConfig()):
        pass
    with pytest.raises(RunDirectoryError, match=said):
        check_kind(tmp_path, "eval")
    assert (tmp_path / "config.yaml").read_bytes() == before
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"manifest\.json is corrupt"), run_directory(tmp_path, CONFIG):
        pass


def test_a_run_of_another_configuration_is_refused_by_its_keys(tmp_path: Path) -> None:
    made = SftConfig(seed=3)
    with pytest.raises(RunDirectoryError, match=r"does not say how it was made \(no config\.yaml\)"):
        refuse_other(tmp_path, made, ())
    with run_directory(tmp_path, made, data_hash="one"):
        pass
    refuse_other(tmp_path, made, (), data_hash="one")
    other = load(SftConfig, [tmp_path / "config.yaml"], ["threads=7", "model.layers=2", "solver=sos_plus"])
    said = r"differs: solver \(was spawn_join, is sos_plus\), model\.layers \(was 4, is 2\), data_hash \(was one, is two\)\."
    with pytest.raises(RunDirectoryError, match=said):
        refuse_other(tmp_path, other, ("threads",), data_hash="two")
    refuse_other(tmp_path, other, ("threads", "model", "solver"), data_hash="one")
    with pytest.raises(RunDirectoryError, match="an `apr sft`, not of an `apr rl`"):
        refuse_other(tmp_path, CONFIG, ())


@pytest.mark.parametrize(
    ("key", "now", "said"),
    [
        (
            "data",
            "/elsewhere/" + "long/" * 20 + "data",
            r"data \(was runs/data, is /elsewhere/long/long/long/long/l\.\.\.\)",
        ),
        ("solver", "a" * 90 + "b", r"solver \(was \.\.\.a{16}x, is \.\.\.a{16}b\)"),
        ("snapshots", "[0.5]", r"snapshots \(was \[\], is \[0\.5\]\)"),
        ("lora.rank", "8", r"differs: lora\.rank \(was null, is 8\)"),
        ("only_solved", "true", r"only_solved \(was false, is true\)"),
    ],
)
def test_values_that_differ_are_shown_short(key: str, now: str, said: str, tmp_path: Path) -> None:
    begun = SftConfig(out=tmp_path, solver="a" * 90 + "x", base=Path("base"), lr=1e-4)
    with run_directory(tmp_path, begun):
        pass
    other = load(SftConfig, [tmp_path / "config.yaml"], [f"{key}={now}"])
    with pytest.raises(RunDirectoryError, match=said):
        refuse_other(tmp_path, other, ())


@pytest.mark.parametrize("key", ["data", "base"])
def test_a_place_may_change_only_where_the_run_recorded_its_hash(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = SftConfig(out=tmp_path, base=Path("base"), lr=1e-4)
    moved = begun.model_copy(update={key: Path("elsewhere")})
    name = f"{key}_hash"
    with run_directory(tmp_path, begun, **{name: "a" * 64}):
        pass
    refuse_other(tmp_path, moved, (), **{name: "a" * 64})
    said = rf"differs: {name} \(was a{{12}}, is b{{12}}\)\. Give .*`{key}` set to where its own is now"
    for config in (begun, moved):
        with pytest.raises(RunDirectoryError, match=said):
            refuse_other(tmp_path, config, (), **{name: "b" * 64})
    refuse_other(tmp_path, begun, (), **{name: None})  # gone, and nothing reads it
    with pytest.raises(RunDirectoryError, match=rf"differs: {key} \(was {begun.model_dump()[key]}, is elsewhere\)"):
        refuse_other(tmp_path, moved, (), **{name: None})
    assert not capsys.readouterr().err
    with run_directory(tmp_path, begun):  # as earlier versions did
        pass
    refuse_other(tmp_path, begun, (), **{name: "b" * 64})
    assert f"recorded no {name}" in capsys.readouterr().err
    with pytest.raises(RunDirectoryError, match=f"recorded no {name}, so put that back"):
        refuse_other(tmp_path, moved, (), **{name: "b" * 64})


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def broken(*_: Any, **__: Any) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize(("fault", "raised"), [(full, ResourceError), (broken, OSError)])
def test_a_write_that_fails_leaves_the_old_file(
    where: str, fault: Callable[..., None], raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), fault)
    with pytest.raises(raised) as caught:
        write_bytes(path, b"new")
    assert isinstance(caught.value, ResourceError) == (fault is full)
    assert path.read_text() == "old" and left_over(tmp_path) == []
    if fault is full:
        assert str(path) in str(caught.value)


def test_files_and_folders_are_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "file", "one")
    write_text(tmp_path / "deep" / "file", "two")
    assert (tmp_path / "deep" / "file").read_text() == "two"
    for content in ("one", "two"):
        with whole_folder(tmp_path / "folder") as folder:
            (folder / content).write_text(content)
            assert not (tmp_path / "folder" / content).exists()
        assert [path.name for path in (tmp_path / "folder").iterdir()] == [content]
    assert left_over(tmp_path) == []


class RustError(Exception):
    """As the writer of safetensors raises it: the system's error in words."""


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "full"), ResourceError),
        (RustError("Error while serializing: I/O error: No space left on device (os error 28)"), ResourceError),
        (RustError("other"), RustError),
        (ValueError("other"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_folder_that_was_not_finished_leaves_the_old_one(
    error: BaseException, raised: type[BaseException], tmp_path: Path
) -> None:
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "old").touch()
    with pytest.raises(raised), whole_folder(tmp_path / "folder") as folder:
        (folder / "new").touch()
        raise error
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["old"]
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "named"), [("echo 'NVIDIA A'; echo 'NVIDIA B'", True), ("echo no driver; exit 9", False)]
)
def test_hardware_names_the_gpus_that_the_drivers_tool_lists(
    script: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    before = hardware()
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert hardware() == (f"{before}, NVIDIA A, NVIDIA B" if named else before)


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.email=a@b", "-c", "user.name=n")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, check=True, encoding="utf-8")
    return done.stdout.strip()


def commit_of(source: Path, **environment: str) -> str:
    """What the copy of the project in `source` calls its commit."""
    done = subprocess.run(
        [sys.executable, "-c", "import apr.runs; print(apr.runs.__file__, apr.runs.commit())"], capture_output=True, check=True,
        cwd=source, encoding="utf-8", env={**os.environ, "PYTHONPATH": str(source), **environment},
    )  # fmt: skip
    path, said = done.stdout.split()
    assert path.startswith(str(source))
    return said


def test_a_manifest_never_names_another_repositorys_commit(tmp_path: Path) -> None:
    theirs, copy = tmp_path / "theirs", tmp_path / "theirs" / "lib"
    shutil.copytree(ROOT / "apr", copy / "apr", ignore=shutil.ignore_patterns("__pycache__", "*.nb?"))
    git(theirs, "init", "-q")
    git(theirs, "commit", "-q", "--allow-empty", "-m", "theirs")
    assert commit_of(copy) == "unknown"  # unpacked or installed below a repository
    shutil.copytree(copy / "apr", theirs / "apr")
    assert commit_of(theirs) == "unknown"  # beside its files, but not one of them
    assert commit_of(copy, GIT_DIR=str(theirs / ".git")) == "unknown"  # as git sets it for its hooks
    assert commit_of(copy, GIT_DIR=str(theirs / ".git"), GIT_WORK_TREE=str(copy)) == "unknown"
    assert commit_of(theirs, PATH="/nowhere") == "unknown"
    (copy / ".git").write_text("gitdir: nowhere", encoding="utf-8")
    assert commit_of(copy) == "unknown"


def test_a_checkout_names_its_own_commit_and_its_changes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "apr", tmp_path / "apr", ignore=shutil.ignore_patterns("__pycache__", "*.nb?"))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "apr")
    git(tmp_path, "commit", "-q", "-m", "ours")
    head = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert commit_of(tmp_path) == head
    with (tmp_path / "apr" / "cli.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert commit_of(tmp_path) == f"{head}+changes"
    assert commit() == "unknown" or commit()[:7] == git(ROOT, "rev-parse", "HEAD")[:7]


def test_links_are_followed_not_replaced(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "old").mkdir(parents=True)
    (disk / "old" / "file").write_text("old", encoding="utf-8")
    for name in ("old", "new"):  # `new` is not there yet
        (tmp_path / name).symlink_to(disk / name)
        with whole_folder(tmp_path / name) as folder:
            (folder / "file").write_text("whole", encoding="utf-8")
        assert (disk / name / "file").read_text(encoding="utf-8") == "whole"
    for name in ("there", "not"):
        (tmp_path / name).symlink_to(Path("disk") / f"{name}.txt")
    (disk / "there.txt").write_text("old", encoding="utf-8")
    for name in ("there", "not"):
        write_text(tmp_path / name, "whole")
        assert (disk / f"{name}.txt").read_text(encoding="utf-8") == "whole"
    (tmp_path / "run").symlink_to(disk / "run")
    with run_directory(tmp_path / "run", CONFIG):
        assert (disk / "run" / "config.yaml").is_file()
    assert all((tmp_path / name).is_symlink() for name in ("old", "new", "there", "not", "run"))
    assert not left_over(tmp_path)


def test_a_failed_write_through_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to("disk")
    with pytest.raises(KeyError), whole_folder(tmp_path / "link"):
        raise KeyError
    assert (tmp_path / "disk" / "file").read_text(encoding="utf-8") == "old" and not left_over(tmp_path)
    remove_folder(tmp_path / "link")
    assert (tmp_path / "disk" / "file").is_file() and not (tmp_path / "link").is_symlink()
    remove_folder(tmp_path / "disk")
    assert not (tmp_path / "disk").exists()


def test_warnings_of_libraries_go_to_the_log_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_directory(tmp_path, CONFIG):
        assert not (tmp_path / "log.txt").exists()
        warnings.warn("this will go", FutureWarning, stacklevel=1)
        warnings.warn("so will this", UserWarning, stacklevel=1)
        logging.getLogger("library").warning("no NUMA here")
        logging.getLogger("library").info("chatter")
    said = capsys.readouterr().err
    assert said == f"3 warnings of libraries are in {tmp_path / 'log.txt'}\n"
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8")
    for text in ("FutureWarning: this will go", "UserWarning: so will this", "WARNING library: no NUMA here"):
        assert text in lines
    assert "chatter" not in lines
    with run_directory(tmp_path, CONFIG), pytest.raises(KeyError):
        logging.getLogger("library").warning("again")
        raise KeyError
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").startswith(lines)
    assert not logging.getLogger().handlers or "log.txt" not in str(logging.getLogger().handlers)
