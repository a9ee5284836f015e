"""Region LoRA as a node on the toy, its files, and the text part in Layout Prompt: parity, notes, what is refused."""

import json

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import tiny_loras as loras
import torch
from pack.attention_patches.core.types import BoxwrightError
from pack.nodes.layout_prompt import BoxwrightLayoutPrompt
from pack.nodes.parts.regions_json import parse_regions_json
from pack.nodes.region_lora import FROM_LAYOUT, BoxwrightRegionLora
from toyworld import sampling

PROMPT = "a red circle and a blue star"
OPTIONS = dict(lora=FROM_LAYOUT, lora_strength=1.0, region=0, overlap="order", feather=0.0, start=0.0, end=1.0)
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)


def regions(*loras, boxes=(LEFT, RIGHT), **more):
    """Two regions, from JSON, that name these LoRAs (None = none)."""
    entries = [
        dict(zip(("x", "y", "width", "height"), box)) | {"phrase": phrase} | ({"lora": name} if name else {}) | more
        for phrase, box, name in zip(("red circle", "blue star"), boxes, loras)
    ]
    return parse_regions_json(json.dumps({"type": "boxwright.regions", "version": 1, "regions": entries}))


@pytest.fixture
def folder(toy, tmp_path, monkeypatch):
    """models/loras with three files: of the model, of the text encoder too, and of nothing."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (tmp_path / "inks").mkdir()
    own = {key: t.contiguous() for key, t in loras.tensors(toy[0], only=["attn", "ff."], size=0.05).items()}
    comfy.utils.save_torch_file(own, str(tmp_path / "inks" / "blue.safetensors"))
    keys = comfy.lora.model_lora_keys_clip(toy[1].cond_stage_model, {})
    name = next(key for key in keys if key.endswith("mlp_fc1"))
    out, into = comfy.utils.get_attr(toy[1].cond_stage_model, keys[name]).shape
    g = torch.Generator().manual_seed(5)
    text = {
        f"{name}.lora_up.weight": torch.randn(out, 2, generator=g),
        f"{name}.lora_down.weight": torch.randn(2, into, generator=g),
    }
    comfy.utils.save_torch_file(own | text, str(tmp_path / "both.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors in here")
    return tmp_path


def layout_of(toy, drawn):
    positive, layout, *_ = BoxwrightLayoutPrompt.execute(toy[1], drawn, PROMPT, True).args
    return positive, layout


def patched(toy, layout, **changes):
    return BoxwrightRegionLora.execute(toy[0], layout, **{**OPTIONS, **changes}).args


def draw(toy, model, positive):
    return sampling.sample(model, toy[2], positive, sampling.encode(toy[1], ""), [0], steps=1, size=(128, 128))


def loaded(toy, path, strength, clip=False):
    """The host's LoraLoader."""
    file = comfy.utils.load_torch_file(str(path))
    return comfy.sd.load_lora_for_models(toy[0], toy[1] if clip else None, file, strength, strength)


WHOLE = (0.0, 0.0, 1.0, 1.0)


def test_a_file_for_the_whole_picture_is_the_hosts_loader(toy, folder):
    """Named by the layout, with either slash, or by the node; and the strengths multiply."""
    expected = None
    for name, more, changes in (
        ("inks/blue.safetensors", {"lora_strength": 1.6}, {"lora_strength": 0.5}),
        ("inks\\blue.safetensors", {"lora_strength": 0.8}, {}),
        (None, {}, {"lora": "inks/blue.safetensors", "lora_strength": 0.8, "region": 1}),
    ):
        positive, layout = layout_of(toy, regions(name, boxes=(WHOLE,), **more))
        if expected is None:
            merged = loaded(toy, folder / "inks" / "blue.safetensors", 0.8)[0]
            expected = draw(toy, merged, positive)
            assert (expected - draw(toy, toy[0], positive)).abs().max() > 0.05
        model, notes = patched(toy, layout, **changes)
        torch.testing.assert_close(draw(toy, model, positive), expected, rtol=0, atol=1e-3)
        assert 'Region 1 ("red circle"): inks/blue.safetensors at' in notes


def test_each_region_has_its_own_and_the_notes_say_so(toy, folder):
    positive, layout = layout_of(toy, regions("inks/blue.safetensors", "both.safetensors"))
    model, notes = patched(toy, layout)
    assert 'Region 2 ("blue star"): both.safetensors at 1.' in notes and "in its regions' own texts" in notes
    chained, said = toy[0], []
    for region, name in ((1, "inks/blue.safetensors"), (2, "both.safetensors")):
        chained, more = BoxwrightRegionLora.execute(chained, layout, **OPTIONS | {"lora": name, "region": region}).args
        said.append(more)
    assert "for the text encoder is left out" in said[1] and "text encoder" not in said[0]
    torch.testing.assert_close(draw(toy, chained, positive), draw(toy, model, positive), rtol=0, atol=1e-3)


def test_the_text_part_is_in_the_regions_own_text_alone(toy, folder):
    positive, layout = layout_of(toy, regions("both.safetensors", "inks/blue.safetensors", negative="red heart"))
    plain_positive, plain = layout_of(toy, regions(None, None, negative="red heart"))
    clip = loaded(toy, folder / "both.safetensors", 1.0, clip=True)[1]
    for found, phrase in ((layout.region_texts[0], "red circle"), (layout.region_negatives[0], "red heart")):
        assert torch.equal(found.embedding, sampling.encode(clip, phrase)[0][0])
        assert not torch.equal(found.embedding, sampling.encode(toy[1], phrase)[0][0])
    assert torch.equal(layout.region_texts[1].embedding, plain.region_texts[1].embedding)
    assert torch.equal(positive[0][0], plain_positive[0][0])  # the prompt is not one region's
    assert plain.key != layout.key
    report = BoxwrightLayoutPrompt.execute(toy[1], layout.regions, PROMPT, True).ui.as_dict()["text"][0]
    assert "Region 1: its own text is encoded with both.safetensors." in report and "Region 2: its" not in report


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "No region of the layout names a LoRA"),
        ({"lora": "gone.safetensors"}, 'lora is "gone.safetensors", and there is no such file'),
        ({"lora": "../both.safetensors"}, "no name of a file in the folder"),
        ({"lora": "both.safetensors", "region": 3}, "region is 3, and the layout has 2 regions"),
        ({"lora": "broken.safetensors"}, '"broken.safetensors" cannot be read'),
    ],
)
def test_what_cannot_be_is_refused(toy, folder, changes, words):
    layout = layout_of(toy, regions(None, None))[1]
    with pytest.raises(BoxwrightError, match=words):
        patched(toy, layout, **changes)


def test_a_strangers_layout_with_a_missing_file_is_one_clear_error(toy, folder):
    with pytest.raises(BoxwrightError, match='The LoRA of region 2 is "hers.safetensors", and there is no such file'):
        layout_of(toy, regions(None, "hers.safetensors"))


def test_a_lora_at_strength_0_is_off(toy, folder):
    positive, layout = layout_of(toy, regions("both.safetensors", None, lora_strength=0))
    model, notes = patched(toy, layout)
    assert "It is off" in notes
    assert torch.equal(draw(toy, model, positive), draw(toy, toy[0], positive))
    assert torch.equal(layout.region_texts[0].embedding, sampling.encode(toy[1], "red circle")[0][0])
