"""Gradients through the real host, in inference mode as its executor runs."""

import contextlib
import types
from dataclasses import replace

import comfy.model_management
import comfy.ops
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules.attention import attention_pytorch
from guides import GUIDE, UNETS, gradients, left_mass, relative, run
from pack.attention_patches.core.seam import AttentionLoss
from pack.attention_patches.core.types import BoxwrightError, StepWindow, UnsupportedModelError
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.guidance import foreign, gradient, maps
from pack.attention_patches.host.guidance.differentiable import differentiable
from pack.attention_patches.host.install import install
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from pack.attention_patches.methods.region_prompt import RegionPrompt


def plain_weights(family):
    """The same model with ordinary tensors for weights, which autograd differentiates without any help."""
    with torch.inference_mode(False):
        return tiny.build(family)


def without_recipe(monkeypatch):
    @contextlib.contextmanager
    def plainly(module, **_):
        with torch.inference_mode(False), torch.enable_grad():
            yield

    monkeypatch.setattr(gradient, "differentiable", plainly)


# --- the gradient is right ---


@pytest.mark.parametrize("family", UNETS)
def test_weights_are_inference_tensors_that_autograd_refuses(models, layout, family, monkeypatch):
    """The obstacle itself; else the other tests would prove nothing."""
    assert all(p.is_inference() for p in models[family].model.diffusion_model.parameters())
    without_recipe(monkeypatch)
    with pytest.raises(IncompatiblePatchError) as caught:
        gradients(family, models[family], layout)
    assert "Inference tensors cannot be saved" in str(caught.value.__cause__)


@pytest.mark.parametrize("early_exit", [True, False])
@pytest.mark.parametrize("family", UNETS)
def test_the_gradient_equals_that_of_plain_weights(models, layout, family, early_exit, monkeypatch):
    (found,) = gradients(family, models[family], layout, early_exit=early_exit)
    without_recipe(monkeypatch)
    (expected,) = gradients(family, plain_weights(family), layout, early_exit=False)
    assert expected.values.norm() > 1e-4
    assert relative(found.values, expected.values) < 1e-4
    torch.testing.assert_close(found.total, expected.total)


@pytest.mark.parametrize("family", UNETS)
def test_the_gradient_equals_central_differences(models, layout, family):
    def slope(gradient_of, x):
        direction = gradient_of(x).values
        direction = direction / direction.norm()
        step = 0.05
        up, down = (gradient_of(x + sign * step * direction).total.sum() for sign in (1, -1))
        return float((up - down) / (2 * step)), float((gradient_of(x).values * direction).sum())

    _, (numeric, exact) = gradients(family, models[family], layout, then=slope)
    assert numeric == pytest.approx(exact, rel=0.02)


def test_layers_that_are_not_linear_in_their_weight_alone(models, layout):
    """Seamless tiling: the edges of the image are repeated, so the backward is not that of zeros around it."""

    def around(unet):
        for layer in unet.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.padding != (0, 0):
                layer.padding_mode = "circular"
                layer._reversed_padding_repeated_twice = (layer.padding[1],) * 2 + (layer.padding[0],) * 2

    def slope(gradient_of, x):
        direction = gradient_of(x).values
        direction = direction / direction.norm()
        up, down = (gradient_of(x + sign * 0.05 * direction).total.sum() for sign in (1, -1))
        return float((up - down) / 0.1), float((gradient_of(x).values * direction).sum())

    _, (numeric, exact) = gradients("sd15", tiny.build("sd15"), layout, then=slope, before=around)
    assert numeric == pytest.approx(exact, rel=0.01)


def test_an_adapter_beside_a_layer_is_refused_and_never_left_out(layout):
    """The host's LoRA loader (bypass): gradients of the layer alone would be wrong."""
    model = tiny.build("sd15")
    layer = next(m for name, m in model.model.diffusion_model.named_modules() if name.endswith("to_q"))
    adapter, plain = torch.nn.Linear(layer.in_features, layer.out_features), layer.forward
    layer.forward = lambda x: plain(x) + adapter(x)
    with pytest.raises(IncompatiblePatchError, match="adapter"):
        run("sd15", install(model, layout, [GUIDE]), layout)


HALF = [(family, torch.float16) for family in UNETS]


@pytest.mark.parametrize("family, dtype", [*HALF, ("sd15", torch.float8_e4m3fn)])
def test_smaller_weights_cast_for_each_call(layout, family, dtype, monkeypatch):
    """Manual cast: the parameter has 16 or 8 bits, what a layer computes with is a fresh float32 copy."""

    def cast(model):
        model.model.diffusion_model.to(dtype)
        for module in model.model.diffusion_model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
        return model

    model = cast(tiny.build(family))
    (found,) = gradients(family, model, layout)
    assert next(model.model.diffusion_model.parameters()).dtype == dtype
    without_recipe(monkeypatch)
    (expected,) = gradients(family, cast(plain_weights(family)), layout, early_exit=False)
    assert relative(found.values, expected.values) < 1e-4


def test_a_lora_applied_on_the_fly(models, layout, monkeypatch):
    """Offloaded layers patch their weight in every call (weight_function); the gradient sees the patched weight."""

    def deltas(unet):
        layers = [layer for name, layer in unet.named_modules() if name.endswith(("to_q", "to_k", "proj_in"))]
        assert len(layers) > 5
        for i, layer in enumerate(layers):
            yield layer, 0.2 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(i))

    def on_the_fly(unet):
        for layer, delta in deltas(unet):
            layer.weight_function = [lambda weight, delta=delta: weight + delta.to(weight)]

    def merged(unet):
        with torch.inference_mode(False), torch.no_grad():
            for layer, delta in deltas(unet):
                layer.weight.add_(delta)

    (plain,) = gradients("sd15", models["sd15"], layout)
    (found,) = gradients("sd15", tiny.build("sd15"), layout, before=on_the_fly)
    without_recipe(monkeypatch)
    (expected,) = gradients("sd15", plain_weights("sd15"), layout, early_exit=False, before=merged)
    assert relative(found.values, expected.values) < 1e-4
    assert relative(found.values, plain.values) > 0.01


def test_offloaded_weights_that_share_one_buffer(models, layout, monkeypatch):
    """Partial load: the host copies each weight into one reused buffer. A kept reference would see another layer's."""
    (expected,) = gradients("sd15", models["sd15"], layout)
    with torch.inference_mode():
        buffer = torch.empty(max(p.numel() for p in models["sd15"].model.diffusion_model.parameters()))
    original = comfy.ops.cast_bias_weight

    def through_the_buffer(layer, *args, **kwargs):
        weight, bias, *rest = original(layer, *args, **kwargs)
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):  # the host clones those after the copy
            return (weight, bias, *rest)
        view = buffer[: weight.numel()].view(weight.shape)
        view.copy_(weight)
        used.append(layer)
        return (view, bias, *rest)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", through_the_buffer)
    used = []

    def offloaded(unet):
        for module in unet.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True

    (found,) = gradients("sd15", tiny.build("sd15"), layout, before=offloaded)
    assert len(used) > 20
    assert relative(found.values, expected.values) < 1e-4


def test_two_models_in_one_process_and_a_reload(models, layout):
    (first,) = gradients("sd15", models["sd15"], layout)
    (other,) = gradients("sd15", tiny.build("sd15", seed=4), layout)
    gradients("sdxl", models["sdxl"], layout)
    models["sd15"].unpatch_model(torch.device("cpu"))
    comfy.model_management.unload_all_models()
    (again,) = gradients("sd15", models["sd15"], layout)
    assert torch.equal(first.values, again.values)
    assert relative(other.values, first.values) > 0.1


def test_a_batch_has_the_gradients_of_its_rows(models, layout):
    noise = tiny.latent("sd15", batch=3)

    def alone(gradient_of, x):
        return [gradient_of(x[i : i + 1]).values for i in range(3)]

    whole, rows = gradients("sd15", models["sd15"], layout, batch=3, then=alone)
    assert noise.shape[0] == 3
    assert relative(torch.cat(rows), whole.values) < 1e-4


def test_texts_of_regions_are_left_out(models, layout):
    """A guide asks where the prompt itself puts a phrase; with its own text a region holds the phrase already."""
    coupled = install(models["sd15"], layout, RegionPrompt(confine_end=0.0).edits(layout))
    assert not torch.equal(run("sd15", coupled, layout, steps=1), run("sd15", models["sd15"], layout, steps=1))
    (with_texts,), (without,) = gradients("sd15", coupled, layout), gradients("sd15", models["sd15"], layout)
    assert torch.equal(with_texts.values, without.values)


def test_the_model_is_as_it_was_afterwards(models, layout):
    unet = models["sd15"].model.diffusion_model
    layers = {name: dict(layer.__dict__) for name, layer in unet.named_modules()}
    plain = run("sd15", models["sd15"], layout)
    weights = {name: (p.data_ptr(), p.is_inference()) for name, p in unet.named_parameters()}
    guided = run("sd15", install(models["sd15"], layout, [GUIDE]), layout)
    assert not torch.equal(guided, plain)
    assert {name: (p.data_ptr(), p.is_inference()) for name, p in unet.named_parameters()} == weights
    after = {name: dict(layer.__dict__) for name, layer in unet.named_modules()}
    assert {n: sorted(d) for n, d in after.items()} == {n: sorted(d) for n, d in layers.items()}
    assert torch.equal(run("sd15", models["sd15"], layout), plain)


def test_a_failure_restores_the_model(models):
    unet = models["sd15"].model.diffusion_model
    with pytest.raises(KeyError), differentiable(unet):
        assert any("forward" in layer.__dict__ for layer in unet.modules())
        raise KeyError
    assert not any("forward" in layer.__dict__ for layer in unet.modules())
    assert torch.is_inference_mode_enabled() and all(p.is_inference() for p in unet.parameters())


def test_early_exit_runs_no_layer_after_the_last_that_is_read(models, layout):
    """Layers behind it are not even called; the grid read is the coarsest that is fine enough."""
    called = []

    def count(early):
        called.clear()
        unet = models["sd15"].model.diffusion_model
        handles = [
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
            for name, layer in unet.named_modules()
        ]
        try:
            gradients("sd15", models["sd15"], layout, replace(GUIDE, smallest_side=8), early_exit=early)
        finally:
            for handle in handles:
                handle.remove()
        # The run's own step follows the gradient: its 2 rows come once.
        return len(called)

    assert count(True) < count(False)


@pytest.mark.parametrize("family", UNETS)
def test_the_last_layer_is_the_last_that_a_full_pass_reads(models, layout, family):
    adapter = adapter_for(models[family])
    for level in range(len(adapter.factors)):
        reader = maps.MapReader(level, None, None)
        run(family, install(models[family], layout, [reader.edit()]), layout, steps=1)
        assert list(reader.parts)[-1] == adapter.last_layer(level)


@pytest.mark.parametrize(
    "factors, latent, level",
    [
        ((1, 2, 4, 8), (64, 64), 2),  # SD 1.5 at 512: 16 x 16
        ((1, 2, 4, 8), (96, 96), 2),  # at 768: 24 x 24
        ((1, 2, 4, 8), (128, 128), 2),  # at 1024: 32 x 32
        ((1, 2, 4, 8), (48, 48), 2),  # at 384: 12 x 12, of the same layers
        ((1, 2, 4, 8), (32, 48), 2),  # at 256 x 384: 8 x 12
        ((1, 2, 4, 8), (24, 24), 1),  # at 192: 6 x 6 would show no more than where halves are
        ((2, 4), (128, 128), 1),  # SDXL at 1024: 32 x 32
        ((2, 4), (64, 64), 1),  # SDXL at 512: 16 x 16
        ((1, 2, 4), (32, 32), 1),  # the toy at 256: 16 x 16
        ((1, 2, 4), (40, 40), 1),  # at 320: 20 x 20; the coarsest grid would be 10 x 10
        ((1, 2, 4), (16, 16), 1),  # at 128: 8 x 8
        ((1, 2, 4), (8, 8), 0),
        ((2, 4), (16, 24), 0),
        ((2, 4), (8, 8), 0),  # nothing is fine enough: the finest
    ],
)
def test_the_grid_follows_from_the_latent(factors, latent, level):
    assert maps.map_level(factors, latent, 16) == level


# --- what can go wrong ---


def test_out_of_memory_is_tried_once_more_a_row_at_a_time(models, layout, monkeypatch):
    noise = tiny.latent("sd15", batch=3)
    patched = install(models["sd15"], layout, [GUIDE])
    whole = run("sd15", patched, layout, noise=noise, steps=1)
    original, rows = gradient._entry_gradient, []

    def small_memory(run, item, loss, entry, x, *rest):
        rows.append(x.shape[0])
        if x.shape[0] > limit:
            raise torch.OutOfMemoryError("emulated")
        return original(run, item, loss, entry, x, *rest)

    monkeypatch.setattr(gradient, "_entry_gradient", small_memory)
    limit = 1
    split = run("sd15", patched, layout, noise=noise, steps=1)
    assert rows == [3, 1, 1, 1]
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-3 * float(whole.abs().max()))
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        run("sd15", patched, layout, noise=noise, steps=1)


def test_a_picture_too_large_for_the_card_keeps_its_pass_in_main_memory(models, layout, monkeypatch):
    original, places = gradient._entry_gradient, []

    @contextlib.contextmanager
    def main_memory():
        places.append("main memory")
        yield
        places.append("card")

    def small_memory(run, item, loss, entry, x, *rest):
        if places[-1] == "card":
            raise torch.OutOfMemoryError("emulated")
        return original(run, item, loss, entry, x, *rest)

    (expected,) = gradients("sd15", models["sd15"], layout, batch=2)
    monkeypatch.setattr(gradient, "_entry_gradient", small_memory)
    places.append("card")
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd.graph, "save_on_cpu", main_memory)
        (found,) = gradients("sd15", models["sd15"], layout, batch=2)
    assert places == ["card", *["main memory", "card"] * 2]
    assert relative(found.values, expected.values) < 1e-4
    places.append("main memory")
    with torch.autograd.graph.save_on_cpu():
        (found,) = gradients("sd15", models["sd15"], layout, batch=2)
    assert torch.equal(found.values, expected.values)


def test_another_error_stays_what_it_is(models, layout, monkeypatch):
    """Also on hosts that have no name for running out of memory."""
    rows = []

    def broken(run, item, loss, entry, x, *rest):
        rows.append(x.shape[0])
        raise KeyError("emulated")

    monkeypatch.setattr(gradient, "_entry_gradient", broken)
    with pytest.raises(KeyError, match="emulated"):
        run("sd15", install(models["sd15"], layout, [GUIDE]), layout, noise=tiny.latent("sd15", batch=3), steps=1)
    assert rows == [3]


@pytest.mark.parametrize(
    "dtype, advice, others",
    [
        (torch.float16, "Run the model in bfloat16 or float32, or choose", []),
        (torch.bfloat16, "Run the model in float32, or choose", ["bfloat16 or"]),
        (torch.float32, "Choose a method without gradients", ["Run the model"]),
    ],
)
def test_a_gradient_that_is_not_finite_is_refused(layout, dtype, advice, others):
    def broken(maps, site):
        found = left_mass(maps, site)
        return replace(found, total=found.total * torch.inf)

    model = tiny.build("sd15", dtype=dtype)
    with pytest.raises(BoxwrightError, match=f"not finite in {dtype}.*{advice}") as caught:
        run("sd15", install(model, layout, [replace(GUIDE, loss=broken)]), layout, steps=1)
    assert not any(other in str(caught.value) for other in others)


@pytest.mark.parametrize("too_steep", [1e2, 3e3])
def test_a_gradient_that_overflows_is_tried_again_with_a_smaller_loss(too_steep):
    """In 16 bits the loss is scaled up; a steep one needs less of that, and some need more than one try."""
    scales = []

    class Half(torch.autograd.Function):
        """A layer in float16."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            scales.append(1)
            return gradient.half().float()

    model = types.SimpleNamespace(manual_cast_dtype=None, get_dtype=lambda: torch.float16)
    with torch.inference_mode(False), torch.enable_grad():
        latent = torch.ones(2, 4, 3, 3, requires_grad=True)
        total = too_steep * Half.apply(latent).flatten(1).sum(dim=1)
        loss = AttentionLoss(total, total.detach()[:, None], ("w",))
        found = gradient.differentiate(model, loss, latent)
    torch.testing.assert_close(found.values, torch.full_like(latent, too_steep), rtol=1e-3, atol=0)
    assert len(scales) == {1e2: 2, 3e3: 3}[too_steep]


def test_a_loss_without_a_gradient_is_told(models, layout):
    """A goal that the attention gives no way to: the note is all that a user can see of it."""

    def flat(maps, site):
        found = left_mass(maps, site)
        return replace(found, total=found.total.detach() + 0.0 * found.total)

    lines = []
    guide = replace(GUIDE, loss=flat)
    run("sd15", install(models["sd15"], layout, [guide], lines.append), layout, steps=1)
    assert "gives no direction" in lines[0]
    lines.clear()
    run("sd15", install(models["sd15"], layout, [replace(guide, loss=left_mass)], lines.append), layout, steps=1)
    assert "gives no direction" not in lines[0]


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_a_phrase_without_a_direction_is_named_and_notes_are_said_once(models, layout, moves):
    """Of two phrases, one that a rival is far ahead of; each row of the batch says so, in a pass of its own too."""

    def half_blind(maps, site):
        found, rows = left_mass(maps, site), maps.shape[0]
        blind = torch.tensor([[True, False]]).expand(rows, -1)
        return AttentionLoss(found.total, found.per_phrase.expand(-1, 2), ("red circle", "sea"), ("a note",), blind)

    lines = []
    guide = replace(GUIDE, loss=half_blind, moves=moves)
    run("sd15", install(models["sd15"], layout, [guide], lines.append), layout, steps=1)
    assert lines[0].endswith('; a note; the attention gives no direction to "red circle" here')


def test_the_notes_of_all_parts_are_joined_without_repeats():
    def part(*notes):
        rows = torch.zeros(1)
        return gradient.Gradient(torch.zeros(1, 4, 2, 2), rows, rows[:, None], ("w",), notes)

    parts = [part("one"), part("one", "two"), part("three")]
    for join in (gradient.mean_gradient, gradient._joined):
        assert join(parts).notes == ("one", "two", "three")


@pytest.mark.parametrize("moves", ["latent", "prediction"])
def test_masked_attention_is_differentiated_by_the_plain_kernel(models, layout, moves, monkeypatch):
    """The fused kernels' backward with a mask is not known to be right for every length on every card."""
    used = []
    original = torch.nn.functional.scaled_dot_product_attention

    def noted(q, k, v, attn_mask=None, **kwargs):
        fused = torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()
        used.append((q.requires_grad, attn_mask is not None, fused))
        return original(q, k, v, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(foreign, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(comfy.ops, "scaled_dot_product_attention", noted)
    confined = RectifiedAttention(window=StepWindow(), feather=0.0).edits(layout)
    run("sd15", install(models["sd15"], layout, [*confined, replace(GUIDE, moves=moves)]), layout, steps=1)
    with_graph = {(masked, fused) for graph, masked, fused in used if graph}
    assert with_graph == {(False, True), (True, False)}


@pytest.mark.parametrize("tokens", [64, 128, 192])
@pytest.mark.parametrize("reshaped", [False, True])
def test_the_plain_kernel_gives_what_the_hosts_attention_gives(tokens, reshaped):
    draw = torch.Generator().manual_seed(0)
    shape = (2, 4, tokens, 8) if reshaped else (2, tokens, 32)
    q, k, v = (torch.randn(shape, generator=draw) for _ in range(3))
    mask = torch.randn(2, 1, tokens, tokens, generator=draw)
    options = {"skip_reshape": reshaped, "skip_output_reshape": reshaped}
    found = foreign._attention_with_backward(q, k, v, 4, mask, **options)
    torch.testing.assert_close(found, attention_pytorch(q, k, v, 4, mask, **options))


def test_weights_without_a_backward_are_refused(layout):
    model = tiny.build("sd15")
    layer = model.model.diffusion_model.middle_block[0].in_layers[2]
    original = layer.forward

    class Packed(type(layer)):
        """A layer of another pack that unpacks its weights by itself."""

        def forward(self, x):
            return original(x)

    layer.__class__ = Packed
    layer._parameters["weight"] = torch.nn.Parameter(torch.zeros(7, dtype=torch.uint8), requires_grad=False)
    layer._parameters["weight"].data = torch.zeros(7, dtype=torch.uint8)
    with torch.inference_mode():
        weight = torch.randn(layer.out_channels, layer.in_channels, 3, 3) * 0.01
    original = lambda x: torch.nn.functional.conv2d(x, weight, None, padding=1)  # noqa: E731
    with pytest.raises(UnsupportedModelError, match="quantised format"):
        run("sd15", install(model, layout, [replace(GUIDE, smallest_side=1)]), layout)
