"""Which run of a sampler drew the pictures that a node is given: asked of the graph that the host is working through.

The host keeps what nodes returned by what went into them, for one prompt or many (--cache-classic, --cache-lru,
--cache-ram, --cache-none), so that pictures may be much older than the last run. What went into a node is therefore
its name here too: nodes of equal names, in this prompt or an earlier one, return the same. A node that may return
something else each time has a name of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import nodes as host_nodes
from comfy_execution.graph_utils import is_link
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from ...attention_patches.methods.recorder import AttentionRecord, GraphPlace, Records

# Types of links that carry no picture, so that a picture is not found where it only led to a mask or a prompt of
# another. Types unknown here (pipes of other packs) may carry one.
NO_PICTURES = {"BOOLEAN", "CLIP", "CLIP_VISION", "CLIP_VISION_OUTPUT", "CONDITIONING", "CONTROL_NET", "FLOAT", "GLIGEN"}
NO_PICTURES |= {"GUIDER", "HOOKS", "INT", "MASK", "MODEL", "NOISE", "SAMPLER", "SIGMAS", "STRING", "STYLE_MODEL", "VAE"}


def record_of(records: Records, pictures: str) -> AttentionRecord:
    """The record of the pictures at the input `pictures` of the node at work. Raises BoxwrightError."""
    graph = _Graph.at_work()
    if graph is None:
        return records.of(None)
    link = graph.inputs(graph.node)[pictures]
    # Without a link the pictures came as a value into a node that this one was expanded from.
    before = {link[0], *graph.before(link[0])} if is_link(link) else graph.before_around(graph.node)
    mixed = {other for node in before if graph.takes_lists(node) for other in graph.before(node)}
    return records.of(set(map(graph.name, before)), graph.index, set(map(graph.name, mixed)))


def place() -> GraphPlace | None:
    """Where in the graph the host is; None where no host is working through one."""
    graph = _Graph.at_work()
    if graph is None:
        return None
    return GraphPlace(
        graph.name(graph.node),
        frozenset(map(graph.name, graph.around(graph.node))),
        frozenset(map(graph.name, graph.before(graph.node) | graph.before_around(graph.node))),
        graph.index,
        (graph.prompt, graph.node),
    )


class _Graph:
    """The prompt that is being worked through, and the node at work."""

    def __init__(self, prompt: str, node: str, index: int | None, graph: Any) -> None:
        self.prompt, self.node, self.index = prompt, node, index or 0
        self._graph = graph
        self._names: dict[str, str] = {}

    @classmethod
    def at_work(cls) -> _Graph | None:
        context, state = get_executing_context(), get_progress_state()
        if context is None or state.prompt_id != context.prompt_id:
            return None
        return cls(context.prompt_id, context.node_id, context.list_index, state.dynprompt)

    def inputs(self, node: str) -> dict[str, Any]:
        return self._graph.get_node(node)["inputs"]

    def name(self, node: str) -> str:
        """A digest of the node's type and values, of what the host found changed outside, and of all nodes before."""
        if node not in self._names:
            entry = self._graph.get_node(node)
            values = [
                [key, "link", self.name(value[0]), value[1]] if is_link(value) else [key, value]
                for key, value in sorted(entry["inputs"].items())
            ]
            whole = [entry["class_type"], self._changed(node), values]
            text = json.dumps(whole, sort_keys=True, default=repr)
            self._names[node] = hashlib.sha256(text.encode()).hexdigest()
        return self._names[node]

    def _changed(self, node: str) -> str:
        """What the host found changed outside; the node itself where it may be another thing each time."""
        entry = self._graph.get_node(node)
        kind = host_nodes.NODE_CLASS_MAPPINGS[entry["class_type"]]
        asked = repr(entry.get("is_changed"))
        unasked = "is_changed" not in entry and _may_change(kind)  # --cache-none asks nobody
        return node if unasked or "nan" in asked or getattr(kind, "NOT_IDEMPOTENT", False) else asked

    def takes_lists(self, node: str) -> bool:
        """Whether the node is given all results of those before it at once."""
        kind = host_nodes.NODE_CLASS_MAPPINGS[self._graph.get_node(node)["class_type"]]
        return bool(getattr(kind, "INPUT_IS_LIST", False))

    def before_around(self, node: str) -> set[str]:
        """The nodes whose pictures go into those that this one was expanded from."""
        return {other for outer in self.around(node) for other in self.before(outer)}

    def before(self, node: str) -> set[str]:
        """The nodes whose pictures go into this one."""
        found: set[str] = set()
        open_ = [node]
        while open_:
            new = set(self._sources(open_.pop())) - found
            found |= new
            open_ += new
        return found

    def _sources(self, node: str) -> Iterator[str]:
        for value in self.inputs(node).values():
            if is_link(value) and self._graph.has_node(value[0]):
                kinds = host_nodes.NODE_CLASS_MAPPINGS[self._graph.get_node(value[0])["class_type"]].RETURN_TYPES
                kind = kinds[value[1]] if value[1] < len(kinds) else "*"
                if not (isinstance(kind, str) and kind in NO_PICTURES):
                    yield value[0]

    def around(self, node: str) -> Iterator[str]:
        """The nodes that this one was expanded from."""
        while (node := self._graph.get_parent_node_id(node)) is not None:
            yield node


def _may_change(kind: type) -> bool:
    """Whether the host asks nodes of this kind if something outside has changed: of the first and the third API."""
    own = [base for base in kind.__mro__ if not base.__module__.startswith("comfy_api")]
    return any("IS_CHANGED" in vars(base) or "fingerprint_inputs" in vars(base) for base in own)
