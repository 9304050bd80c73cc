"""What a GPU must show, in one call of at most eight minutes: right, race-free, fast.

    bash benchmarks/gpu_check.sh

Each section runs in a process of its own with a time limit, and what is known so far is written
after each, so that a result file is left whatever happens. ``--device cpu --tiny`` walks the same
way without a GPU. Exit codes: 0 all is right, 1 a section failed, 5 a package is missing.
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
_TOTAL_SECONDS = 475
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
    begun = time.monotonic()
    for section, (_, limit) in SECTIONS.items():
        left = _TOTAL_SECONDS - (time.monotonic() - begun)
        limit = 10 * limit if settings.tiny else min(limit, left)
        results["sections"][section] = _run(section, limit, settings)
        report.save(results, settings.out)
    _print_table(results["sections"])
    failed = [name for name, found in results["sections"].items() if not found["ok"]]
    print(f"failed: {', '.join(failed)}" if failed else "all sections passed")
    return 1 if failed else 0


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _run(section: str, limit: float, settings: argparse.Namespace) -> dict[str, Any]:
    """Run a section in its own process; return its rows, or what kept it from having any."""
    if section in _GPU_ONLY and settings.device != "cuda":
        return {"ok": True, "rows": [], "note": "not run: it needs a GPU"}
    if limit < 5:
        return {"ok": False, "rows": [], "note": "not run: the time was used up"}
    print(f"{section}: at most {limit:.0f} s", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--section", section, "--out", str(out)]
        command += ["--device", settings.device, "--limit", str((limit - 15) / 2)]
        command += ["--tiny"] if settings.tiny else []
        done = run_within(limit, command)
        rows = json.loads(out.read_text()) if out.exists() else []
    seconds = round(time.monotonic() - start, 1)
    found = {"ok": done.ok and all(row["ok"] for row in rows), "seconds": seconds, "rows": rows}
    return found if done.ok else found | {"note": done.said()}


def _one(settings: argparse.Namespace) -> int:
    """Run one section in this process and write its rows."""
    from gpu_sections import SECTIONS, small_cases

    known = {name: function for name, (function, _) in SECTIONS.items()}
    known["small cases"] = small_cases  # what the sanitizer runs
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


def _print_table(sections: dict[str, Any]) -> None:
    for section, found in sections.items():
        verdict = "ok" if found["ok"] else "FAILED"
        print(f"\n{section}: {verdict}, {found.get('seconds', 0)} s")
        if note := found.get("note"):
            print("  " + note.strip().splitlines()[-1][:160])
        for row in found["rows"]:
            facts = (f"{name} {_shown(value)}" for name, value in row.items() if name != "what")
            print(f"  {row['what']:28} {'  '.join(facts)}"[:200])


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed")
    parser.add_argument("--section", help="run one section in this process")
    parser.add_argument("--limit", type=float, default=40, help="seconds of a sanitizer's run")
    parser.add_argument("--launch-only", action="store_true", help="small cases: compare nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
