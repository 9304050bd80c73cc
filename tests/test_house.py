"""The house rules: style, types, who may import whom, and what the packages hold."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    ["ruff check --no-cache .", "ruff format --no-cache --check .", "mypy", "lint-imports"],
)
def test_checker_passes(command: str) -> None:
    name, *arguments = command.split()
    program = Path(sys.executable).parent / name
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_data_work_never_loads_torch(tmp_path: Path) -> None:
    code = (
        "import sys, rwkvkit, rwkvkit.cli.app\n"
        "rwkvkit.WorldTokenizer, rwkvkit.magic_prime, rwkvkit.open_binidx\n"
        "from rwkvkit.recipe.load import load_recipe\n"
        "from rwkvkit.recipe.dataset import make_build\n"
        f"override = 'prepare.write-binidx={tmp_path}/data'\n"
        "make_build(load_recipe('quickstart', [override])).describe()\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(code) == "False"


def test_every_public_name_exists_and_is_documented() -> None:
    code = (
        "import rwkvkit\n"
        "print([n for n in rwkvkit.__all__ if not (getattr(rwkvkit, n).__doc__ or '').strip()])"
    )
    assert run_python(code) == "[]"


def test_wheel_and_sdist_hold_the_bundled_folders(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    [sdist] = tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("kernels", "pipelines", "configs"):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file():
                assert f"rwkvkit/_data/{name}" in in_wheel
                assert name in in_sdist
    for path in (ROOT / "rwkvkit").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in in_wheel & in_sdist
    assert "rwkvkit/py.typed" in in_wheel
    assert not any(name.startswith("tests/") for name in in_wheel)


def test_readme_shows_the_quickstart_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / "pipelines/quickstart.yaml").read_text(encoding="utf-8") in readme
    for name in (path.stem for path in (ROOT / "pipelines").glob("*.yaml")):
        assert f"| `{name}` |" in readme


def test_ci_runs_the_readme_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line for line in readme if line.startswith("python3 -m venv ")]
    assert [command.split()[-1] for command in commands] == ["quickstart", "pytest"]
    assert "grep -m 1 '^python3 -m venv .*pytest$' README.md" in (ROOT / ".ci/run").read_text()
