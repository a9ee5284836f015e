"""The adapters' contract, in the frames of a film."""

from dataclasses import replace
from math import prod

import pytest
import tiny_models as tiny
import torch
from contract import FILMS, assert_close, rectified
from pack.attention_patches.core.grids import covered
from pack.attention_patches.core.seam import AttentionEdit, TextMix
from pack.attention_patches.core.types import Box
from pack.attention_patches.host.attention.calls import IncompatiblePatchError
from pack.attention_patches.host.families import adapter_for
from pack.attention_patches.host.install import install


@pytest.mark.parametrize("stage", ["bias", "scores", "probs", "read"])
@pytest.mark.parametrize("kind", ["image_text", "image_image"])
@pytest.mark.parametrize("in_line", [False, True])
@pytest.mark.parametrize("family", FILMS)
def test_edits_see_one_frame_at_a_time(models, layout, family, stage, kind, in_line):
    """Also where several pictures are frames (Qwen-Image); each of them has all the tokens of its grid."""
    seen, image = [], prod(tiny.tokens(family))

    def fn(values, site):
        seen.append((site.queries, values.shape[-2:]))
        return values

    model = tiny.probe(models[family], []) if in_line else models[family]
    patched = install(model, layout, [AttentionEdit("watch", stage, fn, kind=kind)])
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    noise = torch.cat([tiny.latent(family, seed=seed) for seed in (7, 8, 9)], dim=2)
    out = tiny.run(family, patched, positive, noise=noise, steps=1)
    assert seen and {(q.start, q.stop) for q, _ in seen} == {(0, image)}
    assert {tuple(shape) for _, shape in seen} == {(image, 77 if kind == "image_text" else image)}
    assert_close(out, tiny.run(family, models[family], positive, noise=noise, steps=1))


def hidden(model, family, positive, frames, **more):
    """The columns of the text that each image token may not read, [frame][row, column] of the last masked attention."""
    seen = []
    noise = torch.cat([tiny.latent(family, seed=7 + k) for k in range(frames)], dim=2)
    tiny.run(family, tiny.probe(model, seen), positive, noise=noise, steps=1, cfg=1.0, **more)
    mask = [args[4] for args, _, _ in seen if len(args) > 4 and args[4] is not None and (args[4] < -1e3).any()][-1]
    (text, start), image = tiny.places(family), prod(tiny.tokens(family))
    assert not (mask[..., :start, :] < -1e3).any()
    return [(mask < -1e3)[0, 0, start + k * image : start + (k + 1) * image, text : text + 77] for k in range(frames)]


@pytest.mark.parametrize("family", FILMS)
def test_a_region_holds_in_its_frames(models, family):
    """From start_frame to before end_frame, in pictures. In other frames nobody reads its words."""
    layout = tiny.layout()
    positive = tiny.conditioning(family, layout.prompt, layout.key)
    always = hidden(install(models[family], layout, rectified(layout)), family, positive, 3)
    each = adapter_for(models[family]).frame  # pictures that a later latent frame makes
    assert getattr(models[family].model.latent_format, "temporal_downscale_ratio", each) == each  # newer hosts say it
    first, second = layout.regions
    timed = replace(layout, regions=(replace(first, start_frame=1, end_frame=1 + each), second))
    now = hidden(install(models[family], timed, rectified(timed)), family, positive, 3)
    assert torch.equal(now[1], always[1])
    words, others = (layout.columns[r] for r in (0, 1))
    for k in (0, 2):
        assert now[k][:, words].all() and torch.equal(now[k][:, others], always[k][:, others])
    assert each > 1 and not always[0][:, words].all()


def test_frames_do_not_count_in_a_picture(models):
    layout = tiny.layout()
    positive = tiny.conditioning("wan", layout.prompt, layout.key)
    timed = replace(layout, regions=tuple(replace(r, start_frame=5) for r in layout.regions))
    runs = [tiny.run("wan", install(models["wan"], own, rectified(own)), positive, steps=1) for own in (layout, timed)]
    assert torch.equal(*runs)


def test_frames_of_a_part_of_a_film_are_refused(models):
    """Context windows give the model some frames at a time and do not say which."""
    layout, model = tiny.layout(), models["wan"].clone()
    timed = replace(layout, regions=tuple(replace(r, start_frame=1) for r in layout.regions))

    def half(apply_model, args):
        return apply_model(args["input"][:, :, :2], args["timestep"], **args["c"]).repeat(1, 1, 2, 1, 1)

    model.set_model_unet_function_wrapper(half)
    positive = tiny.conditioning("wan", layout.prompt, layout.key)
    noise = torch.cat([tiny.latent("wan", seed=seed) for seed in range(4)], dim=2)
    with pytest.raises(IncompatiblePatchError, match="part of the film .2 latent frames"):
        tiny.run("wan", install(model, timed, rectified(timed)), positive, noise=noise, steps=1)
    assert tiny.run("wan", install(model, layout, rectified(layout)), positive, noise=noise, steps=1).isfinite().all()


def test_a_mix_may_change_from_frame_to_frame(models):
    """Read where no region is: in the first frame nowhere, later everywhere."""
    layout, other = tiny.layout(areas=(Box(0.0, 0.0, 1.0, 1.0),)), tiny.text(seed=21)
    timed = replace(layout, regions=(replace(layout.regions[0], end_frame=1),))
    seen = []

    def weigh(site):
        seen.append(site.frames)
        return 1.0 - covered(site.layout.regions[0], site).flatten()[None]

    positive = tiny.conditioning("wan", layout.prompt, layout.key)
    noise = torch.cat([tiny.latent("wan", seed=seed) for seed in (7, 8, 9)], dim=2)

    patched = install(models["wan"], timed, [TextMix("mix", (other.embedding,), weigh)])
    calls = []
    layer = models["wan"].model.diffusion_model.blocks[0].cross_attn.o
    handle = layer.register_forward_pre_hook(lambda module, args: calls.append(args[0].clone()))
    try:
        runs = (patched, positive), (models["wan"], positive), (models["wan"], tiny.conditioning("wan", other))
        for model, text in runs:
            tiny.run("wan", model, text, noise=noise, steps=1, cfg=1.0)
    finally:
        handle.remove()
    mixed, own, others = (call[0] for call in calls)
    image = prod(tiny.tokens("wan"))
    assert_close(mixed[:image], own[:image])
    assert_close(mixed[image:], others[image:])
    assert {*seen} == {(0, 1), (1, 5), (5, 9)}
