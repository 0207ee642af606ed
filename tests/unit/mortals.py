"""Scripted engines that die when told to, and who makes them and asks them."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from apr.engines.pool import EnginePool
from apr.engines.scripted import ScriptedEngine
from apr.errors import EngineLostError
from apr.seeds import derive_rng
from apr.threads.engine import Completion, Request
from apr.threads.trace import StrandKey


def babble(request: Request) -> Sequence[int]:
    return derive_rng(0, "babble", *request.ids).choices(range(8, 64), k=20)


class Mortal(ScriptedEngine):
    def __init__(self, index: int, turns: int = 4) -> None:
        super().__init__(babble, delays=lambda request: turns + request.ids[0] % 3)
        self.index = index
        self.took: list[Any] = []

    def die(self) -> None:
        self._lose(RuntimeError("killed"))

    def _load(self, source: Any, version: int) -> None:
        if isinstance(source, Exception):
            raise source
        self.took.append(source)


class Maker:
    """Makes engines, and keeps all that it made. While `held` it makes none; it raises what is in `failures` first."""

    def __init__(self, turns: int = 4) -> None:
        self.made: list[Mortal] = []
        self.failures: list[Exception] = []
        self.turns = turns
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, index: int) -> Mortal:
        await self.free.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.made.append(Mortal(index, self.turns))
        return self.made[-1]


def ask(
    problem: str = "p", thread: str = "r", number: int = 0, sample: int = 0, ids: Sequence[int] = (1, 2)
) -> Request:
    return Request(StrandKey(0, problem, sample, thread, number), tuple(ids), (), 20, 1.0, 5)


async def persist(pool: EnginePool, request: Request, tries: int = 3) -> Completion:
    """As `apr.threads.session` does: what is lost is asked again under its key."""
    for left in reversed(range(tries)):
        try:
            return await pool.generate(request)
        except EngineLostError:
            if not left:
                raise
    raise AssertionError


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def play(body: Coroutine[Any, Any, Any]) -> None:
    """Run a test; fails if it leaves a task behind."""

    async def whole() -> None:
        await body
        await turns(2)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left behind"

    asyncio.run(whole())
