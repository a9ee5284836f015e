"""Whatever the pack names of the host is there: in the oldest host that is claimed as in the newest."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([ROOT / "__init__.py", *ROOT.glob("attention_patches/**/*.py"), *ROOT.glob("nodes/**/*.py")])
HOST = {"comfy", "comfy_api", "comfy_execution", "latent_preview", "server"}


def host_names(tree):
    """Every dotted name of the host in a file's text, as deep as it is written: modules, classes, functions, values."""
    names, modules = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                modules[alias.asname or top] = alias.name if alias.asname else top
                names.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                names.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in modules:
            names.add(".".join([modules[node.id], *parts]))
    return {name for name in names if name.split(".")[0] in HOST}


def exists(name):
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_host_has_what_the_pack_names(path):
    missing = [name for name in sorted(host_names(ast.parse(path.read_text(encoding="utf-8")))) if not exists(name)]
    assert missing == []  # what old hosts lack is asked for with getattr, and then its name is no attribute here


def test_a_name_that_no_host_has_is_seen():
    tree = ast.parse("import comfy.utils as u\nfrom comfy import ops\nx = u.nothing, ops.cast_bias_weight, torch.all")
    names = host_names(tree)
    assert names == {"comfy.utils", "comfy.ops", "comfy.utils.nothing", "comfy.ops.cast_bias_weight"}
    assert [name for name in sorted(names) if not exists(name)] == ["comfy.utils.nothing"]
