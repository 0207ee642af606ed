"""A dry run finds what the command itself would refuse, quickly, and neither leaves anything behind."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apr.cli import main
from apr.config import EvalConfig, RlConfig
from apr.data.shards import shard_path
from apr.data.store import demonstrations_folder, problems_folder
from apr.runs import run_directory

ROOT = Path(__file__).parents[2]
DATA = """
env: {name: countdown, numbers: 2, low: 1, high: 9, target_low: 2, target_high: 20}
train: 8
validation: 2
test: 2
solvers: {sos_plus: {protocol: serial}}
"""
HEAVY = {"torch", "ray", "vllm", "trl", "transformers", "datasets"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    (folder / "data.yaml").write_text(DATA, encoding="utf-8")
    assert main(["data", "generate", "--config", str(folder / "data.yaml"), f"out={folder / 'data'}"]) == 0
    return folder / "data"


@pytest.fixture
def place(made: Path, make_checkpoint: Callable[[int], Path], tmp_path: Path) -> Path:
    """A folder with `data` and the checkpoint `start`, to be spoilt."""
    shutil.copytree(made, tmp_path / "data")
    shutil.copytree(make_checkpoint(0), tmp_path / "start")
    return tmp_path


def given(place: Path, stage: str, *more: str) -> list[str]:
    """The arguments of a sound call, with `more` in place of what it overrides."""
    usual = [f"data={place / 'data'}", f"out={place / 'out'}"]
    if stage == "sft":
        usual += ["solver=sos_plus"]
    else:
        usual += [f"checkpoint={place / 'start'}", "protocol=serial", "engine.kind=tiny", "limits.context=60"]
    keys = {override.partition("=")[0] for override in more}
    return [stage, *(override for override in usual if override.partition("=")[0] not in keys), *more]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def spoil_shard(place: Path, folder: Path, split: str) -> None:
    path = shard_path(folder, split, 0, 1)
    path.write_bytes(path.read_bytes()[:-20])


def truncated_demonstrations(place: Path) -> None:
    spoil_shard(place, demonstrations_folder(place / "data", "sos_plus"), "train")


def truncated_problems(place: Path) -> None:
    for split in ("train", "validation", "test"):
        spoil_shard(place, problems_folder(place / "data"), split)


def other_protocol(place: Path) -> None:
    card = json.loads((place / "start" / "apr_card.json").read_text(encoding="utf-8")) if (
        place / "start" / "apr_card.json"
    ).is_file() else {}  # fmt: skip
    (place / "start" / "apr_card.json").write_text(json.dumps({**card, "protocol": "spawn_join"}), encoding="utf-8")


def no_condition(place: Path) -> None:
    (place / "start" / "apr_card.json").write_text(json.dumps({"condition": "none"}), encoding="utf-8")


def damaged_model(place: Path) -> None:
    path = place / "start" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def out_is_a_file(place: Path) -> None:
    (place / "out").write_text("mine", encoding="utf-8")


def out_is_of_another_kind(place: Path) -> None:
    with run_directory(place / "out", EvalConfig() if (place / "for_rl").exists() else RlConfig()):
        pass


def nothing(place: Path) -> None: ...


@pytest.mark.parametrize(
    ("stage", "spoil", "more", "says"),
    [
        ("sft", nothing, ["data=nowhere"], "nowhere"),
        ("sft", nothing, ["solver=other"], "no data file"),
        ("sft", truncated_demonstrations, [], "truncated or corrupt"),
        ("sft", nothing, ["base=nowhere", "lr=1e-4"], "nowhere is not there"),
        ("sft", nothing, ["model.window=16", "overlong=drop"], "no row to train on"),
        ("sft", out_is_a_file, [], "is a file"),
        ("sft", out_is_of_another_kind, [], "is the folder of an `apr rl`"),
        ("eval", nothing, ["data=nowhere"], "nowhere"),
        ("eval", truncated_problems, [], "truncated or corrupt"),
        ("eval", other_protocol, [], "was trained in protocol spawn_join"),
        ("eval", no_condition, ["condition={kind: context, value: 9}"], "trained on prompts that ask for nothing"),
        ("eval", damaged_model, [], "holds no readable model"),
        ("eval", nothing, ["limits.context=9999"], "exceeds the window"),
        ("eval", nothing, ["checkpoint=nowhere"], "no model in nowhere"),
        ("eval", out_is_of_another_kind, [], "is the folder of an `apr rl`"),
        ("rl", truncated_problems, [], "truncated or corrupt"),
        ("rl", other_protocol, [], "was trained in protocol spawn_join"),
        ("rl", no_condition, ["condition={kind: context, value: 9}"], "trained on prompts that ask for nothing"),
        ("rl", damaged_model, [], "holds no readable model"),
        ("rl", nothing, ["checkpoint=nowhere"], "no model in nowhere"),
        ("rl", out_is_a_file, [], "is a file"),
        ("rl", nothing, ["learner.clip_high=0.5"], "cannot act"),
    ],
)
def test_what_the_command_refuses_its_dry_run_refuses_and_both_leave_out_alone(
    stage: str, spoil: Callable[[Path], None], more: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    spoil(place)
    before = contents(place)
    said = []
    for dry in (["--dry-run"], []):
        capsys.readouterr()
        assert main([*given(place, stage, *more), *dry]) == 2
        said.append(capsys.readouterr().err.splitlines()[-1])
        assert contents(place) == before
    assert says in said[0] and said[0] == said[1]


@pytest.mark.parametrize("stage", ["sft", "rl", "eval"])
def test_a_folder_in_use_is_refused_by_a_dry_run(stage: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_directory(place / "out", RlConfig()):
        (place / "out" / "manifest.json").unlink()
        before = contents(place)
        assert main([*given(place, stage), "--dry-run"]) == 2
        assert "is in use by process" in capsys.readouterr().err and contents(place) == before
    assert main([*given(place, stage), "--dry-run"]) == 0


def test_results_of_another_configuration_are_refused_by_a_dry_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given(place, "eval")) == 0
    before = contents(place)
    for more in (["seed=1"], ["temperature=0.5"], ["problems=1"]):
        assert main([*given(place, "eval", *more), "--dry-run"]) == 2
        assert str(place / "out") in capsys.readouterr().err and contents(place) == before
    assert main([*given(place, "eval"), "--dry-run"]) == 0


def test_a_failed_first_call_does_not_stand_in_the_way_of_the_right_one(place: Path) -> None:
    wrong = ["engine.kind=endpoint", "engine.url=http://127.0.0.1:1"]
    assert main(given(place, "eval", *wrong)) == 2
    assert not (place / "out").exists()
    (place / "out").mkdir()
    (place / "out" / "mine").write_text("", encoding="utf-8")
    assert main(given(place, "eval", *wrong)) == 2
    assert [path.name for path in (place / "out").iterdir()] == ["mine"]
    assert main(given(place, "eval")) == 0


def test_data_that_cannot_be_made_are_refused_by_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.yaml").write_text(DATA, encoding="utf-8")
    command = ["data", "generate", "--config", str(tmp_path / "data.yaml"), f"out={tmp_path / 'out'}", "--dry-run"]
    assert main([*command, "test=9999"]) == 2 and "9999" in capsys.readouterr().err
    assert main([*command, "problems_from=nowhere"]) == 2
    assert main(command) == 0 and not (tmp_path / "out").exists()
    assert main(command[:-1]) == 0
    assert main([*command, "seed=3"]) == 2 and "another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["stages.rl=[nonsense=1]"], "stage rl (stages.rl): configuration"),
        (["stages.sft=[lr=fast]"], "lr: 'fast' is not a valid number"),
        (["stages.eval=[engine.kind=tiny, engine.block_size=16]"], "engine.block_size=16"),
        (["stages.data=[env.numbers=0]"], "stages.data"),
        (["stages.eval=[samples=2, samples=3]"], "given twice"),
        (["preset=tiny_cp"], "did you mean tiny_cpu?"),
        (["preset=smollm2"], "none that all stages have"),
    ],
)
def test_a_quickstart_checks_every_stage_before_the_first(
    overrides: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dry in ([], ["--dry-run"]):
        assert main(["quickstart", f"out={tmp_path / 'out'}", *overrides, *dry]) == 2
        assert says in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["quickstart", f"out={tmp_path / 'out'}", "--dry-run", "stages.rl=[steps=3, seed=9]"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["sft", "data=nowhere"],
        ["sft", "data={place}/data", "solver=other"],
        ["sft", "data={place}/data", "solver=sos_plus", "out={place}/data"],
        ["rl", "data=nowhere", "checkpoint={place}/start"],
        ["rl", "data={place}/data", "checkpoint=nowhere", "cluster.address=local"],
        ["rl", "data={place}/data", "checkpoint={place}/start", "limits.context=9999"],
        ["rl", "data={place}/data", "checkpoint={place}/start", "out={place}/data"],
        ["rl", "--resume", "nowhere"],
        ["eval", "data=nowhere", "checkpoint={place}/start"],
        ["eval", "data={place}/data", "checkpoint=nowhere"],
        ["eval", "data={place}/data", "checkpoint={place}/start", "protocol=serial", "limits.context=9999"],
        ["eval", "data={place}/data", "checkpoint={place}/start", "out={place}/data"],
        ["data", "generate", "--config", "tiny_cpu", "speller=chat", "tokenizer=nowhere"],
        ["data", "verify", "nowhere"],
        ["data", "import", "nowhere"],
        ["data", "export", "nowhere", "--out", "x.json"],
        ["export", "nowhere", "--out", "x"],
        ["report", "nowhere", "--out", "x"],
        ["view", "nowhere", "--out", "x.html"],
        ["quickstart", "stages.rl=[nonsense=1]"],
    ],
)
def test_what_only_needs_the_file_system_is_refused_before_a_heavy_library_is_loaded(
    arguments: list[str], place: Path
) -> None:
    code = """
import sys
from apr.cli import main
status = main(sys.argv[1:])
print(status, *sorted({name.partition(".")[0] for name in sys.modules}))
"""
    filled = [argument.format(place=place) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, *filled], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    status, *loaded = done.stdout.splitlines()[-1].split()
    assert status == "2" and not HEAVY & set(loaded), done.stderr
