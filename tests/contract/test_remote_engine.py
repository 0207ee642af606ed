"""A remote engine (`apr.engines.cluster.RemoteEngine`) whose actor fails. Stand-ins for the actor: no Ray is started."""

import asyncio
import re
from typing import Any

import pytest
from engine_cases import WINDOW, ask

from apr.engines.cluster import RemoteEngine, Started
from apr.errors import EngineLostError

STARTED = Started("chain", WINDOW, WINDOW, 0)


@pytest.mark.parametrize("method", ["submit", "collect"])
def test_whatever_ray_raises_no_request_waits_for_ever(method: str) -> None:
    """A stand-in for the actor: no Ray is started."""
    from ray.exceptions import ObjectLostError, OutOfMemoryError, RaySystemError

    class Method:
        def __init__(self, error: Exception | None) -> None:
            self.error = error

        async def remote(self, *arguments: Any) -> None:
            if self.error is not None:
                raise self.error

    async def play(error: Exception) -> None:
        methods = {name: Method(error if name == method else None) for name in ("submit", "collect")}
        ends: list[bool] = []
        engine = RemoteEngine(type("Actor", (), methods), STARTED, 30, lambda: ends.append(True))
        asked = [engine.generate(ask(name)) for name in "ab"]
        results = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
        assert [type(result) for result in results] == [EngineLostError] * 2
        assert all("lost" in str(result) and type(error).__name__ in str(result) for result in results)
        assert ends == [True]
        with pytest.raises(EngineLostError):
            await engine.generate(ask())

    for error in (ObjectLostError("ref", "owner", "site"), OutOfMemoryError("full"), RaySystemError("x"), OSError("x")):
        asyncio.run(play(error))


@pytest.mark.parametrize("how", ["is silent", "says that its engine died"])
def test_an_actor_whose_engine_is_beyond_use_is_ended(how: str) -> None:
    """A stand-in for the actor, which would else stay and serve nobody: no Ray is started."""

    class Actor:
        def __getattr__(self, method: str) -> Any:
            return type("Method", (), {"remote": staticmethod(getattr(self, f"_{method}"))})

        async def _submit(self, requests: Any) -> None:
            """It came through."""

        async def _collect(self, patience: float) -> list[Any]:
            if how == "is silent":
                await asyncio.sleep(60)
            return [(1, EngineLostError("out of memory"))]

    async def play() -> None:
        ends: list[bool] = []
        engine = RemoteEngine(Actor(), STARTED, 0.05, lambda: ends.append(True))
        results = await asyncio.gather(*(engine.generate(ask(name)) for name in "abc"), return_exceptions=True)
        expected = "no answer (requests) within 0.05 s" if how == "is silent" else "out of memory"
        assert all(isinstance(result, EngineLostError) and expected in str(result) for result in results)
        for call in (engine.pause(), engine.generate(ask())):
            with pytest.raises(EngineLostError, match=re.escape(expected)):
                await call
        await engine.close()
        assert ends == [True]

    asyncio.run(play())
