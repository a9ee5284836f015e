"""Inputs that several nodes share: same names, same ranges, same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from comfy_api.latest import io

from ...attention_patches.core.types import BoxwrightError, StepWindow
from . import checks

CATEGORY = "Boxwright"

Regions = io.Custom("BOXWRIGHT_REGIONS")  # tuple[Region, ...]
Layout = io.Custom("BOXWRIGHT_LAYOUT")  # attention_patches.core.types.Layout
Record = io.Custom("BOXWRIGHT_RECORD")  # attention_patches.methods.recorder.Records
# The host's own classes for these two exist only in recent versions; the type names are all that matters on a wire.
BoundingBoxes = io.Custom("BOUNDING_BOX")
Elements = io.Custom("ARRAY")


def model_input() -> io.Input:
    return io.Model.Input("model", tooltip="The model to patch. The original stays as it is.")


def layout_input() -> io.Input:
    return Layout.Input("layout", tooltip="From Layout Prompt. Wire the same node's positive output to the sampler.")


def record_input() -> io.Input:
    return Record.Input("record", tooltip="From Attention Recorder.")


def recorded_pictures_input() -> io.Input:
    return io.Image.Input(
        "images",
        tooltip="The pictures drawn with the recorder's model, all of the batch. They tell the node which run's record "
        "to take.",
    )


def size_input(name: str) -> io.Input:
    """`width` or `height`, 0 = not given."""
    return io.Int.Input(
        name,
        default=0,
        min=0,
        max=16384,
        optional=True,
        advanced=True,
        tooltip=f"The picture's {name} in pixels, where pixels matter. 0 = that of the Box Editor that the regions "
        "come from.",
    )


def given_size(width: int, height: int) -> tuple[int, int] | None:
    """The two of size_input; None where neither is given. Raises BoxwrightError where one is."""
    if bool(width) != bool(height):
        raise BoxwrightError(f"width {width} and height {height} belong together: give both, or 0 for both.")
    return (width, height) if width else None


def threshold_input() -> io.Input:
    return io.Float.Input(
        "threshold",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Of the mask, on the map stretched to 0 to 1: higher = smaller mask; 1 = nothing. 0 = chosen for each "
        "picture (Otsu's method).",
    )


def window_inputs(window: StepWindow) -> list[io.Input]:
    """`start` and `end` of a StepWindow."""
    return [
        io.Float.Input(
            "start",
            default=window.start,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="When it begins, as a fraction of the noise schedule: 0 = from the first step. It means the "
            "same for every scheduler and number of steps.",
        ),
        io.Float.Input(
            "end",
            default=window.end,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="When it stops, as a fraction of the noise schedule: 1 = until the last step, 0.5 = for the "
            "noisier half. Must lie above start.",
        ),
    ]


def seed_input(tooltip: str) -> io.Input:
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def feather_input(default: float) -> io.Input:
    """`feather` of the regions of a layout."""
    return io.Float.Input(
        "feather",
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Soft edge outside each region, as a fraction of the image's width and height: 0 = exact edge, 0.1 = "
        "fades out over a tenth of the image.",
    )


def guarded(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node with its inputs checked against its schema: the host checks what is typed in, not what is wired."""

    def execute(cls: type[io.ComfyNode], **inputs: Any) -> io.NodeOutput:
        return node.execute.__func__(cls, **_all_checked(cls.define_schema().inputs, inputs))

    return type(node.__name__, (node,), {"execute": classmethod(execute), "__module__": node.__module__})


def chosen(node: type[io.ComfyNode], **values: Any) -> bool | str:
    """What validate_inputs says of the dynamic combos of a node: True, or which choices there are.

    The host leaves a choice that it does not know out, and runs the node without that input.
    """
    for entry in node.define_schema().inputs:
        if isinstance(entry, io.DynamicCombo.Input) and entry.id in values:
            try:
                _option(entry, values[entry.id])
            except BoxwrightError as error:
                return str(error)
    return True


def _option(entry: io.DynamicCombo.Input, value: Any) -> io.DynamicCombo.Option:
    """The option that was chosen. Raises BoxwrightError."""
    options = {option.key: option for option in entry.options}
    key = value.get(entry.id) if isinstance(value, Mapping) else value
    return options[checks.one_of(key, entry.id, list(options))]


def _all_checked(entries: Iterable[io.Input], inputs: Any) -> dict[str, Any]:
    """Copies of inputs as the schema wants them, those of a dynamic combo's option too. Raises BoxwrightError."""
    result = dict(inputs)
    for entry in entries:
        value = inputs.get(entry.id)
        if isinstance(entry, io.DynamicCombo.Input):
            result[entry.id] = _all_checked(_option(entry, value).inputs, value)
        elif entry.id in inputs and not (value is None and entry.optional):
            result[entry.id] = _checked(entry, value)
    return result


def _checked(entry: io.Input, value: Any) -> Any:
    """The value if it is what the schema says; pictures in RGB. Raises BoxwrightError, naming the input."""
    match entry:
        case io.Int.Input():
            return checks.whole(value, entry.id, entry.min, entry.max)
        case io.Float.Input():
            return checks.ranged(value, entry.id, entry.min, entry.max)
        case io.Combo.Input():
            return checks.one_of(value, entry.id, entry.options)
        case io.String.Input():
            return checks.text(value, entry.id)
        case io.Image.Input():
            return checks.rgb(value, entry.id)
        case io.Mask.Input():
            return checks.masks(value, entry.id)
        case io.Latent.Input():
            return checks.latent(value, entry.id)
    return value
