"""The rooms of the house: which folder may import which, no circles, the host's name only where the host is spoken."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A room -> the rooms that it may import besides itself. Each holds the Python files of one folder, not of those below.
CORE = "attention_patches/core"
METHODS, SAMPLERS = "attention_patches/methods", "attention_patches/samplers"
HOST = "attention_patches/host"
ATTENTION, FAMILIES, TEXT = f"{HOST}/attention", f"{HOST}/families", f"{HOST}/text"
LAYERS = f"{HOST}/layers"
RUN, GUIDANCE, LOOPS = f"{HOST}/run", f"{HOST}/guidance", f"{HOST}/samplers"
ROOMS = {
    ".": {"nodes"},
    "attention_patches": set(),
    CORE: set(),
    METHODS: {CORE},
    SAMPLERS: {CORE},
    ATTENTION: {CORE},
    FAMILIES: {CORE, ATTENTION},
    TEXT: {CORE},
    LAYERS: {CORE, ATTENTION, FAMILIES},
    RUN: {CORE, ATTENTION, FAMILIES, LAYERS, TEXT},
    GUIDANCE: {CORE, ATTENTION, FAMILIES, RUN},
    LOOPS: {CORE, SAMPLERS, ATTENTION, RUN},
    HOST: {CORE, METHODS, SAMPLERS, ATTENTION, FAMILIES, LAYERS, TEXT, RUN, GUIDANCE, LOOPS},
    "nodes/parts": {CORE, METHODS, SAMPLERS},
    "nodes": {"nodes/parts", CORE, METHODS, SAMPLERS, HOST, TEXT, LOOPS},
}
HOST_MODULES = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "execution", "folder_paths", "node_helpers"}
HOST_MODULES |= {"nodes", "server", "latent_preview"}
# The host's nodes are described and its files listed, not its models touched.
IN_NODES = {"comfy_api", "comfy_execution", "folder_paths", "nodes", "server"}
SPOKEN = {  # which of the host's modules a room may name
    **{room: {"comfy", "latent_preview"} for room in ROOMS if room.startswith(HOST)},
    **{room: IN_NODES for room in ROOMS if room.startswith("nodes")},
}
PACK_RUNTIME = {"torch", "numpy", "PIL"} | HOST_MODULES
LONG = 350  # lines; a longer file says why in its first line


def shipped(root: Path) -> list[Path]:
    """The Python files of the pack."""
    folders = (root / "attention_patches", root / "nodes")
    return sorted([root / "__init__.py", *(path for folder in folders for path in folder.rglob("*.py"))])


def room_of(path: Path, root: Path) -> str:
    return path.relative_to(root).parent.as_posix()


def imports(path: Path, root: Path) -> list[tuple[int, str | Path]]:
    """Every import of a file: the name of a module outside the pack, or the path of a file of the pack."""
    found: list[tuple[int, str | Path]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:  # a module of that folder, or a name in that module
                file = folder / f"{alias.name}.py"
                if not file.exists():
                    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
                found.append((node.lineno, file))
    return found


def violations(path: Path, root: Path) -> list[str]:
    """What a file imports that its room may not."""
    room, wrong = room_of(path, root), []
    if room not in ROOMS:
        return [f"{path.relative_to(root)}: its folder is no room of the table"]
    for line, target in imports(path, root):
        if isinstance(target, Path):
            allowed = room_of(target, root) in {room, *ROOMS[room]}
        else:
            top = target.split(".")[0]
            allowed = (
                top in SPOKEN.get(room, ())
                if top in HOST_MODULES
                else (top in PACK_RUNTIME or top in sys.stdlib_module_names)
            )
        if not allowed:
            wrong.append(f"{path.relative_to(root)}:{line}: {target}")
    return wrong


def circle(arrows: dict[Path, set[Path]]) -> list[Path]:
    """Files that import each other in a ring; [] if there are none."""
    done: set[Path] = set()

    def walk(path: Path, way: list[Path]) -> list[Path]:
        if path in way:
            return way[way.index(path) :]
        if path in done:
            return []
        for other in sorted(arrows.get(path, ())):
            if ring := walk(other, [*way, path]):
                return ring
        done.add(path)
        return []

    return next(filter(None, (walk(path, []) for path in sorted(arrows))), [])


def arrows(root: Path) -> dict[Path, set[Path]]:
    return {
        path: {target for _, target in imports(path, root) if isinstance(target, Path)} - {path}
        for path in shipped(root)
    }


@pytest.mark.parametrize("path", shipped(ROOT), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_what_its_room_may(path):
    assert violations(path, ROOT) == []


def test_no_file_imports_itself_over_others():
    assert circle(arrows(ROOT)) == []


def nodes_of_nodes(root: Path) -> list[str]:
    """Where a node imports another one: what they share belongs to nodes/parts."""
    files = [path for path in sorted((root / "nodes").glob("*.py")) if path.name != "__init__.py"]
    found = [(path.name, line, target) for path in files for line, target in imports(path, root)]
    return [f"{name}:{line}" for name, line, target in found if isinstance(target, Path) and target in files]


def test_no_node_imports_another():
    assert nodes_of_nodes(ROOT) == []


def test_the_table_itself_has_no_circle_and_no_empty_room():
    assert circle({Path(room): {Path(other) for other in others} for room, others in ROOMS.items()}) == []
    assert {room_of(path, ROOT) for path in shipped(ROOT)} == set(ROOMS)


@pytest.mark.parametrize("path", shipped(ROOT), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_long_file_says_why(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONG or "One file, since" in "\n".join(lines[:12]), f"{len(lines)} lines"


def test_the_rules_catch_what_they_are_for(tmp_path):
    planted = {
        f"{CORE}/a.py": "from comfy.samplers import KSAMPLER",
        f"{CORE}/b.py": "from ..methods.c import d",
        f"{METHODS}/c.py": "from ..host.install import install",
        f"{SAMPLERS}/e.py": "from ..methods import c",
        f"{HOST}/families/f.py": "from ..run.run import Run",
        f"{HOST}/run/run.py": "from comfy_api.latest import io",
        f"{HOST}/guidance/g.py": "from ..install import install",
        f"{HOST}/deep/er/h.py": "",
        "nodes/parts/i.py": "from ..region_prompt import NODES",
        "nodes/j.py": "import comfy.utils",
        "nodes/k.py": "import cv2",
    }
    for name, source in planted.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for name in planted:
        assert violations(tmp_path / name, tmp_path), name
    (tmp_path / CORE / "c.py").write_text("from .d import x")
    (tmp_path / CORE / "d.py").write_text("def late():\n    from .c import x")
    (tmp_path / "__init__.py").write_text("")
    assert {path.name for path in circle(arrows(tmp_path))} == {"c.py", "d.py"}
