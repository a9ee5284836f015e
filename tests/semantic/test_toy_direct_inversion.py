"""Prompt to Prompt on a real picture: its own row comes back with direct inversion, and not without."""

import comfy.sample
import comfy.samplers
from pack.attention_patches.host.samplers.loops import schedule
from pack.nodes.inversion import BoxwrightDirectInversionSampler, BoxwrightInvert
from pack.nodes.prompt_to_prompt import BoxwrightPromptToPrompt
from picture_edits import defaults, edit, has_changed, psnr
from toyworld import sampling

STEPS, CFG = 10, 5.0


def beside_each_other(model, clip, latent, job):
    """Model, positive, negative and latent of source and target."""
    node = BoxwrightPromptToPrompt
    settings = defaults(node, source=job.source, targets=job.target, cross_end=0.4, self_end=0.2)
    return node.execute(model, clip, {"samples": latent}, **settings).result[:4]


def test_the_picture_comes_back_beside_its_edit(toy):
    model, clip, vae = toy
    job = edit(4)
    latent = vae.encode(job.picture)
    again = vae.decode(latent)
    sigmas = schedule(model, "normal", STEPS, 1.0)
    prompt = sampling.encode(clip, job.source)
    trajectory, noise, _ = BoxwrightInvert.execute(
        model, prompt, {"samples": latent}, sigmas, cfg=1.0, refinements=1, storage="memory", check=False
    ).result
    patched, positive, negative, pair = beside_each_other(model, clip, latent, job)
    pictures = {}
    for name, sampler in (
        ("direct inversion", BoxwrightDirectInversionSampler.execute(trajectory)[0]),
        ("inverted noise alone", comfy.samplers.ksampler("euler")),
    ):
        pictures[name] = vae.decode(
            comfy.sample.sample_custom(
                patched,
                noise.generate_noise(pair),
                CFG,
                sampler,
                sigmas,
                positive,
                negative,
                pair["samples"],
                disable_pbar=True,
                seed=1,
            )
        )
        print(f"\n{name}: {psnr(pictures[name][:1], again):.1f} dB, changed {has_changed(pictures[name][1], job)}")
    assert psnr(pictures["direct inversion"][:1], again) > 60
    assert psnr(pictures["inverted noise alone"][:1], again) < 40
    assert psnr(pictures["direct inversion"][1:], again) < 40
