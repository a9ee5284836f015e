"""What outlives a block of the network is made where a newer host does not take it back; and nothing is swallowed."""

import ast
import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models as tiny
import torch
from newer_host import compiling
from pack.attention_patches.core.seam import AttentionEdit
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.attention.outside_blocks import outside_blocks
from pack.attention_patches.host.install import install
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.host.run.run import Run
from pack.attention_patches.host.samplers.h_space import edit_h_space
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.recorder import Recording, Records
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.reweight import Reweight
from pack.attention_patches.samplers.h_space import HSpace

HOST = Path(__file__).resolve().parents[2] / "attention_patches" / "host"


@pytest.fixture
def scope(monkeypatch):
    """The host with a scope around every attention call; `left`: what outlived them."""
    scope, original = compiling(monkeypatch), Run.attention

    def attention(self, *args, **kwargs):
        scope.made.clear()
        with scope:
            out = original(self, *args, **kwargs)
        scope.left += scope.alive(out)
        return out

    monkeypatch.setattr(Run, "attention", attention)
    return scope


def draw(family, model, layout):
    tiny.run(family, model, tiny.conditioning(family, layout.prompt, layout.key), steps=2)


METHODS = {
    "rectified": RectifiedAttention(),
    "rectified, end tokens": RectifiedAttention(end_tokens="hidden"),
    "dense": DenseDiffusion(window=StepWindow()),
    "bounded": BoundedAttention(),
    "reweight": Reweight((("w1", 2.0),), region=1),
    "region prompt": RegionPrompt(),
}


# In Flux no text is read apart from the image, as the region prompt needs it.
CASES = [("sd15", name) for name in METHODS] + [("flux", name) for name in METHODS if name != "region prompt"]


@pytest.mark.parametrize("family, name", CASES)
def test_methods_leave_nothing_in_a_block(models, scope, family, name):
    layout = tiny.layout()
    draw(family, install(models[family], layout, METHODS[name].edits(layout)), layout)
    assert scope.pauses and scope.left == 0


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_a_recorder_leaves_nothing_in_a_block(models, scope, family):
    layout = tiny.layout()
    records = Records(layout.prompt.tokens, Recording(resolutions="all"))
    draw(family, recorded(models[family], layout, records), layout)
    assert records.latest.moments and scope.pauses and scope.left == 0


def test_what_is_kept_by_hand_in_a_block_is_seen(models, scope):
    """The scope itself: a method that goes past `kept` and `lasting` is caught."""
    layout = tiny.layout()

    def keeps(probs, site):
        site.memo.setdefault(site.layer, probs.clone())
        return probs

    draw("sd15", install(models["sd15"], layout, [AttentionEdit("keeps", "probs", keeps)]), layout)
    assert scope.left > 0


def test_the_bottleneck_is_kept_outside(models, monkeypatch, scope):
    original, seen = torch.Tensor.clone, []
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, *a, **k: (seen.append(scope.paused), original(t, *a, **k))[1])
    source, target = (tiny.conditioning("sd15", tiny.text(seed=seed)) for seed in (3, 4))
    draw("sd15", edit_h_space(models["sd15"], source, target, HSpace(1.0, StepWindow())), tiny.layout())
    assert seen.count(True) == 2 * 2  # two prompts, two steps


def test_a_host_without_scopes_is_left_alone(monkeypatch):
    for module in (SimpleNamespace(), None):
        monkeypatch.setitem(sys.modules, "comfy.model_prefetch", module)
        with outside_blocks() as scope:
            assert scope is None  # nothing is entered
        assert isinstance(outside_blocks(), contextlib.nullcontext)


def test_an_inner_pause_does_not_end_the_outer_one(scope):
    with outside_blocks():
        with outside_blocks():
            assert scope.paused
        assert scope.paused and scope.pauses == 1
    assert not scope.paused
    with pytest.raises(KeyError), outside_blocks():
        raise KeyError
    with outside_blocks():
        assert scope.paused and scope.pauses == 3


# --- wrappers ---------------------------------------------------------------------------------------------------------

WRAPPERS = [
    (path.relative_to(HOST).as_posix(), node)
    for path in sorted(HOST.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef) and "executor" in [arg.arg for arg in node.args.args]
]


@pytest.mark.parametrize("node", [node for _, node in WRAPPERS], ids=[f"{path}:{node.name}" for path, node in WRAPPERS])
def test_a_wrapper_passes_on_what_it_does_not_know(node):
    """Newer hosts add arguments."""
    assert node.args.vararg and node.args.kwarg
    calls = [c for c in ast.walk(node) if isinstance(c, ast.Call) and getattr(c.func, "id", "") == "executor"]
    assert calls
    for call in calls:
        assert any(isinstance(a, ast.Starred) and a.value.id == node.args.vararg.arg for a in call.args)
        assert any(k.arg is None and k.value.id == node.args.kwarg.arg for k in call.keywords)
