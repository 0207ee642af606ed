"""How a learner's weights reach the engine. Order of an update: pause, send, finish with a version, clear the prefix
cache (the engine checks that it was cleared), resume. `keep`: requests in flight are not waited for, and go on from the
new weights."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from apr.engines.weights import MARKER
from apr.errors import CheckpointError
from apr.runs import remove_folder
from apr.threads.engine import Engine
from rl.parts import LearnerApi

TRANSFERS = ("nccl", "ipc")  # the ways of `rl.weight_transfer`: from GPU to GPU


class TensorSync:
    """Hands the tensors over: by reference in one process, through the object store between Ray actors."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep

    async def push(self, learner: LearnerApi, engine: Engine, version: int) -> float:
        started = time.monotonic()
        weights = await learner.weights()
        await engine.pause(self.keep)
        await engine.update_weights(weights, version)
        await engine.resume()
        return time.monotonic() - started


class FileSync:
    """Through a folder that both can read. The learner writes its marker last, without which no engine takes it. Nobody
    looks for a folder by itself: an engine made later is told of the last one, which is kept."""

    def __init__(self, folder: Path, keep: bool) -> None:
        self.folder = folder.resolve()  # an engine elsewhere has another working directory
        self.keep = keep

    async def push(self, learner: LearnerApi, engine: Engine, version: int) -> float:
        started = time.monotonic()
        target = self.folder / f"version_{version:06d}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        await learner.save_weights(target, version)
        if not (target / MARKER).is_file():
            raise CheckpointError(
                f"the learner wrote its weights, but {target / MARKER} is not here. Does it run on another node? "
                "`out` must be a folder that all nodes of the cluster share; or set weight_sync=tensors"
            )
        await engine.pause(self.keep)
        await engine.update_weights(target, version)
        await engine.resume()
        for old in self.folder.glob("version_*"):
            if old != target:
                remove_folder(old)
        return time.monotonic() - started
