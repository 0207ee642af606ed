"""Ranks that meet on this machine alone listen nowhere else."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from rl.parallel import Rank
from rl.ranks import _meet, listening

ANYWHERE = ("00000000", "0" * 32)


def sockets() -> dict[str, str]:
    """The addresses, in hexadecimal, that processes listen at, by the inodes of their sockets."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[9]: line[1].rpartition(":")[0] for line in lines if line[3] == "0A"}


def own() -> list[str]:
    """Those that this process listens at."""
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    found = sockets()
    return [found[link[8:-1]] for link in links if link.startswith("socket:[") and link[8:-1] in found]


def rank(index: int, count: int, port: int, results: Any) -> None:
    import torch
    import torch.distributed as dist

    _meet(Rank(index, count), f"127.0.0.1:{port}", 60.0)
    total = torch.ones(1)
    dist.all_reduce(total)
    results.put((total.item(), own()))
    dist.barrier()
    results.close()
    results.join_thread()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_ranks_on_one_machine_listen_at_its_loopback_alone(count: int) -> None:
    with listening("127.0.0.1") as probe:
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    ranks = [spawn.Process(target=rank, args=(i, count, port, results)) for i in range(count)]
    for process in ranks:
        process.start()
    said = [results.get(timeout=120) for _ in ranks]
    for process in ranks:
        process.join(60)
    assert [total for total, _ in said] == [count] * count
    places = [place for _, own in said for place in own]
    assert places and not set(places) & set(ANYWHERE)
    assert {place[-8:] for place in places} == {"0100007F"}
