"""What pyproject.toml tells the registry."""

import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from release import ACCELERATORS
from workbench import OLDEST_HOST

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_accelerators_are_some_that_the_registry_knows():
    named = {name for name in PROJECT["project"]["classifiers"] if name.startswith("Environment")}
    assert named and named <= ACCELERATORS


def test_the_oldest_host_that_is_claimed_is_the_oldest_that_is_tested():
    assert PROJECT["tool"]["comfy"]["requires-comfyui"] == f">={OLDEST_HOST}"
