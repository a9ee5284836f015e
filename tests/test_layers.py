"""Imports point one way: attention_patches <- attention_patches/host <- nodes <- __init__."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST_MODULES = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "execution", "folder_paths", "node_helpers"}
HOST_MODULES |= {"nodes", "server", "latent_preview"}
PACK_RUNTIME = {"torch", "numpy", "PIL", "comfy", "comfy_api", "node_helpers"}


def imports(path: Path) -> list[tuple[int, str]]:
    """Every import of a file as an absolute dotted name; those inside the pack start with a dot and its folders."""
    found = []
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                found.append((node.lineno, node.module or ""))
            else:
                base = package[: len(package) - node.level + 1]
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found += [(node.lineno, "." + ".".join([*base, name])) for name in names]
    return found


def violations(path: Path) -> list[str]:
    """What a file imports against the direction."""
    folder = path.relative_to(ROOT).parent.as_posix()
    wrong = []
    for line, name in imports(path):
        top = name.split(".")[0]
        if folder == "attention_patches":
            bad = top in HOST_MODULES or name.startswith((".attention_patches.host", ".nodes"))
        elif folder == "attention_patches/host":
            bad = top in HOST_MODULES - {"comfy", "latent_preview"} or name.startswith(".nodes")
        elif folder == "nodes":
            bad = top in HOST_MODULES - {"comfy_api", "comfy_execution", "nodes", "server"}
        else:
            bad = top in HOST_MODULES or name.startswith(".attention_patches")
        outside = top and not name.startswith(".") and top not in PACK_RUNTIME | HOST_MODULES and not is_standard(top)
        if bad or outside:
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    return wrong


def is_standard(name: str) -> bool:
    return name in sys.stdlib_module_names


SHIPPED = sorted(
    [
        ROOT / "__init__.py",
        *(ROOT / "attention_patches").glob("*.py"),
        *(ROOT / "attention_patches/host").glob("*.py"),
        *(ROOT / "nodes").glob("*.py"),
    ]
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    assert violations(path) == []


def test_the_rule_catches_what_it_is_for(tmp_path, monkeypatch):
    planted = {
        "attention_patches/a.py": "from comfy.samplers import KSAMPLER",
        "attention_patches/b.py": "from .host.run import install",
        "attention_patches/c.py": "from ..nodes import boxes",
        "attention_patches/host/d.py": "from comfy_api.latest import io",
        "nodes/e.py": "import comfy.utils",
        "nodes/f.py": "import cv2",
    }
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    for name, source in planted.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        assert violations(path), name
