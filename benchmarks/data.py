"""How fast text becomes a training set, against a plain loop, in one run.

The corpus is real text this machine has: the sources, documentation and headers of the Python
standard library and of the installed packages, every distinct file once, a JSON line each.

    python benchmarks/data.py --out benchmarks/results/data.json
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import report

_Result = TypeVar("_Result")
_BOTH = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)

SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".cuh", ".html", ".js", ".json"}

_PLAIN = "plain loop"
_PLAIN_BYTES = 200 * 10**6  # what the plain loop gets of a large corpus: it holds lists of numbers

_IDEOGRAPHS = {letter: 0x4E00 + 53 * letter for letter in range(ord("A"), ord("z") + 1)}


def main() -> None:
    """Parse the arguments, run every measurement, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1000, help="MB of jsonl to make")
    parser.add_argument(
        "--kind",
        choices=["long", "short", "cjk", "utf8"],
        default="long",
        help="whole files, 300-character documents, CJK with \\u escapes, or CJK without",
    )
    parser.add_argument(
        "--builds",
        nargs="+",
        default=["1x1", "2x1", "2x3"],
        help="workers x passes of each build (default: %(default)s)",
    )
    parser.add_argument("--memory", type=int, default=2048, help="MiB the builds may take")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each, in turn")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(
            Path(folder),
            arguments.size * 10**6,
            arguments.kind,
            arguments.memory << 20,
            [tuple(map(int, build.split("x"))) for build in arguments.builds],
            arguments.rounds,
        )
    report.save(results, arguments.out)


def measure(
    folder: Path, limit: int, kind: str, memory: int, builds: list[tuple[int, int]], rounds: int
) -> dict[str, Any]:
    """Make the corpus in ``folder`` and run every measurement on it."""
    results = report.header("numpy", "numba", "orjson", "pyrwkv-tokenizer")
    corpus = folder / "corpus.jsonl"
    results["corpus"] = make_corpus(corpus, limit, kind)
    size = results["corpus"]["bytes"]
    print(f"corpus: {size / 1e6:.0f} MB of jsonl, {results['corpus']['documents']:,} documents")

    cold = cold_starts(folder)
    results["cold_start_s"] = cold
    print(f"cold start to first token: {cold['first']:.2f} s, then {cold['after']:.2f} s")

    rate = isolated(encoder_rate, str(corpus))
    results["encoder_mb_per_s"] = rate
    print(f"encoder alone, one core: {rate:.0f} MB/s of text")

    subjects: dict[str, tuple[Any, ...]] = {_PLAIN: (plain_loop, str(corpus), str(folder / "out"))}
    for workers, passes in builds:
        call = build, str(corpus), str(folder / "out"), workers, passes, memory
        subjects[_name(workers, passes)] = call
    timings = {name: timing(runs) for name, runs in in_turn(subjects, rounds, folder)}
    results["end_to_end"] = timings
    for name, found in timings.items():
        found["peak_rss_mb"] = peak_memory(*subjects[name])
        for rate in ("mb_per_s", "mb_per_cpu_s"):
            found[f"{rate}_over_plain"] = found[rate] / timings[_PLAIN][rate]
        print(
            f"{name + ':':20} {found['mb_per_s']:6.0f} MB/s of jsonl, "
            f"{found['mb_per_s_over_plain']:5.1f} x the plain loop; "
            f"{found['mb_per_cpu_s']:5.0f} MB per second of processor time, "
            f"{found['mb_per_cpu_s_over_plain']:5.1f} x; "
            f"all processes {found['peak_rss_mb']:.0f} MB at most; "
            f"between {min(found['each_mb_per_s']):.0f} and {max(found['each_mb_per_s']):.0f} MB/s"
        )
    results["passes_over_one"] = {}
    for workers, passes in builds:
        if passes > 1 and (workers, 1) in builds:
            name, once = _name(workers, passes), _name(workers, 1)
            ratio = timings[once]["mb_per_s"] / timings[name]["mb_per_s"]
            results["passes_over_one"][name] = ratio
            print(f"{name}: {ratio:.2f} times as long as one pass")
    return results


def in_turn(
    subjects: dict[str, tuple[Any, ...]], rounds: int, folder: Path
) -> Iterator[tuple[str, list[tuple[float, float, int]]]]:
    """Run the subjects one after another, so often; yield each with all its runs.

    A machine's slow minutes then touch all of them, and none waits for the disk to store what the
    one before it left, nor to remove it.
    """
    runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, call in subjects.items():
            for left in folder.glob("out*"):
                left.unlink()
            os.sync()
            runs[name].append(isolated(*call))
    yield from runs.items()


def timing(runs: list[tuple[float, float, int]]) -> dict[str, Any]:
    """Return the medians of a subject's runs, and the rate of each."""
    return {
        "bytes": runs[0][2],
        "mb_per_s": statistics.median(read / 1e6 / seconds for seconds, _, read in runs),
        "mb_per_cpu_s": statistics.median(read / 1e6 / cpu for _, cpu, read in runs),
        "each_mb_per_s": [read / 1e6 / seconds for seconds, _, read in runs],
    }


def _name(workers: int, passes: int) -> str:
    several = f", {passes} passes" if passes > 1 else ""
    return f"{workers} {'worker' if workers == 1 else 'workers'}{several}"


def make_corpus(path: Path, limit: int, kind: str) -> dict[str, Any]:
    """Write the corpus, distinct files in the order of their paths; return its measures.

    Where the machine has less text than that, it comes again, each time with another first line.
    For ``cjk`` and ``utf8`` every letter becomes an ideograph, written as an escape or as it is.
    """
    seen: set[bytes] = set()
    documents = rounds = 0
    with path.open("w", encoding="utf-8") as out:
        while out.tell() < limit:
            rounds += 1
            for text in texts():
                digest = hashlib.sha256(text.encode()).digest()
                if digest in seen and rounds == 1:
                    continue
                seen.add(digest)
                if kind in ("cjk", "utf8"):
                    text = text.translate(_IDEOGRAPHS)
                text = text if rounds == 1 else f"round {rounds}\n{text}"
                step = 300 if kind == "short" else max(len(text), 1)
                for start in range(0, len(text), step):
                    record = {"text": text[start : start + step]}
                    out.write(json.dumps(record, ensure_ascii=kind != "utf8") + "\n")
                    documents += 1
                if out.tell() >= limit:
                    break
    return {
        "kind": kind,
        "bytes": path.stat().st_size,
        "documents": documents,
        "files": len(seen),
        "rounds": rounds,
    }


def texts() -> Iterator[str]:
    """Yield the text files of the standard library and the installed packages."""
    folders = dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size < 4 << 20:
                try:
                    yield path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue


def cold_starts(folder: Path) -> dict[str, float]:
    """Time a process that encodes one line: with empty caches, and after."""
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "NUMBA_CACHE_DIR": str(folder / "cache"),
    }
    code = "import rwkvkit; assert len(rwkvkit.WorldTokenizer().encode('Hello world')) == 2"
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "after": min(seconds[1:])}


def isolated(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run a measurement in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(function: Callable[..., Any], *arguments: Any) -> float:
    """Run a measurement again in a process of its own; return the peak memory in MB.

    The peak is that of the process and all below it together, shared pages counted once, looked at
    many times a second: that takes time, so this run is not the one that is timed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(function, *arguments)
        peak = 0.0
        while not future.done():
            peak = max(peak, memory_below(os.getpid()))
            time.sleep(0.05)
        future.result()
        return peak


def memory_below(root: int) -> float:
    """Return the proportional memory in MB of all processes that descend from ``root``."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(stat[1])
    total = 0
    for process in parents:
        above = parents[process]
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
                total += int(rollup.partition("\nPss:")[2].split()[0])
    return total * 1024 / 1e6


def encoder_rate(corpus: str) -> float:
    """Return MB/s of the encoder on joined documents in memory, the best of five."""
    from rwkvkit import WorldTokenizer

    buffer = bytearray()
    with Path(corpus).open(encoding="utf-8") as lines:
        while len(buffer) < 64 << 20 and (line := lines.readline()):
            buffer += json.loads(line)["text"].encode() + b"\xff"
    text = bytes(buffer)
    tokenizer = WorldTokenizer()
    tokenizer.encode_joined(bytes(buffer[: 1 << 20]))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        tokenizer.encode_joined(text)
        seconds.append(time.perf_counter() - start)
    return len(buffer) / 1e6 / min(seconds)


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    own, children = (resource.getrusage(who) for who in _BOTH)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def plain_loop(corpus: str, out: str) -> tuple[float, float, int]:
    """Time the obvious script: parse a line, encode it, append; one array written at the end.

    Returns:
        Seconds, seconds of processor time, and bytes read.
    """
    from pyrwkv_tokenizer import RWKVTokenizer

    tokenizer = RWKVTokenizer()
    start, cpu = time.perf_counter(), cpu_seconds()
    tokens: list[int] = []
    read = 0
    with Path(corpus).open(encoding="utf-8") as lines:
        for line in lines:
            tokens.extend(tokenizer.encode(json.loads(line)["text"]))
            tokens.append(0)
            read += len(line) if line.isascii() else len(line.encode())
            if read >= _PLAIN_BYTES:
                break
    np.array(tokens, dtype=np.uint16).tofile(out + "-plain.bin")
    return time.perf_counter() - start, cpu_seconds() - cpu, read


def build(
    corpus: str, out: str, workers: int, epochs: int, memory: int
) -> tuple[float, float, int]:
    """Time a whole build, shuffled, hashed and planned; the tokenizer is loaded before.

    Returns:
        As ``plain_loop``.
    """
    from rwkvkit.data.build import Build
    from rwkvkit.data.stages import Encode, Plan, Read, RepeatShuffle, WriteBinidx

    read = Read.model_validate(Read.expand(corpus))
    encode = Encode()
    encode.load()
    stages = [read, encode, RepeatShuffle(epochs=epochs), WriteBinidx(prefix=out), Plan()]
    start, cpu = time.perf_counter(), cpu_seconds()
    Build(stages, seed=42, ctx_len=4096).run(workers=workers, memory=memory)
    return time.perf_counter() - start, cpu_seconds() - cpu, Path(corpus).stat().st_size


if __name__ == "__main__":
    main()
