"""What nodes that make losses on pictures share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...attention_patches.samplers.color_loss import WeightedSum, added

Loss = io.Custom("BOXWRIGHT_LOSS")  # attention_patches.core.pictures.PictureLoss
MOST = 100.0


def sum_inputs() -> list[io.Input]:
    """`weight` and `more`."""
    return [
        io.Float.Input(
            "weight",
            default=1.0,
            min=-MOST,
            max=MOST,
            step=0.05,
            tooltip="How much this loss counts beside others: 0 = not at all, below 0 = away from it.",
        ),
        Loss.Input("more", optional=True, tooltip="Another loss, which is added to this one."),
    ]


def loss_output() -> io.Output:
    return Loss.Output("loss", tooltip="For Loss Guidance, or for `more` of another loss.")


def summed(loss: Any, weight: float, more: Any) -> WeightedSum:
    """The loss times its weight, and `more` if something is wired there."""
    return added(loss, weight, () if more is None else (more,))
