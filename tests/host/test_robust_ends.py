"""Runs that end before their time, and runs on several devices: afterwards everything is as it was.

Every patch and every sampler of ours, and whatever else runs the model, is interrupted in each of its model evaluations
(of many, in some), and runs out of memory in an attention and in a gradient.
"""

import contextlib
import copy
import os
from importlib.util import find_spec

import comfy.model_management
import comfy.samplers
import pytest
import test_on_a_device as methods
import tiny_models as tiny
import together
import torch
from pack.attention_patches.core.types import BoxwrightError
from robust import well_said
from together import OURS

SAMPLERS = (
    "region conditioning", "repaint", "ilvr", "blended latents", "region strength", "difference mask", "invert",
    "diff edit", "direct inversion", "FlowEdit", "FlowAlign", "Uni-Edit", "find word", "prompt fit", "arrange a noise",
)  # fmt: skip
AT_ONCE = ("difference mask",)  # all in one evaluation
MANY = 8  # evaluations
NO_LATENT = ("difference mask", "invert", "find word", "prompt fit")  # what they return is none
GRADIENTS = ("Box Constraint: boxdiff", "Box Constraint: fast", "Loss Guidance: direct", "Loss Guidance: through model")
ONE_ROW = ("prompt fit",)
OWN_PASS = (GRADIENTS[0], GRADIENTS[3], *ONE_ROW)  # the model is run once more for them, or for them alone
OUT_OF_MEMORY = torch.OutOfMemoryError


@pytest.fixture(scope="module")
def model():
    return tiny.build("sd15")


@pytest.fixture(scope="module")
def expected(model):
    """A picture without anything of ours."""
    return together.draw(model)


def runs():
    """Name -> what draws with it on a model."""
    patches = {name: lambda model, name=name: together.draw(model, (name,)) for name in OURS}
    samplers = {name: lambda model, name=name: methods.EVERY[name]("sd15", model, together.STEPS) for name in SAMPLERS}
    return {**patches, **samplers}


RUNS = runs()
every_run = pytest.mark.parametrize("name", RUNS)


def check_left_as_it_was(model, expected):
    network = model.model.diffusion_model
    assert not any(module._forward_hooks for module in network.modules())
    assert not any("forward" in vars(module) for module in network.modules())
    assert not getattr(comfy.model_management, "in_training", False)
    assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled()
    assert not comfy.model_management.processing_interrupted()
    assert torch.equal(together.draw(model), expected), "a picture without anything of ours is another one"


def second_block(model):
    """The first layer of it: the host calls these, and never the block that holds them."""
    return model.model.diffusion_model.input_blocks[1][0]


@contextlib.contextmanager
def at_evaluation(model, number, act):
    """Call `act` in the model evaluation of this number (from 1), before its second block; counts them all."""
    counts = []

    def count(*args):
        counts.append(1)
        if len(counts) == number:
            act()

    handle = second_block(model).register_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


@every_run
def test_interrupted_in_any_evaluation(model, expected, name):
    with at_evaluation(model, 0, None) as evaluations:
        whole = RUNS[name](model)
    count = len(evaluations)
    assert count >= (1 if name in AT_ONCE else together.STEPS)
    assert name in (*together.WATCHES, *NO_LATENT) or not torch.equal(whole, expected)
    numbers = range(1, count + 1)
    if count > MANY and not os.environ.get("BOXWRIGHT_FULL"):
        numbers = (1, 2, count // 2, count - 1, count)
    for number in numbers:
        with at_evaluation(model, number, comfy.model_management.interrupt_current_processing):
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                RUNS[name](model)
        check_left_as_it_was(model, expected)
    assert torch.equal(RUNS[name](model), whole), "the next run differs from one that was not interrupted"


def failing(number):
    """An attention of another pack that runs out of memory in its call of this number (from 1), once; its calls."""
    calls = []

    def attention(func, *args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise OUT_OF_MEMORY("emulated")
        return func(*args, **kwargs)

    return attention, calls


def with_attention(model, attention):
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = attention
    return model


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ONE_ROW])
def test_out_of_memory_in_an_attention(model, expected, name):
    """The host's own error goes on to the host. (Passes for a gradient have an attention of their own.)"""
    attention, calls = failing(0)
    whole = RUNS[name](with_attention(model, attention))
    count = len(calls)
    more = {2, count // 3, 2 * count // 3} if os.environ.get("BOXWRIGHT_FULL") else set()
    for number in sorted({1, count // 2, count, *more}):
        with pytest.raises(OUT_OF_MEMORY, match="emulated"):
            RUNS[name](with_attention(model, failing(number)[0]))
        check_left_as_it_was(model, expected)
    assert torch.equal(RUNS[name](with_attention(model, failing(0)[0])), whole)


@pytest.mark.parametrize("name", OWN_PASS)
def test_out_of_memory_in_a_pass_for_a_gradient(model, expected, name):
    """It is taken anew by a row at a time, or one row with what it keeps in main memory, to the same end."""
    whole, passes, at = RUNS[name](model), [], []

    def fail(*args):
        if torch.is_grad_enabled():
            passes.append(1)
            if [len(passes)] == at:
                raise OUT_OF_MEMORY("emulated")

    handle = second_block(model).register_forward_pre_hook(fail)
    try:
        RUNS[name](model)
        count = len(passes)
        assert count
        for number in (1, count):
            passes[:], at[:] = [], [number]
            torch.testing.assert_close(RUNS[name](model), whole, rtol=0, atol=2e-3 * float(whole.abs().max()))
            rows = 1 if name in ONE_ROW else 2
            assert len(passes) == count + rows, "its rows instead of the pass that failed"
    finally:
        handle.remove()
    check_left_as_it_was(model, expected)


@pytest.mark.parametrize("name, number", [*((name, 1) for name in GRADIENTS), *((name, 2) for name in GRADIENTS[2:])])
def test_out_of_memory_on_the_way_back(model, expected, name, number, monkeypatch):
    """Of a gradient that is taken in a pass of its own, by a row at a time then; of one of the ordinary pass, never."""
    whole, original, calls = RUNS[name](model), torch.autograd.grad, []

    def grad(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise OUT_OF_MEMORY("emulated")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", grad)
        if name == "Box Constraint: fast":
            with pytest.raises(OUT_OF_MEMORY, match="emulated"):
                RUNS[name](model)
        else:
            again = RUNS[name](model)
            torch.testing.assert_close(again, whole, rtol=0, atol=2e-3 * float(whole.abs().max()))
    assert len(calls) >= number
    check_left_as_it_was(model, expected)
    assert torch.equal(RUNS[name](model), whole)


# --- the host's split of a run over several devices ---


@pytest.fixture
def split(model, monkeypatch):
    """The model as the host's MultiGPU CFG Split leaves it on two devices, both of them the processor."""
    second = torch.device("cpu:1")
    monkeypatch.setattr(
        comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: [torch.device("cpu"), second]
    )
    base = copy.copy(model)
    base.cached_patcher_init = (lambda: tiny.build("sd15"), ())
    from comfy import multigpu

    two = multigpu.create_multigpu_deepclones(base, 2)
    assert len(two.get_additional_models_with_key("multigpu")) == 1
    return two


@contextlib.contextmanager
def shares(split):
    """How often the copy of the model on each device is run."""
    (other,) = split.get_additional_models_with_key("multigpu")
    assert other.model is not split.model
    counts, handles = [0, 0], []
    for device, patcher in enumerate((split, other)):

        def count(*args, device=device):
            counts[device] += 1

        handles.append(second_block(patcher).register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


REFUSED_ON_SEVERAL = ("Region LoRA",)
ONE_PROMPT = ("difference mask", "invert", "find word", "prompt fit", "arrange a noise", "Uni-Edit")  # asked one by one


@pytest.mark.skipif(not find_spec("comfy.multigpu"), reason="this host splits no run")
@every_run
def test_on_two_devices(model, expected, split, name):
    """The prompt on one and the negative prompt on the other: the same picture, or a refusal that names the node."""
    with shares(split) as counts:
        try:
            out = RUNS[name](split)
        except BoxwrightError as error:
            assert name in REFUSED_ON_SEVERAL and well_said(str(error)) and "several GPUs" in str(error)
            assert counts == [0, 0]
        else:
            assert name not in REFUSED_ON_SEVERAL
            assert counts[0] and (bool(counts[1]) or name in ONE_PROMPT), f"the run was not split: {counts}"
            whole = RUNS[name](model)
            torch.testing.assert_close(out, whole, rtol=0, atol=2e-3 * float(whole.abs().max()))
    check_left_as_it_was(model, expected)
