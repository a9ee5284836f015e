"""Latent guides: the gradient of a loss on attention maps by the latent, and where a sampler lets itself be moved.

Twice as costly as it must be is what one gets by differentiating a whole model call: here only the layout's own rows
are run, without ControlNets and other packs' wrappers, and the run stops after the last attention layer that the loss
reads. Samplers keep their latent to themselves, so the one that they hand to the model is changed in place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..types import AttentionEdit, AttentionLoss, AttentionSite, BoxwrightError, LatentGuide, UnsupportedModelError
from .differentiable import differentiable
from .family import Extra, IncompatiblePatchError, Installed

if TYPE_CHECKING:
    from .run import Run

Loss = Callable[[Tensor, AttentionSite], AttentionLoss]

COARSEST = 4  # latent cells under a token: 32 pixels, the grid that the papers read at 512 and 1024 pixels
HALF_SCALE = 1024.0  # gradients in 16 bits are small: the loss is scaled up, and the gradient down again
# Evaluations inside a step, after the one at its start, unless the step ends at 0. Their sigma may be that of the next
# step, and what they move would be thrown away.
STAGES = {
    "sample_heun": 1,
    "sample_dpm_2": 1,
    "sample_dpm_2_ancestral": 1,
    "sample_dpmpp_2s_ancestral": 1,
    "sample_dpmpp_2s_ancestral_cfg_pp": 1,
    "sample_dpmpp_sde": 1,
    "sample_dpmpp_sde_gpu": 1,
    "sample_exp_heun_2_x0": 1,
    "sample_exp_heun_2_x0_sde": 1,
    "sample_seeds_2": 1,
    "sample_seeds_3": 2,
}
# As many as it likes, the first of them at the next sigma.
TRIES_THE_NEXT = {"sample_heunpp2"}
# Follows sigmas of its own.
FREE_STEPS = {"dpm_fast_function"}
# These go on from a latent other than the one that the model is given.
KEEPS_ITS_LATENT = {
    "sample_unipc", "sample_unipc_bh2", "sample_sa_solver", "sample_sa_solver_pece", "dpm_adaptive_function",
}  # fmt: skip


class _Enough(Exception):
    """The last layer that is needed has been read."""


# --- attention maps ---------------------------------------------------------------------------------------------------


class _MapReader:
    """The attention maps of one conditioning entry on one grid."""

    def __init__(self, level: int, last: str | None) -> None:
        self.level, self.last = level, last
        self.parts: dict[str, list[Tensor]] = {}
        self.sites: dict[str, AttentionSite] = {}

    def edit(self) -> AttentionEdit:
        return AttentionEdit("maps", "read", self._read, where=lambda site: site.level == self.level)

    def _read(self, probs: Tensor, site: AttentionSite) -> None:
        self.sites[site.layer] = site
        self.parts.setdefault(site.layer, []).append(probs.mean(dim=1))
        if site.layer == self.last and site.queries.stop == site.grid[0] * site.grid[1]:
            raise _Enough

    def maps(self) -> tuple[Tensor, AttentionSite]:
        """[B, T, h, w], the mean over heads and layers, and where they are from.

        A patch may shrink the features of some layers (Deep Shrink): then those of the finest grid count.
        """
        finest = max(self.sites.values(), key=lambda site: site.grid[0] * site.grid[1])
        layers = [torch.cat(self.parts[name], dim=1) for name, s in self.sites.items() if s.grid == finest.grid]
        return torch.stack(layers).mean(dim=0).transpose(1, 2).unflatten(2, finest.grid), finest


def map_level(factors: tuple[int, ...], latent: tuple[int, int], smallest_side: int) -> int:
    """Which attention grid a loss reads: the coarsest that has `smallest_side` cells and shows 32 pixels per cell.

    `factors` are latent cells per token, finest first. 16 x 16 for SD 1.5 at 512 and 32 x 32 for SDXL at 1024 pixels;
    the finest grid where none is fine enough.
    """
    fine = [f for f in factors if f <= COARSEST and min(latent) // f >= smallest_side]
    return factors.index(max(fine)) if fine else 0


# --- the gradient -----------------------------------------------------------------------------------------------------


@dataclass
class Gradient:
    """By the latent, float32 in its shape, and the loss it belongs to."""

    values: Tensor
    total: Tensor  # [B]
    per_phrase: Tensor  # [B, phrases]
    phrases: tuple[str, ...]
    notes: tuple[str, ...]


def loss_gradient(
    run: Run, item: Installed, loss: Loss, x: Tensor, sigma: Tensor, options: dict[str, Any]
) -> Gradient | None:
    """d loss / d x for the guide's conditioning, row by row; None where that takes no part at this sigma.

    After running out of memory once, the rows are taken one at a time.
    """
    parts = []
    for entry in _originals(run.conditioning(item.layout)):
        try:
            parts.append(_entry_gradient(run, item, loss, entry, x, sigma, options))
        except Exception as error:
            if x.shape[0] == 1 or not comfy.model_management.is_oom(error):
                raise
            comfy.model_management.soft_empty_cache()
        else:
            continue
        rows = [
            _entry_gradient(run, item, loss, _row(entry, i, x.shape[0]), x[i : i + 1], sigma[i : i + 1], options)
            for i in range(x.shape[0])
        ]
        parts.append(None if rows[0] is None else _joined(rows))
    found = [part for part in parts if part is not None]
    if not found:
        return None
    worst = torch.stack([part.per_phrase for part in found]).amax(dim=0)
    values, total = (sum(getattr(part, name) for part in found) / len(found) for name in ("values", "total"))
    return Gradient(values, total, worst, found[0].phrases, found[0].notes)


def _originals(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the copies that the host makes of an entry for the areas of the other side: those share its text."""
    return list({id(entry["model_conds"].get("c_crossattn", entry)): entry for entry in reversed(entries)}.values())


def _joined(rows: list[Gradient]) -> Gradient:
    fields = [torch.cat([getattr(row, name) for row in rows]) for name in ("values", "total", "per_phrase")]
    return Gradient(*fields, rows[0].phrases, rows[0].notes)


def _row(entry: dict[str, Any], row: int, batch: int) -> dict[str, Any]:
    """The conditioning of one row of the batch."""
    inputs = {}
    for name, cond in entry["model_conds"].items():
        value = getattr(cond, "cond", None)
        per_row = torch.is_tensor(value) and value.ndim > 0 and value.shape[0] == batch
        inputs[name] = cond._copy_with(value[row : row + 1]) if per_row else cond
    return {**entry, "model_conds": inputs}


def _entry_gradient(
    run: Run,
    item: Installed,
    loss: Loss,
    entry: dict[str, Any],
    x: Tensor,
    sigma: Tensor,
    options: dict[str, Any],
) -> Gradient | None:
    reader = _reader(run, item.edit, item.edit.early_exit)
    model = run.guider.inner_model
    entry = {name: value for name, value in entry.items() if name not in ("control", "gligen")}
    with differentiable(model.diffusion_model):
        latent = x.detach().clone().requires_grad_(True)
        read = Installed(item.layout, reader.edit(), graph=True)
        local = _options_for_gradient(run, options, {entry["uuid"]: (read,)})
        try:
            with _explained():
                comfy.samplers.calc_cond_batch(model, [[entry]], latent, sigma.detach().clone(), local)
        except _Enough:
            pass
        if not reader.parts:
            return None
        return _differentiate(model, loss(*reader.maps()), latent)


@contextmanager
def _explained() -> Iterator[None]:
    """Autograd's word for weights that only inference may touch, in words for a user."""
    try:
        yield
    except RuntimeError as error:
        if "Inference tensors cannot be saved" not in str(error):
            raise
        raise IncompatiblePatchError(
            "Another patch adds weights of its own to this model (an adapter that bypasses a layer), which gradients "
            "do not pass. Load it as an ordinary LoRA, remove it, or use a method without gradients (Rectified "
            "Attention)."
        ) from error


def _reader(run: Run, guide: LatentGuide, early_exit: bool) -> _MapReader:
    level = map_level(run.factors, run.image, guide.smallest_side)
    last = run.family.last_layer(run.guider.inner_model.diffusion_model, level) if early_exit else None
    return _MapReader(level, last)


def _options_for_gradient(run: Run, options: dict[str, Any], extra: dict[Any, tuple[Installed, ...]]) -> dict[str, Any]:
    """Model options without anybody's caches, wrappers and further devices, and with attention that has a gradient."""
    local = comfy.model_patcher.create_model_options_clone(options)
    for name in ("multigpu_clones", "model_function_wrapper", "context_handler"):
        local.pop(name, None)
    inner = local["transformer_options"]
    inner["wrappers"] = {WrappersMP.APPLY_MODEL: {"boxwright": [run.apply_model]}}
    inner["optimized_attention_override"] = partial(_attention_with_gradient, run)
    inner[run.EXTRA] = Extra(extra, silent=True)
    return local


def _attention_with_gradient(run: Run, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """optimized_attention_override: some of the host's kernels, and other packs' overrides, have no backward."""
    return run.attention(None, attention_pytorch, *args, **kwargs)


def _differentiate(model: Any, loss: AttentionLoss, latent: Tensor) -> Gradient:
    dtype = model.manual_cast_dtype or model.get_dtype()
    scale = HALF_SCALE if dtype in (torch.float16, torch.bfloat16) else 1.0
    try:
        (gradient,) = torch.autograd.grad(loss.total.sum() * scale, latent)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise IncompatiblePatchError(
            "Another patch on this model writes into tensors that the gradient still needs. Remove that patch, or use "
            "a method without gradients (Rectified Attention)."
        ) from error
    gradient = gradient.float() / scale
    if not bool(torch.isfinite(gradient).all()):
        raise BoxwrightError(
            f"The gradient of the guidance is not finite in {dtype}: the model's attention overflows. Run the model in "
            "bfloat16 or float32, or choose a method without gradients (Rectified Attention)."
        )
    return Gradient(gradient.detach(), loss.total.detach(), loss.per_phrase, loss.phrases, loss.notes)


# --- moving the latent ------------------------------------------------------------------------------------------------


def sample_with_guided_latents(
    executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, *args: Any, **kwargs: Any
) -> Any:
    """OUTER_SAMPLE wrapper: a copy of the sampler (the host keeps the original between runs) that moves its latent."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    if function is None or name in KEEPS_ITS_LATENT:
        raise BoxwrightError(
            f'The sampler "{name}" keeps its latent where a guide cannot move it. Choose another sampler (dpmpp_2m is '
            'near to most), or the mode "fast".'
        )
    guided = copy.copy(sampler)
    guided.sampler_function = partial(_sample, function, name)
    return executor(noise, latent_image, guided, *args, **kwargs)


def _sample(
    function: Callable[..., Tensor], name: str, model: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    options = kwargs["extra_args"]["model_options"]
    steps = _Steps(sigmas, name)
    run = options["transformer_options"]["boxwright_run"]
    _tell_idle_guides(run, steps)
    guided = _GuidedModel(model, run, steps)
    callback = kwargs.get("callback")
    kwargs["callback"] = partial(_count, steps, callback)
    return function(guided, x, sigmas, *args, **kwargs)


def _tell_idle_guides(run: Run, steps: _Steps) -> None:
    """A run of less noise (img2img, the later part of a schedule) may lie behind a guide's window as a whole."""
    for item in run.guides:
        guide, starts = item.edit, [run.progress(sigma) for sigma in steps.sigmas[:-1]]
        if guide.moves == "latent" and guide.report is not None and not any(map(guide.window.contains, starts)):
            guide.report(
                f"nothing is moved: no step of this run lies between {guide.window.start:g} and {guide.window.end:g} "
                "of the noise schedule; raise denoise, or the end of the window"
            )


def _count(steps: _Steps, callback: Any, state: dict[str, Any]) -> None:
    steps.evaluated()
    if callback is not None:
        callback(state)


class _Steps:
    """Tells which of a sampler's model calls start a step; the others are evaluations on the way."""

    def __init__(self, sigmas: Tensor, name: str) -> None:
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.stages = STAGES.get(name, 0)
        self.tries = name in TRIES_THE_NEXT
        self.free: bool | None = True if name in FREE_STEPS else None
        self.finished = 0  # callbacks: one for each step, after its first evaluation
        self.started = -1
        self.tried = 0
        self.to_come = 0  # evaluations of the step under way

    def evaluated(self) -> None:
        """The start of a step has been evaluated."""
        self.finished += 1
        ends_at = self.sigmas[self.finished] if self.finished < len(self.sigmas) else 0.0
        self.to_come = self.stages if ends_at > 0 else 0

    def starts(self, sigma: float) -> bool:
        if self.to_come:
            self.to_come -= 1
            return False
        if self.free is None:  # noise added before a step (churn) puts every evaluation beside the schedule
            self.free = not self._is(sigma, 0)
        if self.free:
            step = sum(1 for other in self.sigmas[:-1] if other > sigma * 1.0001)
        elif self.finished < len(self.sigmas) and self._is(sigma, self.finished):
            step = self.finished
        else:
            return False
        if step <= self.started:
            return False
        if self.tries and not self.free and step > self.tried:
            self.tried = step
            return False
        self.started = step
        return True

    def _is(self, sigma: float, step: int) -> bool:
        return abs(sigma - self.sigmas[step]) <= 1e-4 * self.sigmas[step]


class _GuidedModel:
    """The model as a sampler sees it: moves the latent it is given before it predicts."""

    def __init__(self, model: Any, run: Run, steps: _Steps) -> None:
        self.__dict__.update(_model=model, _run=run, _steps=steps, _reached=set())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        level = float(sigma.flatten()[0])
        if level > 0 and self._steps.starts(level):
            for item in self._run.guides:
                if item.edit.moves == "latent" and item.edit.window.contains(self._run.progress(level)):
                    self._guide(item, x, sigma, kwargs)
        return self._model(x, sigma, **kwargs)

    def _guide(self, item: Installed, x: Tensor, sigma: Tensor, kwargs: dict[str, Any]) -> None:
        guide: LatentGuide = item.edit
        level = float(sigma.flatten()[0])
        progress = self._run.progress(level)
        for number, (start, target) in enumerate(guide.targets):
            if progress >= start and (id(guide), number) not in self._reached:
                self._reached.add((id(guide), number))
                for _ in range(guide.refine_iterations):
                    found = self._step(item, guide.refine_loss, x, sigma, kwargs, 1.0 - target)
                    if found is None or bool((found.total <= 1.0 - target).all()):
                        break
        found = None
        for _ in range(guide.iterations):
            found = self._step(item, guide.loss, x, sigma, kwargs, None)
        if found is not None and guide.report is not None:
            guide.report(report_line(self._steps.started, len(self._steps.sigmas) - 1, found))

    def _step(
        self, item: Installed, loss: Loss, x: Tensor, sigma: Tensor, kwargs: dict[str, Any], enough: float | None
    ) -> Gradient | None:
        """One gradient step on x, in place; rows whose loss is `enough` or less stay."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        mask, seen = self._inpainting(x, sigma, kwargs)
        found = loss_gradient(self._run, item, loss, seen, sigma, kwargs["model_options"])
        if found is None:
            return None
        change = latent_change(self._run, item.edit, found.values, sigma)
        if mask is not None:
            change = change * mask
        if enough is not None:
            change = change * (found.total > enough).view(-1, *[1] * (x.ndim - 1))
        x.add_(change.to(x))
        return found

    def _inpainting(self, x: Tensor, sigma: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
        """The mask in force and the latent that the model will see: the host blends just before it predicts."""
        mask = kwargs.get("denoise_mask")
        if mask is None:
            return None, x
        adjust = kwargs["model_options"].get("denoise_mask_function")
        if adjust is not None:
            mask = adjust(sigma, mask, extra_options={"model": self.inner_model, "sigmas": self.sigmas})
        model = self.inner_model.inner_model
        kept = model.scale_latent_inpaint(x=x, sigma=sigma, noise=self.noise, latent_image=self.latent_image)
        return mask, x * mask + kept * (1.0 - mask)


def latent_change(run: Run, guide: LatentGuide, gradient: Tensor, sigma: Tensor) -> Tensor:
    """What one gradient step adds to the sampler's latent.

    Published step sizes belong to z = x / sqrt(1 + sigma^2); the same step on x is (1 + sigma^2) times as long.
    """
    level = float(sigma.flatten()[0])
    flow = isinstance(run.guider.inner_model.model_sampling, comfy.model_sampling.CONST)
    factor = guide.step_size(run.progress(level)) * (1.0 if flow else 1.0 + level**2)
    change = -factor * gradient
    limit = guide.max_change * level
    return change.clamp(-limit, limit) if limit else change


def report_line(step: int, steps: int, found: Gradient) -> str:
    """How far each phrase is from its place at a step (0 = the first): mean over the batch, the worst one marked."""
    misses = found.per_phrase.mean(dim=0).tolist()
    worst = max(range(len(misses)), key=misses.__getitem__)
    parts = [
        f"{phrase[:40]} {miss:.0%}{' (worst)' if i == worst and len(misses) > 1 else ''}"
        for i, (phrase, miss) in enumerate(zip(found.phrases, misses, strict=True))
    ]
    line = f"step {step + 1} of {steps}, missing: " + ", ".join(parts)
    return "; ".join([line, *found.notes])


# --- moving the prediction --------------------------------------------------------------------------------------------


def predict_with_guides(
    run: Run, executor: Any, model: Any, conds: list, x: Tensor, sigma: Tensor, options: dict[str, Any]
) -> list[Tensor]:
    """CALC_COND_BATCH wrapper: the ordinary evaluation, and where a guide is active its gradient from the same pass.

    The rows with guides run on their own, so that the others need no graph. iLGD (arXiv 2405.14101): the predicted
    noise grows by step * sigma * the gradient by the scaled model input; the denoised latent falls by sigma times that.
    """
    level = float(sigma.flatten()[0])
    active = [
        item
        for item in run.guides
        if item.edit.moves == "prediction" and level > 0 and item.edit.window.contains(run.progress(level))
    ]
    guided = [i for i, entries in enumerate(conds) if entries and any(run.items_of(entries, item) for item in active)]
    if not guided or run.EXTRA in options["transformer_options"]:
        return executor(model, conds, x, sigma, options)
    rest = [None if i in guided else entries for i, entries in enumerate(conds)]
    if any(rest):
        outputs = list(executor(model, rest, x, sigma, options))
    else:
        outputs = [torch.zeros_like(x) for _ in conds]
    for i in guided:
        outputs[i] = _guided_prediction(run, active, executor, model, conds[i], x, sigma, options)
    return outputs


def _guided_prediction(
    run: Run,
    active: list[Installed],
    executor: Any,
    model: Any,
    entries: list,
    x: Tensor,
    sigma: Tensor,
    options: dict[str, Any],
) -> Tensor:
    level = float(sigma.flatten()[0])
    readers: list[tuple[Installed, _MapReader]] = []
    extra: dict[Any, tuple[Installed, ...]] = {}
    for item in active:
        for entry in run.items_of(entries, item):
            reader = _reader(run, item.edit, early_exit=False)
            readers.append((item, reader))
            extra[entry["uuid"]] = (*extra.get(entry["uuid"], ()), Installed(item.layout, reader.edit(), graph=True))
    with differentiable(model.diffusion_model):
        latent = x.detach().clone().requires_grad_(True)
        local = comfy.model_patcher.create_model_options_clone(options)
        inner = local["transformer_options"]
        inner["optimized_attention_override"] = partial(_attention_with_gradient, run)
        inner[run.EXTRA] = Extra(extra, silent=False)
        entries = [_without_foreign_gradients(entry) for entry in entries]
        with _explained():
            (output,) = executor(model, [entries], latent, sigma.detach().clone(), local)
        change = torch.zeros_like(latent)
        for item, reader in readers:
            if reader.parts:
                found = _differentiate(model, item.edit.loss(*reader.maps()), latent)
                step = item.edit.step_size(run.progress(level)) * level**2 * (1.0 + level**2) ** 0.5
                limit = item.edit.max_change * min(level, 1.0)  # a denoised latent has a deviation near 1
                if item.edit.report is not None:
                    sigmas = local["transformer_options"]["sample_sigmas"]
                    item.edit.report(report_line(int((sigmas > level * 1.0001).sum()), len(sigmas) - 1, found))
                moved = -step * found.values
                change = change + (moved.clamp(-limit, limit) if limit else moved)
    return output.detach() + change.detach()


def _without_foreign_gradients(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with a ControlNet that autograd does not follow: its weights are the host's inference tensors."""
    if entry.get("gligen") is not None:
        raise IncompatiblePatchError(
            'GLIGEN puts layers without a gradient into the model. Use the mode "boxdiff", whose gradient pass leaves '
            "them out, or remove GLIGEN."
        )
    control = entry.get("control")
    return entry if control is None else {**entry, "control": _ControlOutsideGraph(control)}


class _ControlOutsideGraph:
    """A ControlNet as the model meets it in a pass with gradients: a constant."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def get_control(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            out = self._control.get_control(x.detach(), *args, **kwargs)
        if out is None:
            return None
        return {name: [None if t is None else _added(t) for t in tensors] for name, tensors in out.items()}


def _added(tensor: Tensor) -> Tensor:
    return tensor.clone().as_subclass(_Addend)


class _Addend(torch.Tensor):
    """The host adds it in place to features that the gradient still needs; this makes `h += addend` a new tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [a.as_subclass(Tensor) if isinstance(a, cls) else a for a in args]
        if func is Tensor.add_:
            func = torch.add
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def refuse_without_gradient(family: Any) -> None:
    """Raises UnsupportedModelError for a family whose layers have no gradient here."""
    if not hasattr(family, "last_layer"):
        raise UnsupportedModelError(
            f"Guides need gradients, which Boxwright does not take through {family.name} yet. Use a Stable Diffusion "
            "UNet (SD 1.x, SD 2.x, SDXL), or a method without gradients (Rectified Attention)."
        )
