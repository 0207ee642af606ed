"""What comes from a folder is data: it runs no code, imports no module and is no pickle."""

import ast
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from apr.checkpoints.adapters import base_of
from apr.checkpoints.folder import ModelFolder, load_model
from apr.errors import CheckpointError
from apr.tokens.text import load_tokenizer

ROOT = Path(__file__).parents[2]
PROGRAM = [path for part in ("apr", "envs", "solvers", "rl", "benchmarks") for path in (ROOT / part).rglob("*.py")]
UNPICKLING = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "np.load", "numpy.load", "joblib.load"}
ITS_OWN = {ROOT / "apr" / "testing" / "envs.py"}  # unpickles what it has just pickled


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_module_reads_a_pickle() -> None:
    assert len(PROGRAM) > 100
    found = [
        f"{path}: {name}" for path in PROGRAM if path not in ITS_OWN for name, _ in calls(path) if name in UNPICKLING
    ]
    assert not found


def test_each_loading_says_that_it_trusts_no_code() -> None:
    asked = [
        (path, node) for path in PROGRAM for name, node in calls(path)
        if name.endswith((".from_pretrained", "EngineArgs", "AsyncEngineArgs")) and not name.startswith("PeftModel")
    ]  # fmt: skip
    assert len(asked) >= 6
    for path, node in asked:
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert said.get("trust_remote_code") == "False", f"{path}, line {node.lineno}"


@pytest.mark.parametrize(
    "named",
    [
        ("config.json", {"auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}, "model_type": "own"}),
        ("config.json", {"auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.T", "own.T"]}, "tokenizer_class": "Own"}),
    ],
)
def test_code_beside_a_model_is_not_run(
    named: tuple[str, dict[str, Any]], make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder = Path(shutil.copytree(make_checkpoint(0), tmp_path / "model"))
    (folder / "own.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'run')!r}).touch()\n")
    file, more = named
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    monkeypatch.chdir(folder)
    for load in (
        lambda: load_model(folder, "float32"),
        lambda: load_tokenizer(folder),
        lambda: ModelFolder.open(folder).window,
    ):
        with suppress(CheckpointError):
            load()
    assert not (tmp_path / "run").exists()


def adapter(folder: Path, **more: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_model.safetensors").touch()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base", "r": 4, **more})
    )
    return folder


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "megatron.core"}, "megatron_config"),
        ({"megatron_config": {"a": 1}, "megatron_core": "megatron.own"}, "megatron_config"),
        ({"corda_config": {"cache_file": "x.pt"}}, "corda_config"),
        ({"lora_ga_config": {"cache_file": "x.pt"}}, "lora_ga_config"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}}, "PROMPT_TUNING"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "x.pt"}, "only low-rank"),
        ({"peft_type": ["LORA"]}, "only low-rank"),
        ({"peft_type": None}, "only low-rank"),
    ],
)
def test_an_adapter_that_would_have_modules_or_files_loaded_is_refused(
    more: dict[str, Any], says: str, make_checkpoint: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=says):
        base_of(adapter(tmp_path / "adapter", **more), make_checkpoint(0))


def test_an_adapter_as_peft_writes_it_is_taken(make_checkpoint: Any, tmp_path: Path) -> None:
    usual = {"megatron_config": None, "megatron_core": "megatron.core", "corda_config": None, "loftq_config": {}}
    assert base_of(adapter(tmp_path / "adapter", **usual), make_checkpoint(0)).window == 256
