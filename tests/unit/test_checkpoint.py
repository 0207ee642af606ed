"""Opening a checkpoint: once, wherever it lies, in one file or several; and every way in which it can be none."""

import hashlib
import json
import shutil
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import smol_like
from places import Place

from apr.checkpoints.card import CARD, Card
from apr.checkpoints.checkpoint import Checkpoint
from apr.checkpoints.folder import CONFIG_FILE, ModelFolder, model_folder
from apr.checkpoints.pretrained import chat_vocabulary, located
from apr.checkpoints.weights import INDEX_FILE, WEIGHTS_FILE, content_hash, content_id, weight_files
from apr.config import ConditionConfig
from apr.engines.weights import mark_complete, read_weights
from apr.errors import CheckpointError, ConfigError, RunDirectoryError, TornWeightsError
from apr.threads.limits import Limits
from envs.countdown.compact import CompactSpeller

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "tiny_cpu" / "spawn_join"
VOCABULARY = CompactSpeller().vocabulary


def words(folder: Path, content: str = "weights", **card: Any) -> Path:
    """A checkpoint whose weights are a word: enough for what reads none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_text(content)
    (folder / CONFIG_FILE).write_text('{"max_position_embeddings": 256, "vocab_size": 9}')
    VOCABULARY.save(folder)
    Card.parse(card, "test").write(folder)
    return folder


def sharded(folder: Path) -> Path:
    """The shipped checkpoint, its weights in several files."""
    from transformers import AutoModelForCausalLM

    for path in SHIPPED.glob("*.json"):
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder)
    AutoModelForCausalLM.from_pretrained(SHIPPED).save_pretrained(folder, max_shard_size="2MB")
    assert not (folder / WEIGHTS_FILE).exists() and len(weight_files(folder)) > 1
    return folder


_COUNTED: dict[str, int] = {}
_HOOKED: list[bool] = []


@contextmanager
def openings(name: str) -> Iterator[Callable[[], int]]:
    """How often a file of this name is opened within, by anybody."""
    if not _HOOKED:
        _HOOKED.append(True)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            file = str(arguments[0]).rpartition("/")[2] if event == "open" else ""
            if file in _COUNTED:
                _COUNTED[file] += 1

        sys.addaudithook(hook)  # which stays until the process ends
    _COUNTED[name] = 0
    try:
        yield lambda: _COUNTED[name]
    finally:
        del _COUNTED[name]


def test_a_shipped_checkpoint() -> None:
    opened = Checkpoint.open(SHIPPED)
    assert opened.folder == opened.model.path == SHIPPED and not opened.is_adapter and opened.adapter is None
    assert opened.card.trained == ("sft",) and opened.speller.name == "compact" and opened.model.window >= 128
    assert opened.model.hash == content_id([SHIPPED / WEIGHTS_FILE])
    assert opened.model.outputs == len(opened.speller.vocabulary) == opened.model.shapes["lm_head.weight"][0]
    assert opened.whole(Path("nowhere")) is opened
    opened.model.check_finite()


@pytest.mark.parametrize("command", ["eval", "open"])
def test_the_card_is_opened_once(command: str, place: Place) -> None:
    with openings(CARD) as count:
        if command == "eval":
            place.evaluation()
        else:
            Checkpoint.open(place.folder / "model").check_fits("serial", None, Limits(context=100))
        assert count() == 1


# Runs


@pytest.mark.parametrize(
    ("folders", "newest"),
    [
        (["checkpoint"], "checkpoint"), (["checkpoints/step_000002", "checkpoints/step_000010"], "checkpoints/step_000010"),
        (["checkpoints/step_000002", "final"], "final"), (["."], "."),
    ],
)  # fmt: skip
def test_a_run_names_its_newest_checkpoint(folders: list[str], newest: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for folder in folders:
        words(run / folder)
    assert model_folder(run) == Checkpoint.open(run).folder == located(run) == run / newest


def test_a_run_is_evaluated_by_its_folder_and_recorded_by_its_checkpoint(place: Place) -> None:
    run = place.folder / "sft"
    (place.folder / "model").rename(run.parent / "moved")
    run.mkdir()
    (run.parent / "moved").rename(run / "checkpoint")
    folder = place.evaluation(checkpoint=run)
    assert f"checkpoint: {run / 'checkpoint'}" in (folder / "config.yaml").read_text()
    place.evaluation(checkpoint=run / "checkpoint")  # the same evaluation


def test_a_run_that_has_written_none_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step_000002.7.tmp").mkdir()
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match=f"no model in {place} .*train one with `apr sft`, finish that run"):
            Checkpoint.open(place)


# Several files


def test_weights_in_several_files_are_those_of_one(tmp_path: Path) -> None:
    import torch

    one, several = Checkpoint.open(SHIPPED).model, Checkpoint.open(sharded(tmp_path / "sharded")).model
    assert several.shapes == one.shapes and several.window == one.window
    several.check_finite()
    states = [folder.load().state_dict() for folder in (one, several)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert several.hash not in ("", one.hash) and several.hash == ModelFolder.open(tmp_path / "sharded").hash
    torn = several.weights[-1]
    before = several.hash
    torn.write_bytes(torn.read_bytes()[:-1] + b"\x7f")
    assert ModelFolder.open(tmp_path / "sharded").hash != before
    torn.write_bytes(torn.read_bytes()[:-4])
    for use in (lambda model: model.check_finite(), lambda model: model.load()):
        with pytest.raises(CheckpointError, match=f"{tmp_path / 'sharded'} holds no readable model"):
            use(ModelFolder.open(tmp_path / "sharded"))


def test_an_engine_is_sent_weights_in_several_files(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "sharded")
    mark_complete(folder, 3)
    sent = read_weights(folder, 3)
    assert {name: tuple(tensor.shape) for name, tensor in sent.items()} == ModelFolder.open(SHIPPED).shapes
    weight_files(folder)[-1].unlink()
    with pytest.raises(TornWeightsError, match="lacks model-"):
        read_weights(folder, 3)


@pytest.mark.parametrize(
    "index",
    [
        "", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}',
        '{"weight_map": {"a": 3}}',
    ],
)  # fmt: skip
def test_a_corrupt_index_is_refused(index: str, tmp_path: Path) -> None:
    (words(tmp_path) / WEIGHTS_FILE).unlink()
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(CheckpointError, match=f"{tmp_path / INDEX_FILE} is corrupt"):
        Checkpoint.open(tmp_path)


def test_a_file_that_the_index_names_is_missing(tmp_path: Path) -> None:
    (words(tmp_path) / WEIGHTS_FILE).rename(tmp_path / "model-1.safetensors")
    content = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="lacks model-2.safetensors"):
        Checkpoint.open(tmp_path)
    (tmp_path / "model-2.safetensors").write_text("b")
    assert [path.name for path in Checkpoint.open(tmp_path).model.weights] == [
        "model-1.safetensors",
        "model-2.safetensors",
    ]


def test_a_hash_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    hashes = []
    for content in (b"one", b"two", b"one"):
        path.write_bytes(content)
        hashes.append(content_id([path]))
    assert hashes[0] == hashes[2] != hashes[1] and hashes[0] == hashlib.sha256(b"one").hexdigest()[:16]
    (tmp_path / "more").write_bytes(b"two")
    assert content_hash([path, tmp_path / "more"]) == hashlib.sha256(b"onetwo").hexdigest()


def test_hashes_take_constant_memory(tmp_path: Path) -> None:
    size = 64 << 20
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    tracemalloc.start()
    try:
        found = content_hash([tmp_path / "a"])
        assert content_hash([tmp_path / "a", tmp_path / "b"]) != found and content_id([tmp_path / "a"]) == found[:16]
        assert tracemalloc.get_traced_memory()[1] < size / 8
    finally:
        tracemalloc.stop()


# What is no checkpoint


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"max_position_embeddings": "many"}', "{}", None])
def test_a_configuration_that_is_none(content: str | None, tmp_path: Path) -> None:
    path = words(tmp_path) / CONFIG_FILE
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=f"{path} is missing or corrupt"):
        Checkpoint.open(tmp_path)


def test_a_model_does_what_it_was_trained_for(tmp_path: Path) -> None:
    opened = Checkpoint.open(words(tmp_path, protocol="serial", condition="children"))
    opened.check_fits("serial", ConditionConfig(kind="children", value=3), Limits(context=256))
    with pytest.raises(ConfigError, match=r"limits\.context \(257\) exceeds the window \(256\) of the model in"):
        opened.check_fits("serial", None, Limits(context=257))
    with pytest.raises(ConfigError, match="protocol serial"):
        opened.check_fits("spawn_join", None, Limits(context=100))
    with pytest.raises(ConfigError, match="ask for children"):
        opened.check_fits("serial", ConditionConfig(kind="context", value=64), Limits(context=100))


# Adapters


def adapter(folder: Path, base: object) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_text("products")
    return folder


def test_an_adapter_is_opened_with_its_base(tmp_path: Path) -> None:
    base = words(tmp_path / "run" / "checkpoint", trained=["sft"], condition="children", protocol="serial")
    for named, given in (
        (str(base), None),
        (str(tmp_path / "run"), None),
        ("someone/model", tmp_path / "run"),
        (None, base),
    ):
        folder = adapter(tmp_path / "adapter", named)
        opened = Checkpoint.open(folder, adapters=True, base=given)
        assert (opened.folder, opened.model.path, opened.is_adapter) == (folder, base, True)
        assert opened.card == Card(trained=("sft", "adapter"), protocol="serial")  # its prompts are not known
        assert opened.adapter is not None and opened.adapter.base_hash == content_id([base / WEIGHTS_FILE])
        assert opened.adapter.hash == content_id([folder / "adapter_model.safetensors"])
        (tmp_path / "taken").mkdir(exist_ok=True)
        with pytest.raises(RunDirectoryError, match="of another adapter or base"):
            opened.whole(tmp_path / "taken")
        shutil.rmtree(folder)


@pytest.mark.parametrize("moved", ["adapter", "base", "both"])
def test_a_merged_model_is_kept_where_adapter_or_base_have_moved(moved: str, tmp_path: Path) -> None:
    base, folder = words(tmp_path / "base"), adapter(tmp_path / "adapter", "someone/model")
    before = Checkpoint.open(folder, adapters=True, base=base).adapter
    assert before is not None
    merged = words(tmp_path / "merged", adapter=before.model_dump())
    if moved != "base":
        folder = folder.rename(tmp_path / "adapter_elsewhere")
    if moved != "adapter":
        base = base.rename(tmp_path / "base_elsewhere")
    opened = Checkpoint.open(folder, adapters=True, base=base)
    assert opened.adapter != before  # they name their folders
    assert opened.whole(merged).folder == merged
    (folder / "adapter_model.safetensors").write_text("other products")
    with pytest.raises(RunDirectoryError, match="of another adapter or base"):
        Checkpoint.open(folder, adapters=True, base=base).whole(merged)


@pytest.mark.parametrize("named", [None, "", 3, ["a"], "someone/model"])
def test_a_base_that_is_not_to_be_found(named: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(words(tmp_path / "here"))
    with pytest.raises(CheckpointError, match="set base to the folder of the model"):
        Checkpoint.open(adapter(tmp_path / "adapter", named), adapters=True)


def test_an_adapter_is_no_model_and_a_model_needs_no_base(tmp_path: Path) -> None:
    base = words(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", str(base))
    for opened in (Checkpoint, ModelFolder):
        with pytest.raises(
            CheckpointError, match="is an adapter, which is no model by itself: merge it with `apr export`"
        ):
            opened.open(folder)
    with pytest.raises(ConfigError, match="leave base out"):
        Checkpoint.open(base, adapters=True, base=base)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks adapter_model\.safetensors"):
        Checkpoint.open(folder, adapters=True)


# Models from elsewhere


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen2Config", "Qwen3Config", "Gemma2Config", "Gemma3TextConfig"])
def test_a_chat_model_from_elsewhere(kind: str, tmp_path: Path) -> None:
    """It has no card and no vocabulary of ours: the speller must be told, or made known by its tokenizer's saved form."""
    import transformers

    tokenizer = smol_like()
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer) + 8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=300, pad_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is no checkpoint of this project.*set speller=paper"):
        Checkpoint.open(tmp_path)
    told = Checkpoint.open(tmp_path, "paper")
    assert told.speller.name == "paper" and told.card == Card() and told.model.window == 300
    told.check_fits(
        "spawn_join", ConditionConfig(kind="context", value=64), Limits(context=300)
    )  # it says nothing against it
    assert told.model.outputs == len(tokenizer) + 8 and told.model.load().config.vocab_size == told.model.outputs
    chat_vocabulary(tmp_path, None).save(tmp_path)
    assert Checkpoint.open(tmp_path).speller.name == "chat"


def test_the_window_of_a_model_whose_configuration_is_nested_or_silent(tmp_path: Path) -> None:
    words(tmp_path)
    nested = {"model_type": "gemma3", "text_config": {"max_position_embeddings": 77, "vocab_size": 5}}
    for content, window in ((nested, 77), ({"model_type": "qwen2"}, 32768)):
        (tmp_path / CONFIG_FILE).write_text(json.dumps(content))
        assert Checkpoint.open(tmp_path).model.window == window
