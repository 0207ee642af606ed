"""The command line: quick to answer, and what cannot work ends with status 2, one message and nothing half-written."""

import gzip
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import apr.evaluation.run as evaluating
import apr.quickstart as starting
from apr.cli import main
from apr.config import DataConfig, EvalConfig, QuickstartConfig, RlConfig
from apr.data.shards import shard_path
from apr.data.store import PROBLEMS, demonstrations_folder, problems_folder
from apr.presets import dump, load
from apr.runs import run_directory

ROOT = Path(__file__).parents[2]
DATA = """
env: {name: countdown, numbers: 2, low: 1, high: 9, target_low: 2, target_high: 20}
train: 8
validation: 2
test: 2
solvers: {sos_plus: {protocol: serial}}
"""


@pytest.fixture(scope="module")
def good_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "data.yaml").write_text(DATA)
    assert main(["data", "generate", "--config", str(folder / "data.yaml"), f"out={folder / 'data'}"]) == 0
    return folder / "data"


@pytest.fixture
def data(good_data: Path, tmp_path: Path) -> Path:
    """A data set to be spoilt."""
    return Path(shutil.copytree(good_data, tmp_path / "data"))


@pytest.fixture
def start(make_checkpoint: Callable[[int], Path], tmp_path: Path) -> Path:
    """A checkpoint to be spoilt; its window is 256."""
    return Path(shutil.copytree(make_checkpoint(0), tmp_path / "start"))


class Cli:
    """Commands in `folder`, with `data`, `checkpoint` and `out` there."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.out = folder / "out"

    def refused(self, *arguments: str) -> str:
        """What the command says as it is refused: status 2, no traceback, nothing half-written."""
        self.capsys.readouterr()
        assert main(arguments) == 2
        said = self.capsys.readouterr().err
        assert said.count("apr: error: ") == 1 and "Traceback" not in said
        written = {path.name for path in self.out.rglob("*") if path.is_file() and path.stat().st_size}
        assert written <= {".lock", "config.yaml", "manifest.json"}
        assert not list(self.folder.rglob("*.tmp"))
        return said

    def stage(self, stage: str, *more: str) -> str:
        """The same for a stage with its usual paths."""
        given = [f"data={self.folder / 'data'}", f"out={self.out}"]
        if stage == "sft":
            given += ["solver=sos_plus"]
        else:
            given += [f"checkpoint={self.folder / 'start'}", "engine.kind=tiny", "protocol=serial"]
        return self.refused(stage, *given, *more)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, capsys)


STAGES = ["sft", "rl", "eval"]


def apr(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "apr.cli", *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_answers_in_under_a_second() -> None:
    """Measured in seconds of the processor: what others do on this machine is not its fault."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    seconds = []
    for _ in range(3):
        before = used()
        done = apr("--help")
        seconds.append(used() - before)
        assert done.returncode == 0 and "quickstart" in done.stdout
    assert statistics.median(seconds) < 1.0


@pytest.mark.parametrize("arguments", [["--help"], ["rl", "--help"], ["rl", "--print-config", "--config", "tiny_cpu"]])
def test_help_and_configurations_load_no_heavy_library(arguments: list[str]) -> None:
    code = f"""
import sys
from apr.cli import main
try:
    main({arguments!r})
except SystemExit as ended:
    assert ended.code == 0
loaded = sorted({{name.partition(".")[0] for name in sys.modules}})
print(*loaded, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "vllm", "trl", "transformers", "aiohttp"} & set(done.stderr.split())


@pytest.mark.parametrize(
    ("stage", "override"), [("rl", "stepz=3"), ("sft", "batch_tokens=many"), ("eval", "samples=2")]
)
def test_the_program_itself_ends_with_status_2(stage: str, override: str) -> None:
    done = apr(stage, override)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("apr: error: configuration (") and "Traceback" not in done.stderr


def test_a_command_that_is_none_is_refused() -> None:
    for arguments in ([], ["fly"], ["data"], ["report"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2


def test_overrides_may_stand_between_options(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rl", "steps=7", "--config", "tiny_cpu", "seed=1", "--print-config", "cluster.ranks=1"]
    assert main(words) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["steps"], printed["seed"]) == (7, 1)
    for wrong in (["rl", "--print-config", "--steps=8"], ["doctor", "steps=8"]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2


def test_print_config_is_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rl", "--config", "tiny_cpu", "steps=3", f"out={tmp_path / 'out'}", "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load(RlConfig, [tmp_path / "printed.yaml"])
    assert config.steps == 3 and not (tmp_path / "out").exists()
    assert main(["rl", "--config", str(tmp_path / "printed.yaml"), "steps=4", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {**yaml.safe_load(dump(config)), "steps": 4}


def test_a_dry_run_checks_what_is_needed_and_writes_nothing(good_data: Path, start: Path, cli: Cli) -> None:
    rest = [f"data={good_data}", f"out={cli.out}", "--dry-run"]
    assert main(["sft", "solver=sos_plus", *rest]) == 0
    assert main(["rl", f"checkpoint={start}", *rest]) == 0
    assert main(["eval", f"checkpoint={start}", *rest]) == 0
    assert main(["data", "generate", "--config", "tiny_cpu", *rest[1:]]) == 0
    assert "no data file" in (said := cli.refused("sft", "solver=other", *rest)) and "of sos_plus. Set `solver`" in said
    assert "no model" in cli.refused("eval", f"checkpoint={cli.folder}", *rest)
    assert "exceeds the" in cli.refused("rl", f"checkpoint={start}", "limits.context=9999", *rest)
    assert not cli.out.exists()


def test_unknown_configurations_are_named(cli: Cli) -> None:
    assert "no configuration file" in cli.refused("sft", "--config", "huge_cpu")
    assert "leave --config out" in cli.refused("rl", "--resume", str(cli.out), "--config", "tiny_cpu")


@pytest.mark.parametrize("inside", ["", "checkpoints/step_000005", "final", "empty", "file", "runs"])
def test_a_run_to_resume_that_is_not_there_is_named(inside: str, cli: Cli) -> None:
    """Also where a folder within the run, or one around it, was given."""
    run = cli.folder / "runs" / "mine"
    with run_directory(run, RlConfig()):
        (run / "checkpoints" / "step_000005").mkdir(parents=True)
        (run / "final").mkdir()
    (cli.folder / "empty").mkdir()
    (cli.folder / "file").touch()
    given = {"": cli.out, "empty": cli.folder / "empty", "file": cli.folder / "file", "runs": run.parent}
    said = cli.refused("rl", "--resume", str(path := given.get(inside, run / inside)))
    assert {"": "there is no folder", "file": "is a file"}.get(inside, "holds no run") in said and str(path) in said
    assert "`apr rl ... out=" in said
    assert (f"did you mean {run}?" in said) == (inside not in ("", "empty", "file"))


NOTHING = [
    (["rl", "--resume", "nowhere"], "no folder nowhere"),
    (["sft", "data=nowhere"], "nowhere holds no data set"),
    (["sft", "data=DATA", "solver=none"], "has demonstrations of sos_plus"),
    (["sft", "data=DATA", "solver=sos_plus", "base=nowhere", "lr=1e-4"], "nowhere is not there"),
    (["eval", "data=nowhere"], "nowhere holds no data set"),
    (["eval", "data=DATA", "checkpoint=nowhere"], "no model in nowhere"),
    (["rl", "data=nowhere"], "nowhere holds no data set"),
    (["rl", "data=DATA", "checkpoint=nowhere"], "no model in nowhere"),
]


@pytest.mark.parametrize(("arguments", "said"), NOTHING)
def test_what_is_missing_is_named_before_a_heavy_library_is_loaded(
    arguments: list[str], said: str, good_data: Path, tmp_path: Path
) -> None:
    given = [argument.replace("DATA", str(good_data)) for argument in arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import sys\nfrom apr.cli import main\nstatus = main({given!r})\nprint(status, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    status, *loaded = done.stdout.split()
    assert status == "2" and said in done.stderr and done.stderr.count("\n") == 1
    assert not {"torch", "ray", "vllm", "trl", "transformers", "aiohttp"} & {one.partition(".")[0] for one in loaded}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_kind_is_named_and_left_alone(data: Path, start: Path, cli: Cli) -> None:
    before = (data / "config.yaml").read_bytes()
    rest = [f"data={data}", f"checkpoint={start}", f"out={data}", "limits.context=100", "engine.kind=tiny"]
    said = "is the folder of an `apr data`, not of an `apr "
    assert f"{data} {said}eval`" in cli.refused("eval", *rest)
    assert f"{data} {said}rl`" in cli.refused("rl", *rest)
    assert f"{data} {said}rl`" in cli.refused("rl", "--resume", str(data))
    assert f"{data} {said}sft`" in cli.refused("sft", "solver=sos_plus", f"data={data}", f"out={data}")
    assert (data / "config.yaml").read_bytes() == before
    with run_directory(cli.out, RlConfig()):
        pass
    arguments = ["data", "generate", "--config", str(data / "config.yaml")]
    assert f"{cli.out} is the folder of an `apr rl`, not of an `apr data`" in cli.refused(*arguments, f"out={cli.out}")


def test_a_directory_made_before_kinds_were_recorded_is_usable(data: Path, cli: Cli) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    assert manifest.pop("kind") == "data"
    (data / "manifest.json").write_text(json.dumps(manifest))
    (data / "README.md").unlink()
    assert main(["data", "generate", "--config", str(data / "config.yaml"), f"out={data}"]) == 0
    assert json.loads((data / "manifest.json").read_text())["kind"] == "data"


@pytest.mark.parametrize("override", ["seed=1", "preset=other", "start=sft", "samples=9"])
def test_a_quickstart_of_another_configuration(override: str, cli: Cli) -> None:
    config = QuickstartConfig(out=cli.out)
    with run_directory(cli.out, config) as run:
        (run / "done").mkdir()
        (run / "done" / "data").touch()
    before = (cli.out / "config.yaml").read_bytes()
    cli.capsys.readouterr()
    assert main(["quickstart", f"out={cli.out}", override]) == 2
    assert f"what differs: {override.partition('=')[0]} (was " in cli.capsys.readouterr().err
    assert (cli.out / "config.yaml").read_bytes() == before


def test_a_quickstart_runs_the_stages_whose_product_is_gone(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = starting.plan(QuickstartConfig(out=cli.out), cli.out)
    ran: list[str] = []

    def run(command: list[str]) -> int:
        [stage] = [stage for stage in stages if stage.arguments == command[3:]]
        stage.product.parent.mkdir(parents=True, exist_ok=True)
        stage.product.touch()
        ran.append(stage.name)
        return 0

    monkeypatch.setattr(starting, "_run", run)
    for gone in (stages, [], [stages[1], stages[-1]]):
        for stage in gone:
            stage.product.unlink(missing_ok=True)
        ran.clear()
        assert main(["quickstart", f"out={cli.out}"]) == 0
        assert ran == [stage.name for stage in gone]


def test_a_quickstart_trains_both_students_by_rl_and_goes_on_with_either(tmp_path: Path) -> None:
    def planned(run: Path) -> dict[str, list[str]]:
        return {stage.name: stage.arguments for stage in starting.plan(QuickstartConfig(out=run), run)}

    stages = planned(tmp_path)
    protocols = {"rl": ("spawn_join", "spawn_join"), "rl_serial": ("sos_plus", "serial")}
    for name, (solver, protocol) in protocols.items():
        assert f"protocol={protocol}" in stages[name] and f"out={tmp_path / name}" in stages[name]
        assert f"checkpoint={tmp_path / 'sft' / solver / 'checkpoint'}" in stages[name]
    assert f"checkpoint={tmp_path / 'rl_serial' / 'final'}" in stages["eval_sos_plus_rl"]
    evaluated = [Path(folder).name for folder in stages["report"] if "/eval/" in folder]
    assert evaluated == [
        "sos_plus_sft", "sos_plus_sft_sampled", "sos_plus_rl", "sos_plus_rl_sampled", "spawn_join_sft", "spawn_join_rl",
    ]  # fmt: skip
    for name in protocols:  # each goes on by itself
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        resumed = {stage for stage, arguments in planned(tmp_path).items() if "--resume" in arguments}
        assert name in resumed and len(resumed) == len(list(tmp_path.glob("*/checkpoints")))


def test_sigterm_ends_a_command_with_a_message(
    data: Path, start: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    arguments = [
        "eval", f"data={data}", f"checkpoint={start}", f"out={cli.out}", "engine.kind=tiny", "protocol=serial",
        "limits.context=60",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(evaluating.Progress, "advance", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert main(arguments) == 130
    assert cli.capsys.readouterr().err.count("apr: interrupted: call the same command again to go on\n") == 1
    assert signal.getsignal(signal.SIGTERM) is before and not (cli.out / "summary.json").exists()
    assert main(arguments) == 0


def data_file(data: Path, stage: str, split: str) -> Path:
    """The only shard of what `stage` reads."""
    if stage == "sft":
        return shard_path(demonstrations_folder(data, "sos_plus"), "train", 0, 1)
    return shard_path(problems_folder(data), split, 0, 1)


@pytest.mark.parametrize("stage", STAGES)
def test_missing_data(stage: str, start: Path, cli: Cli) -> None:
    said = cli.stage(stage)
    assert f"{cli.folder / 'data'}" in said and not cli.out.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_truncated_data_file(stage: str, data: Path, start: Path, cli: Cli) -> None:
    split = "test" if stage == "eval" else "train"
    path = data_file(data, stage, split)
    path.write_bytes(path.read_bytes()[:-20])
    said = cli.stage(stage)
    assert f"{path} is truncated or corrupt" in said and "apr data generate" in said


@pytest.mark.parametrize("stage", STAGES)
def test_a_data_file_of_a_newer_schema(stage: str, data: Path, start: Path, cli: Cli) -> None:
    split = "test" if stage == "eval" else "validation"
    path = data_file(data, stage, split)
    pq.write_table(pq.read_table(path).replace_schema_metadata({"schema": "apr.newer/2"}), path)
    said = cli.stage(stage)
    assert f"{path} has schema apr.newer/2" in said


@pytest.mark.parametrize("stage", ["rl", "eval"])
def test_an_unsolvable_problem(stage: str, data: Path, start: Path, cli: Cli) -> None:
    path = data_file(data, stage, "test" if stage == "eval" else "train")
    rows = {"id": ["10:4-6", "99:3-5"], "numbers": [[4, 6], [3, 5]], "target": [10, 99]}
    pq.write_table(pa.table(rows).replace_schema_metadata({"schema": PROBLEMS}), path)
    assert f"{path}, row 1: not a problem" in cli.stage(stage) and not cli.out.exists()
    assert "has no solution" in cli.refused("data", "verify", str(data))


@pytest.mark.parametrize("stage", ["rl", "eval"])
def test_a_missing_checkpoint(stage: str, data: Path, cli: Cli) -> None:
    assert f"no model in {cli.folder / 'start'}" in cli.stage(stage)
    assert not cli.out.exists()


@pytest.mark.parametrize("stage", ["rl", "eval"])
@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("apr_vocabulary.json", '"speller": "compact"', '"speller": "paper"', "was trained with vocabulary paper/"),
        ("apr_vocabulary.json", '"speller"', "", "is corrupt"),
        ("apr_vocabulary.json", None, None, "apr_vocabulary.json is missing"),
        ("config.json", None, None, "config.json is missing or corrupt"),
        ("config.json", '"max_position_embeddings": 256', '"max_position_embeddings": null', "missing or corrupt"),
        ("config.json", '"max_position_embeddings": 256', '"max_position_embeddings": 64', "exceeds the window (64)"),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    stage: str, file: str, old: str | None, new: str, says: str, data: Path, start: Path, cli: Cli
) -> None:
    if old is None:
        (start / file).unlink()
    else:
        text = (start / file).read_text()
        assert old in text
        (start / file).write_text(text.replace(old, new, 1))
    said = cli.stage(stage, "limits.context=100")
    assert says in said and str(start) in said


@pytest.mark.parametrize("stage", ["rl", "eval"])
def test_a_truncated_model(stage: str, data: Path, start: Path, cli: Cli) -> None:
    path = start / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{start} holds no readable model" in cli.stage(stage, "limits.context=100")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_directory_in_use(stage: str, data: Path, start: Path, cli: Cli) -> None:
    with run_directory(cli.out, RlConfig()):
        before = (cli.out / "config.yaml").read_bytes()
        assert f"{cli.out} is in use by process" in cli.stage(stage)
        assert (cli.out / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("stage", ["data", *STAGES])
def test_an_out_that_is_a_file(stage: str, data: Path, start: Path, cli: Cli) -> None:
    cli.out.write_text("mine")
    if stage == "data":
        said = cli.refused(
            "data", "generate", "--config", "tiny_cpu", "train=1", "validation=1", "test=1", f"out={cli.out}"
        )
    else:
        said = cli.stage(stage)
    assert f"{cli.out} is a file" in said
    assert cli.out.read_text() == "mine"


def test_data_of_another_configuration(data: Path, cli: Cli) -> None:
    (cli.folder / "data.yaml").write_text(DATA)
    arguments = ["data", "generate", "--config", str(cli.folder / "data.yaml"), f"out={data}"]
    assert main(arguments) == 0
    assert "another configuration" in cli.refused(*arguments, "seed=9")
    said = cli.refused(*arguments[:-1], f"out={cli.out}", "test=500")
    assert "of 500 distinct solvable test problems" in said and not cli.out.exists()


def test_truncated_traces(data: Path, start: Path, cli: Cli) -> None:
    evaluation = cli.folder / "evaluation"
    evaluation.mkdir()
    config = EvalConfig(data=data, checkpoint=start, out=evaluation)
    (evaluation / "config.yaml").write_text(dump(config))
    facts = {"card": {}, "speller": "compact", "vocabulary": "a", "traces": 1, "data_hash": "a"}
    (evaluation / "manifest.json").write_text(json.dumps(facts))
    traces = evaluation / "traces.jsonl.gz"
    for content, says in (
        (gzip.compress(b'{"schema": "apr.trace/1"}\n')[:15], "cut off"),
        (b"not gzip at all", "corrupt"),
        (gzip.compress(b'{"schema": "apr.trace/2"}\n'), "apr.trace/2"),
    ):
        traces.write_bytes(content)
        said = cli.refused("report", str(evaluation), "--out", str(cli.out))
        assert f"{traces}, line 1: " in said and says in said and not cli.out.exists()


def test_a_folder_without_an_evaluation(cli: Cli) -> None:
    said = cli.refused("report", str(cli.folder / "nothing"), "--out", str(cli.out))
    assert str(cli.folder / "nothing") in said and not cli.out.exists()


def test_presets_are_found_by_name_whatever_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny_cpu").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["data", "generate", "--config", "tiny_cpu", "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load(DataConfig, [tmp_path / "printed.yaml"]).env.given["numbers"] == 3


def test_the_doctor_says_which_engine_serves_which_protocols() -> None:
    from apr.doctor import _served

    vllm, shared, tiny = _served({"vllm"})
    assert vllm.split() == ["engine.kind=vllm", "FAILS:", "import", "vllm"]
    assert "multiverse" in shared and "asyncthink" in shared
    assert "multiverse" not in tiny and "asyncthink" in tiny
