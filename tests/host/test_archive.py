"""The archive that the registry distributes, installed alone in a real server: no tests, no tools, no checkout."""

import contextlib
import io
import json
import os
import re
import sys
import urllib.parse
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import release
from wb_environment import host_at
from wb_server import running_server

FOLDER = "boxwright"  # as the registry's name of the pack has it
LANGUAGES = sorted(folder.name for folder in (ROOT / "locales").iterdir())
TEMPLATES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
OF_THE_PAGE = {"MarkdownNote", "Note", "PrimitiveNode", "Reroute"}  # nodes that the browser has, not the server


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A server with nothing but the unpacked archive among its custom nodes."""
    base = tmp_path_factory.mktemp("base")
    pack = base / "custom_nodes" / FOLDER
    with zipfile.ZipFile(io.BytesIO(release.packed())) as archive:
        archive.extractall(pack)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOXWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        host = host_at(Path(os.environ["COMFYUI_PATH"]), "COMFYUI_PATH")
        with running_server(Path(sys.executable), host, directory=lambda: contextlib.nullcontext(base)) as server:
            yield server
    written = {path.name for path in pack.iterdir()} - {path.parts[0] for path in release.published()}
    assert written <= {"__pycache__"}  # the pack leaves nothing beside its own files


@pytest.fixture(scope="module")
def nodes(installed):
    """What the server says of the pack's nodes."""
    info = installed.get_json("/object_info")
    return {name: node for name, node in info.items() if node["python_module"] == f"custom_nodes.{FOLDER}"}


def page(server, *parts):
    """A file of the pack's browser side, as the frontend asks for it."""
    return server.get("/extensions/" + "/".join(urllib.parse.quote(part) for part in (FOLDER, *parts)))


def test_every_node_is_registered(nodes):
    assert set(nodes) == {path.stem for path in PAGES} != set()
    assert {node["category"] for node in nodes.values()} == {"Boxwright"}


def test_the_log_names_the_pack_in_the_list_of_import_times_only(installed, nodes):
    log = installed.log.read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line for line in log if f"custom_nodes{os.sep}{FOLDER}" in line]
    assert len(named) == 1 and re.search(r"\d seconds: ", named[0]), named


def test_every_node_has_its_help_in_every_language(installed, nodes):
    for name, node in nodes.items():
        assert page(installed, "docs", f"{name}.md").decode().startswith(f"# {node['display_name']}\n")
        for language in LANGUAGES:
            assert page(installed, "docs", name, f"{language}.md").decode().startswith("# ")


def test_pictures_of_the_help_are_served(installed):
    pages = [page(installed, "docs", f"{path.stem}.md") for path in PAGES]
    pages += [page(installed, "docs", path.stem, f"{language}.md") for path in PAGES for language in LANGUAGES]
    shown = {target for text in pages for target in re.findall(r"!\[[^]]*\]\(([^)\s]+)\)", text.decode())}
    assert shown
    for target in shown:
        Image.open(io.BytesIO(page(installed, "docs", *target.split("/")))).verify()


def test_the_frontend_gets_the_editor_and_every_module_of_it(installed):
    scripts = {path for path in installed.get_json("/extensions") if path.startswith(f"/extensions/{FOLDER}/")}
    assert f"/extensions/{FOLDER}/box_editor.js" in scripts
    for script in scripts:
        text = installed.get(urllib.parse.quote(script)).decode()
        for target in re.findall(r'(?:from|import) "(\.[^"]+)"', text):
            address = urllib.parse.urljoin(script, target)
            assert address in scripts or address.startswith("/scripts/"), (script, target)  # the host's own


def test_the_nodes_are_translated(installed, nodes):
    translations = installed.get_json("/i18n")
    for language in LANGUAGES:
        words = translations[language]["nodeDefs"]
        assert all(words[name]["display_name"] and words[name]["description"] for name in nodes)


def test_templates_are_offered_with_their_pictures(installed):
    assert sorted(installed.get_json("/api/workflow_templates")[FOLDER]) == TEMPLATES
    for title in TEMPLATES:
        address = f"/api/workflow_templates/{FOLDER}/{urllib.parse.quote(title)}"
        assert json.loads(installed.get(f"{address}.json"))["nodes"]
        assert Image.open(io.BytesIO(installed.get(f"{address}.jpg"))).size == (512, 512)


@pytest.fixture(scope="module")
def blueprints(installed):
    """{name: what the server gives of a blueprint of the pack}."""
    offered = installed.get_json("/global_subgraphs")
    ours = {entry["name"]: key for key, entry in offered.items() if FOLDER in json.dumps(entry["info"])}
    return {name: json.loads(installed.get_json(f"/global_subgraphs/{key}")["data"]) for name, key in ours.items()}


def test_blueprints_of_subgraphs_are_offered(blueprints):
    assert {*blueprints} == {path.stem for path in (ROOT / "subgraphs").glob("*.json")} != set()


def test_templates_and_blueprints_miss_no_node(installed, blueprints):
    known = {*installed.get_json("/object_info")} | OF_THE_PAGE
    for title in TEMPLATES:
        address = f"/api/workflow_templates/{FOLDER}/{urllib.parse.quote(title)}.json"
        assert node_types(json.loads(installed.get(address))) - known == set(), title
    for name, graph in blueprints.items():
        assert node_types(graph) - known == set(), name


def node_types(graph):
    """Of a saved workflow and the subgraphs in it, which are no types of their own."""
    subgraphs = graph.get("definitions", {}).get("subgraphs", [])
    used = {node["type"] for part in (graph, *subgraphs) for node in part["nodes"]}
    return used - {subgraph["id"] for subgraph in subgraphs}
