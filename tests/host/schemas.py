"""The nodes as workflows have saved them: tests/golden/schema.json, and what a difference from it means in words.

Saved workflows hold the id of a node, the ids of its inputs, its widgets' values by their place and its links by the
place of the output. The file holds these, with defaults and ranges.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pack.attention_patches.host.samplers.loops import SCHEDULERS

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "schema.json"
WRITE = "BOXWRIGHT_WRITE_SCHEMA"
HINT = (
    f"If this is meant: {WRITE}=1 pytest tests/host/test_nodes.py -k saved writes tests/golden/schema.json. "
    f"What breaks saved workflows is written with {WRITE}=breaking only; see docs/releasing.md."
)
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC}
LIMITS = {"min": "minimum", "max": "maximum"}
HOSTS_OWN = "the host's schedulers"  # packs add to them, and versions of the host


@dataclass(frozen=True)
class Difference:
    """What has changed, in words, and whether a saved workflow is lost by it."""

    words: str
    breaks: bool


# --- from a schema ----------------------------------------------------------------------------------------------------


def contract(schema) -> dict:
    """What of a node's schema workflows depend on: {"inputs": [{"id", "type", ...}], "outputs": [{"id", "type"}]}."""
    inputs = [_input(entry, choice) for choice, entry in with_choices(schema)]
    outputs = [{"id": each.id or each.display_name, "type": each.get_io_type()} for each in schema.outputs]
    return {"inputs": inputs, "outputs": outputs}


def with_choices(schema):
    """((dynamic combo, its choice), input that stands only there), or (None, input)."""
    for entry in schema.inputs:
        yield None, entry
        if entry.get_io_type() == DYNAMIC:
            yield from (((entry.id, option.key), inner) for option in entry.options for inner in option.inputs)


def defaults(schema, **choices):
    """The default of every input; of a dynamic combo those of the choice, else the first, as the host hands it over."""
    values = {entry.id: entry.default for entry in schema.inputs if getattr(entry, "default", None) is not None}
    for entry in (entry for entry in schema.inputs if entry.get_io_type() == DYNAMIC):
        key = choices.get(entry.id, entry.options[0].key)
        (inputs,) = (option.inputs for option in entry.options if option.key == key)
        values[entry.id] = {entry.id: key} | {inner.id: getattr(inner, "default", None) for inner in inputs}
    return values


def _input(entry, choice) -> dict:
    found = {"id": f"{choice[0]}.{entry.id}" if choice else entry.id, "type": entry.get_io_type()}
    if choice:
        found["where"] = f"{choice[0]} is {choice[1]}"
    if entry.optional:
        found["optional"] = True
    for key in ("default", "min", "max", "step"):
        if getattr(entry, key, None) is not None:
            found[key] = getattr(entry, key)
    if getattr(entry, "options", None) is not None:
        keys = [getattr(option, "key", option) for option in entry.options]
        found["options"] = HOSTS_OWN if keys == SCHEDULERS else keys
    return found


# --- the file ---------------------------------------------------------------------------------------------------------


def golden() -> dict[str, dict]:
    """Node id -> contract, as the file has them."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def written(contracts: dict[str, dict]) -> str:
    """The text of the file: a line for each input, so that a change is a line of the diff."""

    def lines(entries):
        return ",\n".join("      " + json.dumps(entry, ensure_ascii=False) for entry in entries)

    nodes = [
        f'  {json.dumps(name)}: {{\n    "inputs": [\n{lines(each["inputs"])}\n    ],\n'
        f'    "outputs": [\n{lines(each["outputs"])}\n    ]\n  }}'
        for name, each in contracts.items()
    ]
    return "{\n" + ",\n".join(nodes) + "\n}\n"


# --- differences ------------------------------------------------------------------------------------------------------


def differences(before: dict[str, dict], after: dict[str, dict], titles=None, replaced=()) -> list[Difference]:
    """What has changed between two sets of contracts. `titles`: node id -> what users call it; `replaced`: ids of nodes
    that saved workflows are led away from."""
    titles, found = titles or {}, []
    for name in before:
        if name not in after:
            note = " (workflows are led to another)" if name in replaced else ""
            found.append(Difference(f"node {name} is gone{note}", name not in replaced))
    found += [Difference(f"node {titles.get(name, name)} is new", False) for name in after if name not in before]
    for name in before.keys() & after.keys():
        title = titles.get(name, name)
        for each in _of_inputs(before[name]["inputs"], after[name]["inputs"]):
            found.append(Difference(f"{title}: {each.words}", each.breaks))
        for each in _of_outputs(before[name]["outputs"], after[name]["outputs"]):
            found.append(Difference(f"{title}: {each.words}", each.breaks))
    order = [name for name in after if name in before]
    if not found and order != list(before):
        found.append(Difference("the nodes stand in another order", False))
    return found


def _key(entry: dict) -> tuple:
    return entry["id"], entry.get("where")


def _named(entry: dict) -> str:
    return f"input {entry['id']}" + (f" where {entry['where']}" if "where" in entry else "")


def _of_inputs(before: list[dict], after: list[dict]):
    old, new = ({_key(entry): entry for entry in entries} for entries in (before, after))
    for key, entry in old.items():
        if key not in new:
            yield Difference(f"{_named(entry)} is gone", True)
    for key, entry in new.items():
        if key not in old:
            needed = not entry.get("optional") and "default" not in entry and "options" not in entry
            yield Difference(f"{_named(entry)} is new" + " and must be given" * needed, needed)
        else:
            yield from _of_input(old[key], entry)
    # The values of widgets are saved by place: what is new must stand behind, and the others as they stood.
    for where in dict.fromkeys(entry.get("where") for entry in before):
        places = [
            [key for key, entry in entries.items() if entry["type"] in WIDGETS and entry.get("where") == where]
            for entries in (old, new)
        ]
        kept = [key for key in places[0] if key in new and new[key]["type"] in WIDGETS]
        for key, place in zip(kept, places[1]):
            if key != place:
                word = "new" if place not in old else "moved"
                yield Difference(f"{_named(new[place])} is {word} before {key[0]}, whose saved values it takes", True)
                break


def _of_input(old: dict, new: dict):
    name = _named(new)
    if old["type"] != new["type"]:
        yield Difference(f"{name} was {old['type']} and is {new['type']}", True)
        return
    if old.get("optional") != new.get("optional"):
        now = "optional" if new.get("optional") else "required"
        yield Difference(f"{name} is {now} now", now == "required")
    if old.get("default") != new.get("default"):
        yield Difference(f"{name}'s default {old.get('default')!r} became {new.get('default')!r}", False)
    if old.get("step") != new.get("step"):
        yield Difference(f"{name}'s step {old.get('step')} became {new.get('step')}", False)
    for key, word in LIMITS.items():
        if (was := old.get(key)) != (now := new.get(key)):
            narrower = now is not None and (was is None or (now > was if key == "min" else now < was))
            yield Difference(f"{name}'s {word} {was} became {now}", narrower)
    yield from _of_options(name, old.get("options"), new.get("options"))


def _of_options(name: str, old, new):
    if old == new:
        return
    if not (isinstance(old, list) and isinstance(new, list)):
        yield Difference(f"{name}'s choices {old} became {new}", True)
        return
    for option in old:
        if option not in new:
            yield Difference(f"{name} has no choice {option!r} any more", True)
    added = [option for option in new if option not in old]
    if added:
        yield Difference(f"{name} has the new choices {added}", False)
    if set(old) == set(new):
        yield Difference(f"{name}'s choices stand in another order", False)


def _of_outputs(old: list[dict], new: list[dict]):
    for place, (was, now) in enumerate(zip(old, new), 1):
        if was["type"] != now["type"]:
            yield Difference(f"output {place} was {was['type']} and is {now['type']}", True)
        elif was["id"] != now["id"]:
            yield Difference(f"output {place} was called {was['id']} and is called {now['id']}", False)
    for place in range(len(new), len(old)):
        yield Difference(f"output {place + 1} ({old[place]['id']}) is gone", True)
    for place in range(len(old), len(new)):
        yield Difference(f"output {place + 1} ({new[place]['id']}) is new", False)
