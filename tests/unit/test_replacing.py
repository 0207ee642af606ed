"""A folder or a file takes the place of an old one: a kill at any moment leaves one of the two, and the next run tidies up."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from apr import replacing
from apr.replacing import sweep, sweep_run
from apr.runs import locked, whole_file, whole_folder, write_text

DEAD = 2**22 + 1  # above the largest process id


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def killed(path: Path, when: str) -> None:
    """Replace the folder `path` in a process that kills itself; `when`: a statement that makes it do so."""
    program = f"""
        import os, signal, sys
        from pathlib import Path
        from apr import replacing, runs
        {when}
        with runs.whole_folder(Path({str(path)!r})) as new:
            (new / "deep").mkdir()
            (new / "deep" / "a").write_text("new")
            (new / "b").write_text("new")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


DIE = "lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)"
NO_EXCHANGE = "replacing._exchanged = lambda one, other: False"
MOMENTS = {
    "while it is filled": f"Path.write_text = {DIE}",
    "before it is synced": f"replacing.sync_tree = {DIE}",
    "before the exchange": f"replacing._exchanged = {DIE}",
    "before the old one goes": f"import shutil; take = shutil.rmtree; shutil.rmtree = lambda path, **k: "
    f"({DIE})() if Path(path).exists() else None",
    "before the first rename": f"{NO_EXCHANGE}; Path.rename = {DIE}",
    "between the renames": f"{NO_EXCHANGE}; move = Path.rename; Path.rename = lambda self, to: "
    f"move(self, to) if str(to).endswith('.old') else ({DIE})()",
    "after the renames": f"{NO_EXCHANGE}; import shutil; shutil.rmtree = lambda path, **k: "
    f"({DIE})() if Path(path).exists() else None",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_the_old_folder_or_the_new_one(moment: str, tmp_path: Path) -> None:
    place = tmp_path / "run" / "checkpoint"
    place.mkdir(parents=True)
    (place / "a").write_text("old")
    killed(place, MOMENTS[moment])
    old, new = {"a": "old"}, {"deep/a": "new", "b": "new"}
    if moment != "between the renames":  # where the system cannot exchange: the old one is back with the next run
        assert content(place) in (old, new)
    with locked(tmp_path / "run"):
        pass
    assert content(place) in (old, new)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "checkpoint"}


def test_readers_find_a_folder_at_every_moment(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    with whole_folder(place) as new:
        (new / "a").write_text("0")
    program = f"""
        from pathlib import Path
        from apr.runs import whole_folder
        for number in range(300):
            with whole_folder(Path({str(place)!r})) as new:
                (new / "a").write_text(str(number))
    """
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    misses = looks = 0
    while writer.poll() is None:
        looks += 1
        misses += not place.is_dir()
    assert writer.returncode == 0 and looks > 100 and misses == 0
    assert content(place) == {"a": "299"}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_an_exchange_folders_are_renamed(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "_EXCHANGE", 1 << 20)  # flags that the kernel refuses
    monkeypatch.setattr(replacing.ctypes, "get_errno", lambda: number)
    for text in ("one", "two"):
        with whole_folder(tmp_path / "c") as new:
            (new / "a").write_text(text)
        assert content(tmp_path) == {"c/a": text}


def test_everything_is_on_disk_before_the_old_one_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, Path]] = []
    take, put = replacing.shutil.rmtree, replacing.sync
    place = tmp_path / "c"
    place.mkdir()
    monkeypatch.setattr(replacing, "sync", lambda path: (done.append(("sync", path)), put(path))[1])
    monkeypatch.setattr(
        replacing.shutil, "rmtree", lambda path, **more: (done.append(("rm", path)), take(path, **more))[1]
    )
    with whole_folder(place) as new:
        (new / "deep").mkdir()
        (new / "deep" / "a").write_text("x")
        done.clear()
    first = next(i for i, (what, _) in enumerate(done) if what == "rm")
    assert {path for _, path in done[:first]} == {new, new / "deep", new / "deep" / "a", tmp_path}


@pytest.mark.parametrize(
    "name", [".checkpoint.{}.tmp", ".final.{}.tmp", ".config.yaml.{}.tmp", ".final.{}.old", ".a b.{}.tmp"]
)
def test_what_dead_processes_left_is_swept_and_nothing_else(name: str, tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    left, own, foreign = (tmp_path / name.format(pid) for pid in (DEAD, os.getpid(), 1))
    kept = [own, foreign, tmp_path / ".notes.tmp", tmp_path / ".lock", tmp_path / f"x.{DEAD}.tmp"]
    for path in (left, *kept):
        path.mkdir()
        (path / "a").write_text("x")
    sweep_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"final", *(path.name for path in kept)}


def test_a_folder_is_swept_for_its_own_name_by_whoever_writes_it(tmp_path: Path) -> None:
    for name in (f".rep.{DEAD}.tmp", f".other.{DEAD}.tmp"):
        (tmp_path / name).mkdir()
    with whole_folder(tmp_path / "rep"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"rep", f".other.{DEAD}.tmp"}
    (tmp_path / f".t.{DEAD}.tmp").write_text("half")
    write_text(tmp_path / "t", "x")
    with pytest.raises(KeyError), whole_file(tmp_path / "t"):
        raise KeyError
    assert {path.name for path in tmp_path.iterdir()} == {"rep", "t", f".other.{DEAD}.tmp"}
    sweep(tmp_path / "nowhere")
