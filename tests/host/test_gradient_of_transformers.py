"""Guides on transformers: text and image share one attention, or have each its own."""

import inspect
import types
from dataclasses import replace
from functools import partial
from typing import get_args

import comfy.ldm.flux.layers
import comfy.model_management
import comfy.ops
import comfy.quant_ops
import pytest
import tiny_models as tiny
import torch
from guides import GUIDE, gradients, left_mass, relative, run
from pack.attention_patches.core.types import StepWindow, UnsupportedModelError
from pack.attention_patches.host.attention import attend
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.guidance import foreign
from pack.attention_patches.host.guidance.differentiable import differentiable
from pack.attention_patches.host.guidance.maps import MapReader
from pack.attention_patches.host.guidance.prediction import prediction_change
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.box_constraint import BoxConstraint, Mode

TRANSFORMERS = [name for name, family in tiny.FAMILIES.items() if family.gradients and not family.unet]
# Every mode with CFG and without; of the other families, the two ways of moving.
GUIDED = [
    *(("flux", mode, cfg) for mode in get_args(Mode) for cfg in (1.0, 4.0)),
    *((family, *way) for family in TRANSFORMERS[1:] for way in (("boxdiff", 4.0), ("fast", 1.0))),
]


def fitting(family, size):
    """The size, or the next that the host's model takes."""
    return tuple(side + side % 2 for side in size) if tiny.FAMILIES[family].even else size


def guide_of(layout, **settings):
    (guide,) = BoxConstraint(**{"window": StepWindow(), **settings}).guides(layout)
    return guide


def in_double(monkeypatch):
    """Everything that depends on the latent in float64, so that central differences are as exact as they can be.

    The run around it is not of interest, and needs kernels that take float64.
    """
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    rope = comfy.ldm.flux.layers.rope
    monkeypatch.setattr(comfy.ldm.flux.layers, "rope", lambda *args: rope(*args).double())


# --- the gradient is right ---


MODES = (None, "boxdiff", "attend_excite")
# Where a kernel takes no float64 the steps are coarse, and only a smooth loss is near its slope.
EXACT = [(family, mode) for family in TRANSFORMERS for mode in MODES if mode is None or tiny.FAMILIES[family].double]


@pytest.mark.parametrize("size", [(16, 24), (15, 21)])
@pytest.mark.parametrize("family, mode", EXACT)
def test_the_gradient_equals_central_differences(family, size, mode, layout, monkeypatch):
    double = tiny.FAMILIES[family].double
    if double:
        in_double(monkeypatch)
    monkeypatch.setattr(attend, "WORK_BYTES", 200_000)  # several pieces, as in a large picture
    guide = guide_of(layout, mode=mode) if mode else GUIDE

    def slope(gradient_of, x):
        draw = torch.Generator().manual_seed(3)
        x = x.double() if double else x
        exact, step = gradient_of(x).values, 1e-4 if double else 2e-2
        directions = [exact / exact.norm(), torch.randn(x.shape, generator=draw).to(x)][: 1 + double]
        found = []
        for direction in directions:
            up, down = (gradient_of(x + sign * step * direction).total.sum() for sign in (1, -1))
            found.append((float((up - down) / (2 * step)), float((exact * direction).sum())))
        return found

    model = tiny.build(family, dtype=torch.float64 if double else torch.float32)
    _, found = gradients(family, model, layout, guide, then=slope, size=fitting(family, size))
    for numeric, exact in found:
        assert abs(exact) > 1e-6
        # Norms that the host takes in 32 bits whatever it is given (Krea 2's) are seen in the fifth digit.
        assert numeric == pytest.approx(exact, rel=5e-5 if double else 0.02)


@pytest.mark.parametrize("guide", [GUIDE, None])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_early_exit_on_and_off_give_the_same_gradient(models, layout, family, guide):
    guide = guide or guide_of(layout)
    (early,), (late,) = (gradients(family, models[family], layout, guide, early_exit=on) for on in (True, False))
    assert torch.equal(early.values, late.values)
    assert early.values.norm() > 1e-4


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_probabilities_that_are_worked_out_again_give_the_same_gradient(models, layout, family, monkeypatch):
    """In pieces none of which is kept: the shares of one layer of a whole picture take gigabytes."""
    (whole,) = gradients(family, models[family], layout)
    monkeypatch.setattr(attend, "WORK_BYTES", 100_000)
    (pieces,) = gradients(family, models[family], layout)
    assert relative(pieces.values, whole.values) < 1e-5


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_batch_has_the_gradients_of_its_rows(models, layout, family):
    def alone(gradient_of, x):
        return [gradient_of(x[i : i + 1]).values for i in range(3)]

    whole, rows = gradients(family, models[family], layout, batch=3, then=alone)
    assert relative(torch.cat(rows), whole.values) < 1e-4


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_pass_runs_no_layer_after_the_last_that_is_read(models, layout, family):
    adapter = adapter_for(models[family])
    layers, seen = adapter.guided, []

    def layers_of(guide, early_exit):
        def watch(maps, site):
            return guide.loss(maps, site)

        seen.clear()
        original = adapter.__class__.locate

        def locate(self, call, *args):
            place = original(self, call, *args)
            if place is not None and torch.is_grad_enabled():
                seen.append(place.layer)
            return place

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adapter.__class__, "locate", locate)
            gradients(family, models[family], layout, replace(guide, loss=watch), early_exit=early_exit)
        return list(seen)

    early, whole = layers_of(GUIDE, True), layers_of(GUIDE, False)
    assert early[-1] == layers[-1] and early == whole[: len(early)] and len(early) < len(whole)
    reader = MapReader(0, None, None, layers)
    run(family, install(models[family], layout, [reader.edit()]), layout, steps=1)
    assert tuple(reader.parts) == layers


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_texts_share_sums_to_one_in_every_cell(models, layout, family):
    """Most of a token's attention is for the image, and the losses compare shares as large as a UNet's."""
    seen = []

    def look(maps, site):
        seen.append(maps.detach())
        return left_mass(maps, site)

    gradients(family, models[family], layout, replace(GUIDE, loss=look))
    assert len(seen[0]) == 2
    torch.testing.assert_close(seen[0].sum(dim=1), torch.ones_like(seen[0][:, 0]))


def test_the_host_is_as_it_was_afterwards(models, layout):
    network = models["flux"].model.diffusion_model
    layers = {name: set(layer.__dict__) for name, layer in network.named_modules()}
    with pytest.raises(KeyError), differentiable(network):
        assert comfy.model_management.in_training is True
        raise KeyError
    run("flux", install(models["flux"], layout, [GUIDE]), layout)
    assert comfy.model_management.in_training is False
    assert {name: set(layer.__dict__) for name, layer in network.named_modules()} == layers


# Kernels that came to comfy-kitchen one after another; whichever this environment has.
ROTATIONS = ("apply_rope", "apply_rope_split_half", "rms_rope", "rms_rope_split_half")
KITCHEN = [name for name in (*ROTATIONS, "adaln", "rms_adaln") if hasattr(comfy.quant_ops.ck, name)]


@pytest.mark.parametrize("name", KITCHEN)
def test_a_kernel_without_a_backward_has_one_in_the_pass_and_there_alone(name):
    """Of the host's comfy-kitchen: not every model asks the host's switch before it calls one."""
    kitchen, draw = comfy.quant_ops.ck, torch.Generator().manual_seed(4)
    before, rotation = getattr(kitchen, name), name in ROTATIONS

    def kernel(x, y, scale, turns):
        if rotation:
            return getattr(kitchen, name)(x, y, turns, *([scale, scale] if name.startswith("rms") else []))
        return getattr(kitchen, name)(x, scale, y)

    with differentiable(torch.nn.Linear(2, 2)):
        shapes = [(1, 5, 2, 8) if rotation else (1, 5, 8)] * 2 + [(8,), (1, 5, 1, 4, 2, 2)]
        given = [torch.randn(shape, generator=draw).double() for shape in shapes]
        moved = [t.requires_grad_(True) for t in given[:2]]
        assert torch.autograd.gradcheck(lambda x, y: kernel(x, y, *given[2:]), moved)
        inside = kernel(*given)
    assert getattr(kitchen, name) is before
    outside = kernel(*(t.detach().float() for t in given))
    torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-5, check_dtype=False)


@torch.library.custom_op("boxwright_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@pytest.mark.parametrize("mode", ["boxdiff", "fast"])
def test_an_operation_without_a_gradient_is_refused_in_words_in_the_first_step(models, layout, mode):
    model, calls = models["flux"].clone(), []
    model.set_model_patch(lambda out, extra: doubled(out), "attn1_output_patch")
    model.set_model_sampler_post_cfg_function(lambda args: calls.append(1) or args["denoised"])
    guided = install(model, layout, [guide_of(layout, mode=mode)])
    with pytest.raises(IncompatiblePatchError, match=r"computes with boxwright_tests\.doubled.* no gradient"):
        run("flux", guided, layout, steps=2)
    assert not calls


# --- what is guided ---


@pytest.mark.parametrize("family, mode, cfg", GUIDED)
def test_the_loss_falls_over_guided_steps(models, layout, family, mode, cfg):
    """Against the same run without a guide, batch 2, an odd size."""
    scale = {"step_size": 300.0, "max_change": 2.0} if mode == "fast" else {"max_change": 0.5, "step_size": 300.0}
    guide = guide_of(layout, mode=mode, top_fraction=1.0, **scale)
    noise = tiny.latent(family, size=fitting(family, (15, 22)), batch=2)

    def losses(step_size):
        found = []

        def noted(maps, site):
            loss = guide.loss(maps, site)
            found.append(loss.total.detach().mean())
            return loss

        steps = replace(guide, loss=noted, step_size=step_size)
        out = run(family, install(models[family], layout, [steps]), layout, noise=noise, steps=10, cfg=cfg)
        return found, out

    (guided, picture), (plain, untouched) = losses(guide.step_size), losses(lambda progress: 0.0)
    assert len(guided) == len(plain) == 10
    assert guided[-1] < plain[-1] and sum(guided[5:]) < sum(plain[5:])
    expected = run(family, models[family], layout, noise=noise, steps=10, cfg=cfg)
    torch.testing.assert_close(untouched, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert torch.isfinite(picture).all() and not torch.equal(picture, untouched)


def test_the_move_of_a_flow_models_prediction(models):
    """v falls as eps does, x0 = x - sigma * v, and the model reads x itself: there is no root of 1 + sigma^2."""
    guider = types.SimpleNamespace(inner_model=models["flux"].model)
    attached = types.SimpleNamespace(progress=lambda level: 0.0, guider=guider)
    slope = torch.tensor([0.1, -0.2])
    change = prediction_change(attached, replace(GUIDE, step_size=lambda p: 3.0, max_change=4.0), slope, 0.5)
    torch.testing.assert_close(change, -3.0 * 0.5**2 * slope)


# --- quantised weights ---


# Layers that scale their input themselves are of hosts from 0.30 on.
SMOOTHED = [False, True] if "pre_quant_scale" in inspect.getsource(comfy.ops) else [False]
# Of newer versions of comfy-kitchen.
INT8 = pytest.mark.skipif(not hasattr(comfy.quant_ops.ck.tensor, "TensorWiseINT8Layout"), reason="no int8 weights here")


@pytest.mark.parametrize("smoothed", SMOOTHED)
# int8 layers compute in int8: their own rounding of what they are given remains.
@pytest.mark.parametrize(
    "format, tolerance",
    [("TensorCoreFP8E4M3Layout", 1e-4), pytest.param("TensorWiseINT8Layout", 0.02, marks=INT8)],
)
def test_the_hosts_own_quantised_weights_have_a_gradient(models, layout, format, tolerance, smoothed):
    """Against the same layers with the weights that the quantised ones stand for. Some scale their input themselves."""

    def quantised(network, keep):
        ops = comfy.ops.mixed_precision_ops({}, torch.float32)
        for block in network.double_blocks:
            layer = block.img_attn.qkv
            weight = comfy.quant_ops.QuantizedTensor.from_float(layer.weight.data, format)
            scale = torch.linspace(0.5, 2.0, layer.in_features) if smoothed else None
            if keep:
                layer.weight.data = weight.dequantize() * (scale if smoothed else 1.0)
                continue
            packed = ops.Linear(layer.in_features, layer.out_features)
            packed.bias, packed.pre_quant_scale = layer.bias, scale
            packed.weight = torch.nn.Parameter(weight, requires_grad=False)
            packed.layout_type, packed._full_precision_mm = format, True
            packed.comfy_cast_weights = True
            block.img_attn.qkv = packed

    (found,), (expected,) = (
        gradients("flux", tiny.build("flux"), layout, before=partial(quantised, keep=keep)) for keep in (False, True)
    )
    assert relative(found.values, expected.values) < tolerance


def test_weights_in_a_packed_format_are_refused_before_the_run(layout):
    """As of GGUF: bytes, and a shape of its own telling."""
    model = tiny.build("flux")
    layer = model.model.diffusion_model.double_blocks[0].img_attn.proj

    class Packed(torch.Tensor):
        @property
        def shape(self):
            return torch.Size([layer.out_features, layer.in_features])

    packed = torch.zeros(layer.out_features, layer.in_features // 2, dtype=torch.uint8).as_subclass(Packed)
    layer._parameters["weight"] = packed
    with pytest.raises(UnsupportedModelError, match="quantised format.*GGUF"):
        install(model, layout, [GUIDE])
    install(model, layout, [])


@pytest.mark.parametrize("family", [name for name, family in tiny.FAMILIES.items() if not family.gradients])
def test_a_guide_on_a_family_without_gradients_is_refused(models, layout, family):
    assert not adapter_for(models[family]).gradients
    with pytest.raises(UnsupportedModelError, match="does not take through"):
        install(models[family], layout, [GUIDE])


def test_a_guide_on_a_film_is_refused_before_the_first_step(models, layout):
    calls = []
    model = models["wan"].clone()
    model.set_model_sampler_pre_cfg_function(lambda args: calls.append(1) or args["conds_out"])
    noise = torch.cat([tiny.latent("wan", seed=seed) for seed in (7, 8, 9)], dim=2)
    with pytest.raises(UnsupportedModelError, match="this latent has 3 frames"):
        run("wan", install(model, layout, [GUIDE]), layout, noise=noise, steps=1)
    assert not calls


def test_families_without_gradients_are_refused_when_installing(models):
    stranger = types.SimpleNamespace(name="Somebody's model", gradients=False)
    with pytest.raises(UnsupportedModelError, match="does not take through Somebody's model"):
        foreign.refuse_without_gradient(stranger, torch.nn.Linear(2, 2))
