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
# Names of sockets and widgets that a language leaves as they are: terms of the models, and words that it has, too.
TERMS = {"cfg", "clip", "lora", "sigmas", "vae"}
STAYS = {
    "fr": {"format", "gradient", "image", "images", "latent", "mode", "moments", "notes", "phrase", "phrases", "prompt",
           "source", "style"},
    "zh": set(),
}  # fmt: skip


def all_inputs(entries, before=""):
    """Names as the frontend looks them up (dots become underscores), with the inputs; those of options too."""
    for entry in entries:
        name = before + entry.id
        yield name.replace(".", "_"), entry
        for option in entry.options if isinstance(entry, io.DynamicCombo.Input) else ():
            yield from all_inputs(option.inputs, f"{name}.")


def name_of(entry):
    """What the frontend shows at a socket or a widget; None where that is its type alone, which the host translates."""
    return entry.display_name or (entry.id or "").rpartition(".")[2] or None


def words_of(schema):
    """What the schema says, as nodeDefs.json has it."""
    words = {"display_name": schema.display_name, "description": schema.description}
    inputs = {name: said_of(entry) for name, entry in all_inputs(schema.inputs)}
    outputs = {str(i): said_of(each) for i, each in enumerate(schema.outputs)}
    return words | ({"inputs": inputs} if inputs else {}) | ({"outputs": outputs} if outputs else {})


def said_of(entry):
    return {key: text for key, text in (("name", name_of(entry)), ("tooltip", entry.tooltip)) if text}


def flat(words, before=""):
    """{dotted key: text}."""
    result = {}
    for key, value in words.items():
        result |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return result


def numbers(text):
    return sorted(NUMBER.findall(text))


@pytest.fixture(scope="module")
def schemas():
    extension = load_nodes().BoxwrightExtension()
    return [node.define_schema() for node in asyncio.run(extension.get_node_list())]


@pytest.fixture(scope="module")
def english(schemas):
    """Every string of every node that the pack registers, by its key."""
    return flat({schema.node_id: words_of(schema) for schema in schemas})


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture(scope="module")
def translated(language):
    return flat(json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8")))


def load_nodes():
    """The package with the list of nodes, which the tests' `pack` leaves out."""
    folder = ROOT / "nodes"
    spec = importlib.util.spec_from_file_location(
        "pack.all_nodes", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_word_is_translated_and_none_that_is_not_there(english, translated, language):
    stays = {key for key, text in english.items() if key.endswith(".name") and text in TERMS | STAYS[language]}
    assert sorted(english.keys() - translated.keys() - stays) == [], "not translated"
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


def test_one_name_has_one_translation_and_no_node_has_it_twice(schemas, translated):
    """The same word at every node, on either side of a wire; but what is of another type may mean another thing."""
    found, twice = {}, []
    for schema in schemas:
        inputs = {f"inputs.{name}": entry for name, entry in all_inputs(schema.inputs)}
        for side in (inputs, {f"outputs.{index}": entry for index, entry in enumerate(schema.outputs)}):
            shown = {}
            for key, entry in side.items():
                name = translated.get(f"{schema.node_id}.{key}.name", name_of(entry))
                if name_of(entry):
                    found.setdefault(name_of(entry), {}).setdefault(name, set()).add(entry.io_type)
                    shown.setdefault(name, set()).add(name_of(entry))
            twice += [(schema.node_id, names) for names in shown.values() if len(names) > 1]
    assert twice == []
    several = {name: kinds for name, kinds in found.items() if len(kinds) > 1}
    assert {name for name, kinds in several.items() if set.intersection(*kinds.values())} == set()
    assert several.keys() <= {"clip"}, "the CLIP, and a limit"


def test_names_are_short(translated):
    assert {text for key, text in translated.items() if key.endswith(".name") and len(text) > 24} == set()


def test_help_pages_call_inputs_and_outputs_as_the_nodes_show_them(schemas, translated, language):
    """In the first cells of their tables, before what messages and tooltips call them."""
    wrong = []
    for schema in schemas:
        inputs = {f"inputs.{name}": entry for name, entry in all_inputs(schema.inputs)}
        entries = inputs | {f"outputs.{index}": entry for index, entry in enumerate(schema.outputs)}
        shown = {}
        for key, entry in entries.items():
            shown.setdefault(name_of(entry), set()).add(translated.get(f"{schema.node_id}.{key}.name", ""))
        page = ROOT / "web" / "docs" / schema.node_id / f"{language}.md"
        for cell in re.findall(r"^\| ([^|]*`[^|]*) \|", page.read_text("utf-8"), re.MULTILINE):
            ids = re.findall(r"`([^`]+)`", cell)
            if {*ids} <= shown.keys():
                wrong += [(schema.node_id, i) for i in ids if not any(before_id(cell, n, i) for n in shown[i])]
    assert wrong == []


def before_id(cell, name, identifier):
    return not name or any(f"{name}{opening}`{identifier}`" in cell for opening in (" (", "（"))
