"""What transformers of every kind have in common: classes by name, tokens, blocks that another pack replaces."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..attention.calls import IncompatiblePatchError, ModelCall, names_of

_REPLACED, _REACHED = "blocks replaced", "layers reached"  # keys in ModelCall.notes


def is_exactly(thing: Any, name: str) -> bool:
    """Whether the class is the host's of this name in `comfy`, and not one derived from it.

    By name, because older hosts lack the newer models.
    """
    cls = type(thing)
    return f"{cls.__module__}.{cls.__qualname__}" == f"comfy.{name}"


def patch_of(network: Any) -> int:
    """Latent cells per token side."""
    size = network.patch if hasattr(network, "patch") else getattr(network, "patch_size", None)
    size = getattr(network, "patch_spatial", 1) if size is None else size
    return size if isinstance(size, int) else size[-1]


def tokens_of(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Tokens down and across: the model fills up the last ones."""
    return -(-size[0] // patch), -(-size[1] // patch)


def filled(count: int, multiple: int) -> int:
    """The least multiple that is no less than `count`."""
    return -(-count // multiple) * multiple


def note_replaced(call: ModelCall, transformer_options: Mapping[str, Any]) -> None:
    """Remember which blocks another pack replaces in all of the run."""
    slots = transformer_options.get("patches_replace", {}).get("dit", {})
    call.notes[_REPLACED] = {slot: patch for slot, patch in slots.items() if id(patch) in call.others.lasting}


def note_reached(call: ModelCall, layer: str) -> None:
    """Remember that a block's attention came by."""
    call.notes.setdefault(_REACHED, set()).add(layer)


def refuse_lost(call: ModelCall, name: str, layers: Collection[str], announced: bool) -> None:
    """A block whose attention never came by is one that another pack computes, or leaves out, all run long."""
    missing = set(layers) - call.notes.get(_REACHED, set())
    replaced = call.notes[_REPLACED]
    if announced:
        lost = [patch for slot, patch in replaced.items() if f"{slot[0].split('_')[0]}.{slot[1]}" in missing]
    else:  # counted, so that the last ones are missing, whichever was replaced
        lost = list(replaced.values()) if missing else []
    if lost:
        raise IncompatiblePatchError(
            f"Another patch ({names_of(lost)}) replaces blocks of {name} and does not call the host's "
            "attention with its options, so Boxwright's edit would be lost there. Remove that patch."
        )


def changed(layer: str, shape: tuple[int, int, int], expected: str) -> IncompatiblePatchError:
    """The error for an attention with other tokens or rows than the model makes."""
    rows, queries, keys = shape
    return IncompatiblePatchError(
        f"Another patch changed the attention of {layer}: {queries} queries and {keys} keys in {rows} rows instead of "
        f"{expected}. Boxwright cannot tell which token lies where; remove the patch that merges or adds tokens or "
        "rows."
    )


def other_text(name: str, length: int, own: int) -> IncompatiblePatchError:
    """The error for a text of another length than the prompt's in a model that never repeats one."""
    return IncompatiblePatchError(
        f"Another patch gives {name} {length} text tokens instead of the prompt's {own}, and Boxwright cannot tell "
        "which are the prompt's. Remove the patch that adds, repeats or merges text."
    )
