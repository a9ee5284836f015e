"""FlowEdit, FlowAlign and Uni-Edit as a SAMPLER of the host, and in one run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import comfy.model_patcher
import comfy.samplers
from comfy.sampler_helpers import convert_cond
from torch import Tensor

from ...core.masks import check_white, on_latent
from ...core.types import BoxwrightError, check_range
from ...samplers.flow_align import FlowAlign
from ...samplers.flow_edit import FlowEdit
from ...samplers.noise import Denoiser
from ...samplers.straight import Prompts
from ...samplers.uni_edit import UniEdit
from ..run.run import RUN, Run
from .loops import checked_sigmas, logged, progress_bar, run, scene_of

METHODS = ("FlowEdit", "FlowAlign", "Uni-Edit")
UNREAD = {"FlowEdit": (), "FlowAlign": ("source_cfg", "finish"), "Uni-Edit": ("source_cfg", "draws", "finish")}
SOURCE = "boxwright_source"  # of the source prompt among a run's conditionings
NEEDS_LOADING = ("control", "gligen", "hooks", "additional_models")  # what the host loads before a sampler starts


@dataclass(frozen=True)
class FlowEditing:
    """Settings. The guidance of the run, `cfg`, is how much further the edit goes than its prompt alone:

    FlowEdit: classifier-free guidance of the target; FlowAlign: w, away from the source prompt; Uni-Edit: omega.
    """

    method: Literal["FlowEdit", "FlowAlign", "Uni-Edit"] = "FlowEdit"
    source_cfg: float = 1.0  # guidance of the source prompt, FlowEdit only
    draws: int = 1  # of noise in each step, averaged; Uni-Edit has none
    finish: float = 0.0  # share of the steps that are ordinary sampling, FlowEdit only

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BoxwrightError(f'There is no method "{self.method}"; choose one of {", ".join(METHODS)}.')
        check_range("source_cfg", self.source_cfg, 1.0, 100.0)
        self.at(1.0)

    def at(self, cfg: float) -> FlowEdit | FlowAlign | UniEdit:
        """The method at the guidance of a run. Raises BoxwrightError."""
        if self.method == "FlowEdit":
            return FlowEdit(self.draws, self.finish)
        return FlowAlign(self.draws) if self.method == "FlowAlign" else UniEdit(cfg)

    def unread(self) -> list[str]:
        """The settings that are not as they come, and that the method makes no use of."""
        unused = UNREAD[self.method]
        return [each.name for each in fields(self) if each.name in unused and getattr(self, each.name) != each.default]

    def evaluations(self, steps: int, cfg: float) -> int:
        """Of the network, for one picture, where each prompt counts."""
        calls = self.at(cfg).calls(steps)
        source = 2 if self.method == "FlowEdit" and self.source_cfg != 1.0 else 1
        target = 2 if self.method != "Uni-Edit" and cfg != 1.0 else 1
        return source * calls.source + target * calls.target


def flow_edit_sampler(source: list, settings: FlowEditing, mask: Tensor | None = None) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that turns the sampler node's picture, which CONDITIONING `source` describes, into the positive prompt.

    It starts from the picture, whatever noise it is given. mask: MASK [H, W] or [M, H, W]; without one, the latent's
    own noise mask counts, without either the whole picture. Raises BoxwrightError for a source without text, for a mask
    without anything white, when it runs on a schedule that does not end in the picture, on a latent that is none, or
    for a guider that the method cannot use.
    """
    check_text(source, "source")
    if mask is not None:
        check_white(mask)  # refused now, not when sampling starts

    def edit(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any = None, **unused: Any) -> Tensor:
        guider = model.inner_model
        checked_sigmas(guider.inner_model.model_sampling, sigmas, whole=True)
        scene = scene_of(model, x, extra_args, mask, whole=True)
        if SOURCE not in guider.conds:
            guider.conds[SOURCE] = _prepared(guider, source, x, extra_args, scene.source)
        prompts = _prompts(guider, settings, extra_args)
        return settings.at(_strength(guider, settings)).sample(prompts, sigmas, scene, callback)

    return logged(settings.method, edit)


def edit_by_flow(
    model: Any,
    samples: Tensor,
    source: list,
    target: list,
    negative: list,
    settings: FlowEditing,
    cfg: float,
    sigmas: Tensor,
    mask: Tensor | None,
    seed: int,
) -> tuple[Tensor, int]:
    """The sampler above in one run: latents [B, C, ..., h, w], and the evaluations of the network for all pictures."""
    sampler = flow_edit_sampler(source, settings, mask)
    if mask is not None:
        on_latent(mask, samples.shape)  # refused now, not when sampling starts
    conds = {"positive": target, "negative": negative, SOURCE: source}
    steps = progress_bar(model, len(sigmas) - 1)
    return run(model, conds, cfg, samples, sampler.sampler_function, sigmas, seed, callback=steps)


def check_text(prompt: list, name: str) -> None:
    """Raises BoxwrightError for a CONDITIONING that says nothing, as of models without text, or not all the time."""
    if not any(text is not None and text.numel() for text, _ in prompt):
        raise BoxwrightError(
            f"{name} holds no text, and an edit needs one that says what the picture shows. Wire a text encode node, "
            "and use a text-to-image model."
        )
    reached = 0.0
    for start, end in sorted((said.get("start_percent", 0.0), said.get("end_percent", 1.0)) for _, said in prompt):
        if start > reached:
            break
        reached = max(reached, end)
    if reached < 1.0:
        raise BoxwrightError(
            f"{name} says nothing of the picture at {reached:g} of the noise schedule, and an edit compares both "
            "prompts in every step. Remove ConditioningSetTimestepRange, or combine it with a text for the rest."
        )


def _prepared(guider: Any, source: list, x: Tensor, extra_args: dict, picture: Tensor) -> list[dict]:
    """The CONDITIONING as the host prepares those of a run, which has begun without it. Raises BoxwrightError."""
    for _, said in source:
        for key in NEEDS_LOADING:
            if said.get(key) is not None:
                raise BoxwrightError(
                    f'The source prompt carries "{key}", which has to be loaded before the sampler starts. Leave it '
                    "out of the source, or use the node Flow Edit, which does all in one run."
                )
    conds = comfy.samplers.process_conds(
        guider.inner_model, x, {SOURCE: convert_cond(source)}, x.device, picture, None, extra_args.get("seed")
    )
    running = extra_args["model_options"]["transformer_options"].get(RUN)
    if running is not None:
        running.adopt(conds)
    return conds[SOURCE]


def _strength(guider: Any, settings: FlowEditing) -> float:
    """The guidance of a run. Raises BoxwrightError where the guider has none of its own and the method needs it."""
    plain = type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
    if settings.method != "FlowEdit" and not plain:
        raise BoxwrightError(
            f"{settings.method} guides from the source prompt to the target, and this guider ({type(guider).__name__}) "
            "combines its prompts in a way of its own. Use Sampler Custom, CFG Guider or Basic Guider, or FlowEdit."
        )
    return float(guider.cfg)


def _prompts(guider: Any, settings: FlowEditing, extra_args: dict) -> Prompts:
    """The two prompts of a run, as the method asks them.

    The target is asked as a sampler would, through all that other nodes put around it; the source beside it.
    """
    options, seed = extra_args["model_options"], extra_args.get("seed")
    aside = comfy.model_patcher.create_model_options_clone(options)
    aside["transformer_options"][Run.ASIDE] = True
    shown = guider.conds[SOURCE]
    guided = settings.method == "FlowEdit" and settings.source_cfg != 1.0
    empty = guider.conds.get("negative")
    if guided and empty is None:
        raise BoxwrightError(
            f"source_cfg {settings.source_cfg:g} needs a negative prompt, and this guider has none. Set it to 1, or "
            "use CFG Guider."
        )

    running: Run | None = options["transformer_options"].get(RUN)

    def source(x: Tensor, sigma: float) -> Tensor:
        if running is not None:
            running.begins(x)
        return comfy.samplers.sampling_function(
            guider.inner_model,
            x,
            x.new_full((x.shape[0],), sigma),
            empty if guided else None,
            shown,
            settings.source_cfg if guided else 1.0,
            model_options=aside,
            seed=seed,
        )

    def target(x: Tensor, sigma: float) -> Tensor:
        return guider(x, x.new_full((x.shape[0],), sigma), model_options=options, seed=seed)

    if settings.method == "FlowAlign":
        return Prompts(source, _with(guider, target, {"conds": {**guider.conds, "negative": shown}}))
    if settings.method == "Uni-Edit":
        return Prompts(source, _with(guider, target, {"cfg": 1.0}))
    return Prompts(source, target)


def _with(guider: Any, ask: Denoiser, changes: dict[str, Any]) -> Denoiser:
    """The same, with other attributes of the guider while it is asked."""

    def changed(x: Tensor, sigma: float) -> Tensor:
        kept = {name: getattr(guider, name) for name in changes}
        try:
            for name, value in changes.items():
                setattr(guider, name, value)
            return ask(x, sigma)
        finally:
            for name, value in kept.items():
                setattr(guider, name, value)

    return changed
