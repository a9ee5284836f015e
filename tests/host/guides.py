"""A guide with a smooth loss, and its gradient as a run on a tiny model meets it."""

from dataclasses import replace

import tiny_models as tiny
import torch
from comfy.patcher_extension import WrappersMP
from pack.attention_patches.core.seam import AttentionLoss, LatentGuide
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.attention.calls import Installed
from pack.attention_patches.host.guidance import prediction
from pack.attention_patches.host.guidance.gradient import loss_gradient
from pack.attention_patches.host.install import install

UNETS = ["sd15", "sd2", "sdxl"]
SIGMA = 5.0
FLOW_SIGMA = 0.8
STEP = 0.002  # of noise, for a difference that is neither rounding nor a curve


def left_mass(maps, site):
    """How much of the first region's words lies in the right half: smooth, every cell counts."""
    owned = [2, 3]
    share = maps[:, owned].sum(1)
    share = share / share.flatten(1).sum(1)[:, None, None]
    right = share[..., share.shape[-1] // 2 :].flatten(1).sum(1)
    return AttentionLoss(right, right.detach()[:, None], ("w1 w2",))


GUIDE = LatentGuide("left", left_mass, lambda progress: 30.0)
FAST = replace(GUIDE, moves="prediction")


def run(family, model, layout, **options):
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    return tiny.run(family, model, positive, **{"steps": 2, **options})


def gradients(family, model, layout, guide=GUIDE, early_exit=True, batch=2, then=None, before=None, size=(16, 24)):
    """The gradient as a run meets it: inside the sampler, at the first step. `then(gradient_of, x)` sees more."""
    found = []

    def spy(executor, x, timestep, options, seed):
        if not found:
            attached = options["transformer_options"]["boxwright_run"]
            at = torch.full_like(timestep, SIGMA if family in UNETS else FLOW_SIGMA)
            if before is not None:  # loading resets what a test would do to the layers
                before(attached.guider.inner_model.diffusion_model)

            def gradient_of(x):
                item = Installed(layout, replace(guide, early_exit=early_exit))
                return loss_gradient(attached, item, guide.loss, x, at[: x.shape[0]], options)

            found.append(gradient_of(x))
            if then is not None:
                found.append(then(gradient_of, x))
        return executor(x, timestep, options, seed)

    # A guide that is never active makes the run known without moving anything.
    patched = install(model, layout, [replace(guide, moves="latent", window=StepWindow(0.999, 1.0))])
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "spy", spy)
    run(family, patched, layout, steps=2, last_step=1, noise=tiny.latent(family, size, batch))
    return found


def slopes(family, model, layout, monkeypatch):
    """How much the loss of a guide in the ordinary pass grows along a random direction of the noise, and by how much
    its gradient says it does."""
    noise, found, original = tiny.latent(family, (8, 12)), [], prediction.differentiate
    direction = tiny.latent(family, (8, 12), seed=17)
    patched = install(model, layout, [replace(GUIDE, moves="prediction")])

    def spy(base_model, loss, latent, *args, **kwargs):
        found.append((latent.detach().clone(), original(base_model, loss, latent, *args, **kwargs)))
        return found[-1][1]

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "differentiate", spy)
        for part in (-STEP, 0.0, STEP):
            run(family, patched, layout, steps=1, noise=noise + part * direction)
    (before, less), (_, here), (after, more) = found
    return float((more.total - less.total).sum()), float((here.values * (after - before)).sum())


def relative(a, b):
    return float((a - b).norm() / b.norm())
