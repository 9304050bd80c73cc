"""Disks that are full and folders that take nothing: the error, and nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvkit.errors import DataError, SetupError

SCRIPT = """
import hashlib, resource, sys
from pathlib import Path
from rwkvkit.data.build import Build
from rwkvkit.data.stages import Encode, Read, RepeatShuffle, WriteBinidx
from rwkvkit.errors import SetupError

def build(epochs, workers):
    read = Read.model_validate(Read.expand(source))
    chain = [read, Encode(), RepeatShuffle(epochs=epochs), WriteBinidx(prefix=f"{folder}/data")]
    return Build(chain, seed=1, ctx_len=16).run(workers=workers)

def files():
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(folder).iterdir() if path.is_file()
    }

if __name__ == "__main__":
    source, folder, epochs, workers, limit = sys.argv[1:]
    build(1, 1)
    before = files()
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        build(int(epochs), int(workers))
    except SetupError as error:
        print(error.exit_code, error.where, error.what)
    print("kept" if files() == before and len(before) == 4 else (before, files()))
    if int(limit) == 0:
        build(2, 1)  # the room that it took is free again, or used again
        print("built")
"""


@pytest.mark.parametrize(("epochs", "workers"), [(30, 1), (30, 2)])
def test_a_full_disk(jsonl, tmp_path, epochs, workers):
    """A file system of 1 MB, or where none can be mounted, a limit on the size of files."""
    source = jsonl("in.jsonl", [f"{i} some words here " * 50 for i in range(400)])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "disk"
    folder.mkdir()
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=1m none {folder}"
    command = [sys.executable, str(script), source, str(folder), str(epochs), str(workers)]
    if _works([*alone, mount]):
        command = [*alone, f'{mount} && exec "$@"', "sh", *command, "0"]
        reason, end = "No space left on device", "kept\nbuilt\n"
    else:
        command = [*command, "400000"]
        reason, end = "File too large", "kept\n"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"5 {folder}" in done.stdout, done.stdout + done.stderr
    assert f"cannot write the output: {reason}" in done.stdout
    assert done.stdout.endswith(end)


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def test_a_folder_that_takes_no_files(build, jsonl, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # root may write anywhere but where the kernel keeps its own
        folder = Path("/sys/kernel")
    before = sorted(folder.iterdir())
    path = jsonl("in.jsonl", ["x"])
    for prefix in (folder / "data", folder / "new" / "data"):
        with pytest.raises(SetupError, match="cannot write the output") as caught:
            build(path, prefix=prefix).run()
        assert caught.value.where == str(prefix)
        assert caught.value.exit_code == 5
        assert "writable" in caught.value.hint
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_changes_during_a_build_costs_nothing(build, jsonl, tmp_path, workers):
    path = Path(jsonl("in.jsonl", [f"{i} words" for i in range(3000)]))
    build(str(path), repeat={"epochs": 2}).run()
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def change(_):
        with path.open("r+b") as file:
            file.seek(11)
            file.write(b"X")

    made = build(str(path), repeat={"epochs": 2}, task_bytes=10_000)
    with pytest.raises(DataError, match="the file changed while it was read") as caught:
        made.run(workers=workers, progress=change)
    assert caught.value.where == str(path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    # And the next run sees the change, and builds what is there now.
    assert made.status().reason == f"input {path} changed"
    assert made.run().documents == 6000
    assert made.status().up_to_date
