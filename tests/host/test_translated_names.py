"""Names of inputs in the user's language: shown at sockets and widgets, and in nothing that is kept or sent."""

import json
from pathlib import Path

import pytest
from browser import NODE, box, editor_node, open_bench

ROOT = Path(__file__).resolve().parents[2]
MADE = ("BoxwrightRegionPrompt", "BoxwrightBoxConstraint")
SOCKETS_OF_A_CHOICE = ("mode.region_texts", "mode.background")
# What a node shows at its inputs: an input's key -> the name there, of widgets their own.
SHOWN = """(type) => {
    const node = app.graph.nodes.find((each) => each.type === type);
    const found = node.inputs.filter((each) => !each.widget)
        .map((each) => [each.name, each.label || each.localized_name || each.name]);
    for (const widget of node.widgets ?? []) found.push([widget.name, widget.label || widget.name]);
    return Object.fromEntries(found);
}"""
MAKE = """(types) => types.forEach((type, index) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [860 + 340 * index, 60];
})"""
# What is kept: names of slots and of widgets' slots, in no order, which the host changes; values in theirs.
KEPT = """() => {
    const kept = JSON.parse(JSON.stringify(app.graph.serialize()));
    return kept.nodes.map((node) => [
        node.type, node.inputs.map((each) => [each.name, each.widget?.name ?? null]).sort(), node.widgets_values,
    ]).sort();
}"""
# What is sent, but for the titles, which follow the language.
SENT = """async () => Object.values((await app.graphToPrompt()).output)
    .map(({ class_type, inputs }) => [class_type, inputs]).sort()"""
ADVANCED = """(type) => app.graph.nodes.find((each) => each.type === type).widgets
    .filter((each) => each.options?.advanced || each.advanced).map((each) => each.name)"""
WORDS = """(type) => {
    const id = app.graph.nodes.find((each) => each.type === type).id;
    return document.querySelector(`[data-node-id="${id}"]`).innerText.split("\\n").map((each) => each.trim());
}"""


def names_of(language, node):
    """{key of an input: its name} of locales/."""
    inputs = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))[node]["inputs"]
    return {key: each["name"] for key, each in inputs.items() if "name" in each}


@pytest.fixture(scope="module")
def of_language(chromium, request):
    """A page in a language, of a frontend and a renderer; each is opened once."""
    opened = {}

    def page(version, renderer, language):
        for context, _ in [opened.pop(key) for key in [*opened] if key != (version, renderer, language)]:
            context.__exit__(None, None, None)
        if not opened:
            server = request.getfixturevalue("server" if version == "pinned" else "newest_server")
            context = open_bench(chromium, server.url, renderer == "nodes2", settings={"Comfy.Locale": language})
            opened[version, renderer, language] = (context, context.__enter__())
        return opened[version, renderer, language][1]

    yield page
    for context, _ in opened.values():
        context.__exit__(None, None, None)


def work(bench):
    """Draw a box in the editor, beside nodes with inputs of every kind, and set a widget. -> what is kept and sent."""
    bench.load(editor_node([box("a cat", 0.1, 0.1, 0.3, 0.3)]))
    bench.page.evaluate(MAKE, MADE)
    bench.frames()
    bench.settled(1)
    bench.drag((0.5, 0.5), (0.8, 0.9))
    bench.keys.type("a dog")
    bench.press("Enter")
    bench.page.evaluate("""() => {
        const node = app.graph.nodes.find((each) => each.type === "BoxwrightRegionPrompt");
        node.widgets.find((widget) => widget.name === "mode.base_ratio").value = 0.35;
    }""")
    return bench.page.evaluate(KEPT), bench.page.evaluate(SENT)


@pytest.mark.every_version
@pytest.mark.parametrize("renderer", ["classic", "nodes2"])
@pytest.mark.parametrize("version", ["pinned", "newest"])
def test_inputs_are_named_in_the_language_and_kept_and_sent_by_what_they_are(version, renderer, of_language):
    made = {}
    for language in ("fr", "zh", "en"):
        bench = of_language(version, renderer, language)
        made[language] = work(bench)
        assert bench.phrases() == ["a cat", "a dog"]
        for node in (NODE, *MADE):
            shown = bench.page.evaluate(SHOWN, node)
            names = {} if language == "en" else names_of(language, node)
            wanted = {key: names.get(key.replace(".", "_"), key.rpartition(".")[2]) for key in shown}
            wanted |= {key: shown[key] for key in shown if key == "box_editor"}  # the drawing: it has no name to show
            if version == "pinned":  # it labels the sockets that stand under a choice by their own names
                wanted |= {key: key.rpartition(".")[2] for key in SOCKETS_OF_A_CHOICE if key in shown}
            assert shown == wanted, node
            if renderer == "nodes2" and node != NODE:
                hidden = set(bench.page.evaluate(ADVANCED, node))
                assert {wanted[key] for key in wanted.keys() - hidden} <= {*bench.page.evaluate(WORDS, node)}
        bench.shot(f"names_{language}")
        assert bench.errors == []
    assert made["fr"] == made["zh"] == made["en"]


@pytest.mark.every_version
@pytest.mark.parametrize("version", ["pinned", "newest"])
def test_a_workflow_saved_in_one_language_opens_in_another(version, of_language):
    bench = of_language(version, "classic", "fr")
    kept, sent = work(bench)
    file = bench.page.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")
    bench = of_language(version, "classic", "zh")
    bench.page.evaluate(
        "(graph) => app.loadGraphData(graph, true, false, app.extensionManager.workflow.activeWorkflow)", file
    )
    bench.settled(1)
    assert bench.page.evaluate(KEPT) == kept and bench.page.evaluate(SENT) == sent
    shown = bench.page.evaluate(SHOWN, "BoxwrightRegionPrompt")
    assert (shown["model"], shown["mode.base_ratio"]) == ("模型", "提示词比例")
