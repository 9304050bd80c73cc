import subprocess
import sys
from pathlib import Path

import pytest
from output_cases import digests

from rwkvkit.data.shards import Shard
from rwkvkit.errors import DataError, UsageError


@pytest.fixture
def source(jsonl):
    return jsonl("in.jsonl", [f"document {i} " + "word " * (i % 31) for i in range(300)])


def test_shards_in_any_order_then_a_merge_give_the_same_bytes(build, source, tmp_path):
    settings = {"repeat": {"epochs": 2}, "plan": True, "task_bytes": 1000}
    plain = build(source, prefix=tmp_path / "plain" / "d", **settings).run()
    shards = build(source, prefix=tmp_path / "out" / "d", **settings)
    for number in (3, 1, 3):
        assert shards.run_shard(Shard(number, 4)) > 3
    with pytest.raises(UsageError, match=r"\d+ of \d+ parts are missing") as caught:
        shards.run(merge=True)
    assert caught.value.hint == "run again with --shard 2/4, then 4/4"
    shards.run_shard(Shard(2, 4), workers=2)
    shards.run_shard(Shard(4, 4))
    assert shards.run(merge=True) == plain
    assert digests(tmp_path / "out") == digests(tmp_path / "plain")


def test_a_merge_without_shards(build, source, tmp_path):
    with pytest.raises(UsageError, match="missing") as caught:
        build(source).run(merge=True)
    assert "--shard 1/2" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_bad_line_in_a_late_shard_has_its_number(build, source, tmp_path):
    lines = Path(source).read_text().splitlines()
    lines[200] = "bad"
    Path(source).write_text("\n".join(lines))
    made = build(source, task_bytes=1000)
    errors = []
    for number in (4, 3, 2, 1):
        try:
            made.run_shard(Shard(number, 4))
        except DataError as error:
            errors.append(error.where)
    assert errors == [f"{source}:201"]
    assert list((tmp_path / "out" / ".data.build").glob("part-*.json")) != []


SCRIPT = """
import sys
from rwkvkit.data.build import Build
from rwkvkit.data.shards import Shard
from rwkvkit.data.stages import Encode, Read, WriteBinidx
source, prefix, number = sys.argv[1:]
read = Read.model_validate(Read.expand(source))
build = Build([read, Encode(), WriteBinidx(prefix=prefix)], seed=42, ctx_len=16)
build._task_bytes = 1000
build.run_shard(Shard(int(number), 3))
"""


def test_shards_may_run_at_once(build, source, tmp_path):
    prefix = tmp_path / "out" / "data"
    command = [sys.executable, "-c", SCRIPT, source, str(prefix)]
    running = [subprocess.Popen([*command, str(number)]) for number in (1, 2, 3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    made = build(source, task_bytes=1000).run(merge=True)
    assert made.documents == 300
    build(source, prefix=tmp_path / "plain" / "data").run()
    assert digests(tmp_path / "out") == digests(tmp_path / "plain")


def test_what_a_shard_is_called():
    assert Shard.parse("3/16", {}) == Shard(3, 16)
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_MIN": "4"}
    assert Shard.parse("slurm", slurm) == Shard(4, 5)
    for wrong in ("", "3", "0/4", "5/4", "a/b", "1/2/3"):
        with pytest.raises(UsageError, match="is no shard") as caught:
            Shard.parse(wrong, {})
        assert "3/16" in caught.value.hint
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_ID is not set") as caught:
        Shard.parse("slurm", {})
    assert "sbatch --array=1-16" in caught.value.hint
