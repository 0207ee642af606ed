"""Supervised fine-tuning with TRL: on a handful of rows, interrupted and resumed, to a checkpoint that others open."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from toys import MODEL, SPAWNING, sft_config

from apr import runs
from apr.checkpoints.card import Card
from apr.checkpoints.checkpoint import Checkpoint
from apr.config import DataConfig, SftConfig
from apr.contact import trained_on
from apr.data.generate import generate
from apr.data.shards import shard_facts, shard_paths
from apr.data.store import (
    DEMONSTRATIONS,
    data_env,
    demonstrations_folder,
    demonstrations_table,
    read_demonstrations,
    write_demonstrations,
)
from apr.errors import CheckpointError, DataError, RunDirectoryError
from apr.presets import check, load
from apr.sft import train as sft
from apr.sft.callbacks import Lines
from apr.sft.examples import examples_of, token_batches
from apr.sft.rows import IGNORED, pointers, rows, told_block
from apr.sft.train import train
from envs.countdown.compact import CompactSpeller
from envs.countdown.wording import root_prompt

VOCABULARY = CompactSpeller().vocabulary


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "data"
    generate(check(DataConfig, {**SPAWNING, "out": out}, "toy"))
    return out


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(sft_config(data, tmp_path_factory.mktemp("trained") / "run", snapshots=[0.5]))


def losses(checkpoint: Path) -> dict[int, float]:
    log = json.loads((checkpoint / "log.json").read_text())
    return {line["step"]: line["loss"] for line in log if "loss" in line}


def test_the_loss_falls(trained: Path) -> None:
    logged = losses(trained)
    assert logged[5] > 3
    assert logged[max(logged)] < 0.5 * logged[5], logged


def test_the_checkpoint_opens_with_the_usual_classes(trained: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(trained)
    assert (model.config.num_hidden_layers, model.config.max_position_embeddings) == (1, 64)
    assert model.config.vocab_size == len(VOCABULARY)
    control = VOCABULARY.control
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (
        control.pad, control.bos, control.eos,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(trained)
    for id, token in enumerate(VOCABULARY.tokens):
        assert tokenizer.convert_ids_to_tokens(id) == token
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [id]
        assert tokenizer.decode([id]) == token
    prompt = root_prompt(CompactSpeller(), (3, 5, 8), 24)
    assert tuple(tokenizer(VOCABULARY.text(prompt), add_special_tokens=False)["input_ids"]) == prompt
    assert model(torch.tensor([prompt])).logits.shape == (1, len(prompt), len(VOCABULARY))


def test_the_checkpoint_says_what_it_is(trained: Path, data: Path) -> None:
    card = Card.read(trained)
    assert card.solver == "toy" and card.trained == ("sft",)
    assert card.data_hash and card.commit and card.condition == "none"
    assert card.trained_on == trained_on(data, "sft", data_env(data)) != ()
    assert Checkpoint.open(trained).model.window == 64


def test_a_snapshot_is_a_checkpoint_of_its_own(trained: Path) -> None:
    from transformers import AutoModelForCausalLM

    half = trained.parent / "snapshots" / "0.5"
    assert Checkpoint.open(half).model.window == 64
    assert Card.read(half) == Card.read(trained).with_facts(share=0.5)
    ends = [AutoModelForCausalLM.from_pretrained(folder).lm_head.weight for folder in (half, trained)]
    assert not torch.equal(*ends)


def test_a_finished_training_is_not_repeated(trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "_trainer", None)
    assert train(sft_config(data, trained.parent, threads=2, log_every=7, checkpoint_every=9)) == trained


def test_the_checkpoint_of_another_training_is_not_returned(trained: Path, data: Path, tmp_path: Path) -> None:
    before = (trained.parent / "config.yaml").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"differs: seed \(was 0, is 1\), model\.layers \(was 1, is 2\)\. Give"):
        train(sft_config(data, trained.parent, seed=1, model={**MODEL, "layers": 2}))
    shutil.copytree(data, tmp_path / "data")
    assert train(sft_config(tmp_path / "data", trained.parent)) == trained  # the same data elsewhere
    shutil.rmtree(tmp_path / "data")
    generate(check(DataConfig, {**SPAWNING, "seed": 1, "out": tmp_path / "data"}, "toy"))
    with pytest.raises(RunDirectoryError, match=r"differs: data_hash \(was "):
        train(sft_config(tmp_path / "data", trained.parent))
    assert (trained.parent / "config.yaml").read_bytes() == before


@pytest.fixture(scope="module")
def interrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped at step 30; its last checkpoint is of step 20."""
    made = sft_config(data, tmp_path_factory.mktemp("interrupted") / "run")
    make_trainer = sft._trainer

    def stopped(*arguments: Any) -> Any:
        from transformers import TrainerCallback

        class Stop(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 30:
                    raise KeyboardInterrupt

        trainer = make_trainer(*arguments)
        trainer.add_callback(Stop())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "_trainer", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(made)
    assert [path.name for path in (made.out / "trainer").glob("checkpoint-*")] == ["checkpoint-20"]
    assert not (made.out / "checkpoint").exists()
    return made.out


def test_an_interrupted_training_goes_on_where_it_stopped(
    trained: Path, data: Path, interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    resumed = train(sft_config(data, tmp_path / "run", checkpoint_every=30))
    assert capsys.readouterr().out.startswith(f"sft toy: reading {demonstrations_folder(data, 'toy')}\n")
    whole = losses(trained)
    assert losses(resumed).keys() == whole.keys()
    assert losses(resumed) == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_asked_to_stop_saves_first(
    number: signal.Signals, trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked, before = Lines.on_log, signal.getsignal(number)

    def on_log(self: Lines, args: Any, state: Any, *more: Any, **others: Any) -> None:
        asked(self, args, state, *more, **others)
        if state.global_step == 15:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "on_log", on_log)
        with pytest.raises(KeyboardInterrupt, match=r"saved after step 1[56] of \d+; call the same command again"):
            train(sft_config(data, tmp_path / "run"))
    out, err = capsys.readouterr()
    assert f"{number.name}: finishing this step, then saving" in err
    assert signal.getsignal(number) is before
    [saved] = (tmp_path / "run" / "trainer").glob("checkpoint-*")
    assert saved.name in ("checkpoint-15", "checkpoint-16") and not (tmp_path / "run" / "checkpoint").exists()
    resumed, whole = losses(train(sft_config(data, tmp_path / "run"))), losses(trained)
    assert resumed.keys() == whole.keys()
    resumed[20] = whole[20]  # the mean of the steps since the last line, or since the start of the call
    assert resumed == pytest.approx(whole, rel=1e-3)
    lines = [line for line in (out + capsys.readouterr().out).splitlines() if " step " in line]
    form = r"sft toy step \d+/\d+ \| loss \d+\.\d{4} \| lr \d\.\d\de-\d\d \| [\d,]+ tokens/s \| (\dm )?\d+s left"
    assert len(lines) == len(losses(trained)) and all(re.fullmatch(form, line) for line in lines), lines


def test_threads_chosen_at_the_start_are_recorded_and_kept(
    data: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of threads changes roundings: a run goes on with that which it began with, whatever is free then."""
    make_trainer, used = sft._trainer, []

    def seen(config: SftConfig, *others: Any) -> Any:
        used.append(config.threads)
        return make_trainer(config, *others)

    monkeypatch.setattr(sft, "_trainer", seen)
    monkeypatch.setattr(runs, "threads_now", lambda: 2)
    made = sft_config(data, tmp_path / "new", tokens=300, warmup_steps=0, threads=None)
    train(made)
    assert runs.recorded(made.out)["threads"] == 2
    assert load(SftConfig, [made.out / "config.yaml"]).threads is None
    shutil.copytree(interrupted, tmp_path / "run")
    train(sft_config(data, tmp_path / "run", threads=None))
    assert runs.recorded(tmp_path / "run")["threads"] == 1
    assert used == [2, 1]


def test_an_interrupted_training_does_not_go_on_as_another(data: Path, interrupted: Path) -> None:
    before = (interrupted / "config.yaml").read_bytes()
    for more, said in (
        ({"model": {**MODEL, "layers": 2}}, r"model\.layers \(was 1, is 2\)"),
        ({"lr": 0.5}, r"lr \(was 0.002, is 0.5\)"),
    ):
        with pytest.raises(RunDirectoryError, match=f"differs: {said}\\. Give another `out`"):
            train(sft_config(data, interrupted, **more))
    assert (interrupted / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "rng_state.safetensors", "trainer_state.json"]
)
def test_a_damaged_checkpoint_to_go_on_from_is_named(
    file: str, data: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    path = Path(shutil.copytree(interrupted, run)) / "trainer" / "checkpoint-20" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    monkeypatch.setattr(sft, "_trainer", None)
    with pytest.raises(CheckpointError, match=f"{path} is damaged .*: delete the folder {path.parent}"):
        train(sft_config(data, run))


def test_a_run_that_left_no_checkpoint_may_be_started_anew_with_another_configuration(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "_trainer", None)
    for seed in (0, 1):
        with pytest.raises(TypeError, match="not callable"):
            train(sft_config(data, tmp_path, seed=seed))


def test_rows_are_those_of_the_traces_cut_to_the_window(data: Path, tmp_path: Path) -> None:
    expected = [row for trace in read_demonstrations(data, "toy") for row in rows(trace)]
    examples = examples_of(sft_config(data, tmp_path), tmp_path)
    assert examples.over == 0 and len(examples.table) == len(expected)
    assert [examples.lengths[examples.order.index(i)] for i in range(len(expected))] == [
        len(r.block.ids) for r in expected
    ]
    found = [(e["input_ids"], e["targets"], e["segments"]) for e in examples.table.to_pylist()]
    assert sorted(found) == sorted((list(r.block.ids), r.targets, pointers(r.block)) for r in expected)
    short = {**MODEL, "window": 32}
    examples = examples_of(sft_config(data, tmp_path, model=short), tmp_path)
    cut = examples.table.to_pylist()
    assert examples.over > 0 and max(max(told_block(e["input_ids"], e["segments"]).positions) for e in cut) == 31
    dropped = examples_of(sft_config(data, tmp_path, model=short, overlong="drop"), tmp_path)
    assert dropped.over == examples.over and len(dropped.table) == len(expected) - dropped.over
    assert all(any(label != IGNORED for label in example["targets"]) for example in cut)


def test_rows_are_the_same_in_however_many_processes_their_shards_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    generate(check(DataConfig, {**SPAWNING, "shard_rows": 3, "out": data}, "toy"))
    assert len(shard_paths(demonstrations_folder(data, "toy"), "train")) > 2
    folders = [tmp_path / name for name in ("one", "several", "few")]
    for folder in folders:
        folder.mkdir()
    one = examples_of(sft_config(data, tmp_path), folders[0])
    several = examples_of(sft_config(data, tmp_path, threads=3), folders[1])
    assert several == one
    monkeypatch.setattr("apr.sft.examples.ROWS_AT_ONCE", 2)
    few = examples_of(sft_config(data, tmp_path), folders[2])
    assert few == one and few.table["input_ids"].num_chunks > one.table["input_ids"].num_chunks


def test_nothing_to_train_on_is_an_error_that_leaves_nothing(data: Path, tmp_path: Path) -> None:
    [path] = shard_paths(demonstrations_folder(data, "toy"), "train")
    table = demonstrations_table(path)
    unsolved = table.filter(pc.invert(table["solved"]))
    facts = shard_facts(path, DEMONSTRATIONS)
    (tmp_path / "data").mkdir()
    shutil.copy(data / "config.yaml", tmp_path / "data")
    write_demonstrations(demonstrations_folder(tmp_path / "data", "toy") / path.name, unsolved, len(unsolved), facts)
    made = sft_config(tmp_path / "data", tmp_path / "run", only_solved=True)
    with pytest.raises(DataError, match="holds no row to train on"):
        train(made)
    assert not (made.out / "checkpoint").exists()


def test_batches_hold_every_row_once_a_pass_within_the_budget() -> None:
    lengths = [3, 50, 7, 7, 9, 31, 64, 3, 12, 40]
    batches = token_batches(lengths, 64, sum(lengths), 0)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 64 for batch in batches)
    assert token_batches(lengths, 64, sum(lengths), 0) == batches != token_batches(lengths, 64, sum(lengths), 1)
    two = token_batches(lengths, 64, 2 * sum(lengths), 0)
    assert two[: len(batches)] == batches and sorted(i for batch in two for i in batch) == sorted([*range(10)] * 2)
