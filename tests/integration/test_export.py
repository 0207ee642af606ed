"""Exported folders: opened by transformers, valid checkpoints here, with a card that says what is recorded and no more."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_tokenizers import smol_like
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from apr.checkpoints.card import Card
from apr.checkpoints.checkpoint import save_checkpoint
from apr.checkpoints.weights import content_id
from apr.cli import main
from apr.config import RlConfig, SftConfig
from apr.presets import dump
from apr.protocols import protocol_by_name
from apr.runs import run_directory
from apr.spellers import speller_of
from apr.threads.codec import read_traces
from apr.tokens.chat import ChatSpeller
from apr.tokens.chat_vocabulary import ChatVocabulary
from envs.countdown.wording import root_prompt
from envs.registry import built_speller

CARD = {"solver": "sos_plus", "protocol": "serial", "trained": ["sft"], "data_hash": "5f7da7a", "commit": "c0ffee"}
IDS = torch.tensor([[1, 20, 21, 22, 23]])


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """The checkpoint of an SFT run, with its folder."""
    config = SftConfig(seed=11, data=tmp_path / "data", solver="sos_plus", tokens=1234, out=tmp_path / "sft")
    with run_directory(tmp_path / "sft", config, data_hash=CARD["data_hash"]) as run:
        folder = Path(shutil.copytree(make_checkpoint(0), run / "checkpoint"))
    (folder / "apr_card.json").write_text(json.dumps(CARD))
    return folder


@pytest.fixture
def rl(checkpoint: Path, tmp_path: Path) -> Path:
    """The folder of an RL run that began from it, with two checkpoints and no `final`."""
    config = RlConfig(seed=22, data=tmp_path / "data", checkpoint=checkpoint, steps=7, protocol="serial")
    with run_directory(tmp_path / "rl", config, data_hash="da7a0f71") as run:
        for step in (2, 4):
            folder = Path(shutil.copytree(checkpoint, run / "checkpoints" / f"step_{step:06d}"))
            (folder / "apr_card.json").write_text(json.dumps({**CARD, "trained": ["sft", "rl"], "step": step}))
    return tmp_path / "rl"


def evaluate(data: Path, checkpoint: Path, out: Path) -> Path:
    given = [f"data={data}", f"checkpoint={checkpoint}", f"out={out}", "engine.kind=tiny", "protocol=serial"]
    assert main(["eval", *given, "limits.context=60"]) == 0
    return out


def export(checkpoint: Path, out: Path, *more: str) -> Path:
    assert main(["export", str(checkpoint), "--out", str(out), *more]) == 0
    return out


def front_matter(folder: Path) -> dict[str, Any]:
    opening, header, _ = (folder / "README.md").read_text().split("---\n", 2)
    assert opening == ""
    content = yaml.safe_load(header)
    assert isinstance(content, dict)
    return content


def logits(folder: Path, dtype: Any = torch.float32) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model(IDS).logits


def test_it_opens_in_transformers_and_computes_the_same(checkpoint: Path, tmp_path: Path) -> None:
    out = export(checkpoint, tmp_path / "out")
    assert torch.equal(logits(out), logits(checkpoint))
    vocabulary = built_speller("compact").vocabulary
    prompt = root_prompt(built_speller("compact"), [3, 5, 8], 23)  # type: ignore[arg-type]
    assert AutoTokenizer.from_pretrained(out)(vocabulary.text(prompt))["input_ids"] == list(prompt)
    assert content_id([out / "model.safetensors"]) == content_id([checkpoint / "model.safetensors"])
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == [2] and model.config.use_cache
    assert {path.name for path in out.iterdir()} >= {"README.md", "config.json", "apr_vocabulary.json", "apr_card.json"}
    assert not any(path.is_dir() for path in out.iterdir())


def test_tied_embeddings(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(0, True)
    out = export(checkpoint, tmp_path / "out")
    assert torch.equal(logits(out), logits(checkpoint))
    assert content_id([out / "model.safetensors"]) == content_id([checkpoint / "model.safetensors"])


def test_bfloat16(checkpoint: Path, tmp_path: Path) -> None:
    out = export(checkpoint, tmp_path / "out", "--dtype", "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype is torch.bfloat16 and json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert torch.allclose(logits(out), logits(checkpoint), atol=0.2)
    assert 2 * (out / "model.safetensors").stat().st_size < 1.1 * (checkpoint / "model.safetensors").stat().st_size


def test_weights_in_several_files_are_exported_evaluated_and_trained(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    several = tmp_path / "run" / "checkpoint"
    shutil.copytree(checkpoint, several)
    (several / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(several, max_shard_size="100KB")
    assert len(list(several.glob("model-*.safetensors"))) > 1
    evaluation = evaluate(data, several.parent, tmp_path / "eval")
    out = export(several.parent, tmp_path / "out", "--eval", str(evaluation))
    assert torch.equal(logits(out), logits(checkpoint)) and (out / "model.safetensors").is_file()
    given = [
        f"data={data}", f"checkpoint={several.parent}", f"out={tmp_path / 'rl'}", "engine.kind=tiny", "steps=1",
        "protocol=serial", "limits.context=60", "validate_problems=0", "tensorboard=false", "group_size=2",
        "problems_per_step=2",
    ]  # fmt: skip
    assert main(["rl", *given, "--dry-run"]) == 0 and main(["rl", *given]) == 0
    assert Card.read(tmp_path / "rl" / "final").trained == ("sft", "rl")


def test_an_exported_folder_is_a_checkpoint(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = export(checkpoint, tmp_path / "out")
    assert Card.read(out).content() == CARD and speller_of(out).name == "compact"
    theirs, ours = (
        [trace.strands[0].sampled for trace in read_traces(evaluate(data, one, tmp_path / name) / "traces.jsonl.gz")]
        for one, name in ((out, "eval_out"), (checkpoint, "eval"))
    )
    assert theirs == ours
    again = export(out, tmp_path / "again", "--eval", str(tmp_path / "eval"), "--eval", str(tmp_path / "eval_out"))
    assert "configuration: unknown" in (again / "README.md").read_text()


def test_the_card_of_an_rl_run_tells_all_stages(rl: Path, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    newest = rl / "checkpoints" / "step_000004"
    evaluation = evaluate(data, newest, tmp_path / "eval")
    out = export(rl, tmp_path / "out", "--eval", str(evaluation), "--license", "apache-2.0")
    assert Card.read(out).content()["step"] == 4
    text = (out / "README.md").read_text()
    summary = json.loads((evaluation / "summary.json").read_text())
    low, high = summary["interval"]
    for fact in (
        "It was trained from scratch", "seed: 11", "seed: 22", "tokens: 1234", "steps: 7", "data hash: 5f7da7a",
        "data hash: da7a0f71", "solver `sos_plus`", "2 numbers drawn uniformly from 1-9 and the target", "limits: context 60",
        "contact with training: unknown for sft and rl: the checkpoint's card does not say",
        f"{summary['accuracy']:.1%} ({low:.1%}-{high:.1%})", "The licence is apache-2.0", "| eos | `<eos>` | 2 |",
        json.loads((evaluation / "manifest.json").read_text())["data_hash"],
    ):  # fmt: skip
        assert fact in text, fact
    assert str(tmp_path) not in text  # where things were on the trainer's machine is nobody's business
    (rl / "checkpoints" / "step_000004").rename(rl / "final")
    assert "seed: 22" in (export(rl, tmp_path / "final", "--eval", str(evaluation)) / "README.md").read_text()


def test_hugging_face_reads_the_front_matter(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    evaluation = evaluate(data, checkpoint, tmp_path / "eval")
    out = export(checkpoint, tmp_path / "out", "--eval", str(evaluation), "--license", "mit")
    card = ModelCard.load(out / "README.md").data
    assert (card.license, card.library_name) == ("mit", "transformers")
    assert card.eval_results is not None
    found = {result.metric_type: result for result in card.eval_results}
    summary = json.loads((evaluation / "summary.json").read_text())
    assert found["accuracy"].metric_value == pytest.approx(summary["accuracy"], abs=1e-4)
    assert found["span_sampled"].metric_value == pytest.approx(summary["costs"]["span_sampled"]["mean"], abs=1e-2)
    assert found["accuracy"].dataset_split == "test"


def test_what_is_unknown_is_said_to_be(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    out = export(make_checkpoint(0), tmp_path / "out")
    text = (out / "README.md").read_text()
    assert "Whether it was trained from scratch or from a base is unknown" in text
    assert "Unknown: its checkpoint does not say" in text and "nothing is known of how well it does" in text
    assert front_matter(out)["license"] == "unknown" and "The licence is unknown" in text
    # Whichever protocol it follows, its strands end at one of these.
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert built_speller("compact").vocabulary.text(ends) == (
        "<eos> </spawn> </Goal> </Path> <|para|> <|/branch|> </promise> </async> <sync/> </Outlines> </Thread> </FORK> "
        "<JOIN> [Fork]"
    )


ON = {"stage": "sft", "split": "train", "hash": "0", "env": {"name": "countdown"}}


@pytest.mark.parametrize("name", ["compact", "paper", "chat"])
@pytest.mark.parametrize("protocol", ["serial", "spawn_join"])
def test_every_speller_and_protocol(name: str, protocol: str, tmp_path: Path) -> None:
    speller = ChatSpeller(ChatVocabulary(smol_like())) if name == "chat" else built_speller(name)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(speller.vocabulary), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=512,
        )
    )  # fmt: skip
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_checkpoint(
        folder,
        model,
        speller.vocabulary,
        Card.parse({"protocol": protocol, "trained": ["sft"], "base": "someone/model", "trained_on": [ON]}, "test"),
    )
    out = export(folder, tmp_path / "out")
    start = protocol_by_name(protocol, speller).start(root_prompt(speller, [3, 5, 8], 23))
    ids = [token for run in start.inject for token in run.ids]
    text = (out / "README.md").read_text()
    assert str(ids) in text and "from a pretrained model, `someone/model`" in text
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == list(start.stop_ids)
    assert speller_of(out).vocabulary.hash == speller.vocabulary.hash


def test_an_adapter_is_merged(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    from test_merge import make_adapter

    adapter = make_adapter(checkpoint, tmp_path / "adapter")
    evaluation = evaluate(data, adapter, tmp_path / "eval")
    out = export(adapter, tmp_path / "out", "--eval", str(evaluation))
    assert torch.equal(logits(out), logits(evaluation / "merged"))
    text = (out / "README.md").read_text()
    assert "`adapter`" in text and content_id([adapter / "adapter_model.safetensors"]) in text and "seed: 11" in text
    of_base = evaluate(data, checkpoint, tmp_path / "eval_base")
    assert main(["export", str(adapter), "--out", str(tmp_path / "other"), "--eval", str(of_base)]) == 2
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    config = moved / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "gone"}))
    assert main(["export", str(moved), "--out", str(tmp_path / "out2")]) == 2
    export(moved, tmp_path / "out2", "--base", str(checkpoint))


class Refusals:
    def __init__(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out, self._capsys = out, capsys

    def __call__(self, checkpoint: Path, *more: str, out: Path | None = None) -> str:
        """What is said; nothing is left behind."""
        before = {path: path.stat().st_mtime_ns for path in self.out.parent.rglob("*")}
        self._capsys.readouterr()
        assert main(["export", str(checkpoint), "--out", str(out or self.out), *more]) == 2
        said = self._capsys.readouterr().err
        assert said.count("apr: error: ") == 1 and "Traceback" not in said
        assert {path: path.stat().st_mtime_ns for path in self.out.parent.rglob("*")}.keys() == before.keys()
        return said


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusals:
    return Refusals(tmp_path / "out", capsys)


def test_what_is_no_checkpoint(checkpoint: Path, tmp_path: Path, refused: Refusals) -> None:
    assert "no model in" in refused(tmp_path / "nothing")
    assert "no model in" in refused(tmp_path)
    plain = Path(shutil.copytree(checkpoint, tmp_path / "plain"))
    (plain / "apr_vocabulary.json").unlink()
    assert "is no checkpoint of this project" in refused(plain)
    assert "leave base out" in refused(checkpoint, "--base", str(plain))


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("apr_card.json", "apr_card.json is corrupt"), ("apr_vocabulary.json", "is corrupt"), ("config.json", "corrupt"),
        ("model.safetensors", "holds no readable model"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint(file: str, says: str, checkpoint: Path, refused: Refusals) -> None:
    path = checkpoint / file
    path.write_bytes(path.read_bytes()[:40])
    said = refused(checkpoint)
    assert says in said and str(checkpoint) in said


def test_a_card_that_is_none(checkpoint: Path, refused: Refusals) -> None:
    for content in ("[1, 2]", '{"trained": 3}', '{"protocol": "telepathy", "trained": ["sft"]}'):
        (checkpoint / "apr_card.json").write_text(content)
        assert "apr_card.json" in refused(checkpoint)
    for unfit in ({"condition": "telepathy"}, {"condition": ["none"]}, {"adapter": {"name": "a"}}):
        (checkpoint / "apr_card.json").write_text(json.dumps({**CARD, **unfit}))
        assert "apr_card.json is corrupt" in refused(checkpoint)


def test_weights_that_are_not_all_there(checkpoint: Path, refused: Refusals) -> None:
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, {"format": "pt"})
    assert "lacks model.norm.weight" in refused(checkpoint)


def test_evaluations_that_do_not_belong(
    checkpoint: Path, data: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, refused: Refusals
) -> None:
    other = evaluate(data, make_checkpoint(1), tmp_path / "other")
    assert "is of another checkpoint" in refused(checkpoint, "--eval", str(other))
    own = evaluate(data, checkpoint, tmp_path / "own")
    assert "no finished evaluation" in refused(checkpoint, "--eval", str(own), "--eval", str(tmp_path))
    summary = (own / "summary.json").read_text()
    for wrong in (summary[:50], "[]", json.dumps({**json.loads(summary), "interval": None})):
        (own / "summary.json").write_text(wrong)
        assert "summary.json is corrupt" in refused(checkpoint, "--eval", str(own))
    (own / "summary.json").write_text(summary)
    (own / "manifest.json").write_text("{")
    assert "manifest.json is missing, corrupt" in refused(checkpoint, "--eval", str(own))


def test_an_evaluation_that_goes_on_or_is_given_twice(
    checkpoint: Path, data: Path, tmp_path: Path, refused: Refusals
) -> None:
    own = evaluate(data, checkpoint, tmp_path / "own")
    assert "are the same evaluation: name it once" in refused(
        checkpoint, "--eval", str(own), "--eval", str(own / ".." / "own")
    )
    manifest = own / "manifest.json"
    facts = json.loads(manifest.read_text())
    assert facts["traces"] == 3
    manifest.write_text(json.dumps({**facts, "traces": 8}))  # as a call for more problems leaves it until its end
    said = refused(checkpoint, "--eval", str(own))
    assert "is of 3 attempts, and 8 were asked for" in said and f"apr eval --config {own / 'config.yaml'}" in said
    del facts["traces"]
    manifest.write_text(json.dumps(facts))
    assert "'traces'" in refused(checkpoint, "--eval", str(own))


def test_a_licence_is_one_word(checkpoint: Path, refused: Refusals) -> None:
    for name in ("mit\n- free of charge", "", "apache 2.0", "mit`", "a|b", "mit\n"):
        assert "is not one word" in refused(checkpoint, "--license", name)


def test_names_that_would_break_a_card(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    odd = "a|b `c` 'd' \"e\" <f> \\ [g](h)"
    one = evaluate(data, checkpoint, tmp_path / "x" / "eval").rename(tmp_path / "x" / f"{odd}\n# line")
    two = Path(shutil.copytree(one, tmp_path / "y" / one.name))
    out = export(checkpoint, tmp_path / f"{odd}\n```", "--eval", str(one), "--eval", str(two))
    text = (out / "README.md").read_text()
    name = f"{odd} ```"
    assert front_matter(out)["model-index"][0]["name"] == name
    body = text.split("---\n", 2)[2]
    shown = "a\\|b \\`c\\` 'd' \"e\" \\<f\\> \\\\ \\[g\\](h)"
    assert body.startswith(f"\n# {shown} ") and "\n# line" not in body
    rows = [line for line in body.splitlines() if line.startswith("| a\\|b")]
    assert [row.split(" | greedy |")[0] for row in rows] == [f"| {shown} # line", f"| {shown} # line (2)"]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 10 for row in rows)
    [block] = re.findall(r"^(`{4,})\n(curl .*?)\n\1$", body, re.DOTALL | re.MULTILINE)
    arguments = shlex.split(block[1])
    assert arguments[:2] == ["curl", "http://localhost:8000/v1/completions"]
    assert json.loads(arguments[-1])["model"] == name and len(arguments) == 6
    [served] = re.findall(r"With a server \(`{4} (.*) `{4}\):", body)
    assert shlex.split(served)[-2:] == ["--served-model-name", name]


def test_what_tells_evaluations_apart(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        f"data={data}", f"checkpoint={checkpoint}", "engine.kind=tiny", "protocol=serial", "limits.context=60",
        "temperature=0.7", "samples=2", "seed=5", "in_flight=3", "budgets.work=99",
    ]  # fmt: skip
    (checkpoint / "apr_card.json").write_text(json.dumps({**CARD, "condition": "context"}))
    measured = tmp_path / "eval"
    assert main(["eval", *given, f"out={measured}"]) == 0
    capsys.readouterr()
    text = (export(checkpoint, tmp_path / "out", "--eval", str(measured)) / "README.md").read_text()
    assert ", 1 evaluation in its card" in capsys.readouterr().out
    assert (
        "| temperature 0.7, seed 5, 2 attempts a problem |" in text
        and "- conditions in their prompts: a context" in text
    )
    for fact in ("protocol serial; limits: context 60", "heed: work 99", "up to 3 attempts at once"):
        assert fact in text, fact
    config = measured / "config.yaml"
    for kind, said in (("context", "a context of 40 tokens"), ("children", "40 children")):
        content = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump({**content, "condition": {"kind": kind, "value": 40}}))
        out = export(checkpoint, tmp_path / kind, "--eval", str(measured))
        assert f"2 attempts a problem, {said} asked for in the prompt |" in (out / "README.md").read_text()
        assert f"{said} asked for in the prompt" in front_matter(out)["model-index"][0]["results"][0]["task"]["name"]


def test_control_tokens_with_bars_keep_their_row() -> None:
    from apr.model_card import _cell, _fenced

    assert _cell("<|im_end|>") == "`<\\|im_end\\|>`" and _cell("a`b") == "`` a`b ``"
    assert _fenced("```\ncode\n```", "yaml") == "````yaml\n```\ncode\n```\n````"


def test_places_that_are_taken(checkpoint: Path, tmp_path: Path, refused: Refusals) -> None:
    refused.out.write_text("mine")
    assert "exists and is not an empty folder" in refused(checkpoint)
    refused.out.unlink()
    refused.out.mkdir()
    (refused.out / "mine").touch()
    assert "exists and is not an empty folder" in refused(checkpoint)
    (refused.out / "mine").unlink()
    for inside in (checkpoint, checkpoint / "export"):
        assert "which is only read" in refused(checkpoint, out=inside)
    assert "cannot write" in refused(checkpoint, out=checkpoint.parent / "config.yaml" / "out")
    for nowhere in (Path("/proc/a"), tmp_path / ("n" * 300)):
        said = refused(checkpoint, out=nowhere)
        assert f"cannot write {nowhere}: " in said and "Give another --out" in said
    export(checkpoint, refused.out)  # an empty folder is free


def test_the_folder_where_one_stands(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["export", str(checkpoint), "--out", "."]) == 0
    assert (tmp_path / "here" / "README.md").read_text().count("# here\n") == 1


def test_a_run_of_another_version_is_quoted_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    config = checkpoint.parent / "config.yaml"
    config.write_text(config.read_text() + "gone_since: 5\n")
    assert "\ngone_since: 5\n" in (export(checkpoint, tmp_path / "out") / "README.md").read_text()


def test_a_run_whose_records_are_damaged(checkpoint: Path, refused: Refusals) -> None:
    for content in ("[1, 2]", "seed: [", "\x00"):
        (checkpoint.parent / "config.yaml").write_text(content)
        assert "config.yaml is corrupt" in refused(checkpoint)
    (checkpoint.parent / "manifest.json").write_text("{")
    assert "manifest.json is missing, corrupt" in refused(checkpoint)


def test_another_run_beside_a_checkpoint_is_not_taken_for_its_own(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "apr_card.json").write_text(json.dumps({**CARD, "data_hash": "other"}))
    text = (export(checkpoint, tmp_path / "out") / "README.md").read_text()
    assert "seed: 11" not in text and "configuration: unknown" in text
    assert "seed: 11" in dump(SftConfig(seed=11))
