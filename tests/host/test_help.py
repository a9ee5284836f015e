"""The help pages in ComfyUI: their pictures show, in every language."""

import urllib.request
from pathlib import Path

import pytest
from browser import open_bench

HELP = Path(__file__).resolve().parents[2] / "web" / "docs"
SELECTED = """() => {
    app.graph.clear();
    const node = LiteGraph.createNode("BoxwrightRegions");
    app.graph.add(node);
    node.pos = [300, 300];
    app.canvas.ds.scale = 1; app.canvas.ds.offset[0] = 0; app.canvas.ds.offset[1] = 0;
    app.canvas.selectNode(node);
    app.canvas.setDirty(true, true);
}"""
SHOWN = """() => [...document.querySelectorAll("img")].some((image) => image.src.endsWith("/BoxwrightRegions.jpg")
    && image.naturalWidth > 0)"""


def test_every_picture_is_served_where_the_pages_of_all_languages_look_for_it(server):
    """The frontend puts the folder of the English pages in front of what has no address of its own."""
    for path in [*HELP.glob("*.jpg"), *HELP.glob("*.png")]:
        with urllib.request.urlopen(f"{server.url}/extensions/boxwright/docs/{path.name}") as answer:
            assert answer.headers["Content-Type"].startswith("image/") and answer.read() == path.read_bytes()


@pytest.mark.every_version
@pytest.mark.parametrize("language", ["en", "fr", "zh"])
@pytest.mark.parametrize("version", ["pinned", "newest"])
def test_the_help_of_a_node_shows_its_picture(version, language, request, chromium):
    server = request.getfixturevalue("server" if version == "pinned" else "newest_server")
    page = HELP / ("BoxwrightRegions.md" if language == "en" else f"BoxwrightRegions/{language}.md")
    title = page.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    with open_bench(chromium, server.url, False, settings={"Comfy.Locale": language}) as bench:
        bench.page.evaluate(SELECTED)
        bench.page.get_by_test_id("info-button").click()
        bench.page.wait_for_function(SHOWN)
        assert bench.page.get_by_role("heading", name=title, exact=True).count() == 1
