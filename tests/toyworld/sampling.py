"""Pictures from the toy model through the host's own loader, text encoder, sampler and VAE.

Needs the host on sys.path. Call everything inside torch.inference_mode(), as the host's executor does.
"""

from pathlib import Path

import comfy.sample
import folder_paths
import nodes
import torch

from . import companion  # noqa: F401  (importing it registers the toy's model class)

CHECKPOINT = Path(__file__).with_name("toyworld.safetensors")


def load():
    """The toy as (model, clip, vae), read by the stock CheckpointLoaderSimple node."""
    folder_paths.add_model_folder_path("checkpoints", str(CHECKPOINT.parent))
    return nodes.CheckpointLoaderSimple().load_checkpoint(CHECKPOINT.name)


def encode(clip, text):
    """CONDITIONING of a prompt, as the stock CLIPTextEncode node makes it."""
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def noise_for(seed, size=(256, 256)):
    """Start noise [1, 4, height/8, width/8] of one seed; `size` is (height, width) in pixels.

    Drawn on the CPU and for this seed alone, so that a seed gives the same picture in any batch. For a batch of one it
    equals the noise of the stock KSampler.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(1, 4, size[0] // 8, size[1] // 8, generator=generator)


def sample(
    model,
    vae,
    positive,
    negative,
    seeds,
    steps=20,
    cfg=5.0,
    sampler="euler",
    scheduler="normal",
    size=(256, 256),
    batch=8,
):
    """One picture per seed, float32 [n, height, width, 3] in 0..1; `size` is (height, width) in pixels.

    `batch` seeds are sampled at once. Use deterministic samplers: the others draw further noise for the whole batch.
    """
    images = []
    for first in range(0, len(seeds), batch):
        chunk = list(seeds[first : first + batch])
        noise = torch.cat([noise_for(seed, size) for seed in chunk])
        latent = comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=chunk[0],
        )
        images.append(vae.decode(latent).float().cpu())
    return torch.cat(images)
