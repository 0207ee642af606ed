"""Who may import whom, and what stays out of memory until it is needed."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("apr", "envs", "solvers", "rl")
CORE = ("apr.threads", "apr.tokens", "apr.scripts", "apr.protocols")
# What each layer reaches, directly or through others, must be none of these; `cli` alone may reach all.
FORBIDDEN = {
    CORE: ("envs", "solvers", "apr.data", "apr.engines", "apr.sft", "apr.evaluation", "apr.report", "rl"),
    ("envs", "solvers"): ("apr.data", "apr.engines", "apr.sft", "apr.evaluation", "apr.report", "rl"),
    ("apr.data",): ("apr.engines", "apr.sft", "apr.evaluation", "apr.report", "rl"),
    ("apr.checkpoints",): ("apr.engines", "apr.sft", "apr.evaluation", "apr.report", "rl"),
    ("apr",): ("rl",),
}
HEAVY = ("torch", "ray", "vllm", "transformers", "trl", "datasets", "matplotlib")


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The project's modules that `module` imports, anywhere in its text, and the packages that hold them."""
    named = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            named |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    named |= {name.rpartition(".")[0] for name in named}
    return frozenset(named & modules().keys())


def reaches(module: str) -> dict[str, str]:
    """All that `module` imports, directly or not, each with the module that names it."""
    found: dict[str, str] = {}
    todo = [module]
    while todo:
        current = todo.pop()
        for name in imports(current):
            if name not in found:
                found[name] = current
                todo.append(name)
    return found


@pytest.mark.parametrize("layer", FORBIDDEN, ids=lambda layer: "+".join(layer))
def test_layers_reach_only_downwards(layer: tuple[str, ...]) -> None:
    members = [name for name in modules() if within(name, *layer) and name != "apr.cli"]
    assert members
    faults = [
        f"{name} reaches {above} (imported by {by})"
        for name in members
        for above, by in sorted(reaches(name).items())
        if within(above, *FORBIDDEN[layer]) and "apr.cli" not in (above, by)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("package", ["rl", "apr.checkpoints"])
def test_no_module_imports_those_that_import_it(package: str) -> None:
    members = [name for name in modules() if within(name, package) and name != package]
    assert members
    assert [name for name in members if name in reaches(name)] == []


def test_every_import_of_the_project_is_found() -> None:
    """The graph above is no empty promise: some edges that must be there."""
    assert "apr.threads.engine" in imports("apr.threads.session")
    assert "apr.threads.trace" in reaches("apr.scripts.demonstration")
    assert "envs.countdown.log" in reaches("solvers.exhaustive")


@pytest.mark.parametrize(
    "statement",
    [
        "import apr.threads.session, apr.protocols, apr.scripts.demonstration, solvers.search, envs.countdown.verify",
        "import apr.checkpoints.checkpoint, apr.checkpoints.pretrained",
        "import rl.parts, rl.loop, rl.launch, rl.weight_sync",  # no type of RL's parts needs torch
    ],
)
def test_the_core_loads_no_heavy_library(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)
