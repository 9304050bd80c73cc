"""What a GPU must show, in one call of at most eight minutes: right, race-free, fast.

    bash benchmarks/gpu_check.sh

Each section runs in a process of its own with a time limit. What is known so far is printed and
written after each, so that a result file is left whatever happens. ``--device cpu --tiny`` walks
the same way without a GPU. Exit codes: 0 all is right, 1 a section failed or had not the time, 5 a
package is missing.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from gpu_process import run_within

_NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
    "ruamel.yaml": "ruamel.yaml",
    "cuda.core": "cuda-core",
    "cuda.bindings": "cuda-bindings",
}
_VERSIONS = ("torch", "cuda-core", "cuda-bindings")
_TOTAL_SECONDS = 460  # from the start to the last section's end
_BEGUN = time.monotonic()
_FINE = ("ok", "not run")
_HEADLINES = ("ok", "ms", "target_ms", "tokens_per_s", "mfu", "peak_gb", "error")
_GPU_ONLY = ("variants", "compiled steps", "sanitizer")


def main() -> int:
    """Run all sections, or one, and return the exit code."""
    settings = _arguments()
    if missing := [package for module, package in _NEEDED.items() if not _there(module)]:
        print(f"missing: {' '.join(missing)}: carry them as wheels, or pip install them")
        return 5
    if settings.section:
        return _one(settings)
    import report
    import torch

    if settings.device == "cuda" and not torch.cuda.is_available():
        print("missing: torch sees no GPU (--device cpu --tiny runs without one)")
        return 5
    from gpu_sections import SECTIONS

    from rwkvkit.errors import SetupError
    from rwkvkit.ops.cuda.compile import toolkit_versions

    try:
        nvrtc = toolkit_versions()[-1]
    except SetupError as error:
        print(f"missing: {error}")
        return 5
    name = torch.cuda.get_device_name() if settings.device == "cuda" else None
    results: dict[str, Any] = report.header(*_VERSIONS, hardware=name)
    results |= {"driver": _driver(), "nvrtc": nvrtc, "sections": {}}
    sections = results["sections"]
    for section, (_, limit) in SECTIONS.items():
        left = _TOTAL_SECONDS - (time.monotonic() - _BEGUN)
        limit = 10 * limit if settings.tiny else min(limit, left)
        sections[section] = _run(section, limit, settings)
        report.save(results, settings.out)
        _print_section(section, sections[section])
    _print_summary(sections)
    return 0 if all(found["verdict"] in _FINE for found in sections.values()) else 1


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _run(section: str, limit: float, settings: argparse.Namespace) -> dict[str, Any]:
    """Run a section in its own process; return its rows, or what kept it from having any."""
    if section in _GPU_ONLY and settings.device != "cuda":
        return {"verdict": "not run", "rows": [], "note": "it needs a GPU"}
    if limit < 10:
        return {"verdict": "time over", "rows": [], "note": "none was left"}
    print(f"\n{section}: at most {limit:.0f} s", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--section", section, "--out", str(out)]
        command += ["--device", settings.device, "--limit", str(limit - 10)]
        command += ["--tiny"] if settings.tiny else []
        # A fault belongs to the case that is running, not to one that waits for it later.
        blocking = section.startswith("correctness")
        done = run_within(limit, command, {"CUDA_LAUNCH_BLOCKING": "1"} if blocking else {})
        rows = json.loads(out.read_text()) if out.exists() else []
    found: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1), "rows": rows}
    if all(row["ok"] for row in rows) and done.code in (0, None):
        found["verdict"] = "ok" if done.ok else "time over"
    else:
        found["verdict"] = "FAILED"
    return found if done.ok else found | {"note": done.said()}


def _one(settings: argparse.Namespace) -> int:
    """Run one section in this process and write its rows."""
    from gpu_sections import SECTIONS, WATCHED

    known = {name: function for name, (function, _) in SECTIONS.items()} | WATCHED
    rows = []
    try:
        for row in known[settings.section](settings):
            rows.append(row)
            if settings.out:  # after each row: the time may be over before the next
                part = settings.out.with_suffix(".part")
                part.write_text(json.dumps(rows))
                part.replace(settings.out)
    except Exception:
        traceback.print_exc()
        return 1
    return 0 if rows and all(row["ok"] for row in rows) else 1


def _driver() -> str | None:
    """The driver's version, where nvidia-smi tells it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = run_within(20, query) if shutil.which(query[0]) else None
    return done.output.strip() if done and done.ok else None


def _print_section(name: str, found: dict[str, Any]) -> None:
    for row in found["rows"]:
        facts = [f"{key} {_shown(value)}" for key, value in row.items() if key != "what"]
        print(f"  {row['what']:28} {'  '.join(facts)}"[: 200 if row["ok"] else 1000])
    print(f"{name}: {found['verdict']}, {found.get('seconds', 0)} s")
    if note := found.get("note"):
        print("\n".join("  | " + line[:160] for line in note.splitlines()[-15:]), flush=True)


def _print_summary(sections: dict[str, Any]) -> None:
    """A short table: what there are targets for, then how each section ended."""
    print()
    for row in (row for found in sections.values() for row in found["rows"]):
        if "target_ms" in row or "tokens_per_s" in row or not row["ok"]:
            facts = {key: row[key] for key in _HEADLINES if key in row}
            said = (f"{key} {_shown(value)}" for key, value in facts.items())
            print(f"{row['what']:28} {'  '.join(said)}"[:160])
    for name, found in sections.items():
        print(f"{name:28} {found['verdict']}")
    all_fine = all(found["verdict"] in _FINE for found in sections.values())
    print("all sections passed" if all_fine else "not all sections passed")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed")
    parser.add_argument("--section", help="run one section in this process")
    parser.add_argument("--limit", type=float, default=120, help="seconds of the sanitizer")
    parser.add_argument("--launch-only", action="store_true", help="small cases: compare nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
