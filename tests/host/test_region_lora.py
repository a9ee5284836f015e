"""LoRAs of regions in the host: the host's own loader where a region is the whole picture, others beside, refusals."""

from dataclasses import replace

import comfy.hooks
import comfy.model_management
import pytest
import tiny_loras as loras
import tiny_models as tiny
import torch
from comfy.patcher_extension import WrappersMP
from pack.attention_patches.core.types import BoxwrightError, StepWindow, UnsupportedModelError
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.install import install
from pack.attention_patches.host.layers.lora import lora_for
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.methods.region_lora import RegionLora
from pack.attention_patches.methods.region_prompt import RegionPrompt
from region_loras import EARLY, FAMILIES, WHOLE, run, same, with_loras
from tiny_control import Control

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def whole():
    return tiny.layout(areas=(WHOLE,))


@pytest.fixture
def halves():
    return tiny.layout()


# --- one region over the whole picture is the host's LoraLoaderModelOnly ---


@pytest.mark.parametrize("family, kind", [
    *((family, "lora") for family in FAMILIES), ("sd15", "tucker"), ("sdxl", "tucker"), ("flux", "lokr"),
    *((family, "lokr") for family in ("sd15", "sdxl", "zimage")), ("sd15", "loha"), ("flux", "loha"),
    ("sd15", "diff"), ("flux", "bias"), ("sd15", "bias"), ("sd15", "dora"), ("flux", "dora"), ("sdxl", "loha dora"),
])  # fmt: skip
def test_a_whole_image_region_is_the_hosts_loader(models, whole, family, kind):
    model, file = models[family], loras.tensors(models[family], kind)
    expected = run(family, loras.merged(model, file, 0.8), whole)
    same(run(family, with_loras(model, whole, [file]), whole), expected)
    assert not torch.allclose(run(family, model, whole), expected, atol=1e-2 * float(expected.abs().max()))


def test_whatever_runs_with_it(models, whole):
    """Batches, no CFG, areas, odd sizes, ControlNet, SDE samplers: all rows have the LoRA, as when it is loaded."""
    area = {"area": (8, 12, 4, 12), "strength": 1.0}
    control = {"control": Control(), "control_apply_to_uncond": True}
    for family, text, options in (
        ("sd15", {}, {"noise": tiny.latent("sd15", batch=3)}),
        ("sd15", {}, {"noise": tiny.latent("sd15", size=(15, 23))}),
        ("flux", {}, {"noise": tiny.latent("flux", size=(15, 23), batch=2)}),
        ("zimage", {}, {"noise": tiny.latent("zimage", size=(14, 10))}),
        ("sd15", {}, {"cfg": 1.0}),
        ("sd15", area, {}),
        ("flux", area, {}),
        ("sd15", control, {}),
        ("sdxl", {}, {"sampler": "dpmpp_2m_sde", "scheduler": "karras", "steps": 3}),
    ):
        model, file = models[family], loras.tensors(models[family])
        positive = tiny.conditioning(family, whole.prompt, whole.key, **text)
        found, expected = (
            tiny.run(family, patched, positive, **{"steps": 1, **options})
            for patched in (with_loras(model, whole, [file]), loras.merged(model, file, 0.8))
        )
        off = 1e-5 if options.get("steps", 1) == 1 else 3e-4  # the tiny models amplify rounding step by step
        torch.testing.assert_close(found, expected, rtol=0, atol=off * float(expected.abs().max()))


def test_a_part_of_a_weight_and_moved_rows(models, whole):
    """LoRAs of diffusers have one file entry for each of q, k and v, and the last modulation the other way round."""
    model, g = models["flux"], torch.Generator().manual_seed(3)
    sizes = {
        "transformer.single_transformer_blocks.0.attn.to_k": (64, 64),
        "transformer.norm_out.linear": (128, 64),
        "transformer.transformer_blocks.1.attn.add_v_proj": (64, 64),
        "transformer.single_transformer_blocks.1.proj_out": (64, 192),
    }
    file = {}
    for key, (out, into) in sizes.items():
        file[f"{key}.lora_A.weight"] = torch.randn(2, into, generator=g)
        file[f"{key}.lora_B.weight"] = torch.randn(out, 2, generator=g)
    expected = run("flux", loras.merged(model, file, 0.8), whole)
    same(run("flux", with_loras(model, whole, [file]), whole), expected)
    assert not torch.allclose(run("flux", model, whole), expected, atol=1e-2)


# --- nothing stays behind ---


@every_family
def test_off_and_outside_its_time_not_a_bit_changes(models, halves, family):
    model, file = models[family], loras.tensors(models[family])
    plain = run(family, model, halves, **EARLY)
    late = with_loras(model, halves, [file], RegionLora(window=StepWindow(0.9, 1.0)))
    for patched in (with_loras(model, halves, [file], strength=0.0), late):
        assert torch.equal(run(family, patched, halves, **EARLY), plain)


@every_family
def test_the_model_and_a_second_run_are_the_same_to_the_last_bit(models, halves, family):
    model, file = models[family], loras.tensors(models[family])
    plain = run(family, model, halves)
    patched = with_loras(model, halves, [file])
    first = run(family, patched, halves)
    assert not torch.equal(first, plain)
    assert torch.equal(run(family, model, halves), plain)
    assert torch.equal(run(family, patched, halves), first)


@pytest.mark.parametrize("ending", ["error", "interrupt"])
def test_a_run_that_ends_early_leaves_nothing(models, halves, ending):
    model, file = models["sd15"], loras.tensors(models["sd15"])
    plain, patched = run("sd15", model, halves), with_loras(model, halves, [file])
    first = run("sd15", patched, halves)

    def stop(*args):
        if ending == "error":
            raise RuntimeError("of another node")
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises((RuntimeError, comfy.model_management.InterruptProcessingException)):
        run("sd15", patched, halves, callback=stop, steps=3)
    modules = list(model.model.diffusion_model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert torch.equal(run("sd15", model, halves), plain)
    assert torch.equal(run("sd15", patched, halves), first)


def test_another_clone_that_a_guider_runs_meanwhile_is_unchanged(models, halves):
    """Models of one checkpoint share their layers: a node may ask the plain one in the middle of a run."""
    model, file = models["sd15"], loras.tensors(models["sd15"])
    x, sigma, text = tiny.latent("sd15"), torch.tensor([3.0]), halves.prompt.embedding
    run("sd15", model, halves)  # loads its own weights, into which the clone of another test has merged a LoRA
    plain, found = model.model.apply_model(x, sigma, c_crossattn=text), []
    patched = with_loras(model, halves, [file])

    def ask(args):
        found.append(model.model.apply_model(x, sigma, c_crossattn=text))
        return args["denoised"]

    patched.set_model_sampler_post_cfg_function(ask)
    run("sd15", patched, halves)
    assert len(found) == 1 and torch.equal(found[0], plain)


# --- with others ---


def test_with_the_hosts_own_loras(models, whole):
    model, files = models["sd15"], [loras.tensors(models["sd15"], seed=seed) for seed in (1, 2)]
    expected = run("sd15", loras.merged(loras.merged(model, files[0], 0.5), files[1], 0.8), whole)
    same(run("sd15", with_loras(loras.merged(model, files[0], 0.5), whole, [files[1]]), whole), expected)


def test_with_the_hosts_hooks(models, whole):
    """A LoRA of the conditioning's hooks is in the weights of that entry's pass, the region's beside it."""
    model, files = models["sd15"], [loras.tensors(models["sd15"], seed=seed) for seed in (1, 2)]
    hooks = comfy.hooks.create_hook_lora(lora=files[0], strength_model=0.5, strength_clip=0.0)
    positive = tiny.conditioning("sd15", whole.prompt, whole.key)
    hooked = comfy.hooks.set_hooks_for_conditioning(positive, hooks)

    def draw(patched):
        patched = patched.clone()
        patched.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
        return tiny.run("sd15", patched, hooked, steps=1)

    expected = draw(loras.merged(model, files[1], 0.8))
    same(draw(with_loras(model, whole, [files[1]])), expected)
    assert not torch.allclose(expected, run("sd15", loras.merged(model, files[1], 0.8), whole), atol=1e-2)


@pytest.mark.parametrize(
    "edits",
    [
        lambda lay: RegionPrompt(base_ratio=0.2).edits(lay),
        lambda lay: PUBLISHED.edits(lay),
        lambda lay: preset("standard", "boxdiff").guides(lay),
    ],
    ids=["region prompt", "rectified", "box constraint"],
)
@pytest.mark.parametrize("first", [True, False])
def test_with_other_methods(models, edits, first):
    """Everything of theirs, the texts of regions and the gradient of a guide too, sees the LoRA."""
    lay = replace(tiny.layout(areas=(tiny.LEFT,)), key="theirs")
    whole = tiny.layout(areas=(WHOLE,))
    model, file = models["sd15"], loras.tensors(models["sd15"], size=0.1)
    theirs = edits(lay)
    lora = RegionLora().edits(whole, {0: (lora_for(model, file, "file"), 0.8)})
    order = [(lay, theirs), (whole, lora)] if not first else [(whole, lora), (lay, theirs)]
    found = model
    for own, each in order:
        found = install(found, own, each)
    expected = install(loras.merged(model, file, 0.8), lay, theirs)
    positive = tiny.conditioning("sd15", lay.prompt, lay.key)
    both = positive + tiny.conditioning("sd15", whole.prompt, whole.key, area=(16, 24, 0, 0))
    found, expected = (tiny.run("sd15", each, both, steps=2) for each in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_chained_nodes_add_up(models, whole):
    """Two LoRAs for one region."""
    model, files = models["sd15"], [loras.tensors(models["sd15"], seed=seed, size=0.2) for seed in (1, 2)]
    expected = run("sd15", loras.merged(loras.merged(model, files[0], 0.8), files[1], 0.8), whole)
    chained = with_loras(with_loras(model, whole, [files[0]]), whole, [files[1]])
    same(run("sd15", chained, whole), expected)


@pytest.mark.parametrize("family, dtype", [
    ("sd15", torch.float16), ("flux", torch.bfloat16), ("sd15", torch.float8_e4m3fn),
])  # fmt: skip
def test_weights_of_other_types(whole, family, dtype):
    """Base weights that are cast for each call: the change is worked out in the type that the layer computes in."""
    model = tiny.build(family)
    file = loras.tensors(model, size=0.1)
    model.model.diffusion_model.to(dtype)
    for module in model.model.diffusion_model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
    full = tiny.build(family)
    for own, cast in zip(full.model.diffusion_model.parameters(), model.model.diffusion_model.parameters()):
        own.data.copy_(cast.data.float())
    expected = run(family, loras.merged(full, file, 0.8), whole)
    same(run(family, with_loras(model, whole, [file]), whole), expected)


# --- what is refused ---


@pytest.mark.parametrize("kind, words", [("input dora", "is a DoRA that.*its input"), ("oft", "of the kind OFT")])
def test_what_is_no_sum_is_refused_by_name(models, kind, words):
    file = loras.tensors(models["sd15"], kind, only=["input_blocks.1.1.transformer_blocks.0.ff.net.2"])
    with pytest.raises(BoxwrightError, match=words) as refused:
        lora_for(models["sd15"], file, "ink.safetensors")
    assert "ink.safetensors" in str(refused.value) and "ff.net.2" in str(refused.value)


def test_a_lora_of_another_model_is_refused(models):
    with pytest.raises(BoxwrightError, match="has nothing for any layer of this model \\(SD15\\)|SD15|BaseModel"):
        lora_for(models["sd15"], loras.tensors(models["flux"]), "ink")
    other = {
        key: torch.cat([t, t], -1) if key.endswith("ff.net.2.lora_down.weight") else t
        for key, t in loras.tensors(models["sd15"], only=["ff.net.2"]).items()
    }
    with pytest.raises(BoxwrightError, match="of another size.*made for another model"):
        lora_for(models["sd15"], other, "ink")
    norm = {"diffusion_model.out.0.w_norm": torch.ones(32)}
    with pytest.raises(BoxwrightError, match="out.0.*neither a linear layer nor a convolution"):
        lora_for(models["sd15"], norm, "ink")


@pytest.mark.parametrize("family", ["auraflow", "wan"])
def test_a_model_whose_layers_are_not_known_is_refused(family):
    with pytest.raises(UnsupportedModelError, match="which layers of this model"):
        lora_for(tiny.build(family), {}, "ink")


def test_another_prompts_layout_is_refused(models, halves):
    patched = with_loras(models["flux"], halves, [loras.tensors(models["flux"])])
    foreign = tiny.conditioning("flux", tiny.text(seed=9))
    with pytest.raises(BoxwrightError, match="was encoded with the layout"):
        tiny.run("flux", patched, foreign, steps=1)


def test_a_step_that_another_node_skips_is_no_refusal(models, halves):
    """EasyCache answers for the model now and then; the LoRAs' time may begin with such a step."""
    model, calls = models["sd15"], []
    late = with_loras(model, halves, [loras.tensors(model)], RegionLora(window=StepWindow(0.3, 1.0)))

    def cached(executor, x, *args, **kwargs):
        calls.append(1)
        return torch.zeros_like(x) if len(calls) in (2, 3) else executor(x, *args, **kwargs)

    def never(executor, x, *args, **kwargs):
        return torch.zeros_like(x)

    some, none = late.clone(), late.clone()
    some.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cache", cached)
    run("sd15", some, halves, steps=4)
    assert len(calls) == 4
    none.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cache", never)
    with pytest.raises(IncompatiblePatchError, match="None of the layers"):
        run("sd15", none, halves, steps=4)


@pytest.mark.parametrize("up, down", [((320, 2), (4, 1280)), ((1280, 2), (2, 320)), ((320,), (2, 1280))])
def test_matrices_that_do_not_belong_together_are_refused_before_sampling(models, up, down):
    """Files of strangers: as many values as the layer has say little."""
    name = "input_blocks.1.1.transformer_blocks.0.ff.net.2"
    out, into = loras.layers(models["sd15"])[name]
    sizes = {320: out, 1280: into}
    file = {
        f"diffusion_model.{name}.lora_{part}.weight": torch.zeros([sizes.get(side, side) for side in shape])
        for part, shape in (("up", up), ("down", down))
    }
    with pytest.raises(BoxwrightError, match="ff.net.2.*another size.*made for another model"):
        lora_for(models["sd15"], file, "ink")


def test_patches_that_merge_tokens_or_replace_the_attention_are_refused(models, halves):
    model, file = models["sd15"], loras.tensors(models["sd15"])
    merging = with_loras(model, halves, [file])
    merging.set_model_attn1_patch(lambda n, context, value, extra: (n[:, ::2], context[:, ::2], value[:, ::2]))
    with pytest.raises((IncompatiblePatchError, RuntimeError), match="tokens"):
        run("sd15", merging, halves)
    replacing = with_loras(model, halves, [file])
    replacing.set_model_attn2_replace(lambda q, k, v, extra: q, "middle", 0)
    with pytest.raises(IncompatiblePatchError, match="replaces a cross-attention"):
        run("sd15", replacing, halves)
