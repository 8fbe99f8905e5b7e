"""The README tells the truth: its commands parse, its recipe loads, its map is complete."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tomllib
import typer

from altermoma import recipe as recipes
from altermoma.cli import app, oneshot

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of the shell blocks as words."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


def ours() -> list[list[str]]:
    return [words for words in commands() if Path(words[0]).name in {"altermoma", "altermoma-export"}]


@pytest.mark.parametrize("words", ours(), ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    name, *arguments = words
    entry = oneshot.app if Path(name).name == "altermoma-export" else app.app
    command = typer.main.get_command(entry)
    while (children := getattr(command, "commands", None)) is not None:
        assert arguments, f"{name} needs a command"
        assert arguments[0] in children
        name = arguments.pop(0)
        command = children[name]
    context = command.make_context(name, arguments)
    assert context.command is command


def test_every_command_is_shown() -> None:
    shown = {words[1] for words in ours() if Path(words[0]).name == "altermoma"}
    assert shown == set(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]


def test_the_first_line_installs_with_the_constraints_and_runs_the_main_job() -> None:
    first, tests = (block.strip() for block in blocks("sh")[:2])
    assert "\n" not in first
    assert "pip install -c constraints.txt -e '.[cpu,dev]'" in first
    assert first.endswith("altermoma-export --engine fp16")
    assert tests == ".venv/bin/python -m pytest"
    assert 'python" -m pytest' in (REPO / ".ci" / "run").read_text()


def test_other_words_of_the_first_line_exist() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert {"cpu", "dev"} <= set(project["optional-dependencies"])
    assert set(project["scripts"]) == {"altermoma", "altermoma-export"}


def test_constraints_pin_everything_that_is_installed_for_it() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["workstation"], *extras["cpu"], *extras["dev"]]
    named = {re.match(r"[A-Za-z0-9._-]+", line)[0] for line in wanted}  # type: ignore[index]
    lines = (REPO / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in named} - {"altermoma"} <= normal
    assert pins["torch"] == "2.13.0"


def test_the_recipe_in_the_readme_loads() -> None:
    (text,) = blocks("toml")
    recipe = recipes.parse(text)
    assert recipe.engine.build == "require"
    assert recipe.data.version == "v1.0-trainval"


def test_the_python_in_the_readme_uses_names_that_exist() -> None:
    (text,) = blocks("python")
    compile(text, "README.md", "exec")
    from altermoma.deploy import Pipeline

    assert callable(Pipeline.from_bundle)


def test_the_map_names_every_package_and_module() -> None:
    table = README[README.index("## Map") :]
    package = REPO / "altermoma"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert {f"`altermoma/{name}`" for name in folders} <= set(re.findall(r"`[^`]+`", table))
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert all(name in table for name in modules)


def test_length_and_links() -> None:
    assert len(README.splitlines()) <= 160
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (REPO / target).exists(), target


def test_the_ci_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(REPO / ".ci" / "run")], check=True)
