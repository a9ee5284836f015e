"""The four layouts on which every method is measured, and boxes from photographs: data only.

Each box has the size at which the model draws the object when left alone, so that reaching it asks for the place only.
Every prompt names a background (otherwise it is random); no object is pink (the model draws it grey).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from .scorer import expected_object


@dataclass(frozen=True)
class Layout:
    """A prompt and its regions: (phrase, box) pairs, each phrase a part of the prompt, boxes in fractions."""

    name: str
    prompt: str
    regions: tuple

    @property
    def expected(self):
        """The regions as the scorer's ExpectedObject list."""
        return [expected_object(phrase, box) for phrase, box in self.regions]

    @property
    def background(self):
        """The background that the prompt names."""
        return self.prompt.removesuffix(" background").rsplit(" ", 1)[1]


LAYOUTS = (
    Layout(
        "one",
        "a large striped red heart on a gray background",
        (("large striped red heart", (0.48, 0.06, 0.46, 0.40)),),
    ),
    Layout(
        "left and right",
        "a red circle and a blue square on a white background",
        (
            ("red circle", (0.08, 0.36, 0.28, 0.28)),
            ("blue square", (0.64, 0.38, 0.24, 0.24)),
        ),
    ),
    Layout(
        "diagonal",
        "a large green triangle and an orange circle on a gray background",
        (
            ("large green triangle", (0.04, 0.55, 0.46, 0.41)),
            ("orange circle", (0.56, 0.06, 0.38, 0.38)),
        ),
    ),
    Layout(
        "three",
        "a red house, a green tree and a yellow star on a black background",
        (
            ("red house", (0.08, 0.10, 0.26, 0.29)),
            ("green tree", (0.66, 0.14, 0.25, 0.38)),
            ("yellow star", (0.34, 0.64, 0.29, 0.28)),
        ),
    ),
)


def _photographs():
    """Boxes of two objects in photographs (photograph_boxes.json), with things of the toy's world in their places.

    Colours, shapes and backgrounds go round; the size word is that whose objects are nearest to the box.
    """
    colors, backgrounds = ("red", "blue", "green", "orange", "purple", "yellow"), ("white", "gray", "black")
    shapes = ("circle", "square", "star", "heart", "house", "tree", "triangle", "moon")
    boxes = json.loads(Path(__file__).with_name("photograph_boxes.json").read_text(encoding="utf-8"))["layouts"]
    for number, (name, pair) in enumerate(boxes):
        phrases = []
        for part, (_, _, width, height) in enumerate(pair):
            side = (width * height) ** 0.5
            size = "small " if side < 0.25 else "large " if side > 0.38 else ""
            color = colors[(number + part * (1 + number // 6 % 5)) % 6]
            phrases.append(f"{size}{color} {shapes[(number * 3 + part * (1 + number // 8 % 7)) % 8]}")
        things = " and ".join(("an " if phrase.startswith("o") else "a ") + phrase for phrase in phrases)
        yield Layout(
            str(name),
            f"{things} on a {backgrounds[number % 3]} background",
            tuple((phrase, tuple(box)) for phrase, box in zip(phrases, pair)),
        )


PHOTOGRAPHS = tuple(_photographs())
