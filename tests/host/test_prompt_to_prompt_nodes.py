"""The nodes of Prompt-to-Prompt and of the recorder on the toy model: encoding, wiring, pictures, refusals."""

import nodes as host_nodes
import pytest
import torch
from pack.attention_patches.core.masks import mask_of, resized
from pack.attention_patches.core.types import BoxwrightError, PhraseNotFoundError, TokenMap
from pack.attention_patches.host.prompt_to_prompt import encode_prompts
from pack.attention_patches.host.text.layout import encode_layout
from pack.attention_patches.methods.recorder import Recording, Records
from pack.nodes.attention_heatmap import BoxwrightAttentionHeatmap, recorded_phrases
from pack.nodes.attention_recorder import BoxwrightAttentionRecorder
from pack.nodes.mask_from_word import BoxwrightMaskFromWord
from pack.nodes.parts.heatmaps import HEAT, heat_colors
from pack.nodes.parts.phrases import parse_phrases, parse_windows
from pack.nodes.prompt_to_prompt import BoxwrightPromptToPrompt
from toyworld import sampling

SOURCE, TARGETS = "a red circle", "a blue circle\na large red circle"
SETTINGS = dict(
    source=SOURCE,
    targets=TARGETS,
    negative_prompt="",
    mode="auto",
    cross_start=0.0,
    cross_end=0.8,
    self_start=0.0,
    self_end=0.4,
    self_side=32,
    weights="",
    word_windows="",
    blend_words="",
    subtract_words="",
    blend_threshold=0.3,
    blend_pooling=1,
    blend_start=0.2,
)


def empty(batch=1, size=8):
    return {"samples": torch.zeros(batch, 4, size, size)}


def prompt_to_prompt(toy, latent=None, **settings):
    return BoxwrightPromptToPrompt.execute(toy[0], toy[1], latent or empty(), **SETTINGS | settings)


def ksampler(model, positive, negative, latent, sampler="euler", steps=2, seed=3):
    return host_nodes.KSampler().sample(model, seed, steps, 5.0, sampler, "normal", positive, negative, latent)[0]


# --- Prompt to Prompt ---


def test_all_prompts_are_rows_of_one_conditioning(toy):
    _, positive, negative, latent, _ = prompt_to_prompt(toy, empty(2)).result
    assert len(positive) == 1
    for row, text in enumerate([SOURCE, *TARGETS.splitlines()]):
        assert torch.equal(positive[0][0][row], sampling.encode(toy[1], text)[0][0][0])
    assert torch.equal(negative[0][0], sampling.encode(toy[1], "")[0][0])
    assert latent["samples"].shape[0] == 6 and latent["batch_index"] == [0, 0, 0, 1, 1, 1]


def test_a_stock_sampler_returns_source_and_targets(toy):
    model, positive, negative, latent, _ = prompt_to_prompt(toy, targets="a red circle").result
    for sampler in ("euler", "dpmpp_2m_sde"):
        out = ksampler(model, positive, negative, latent, sampler)["samples"]
        assert torch.equal(out[0], out[1])
    model, positive, negative, latent, _ = prompt_to_prompt(toy).result
    alone = ksampler(toy[0], sampling.encode(toy[1], SOURCE), negative, empty())["samples"]
    out = ksampler(model, positive, negative, latent)["samples"]
    torch.testing.assert_close(out[:1], alone, rtol=0, atol=1e-3 * float(alone.abs().max()))


def test_the_alignment_is_shown(toy):
    report = prompt_to_prompt(toy)[4]
    assert report.splitlines() == [
        "source: a red circle",
        "target 1: a blue circle",
        "  = a",
        "  ~ red -> blue (replaced: takes over its attention)",
        "  = circle",
        "target 2: a large red circle",
        "  = a",
        "  + large (new: keeps its own attention)",
        "  = red circle",
    ]


def test_orders_to_other_programs_are_said_and_not_drawn(toy):
    _, positive, _, _, report = prompt_to_prompt(
        toy, source="a red circle <lora:x:1>", targets="a blue circle BREAK", negative_prompt="__bad__"
    ).result
    for row, text in enumerate(["a red circle", "a blue circle"]):
        assert torch.equal(positive[0][0][row], sampling.encode(toy[1], text)[0][0][0])
    assert [line.split(".")[0] for line in report.splitlines()[-3:]] == [
        "source: <lora:x:1> left out",
        "target 1: BREAK left out, a comma put in its place",
        "negative_prompt: __bad__ is read as it stands; nothing is put in its place here",
    ]


@pytest.mark.parametrize("phrase", ["blue circle", "(blue circle:1.3)", "((blue) circle)"])
def test_words_are_named_with_or_without_emphasis(toy, phrase):
    """The target says it with emphasis; a name of its words may."""
    targets = "a (blue:1.2) circle"
    prompt_to_prompt(
        toy,
        targets=targets,
        weights=f"{phrase}: 2",
        word_windows=f"{phrase}: 0 0.5",
        blend_words=phrase,
        source="a blue circle",
    )


def test_prompts_of_other_lengths_stand_side_by_side(toy):
    """One chunk beside two: the short one's columns are repeated, which changes nothing for it."""
    model, clip, _ = toy
    long = "a red circle " + "and a blue star " * 25
    positive, prompts = encode_prompts(model, clip, [SOURCE, long], "auto")
    single = sampling.encode(clip, SOURCE)[0][0]
    assert positive[0][0].shape[1] == 2 * single.shape[1] == len(prompts.targets[0])
    assert torch.equal(positive[0][0][:1], single.repeat(1, 2, 1))
    assert prompts.alignments[0].weights.shape == (positive[0][0].shape[1],) * 2
    out = prompt_to_prompt(toy, source=SOURCE, targets=long, cross_end=0.0, self_end=0.0).result
    rows = ksampler(*out[:4])["samples"]
    alone = ksampler(model, sampling.encode(clip, SOURCE), sampling.encode(clip, ""), empty())["samples"]
    torch.testing.assert_close(rows[:1], alone, rtol=0, atol=1e-3 * float(alone.abs().max()))


def test_what_the_encoder_adds_stands_side_by_side(toy):
    positive, _ = encode_prompts(*toy[:2], [SOURCE, "a blue circle"], "auto")
    pooled = [sampling.encode(toy[1], text)[0][1]["pooled_output"] for text in (SOURCE, "a blue circle")]
    assert torch.equal(positive[0][1]["pooled_output"], torch.cat(pooled))


def test_every_setting_counts(toy):
    def run(**settings):
        mask = settings.pop("blend_mask", None)
        extra = {} if mask is None else {"blend_mask": mask}
        start = dict(source="a red circle", targets="a large blue star", self_side=4) | settings
        return ksampler(*prompt_to_prompt(toy, **start, **extra).result[:4], steps=4)["samples"]

    usual = run()
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1.0
    changes = [
        {"mode": "refine", "targets": "a blue star"}, {"cross_start": 0.5}, {"cross_end": 0.2}, {"self_start": 0.3},
        {"self_end": 0.9}, {"self_side": 8}, {"weights": "blue: 4"}, {"word_windows": "star: 0 0.1\na: 0 0"},
        {"blend_words": "circle, star", "blend_threshold": 0.95, "blend_pooling": 0}, {"blend_mask": half},
    ]  # fmt: skip
    assert torch.equal(run(), usual) and not torch.equal(usual[0], usual[1])
    for change in changes:
        base = run(targets="a blue star") if "targets" in change else usual
        assert not torch.equal(run(**change)[1], base[1]), change


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"targets": " \n "}, "no target prompt"),
        ({"targets": "a\n" * 16}, "16 target prompts; write 1 to 15"),
        ({"mode": "replace", "targets": "a big blue circle"}, "cannot be replaced"),
        ({"cross_start": 0.9}, "window 0.9 to 0.8 is empty"),
        ({"self_start": 0.9}, "window 0.9 to 0.4 is empty"),
        ({"weights": "green: 2"}, '"green" is not in any target prompt'),
        ({"weights": "blue: 2", "cross_end": 0.0}, "that window is empty"),
        ({"word_windows": "blue: 0.5"}, 'Line 1 of word_windows is "blue: 0.5"; write a phrase'),
        ({"word_windows": "blue: 0.5 0.2"}, "window 0.5 to 0.2 is empty"),
        ({"word_windows": "green: 0 1"}, '"green" is not in any target'),
        ({"blend_words": "blue"}, 'none of "blue" is in the source prompt'),
        ({"blend_words": "green"}, '"green" is not in any of the prompts'),
        ({"subtract_words": "circle"}, "neither words nor a mask"),
        ({"blend_mask": torch.ones(3, 8, 8)}, "blend_mask holds 3 masks"),
        ({"latent": {"samples": torch.zeros(1, 4, 2, 8, 8)}}, "5 dimensions"),
    ],
)
def test_what_is_wrong_is_said_before_sampling(toy, settings, words):
    with pytest.raises(BoxwrightError, match=words):
        prompt_to_prompt(toy, **settings)


def test_another_latent_is_refused(toy):
    model, positive, negative, _, _ = prompt_to_prompt(toy).result
    with pytest.raises(BoxwrightError, match="1 rows for 3 prompts"):
        ksampler(model, positive, negative, empty())


# --- recorder, heatmap, mask ---


def record_of(toy, prompt="a red circle and a blue star", layout=None, seeds=(0, 1), **settings):
    settings = dict(phrases="", resolutions="middle", moments=2, start=0.0, end=1.0, budget_mb=64) | settings
    wires = {"layout": layout} if layout is not None else {"clip": toy[1], "prompt": prompt}
    model, record = BoxwrightAttentionRecorder.execute(toy[0], **settings, **wires).result
    text, negative = sampling.encode(toy[1], prompt), sampling.encode(toy[1], "")
    return record, sampling.sample(model, toy[2], text, negative, list(seeds), steps=4, size=(64, 64))


@pytest.fixture(scope="module")
def recorded(toy):
    return record_of(toy)


def heatmap(recorded, **settings):
    settings = dict(phrases="", columns="mean", opacity=0.6, threshold=0.0) | settings
    return BoxwrightAttentionHeatmap.execute(*recorded, **settings).result


def test_heatmaps_have_a_row_for_each_phrase_and_a_grid_for_each_picture(recorded):
    record, images = recorded
    grids, mask = heatmap(recorded, phrases="red circle, blue star")
    assert grids.shape[0] == 2 and mask.shape == (2, 64, 64)
    assert float(grids.min()) >= 0 and float(grids.max()) <= 1 and not torch.equal(grids[0], grids[1])
    (one, _), (words, _) = heatmap(recorded, phrases="red circle"), heatmap(recorded)
    line = one.shape[1]
    assert grids.shape[1] == 2 * line - 6 and words.shape[1] == 6 * (line - 6) + 6  # a, red, circle, and, blue, star
    wide, _ = heatmap(recorded, phrases="red circle", columns="moments")
    assert wide.shape[2] == 2 * (one.shape[2] - 6) + 6
    size, _ = heatmap(recorded, phrases="red circle", columns="resolutions")
    assert size.shape[2] == len(record.latest.grids) * (one.shape[2] - 6) + 6


def test_words_that_cannot_be_named_alone_are_no_rows():
    """A digit right after a voiced kana: no phrase finds either, so neither can have a map."""
    tokens = TokenMap("\u30ac2 star", (None, (0, 1), (1, 2), (3, 7), None), ("start", *["word"] * 3, "end"))
    assert recorded_phrases(Records(tokens, Recording())) == ("star",)
    alone = TokenMap("\u30ac2", (None, (0, 1), (1, 2), None), ("start", "word", "word", "end"))
    with pytest.raises(BoxwrightError, match="Write phrases of it"):
        recorded_phrases(Records(alone, Recording()))


def test_a_prompt_of_signs_alone_has_them_as_rows():
    tokens = TokenMap("! ?", (None, (0, 1), (2, 3), None), ("start", "word", "word", "end"))
    assert recorded_phrases(Records(tokens, Recording())) == ("!", "?")


def test_opacity_goes_from_the_picture_to_the_map(recorded):
    record, images = recorded
    tile = slice(-64 - 6, -6)
    plain, _ = heatmap(recorded, phrases="star", opacity=0.0)
    torch.testing.assert_close(plain[:, tile, 6:70], images.clamp(0, 1), rtol=0, atol=1 / 255)
    colours, _ = heatmap(recorded, phrases="star", opacity=1.0)
    hottest = int(resized(record.latest.map_of("star"), (64, 64))[0].argmax())
    assert (colours[0, tile, 6:70].reshape(-1, 3)[hottest] * 255).round().tolist() == list(HEAT[-1])


def test_the_mask_is_the_union_of_the_phrases(recorded):
    record, images = recorded
    masks = [BoxwrightMaskFromWord.execute(record, images, word, 0.4)[0] for word in ("circle", "star")]
    _, union = heatmap(recorded, phrases="circle, star", threshold=0.4)
    assert torch.equal(union, torch.maximum(*masks))
    assert torch.equal(masks[0], mask_of(record.latest.map_of("circle"), 0.4, (64, 64)))
    assert 0 < masks[0].mean() < 1 and set(masks[0].unique().tolist()) == {0.0, 1.0}
    larger = BoxwrightMaskFromWord.execute(record, images, "circle", 0.2)[0]
    assert bool((larger >= masks[0]).all()) and larger.sum() > masks[0].sum()


def test_the_recorder_follows_layout_prompt_too(toy):
    positive, layout = encode_layout(toy[1], "a red circle", (), False)
    settings = dict(phrases="circle", resolutions="all", moments=1, start=0.0, end=1.0, budget_mb=64)
    model, record = BoxwrightAttentionRecorder.execute(toy[0], layout=layout, **settings).result
    sampling.sample(model, toy[2], positive, sampling.encode(toy[1], ""), [0], steps=1, size=(64, 64))
    assert record.latest.map_of("circle").shape == (1, 8, 8)


def test_recording_changes_no_pixel(toy, recorded):
    text, negative = sampling.encode(toy[1], "a red circle and a blue star"), sampling.encode(toy[1], "")
    plain = sampling.sample(toy[0], toy[2], text, negative, [0, 1], steps=4, size=(64, 64))
    assert torch.equal(plain, recorded[1])


def test_wrong_wires_are_named(toy, recorded):
    record, images = recorded
    settings = dict(phrases="", resolutions="middle", moments=1, start=0.0, end=1.0, budget_mb=64)
    with pytest.raises(BoxwrightError, match="does not know the prompt"):
        BoxwrightAttentionRecorder.execute(toy[0], **settings)
    with pytest.raises(PhraseNotFoundError, match='"moon" is not in the recorded prompt'):
        BoxwrightAttentionRecorder.execute(toy[0], **settings | {"phrases": "moon"}, clip=toy[1], prompt="a star")
    with pytest.raises(BoxwrightError, match="1 picture, and the record is of a run with 2"):
        BoxwrightMaskFromWord.execute(record, images[:1], "star", 0.0)
    with pytest.raises(BoxwrightError, match="no phrase"):
        BoxwrightMaskFromWord.execute(record, images, " ", 0.0)
    with pytest.raises(PhraseNotFoundError, match='closest words are "star"'):
        heatmap(recorded, phrases="stars")
    empty_record = Records(record.tokens, Recording())
    with pytest.raises(BoxwrightError, match="record is empty"):
        heatmap((empty_record, images))
    with pytest.raises(BoxwrightError, match="record is empty"):
        BoxwrightMaskFromWord.execute(empty_record, images, "a", 0.0)


def test_huge_grids_are_refused(recorded):
    record, _ = recorded
    with pytest.raises(BoxwrightError, match="megapixels"):
        heatmap((record, torch.zeros(1, 1, 1, 3).expand(2, 3000, 4000, 3)), columns="moments")


def test_heat_colours_run_from_cold_to_hot():
    values = heat_colors(torch.linspace(0, 1, 64)[None])
    light = values @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert bool((light.diff() > 0).all())
    assert (values[0, 0] * 255).round().tolist() == list(HEAT[0])


def test_lists_are_read():
    assert parse_phrases(" red, blue star\n\nred,", "x") == ("red", "blue star")
    assert parse_windows("a: 0 0.5\n\nb c: 1 1", "x")[1] == ("b c", None)
    many = ",".join(map(str, range(65)))
    for text, words in [("a," * 15000, "characters"), (many, "65 phrases"), ("x" * 1001, "longer")]:
        with pytest.raises(BoxwrightError, match=words):
            parse_phrases(text, "x")
    for text in ("a", "a: 1", "a: 0 x", ": 0 1", "a: 0 1 2"):
        with pytest.raises(BoxwrightError, match="write a phrase"):
            parse_windows(text, "x")
    with pytest.raises(BoxwrightError, match="lines"):
        parse_windows("a: 0 1\n" * 65, "x")
