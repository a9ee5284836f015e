"""The translations of the nodes: one for every word that the schemas show, none for what they do not have."""

import asyncio
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from comfy_api.latest import io

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = sorted(folder.name for folder in (ROOT / "locales").iterdir() if folder.is_dir())
# Digits, with a decimal point or comma between them; not those of a word such as "x1".
NUMBER = re.compile(r"(?<![A-Za-z0-9_.])\d+(?:[.,]\d+)*(?![A-Za-z_])")
# The syntax of the frontend's messages: it would be read as such, in tooltips too by the older frontends.
MESSAGE_SYNTAX = re.compile(r"[{}@|]")
HTML = re.compile(r"<(?!id>)[/!A-Za-z]|&\w+;")


def all_inputs(entries, before=""):
    """Names as the frontend looks them up (dots become underscores), with the inputs; those of options too."""
    for entry in entries:
        name = before + entry.id
        yield name.replace(".", "_"), entry
        for option in entry.options if isinstance(entry, io.DynamicCombo.Input) else ():
            yield from all_inputs(option.inputs, f"{name}.")


def words_of(schema):
    """What the schema says, as nodeDefs.json has it."""
    words = {"display_name": schema.display_name, "description": schema.description}
    inputs = {name: {"tooltip": entry.tooltip} for name, entry in all_inputs(schema.inputs) if entry.tooltip}
    outputs = {str(i): {"tooltip": each.tooltip} for i, each in enumerate(schema.outputs) if each.tooltip}
    return words | ({"inputs": inputs} if inputs else {}) | ({"outputs": outputs} if outputs else {})


def flat(words, before=""):
    """{dotted key: text}."""
    result = {}
    for key, value in words.items():
        result |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return result


def numbers(text):
    return sorted(NUMBER.findall(text))


@pytest.fixture(scope="module")
def english():
    """Every string of every node that the pack registers, by its key."""
    extension = load_nodes().BoxwrightExtension()
    schemas = [node.define_schema() for node in asyncio.run(extension.get_node_list())]
    return flat({schema.node_id: words_of(schema) for schema in schemas})


@pytest.fixture(scope="module", params=LANGUAGES)
def translated(request):
    return flat(json.loads((ROOT / "locales" / request.param / "nodeDefs.json").read_text("utf-8")))


def load_nodes():
    """The package with the list of nodes, which the tests' `pack` leaves out."""
    folder = ROOT / "nodes"
    spec = importlib.util.spec_from_file_location(
        "pack.all_nodes", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_word_is_translated_and_none_that_is_not_there(english, translated):
    assert sorted(english.keys() - translated.keys()) == [], "not translated"
    assert sorted(translated.keys() - english.keys()) == [], "of no node"
    assert [key for key, text in translated.items() if not text.strip()] == []


def test_numbers_are_those_of_the_english(english, translated):
    shared = english.keys() & translated.keys()
    assert {key: translated[key] for key in shared if numbers(translated[key]) != numbers(english[key])} == {}


def test_a_translation_is_plain_text_in_the_other_language(english, translated):
    assert [key for key, text in translated.items() if HTML.search(text)] == []
    assert [key for key, text in translated.items() if text == english.get(key)] == []
    assert [key for key, text in translated.items() if MESSAGE_SYNTAX.search(text)] == []


def test_no_two_nodes_have_one_name(translated):
    names = [text for key, text in translated.items() if key.endswith(".display_name")]
    assert len(set(names)) == len(names)
