"""Region Prompt in the browser: the node shows what its mode reads, and keeps it."""

import json

import pytest

MADE = """() => {
    app.graph.clear();
    const node = LiteGraph.createNode("BoxwrightRegionPrompt");
    app.graph.add(node);
    node.pos = [60, 120];
    app.canvas.ds.scale = 1; app.canvas.ds.offset[0] = 0; app.canvas.ds.offset[1] = 0;
}"""
NODE = 'app.graph.nodes.find((each) => each.type === "BoxwrightRegionPrompt")'
SHOWN = f"() => {NODE}.widgets.filter((each) => each.type !== 'text').map((each) => [each.name, each.value])"
SOCKETS = f"() => {NODE}.inputs.filter((each) => !each.widget).map((each) => each.name)"
SET = f"([name, value]) => {{ {NODE}.widgets.find((each) => each.name === name).value = value; }}"
PROMPT = """async () => {
    const { output } = await app.graphToPrompt();
    return Object.values(output).find((each) => each.class_type === "BoxwrightRegionPrompt").inputs;
}"""
RELOAD = """async () => {
    const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
    await app.loadGraphData(saved, true, false, app.extensionManager.workflow.activeWorkflow);
}"""
WIRE = f"""() => {{
    const text = LiteGraph.createNode("CLIPTextEncode"), node = {NODE};
    app.graph.add(text);
    text.pos = [60, 600];
    text.connect(0, node, node.inputs.findIndex((each) => each.name === "mode.background"));
}}"""
COUPLE = {"mode": "couple", "mode.base_ratio": 0.2, "mode.confine_end": 0.4, "mode.feather": 0, "mode.blocks": "all"}
DENSE = {"mode": "dense", "mode.dense_end": 0.3, "mode.cross_weight": 1, "mode.self_weight": 0.3}
BOTH = {"strength": 1, "overlap": "order", "start": 0, "end": 1}


@pytest.fixture
def node(bench):
    bench.page.evaluate(MADE)
    bench.frames()
    return bench


def shown(bench):
    return dict(bench.page.evaluate(SHOWN))


def choose(bench, name, value):
    bench.page.evaluate(SET, [name, value])
    bench.frames()


@pytest.mark.every_version
def test_the_node_shows_the_inputs_of_its_mode_in_order(node):
    assert [*shown(node).items()] == [*COUPLE.items(), *BOTH.items(), ("bound", "off")]
    assert node.page.evaluate(SOCKETS) == ["model", "layout", "mode.region_texts", "mode.background"]
    choose(node, "mode", "dense")
    choose(node, "bound", "coarse")
    dense = [*DENSE.items(), *BOTH.items(), ("bound", "coarse"), ("bound.bound_end", 0.5)]
    assert [*shown(node).items()] == dense
    assert node.page.evaluate(SOCKETS) == ["model", "layout"]
    node.shot("region_prompt_dense")
    assert node.page.evaluate(PROMPT) == dict(dense)
    choose(node, "mode", "couple")
    choose(node, "bound", "off")
    assert [*shown(node).items()] == [*COUPLE.items(), *BOTH.items(), ("bound", "off")]
    node.shot("region_prompt_couple")
    assert node.errors == []


@pytest.mark.every_version
def test_what_was_set_and_wired_is_there_after_saving(node):
    choose(node, "bound", "all")
    for name, value in (("mode.base_ratio", 0.45), ("strength", 0.9), ("bound.bound_end", 0.7)):
        choose(node, name, value)
    node.page.evaluate(WIRE)
    before = node.page.evaluate(PROMPT)
    node.page.evaluate(RELOAD)
    node.frames()
    expected = COUPLE | BOTH | {"mode.base_ratio": 0.45, "strength": 0.9, "bound": "all", "bound.bound_end": 0.7}
    assert shown(node) == expected
    assert node.page.evaluate(PROMPT) == before
    assert json.dumps(before["mode.background"][1]) == "0" and before.items() >= expected.items()
    choose(node, "mode", "dense")
    assert "mode.background" not in node.page.evaluate(PROMPT)
    node.page.evaluate(RELOAD)
    node.frames()
    assert shown(node) == DENSE | BOTH | {"strength": 0.9, "bound": "all", "bound.bound_end": 0.7}
    assert node.errors == []
