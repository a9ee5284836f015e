"""Small random LoRA files for the tiny models, of every kind that the host writes."""

import comfy.sd
import torch
from pack.attention_patches.host.layers.change import LayerShape

ROOT = "diffusion_model."


def layers(model):
    """The linear and convolution layers of a MODEL: name -> shape of the weight."""
    found = model.model.diffusion_model.named_modules()
    return {name: shape.weight for name, module in found if (shape := LayerShape.of(module))}


def tensors(model, kind="lora", seed=0, only=None, rank=2, size=0.3):
    """The file of a LoRA that changes every layer (or those whose names hold one of `only`)."""
    g = torch.Generator().manual_seed(seed)

    def values(*shape):
        return size * torch.randn(*shape, generator=g)

    file = {}
    for name, (out, into, *kernel) in layers(model).items():
        if only is not None and not any(part in name for part in only):
            continue
        key = ROOT + name
        if kind == "bias":
            file[f"{key}.diff_b"] = values(out)
            continue
        if kind == "diff":
            file[f"{key}.diff"] = values(out, into, *kernel) / (into**0.5)
            continue
        file[f"{key}.alpha"] = torch.tensor(1.0)
        if kind == "lora" or (kind == "tucker" and not kernel):
            file[f"{key}.lora_up.weight"] = values(out, rank, *[1] * len(kernel))
            file[f"{key}.lora_down.weight"] = values(rank, into, *kernel)
        elif kind == "tucker":
            file[f"{key}.lora_up.weight"] = values(out, rank, 1, 1)
            file[f"{key}.lora_mid.weight"] = values(rank, rank, *kernel)
            file[f"{key}.lora_down.weight"] = values(rank, into, 1, 1)
        elif kind in ("loha", "loha dora"):
            for part in ("w1", "w2"):
                file[f"{key}.hada_{part}_a"] = values(out, rank)
                file[f"{key}.hada_{part}_b"] = values(rank, into * torch.Size(kernel).numel())
            if kind == "loha dora":
                file[f"{key}.dora_scale"] = 1.0 + values(out, 1, *[1] * len(kernel))
        elif kind == "lokr":
            split = 2 if out % 2 == 0 and into % 2 == 0 else 1
            file[f"{key}.lokr_w1"] = values(split, split)
            file[f"{key}.lokr_w2_a"] = values(out // split, rank)
            file[f"{key}.lokr_w2_b"] = values(rank, into // split * torch.Size(kernel).numel())
        elif kind in ("dora", "input dora"):
            file[f"{key}.lora_up.weight"] = values(out, rank, *[1] * len(kernel))
            file[f"{key}.lora_down.weight"] = values(rank, into, *kernel)
            scaled = (out, 1) if kind == "dora" else (1, into)
            file[f"{key}.dora_scale"] = 1.0 + values(*scaled, *[1] * len(kernel))
        elif kind == "oft":
            file[f"{key}.oft_blocks"] = values(2, 2, 2)
    return file


def merged(model, file, strength):
    """The MODEL as the host's LoraLoaderModelOnly makes it."""
    return comfy.sd.load_lora_for_models(model, None, dict(file), strength, 0.0)[0]
