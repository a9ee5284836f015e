"""What acts on which models: the tables in README and help are what the families declare, and a node says it.

BOXWRIGHT_WRITE_TABLES=1 pytest tests/host/test_support.py writes them.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import comfy.model_base
import pytest
import tiny_models as tiny
from pack.attention_patches.core.pictures import PictureGuide
from pack.attention_patches.core.token_alignment import token_alignment
from pack.attention_patches.core.types import UnsupportedModelError
from pack.attention_patches.host.families import FAMILIES, adapter_for
from pack.attention_patches.host.guidance.foreign import refuse_without_gradient
from pack.attention_patches.host.install import install
from pack.attention_patches.host.loss_guidance import guide_by_pictures
from pack.attention_patches.host.prompt_to_prompt import edited
from pack.attention_patches.host.samplers.h_space import HSpace, edit_h_space
from pack.attention_patches.host.support import METHODS, supports, takes_own_phrases
from pack.attention_patches.methods.arranged_noise import ArrangedNoise
from pack.attention_patches.methods.box_constraint import BoxConstraint, constrained_phrases
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.prompt_to_prompt import Prompts, PromptToPrompt
from pack.attention_patches.methods.recorder import Recording, Records
from pack.attention_patches.methods.rectified_attention import PUBLISHED
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.reweight import Reweight
from pack.attention_patches.samplers.color_loss import ColorLoss
from pack.nodes.parts import progress
from pack.nodes.rectified_attention import BoxwrightRectifiedAttention
from pack.nodes.region_prompt import BoxwrightRegionPrompt
from pack.nodes.reweight import BoxwrightReweight

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- families and methods: written by tests/host/test_support.py -->\n", "<!-- end -->"
HELP = "web/docs/BoxwrightLayoutPrompt"
PAGES = ("README.md", f"{HELP}.md", f"{HELP}/fr.md", f"{HELP}/zh.md")
# What a method's node installs, to see whether the model takes it.
TRIED = {
    "Rectified Attention": PUBLISHED.edits,
    "Reweight Words": Reweight((("w1", 2.0),)).edits,
    "Region Prompt: couple": RegionPrompt().edits,
    "Box Constraint": BoxConstraint().guides,
    "Attention Recorder": lambda layout: [Records(layout.prompt.tokens, Recording()).edit()],
    "Arranged Noise": lambda layout: [ArrangedNoise().edit(constrained_phrases(layout), print)],
}
WORDS = tiny.text().tokens
PROMPTS = Prompts(tiny.layout(areas=()), (WORDS,), (token_alignment(WORDS, WORDS),))


MODES = {
    "couple": dict(mode="couple", base_ratio=0.2, confine_end=0.4, feather=0.0, blocks="all"),
    "dense": dict(mode="dense", dense_end=0.3, cross_weight=1.0, self_weight=0.3),
}


def families_of(models):
    """Every family -> the tiny models it supports."""
    found = {family.name: [] for family in FAMILIES}
    for name in tiny.SUPPORTED:
        (family,) = [family for family in FAMILIES if family.supports(models[name].model)]
        found[family.name].append(models[name])
    return found


def lacking():
    """The names of families whose models this host has not: an older one."""
    families = {family.name: getattr(family, "bases", None) or (family.base,) for family in FAMILIES[1:]}
    return [name for name, bases in families.items() if not any(hasattr(comfy.model_base, base) for base in bases)]


def table(models):
    rows = [["models", *(method.name for method in METHODS)], ["---"] * (1 + len(METHODS))]
    for name, own in families_of(models).items():
        if name in lacking():
            continue
        (answers,) = {tuple(not method.why_not(adapter_for(model)) for method in METHODS) for model in own}
        rows.append([name, *("yes" if answer else "no" for answer in answers)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.parametrize("page", PAGES)
def test_the_table_is_what_the_families_declare(models, page):
    path = ROOT / page
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    written, after = rest.split(END, 1)
    if os.environ.get("BOXWRIGHT_WRITE_TABLES"):
        assert not lacking(), "write the tables on the newest host"
        path.write_text(f"{before}{BEGIN}{table(models)}{END}{after}", encoding="utf-8")
        return
    lines = written.splitlines(keepends=True)
    assert "".join(line for line in lines if line.split(" | ")[0][2:] not in lacking()) == table(models)


def test_every_family_has_a_tiny_model(models):
    assert [name for name, own in families_of(models).items() if not own] == lacking()


@pytest.mark.parametrize("family", tiny.SUPPORTED)
def test_what_is_declared_is_what_the_model_takes(models, family):
    model, layout = models[family], tiny.layout()
    adapter = adapter_for(model)
    for method in METHODS:
        if method.name == "H-Space Edit":
            tried = lambda: edit_h_space(model, [], [], HSpace(1.0))  # noqa: E731
        elif method.name == "Loss Guidance: through model":
            guide = PictureGuide(ColorLoss(((1.0, 0.0, 0.0),)), through="through model")
            tried = lambda guide=guide: guide_by_pictures(model, guide)  # noqa: E731
        elif method.name == "Prompt to Prompt":
            tried = lambda: edited(model, PROMPTS, PromptToPrompt())  # noqa: E731
        else:
            dense = DenseDiffusion(own_phrases=takes_own_phrases(model)).edits
            edits = {**TRIED, "Region Prompt: dense, bound": dense}[method.name](layout)
            assert edits, f"{method.name}: nothing to install proves nothing"
            tried = lambda edits=edits: install(model, layout, edits)  # noqa: E731
        if method.why_not(adapter):
            with pytest.raises(UnsupportedModelError):
                tried()
        else:
            tried()
        assert method.name in supports(model) and method.why_not(adapter) in supports(model)
    assert supports(model).startswith(adapter.name)
    if adapter.gradients:
        refuse_without_gradient(adapter, model.model.diffusion_model)


@pytest.mark.parametrize("mode", ["couple", "dense"])
@pytest.mark.parametrize("family", tiny.SUPPORTED)
def test_region_prompt_says_what_acts_and_takes_or_refuses_the_model(models, family, mode, monkeypatch):
    model, layout, node = models[family], tiny.layout(), BoxwrightRegionPrompt
    monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id=None), raising=False)
    inputs = dict(mode=MODES[mode], bound={"bound": "off"}, strength=1.0, overlap="order", start=0.0, end=1.0)
    adapter = adapter_for(model)
    couples = not next(m for m in METHODS if m.name == "Region Prompt: couple").why_not(adapter)
    if mode == "couple" and not couples:
        with pytest.raises(UnsupportedModelError):
            node.execute(model, layout, **inputs)
        return
    patched, report = node.execute(model, layout, **inputs).result
    assert supports(model) in report
    assert (mode == "dense" and not adapter.own_text) == ("only as they stand in the prompt" in report)
    assert tiny.run(family, patched, tiny.conditioning(family, layout.prompt, layout.key), steps=1).isfinite().all()


def test_nodes_without_a_report_say_it_while_they_run(models, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "progress_reporter", lambda node_id: said.append)
    layout = tiny.layout()
    BoxwrightRectifiedAttention.execute(models["qwen"], layout, 1.0, 0.0, 1.0, 0.0, "all", "visible")
    BoxwrightReweight.execute(models["wan"], layout, "w1: 2", 0.0, 1.0, 0, False)
    assert said == [supports(models["qwen"]), supports(models["wan"])]
    assert "Qwen-Image" in said[0] and "Wan" in said[1]
