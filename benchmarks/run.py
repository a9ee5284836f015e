"""Time and memory of one sampling step, patched divided by unpatched, measured in one run.

    python tools/workbench.py bench                      everything (about half an hour on two CPU cores)
    python tools/workbench.py bench -- --quick           the toy model and a small one
    python tools/workbench.py bench -- --families        two blocks of every family of transformers
    python tools/workbench.py bench -- --summary         one table of every method, for docs/benchmarks.json

What is measured, and how: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Read when torch is imported. Threads that spin while they wait would be counted as busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Measure and print; returns the exit status."""
    options = parse()
    problem = prepare_host(options)
    if problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    # These import the host, which reads its command line first.
    import ratios
    import shapes

    default = shapes.ON_CUDA if options.device == "cuda" else shapes.ON_CPU
    default = shapes.FAMILIES if options.families else default
    default = shapes.SUMMARY[options.device] if options.summary else default
    names = options.only or (shapes.QUICK if options.quick else default)
    unknown = [name for name in names if name not in shapes.SHAPES]
    if unknown:
        print(f'bench: there is no shape "{unknown[0]}"; choose from {", ".join(shapes.SHAPES)}', file=sys.stderr)
        return 1
    print(machine(options), flush=True)
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    if options.summary:
        return summarize(options, names, dtype, ratios.Wanted(tuple(options.method or [""])))
    rows: list[ratios.Row] = []
    wanted = ratios.Wanted(tuple(options.method or [""]), options.regions)
    with torch.inference_mode():
        for name in names:
            found, unpatched = ratios.measure_shape(name, dtype, options.repeats, wanted)
            if not found:
                continue
            rows += found
            print(f"\n{ratios.table(shapes.SHAPES[name].title, found, unpatched)}", flush=True)
    print(f"\n{load_average()}".rstrip())
    if options.json:
        numbers = {"machine": machine(options), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    return 0


def summarize(options: argparse.Namespace, names: tuple[str, ...], dtype: torch.dtype, wanted: Any) -> int:
    """Every method on every shape, into docs/benchmarks.json or another file; then the tables and drawings of it."""
    import draw
    import summary

    file = options.json or draw.COSTS
    with torch.inference_mode():
        summary.measure(file, tuple(names), dtype, options.repeats or 1, wanted, lambda: machine(options))
    print(draw.cost_table(json.loads(file.read_text(encoding="utf-8"))))
    if file == draw.COSTS:
        draw.main()
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the toy model and a small one")
    parser.add_argument("--families", action="store_true", help="a few blocks of every family of transformers")
    parser.add_argument("--summary", action="store_true", help="one table of every method; --json goes on with a file")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this shape (may be given several times)")
    parser.add_argument("--repeats", type=positive, metavar="N", help="patched steps per method and regions")
    parser.add_argument("--method", metavar="NAME", action="append", help="only methods whose name starts so")
    parser.add_argument("--regions", type=positive, metavar="N", help="only with so many regions")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: what torch chooses)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cuda runs in float16")
    parser.add_argument("--attention", choices=("default", "pytorch"), default="default", help="the host's attention")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def prepare_host(options: argparse.Namespace) -> str | None:
    """Make the host and the pack importable, as `comfy` and `pack`; returns why that is impossible."""
    folder = os.environ.get("COMFYUI_PATH", "")
    if not (Path(folder) / "comfy" / "options.py").is_file():
        return f'COMFYUI_PATH is "{folder}", which is not a ComfyUI folder; run `python tools/workbench.py bench`'
    if options.device == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device; leave --device out"
    sys.path.insert(0, folder)
    sys.argv = ["bench"]
    sys.argv += ["--cpu"] if options.device == "cpu" else []
    sys.argv += ["--use-pytorch-cross-attention"] if options.attention == "pytorch" else []
    import comfy.options  # before any other import of comfy: otherwise its command line is not read

    comfy.options.enable_args_parsing()
    # The repository root must stay off sys.path: our nodes/ would hide the host's nodes.py.
    pack = types.ModuleType("pack")
    pack.__path__ = [str(ROOT)]
    sys.modules["pack"] = pack
    return None


def machine(options: argparse.Namespace) -> str:
    """One line about where this runs."""
    from comfy.ldm.modules.attention import optimized_attention
    from comfyui_version import __version__ as host

    where = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, float32"
    if options.device == "cuda":
        where = f"{torch.cuda.get_device_name()}, float16"
    return (
        f"{where}; {platform.system()}, torch {torch.__version__}, ComfyUI {host} ({optimized_attention.__name__}). "
        f"{load_average()}".rstrip()
    )


def load_average() -> str:
    """How busy the machine is; empty where the system does not tell."""
    return f"Load average {os.getloadavg()[0]:.1f}." if hasattr(os, "getloadavg") else ""


if __name__ == "__main__":
    sys.exit(main())
