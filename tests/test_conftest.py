"""Without a ComfyUI, tests that need one end in one clear error; the others run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_pytest(target, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", target]
    environment = {**kept, **environment}
    return subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "target, environment, reason",
    [
        (".", {}, "COMFYUI_PATH is not set"),
        (
            "host/test_toyworld.py",
            {"COMFYUI_PATH": "nowhere"},
            "COMFYUI_PATH is nowhere, which is not a ComfyUI folder",
        ),
    ],
)
def test_host_tests_without_a_host_are_an_error(target, environment, reason):
    result = run_pytest(target, **environment)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {reason}" in result.stderr
    assert "python tools/workbench.py test" in result.stderr


def test_math_tests_need_no_host():
    assert run_pytest("math/test_toyworld_scorer.py").returncode == pytest.ExitCode.OK
