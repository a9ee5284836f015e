"""Random graphs in the host's API format, made from its own object info: everything wired as its types say, every
widget within its range, and now and then one thing wrong.

A graph of one seed is always the same. It has one of our nodes as its subject, what that needs before it, and behind
it what makes use of each of its outputs, down to something that can be looked at. What no type says and every user
knows, such as which outputs belong together, stands in `graph_sense.py`.
"""

import random

from graph_sense import LORA, SAMPLING, VISION, Sense, in_our_range
from graph_texts import Texts

# Numbers that cost time or memory, or of which only a part leaves a picture, kept small; the rest is for any graph.
SMALL = {
    "steps": (1, 3), "draws": (1, 2), "iterations": (1, 2), "refine_iterations": (0, 3), "repeats": (1, 3),
    "crops": (1, 4), "averages": (1, 2), "refinements": (0, 2), "jump": (1, 4), "moments": (1, 8), "batch_size": (1, 2),
    "amount": (1, 2), "cfg": (1.0, 9.0), "learning_rate": (1e-6, 0.1), "step_size": (0.0, 60.0),
    "start_at_step": (0, 2), "end_at_step": (2, 4), "max_depth": (0, 2), "budget_mb": (1, 64), "scale": (0.0, 3.0),
    "cfg_conds": (1.0, 9.0), "cfg_cond2_negative": (1.0, 9.0), "neg_scale": (0.0, 2.0), "step": (1, 2),
    "strength_model": (-0.5, 1.5), "strength_clip": (-0.5, 1.5), "q": (0.8, 1.2), "k": (0.8, 1.2), "v": (0.8, 1.2),
    "out": (0.8, 1.2), "eta": (0.0, 1.0), "s_noise": (0.5, 1.2), "s_noise_end": (0.5, 1.2), "momentum": (-0.7, 0.5),
    "sigma_max": (3.0, 15.0), "sigma_min": (0.02, 0.5), "sigma": (3.0, 15.0), "rho": (2.0, 9.0), "alpha": (0.3, 2.0),
    "beta": (0.3, 2.0), "freq_cutoff": (1, 8), "block_number": (1, 4), "downscale_factor": (1.2, 2.0), "x": (0, 24),
    "y": (0, 24), "left": (0, 24), "right": (0, 24), "top": (0, 24), "bottom": (0, 24), "expand": (-4, 8),
    "grow_mask_by": (0, 8), "scale_by": (0.8, 1.5), "stop_at_clip_layer": (-2, -1), "batch_index": (0, 1),
    "length": (1, 2), "multiplier": (0.5, 1.0), "tsr_k": (0.8, 1.2), "order": (1, 4),
}  # fmt: skip
SIZES = ((64, 64), (64, 64), (72, 64), (64, 96), (88, 72), (104, 64), (80, 80))  # of pictures: width, height
BATCHES = (1, 1, 1, 1, 2, 2, 3)
SLOW = ("dpm_adaptive",)  # takes as many steps as it likes
# Outputs that are drawn for the eye, and large.
REPORTS = (
    "BoxwrightArrangeNoise", "BoxwrightDiffMask", "BoxwrightRegionsPreview", "BoxwrightPromptFit", "BoxwrightBoxEditor",
    "BoxwrightAttentionHeatmap", "BoxwrightFindWord",
)  # fmt: skip
# How often an optional input is wired, where that is not as often as any.
LIKELY = {"bounding_boxes": 0.08, "elements": 0.05, "boxes": 0.1, "frame": 0.05, "mask": 0.5, "settings": 0.5}
END = "Look"  # a node of the test, with the input "value": what reaches the end of the graph

# Nodes of the host from which and into which graphs are wired. Those of the test stand for the loaders of files.
HOST = (
    "CLIPTextEncode", "EmptyLatentImage", "VAEDecode", "VAEEncode", "KSampler", "KSamplerAdvanced", "SamplerCustom",
    "SamplerCustomAdvanced", "BasicGuider", "CFGGuider", "DualCFGGuider", "PerpNegGuider", "DualModelGuider",
    "RandomNoise", "DisableNoise", "AddNoise",
    "BasicScheduler", "KarrasScheduler", "ExponentialScheduler", "BetaSamplingScheduler", "SDTurboScheduler",
    "SplitSigmas", "SplitSigmasDenoise", "SetFirstSigma",
    "KSamplerSelect", "SamplerEulerAncestral", "SamplerDPMPP_2M_SDE", "SamplerLMS", "SamplerER_SDE", "SamplerSASolver",
    "SamplerLCM",
    "EmptyImage", "ImageBatch", "ImageFromBatch", "ImageScale", "ImageInvert", "ImageCompositeMasked", "RebatchImages",
    "SolidMask", "InvertMask", "MaskComposite", "FeatherMask", "GrowMask", "ImageToMask", "MaskToImage",
    "ConditioningAverage", "ConditioningCombine", "ConditioningConcat", "ConditioningZeroOut", "ConditioningSetArea",
    "ConditioningSetAreaPercentage", "ConditioningSetAreaStrength", "ConditioningSetMask",
    "ConditioningSetTimestepRange", "ConditioningSetDefaultCombine", "ConditioningSetProperties",
    "InpaintModelConditioning", "CreateHookLoraModelOnly", "CLIPSetLastLayer",
    "SetLatentNoiseMask", "RepeatLatentBatch", "LatentFromBatch", "RebatchLatents", "LatentUpscaleBy", "LatentFlip",
    "LatentRotate", "LatentBlend", "LatentCompositeMasked", "VAEEncodeForInpaint",
    "FreeU_V2", "PerturbedAttentionGuidance", "SelfAttentionGuidance", "HyperTile", "TomePatchModel", "EasyCache",
    "LazyCache", "RescaleCFG", "DifferentialDiffusion", "LoraLoaderModelOnly", "LoraLoaderBypassModelOnly",
    "ModelSamplingDiscrete", "PatchModelAddDownscale", "CFGZeroStar", "CFGNorm", "APG", "TCFG", "FreSca", "Mahiro",
    "NAGuidance", "ModelMergeSimple", "TemporalScoreRescaling", "UNetCrossAttentionMultiply",
    "UNetSelfAttentionMultiply", "PerpNeg",
    "CreateBoundingBoxes", "PrimitiveBoundingBox",
)  # fmt: skip
PRIMITIVES = {"INT": "PrimitiveInt", "FLOAT": "PrimitiveFloat", "STRING": "PrimitiveStringMultiline",
              "BOOLEAN": "PrimitiveBoolean"}  # fmt: skip
# type -> (node, output) where nothing more is to be built
PLAIN = {
    "MODEL": ("RobustToy", 0), "CLIP": ("RobustToy", 1), "VAE": ("RobustToy", 2), "CLIP_VISION": (VISION, 0),
    "CONDITIONING": ("CLIPTextEncode", 0), "LATENT": ("EmptyLatentImage", 0), "IMAGE": ("EmptyImage", 0),
    "MASK": ("SolidMask", 0), "SIGMAS": ("BasicScheduler", 0), "NOISE": ("RandomNoise", 0),
    "SAMPLER": ("KSamplerSelect", 0), "GUIDER": ("CFGGuider", 0), "BOXWRIGHT_REGIONS": ("BoxwrightRegions", 0),
}  # fmt: skip
SEEN = ("IMAGE", "MASK", "STRING", "INT", "BOUNDING_BOX", "FLOAT")  # what a graph may end in
WRONG = {
    "INT": (-1, 2**40, 10**30, 0, 3.7),
    "FLOAT": (-1.0, 1e9, float("nan"), float("inf"), -0.001, 1.5),
    "STRING": ("", "x" * 20_000, "\ud800", "red: nan", "🟥" * 400, "{" * 200, "a\x00b", ":::", "1e999", "[1, 2"),
    "BOOLEAN": (7, "yes"),
    "COMBO": ("no such choice", 3),
}


def pool(object_info):
    """The part of the server's object info that graphs are made of: ours, and some of the host's."""
    return {name: info for name, info in object_info.items() if name.startswith("Boxwright") or name in HOST} | {
        name: object_info[name] for name in PRIMITIVES.values()
    }


def ours(info):
    return sorted(name for name in info if name.startswith("Boxwright"))


def choices(info):
    """(node of ours, input, choice) of every list that a user chooses from, and both states of every switch."""
    found = []
    for kind in ours(info):
        for name, spec in _specs(info[kind]["input"]):
            if spec[0] in ("COMBO", "COMFY_DYNAMICCOMBO_V3"):
                options = [option if isinstance(option, str) else option["key"] for option in spec[1]["options"]]
                # of files, which every folder has others of, the graphs hold one
                found += [(kind, name, option) for option in options if not option.endswith(".safetensors")]
            elif spec[0] == "BOOLEAN":
                found += [(kind, name, False), (kind, name, True)]
    return found


def _may_be(option, name, fixed):
    """Whether an option of a dynamic combo goes with what is fixed of it: the option itself, or an input under it."""
    under = {own.removeprefix(f"{name}.") for own in fixed if own.startswith(f"{name}.")}
    return fixed.get(name, option["key"]) == option["key"] and under <= set().union(*option["inputs"].values())


def _specs(sections, before=""):
    for section, parts in sections.items():
        for name, spec in parts.items() if section != "hidden" else ():
            yield before + name, spec
            if spec[0] == "COMFY_DYNAMICCOMBO_V3":
                for option in spec[1]["options"]:
                    yield from _specs(option["inputs"], f"{before}{name}.")


class Graph(Texts, Sense):
    """One random graph."""

    def __init__(self, info, seed, subject=None, **chosen):
        """`info` of `pool`; `subject` is the node of ours that it is about, or any, with the inputs `chosen`."""
        self.info, self.random = info, random.Random(seed)
        self.nodes = {}  # in the host's API format
        self.made = {}  # type -> links to outputs of it
        self.choose_prompt()
        self.width, self.height = self.random.choice(SIZES)
        self.batch = self.random.choice(BATCHES)
        self.subject = subject or self.random.choice(ours(info))
        self.wrong = None  # what is wrong on purpose, in words
        name = self.build(self.subject, depth=0, **chosen)
        self.use_all(name, depth=0)
        if self.random.random() < 0.25 and not chosen:
            self.spoil()
        # Without what nothing at an end needs: the host runs no such node, but it checks the others.
        self.nodes = {key: self.nodes[key] for key in self.needed()}

    def samples(self):
        """Whether it runs the model."""
        return any(node["class_type"] in SAMPLING for node in self.nodes.values())

    # --- building ---

    def add(self, kind, inputs):
        name = f"{len(self.nodes)} {kind}"
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        for slot, type_ in enumerate(self.info[kind]["output"] if kind in self.info else ()):
            if not (type_ == "IMAGE" and kind in REPORTS):
                self.made.setdefault(type_, []).append([name, slot])
        return name

    def build(self, kind, depth, **fixed):
        """A node of a kind with everything that it needs; its name."""
        if kind not in self.info:  # one of the test's own, that there is once
            known = [name for name, node in self.nodes.items() if node["class_type"] == kind]
            return known[0] if known else self.add(kind, {})
        inputs = {}
        sections = self.info[kind]["input"]
        for section in ("required", "optional"):
            for name, spec in sections.get(section, {}).items():
                if section == "required" or name in fixed or self.random.random() < LIKELY.get(name, 0.3):
                    self.fill(inputs, kind, name, spec, depth, fixed)
        if self.random.random() < 0.985:
            self.settle(kind, inputs, depth, fixed)
        return self.add(kind, inputs)

    def toy(self, type_):
        kind, slot = PLAIN[type_]
        return [self.build(kind, 9), slot]

    def fill(self, inputs, kind, name, spec, depth, fixed):
        type_, options = spec[0], (spec[1] if len(spec) > 1 else {})
        if name in fixed and type_ != "COMFY_DYNAMICCOMBO_V3":
            inputs[name] = fixed[name]
        elif name in ("lora", "lora_name"):
            inputs[name] = self.random.choice([options["options"][0], LORA]) if name == "lora" else LORA
        elif isinstance(type_, list):
            inputs[name] = self.random.choice([option for option in type_ if option not in SLOW])
        elif type_ == "COMBO":
            inputs[name] = self.random.choice([o for o in options["options"] if o not in SLOW])
        elif type_ == "COMFY_DYNAMICCOMBO_V3":
            choice = self.random.choice([o for o in options["options"] if _may_be(o, name, fixed)])
            inputs[name] = choice["key"]
            for section, part in choice["inputs"].items():
                for own, own_spec in part.items():
                    if section == "required" or self.random.random() < 0.4:
                        self.fill(inputs, kind, f"{name}.{own}", own_spec, depth, fixed)
        elif type_ in PRIMITIVES and not options.get("forceInput"):
            inputs[name] = self.widget(kind, name, type_, options, depth)
        elif type_ == "BOUNDING_BOXES":  # a canvas of the host's, as it saves it
            inputs[name] = {"__value__": options["default"]}  # a list that is no link
        else:
            link = self.link(self.random.choice(type_.split(",")), depth + 1, name, inputs)
            if link is not None:
                inputs[name] = link

    def widget(self, kind, name, type_, options, depth):
        """A value, or now and then a wire that brings one."""
        if type_ == "BOOLEAN":
            value = self.random.random() < 0.5
        elif type_ == "STRING":
            value = self.text(kind, name)
        else:
            value = self.number(kind, name, type_, options)
        large = type_ == "INT" and value >= 2**63  # no number of the host's node
        if options.get("socketless") or depth > 3 or large or self.random.random() > 0.04:
            return value
        return [self.add(PRIMITIVES[type_], {"value": value}), 0]

    def number(self, kind, name, type_, options):
        own = name.rsplit(".", 1)[-1]
        if own in ("width", "height") and type_ == "INT":
            if kind.startswith("Boxwright"):
                sides = [side for side in (0, 64, 100, 264) if options["min"] <= side <= options["max"]]
                return self.random.choice(sides)
            side = getattr(self, own)
            return side if self.random.random() < 0.95 else self.random.choice(SIZES)[own == "height"]
        if own == "batch_size" and kind.startswith("Empty"):
            return self.batch if self.random.random() < 0.9 else self.random.choice(BATCHES)
        if own == "steps" and kind == "KSamplerAdvanced":
            return self.random.randint(3, 4)
        low, high = SMALL.get(own, (options.get("min", 0), options.get("max", 10)))
        low, high = in_our_range(low, high, options)
        if own in ("seed", "noise_seed") and not kind.startswith("Boxwright"):
            high = 2**32  # some samplers of the host take no larger one
        if type_ == "INT":
            numbers = [options.get("default", low), low, high, self.random.randint(int(low), int(high))]
            return min(max(int(self.random.choice(numbers)), int(low)), int(high))
        if (own in ("start", "start_percent") and self.random.random() < 0.7) or high - low > 1e6:
            return options.get("default", low)
        if own in ("end", "end_percent"):
            return self.random.choice([1.0, 1.0, options.get("default", 1.0), 0.6])
        numbers = [options.get("default", low), low, high, *[self.random.uniform(low, high)] * 3]
        return min(max(round(float(self.random.choice(numbers)), 6), low), high)

    # --- wiring ---

    def link(self, type_, depth, name="", inputs=None):
        """An output of a type; None where nothing in the pool makes one."""
        companion = self.companion(type_, name, inputs or {})
        if companion and self.random.random() < 0.95:
            return companion
        known = self.made.get(type_, ())
        if known and self.random.random() < 0.7:
            return list(self.random.choice(known))
        if type_ == "MASK" and self.random.random() < 0.5:
            return self.painted()
        if type_ in PLAIN:
            kind, slot = PLAIN[type_]
            plain = 0.4 if type_ == "MODEL" else 0.65
            if depth > 2 or kind not in self.info and type_ != "MODEL" or self.random.random() < plain:
                return [self.build(kind, depth), slot]
        makers = [
            (kind, slot)
            for kind, info in self.info.items()
            for slot, output in enumerate(info["output"])
            if output == type_
            and kind not in PRIMITIVES.values()
            and (depth < 4 or type_ not in PLAIN)
            and not (type_ == "IMAGE" and kind in REPORTS)
        ]
        if not makers or depth > 6:
            return list(known[0]) if known else None
        kind, slot = self.random.choice(makers)
        return [self.build(kind, depth), slot]

    def upstream(self, inputs):
        """Names of the nodes before these inputs, the nearest first."""
        waiting, seen = [inputs], []
        while waiting:
            for value in waiting.pop(0).values():
                if isinstance(value, list) and len(value) == 2 and value[0] in self.nodes and value[0] not in seen:
                    seen.append(value[0])
                    waiting.append(self.nodes[value[0]]["inputs"])
        return seen

    def use_all(self, name, depth):
        """Wire each output of a node to something, until there is something to be seen."""
        for slot, type_ in enumerate(self.info[self.nodes[name]["class_type"]]["output"]):
            self.use(type_, [name, slot], depth)

    def use(self, type_, link, depth):
        if (type_ in SEEN and (type_ != "STRING" or depth or self.random.random() < 0.7)) or depth > 4:
            self.add(END, {"value": link})
            return
        takers = [
            (kind, own)
            for kind, info in self.info.items()
            for section in info["input"].values()
            for own, spec in section.items()
            if isinstance(spec, list | tuple) and isinstance(spec[0], str) and type_ in spec[0].split(",")
        ]
        if type_ == "STRING":
            takers = [("CLIPTextEncode", "text")] * 3
            if "Layout" in link[0]:
                takers = [("BoxwrightPromptToRegions", "text"), ("BoxwrightBoxEditor", "boxes")]
        if type_ in ("MODEL", "CONDITIONING") and self.random.random() < 0.6:
            kinds = ("KSampler", "KSampler", "KSamplerAdvanced", "SamplerCustom", "CFGGuider")
            takers = [(kind, "model" if type_ == "MODEL" else "positive") for kind in kinds]
        if not takers:
            self.add(END, {"value": link})
            return
        kind, own = self.random.choice(takers)
        name = self.build(kind, depth + 1, **{own: link})
        outputs = self.info[kind]["output"]
        if not outputs:
            return
        slot = self.random.randrange(len(outputs))
        self.use(outputs[slot], [name, slot], depth + 1)

    # --- one thing wrong ---

    def spoil(self):
        """Put something wrong into one node of ours: a value beyond its range, typed or wired, or another wire."""
        needed = [name for name in self.needed() if self.nodes[name]["class_type"].startswith("Boxwright")]
        if not needed:
            return
        node = self.nodes[self.random.choice(needed)]
        names = [name for name in node["inputs"] if self.type_of(node, name) is not None]
        if not names:
            return
        name = self.random.choice(names)
        type_ = self.type_of(node, name)
        if type_ not in WRONG:
            others = [link for link in self.made.get(type_, ()) if link != node["inputs"][name]]
            before = [
                link for link in others if list(self.nodes).index(link[0]) < list(self.nodes).index(self.key(node))
            ]
            if self.random.random() < 0.2:
                del node["inputs"][name]
                self.wrong = f"{self.key(node)}: {name} is not wired"
            elif before:
                node["inputs"][name] = list(self.random.choice(before))
                self.wrong = f"{self.key(node)}: {name} from elsewhere"
            return
        value = self.random.choice(WRONG[type_])
        self.wrong = f"{self.key(node)}: {name} = {value!r:.60}"
        socket = not self.spec_of(node, name)[1].get("socketless")
        if type_ in PRIMITIVES and socket and self.random.random() < 0.7:
            kind = PRIMITIVES[type_]
            node["inputs"][name] = [self.add(kind, {"value": value}), 0]
        else:
            node["inputs"][name] = value

    def key(self, node):
        return next(name for name, other in self.nodes.items() if other is node)

    def spec_of(self, node, name):
        sections = self.info[node["class_type"]]["input"]
        for section in sections.values():
            if name in section:
                spec = section[name]
                return spec[0], (spec[1] if len(spec) > 1 else {})
        return None

    def type_of(self, node, name):
        spec = self.spec_of(node, name)
        return None if spec is None else "COMBO" if isinstance(spec[0], list) else spec[0].split(",")[0]

    def needed(self):
        """Names of the nodes that lead to an end, in the order they were made."""
        ends = [name for name, node in self.nodes.items() if node["class_type"] == END]
        before = {name for end in ends for name in self.upstream(self.nodes[end]["inputs"])}
        outputs = {
            name for name, node in self.nodes.items() if self.info.get(node["class_type"], {}).get("output_node")
        }
        before |= {name for end in outputs for name in self.upstream(self.nodes[end]["inputs"])}
        return [name for name in self.nodes if name in before or name in ends or name in outputs]

    # --- without ours ---

    def bypassed(self):
        """The same graph with each node of ours bypassed as the browser does it: an output is the first wire of its
        type that came in, or where none did, a plain one; what came in is looked at. It says whether an error is the
        host's own."""
        before, known = self.nodes, list(self.nodes)
        self.nodes = {name: {**node, "inputs": dict(node["inputs"])} for name, node in before.items()}

        def instead(link):
            name, slot = link
            kind = before[name]["class_type"]
            if not kind.startswith("Boxwright"):
                return link
            type_ = self.info[kind]["output"][slot]
            for own, value in before[name]["inputs"].items():
                if self.is_link(value) and self.type_of(before[name], own) == type_:
                    return instead(value)
            return self.toy(type_) if type_ in PLAIN and not PLAIN[type_][0].startswith("Boxwright") else None

        try:
            for name in known:
                inputs = self.nodes[name]["inputs"]
                for own, value in list(inputs.items()):
                    if self.is_link(value) and (other := instead(value)) is None:
                        del inputs[own]
                    elif self.is_link(value):
                        inputs[own] = list(other)
                        if before[name]["class_type"].startswith("Boxwright"):
                            self.add(END, {"value": list(other)})
            return {
                name: node
                for name, node in self.nodes.items()
                if not node["class_type"].startswith("Boxwright") and (node["class_type"] != END or node["inputs"])
            }
        finally:
            self.nodes = before
