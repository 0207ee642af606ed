"""The learner as Ray actors: one rank in each, driven through the same calls as a learner in this process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from apr.config import LearnerConfig, RlConfig
from apr.engines.cluster import cause_of
from apr.errors import AprError, LearnerLostError
from rl.learner import Learner
from rl.packing import shares
from rl.parallel import Rank
from rl.samples import Sample

_GRACE = 15.0  # seconds from one rank's complaint about another to Ray's news of that one's death


class RankActor:
    """Runs in a Ray actor: one rank, made by `start`, since what a Ray actor raises when it is made arrives without its
    type."""

    def address(self) -> str:
        """Where the ranks can meet on this node, which listens there from now on; chosen anew for each start."""
        self.meeting = listening(ray.util.get_node_ip_address())
        host, port, *_ = self.meeting.getsockname()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self, rank: Rank, address: str, timeout: float, **arguments: Any) -> None:
        if address:
            _meet(rank, address, timeout, self.meeting if rank.index == 0 else None)
        self.learner = Learner(**arguments, rank=rank)

    async def call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self.learner, method)(*arguments)


def listening(host: str, port: int = 0) -> socket.socket:
    """A socket that listens at this address of the node alone; at a free port if none is given."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def _meet(rank: Rank, address: str, timeout: float, meeting: socket.socket | None = None) -> None:
    """Join the ranks. The first listens at `meeting`, by default at `address`: torch by itself would at every address of
    the node."""
    import torch
    import torch.distributed as dist

    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if rank.index == 0 and meeting is None:
        meeting = listening(host, int(port))
    if host.startswith("127.") or host == "::1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it had to guess
    # DeepSpeed reads these; each actor sees its own device alone.
    os.environ |= {"RANK": str(rank.index), "WORLD_SIZE": str(rank.count), "LOCAL_RANK": "0"}
    most = timedelta(seconds=timeout)
    handle = None if meeting is None else meeting.detach()
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, int(port), rank.count, rank.index == 0, most, False, master_listen_fd=handle
    )
    dist.init_process_group(
        "nccl" if cuda else "gloo", store=store, rank=rank.index, world_size=rank.count, timeout=most
    )


class RemoteLearner:
    """The `LearnerApi` over all ranks' actors. If one dies, or does not reply in time, all are ended and
    `LearnerLostError` is raised: the others would wait for it. `config`: the ranks' own."""

    def __init__(self, actors: Sequence[Any], timeout: float, config: LearnerConfig) -> None:
        self.actors = list(actors)
        self._timeout = timeout
        self._config = config

    async def update(
        self, minibatches: Sequence[Sequence[Sample]], lr: float, parity: tuple[float, float]
    ) -> dict[str, float]:
        """Plan the passes here, once; each rank is sent its own share alone."""
        parts = await asyncio.to_thread(shares, minibatches, self._config, len(self.actors))
        calls = [
            actor.call.remote("learn", ray.put(part), lr, parity)
            for actor, part in zip(self.actors, parts, strict=True)
        ]
        metrics: dict[str, float] = (await self.wait("update", calls))[0]
        return metrics

    async def weights(self) -> Any:
        """A reference to the weights in Ray's object store, from where engines read them."""
        first, *others = [actor.call.remote("weights") for actor in self.actors]
        await self.wait("weights", [first, *others])
        return first

    async def save_weights(self, folder: Path, version: int) -> None:
        await self._call("save_weights", folder.resolve(), version)

    async def meet(self, backend: str, engines: Sequence[Any], workers: int) -> None:
        await self._call("meet", backend, list(engines), workers)

    async def send(self) -> None:
        await self._call("send")

    async def save(self, folder: Path) -> None:
        await self._call("save", folder.resolve())

    def kill(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    async def _call(self, method: str, *arguments: Any) -> Any:
        """The first rank's reply, once all have replied."""
        return (await self.wait(method, [actor.call.remote(method, *arguments) for actor in self.actors]))[0]

    async def wait(self, what: str, references: Sequence[Any]) -> list[Any]:
        """All replies, in order; `what` was called."""
        calls = [asyncio.ensure_future(_reply(reference)) for reference in references]
        try:
            done, pending = await asyncio.wait(calls, timeout=self._timeout, return_when=asyncio.FIRST_EXCEPTION)
            errors = [error for call in done if (error := call.exception())]
            if errors and pending and not any(_known(error) for error in errors):
                # One rank complains of another: the other's death explains more than the complaint.
                later, pending = await asyncio.wait(pending, timeout=_GRACE)
                errors += [error for call in later if (error := call.exception())]
            if not errors and not pending:
                return [call.result() for call in calls]
        finally:
            for call in calls:
                call.cancel()
        own = [error.cause for error in errors if isinstance(error, RayTaskError) and isinstance(error.cause, AprError)]
        if own:
            raise own[0]
        self.kill()
        if not errors:
            raise LearnerLostError(
                f"{len(pending)} of {len(calls)} ranks of the learner did not reply to `{what}` within "
                f"{self._timeout:.0f} s: raise cluster.reply_timeout if a step takes that long"
            )
        dead = [error for error in errors if isinstance(error, RayActorError)]
        if not dead and isinstance(errors[0], RayTaskError):
            raise cause_of(errors[0]) from errors[0]
        raise LearnerLostError(
            f"a rank of the learner died during `{what}`, perhaps for lack of memory: {(dead or errors)[0]}"
        )


async def _reply(reference: Any) -> Any:
    return await reference


def _known(error: BaseException) -> bool:
    """Whether `error` explains itself: a rank's death, or an error of ours, which all ranks raise."""
    return isinstance(error, RayActorError) or (isinstance(error, RayTaskError) and isinstance(error.cause, AprError))


async def start_learner(
    config: RlConfig, start_from: Path, resumed: bool, options: Sequence[Mapping[str, Any]]
) -> RemoteLearner:
    """Start a rank in an actor with each of `options`, and wait until all are ready.

    Raises what a rank raises when it is made, `LearnerLostError` if one dies meanwhile, and `TimeoutError` after
    `cluster.timeout` seconds.
    """
    actors = [ray.remote(RankActor).options(**option).remote() for option in options]
    learner = RemoteLearner(actors, config.cluster.reply_timeout, config.learner)
    try:
        async with asyncio.timeout(config.cluster.timeout):
            together = len(actors) > 1 or config.learner.parallel != "plain"
            address = (await learner.wait("address", [actors[0].address.remote()]))[0] if together else ""
            arguments = {
                "checkpoint": start_from.resolve(), "config": config.learner, "temperature": config.temperature,
                "speller": config.speller, "resumed": resumed, "origin": config.checkpoint.resolve(),
            }  # fmt: skip
            started = [
                actor.start.remote(Rank(index, len(actors)), address, config.cluster.reply_timeout, **arguments)
                for index, actor in enumerate(actors)
            ]
            await learner.wait("start", started)
    except BaseException:
        learner.kill()
        raise
    return learner
