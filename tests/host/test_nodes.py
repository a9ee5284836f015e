"""The nodes as the host sees them: their contract with saved workflows, and what the methods' nodes do on the toy."""

import asyncio
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from pack.attention_patches.core.types import Box, BoxwrightError, Region
from pack.attention_patches.host.text.layout import encode_layout
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from pack.attention_patches.methods.reweight import Reweight
from pack.nodes.parts.phrases import MAX_CHARACTERS, MAX_WEIGHTS, parse_weights
from pack.nodes.rectified_attention import BoxwrightRectifiedAttention
from pack.nodes.reweight import BoxwrightReweight
from schemas import GOLDEN, HINT, WRITE, contract, defaults, differences, golden, with_choices, written
from toyworld import sampling

ROOT = Path(__file__).resolve().parents[2]

NODES = list(golden())
every_node = pytest.mark.parametrize("name", NODES)


def load(name, path):
    """Import a file under a name; an __init__.py becomes a package."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pack_module():
    """The pack's root, imported as the host imports a folder in custom_nodes."""
    before = set(sys.modules)
    yield load(str(ROOT).replace(".", "_x_"), ROOT / "__init__.py")
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture(scope="module")
def registered(pack_module):
    """Node id -> class, as the host gets them, in the order of the extension's list."""

    async def entry():
        extension = await pack_module.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(entry())}


@pytest.fixture(scope="module")
def schemas(registered):
    """Node id -> schema."""
    return {name: node.GET_SCHEMA() for name, node in registered.items()}


# The contract


def test_the_nodes_are_as_workflows_have_saved_them(schemas, pack_module):
    now = {name: contract(schema) for name, schema in schemas.items()}
    titles = {name: schema.display_name for name, schema in schemas.items()}
    replacements = sys.modules[f"{pack_module.__name__}.nodes.replacements"].REPLACEMENTS
    found = differences(golden(), now, titles, {each.old_node_id for each in replacements})
    how = os.environ.get(WRITE)
    if how and (how == "breaking" or not any(each.breaks for each in found)):
        GOLDEN.write_text(written(now), encoding="utf-8", newline="\n")
        return
    lines = [each.words + "  <- BREAKS SAVED WORKFLOWS" * each.breaks for each in found]
    assert not found, "\n".join([*lines, HINT])
    assert GOLDEN.read_text(encoding="utf-8") == written(now), HINT


@every_node
def test_a_node_is_found_and_explained(schemas, pack_module, name):
    schema = schemas[name]
    assert name.startswith("Boxwright") and schema.category == "Boxwright"
    assert "Boxwright" not in schema.display_name and schema.description and schema.search_aliases  # a badge says it
    inputs = [entry for _, entry in with_choices(schema)]
    assert [entry.id for entry in [*inputs, *schema.outputs] if not entry.tooltip] == []
    page = (ROOT / pack_module.WEB_DIRECTORY / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    assert [entry.id for entry in inputs if not re.search(rf"\b{entry.id}\b", page, re.IGNORECASE)] == []


HUGE, NAN, INF = 2**40, float("nan"), float("inf")
HOSTILE = {
    "INT": [-(10**6), HUGE * HUGE, 10**400, 1.5, NAN, INF, "7", None],
    "FLOAT": [-1e6, 1e6, 10**400, NAN, INF, -INF, "0.5", None],
    "COMBO": ["no such choice", None, 3],
    "COMFY_DYNAMICCOMBO_V3": [None, {}, {"mode": "no such choice", "bound": "nor this"}, ["couple"]],
    "STRING": [None, 5, ["a"]],
    "IMAGE": [torch.ones(shape) for shape in ((0, 8, 8, 3), (1, 0, 8, 3), (1, 8, 8, 2), (1, 8, 8, 5), (8, 8, 3))]
    + [torch.ones(1, 2, 8, 8, 3), "a picture"],
    "MASK": [torch.ones(shape) for shape in ((0, 8, 8), (1, 8, 0), (1, 3, 8, 8), (8,))]
    + [torch.full((1, 8, 8), NAN), torch.full((8, 8), INF), 1.0],
    "LATENT": [{"samples": torch.ones(shape)} for shape in ((0, 4, 8, 8), (1, 4, 0, 8))]
    + [{"samples": torch.full((1, 4, 8, 8), NAN)}, {"samples": torch.full((1, 4, 8, 8), INF)}, {}, None],
}
USUAL = {
    "IMAGE": torch.ones(1, 8, 8, 3),
    "MASK": torch.ones(1, 8, 8),
    "LATENT": {"samples": torch.ones(1, 4, 8, 8)},
    "STRING": "red",
}


def hostile_cases(schema):
    """(input, what the node gets, with a hostile value there) for every input of a kind whose values can be judged."""
    for choice, entry in with_choices(schema):
        usual = {each.id: USUAL.get(each.get_io_type()) for each in schema.inputs}
        usual |= defaults(schema, **dict([choice] if choice else []))
        for value in HOSTILE.get(entry.get_io_type(), ()):
            if not (value is None and entry.optional):
                holder = {choice[0]: usual[choice[0]] | {entry.id: value}} if choice else {entry.id: value}
                yield entry.id, usual | holder


@every_node
def test_hostile_values_on_wires_are_refused_by_the_node_they_enter(registered, schemas, name):
    """The host checks the range of what is typed in, not of what is wired: here every input gets every bad value."""
    for wire, inputs in hostile_cases(schemas[name]):
        with pytest.raises(ValueError) as refused:
            registered[name].execute(**inputs)
        message = str(refused.value)
        assert type(refused.value).__name__ == "BoxwrightError", (wire, message)
        assert message.startswith(f"{wire} ") and len(message) < 500, (wire, message)
        assert re.search("choose |Look at|Wire |Replace it|quotation", message), (wire, message)


def test_the_ends_of_every_range_are_let_in(registered, schemas):
    """What is refused begins where the schema says, for seeds of 64 bits too."""
    checks = sys.modules[registered["BoxwrightRegions"].__module__.rpartition(".")[0] + ".parts.checks"]
    assert checks.whole(2**64 - 1, "seed", 0, 2**64 - 1) == 2**64 - 1
    assert checks.whole(512.0, "width", 64, 512) == 512 and checks.ranged(1, "strength", 0.0, 1.0) == 1.0
    assert checks.ranged(1.0 + 2**-52, "end", 0.0, 1.0) == 1.0  # what a sum of floats comes to
    assert checks.masks(torch.ones(2, 1, 8, 8), "mask").shape == (2, 8, 8)  # as some packs hand masks out


def test_every_help_page_belongs_to_a_node():
    assert {page.stem for page in (ROOT / "web" / "docs").glob("*.md")} == set(NODES)


def test_the_schemas_offer_the_defaults_of_the_methods(schemas):
    method = RectifiedAttention()
    assert defaults(schemas["BoxwrightRectifiedAttention"]) == {
        "strength": method.strength,
        "start": method.window.start,
        "end": method.window.end,
        "feather": method.feather,
        "resolutions": method.resolutions,
        "end_tokens": method.end_tokens,
    }
    method = Reweight(parse_weights(defaults(schemas["BoxwrightReweight"])["weights"]))
    assert defaults(schemas["BoxwrightReweight"]) == {
        "weights": "red: 2",
        "start": method.window.start,
        "end": method.window.end,
        "region": method.region,
        "renormalize": method.renormalize,
    }


# The methods' nodes on the toy

RECTIFIED = dict(strength=1.0, start=0.0, end=1.0, feather=0.0, resolutions="all", end_tokens="visible")
REWEIGHTED = dict(weights="red: 4", start=0.0, end=1.0, region=0, renormalize=False)


@pytest.fixture(scope="module")
def encoded(toy):
    """(conditioning, layout) of a prompt with two regions."""
    regions = (Region("red circle", Box(0.0, 0.0, 0.5, 1.0)), Region("blue star", Box(0.5, 0.0, 0.5, 1.0)))
    return encode_layout(toy[1], "a red circle and a blue star", regions, append_missing=False)


@pytest.fixture(scope="module")
def draw(toy, encoded):
    """A function from a model to its picture of that prompt, 64 x 64 pixels after four steps."""
    _, clip, vae = toy
    negative = sampling.encode(clip, "")
    return lambda model: sampling.sample(model, vae, encoded[0], negative, [1], steps=4, size=(64, 64))


@pytest.fixture(scope="module")
def plain(toy, draw):
    """The picture without a patch."""
    return draw(toy[0])


@pytest.fixture(scope="module")
def usual(toy, encoded, draw):
    """The pictures of both methods as set below: function -> picture."""
    return {patch: draw(patch(toy, encoded)) for patch in (rectified, reweighted)}


def rectified(toy, encoded, **settings):
    return BoxwrightRectifiedAttention.execute(toy[0], encoded[1], **RECTIFIED | settings)[0]


def reweighted(toy, encoded, model=None, **settings):
    return BoxwrightReweight.execute(model or toy[0], encoded[1], **REWEIGHTED | settings)[0]


@pytest.mark.parametrize("patch", [rectified, reweighted])
def test_a_method_patches_a_clone(toy, encoded, draw, plain, usual, patch):
    assert patch(toy, encoded) is not toy[0]
    assert not torch.equal(usual[patch], plain)
    assert torch.equal(draw(toy[0]), plain)


@pytest.mark.parametrize("patch, off", [(rectified, {"strength": 0.0}), (reweighted, {"weights": "red: 1\nblue: 1"})])
def test_off_is_the_unpatched_picture(toy, encoded, draw, plain, patch, off):
    assert torch.equal(draw(patch(toy, encoded, **off)), plain)


@pytest.mark.parametrize(
    "patch, setting",
    [
        (rectified, {"strength": 0.5}),
        (rectified, {"start": 0.5}),
        (rectified, {"end": 0.5}),
        (rectified, {"feather": 0.4}),
        (rectified, {"resolutions": "fine"}),
        (rectified, {"end_tokens": "hidden"}),
        (reweighted, {"weights": "blue: 4"}),
        (reweighted, {"start": 0.5}),
        (reweighted, {"end": 0.5}),
        (reweighted, {"region": 1}),
        (reweighted, {"renormalize": True}),
    ],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_every_setting_counts(toy, encoded, draw, plain, usual, patch, setting):
    picture = draw(patch(toy, encoded, **setting))
    assert not torch.equal(picture, usual[patch])
    assert not torch.equal(picture, plain)


def test_two_halves_of_the_schedule_are_the_whole(toy, encoded, draw, usual):
    halves = reweighted(toy, encoded, reweighted(toy, encoded, end=0.5), start=0.5)
    assert torch.equal(draw(halves), usual[reweighted])


def test_lines_of_weights_all_count(toy, encoded, draw):
    both = draw(reweighted(toy, encoded, weights="red: 4\n\nblue star: 0.5"))
    one_by_one = reweighted(toy, encoded, reweighted(toy, encoded), weights="blue star: 0.5")
    torch.testing.assert_close(both, draw(one_by_one), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "text, weights",
    [
        ("red: 2", (("red", 2.0),)),
        ("  red circle :-1.5 \n\n\tblue:0\n", (("red circle", -1.5), ("blue", 0.0))),
        ("16:9 picture: 1e0", (("16:9 picture", 1.0),)),
        ("red: 2\nred: 3", (("red", 2.0), ("red", 3.0))),
        ("x: 1\n" * MAX_WEIGHTS, (("x", 1.0),) * MAX_WEIGHTS),
    ],
)
def test_weights_are_read(text, weights):
    assert parse_weights(text) == weights


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no weight.*striped: 2"),
        (" \n\t\n", "no weight"),
        ("red", 'Line 1 .*"red".*a colon and a number from -5 to 10'),
        ("red: 2\n\nblue: much", 'Line 3 .*"blue: much"'),
        (": 2", 'Line 1 .*": 2"'),
        ("red:", 'Line 1 .*"red:"'),
        ("red: nan", "Line 1 .*red: nan"),
        ("red: -inf", "Line 1 .*red: -inf"),
        ("red: 2, blue: 3 times", "Line 1 .*a number"),
        ("x: 1\n" * (MAX_WEIGHTS + 1), f"{MAX_WEIGHTS + 1} lines; at most {MAX_WEIGHTS}"),
        ("x" * (MAX_CHARACTERS + 1), f"{MAX_CHARACTERS + 1} characters; at most {MAX_CHARACTERS}"),
    ],
)
def test_weights_that_cannot_be_read_name_their_line(text, words):
    with pytest.raises(BoxwrightError, match=words) as refused:
        parse_weights(text)
    assert len(str(refused.value)) < 300
    assert BoxwrightReweight.validate_inputs(weights=text) == str(refused.value)


def test_weights_from_a_wire_are_checked_when_they_arrive():
    assert BoxwrightReweight.validate_inputs() is True
    assert BoxwrightReweight.validate_inputs(weights="red: 2") is True


# The guide


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """The files of the example in docs/adding-a-method.md, imported where they say they belong: path -> module."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    modules = {}
    monkeypatch.syspath_prepend(ROOT / "tests" / "math")  # its own test imports the oracles there
    for number, (path, code) in enumerate(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", text, re.DOTALL)):
        file = tmp_path / f"block_{number}.py"
        file.write_text(code, encoding="utf-8")
        name = "pack." + path.removesuffix(".py").replace("/", ".")
        monkeypatch.setitem(sys.modules, name, None)  # so that it is gone after the test
        modules[path] = load(name, file)
    return modules


def test_the_example_of_the_guide_works(guide, toy, encoded, draw, plain):
    assert list(guide) == [
        "attention_patches/methods/quiet_words.py",
        "nodes/quiet_words.py",
        "tests/math/test_quiet_words.py",
    ]
    node = guide["nodes/quiet_words.py"].BoxwrightQuietWords
    assert defaults(node.GET_SCHEMA()) == {"strength": 0.5, "start": 0.0, "end": 1.0}
    assert [output["type"] for output in contract(node.GET_SCHEMA())["outputs"]] == ["MODEL"]
    pictures = [draw(node.execute(toy[0], encoded[1], strength, 0.0, 1.0)[0]) for strength in (0.0, 0.5, 1.0)]
    assert torch.equal(pictures[0], plain)
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])
    tests = vars(guide["tests/math/test_quiet_words.py"])
    for name in [name for name in tests if name.startswith("test_")]:
        tests[name]()
