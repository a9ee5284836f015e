"""Every patch of ours, and those of the host that stand beside them, on one tiny UNet: what robustness tests run."""

import comfy.controlnet
import comfy.gligen
import comfy.hooks
import comfy.model_patcher
import tiny_loras
import tiny_models as tiny
import torch
from comfy.context_windows import (
    ContextFuseMethods,
    ContextSchedules,
    IndexListContextHandler,
    get_matching_context_schedule,
    get_matching_fuse_method,
)
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_easycache, nodes_freelunch, nodes_hypertile, nodes_pag, nodes_sag, nodes_tomesd
from pack.attention_patches.core.pictures import PictureGuide
from pack.attention_patches.core.types import StepWindow
from pack.attention_patches.host.install import install
from pack.attention_patches.host.loss_guidance import guide_by_pictures
from pack.attention_patches.host.prompt_to_prompt import edited
from pack.attention_patches.host.recorder import recorded
from pack.attention_patches.host.samplers.h_space import edit_h_space
from pack.attention_patches.methods.arranged_noise import ArrangedNoise
from pack.attention_patches.methods.bounded_attention import BoundedAttention
from pack.attention_patches.methods.box_constraint import preset
from pack.attention_patches.methods.dense_diffusion import DenseDiffusion
from pack.attention_patches.methods.prompt_to_prompt import PromptToPrompt
from pack.attention_patches.methods.recorder import Recording, Records
from pack.attention_patches.methods.rectified_attention import RectifiedAttention
from pack.attention_patches.methods.region_lora import RegionLora
from pack.attention_patches.methods.region_prompt import RegionPrompt
from pack.attention_patches.methods.reweight import Reweight
from pack.attention_patches.samplers.color_loss import ColorLoss
from pack.attention_patches.samplers.h_space import HSpace
from region_loras import with_loras
from test_prompt_to_prompt_runs import conditioning as side_by_side
from test_prompt_to_prompt_runs import prompts_of
from tiny_control import Control

P2P = "Prompt to Prompt"
RECORDS = "what the recorder of a test has"
SIZE, LARGER = (8, 12), (16, 24)  # of the latent; SAG blurs with a kernel that wants more room
STEPS = 2
LAYOUT = tiny.layout()
ALWAYS = StepWindow()
PROMPTS, TEXTS = prompts_of(1, 3)


def edits(method):
    return lambda model: install(model, LAYOUT, method.edits(LAYOUT))


def guide(mode):
    return lambda model: install(model, LAYOUT, preset("standard", mode).guides(LAYOUT))


def loss(through):
    picture_guide = PictureGuide(ColorLoss(((0.1, 0.2, 0.9),)), through=through)
    return lambda model: guide_by_pictures(model, picture_guide)


def h_space(model):
    return edit_h_space(model, plain(3), plain(4), HSpace(1.0, ALWAYS))


def region_lora(model):
    file = tiny_loras.tensors(model, seed=1, size=0.1)
    return with_loras(model, LAYOUT, [file], RegionLora())


def recorder(model):
    records = Records(LAYOUT.prompt.tokens, Recording())
    patched = recorded(model, LAYOUT, records)
    patched.set_attachments(RECORDS, records)
    return patched


def plain(seed):
    return tiny.conditioning("sd15", tiny.text(seed=seed), seed=seed)


# What each patch of ours makes of a MODEL.
OURS = {
    "Rectified Attention": edits(RectifiedAttention(window=ALWAYS)),
    "Reweight Words": edits(Reweight((("w1", 4.0),))),
    "Region Prompt: couple": edits(RegionPrompt(base_ratio=0.2, confine_end=0.0, window=ALWAYS)),
    "Region Prompt: dense": edits(DenseDiffusion(window=ALWAYS)),
    "Region Prompt: bound": edits(BoundedAttention(ALWAYS, "all")),
    "Box Constraint: boxdiff": guide("boxdiff"),
    "Box Constraint: fast": guide("fast"),
    "Loss Guidance: direct": loss("direct"),
    "Loss Guidance: through model": loss("through model"),
    "Arranged Noise": lambda model: install(model, LAYOUT, ArrangedNoise().edits(LAYOUT)),
    "Region LoRA": region_lora,
    "H-Space Edit": h_space,
    "Attention Recorder": recorder,
    P2P: lambda model: edited(model, PROMPTS, PromptToPrompt(ALWAYS, ALWAYS)),
}
WATCHES = ("Attention Recorder",)  # changes nothing
# Patches that leave the rows of the negative prompt alone, within what a run of rows in other company rounds.
PROMPT_ONLY = ("Rectified Attention", "Reweight Words", "Region Prompt: couple", "Box Constraint: fast")


def entries(names):
    """The positive prompt of a run with these patches."""
    own = tiny.conditioning("sd15", LAYOUT.prompt, LAYOUT.key)
    return side_by_side("sd15", PROMPTS, TEXTS) + own if P2P in names else own


def small_gligen():
    """GLIGEN of the host's classes for the tiny UNet."""
    generator = torch.Generator().manual_seed(9)
    widths = [block.norm1.weight.shape[0] for block in _blocks(tiny.build("sd15"))]
    modules = [comfy.gligen.GatedSelfAttentionDense(width, tiny.CONTEXT, 2, width // 2) for width in widths]
    gligen = comfy.gligen.Gligen(modules, comfy.gligen.PositionNet(tiny.CONTEXT, tiny.CONTEXT), tiny.CONTEXT)
    for name, parameter in gligen.named_parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + name.endswith("alpha"))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(gligen, load_device=cpu, offload_device=cpu)


def _blocks(model):
    return [m for m in model.model.diffusion_model.modules() if type(m).__name__ == "BasicTransformerBlock"]


def with_gligen(model, positive):
    place = ("position", small_gligen(), [(torch.ones(1, tiny.CONTEXT), 8, 8, 2, 2)])
    return model, [[text, {**said, "gligen": place}] for text, said in positive]


def with_control(model, positive):
    return model, [[text, {**said, "control": Control(), "control_apply_to_uncond": True}] for text, said in positive]


def with_lora(model, positive):
    return tiny_loras.merged(model, tiny_loras.tensors(model, seed=3, size=0.1), 1.0), positive


def with_hooks(model, positive):
    file = tiny_loras.tensors(model, seed=2, size=0.1)
    hooks = comfy.hooks.create_hook_lora(lora=file, strength_model=1.0, strength_clip=0.0)
    model = model.clone()
    model.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    return model, comfy.hooks.set_hooks_for_conditioning(positive, hooks)


def with_windows(model, positive):
    model = model.clone()
    model.model_options["context_handler"] = IndexListContextHandler(
        get_matching_context_schedule(ContextSchedules.STATIC_STANDARD),
        get_matching_fuse_method(ContextFuseMethods.FLAT),
        context_length=2,
        context_overlap=1,
    )
    return model, positive


def compiled(model, positive):
    """As TorchCompileModel leaves it: the wrapper under its name. What it compiles is of no account here."""
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *a, **k: executor(*a, **k))
    return model, positive


def node(cls, *values):
    return lambda model, positive: (cls.execute(model, *values)[0], positive)


# What each thing of the host's makes of a MODEL and a positive prompt.
HOSTS = {
    "FreeU": node(nodes_freelunch.FreeU, 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": node(nodes_freelunch.FreeU_V2, 1.3, 1.4, 0.9, 0.2),
    "PAG": node(nodes_pag.PerturbedAttentionGuidance, 3.0),
    "SAG": node(nodes_sag.SelfAttentionGuidance, 1.0, 2.0),
    "HyperTile": node(nodes_hypertile.HyperTile, 32, 1, 0, False),
    "ToMe": node(nodes_tomesd.TomePatchModel, 0.5),
    "EasyCache": node(nodes_easycache.EasyCacheNode, 3.0, 0.0, 1.0, False),
    "LoRA": with_lora,
    "LoRA by hooks": with_hooks,
    "ControlNet": with_control,
    "GLIGEN": with_gligen,
    "context windows": with_windows,
    "TorchCompileModel": compiled,
}
MORE_ROWS = ("context windows",)  # with a batch that is cut
NO_TRACE = ("TorchCompileModel", "context windows")  # a picture as without it, where rows are pictures


def draw(model, names=(), column=None, seen=None, steps=STEPS, side_by_side=None, acts=True):
    """The latent of a run with these patches of ours, in order, beside one thing of the host's or nothing.

    `seen` gets what is predicted for (prompt, negative prompt) in the first step. `side_by_side` says that the prompts
    and the noise are those of Prompt to Prompt, or not, whether it is there or not. Without `acts` the host's thing is
    left out, and all else is as it would be with it.
    """
    same_noise = P2P in names if side_by_side is None else side_by_side
    positive = entries((P2P,) if same_noise else ())
    if column in HOSTS and acts:
        model, positive = HOSTS[column](model, positive)
    for name in names:
        model = OURS[name](model)
    if seen is not None:
        model = model.clone()
        model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"]) or args["conds_out"])
    batch = 4 if column in MORE_ROWS else 2
    size = LARGER if column == "SAG" else SIZE
    noise = tiny.latent("sd15", size, 1).repeat(batch, 1, 1, 1) if same_noise else tiny.latent("sd15", size, batch)
    torch.manual_seed(0)
    steps = 4 if column == "EasyCache" else steps
    latent = tiny.run("sd15", model, positive, noise=noise, steps=steps)
    if "Attention Recorder" in names:
        seen_by_it = model.get_attachment(RECORDS).latest.map_of("w1")
        assert seen_by_it.shape[0] == batch and float(seen_by_it.min()) >= 0 and float(seen_by_it.std()) > 1e-4
    return latent
