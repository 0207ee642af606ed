"""The paper speller through the stages that users call: data, SFT, evaluation, RL; and conditions in prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from apr.checkpoints.card import Card
from apr.cli import main
from apr.config import ConditionConfig
from apr.data.store import read_demonstrations
from apr.threads.codec import read_traces
from apr.threads.trace import ROOT, StrandId

DATA = {
    "speller": "paper", "train": 40, "validation": 4, "test": 6, "workers": 1,
    "env": {"name": "countdown", "numbers": 3, "low": 1, "high": 9, "target_low": 5, "target_high": 30, "test_share": 0.3},
    "solvers": {
        "sos_plus": {"protocol": "serial", "beams": [2], "condition": "context", "context_bin": 64},
        "spawn_join": {"protocol": "spawn_join", "spawn_depth": 1, "beams": [2, 3], "condition": "children"},
    },
}  # fmt: skip
MODEL = "model={layers: 1, hidden: 64, heads: 2, intermediate: 64, window: 512}"
LIMITS = "limits={context: 300, threads: 8, depth: 1}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper") / "data"
    config = out.parent / "data.yaml"
    config.write_text(yaml.safe_dump(DATA))
    assert main(["data", "generate", "--config", str(config), f"out={out}"]) == 0
    assert main(["data", "verify", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Path:
    out = data.parent / "sft"
    assert main(["sft", f"data={data}", "solver=spawn_join", MODEL, "tokens=3000", "warmup_steps=0", f"out={out}"]) == 0
    return out / "checkpoint"


def told(trace: Any) -> dict[str, Any]:
    found: dict[str, Any] = trace.problem["condition"]
    return found


def test_demonstrations_ask_for_what_they_take(data: Path) -> None:
    for trace in read_demonstrations(data, "sos_plus"):
        assert trace.costs is not None and told(trace)["kind"] == "context"
        assert told(trace)["value"] - 64 - 8 < trace.costs.context <= told(trace)["value"]
        assert told(trace)["value"] % 64 == 0
    widths = set()
    for trace in read_demonstrations(data, "spawn_join"):
        children = sum(thread.parent == ROOT for thread in trace.threads)
        assert told(trace) == {"kind": "children", "value": children}  # three numbers: one spawn at most
        widths.add(children)
    assert len(widths) > 1


@pytest.mark.parametrize("condition", [None, {"kind": "children", "value": 3}])
def test_a_model_of_the_paper_speller_is_evaluated_in_its_own_words(
    condition: dict[str, Any] | None, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert json.loads((checkpoint / "apr_vocabulary.json").read_text())["speller"] == "paper"
    assert Card.read(checkpoint).condition == "children"
    asked = [f"condition={json.dumps(condition)}"] if condition else []
    out = tmp_path / "eval"
    arguments = [f"data={data}", f"checkpoint={checkpoint}", "engine.kind=tiny", LIMITS, f"out={out}", *asked]
    assert main(["eval", *arguments]) == 0
    traces = list(read_traces(out / "traces.jsonl.gz"))
    assert len(traces) == 6
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for trace in traces:
        prompt = tokenizer.decode(trace.by_id()[StrandId(ROOT, 0)].injected_ids)
        opening = "Sub Call Budget: 3 Moving to Node #0\n" if condition else "Moving to Node #0\n"
        assert prompt.startswith(f"<bos>{opening}Current State: {trace.problem['target']}:[")
    if condition:
        assert main(["eval", *arguments[:-1]]) == 2  # another condition: another evaluation


def test_rl_runs_in_the_paper_speller_under_a_condition(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "rl"
    arguments = [
        f"data={data}", f"checkpoint={checkpoint}", "engine.kind=tiny", LIMITS, f"out={out}", "steps=1", "group_size=2",
        "problems_per_step=2", "validate_problems=0", "condition={kind: children, value: 2}", "tensorboard=false",
    ]  # fmt: skip
    assert main(["rl", *arguments]) == 0
    [path] = (out / "traces").iterdir()
    assert all(told(trace) == {"kind": "children", "value": 2} for trace in read_traces(path))
    assert json.loads((out / "final" / "apr_vocabulary.json").read_text())["speller"] == "paper"
    assert Card.read(out / "final").condition == "children"


SHIPPED = Path(__file__).parents[2] / "checkpoints" / "tiny_cpu" / "spawn_join"


@pytest.mark.parametrize("command", ["eval", "rl"])
def test_a_model_is_not_asked_for_what_no_prompt_asked_for_in_its_training(
    command: str, data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / command
    given = [command, f"data={data}", "engine.kind=tiny", "limits.context=96", f"out={out}"]
    capsys.readouterr()
    assert main([*given, f"checkpoint={checkpoint}", "condition={kind: context, value: 64}"]) == 2
    said = capsys.readouterr().err
    assert f"condition asks for context, and {checkpoint} was trained on prompts that ask for children" in said
    assert "set condition={kind: children, value: ...}, leave condition out, or train one" in said
    assert main([*given, f"checkpoint={SHIPPED}", "condition={kind: children, value: 6}"]) == 2
    said = capsys.readouterr().err
    assert "trained on prompts that ask for nothing: leave condition out, or train one on demonstrations" in said
    assert "`condition: children`" in said and not out.exists()


def test_a_card_that_does_not_say_is_believed_to_fit() -> None:
    for card in (Card(), Card(condition="children")):
        card.check_condition(ConditionConfig(kind="children", value=6), Path("a"))
    for kind in ("none", "context", "children"):
        Card.parse({"condition": kind}, "a").check_condition(None, Path("a"))
