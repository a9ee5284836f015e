"""Imagic's text embedding (Kawar et al., arXiv 2210.09276): the prompt that a model would have drawn a picture from.

Its first step moves the embedding of the target text until the model predicts the picture's noise with it; its third
goes from there towards the text again. Its second, which trains the model's weights on the picture, is not here.
Departures: noise levels are spread evenly over the schedule instead of drawn one by one, and the loss is that of the
noise for every kind of model, |picture - prediction|^2 / sigma^2 (for v and flow models too).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.types import BoxwrightError, StepWindow, check_range

MAX_STEPS = 5000
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, lie as evenly as any sequence does, wherever it stops
MEASURED = 8  # noise draws, always the same, by which a fit is judged before and after


@dataclass(frozen=True)
class PromptFit:
    """Settings."""

    steps: int = 100  # gradient steps (Imagic: 100)
    learning_rate: float = 2e-3  # of Adam, in the units of the embedding (Imagic: 1e-3)
    window: StepWindow = StepWindow()  # noise levels that count, as shares of the schedule
    towards: float = 0.0  # of the way back to the text: 0 = the fitted prompt, 1 = the text; Imagic: 0.6 to 0.8

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, MAX_STEPS)
        if not 0.0 < self.learning_rate <= 1.0:
            raise BoxwrightError(f"learning_rate is {self.learning_rate:g}; choose a number above 0, up to 1.")
        check_range("towards_text", self.towards, 0.0, 2.0)

    def moments(self, seed: int) -> Iterator[float]:
        """Places in the schedule, one for each step, without end."""
        place = float(torch.rand((), generator=torch.Generator("cpu").manual_seed(seed)))
        while True:
            yield self.window.start + (self.window.end - self.window.start) * place
            place = (place + GOLDEN) % 1.0

    def blended(self, fitted: Tensor, text: Tensor) -> Tensor:
        """The fitted embedding, moved `towards` the text's, in its dtype; beyond it above 1."""
        return torch.lerp(fitted.float(), text.float(), self.towards).to(text.dtype)


def noise_loss(clean: Tensor, picture: Tensor, noise_level: float) -> Tensor:
    """The mean squared error of the predicted noise, [] (in flow models the velocity), from the predicted picture."""
    return ((clean.float() - picture.float()) / noise_level).square().mean()
