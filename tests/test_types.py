"""The check of types: files of the pack find each other upwards, whatever their folder is called."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import wb_types


@pytest.fixture
def tree(tmp_path):
    """A pack of two rooms in a folder whose name is no module's."""
    root = tmp_path / "a pack-main"
    for folder in ("attention_patches", "nodes"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").touch()
    (root / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "attention_patches" / "words.py").write_text("def count(text: str) -> int:\n    return len(text)\n")
    return root


def test_every_file_is_checked_under_its_place_in_the_pack():
    modules = {source.module: Path(source.path) for source in wb_types.sources(ROOT)}
    assert modules["pack"] == ROOT / "__init__.py"
    assert modules["pack.attention_patches.core.types"] == ROOT / "attention_patches" / "core" / "types.py"
    assert modules["pack.nodes"] == ROOT / "nodes" / "__init__.py"
    shipped = [path for folder in wb_types.FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) == len(shipped) + 1


def test_an_import_upwards_is_followed(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the check goes elsewhere
    node = tree / "nodes" / "counting.py"  # whose `nodes` is the host's, not its own folder
    node.write_text("import nodes\n\nfrom ..attention_patches.words import count\n\nwrong: str = count('a')\n")
    (finding,) = wb_types.check(tree, str(tmp_path / "cache"))
    assert "counting.py:5" in finding and 'expression has type "int"' in finding
    # Of another length: within a second mypy tells a file from what it was by that alone.
    node.write_text("import nodes\n\nfrom ..attention_patches.words import count\n\nfitting: int = count('a')\n")
    assert wb_types.check(tree, str(tmp_path / "cache")) == []
