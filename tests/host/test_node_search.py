"""What people type finds the node they need: asked of the frontend's own search, in its page."""

import pytest
from browser import open_bench

# What people type -> the node that must be among the first PLACES of the list.
QUERIES = {
    "box": "BoxwrightBoxEditor",
    "box editor": "BoxwrightBoxEditor",
    "draw boxes": "BoxwrightBoxEditor",
    "layout to image": "BoxwrightBoxEditor",
    "place objects": "BoxwrightBoxConstraint",
    "object placement": "BoxwrightBoxConstraint",
    "boxdiff": "BoxwrightBoxConstraint",
    "forge couple": "BoxwrightRegionPrompt",
    "attention couple": "BoxwrightRegionPrompt",
    "regional prompt": "BoxwrightRegionPrompt",
    "regional prompter": "BoxwrightRegionPrompt",
    "area": "BoxwrightRegionConditioning",
    "per region lora": "BoxwrightRegionLora",
    "regional lora": "BoxwrightRegionLora",
    "lora mask": "BoxwrightRegionLora",
    "inpaint": "BoxwrightRePaint",
    "inspect attention": "BoxwrightAttentionHeatmap",
    "attention map": "BoxwrightAttentionHeatmap",
    "mask from word": "BoxwrightMaskFromWord",
    "prompt to prompt": "BoxwrightPromptToPrompt",
    "ideogram json": "BoxwrightLayoutToPrompt",
    "flux 3 layout": "BoxwrightLayoutToPrompt",
    "coco": "BoxwrightPromptToRegions",
    "diffedit": "BoxwrightDiffEdit",
    "flowedit": "BoxwrightFlowEdit",
}
# Of the list; ROOM for all others. For words that the host's own titles hold, being in the list must do.
PLACES = {"box": 1, "box editor": 1, "coco": 8, "area": 40, "inpaint": 40}
ROOM = 5

SEARCH = """(query) => {
    const pinia = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia;
    const found = pinia._s.get("nodeDef").nodeSearchService.searchNode(query, []);
    return found.slice(0, 40).map((each) => each.name);
}"""


@pytest.fixture(scope="module", params=["pinned", "newest"])
def page(request, chromium):
    server = request.getfixturevalue("server" if request.param == "pinned" else "newest_server")
    with open_bench(chromium, server.url, False) as bench:
        yield bench.page


@pytest.mark.every_version
def test_what_people_type_finds_our_nodes(page):
    found = {query: page.evaluate(SEARCH, query) for query in QUERIES}
    missed = [query for query, node in QUERIES.items() if node not in found[query][: PLACES.get(query, ROOM)]]
    assert not missed, "\n".join(f"{query}: {', '.join(found[query][:12])}" for query in missed)
