"""Which methods act on which models, from what the models' families declare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .families import adapter_for
from .families.base import Adapter


@dataclass(frozen=True)
class Method:
    """A method that edits attention, or follows a gradient through the model, as users know it."""

    name: str
    why_not: Callable[[Adapter], str]  # what it needs and the model lacks; "" where it acts


def _acts(adapter: Adapter) -> str:
    return ""


def _needs_texts(adapter: Adapter) -> str:
    if not adapter.own_text:
        return "the model makes more of a prompt than its conditioning holds"
    if adapter.text == "separate" or adapter.beside is not None:
        return ""
    return "how further texts stand beside the prompt is not known"


def _needs_gradients(adapter: Adapter) -> str:
    return "" if adapter.gradients else "no gradients"


def _needs_a_bottleneck(adapter: Adapter) -> str:
    return "" if adapter.bottleneck else "no UNet"


METHODS = (
    Method("Rectified Attention", _acts),
    Method("Reweight Words", _acts),
    Method("Prompt to Prompt", _acts),
    Method("Region Prompt: couple", _needs_texts),
    Method("Region Prompt: dense, bound", _acts),
    Method("Box Constraint", _needs_gradients),
    Method("Loss Guidance: through model", _needs_gradients),
    Method("Attention Recorder", _acts),
    Method("Arranged Noise", _acts),
    Method("H-Space Edit", _needs_a_bottleneck),
)


def takes_own_phrases(model: Any) -> bool:
    """Whether a phrase as it is encoded alone can stand in for a part of this MODEL's prompt."""
    return adapter_for(model).own_text


def supports(model: Any) -> str:
    """What acts on this MODEL, in a sentence. Raises UnsupportedModelError where nothing does."""
    adapter = adapter_for(model)
    reasons = {method.name: method.why_not(adapter) for method in METHODS}
    sentence = f"{adapter.name}: {', '.join(name for name, reason in reasons.items() if not reason)}"
    lacking = [f"{name} ({reason})" for name, reason in reasons.items() if reason]
    return f"{sentence}. Not: {'; '.join(lacking)}." if lacking else f"{sentence}."
