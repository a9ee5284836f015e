"""LoRAs of regions in their places: the layers by hand, crops, and texts of their own."""

import comfy.sample
import pytest
import tiny_loras as loras
import tiny_models as tiny
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.layers import layer as changed_layers
from pack.attention_patches.host.layers.lora import lora_for
from pack.attention_patches.host.samplers.flow_edit import FlowEditing, flow_edit_sampler
from pack.attention_patches.methods.region_lora import RegionLora
from region_loras import EARLY, WHOLE, run, same, with_loras


@pytest.fixture
def whole():
    return tiny.layout(areas=(WHOLE,))


@pytest.fixture
def halves():
    return tiny.layout()


@pytest.fixture
def noted(monkeypatch):
    """What went into each changed layer, what it returned before, and after."""
    seen, original = [], changed_layers.ChangedLayer.changed

    def note(self, x, out, weights):
        before = out.clone()
        seen.append((self, x.clone(), before, original(self, x, out, weights).clone()))
        return seen[-1][3].clone()

    monkeypatch.setattr(changed_layers.ChangedLayer, "changed", note)
    return seen


def change_by_hand(layer, number, x):
    """What LoRA `number` adds to a layer's output where it counts in full: by the host's own calculate_weight."""
    for own, change in layer.changes:
        if own == number:
            weight = sum(
                (up @ down.flatten(1)).view(layer.shape.weight) for up, down in zip(change.up, change.down, strict=True)
            )
            if not layer.shape.is_convolution:
                return F.linear(x, weight)
            return F.conv2d(x, weight, None, layer.shape.stride, layer.shape.padding)


@pytest.mark.parametrize("sparse", [0.0, 2.0])
def test_each_half_has_its_own_lora_in_every_layer(models, halves, noted, monkeypatch, sparse):
    """Image layers of a UNet, before attention mixes what they return; all LoRAs at once, and each at its tokens."""
    monkeypatch.setattr(changed_layers, "SPARSE", sparse)
    model = models["sd15"]
    image = ["attn1.to", "to_q", "to_out", "ff.", "proj_", "in_layers", "out_layers", "op", "conv"]
    files = [loras.tensors(model, seed=seed, only=image) for seed in (1, 2)]
    run("sd15", with_loras(model, halves, files), halves, noise=tiny.latent("sd15", batch=2))
    assert len(noted) >= len(files[0]) // 3 - 1
    for layer, x, before, after in noted:
        pixels = layer.shape.is_convolution
        width = {16 * 24: 24, 8 * 12: 12, 4 * 6: 6}[before[0, 0].numel() if pixels else before.shape[1]]
        left, right = (
            t if pixels else t.transpose(1, 2).unflatten(2, (-1, width))
            for t in (before + 0.8 * change_by_hand(layer, 0, x), before + 0.8 * change_by_hand(layer, 1, x))
        )
        found = after if pixels else after.transpose(1, 2).unflatten(2, (-1, width))
        middle = width // 2
        same(found[..., :middle], left[..., :middle])
        same(found[..., middle:], right[..., middle:])


@pytest.mark.parametrize("family, sparse", [("sd15", 0.0), ("flux", 0.0), ("sd15", 2.0)])
def test_outside_its_region_a_layer_returns_what_it_did(models, noted, monkeypatch, family, sparse):
    monkeypatch.setattr(changed_layers, "SPARSE", sparse)
    lay = tiny.layout(areas=(tiny.LEFT,))
    file = loras.tensors(models[family], only=["ff.", "img_mlp", "img_attn"])
    run(family, with_loras(models[family], lay, [file]), lay)
    assert noted
    for layer, _, before, after in noted:
        assert not layer.shape.is_convolution
        width = {16 * 24: 24, 8 * 12: 12, 4 * 6: 6}[before.shape[1]]
        grid = (before - after).unflatten(1, (-1, width))
        assert grid[:, :, width // 2 :].abs().max() == 0
        assert grid[:, :, : width // 2].abs().amax(dim=(0, 3)).min() > 0


def test_the_time_counts_for_each_pixel_of_a_unet_with_its_own_lora(models, noted):
    """A residual block adds one vector to all of its pixels; inside the region another one."""
    lay = tiny.layout(areas=(tiny.LEFT,))
    file = loras.tensors(models["sd15"], only=["emb_layers"])
    run("sd15", with_loras(models["sd15"], lay, [file]), lay, noise=tiny.latent("sd15", batch=2))
    assert len(noted) == len(file) // 3
    for layer, x, before, after in noted:
        middle = before.shape[2] // 2
        assert torch.equal(after[:, :, middle:], before[:, :, middle:])
        same(after[:, :, :middle], (before + 0.8 * change_by_hand(layer, 0, x))[:, :, :middle])


def test_text_tokens_have_the_lora_of_the_region_whose_words_they_are(models, halves, noted):
    """In joint models, and only in the rows of the layout's prompt."""
    files = [loras.tensors(models["sd3"], seed=seed, only=["context_block.attn.qkv"]) for seed in (1, 2)]
    run("sd3", with_loras(models["sd3"], halves, files), halves)
    assert noted
    for layer, x, before, after in noted:
        changed = (after - before).abs().amax(dim=2) > 0
        assert [row.nonzero()[:, 0].tolist() for row in changed if row.any()] == [[2, 3, 4, 5]]
        (row,) = [number for number, own in enumerate(changed) if own.any()]
        for number, columns in enumerate(([2, 3], [4, 5])):
            expected = before + 0.8 * change_by_hand(layer, number, x)
            same(after[row, columns], expected[row, columns])


def test_words_lie_behind_what_the_host_fills_up_in_front_of_a_text(models, halves, noted):
    """Flux.2 reads 512 columns, and a shorter text last."""
    files = [loras.tensors(models["flux2"], seed=seed, only=["double_blocks.0.txt_attn.qkv"]) for seed in (1, 2)]
    run("flux2", with_loras(models["flux2"], halves, files), halves)
    assert noted
    start = 512 - len(halves.prompt.tokens)
    for _, _, before, after in noted:
        changed = (after - before).abs().amax(dim=2) > 0
        assert [row.nonzero()[:, 0].tolist() for row in changed if row.any()] == [[start + n for n in (2, 3, 4, 5)]]


def test_each_place_reads_the_text_with_its_own_keys_and_values(models, halves):
    """Cross-attention of a UNet by the book: the left half with the first LoRA's projections, in every row."""
    model = models["sd15"]
    files = [loras.tensors(model, seed=seed, only=["attn2.to_k", "attn2.to_v"], size=1.0) for seed in (1, 2)]
    changes = [lora_for(model, file, "file") for file in files]
    texts, names = [], []
    unet = model.model.diffusion_model
    layers = {module: name for name, module in unet.named_modules() if name.endswith("attn2")}

    def by_hand(model):
        model = model.clone()
        of_block = {}
        for module, name in layers.items():
            parts = name.split(".")
            key = ("middle", 0) if parts[0] == "middle_block" else (parts[0].split("_")[0], int(parts[1]))
            of_block[key] = name, module

        def text(n, context, value, extra):
            texts[:] = [context]
            return n, context, value

        def replaced(q, k, v, extra):
            name, module = of_block[extra["block"][:2]]
            names.append(name)
            parts = lambda t: t.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2).double()  # noqa: E731
            outs = []
            for change in changes:
                own = []
                for part in ("to_k", "to_v"):
                    one = change.layers[f"{name}.{part}"]
                    weight = getattr(module, part).weight + 0.8 * one.up[0] @ one.down[0]
                    own.append(parts(F.linear(texts[0], weight)))
                scores = parts(q) @ own[0].transpose(-1, -2) * parts(q).shape[-1] ** -0.5
                outs.append((scores.softmax(-1) @ own[1]).transpose(1, 2).flatten(2))
            width = extra["activations_shape"][-1]
            left = (torch.arange(q.shape[1]) % width < width // 2)[None, :, None]
            return torch.where(left, *outs).to(q)

        model.set_model_attn2_patch(text)
        for key in of_block:
            model.set_model_attn2_replace(replaced, *key)
        return model

    expected = run("sd15", by_hand(model), halves)
    assert set(names) == set(layers.values())
    found = run("sd15", with_loras(model, halves, files), halves)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    quiet = with_loras(model, halves, [*files], RegionLora(window=StepWindow(0.9, 1.0)))
    assert torch.equal(run("sd15", quiet, halves, **EARLY), run("sd15", model, halves, **EARLY))


def test_a_crop_has_its_part_of_the_regions(models, halves):
    """An area over the right half alone: all of it has the second LoRA, nothing the first."""
    model = models["sd15"]
    files = [loras.tensors(model, seed=seed) for seed in (1, 2)]
    text = {"area": (16, 12, 0, 12), "strength": 1.0}
    positive = tiny.conditioning("sd15", halves.prompt, halves.key, **text)
    negative = tiny.conditioning("sd15", tiny.text(seed=2), seed=6, **text)

    def right(patched):
        return tiny.run("sd15", patched, positive, negative, steps=1)[..., 12:]

    same(right(with_loras(model, halves, files)), right(loras.merged(model, files[1], 0.8)))


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_two_crops_in_one_call(models, family):
    """Cond and uncond on crops of other places share a batch: each row has the regions of its own crop."""
    lay = tiny.layout(areas=(tiny.LEFT,))
    model, file = models[family], loras.tensors(models[family])
    entries = {
        "left": tiny.conditioning(family, lay.prompt, lay.key, area=(16, 12, 0, 0), strength=1.0),
        "right": tiny.conditioning(family, tiny.text(seed=2), seed=6, area=(16, 12, 0, 12), strength=1.0),
    }

    def draw(patched):
        return tiny.run(family, patched, entries["left"] + entries["right"], steps=1, cfg=1.0)

    found = draw(with_loras(model, lay, [file]))
    same(found[..., :12], draw(loras.merged(model, file, 0.8))[..., :12])
    same(found[..., 12:], draw(model)[..., 12:])


@pytest.mark.parametrize("only", [["attn2.to_k", "attn2.to_v"], ["ff.", "attn1", "in_layers"]])
def test_crops_of_two_sizes_in_one_step(models, only):
    """A crop's finest grid is as large as the whole picture's second one: each has the regions of its own part."""
    lay = tiny.layout(areas=(tiny.LEFT,))
    patched = with_loras(models["sd15"], lay, [loras.tensors(models["sd15"], only=only)])
    entries = [
        tiny.conditioning("sd15", lay.prompt, lay.key),
        tiny.conditioning("sd15", lay.prompt, lay.key, area=(8, 12, 0, 0), strength=1.0),
    ]

    def predicted(*some):
        """What the model said of a latent of each size."""
        found, noting = {}, patched.clone()

        def note(executor, x, *args, **kwargs):
            found[tuple(x.shape[-2:])] = out = executor(x, *args, **kwargs)
            return out

        noting.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "noting", note)
        tiny.run("sd15", noting, [entry for one in some for entry in one], steps=1, cfg=1.0)
        return found

    both = predicted(*entries)
    assert len(both) == 2
    for one in entries:
        for size, alone in predicted(one).items():
            same(both[size], alone)


def test_a_prompt_that_a_sampler_adds_to_its_run_has_its_own_part_of_the_picture(models, whole):
    """FlowEdit's source prompt, over the right half alone, beside a target for all of it."""
    model, noise = models["sd15"], tiny.latent("sd15")
    file = loras.tensors(model, size=0.1)
    area = {"area": (16, 12, 0, 12), "strength": 1.0}
    target = tiny.conditioning("sd15", whole.prompt, whole.key)
    source = tiny.conditioning("sd15", tiny.text(seed=3), seed=4, **area) + tiny.conditioning("sd15", tiny.text(seed=2))
    sampler, sigmas = flow_edit_sampler(source, FlowEditing()), torch.tensor([3.0, 1.0, 0.0])

    def edited(patched):
        return comfy.sample.sample_custom(
            patched,
            torch.zeros_like(noise),
            3.0,
            sampler,
            sigmas,
            target,
            tiny.conditioning("sd15", tiny.text(seed=2), seed=6),
            noise,
            disable_pbar=True,
            seed=1,
        )

    found, expected = edited(with_loras(model, whole, [file])), edited(loras.merged(model, file, 0.8))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
