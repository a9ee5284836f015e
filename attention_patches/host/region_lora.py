"""LoRA files for the regions of a layout: the change each makes in the model, and in the text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.types import Layout
from ..methods.region_lora import RegionLora
from .install import install
from .layers.lora import Lora, lora_for, read_file, text_encoder_with
from .layers.streams import stream_of


def with_loras(
    model: Any,
    layout: Layout,
    settings: RegionLora,
    chosen: Mapping[int, tuple[str, str, float]],
    report: Callable[[str], None] | None = None,
) -> tuple:
    """(a clone of the MODEL, the LoRAs by name): regions from 0 -> (name, path, strength) of a file.

    A file is read once for all of its regions; `report`: see `install`, and told what masks do that follow the subject.
    Raises BoxwrightError for a file that is no LoRA for this model.
    """
    paths = dict((name, path) for name, path, _ in chosen.values())
    loras = {name: lora_for(model, read_file(path, name), name) for name, path in paths.items()}
    placed = {number: (loras[name], strength) for number, (name, _, strength) in chosen.items()}
    return install(model, layout, settings.edits(layout, placed, report), report), loras


def text_encoders(clip: Any, chosen: Mapping[int, tuple[str, str, float]]) -> dict[int, Any]:
    """CLIPs with the text encoder's part of LoRA files: regions from 0 -> (name, path, strength); none without one."""
    files = {path: read_file(path, name) for name, path, _ in chosen.values()}
    made = {
        (path, strength): text_encoder_with(clip, files[path], strength)
        for path, strength in {(path, strength) for _, path, strength in chosen.values() if strength}
    }
    found = {number: made.get((path, strength)) for number, (_, path, strength) in chosen.items()}
    return {number: encoder for number, encoder in found.items() if encoder is not None}


def without_place(model: Any, lora: Lora) -> int:
    """How many of the layers that a LoRA changes have no place in the picture (time, modulation)."""
    return sum(stream_of(name, model.model.diffusion_model) == "whole" for name in lora.layers)
