"""Code of the user's own, named as `PATH.py:NAME`: environments and rewards.

A file is imported only if the user named it to this process (`allow`), or to another process of the same run: a data set,
a checkpoint or a run that came from elsewhere may name a file, but never runs it.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from apr.errors import AprError, ConfigError

NAMED = {"named": True}  # context of a validation whose content the user gave, not a file that was found
_NAME = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
_allowed: set[Path] = set()


def file_of(name: str) -> Path | None:
    """The file of `PATH.py:NAME`; None for what is not of this form."""
    match = _NAME.fullmatch(name)
    return Path(match[1]).expanduser() if match else None


def allow(name: str) -> None:
    """Allow the file of `name` to be imported, since the user named it. Names of another form need no leave."""
    if (path := file_of(name)) is not None:
        _allowed.add(path.resolve())


def may_import(name: str) -> bool:
    """Whether `name` is of no file, or of one that the user named."""
    path = file_of(name)
    return path is None or path.resolve() in _allowed


def short(name: str) -> str:
    """`name` without the folders of its file, which are nobody else's business: for records that travel."""
    path = file_of(name)
    return name if path is None else f"{path.name}:{name.rpartition(':')[2]}"


def named_like(record: str) -> str | None:
    """What the user named, if its `short` form is `record`."""
    file, _, attribute = record.rpartition(":")
    return next((f"{path}:{attribute}" for path in sorted(_allowed) if path.name == file), None)


def load(name: str, key: str) -> Any:
    """What `PATH.py:NAME` names. Raises `ConfigError`, with the configuration's `key`, if the user did not name the file, if it
    fails when it is imported, or if it has no such name."""
    path = file_of(name)
    if path is None:
        raise ConfigError(f"{key}={name} is not of the form PATH.py:NAME")
    if not may_import(name):
        raise ConfigError(
            f"{name} is a file, which is run only if you name it yourself: add {key}={name} (or --{key} {name}, to a command "
            "with that option), with the place where it lies now"
        )
    attribute = name.rpartition(":")[2]
    module = _module(path.resolve(), path)
    if not hasattr(module, attribute):
        own = _own(module)
        near = difflib.get_close_matches(attribute, own, 1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{path} has no {attribute}{hint}: it has {', '.join(own) or 'nothing of its own'}")
    return getattr(module, attribute)


def place_of(error: BaseException) -> str | None:
    """Where code of the user's own raised `error` or called what did: `task.py:47, in verify`; None if none of it ran."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename) in _allowed:
            return f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
    return None


@contextmanager
def blamed(name: str, what: str) -> Iterator[None]:
    """Raise `ConfigError` where code of the file that `name` names fails at `what`. Errors that this project raises on
    purpose pass, and so do all where `name` is of no file: they are not the user's to mend."""
    try:
        yield
    except AprError:
        raise
    except Exception as error:
        if file_of(name) is None:
            raise
        place = place_of(error)
        raise ConfigError(
            f"{what} fails in {name}: {type(error).__name__}: {error}{f' ({place})' if place else ''}. Mend it, then call the "
            "same command again"
        ) from error


def _own(module: ModuleType) -> list[str]:
    """What the module defines itself."""
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]


@cache
def _module(path: Path, shown: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"no file {shown}: check the path")
    name = f"apr_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{shown} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their own module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code: whatever it raises
        del sys.modules[name]
        place = place_of(error)
        raise ConfigError(
            f"{shown} fails when it is imported: {type(error).__name__}: {error}{f' ({place})' if place else ''}"
        ) from error
    return module
