"""Connecting to Ray, and places for actors there. Every wait ends, with an error that says what was lacking."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.services import get_ray_address_from_environment
from ray._private.state import available_resources_per_node
from ray.job_config import JobConfig
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from apr.errors import ResourceError
from apr.processors import waiting

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 starves the actors wherever anything else runs
}
CODE = Path(__file__).resolve().parents[2]  # holds apr, envs, solvers and rl
LOWER = "lower cluster.engines, cluster.ranks, cluster.*_cpus or cluster.*_gpus"
Bundle = Mapping[str, float]  # what one actor needs, by resource


def connect(address: str) -> None:
    """Connect to the Ray at `cluster.address`, or start one. Raises `ResourceError` if there is none."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        # `auto`: what RAY_ADDRESS names, or the cluster that runs here, or `OSError`.
        found = get_ray_address_from_environment("auto", None) if address == "auto" else address
        _check_reachable(found)
        own = {"include_dashboard": False} if found == "local" else {}
        if found != "local":  # `ray start` asks for the user's token if there is one; `ray.init` would not show it
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        with _terminations_blocked(), _code_of_this_process():
            ray.init(
                address=found, logging_level="warning", job_config=JobConfig(_py_driver_sys_path=[str(CODE)]), **own
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"no Ray cluster at cluster.address={address} ({error}): start one with `ray start --head`, or use local"
        ) from error


@contextmanager
def _code_of_this_process() -> Iterator[None]:
    """Actors import what this process imports, whatever the folder that it was called in.

    Ray would put that folder before all else on their `sys.path`, where one of the user's called `envs` or `rl` hid ours, and
    was run. It asks for it by the name `os.path.curdir`: the answer is the folder that holds this package.
    """
    before, os.path.curdir = os.path.curdir, str(CODE)
    try:
        yield
    finally:
        os.path.curdir = before


def _check_reachable(address: str) -> None:
    """Raise `OSError` if nobody listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _terminations_blocked() -> Iterator[None]:
    """Processes started within inherit that SIGTERM is blocked, and so do theirs. One sent to the whole process group
    would else end Ray under the step that is to be finished and saved; this process still ends them all."""
    if threading.current_thread() is not threading.main_thread():  # which gets no signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def own_address() -> tuple[str, int]:
    """Where other nodes reach this process: the node's address, and a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def bundle(cpus: float, gpus: float) -> Bundle:
    """What an actor needs, as Ray reserves it: no zeros, and never nothing."""
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount} or {"CPU": 0.001}


def refuse_impossible(bundles: Sequence[Bundle]) -> None:
    """Raise `ResourceError` at once for what the whole cluster could never give, instead of waiting for it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name in ("CPU", "GPU"):
        amounts = [one.get(name, 0.0) for one in bundles]
        have = [node.get(name, 0.0) for node in nodes]
        if sum(amounts) > sum(have):
            raise ResourceError(f"all actors need {sum(amounts):g} {name}s, the cluster has {sum(have):g}: {LOWER}")
        if max(amounts) > max(have):
            raise ResourceError(f"one actor needs {max(amounts):g} {name}s, no node has over {max(have):g}: {LOWER}")


async def reserve(bundles: Sequence[Bundle], strategy: str, timeout: float, what: str) -> PlacementGroup:
    """Places for actors, together or not at all. `what` names them in the `ResourceError` raised after `timeout` s."""
    group = placement_group([dict(one) for one in bundles], strategy=strategy)
    deadline = time.monotonic() + timeout
    try:
        while placement_group_table(group)["state"] != "CREATED":
            if time.monotonic() > deadline:
                needs = " + ".join(_words(one) for one in bundles)
                raise ResourceError(
                    f"{what} found no place within cluster.timeout={timeout:g} s. Needed: {needs} ({strategy}); free now: "
                    f"{_free()}. End what holds the rest, add nodes, or {LOWER}"
                )
            await asyncio.sleep(0.05)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def options(cpus: float, gpus: float, threads: int | None, group: PlacementGroup, index: int = 0) -> dict[str, Any]:
    """How an actor is started in bundle `index` of `group`. Ray sets OMP_NUM_THREADS from an actor's CPUs, which would
    halve a learner's speed: it is set from `threads`, where given. Threads wait as in this process."""
    quiet = {
        **waiting(os.environ),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if threads is not None:
        quiet["OMP_NUM_THREADS"] = str(threads)
    place = PlacementGroupSchedulingStrategy(group, index)
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": quiet}, "scheduling_strategy": place}


def _free() -> str:
    """What is free now, node by node."""
    free = available_resources_per_node()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return "; ".join(
        f"{node['NodeManagerHostname']} {_words(free.get(node['NodeID'], {}))} (of {_words(node['Resources'])})"
        for node in nodes
    )


def _words(resources: Bundle) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
