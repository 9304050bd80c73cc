"""How fast text becomes a training set, against a plain loop, in one run.

The corpus is real text this machine has: the sources, documentation and headers of the Python
standard library and of the installed packages, every distinct file once, a JSON line each.

    python benchmarks/data.py --out benchmarks/results/data.json
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import report

SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".cuh", ".html", ".js", ".json"}


def main() -> None:
    """Parse the arguments, run every measurement, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=200, help="MB of jsonl to use at most")
    parser.add_argument("--short", action="store_true", help="cut into 300-character documents")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(Path(folder), arguments.size * 10**6, short=arguments.short)
    report.save(results, arguments.out)


def measure(folder: Path, limit: int, *, short: bool) -> dict[str, Any]:
    """Make the corpus in ``folder`` and run every measurement on it."""
    results = report.header("numpy", "numba", "orjson", "pyrwkv-tokenizer")
    corpus = folder / "corpus.jsonl"
    results["corpus"] = make_corpus(corpus, limit, short=short)
    size = results["corpus"]["bytes"]
    print(f"corpus: {size / 1e6:.0f} MB of jsonl, {results['corpus']['documents']:,} documents")

    cold = cold_starts(folder)
    results["cold_start_s"] = cold
    print(f"cold start to first token: {cold['first']:.2f} s, then {cold['after']:.2f} s")

    rate, _ = isolated(encoder_rate, str(corpus))
    results["encoder_mb_per_s"] = rate
    print(f"encoder alone, one core: {rate:.0f} MB/s of text")

    timings: dict[str, dict[str, float]] = {}
    results["end_to_end"] = timings
    parts: list[tuple[str, Callable[..., float], tuple[Any, ...]]] = [
        ("plain loop", plain_loop, ()),
        ("1 worker", build, (1, 1)),
        ("2 workers", build, (2, 1)),
        ("1 worker, 3 passes", build, (1, 3)),
    ]
    for name, function, arguments in parts:
        seconds, peak = isolated(function, str(corpus), str(folder / "out"), *arguments)
        mb_per_s = size / 1e6 / seconds
        timings[name] = {"seconds": seconds, "mb_per_s": mb_per_s, "peak_rss_mb": peak}
        plain = timings["plain loop"]["seconds"]
        print(
            f"{name + ':':20} {seconds:6.2f} s {mb_per_s:6.0f} MB/s of jsonl, "
            f"{plain / seconds:5.1f} x the plain loop, largest process {peak:.0f} MB"
        )
    return results


def make_corpus(path: Path, limit: int, *, short: bool) -> dict[str, Any]:
    """Write the corpus, distinct files in the order of their paths; return its measures."""
    seen: set[bytes] = set()
    documents = 0
    with path.open("w", encoding="utf-8") as out:
        for text in texts():
            digest = hashlib.sha256(text.encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            step = 300 if short else max(len(text), 1)
            for start in range(0, len(text), step):
                out.write(json.dumps({"text": text[start : start + step]}) + "\n")
                documents += 1
            if out.tell() >= limit:
                break
    return {"bytes": path.stat().st_size, "documents": documents, "files": len(seen)}


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


def isolated(function: Callable[..., float], *arguments: Any) -> tuple[float, float]:
    """Run a measurement in a process of its own; return its result and the peak memory in MB.

    The peak is that of the largest process, children included.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_with_peak, function, arguments).result()


def _with_peak(function: Callable[..., float], arguments: tuple[Any, ...]) -> tuple[float, float]:
    result = function(*arguments)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return result, max(u.ru_maxrss for u in usage) * 1024 / 1e6


def encoder_rate(corpus: str) -> float:
    """Return MB/s of the encoder on joined documents in memory, the best of five."""
    from rwkvkit import WorldTokenizer

    with Path(corpus).open(encoding="utf-8") as lines:
        joined = b"".join(json.loads(line)["text"].encode() + b"\xff" for line in lines)
    buffer = joined[: 64 << 20]
    tokenizer = WorldTokenizer()
    tokenizer.encode_joined(buffer[: 1 << 20])
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        tokenizer.encode_joined(buffer)
        seconds.append(time.perf_counter() - start)
    return len(buffer) / 1e6 / min(seconds)


def plain_loop(corpus: str, out: str) -> float:
    """Time the obvious script: parse a line, encode it, append; one array written at the end."""
    from pyrwkv_tokenizer import RWKVTokenizer

    tokenizer = RWKVTokenizer()
    start = time.perf_counter()
    tokens: list[int] = []
    with Path(corpus).open(encoding="utf-8") as lines:
        for line in lines:
            tokens.extend(tokenizer.encode(json.loads(line)["text"]))
            tokens.append(0)
    np.array(tokens, dtype=np.uint16).tofile(out + "-plain.bin")
    return time.perf_counter() - start


def build(corpus: str, out: str, workers: int, epochs: int) -> float:
    """Time a whole build, shuffled, hashed and planned; the tokenizer is loaded before."""
    from rwkvkit.data.build import Build
    from rwkvkit.data.stages import Encode, Plan, Read, RepeatShuffle, WriteBinidx

    read = Read.model_validate(Read.expand(corpus))
    encode = Encode()
    encode.load()
    stages = [read, encode, RepeatShuffle(epochs=epochs), WriteBinidx(prefix=out), Plan()]
    start = time.perf_counter()
    Build(stages, seed=42, ctx_len=4096).run(workers=workers)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
