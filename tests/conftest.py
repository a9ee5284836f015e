"""Test set-up: the packages `pack` and `toyworld`, and a ComfyUI host on the CPU for the tests that need one.

tests/math and the files directly in tests/ need torch only. tests/host and tests/semantic need the ComfyUI folder
named by COMFYUI_PATH and run inside torch.inference_mode(), fixtures included, as the host's executor runs nodes.
"""

import contextlib
import gc
import os
import sys
import types
from pathlib import Path

# Read when torch is imported. Threads that spin while they wait cost six times the CPU on a machine that is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

TESTS = Path(__file__).resolve().parent
HOST_TESTS = (TESTS / "host", TESTS / "semantic")


def alias(name, folder):
    """Make `folder` importable as package `name` without executing its __init__.py."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


def host_problem(folder):
    """Why `folder` (COMFYUI_PATH or None) cannot serve as the host; None if it can."""
    if not folder:
        return "COMFYUI_PATH is not set"
    if not (Path(folder) / "comfy" / "options.py").is_file():
        return f"COMFYUI_PATH is {folder}, which is not a ComfyUI folder"
    return None


def prepare_host(folder):
    """Put the host on sys.path with its command line read as `--cpu`; imports nothing heavy."""
    sys.path.insert(0, str(Path(folder).resolve()))
    sys.argv = ["x", "--cpu", "--use-pytorch-cross-attention"]  # half the time of the CPU default
    import comfy.options  # before any other import of comfy: otherwise arguments are not read and a GPU is probed

    comfy.options.enable_args_parsing()
    import utils  # noqa: F401 - as the host's main.py does: nodes.py of old hosts puts another utils before it


# Never put the repository root on sys.path: our nodes/ would hide the host's nodes.py.
alias("pack", TESTS.parent)
alias("pack.nodes", TESTS.parent / "nodes")  # its __init__ needs the host, its pure modules do not
alias("toyworld", TESTS / "toyworld")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
PROBLEM = host_problem(os.environ.get("COMFYUI_PATH"))
if PROBLEM is None:
    prepare_host(os.environ["COMFYUI_PATH"])


def needs_host(path):
    return any(folder == path or folder in path.parents for folder in HOST_TESTS)


def pytest_collection(session):
    paths = [Path(argument.split("::")[0]).resolve() for argument in session.config.args]
    holds_host_tests = any(needs_host(path) or any(path in folder.parents for folder in HOST_TESTS) for path in paths)
    if PROBLEM and holds_host_tests:
        raise pytest.UsageError(
            f"{PROBLEM}, and these tests need a ComfyUI: "
            "run all tests with `python tools/workbench.py test`, or only tests/math without one"
        )


def pytest_collection_finish():
    """Spare the garbage collector what was imported and collected. The host calls it before every sampling, and beside
    eight thousand tests and the host's modules that took five sixths of a small model's run."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    # A hook, not a fixture: fixtures of module and session scope must run inside it too.
    with torch.inference_mode() if needs_host(item.path) else contextlib.nullcontext():
        return (yield)


@pytest.fixture(scope="session")
def toy():
    """The toy world's (model, clip, vae), loaded once by the stock CheckpointLoaderSimple. Clone before patching."""
    from toyworld import sampling

    return sampling.load()
