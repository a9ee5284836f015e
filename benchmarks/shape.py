"""A model and the size it is measured at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Shape:
    """One model and the size it runs at."""

    title: str
    config: str  # class in comfy.supported_models
    model: dict[str, Any]  # the host's model configuration
    latent: tuple[int, ...]  # (C, H, W) in latent cells, of films (C, T, H, W)
    tokens: int  # N: image tokens of the finest attention grid
    heads: int  # at that grid
    text: int = 77  # T: text tokens
    context: int = 768  # channels of a text token
    pooled: int | None = None  # channels of the pooled text; None where the model takes none
    cfg: float = 5.0  # 1 = the host evaluates the conditioned row alone
    repeats: int = 3  # patched evaluations of every method and number of regions
    extra: dict[str, Any] = field(default_factory=dict)  # what else its conditioning holds
    few: bool = False  # few methods are measured on it: those that tell what its family costs
