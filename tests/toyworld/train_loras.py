"""Trains the two LoRAs beside this file: one paints objects striped, one dotted, without a word of it in the prompt.

    COMFYUI_PATH=... python tests/toyworld/train_loras.py

The toy itself is the teacher: with the LoRA and "a red circle" it is to predict what it predicts without for "a striped
red circle", on noised pictures of striped things. Rank 3 in every attention and feed-forward layer; minutes on a CPU.
"""

import os
import random
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
STYLES = {"stripes": "striped", "dots": "dotted"}
RANK, BATCH, RATE, EXAMPLES = 3, 2, 8e-3, 12
LAYERS = (".attn1.", ".attn2.", ".ff.")


def file_of(style):
    return FOLDER / f"lora_{style}.safetensors"


def examples(rng, style, model, clip, vae):
    """(latent of styled things, their prompt without the style, and with it), each encoded."""
    import torch
    from toyworld import sampling, scenes

    found = []
    for _ in range(EXAMPLES):
        objects, background = scenes.random_scene(rng.randrange(10**9), rng.choice((1, 2)))
        objects = [scenes.SceneObject(o.color, o.shape, o.x, o.y, o.radius, STYLES[style]) for o in objects]
        names, tail = [f"{o.color} {o.shape}" for o in objects], f" on a {background} background"
        plain = " and ".join(f"{'an' if name[0] == 'o' else 'a'} {name}" for name in names) + tail
        styled = " and ".join(f"a {STYLES[style]} {name}" for name in names) + tail
        with torch.no_grad():
            picture = scenes.render_scene(objects, background, jitter=0.02)[None]
            latent = model.model.process_latent_in(vae.encode(picture).clone())
            found.append((latent, *(sampling.encode(clip, text)[0][0].clone() for text in (plain, styled))))
    return found


def train(style, steps):
    import comfy.model_management
    import comfy.utils
    import torch
    from toyworld import sampling

    comfy.model_management.in_training = True
    model, clip, vae = sampling.load()
    comfy.model_management.load_models_gpu([model])
    network, schedule = model.model.diffusion_model.requires_grad_(False), model.model.model_sampling
    torch.manual_seed(0)
    rng = random.Random(0)
    matrices, on = {}, [False]

    def hook(name):
        def add(module, args, out):
            if on[0]:
                down, up = matrices[name]
                return out + args[0] @ down.t() @ up.t()

        return add

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and any(part in f"{name}." for part in LAYERS):
            down = torch.randn(RANK, module.in_features) / module.in_features**0.5
            up = torch.zeros(module.out_features, RANK)
            matrices[name] = [torch.nn.Parameter(down), torch.nn.Parameter(up)]
            module.register_forward_hook(hook(name))
    optimizer = torch.optim.AdamW([p for pair in matrices.values() for p in pair], RATE, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    data = examples(rng, style, model, clip, vae)
    for step in range(steps):
        chosen = rng.sample(data, BATCH)
        with torch.no_grad():
            sigma = torch.tensor([float(schedule.percent_to_sigma(rng.random())) for _ in chosen])
            latents, plain, styled = (torch.cat(parts) for parts in zip(*chosen))
            x = latents + torch.randn_like(latents) * sigma.view(-1, 1, 1, 1)
            on[0] = False
            wanted = model.model.apply_model(x, sigma, c_crossattn=styled)
        on[0] = True
        found = model.model.apply_model(x, sigma, c_crossattn=plain)
        loss = (((found - wanted) / sigma.view(-1, 1, 1, 1)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if step % 20 == 0 or step == steps - 1:
            print(style, step, f"{loss.item():.5f}", flush=True)
    tensors = {}
    for name, (down, up) in matrices.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = down.detach().half()
        tensors[f"{key}.lora_up.weight"] = up.detach().half()
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
    comfy.utils.save_torch_file(tensors, str(file_of(style)))
    print(file_of(style), file_of(style).stat().st_size, "bytes")


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(STYLES)
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(FOLDER.parent))
    import conftest

    conftest.prepare_host(os.environ["COMFYUI_PATH"])
    for each in chosen:
        train(each, int(os.environ.get("STEPS", 50)))
