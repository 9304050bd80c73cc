"""A build on a Ray cluster of two nodes, one of which dies."""

import subprocess
import sys

from output_cases import digests

SCRIPT = """
import sys
import ray
from ray.cluster_utils import Cluster
from rwkvkit.data.build import Build
from rwkvkit.data.ray_run import run_ray
from rwkvkit.data.stages import Encode, Read, RepeatShuffle, WriteBinidx
from rwkvkit.errors import DataError

source, bad, prefix = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")


def make(source):
    read = Read.model_validate(Read.expand(source))
    chain = [read, Encode(), RepeatShuffle(epochs=2), WriteBinidx(prefix=prefix)]
    build = Build(chain, seed=42, ctx_len=16)
    build._task_bytes = 20_000
    return build


def stop_a_node(progress):
    global second
    if second and progress.bytes_done > 100_000:
        cluster.remove_node(second, allow_graceful=False)
        second = None


make(source).run(executor=run_ray(), progress=stop_a_node)
assert second is None
try:
    make(bad).run(executor=run_ray())
except DataError as error:
    print("FOUND", error.where)
ray.shutdown()
cluster.shutdown()
"""


def test_the_same_bytes_although_a_node_dies(build, jsonl, tmp_path):
    documents = [f"document {i} " + "word " * (i % 97) for i in range(8000)]
    source = jsonl("in.jsonl", documents)
    bad = jsonl("bad.jsonl", [*documents[:500], 5, *documents[:500], 6])
    prefix = tmp_path / "ray" / "data"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, source, bad, prefix], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"FOUND {bad}:501" in done.stdout
    build(source, prefix=tmp_path / "plain" / "data", repeat={"epochs": 2}).run()
    assert digests(tmp_path / "ray") == digests(tmp_path / "plain")
