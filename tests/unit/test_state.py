"""States on disk without pickles: what is written is read back equal in every type and bit, and nothing else is read."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from apr.checkpoints.state import NotPlainError, plain_part, read_state, write_state
from apr.errors import CheckpointError
from rl.checkpoint import refuse_pickles


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def adamw() -> dict[str, Any]:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1 + 0.2)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


SHARED = torch.arange(6.0)
STATES = [
    adamw(),
    {"cpu": torch.random.get_rng_state(), "python": (3, (1, 2, 2**31), None), 7: [True, -0.0, 1e-320, "\u2029"]},
    {"a": SHARED, "b": SHARED, "view": SHARED.view(2, 3).T, "empty": torch.empty(0, 3), "none": torch.tensor(5)},
    [math.inf, -math.inf, math.nan, 2**80, "tensor", ["tensor", "0"], ["dict"], {}, (), []],
    torch.ones(2, dtype=torch.bfloat16),
    {"half": torch.ones(1, dtype=torch.float16), "flags": torch.tensor([True, False]), "steps": torch.tensor(3.0)},
]


@pytest.mark.parametrize("state", STATES)
def test_what_is_written_is_read_back(state: Any, tmp_path: Path) -> None:
    write_state(tmp_path / "s.safetensors", state)
    assert same(state, read_state(tmp_path / "s.safetensors"))


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", torch.float32, {(1, 2): 3}, print, 1j])
def test_what_is_no_plain_data_is_not_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(NotPlainError):
        write_state(tmp_path / "s.safetensors", {"a": [value]})
    assert not list(tmp_path.iterdir())
    assert plain_part({"a": [value], "b": 1}) == {"b": 1}


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def pickled(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(trace)))


def torch_saved(path: Path, trace: Path) -> None:
    torch.save({"state": Bomb(trace)}, path)


def torch_saved_as_before(path: Path, trace: Path) -> None:
    torch.save({"state": Bomb(trace)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("spoil", [pickled, torch_saved, torch_saved_as_before])
def test_a_pickle_is_not_run(spoil: Any, tmp_path: Path) -> None:
    spoil(tmp_path / "s.safetensors", tmp_path / "run")
    with pytest.raises(CheckpointError, match="missing, corrupt or no state"):
        read_state(tmp_path / "s.safetensors")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "header",
    [
        {}, {"schema": "apr.state/9", "state": "1"}, {"schema": "apr.state/1"},
        *({"schema": "apr.state/1", "state": text} for text in (
            "[", "[" * 200_000, '["tensor", "9"]', '["code", 1]', "[]", '["dict", 1]', '["dict", [1]]', "[[1]]", '["tensor"]',
            '["float", "x"]', '["tensor", []]',
        )),
    ],
)  # fmt: skip
def test_other_contents_are_refused(header: dict[str, str], tmp_path: Path) -> None:
    save_file({"0": torch.ones(1)}, tmp_path / "s.safetensors", header or None)
    with pytest.raises(CheckpointError, match="missing, corrupt or no state"):
        read_state(tmp_path / "s.safetensors")


@pytest.mark.parametrize("cut", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_state(path, STATES[0])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError):
        read_state(path)
    path.unlink()
    with pytest.raises(CheckpointError):
        read_state(path)


@pytest.mark.parametrize("name", ["optimizer.pt", "zero"])
def test_states_of_earlier_versions_are_refused_with_a_way_on(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match=rf"{name} is the optimizer's state as a pickle.*checkpoint={tmp_path}"):
        refuse_pickles(tmp_path)
    (tmp_path / "optimizer").mkdir()
    refuse_pickles(tmp_path)
