import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba

import rwkvkit
from rwkvkit.tokenizer import jit


def test_without_a_cache_folder_it_still_compiles(monkeypatch):
    def refuses_to_cache(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(jit, "numba", SimpleNamespace(njit=refuses_to_cache))

    @jit.compiled
    def double(x):
        return 2 * x

    assert double(21) == 42


def test_without_source_files_it_still_compiles():
    scope = {"compiled": jit.compiled}
    exec(compile("@compiled\ndef double(x):\n    return 2 * x\n", "gone.py", "exec"), scope)
    assert scope["double"](21) == 42


def test_machine_code_of_a_file_follows_the_others_it_calls(tmp_path):
    """A loop is compiled again where a loop of another file, which it calls, has changed."""
    shutil.copytree(
        Path(rwkvkit.__file__).parent,
        tmp_path / "rwkvkit",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    called = tmp_path / "rwkvkit" / "data" / "called.py"
    head = "from rwkvkit.tokenizer.jit import compiled\n"
    (called.parent / "caller.py").write_text(
        f"{head}from rwkvkit.data.called import number\n"
        "@compiled\ndef twice():\n    return 2 * number()\n"
    )

    def run(number: int) -> list[str]:
        called.write_text(f"{head}@compiled\ndef number():\n    return {number}\n")
        os.utime(called, ns=(number, number))
        hits = "sum(twice.stats.cache_hits.values())"
        code = f"from rwkvkit.data.caller import twice; print(twice(), {hits})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    def kept() -> set[str]:
        return {path.name for path in (tmp_path / "cache").rglob("call*.nb[ic]")}

    assert run(21) == ["42", "0"]
    first = kept()
    assert run(21) == ["42", "1"]
    assert kept() == first
    assert run(50) == ["100", "0"]
    assert len(kept()) == len(first) > 0
    assert not kept() & first
