#!/usr/bin/env python3
"""Boxwright's workbench: a real ComfyUI with this pack and a small test model, from nothing but Python.

    python tools/workbench.py demo     draw the example pictures and score them
    python tools/workbench.py test     all tests; --quick: those that need no ComfyUI; -- PATH: those of a file
    python tools/workbench.py serve    the same ComfyUI, left running for your browser
    python tools/workbench.py bench    the benchmarks

The first run makes a Python environment in your cache directory (BOXWRIGHT_CACHE moves it). Nothing is installed
anywhere else, and nothing keeps running afterwards.
"""

import sys

if sys.version_info < (3, 11):  # before the imports below, which older versions cannot parse
    sys.exit(
        f"workbench: this is Python {sys.version.split()[0]}, and 3.11 or newer is needed; "
        "call the workbench with a newer one, for example python3.12"
    )

import argparse
import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from wb_browser import apt_install, browser_environment
from wb_common import ROOT, WINDOWS, Failure, Stopped, cache_directory, child, clean_environment, stage, stop_on_signals
from wb_demo import clear, execute, load_workflow, save_pictures
from wb_environment import DEFAULT_HOST, HOSTS, Host, choose_host, environment_for, fetch_host
from wb_graph import to_api
from wb_server import running_server
from wb_templates import for_toy, template

DEMO_WORKFLOW = template("arranged_noise")
DEMO_FOLDER = ROOT / "demo"
OLDEST_HOST = min(HOSTS, key=lambda version: [int(part) for part in version.split(".")])
# What the oldest host is spared of tests/host in a run of all tests, for time. There remain the contracts, gradients
# and guidance of all families, the nodes, the archive and the example workflows; left out are files that ask the
# workbench or no host at all, or ours in ways that no host changes. `--host` runs them too.
NOT_ON_OLDEST = (
    "workbench*", "demo", "benchmarks", "on_a_device", "robust_*", "composition", "region_prompt_joint",
    "gradient_of_transformers", "bias_in_joint_attention", "prompt_fit", "editing_samplers", "prompt_to_prompt_runs",
    "recorder_in_graphs", "subject_masks", "flow_edits", "newer_hosts", "arranged_noise", "attention_recorder",
    "toyworld", "wrong_input", "flow_edit_nodes", "editing_nodes", "editing_inversion", "region_prompt_nodes",
    "region_prompt_runs", "region_lora", "loss_guidance", "windows_of_runs",
)  # fmt: skip
SLOW = ("every_sampler", "windows_are_fractions", "query_chunks", "every_attention_backend")
NO_BROWSER = ("-m", "not in_a_browser")  # tests/host/conftest.py marks those that are
QUICK_FILES = ("layers", "pyproject", "docs", "release", "types", "workflows")
QUICK = ("tests/math", *(f"tests/test_{name}.py" for name in QUICK_FILES))
# Options of pytest whose next argument may look like a path and is none.
VALUED = ("-k", "-m", "-c", "-p", "-o", "-W", "--ignore", "--deselect", "--rootdir", "--confcutdir", "--basetemp")
# How many workers is said already, or they would hide what a test prints or asks.
NO_WORKERS = re.compile(r"-[vxql]*s[vxql]*|--capture=no|--pdb|--trace|-n.*|--numprocesses.*")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(add_help=False)
    which = options.add_mutually_exclusive_group()
    which.add_argument("--comfyui", metavar="PATH", help="use this ComfyUI checkout")
    which.add_argument("--host", metavar="VERSION", help=f"use this pinned ComfyUI: {', '.join(HOSTS)}")
    options.add_argument(
        "--python", metavar="PATH", help="use this interpreter, with its packages, instead of making an environment"
    )
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument("--port", type=int, help="port of the server on 127.0.0.1 (default: any free one)")
    server.add_argument("--gpu", action="store_true", help="let ComfyUI choose the device instead of forcing the CPU")
    main = argparse.ArgumentParser(
        prog="workbench.py",
        description=__doc__.split("\n\n")[0],
        epilog="What follows -- goes to ComfyUI (demo, serve), pytest (test) or bench.",
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="demo|test|serve|bench")
    commands.add_parser("demo", parents=[options, server], help="draw the example pictures and score them")
    commands.add_parser("serve", parents=[options, server], help="leave a ComfyUI running for your browser")
    tests = commands.add_parser("test", parents=[options], help="run all tests; -- PATH or -- -k WORDS chooses")
    tests.add_argument("--quick", action="store_true", help="only what needs no ComfyUI: lint, maths, the web tests")
    commands.add_parser("bench", parents=[options], help="run the benchmarks")
    return main


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    own, extra = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        own, extra = arguments[:cut], arguments[cut + 1 :]
    options = parser().parse_args(own)
    stop_on_signals()
    try:
        host = choose_host(options.comfyui, options.host)
        print(f"host: {host}", flush=True)
        python = interpreter(options.python) if options.python else environment_for(host)
        command = {"demo": demo, "serve": serve, "test": test, "bench": bench}[options.command]
        return command(python, host, options, extra)
    except Failure as failure:
        return complain(str(failure), 1)
    except Stopped as stopped:
        return complain("stopped", 128 + stopped.signum)
    except OSError as error:
        return complain(explain(error), 1)


def complain(message: str, status: int) -> int:
    """Print one line about what went wrong, below whatever was being printed; returns the exit status."""
    sys.stdout.flush()
    print(f"workbench: {message}", file=sys.stderr, flush=True)
    return status


def explain(error: OSError) -> str:
    """An error of the operating system in one line, with the remedy for the usual ones."""
    where = f' at "{error.filename}"' if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}; free some space, or put the cache elsewhere with BOXWRIGHT_CACHE"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write{where}; BOXWRIGHT_CACHE chooses another cache directory"
    return f"{error.strerror or error}{where}"


def interpreter(path: str) -> Path:
    """The interpreter named by --python. Not resolved: an environment's python is a link that means the environment."""
    found = shutil.which(path)
    if not found:
        raise Failure(f'--python "{path}" is not a program; name a Python that has what ComfyUI imports')
    return Path(found).absolute()


def beside(python: Path, name: str) -> Path:
    """A script of the interpreter's environment. (`python -m pytest` would put the repository on sys.path, where our
    nodes/ hides the host's nodes.py.)"""
    script = python.parent / (f"{name}.exe" if WINDOWS else name)
    if not script.exists():
        raise Failure(f'there is no {name} beside "{python}"; install it there, or leave --python out')
    return script


@contextlib.contextmanager
def started_server(python: Path, host: Host, options, extra: list[str]):
    """A running server, announced."""
    with contextlib.ExitStack() as stack:
        with stage("starting the server"):
            server = stack.enter_context(running_server(python, host, options.port, extra, gpu=options.gpu))
        yield server


def demo(python: Path, host: Host, options, extra: list[str]) -> int:
    """Draw the example's pictures on a real server, score them and show both."""
    started = time.monotonic()
    workflow = for_toy(load_workflow(DEMO_WORKFLOW))
    clear(DEMO_FOLDER)
    with started_server(python, host, options, extra) as server:
        graph = to_api(workflow, server.get_json("/object_info"))
        outputs = execute(server, graph)
        pictures = save_pictures(server, graph, outputs, DEMO_FOLDER)
    scene = {
        "regions": regions_of(graph),
        "pictures": {name: [str(file) for file in files] for name, files in pictures.items()},
    }
    sheet = DEMO_FOLDER / "contact_sheet.png"
    with child(
        [python, ROOT / "tools" / "contact_sheet.py", sheet], stdin=subprocess.PIPE, env=clean_environment()
    ) as process:
        process.communicate(json.dumps(scene).encode())
    if process.returncode != 0:
        raise Failure(
            f"the contact sheet could not be made (exit status {process.returncode}); the pictures are in {DEMO_FOLDER}"
        )
    count = sum(map(len, pictures.values()))
    print(f"\n{count} pictures and {sheet.name} are in {DEMO_FOLDER} ({time.monotonic() - started:.0f} s)")
    return 0


def regions_of(graph: dict) -> list[dict]:
    """The boxes and phrases that the workflow's editor, or regions node, holds."""
    for node in graph.values():
        if node["class_type"] in ("BoxwrightBoxEditor", "BoxwrightRegions"):
            return json.loads(node["inputs"]["regions_json"])["regions"]
    raise Failure(f'"{DEMO_WORKFLOW}" has no box editor and no Regions node, so there is nothing to score against')


def serve(python: Path, host: Host, options, extra: list[str]) -> int:
    """Leave a server running until it is stopped."""
    with started_server(python, host, options, extra) as server:
        first = min(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
        print(
            f"\nComfyUI is at {server.url}\n"
            f"  Open the Workflows sidebar (key W) and choose one, {first} to begin with.\n"
            "  Then press Run. The toy model (toyworld.safetensors) is ready in every checkpoint loader.\n"
            f"  What you save there is deleted when you stop it. Log: {server.log}\n"
            "  Ctrl-C stops it.",
            flush=True,
        )
        while True:
            server.check_alive()
            time.sleep(0.5)


def test(python: Path, host: Host, options, extra: list[str]) -> int:
    """Lint, the web tests, the oldest host, then pytest; non-zero if any of them failed. pytest's summary comes last.

    `extra` goes to pytest; paths, -k and -m in it choose, and then the oldest host is left out. With BOXWRIGHT_STRICT
    set, as in CI, nothing may be skipped for want of a browser, a frontend or Node.js. An older one of the pinned hosts
    runs by itself, and all but what looks at the page, whose frontend is the newest host's.
    """
    strict = bool(os.environ.get("BOXWRIGHT_STRICT"))
    environment = clean_environment(COMFYUI_PATH=str(host.path))
    chosen = has_paths(extra) or any(argument.startswith(("-k", "-m")) for argument in extra)
    older = host.version in HOSTS and host.version != DEFAULT_HOST
    if older and not (options.quick or chosen):
        print(f"  tests in a browser run on ComfyUI {DEFAULT_HOST} alone: {' '.join(NO_BROWSER)}", flush=True)
        extra = [*NO_BROWSER, *extra]
    if not any(map(NO_WORKERS.fullmatch, extra)):
        # A file in one worker: its tests share servers, pages and models. As they are collected: xdist's own order
        # leaves the long tests that are alone in their file, and so one worker, to the end.
        extra = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *extra]
        environment.setdefault("OMP_NUM_THREADS", "1")
    browsing = not options.quick and (chosen or not older)
    if browsing and (ROOT / "tests" / "host" / "browser.py").exists():
        environment |= browser_environment(python, strict)
        screenshots = Path(environment.setdefault("BOXWRIGHT_SCREENSHOTS", str(cache_directory() / "screenshots")))
        screenshots.mkdir(parents=True, exist_ok=True)
        print(f"  screenshots of the browser tests: {screenshots}", flush=True)
    checks = [
        ("ruff", [beside(python, "ruff"), "check", "."], environment),
        ("ruff format", [beside(python, "ruff"), "format", "--check", "--quiet", "."], environment),
        ("types", [python, ROOT / "tools" / "wb_types.py", cache_directory() / "types"], environment),
    ]
    web_tests = sorted((ROOT / "tests" / "web").glob("*.mjs"))
    if web_tests:
        if strict and not shutil.which("node"):
            apt_install("nodejs")
        node = shutil.which("node")
        if not node:
            raise Failure("tests/web needs Node.js and there is no node on the PATH; install Node.js 20 or newer")
        checks.append(("web tests", [node, "--test", *web_tests], environment))
    if not (options.quick or chosen or older):
        # In the environment of the other host: two of them are several gigabytes more, and what differs is the host.
        oldest = fetch_host(OLDEST_HOST)
        left_out = [f"--ignore-glob={Path('tests', 'host', f'test_{name}.py')}" for name in NOT_ON_OLDEST]
        words = ["-k", f"not {' and not '.join(SLOW)}"]
        command = [beside(python, "pytest"), Path("tests", "host"), *left_out, *NO_BROWSER, *words, *extra]
        checks.append((f"pytest on {oldest}", command, environment | {"COMFYUI_PATH": str(oldest.path)}))
    failed = []
    for title, command, its_environment in checks:
        print(f"== {title}", flush=True)
        if run(command, its_environment, patience=30) != 0:
            failed.append(title)
    if failed:
        complain(f"failed: {', '.join(failed)} (see above); running pytest all the same", 1)
    print("== pytest", flush=True)
    places = [] if has_paths(extra) else list(QUICK) if options.quick else ["tests"]
    status = run([beside(python, "pytest"), *places, *extra], environment, patience=30)
    return status or bool(failed)


def has_paths(arguments: list[str]) -> bool:
    """Whether pytest's arguments name files or folders of the repository (or tests in them: PATH::NAME)."""
    values = {after for before, after in zip(arguments, arguments[1:]) if before in VALUED}
    return any(
        (ROOT / argument.split("::")[0]).exists()
        for argument in arguments
        if argument not in values and not argument.startswith("-")
    )


def bench(python: Path, host: Host, options, extra: list[str]) -> int:
    """Run the benchmarks."""
    script = ROOT / "benchmarks" / "run.py"
    if not script.exists():
        raise Failure(f'"{script}" is missing, so there is nothing to measure; check your clone')
    return run([python, script, *extra], clean_environment(COMFYUI_PATH=str(host.path)))


def run(command: list, environment: dict[str, str], patience: float = 8) -> int:
    """Run a command in the repository with its output shown; returns its exit status."""
    with child(command, patience, env=environment, cwd=ROOT) as process:
        return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
