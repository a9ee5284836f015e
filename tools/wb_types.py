"""Checks the types of the pack with mypy, as `pack`, whatever its folder is called.

    python tools/wb_types.py [CACHE FOLDER]

Files of the pack import each other upwards (`from ..attention_patches`), and its folder's name need not be a module's;
mypy's own command line has no word for that. Settings: [tool.mypy] in pyproject.toml.
"""

import os
import sys
import tempfile
from pathlib import Path

try:
    from mypy import build, main
    from mypy.errors import CompileError
    from mypy.modulefinder import BuildSource
except ModuleNotFoundError:
    sys.exit(f'types: there is no mypy beside "{sys.executable}"; install it there, or leave --python out')

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("attention_patches", "nodes")


def sources(root: Path) -> list[BuildSource]:
    """Every file of the pack under the module's name that it has below `pack`."""
    files = [root / "__init__.py", *(path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py")))]
    return [BuildSource(str(path), module_name(path.relative_to(root))) for path in files]


def module_name(path: Path) -> str:
    parts = ["pack", *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def check(root: Path, cache: str) -> list[str]:
    """mypy's findings, a line each."""
    os.makedirs(cache, exist_ok=True)
    arguments = ["--config-file", str(root / "pyproject.toml"), "--cache-dir", cache, "-c", "pass"]
    _, options = main.process_options(arguments)
    os.chdir(cache)  # the working directory is searched for modules, and our nodes/ is not the host's `nodes`
    try:
        return build.build(sources(root), options).errors
    except CompileError as error:
        return error.messages


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        place = sys.argv[1] if len(sys.argv) > 1 else folder
        found = check(ROOT, place)
        os.chdir(ROOT)
    print("\n".join(found) or "no findings")
    sys.exit(bool(found))
