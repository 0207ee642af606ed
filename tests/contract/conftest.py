"""The engines that the contract is tested on."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from engine_cases import KINDS, WINDOW, Case, endpoint_engine, make_engine
from fake_endpoint import fake_endpoint


@pytest.fixture(scope="module", params=KINDS)
def case(
    request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    """An engine of each kind, made once for a file of tests, since a process can hold one of vLLM at a time. Tests leave it
    usable; the one that closes it comes last in its file."""
    scratch = tmp_path_factory.mktemp("weights")
    with ExitStack() as stack:
        if request.param == "endpoint":
            server = stack.enter_context(fake_endpoint(make_checkpoint(0), WINDOW))
            engine = endpoint_engine(server, make_checkpoint(0))
            yield Case(request.param, engine, make_checkpoint, scratch, server)
        else:
            engine = make_engine(request.param, make_checkpoint)
            yield Case(request.param, engine, make_checkpoint, scratch)
        asyncio.run(engine.close())
    if request.param == "remote":
        import ray

        ray.shutdown()  # other tests start a Ray of their own in this process
