"""How often a run of 20 steps calls the model: counted on the toy model, never worked out.

A row is one picture, conditioned or not, in one call. Calls with a gradient run the model once more, backwards.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from methods import METHODS, Case, Method
from pack.attention_patches.core.types import Box, Region
from pack.attention_patches.host.samplers.loops import schedule
from pack.attention_patches.host.text.layout import encode_layout
from pack.nodes import arranged_noise, diff_edit, diff_mask, find_word, flow_edit, inversion

from pack.nodes import blended_latents, ilvr, repaint  # isort: skip

TESTS = Path(__file__).resolve().parent.parent / "tests"
STEPS = 20
SIDE = 16  # latent cells: how often the model is called does not depend on the size
CFG = 5.0
PROMPT = "a red circle and a blue square and a green star and a yellow heart on a white background"
TARGET = "a pink circle and a blue square and a green star and a yellow heart on a white background"
PHRASES = ("red circle", "blue square", "green star", "yellow heart")
MASK = torch.zeros(1, SIDE * 8, SIDE * 8).index_fill(2, torch.arange(SIDE * 4), 1.0)


@dataclass
class Count:
    """Of one run."""

    calls: int = 0
    rows: int = 0
    with_gradient: int = 0  # calls of them


def counted(methods: list[Method]) -> Iterator[tuple[str, dict[str, int]]]:
    """(name, Count) of each method."""
    if not methods:
        return
    toy = _toy()
    for method in methods:
        with counting(toy.model) as count:
            _run(toy, method)
        yield method.name, asdict(count)


@contextmanager
def counting(model: Any) -> Iterator[Count]:
    """Counts the calls of a MODEL's network, from whoever they come."""
    count = Count()

    def note(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["x"]
        count.calls += 1
        count.rows += x.shape[0]
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        count.with_gradient += torch.is_grad_enabled() and any(value.requires_grad for value in tensors)

    hook = model.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield count
    finally:
        hook.remove()


@dataclass(frozen=True)
class Toy:
    """The toy model, a layout of four regions with its conditioning, a picture and its latent."""

    sampling: Any
    model: Any
    clip: Any
    vae: Any
    positive: list
    layout: Any
    image: torch.Tensor
    latent: torch.Tensor

    def text(self, number: int) -> list:
        return self.sampling.encode(self.clip, f"a {('red', 'green', 'blue')[number % 3]} circle")

    @property
    def negative(self) -> list:
        return self.sampling.encode(self.clip, "")

    def draw(self, model: Any, positive: list, pictures: int = 1, sampler: str | Any = "euler", **options: Any) -> None:
        """A run of the host's sampler."""
        loop = comfy.samplers.ksampler(sampler) if isinstance(sampler, str) else sampler
        latent = self.latent.repeat(pictures, 1, 1, 1)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
        comfy.sample.sample_custom(
            model,
            noise,
            CFG,
            loop,
            schedule(model, "normal", STEPS, 1.0),
            positive,
            self.negative,
            latent,
            disable_pbar=True,
            seed=1,
            **options,
        )


def _toy() -> Toy:
    package = types.ModuleType("toyworld")
    package.__path__ = [str(TESTS / "toyworld")]
    sys.modules.setdefault("toyworld", package)
    import utils  # noqa: F401 - as the host's main.py does: nodes.py of old hosts puts another utils before it
    from toyworld import sampling

    model, clip, vae = sampling.load()
    half = [(x, y) for y in (0.0, 0.5) for x in (0.0, 0.5)]
    regions = [Region(phrase, Box(*corner, 0.5, 0.5)) for phrase, corner in zip(PHRASES, half, strict=True)]
    positive, layout = encode_layout(clip, PROMPT, regions, False)
    latent = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return Toy(sampling, model, clip, vae, positive, layout, vae.decode(latent).float(), latent)


def _run(toy: Toy, method: Method) -> None:
    if method.patch is not None:
        patched = method.patch(Case(toy.model, toy.layout, toy.text, toy.latent))
        pair = [[row.repeat(method.rows, 1, 1), values] for row, values in toy.positive]
        toy.draw(patched, pair, method.rows)
    else:
        LOOPS[method.name](toy)


def defaults(node: Any, **changes: Any) -> dict[str, Any]:
    """The inputs of a node that have a default, with `changes`."""
    inputs = node.define_schema().inputs
    return {entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None} | changes


def _texts(toy: Toy) -> tuple[list, list]:
    return toy.sampling.encode(toy.clip, PROMPT), toy.sampling.encode(toy.clip, TARGET)


def _arrange(toy: Toy) -> None:
    node = arranged_noise.BoxwrightArrangeNoise
    noise = comfy_noise()
    node.execute(noise, toy.model, toy.positive, toy.layout, {"samples": toy.latent}, **defaults(node))


def comfy_noise() -> Any:
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    return Noise_RandomNoise(1)


def _diff_mask(toy: Toy) -> None:
    node = diff_mask.BoxwrightDiffMask
    node.execute(toy.model, *_texts(toy), **defaults(node), latent={"samples": toy.latent})


def _find_word(toy: Toy) -> None:
    node = find_word.BoxwrightFindWord
    inputs = defaults(node, prompt=PROMPT, phrase=PHRASES[0])
    node.execute(toy.model, toy.clip, **inputs, latent={"samples": toy.latent})


def _diff_edit(toy: Toy) -> None:
    node = diff_edit.BoxwrightDiffEdit
    inputs = defaults(node, steps=STEPS, paste=False)
    node.execute(toy.model, toy.vae, toy.image, *_texts(toy), toy.negative, **inputs)


def _flow(name: str) -> Callable[[Toy], None]:
    def run(toy: Toy) -> None:
        node = flow_edit.BoxwrightFlowEdit
        inputs = defaults(node, steps=STEPS, method=name, paste=False)
        node.execute(toy.model, toy.vae, toy.image, *_texts(toy), toy.negative, **inputs)

    return run


def _masked(node: Any) -> Callable[[Toy], None]:
    """A sampler with its default settings and a mask."""
    return lambda toy: toy.draw(toy.model, toy.positive, sampler=node.execute(**defaults(node), mask=MASK).result[0])


def _direct_inversion(toy: Toy) -> None:
    source, _ = _texts(toy)
    sigmas = schedule(toy.model, "normal", STEPS, 1.0)
    node = inversion.BoxwrightInvert
    found = node.execute(toy.model, source, {"samples": toy.latent}, sigmas, **defaults(node))
    sampler = inversion.BoxwrightDirectInversionSampler.execute(found.result[0]).result[0]
    toy.draw(toy.model, source, sampler=sampler)


def _prompt_fit(toy: Toy) -> None:
    from pack.attention_patches.host.prompt_fit import fit_prompt
    from pack.attention_patches.samplers.prompt_fit import PromptFit

    fit_prompt(toy.model, toy.latent, _texts(toy)[1], PromptFit(), seed=0)


LOOPS: dict[str, Callable[[Toy], None]] = {
    "arrange a noise": _arrange,
    "difference mask": _diff_mask,
    "find word": _find_word,
    "diffedit": _diff_edit,
    "flow edit, FlowEdit": _flow("FlowEdit"),
    "flow edit, FlowAlign": _flow("FlowAlign"),
    "flow edit, Uni-Edit": _flow("Uni-Edit"),
    "repaint": _masked(repaint.BoxwrightRePaint),
    "blended latents": _masked(blended_latents.BoxwrightBlendedLatents),
    "ilvr": _masked(ilvr.BoxwrightILVR),
    "direct inversion": _direct_inversion,
    "prompt fit": _prompt_fit,
}
assert set(LOOPS) == {method.name for method in METHODS if method.patch is None}
