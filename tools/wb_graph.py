"""A workflow as the browser saves it (nodes, links, widget values) -> the API format that /prompt takes.

The host's own frontend does this conversion in the browser; these are its rules, for what our workflows can hold.
"""

from wb_common import Failure

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO}
# Nodes that exist in the browser only.
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4
# INT widgets of these names get the control even when the node does not ask for it.
SEEDS = {"seed", "noise_seed"}
# Nodes of the host whose last widgets are not the same in all hosts: those that are not saved have their defaults.
OPEN_ENDED = {"TrainLoraNode"}
# Options that give a widget an upload button, which is saved as one more value.
UPLOADS = {"image_upload", "video_upload", "audio_upload", "animated_image_upload"}


def to_api(workflow: dict, object_info: dict) -> dict:
    """The API-format graph of a saved workflow. `object_info` is the host's own description of its nodes."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = dict(_link(link) for link in workflow["links"])
    return {
        str(node["id"]): _api_node(node, nodes, links, object_info)
        for node in nodes.values()
        if node["type"] not in NOTES | {"Reroute", "PrimitiveNode"} and node.get("mode", 0) not in (MUTED, BYPASSED)
    }


def _link(link) -> tuple[int, tuple[int, int]]:
    """(link id, (origin node, origin slot)), from either way a link is saved."""
    if isinstance(link, dict):
        return link["id"], (link["origin_id"], link["origin_slot"])
    return link[0], (link[1], link[2])


def _api_node(node: dict, nodes: dict, links: dict, object_info: dict) -> dict:
    info = object_info.get(node["type"])
    if info is None:
        raise Failure(
            f'node {node["id"]} is a "{node["type"]}", which this server does not know; '
            "the pack that has it is not installed or failed to load: see the server's log"
        )
    inputs = widget_values(node, info)
    for slot in node.get("inputs") or []:
        if slot.get("link") is not None:
            value = _origin(slot["link"], nodes, links)
            inputs.pop(slot["name"], None)
            if value is not None:
                inputs[slot["name"]] = value
    return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node.get("title") or node["type"]}}


def declared_inputs(info: dict, values: dict) -> dict:
    """Name -> (type, options) of the inputs that a node shows with these values, in order.

    A dynamic combo is followed by the inputs of its choice, whose names begin with its own.
    """
    found, waiting = {}, _inputs(info["input"])
    while waiting:
        name, kind, options = waiting.pop(0)
        found[name] = kind, options
        waiting[:0] = _inputs_of_choice(name, kind, options, values.get(name))
    return found


def widget_values(node: dict, info: dict) -> dict:
    """Widget name -> value. The values are saved by position, in the order the node declares its widgets."""
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        return {
            name: saved[name]
            for name, spec in declared_inputs(info, saved).items()
            if name in saved and _is_widget(*spec)
        }
    values, position, waiting = {}, 0, _inputs(info["input"])
    while waiting:
        name, kind, options = waiting.pop(0)
        if not _is_widget(kind, options):
            continue
        if position < len(saved):
            values[name] = saved[position]
            waiting[:0] = _inputs_of_choice(name, kind, options, saved[position])
        elif node["type"] in OPEN_ENDED:
            values[name] = options["default"] if "default" in options else options["options"][0]
            continue
        position += 1 + _extra_values(name, kind, options)
    if position != len(saved):
        raise Failure(
            f'node {node["id"]} ("{node["type"]}") has {len(saved)} saved widget values, but this server\'s '
            f"node takes {position}; open the workflow in this ComfyUI and save it again"
        )
    return values


def _inputs(declared: dict, prefix: str = "") -> list[tuple[str, str, dict]]:
    """(name, type, options) of each input, in declared order: required ones, then optional ones."""
    return [
        (prefix + name, "COMBO" if isinstance(spec[0], list) else spec[0], spec[1] if len(spec) > 1 else {})
        for group in ("required", "optional")
        for name, spec in (declared.get(group) or {}).items()
    ]


def _inputs_of_choice(name: str, kind: str, options: dict, choice) -> list[tuple[str, str, dict]]:
    """The same of what a dynamic combo adds for a choice."""
    if kind != DYNAMIC_COMBO:
        return []
    inputs = next((option["inputs"] for option in options["options"] if option["key"] == choice), {})
    return _inputs(inputs, f"{name}.")


def _is_widget(kind: str, options: dict) -> bool:
    return kind in WIDGET_TYPES and not options.get("forceInput")


def _extra_values(name: str, kind: str, options: dict) -> int:
    """How many values are saved after a widget's own: control_after_generate, an upload button."""
    control = options.get("control_after_generate", kind == "INT" and name in SEEDS)
    return bool(control) + any(options.get(upload) for upload in UPLOADS)


def _origin(link_id: int, nodes: dict, links: dict):
    """What a link delivers: [node id, slot], a constant, or None where a muted node or an open end leaves nothing."""
    origin_id, slot = links[link_id]
    node = nodes[origin_id]
    if node["type"] == "PrimitiveNode":
        return node["widgets_values"][0]
    if node["type"] == "Reroute":
        return _follow(node["inputs"][0], nodes, links)
    if node.get("mode", 0) == MUTED:
        return None
    if node.get("mode", 0) == BYPASSED:
        through = _bypassing_input(node, slot)
        return through and _follow(through, nodes, links)
    return [str(origin_id), slot]


def _follow(slot: dict, nodes: dict, links: dict):
    return None if slot.get("link") is None else _origin(slot["link"], nodes, links)


def _bypassing_input(node: dict, slot: int) -> dict | None:
    """The input a bypassed node passes to an output: the one at the same position if its type fits, else the first."""
    wanted, inputs = node["outputs"][slot]["type"], node.get("inputs") or []
    for candidate in inputs[slot : slot + 1] + inputs:
        if candidate["type"] == wanted or "*" in (candidate["type"], wanted):
            return candidate
    return None
