"""Random graphs in the host's API format, made from its own object info: everything wired as its types say, every
widget within its range, and now and then one thing wrong.

A graph of one seed is always the same. It has one of our nodes as its subject, what that needs before it, and behind
it what makes use of each of its outputs, down to something that can be looked at.
"""

import json
import random

PROMPTS = (
    "a red circle and a blue star",
    "a red circle and a blue star on a white background",
    "a large green triangle and an orange circle on a gray background",
    "a red (circle:1.3) and a blue star, " + "a small moon, " * 30,
)
PHRASES = ("red circle", "blue star", "a", "star", "green triangle", "white background", "moon", "orange circle")
TEXTS = {
    "phrases": ("", "", "a", "a\nand a"),
    "phrase": ("a", "background", "circle"),
    "weights": ("a: 2", "a: 0", "a: 10"),
    "word_windows": ("", "", "", "a: 0 0.5"),
    "blend_words": ("", "", "", "a"),
    "subtract_words": ("",),
    "colors": ("#d02020", "red, gold", "teal"),
    "strengths": ("", "", "", "0.2, 0.9"),
    "template": ("{prompt}\n{phrase}: [{x1}, {y1}, {x2}, {y2}]", "{phrase} at {x1},{y1}"),
    "style": ("", "lighting: soft"),
    "background": ("", "white"),
    "targets": ("a red square and a blue star", "a blue circle and a blue star\na red circle", "a moon"),
}
# Numbers that cost time or memory, and no more than that, kept small; the rest of a range is for any graph.
SMALL = {
    "steps": (1, 2), "draws": (1, 2), "iterations": (1, 2), "refine_iterations": (0, 3), "repeats": (1, 3),
    "crops": (1, 4), "averages": (1, 2), "refinements": (0, 2), "jump": (1, 4), "moments": (1, 8), "batch_size": (1, 2),
    "amount": (1, 2), "cfg": (1.0, 9.0), "learning_rate": (1e-6, 0.1), "step_size": (0.0, 60.0),
    "start_at_step": (0, 3), "end_at_step": (1, 4), "max_depth": (0, 2),
    "budget_mb": (1, 64), "scale": (0.0, 3.0), "context_length": (1, 4),
}  # fmt: skip
SIDES = (64, 64, 64, 72, 96)
SLOW = ("dpm_adaptive",)  # takes as many steps as it likes
# Outputs that are drawn for the eye, and large.
REPORTS = (
    "BoxwrightArrangeNoise",
    "BoxwrightDiffMask",
    "BoxwrightRegionsPreview",
    "BoxwrightPromptFit",
    "BoxwrightBoxEditor",
    "BoxwrightAttentionHeatmap",
    "BoxwrightFindWord",
)
LORA = "robust.safetensors"  # what the folder of LoRAs is to hold
# How often an optional input is wired, where that is not as often as any.
LIKELY = {"bounding_boxes": 0.02, "elements": 0.02, "masks": 0.04, "boxes": 0.04, "frame": 0.03, "mask": 0.5}
END = "Look"  # a node of the test, with the input "value": what reaches the end of the graph

# Nodes of the host from which and into which graphs are wired. Those of the test stand for the loaders of files.
HOST = (
    "CLIPTextEncode", "EmptyLatentImage", "VAEDecode", "VAEEncode", "KSampler", "SamplerCustom",
    "SamplerCustomAdvanced", "BasicGuider", "CFGGuider", "RandomNoise", "BasicScheduler", "SplitSigmasDenoise",
    "KSamplerSelect", "EmptyImage", "SolidMask", "InvertMask", "ConditioningCombine", "ConditioningConcat",
    "ConditioningSetAreaPercentage", "ConditioningSetMask", "ConditioningSetTimestepRange", "SetLatentNoiseMask",
    "RepeatLatentBatch", "FreeU_V2", "PerturbedAttentionGuidance", "SelfAttentionGuidance", "HyperTile",
    "TomePatchModel", "EasyCache", "RescaleCFG", "DifferentialDiffusion",
)  # fmt: skip
PRIMITIVES = {
    "INT": "PrimitiveInt",
    "FLOAT": "PrimitiveFloat",
    "STRING": "PrimitiveStringMultiline",
    "BOOLEAN": "PrimitiveBoolean",
}
# type -> (node, output) where nothing more is to be built
PLAIN = {
    "MODEL": ("RobustToy", 0), "CLIP": ("RobustToy", 1), "VAE": ("RobustToy", 2), "CLIP_VISION": ("RobustVision", 0),
    "CONDITIONING": ("CLIPTextEncode", 0), "LATENT": ("EmptyLatentImage", 0), "IMAGE": ("EmptyImage", 0),
    "MASK": ("SolidMask", 0), "SIGMAS": ("BasicScheduler", 0), "NOISE": ("RandomNoise", 0),
    "SAMPLER": ("KSamplerSelect", 0), "GUIDER": ("CFGGuider", 0), "BOXWRIGHT_REGIONS": ("BoxwrightRegions", 0),
}  # fmt: skip
# Nodes of ours whose outputs belong together: names of inputs of who gets the first -> number of the output.
COMPANIONS = {
    "BoxwrightPromptToPrompt": {"positive": 1, "negative": 2, "latent_image": 3},
    "BoxwrightRegionStrength": {"latent_image": 1},
    "BoxwrightLayoutPrompt": {"positive": 0, "negative": 2},
    "BoxwrightArrangeNoise": {},
}
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


class Graph:
    """One random graph."""

    def __init__(self, info, seed, subject=None):
        """`info` of `pool`; `subject` is the node of ours that it is about, or any."""
        self.info, self.random = info, random.Random(seed)
        self.nodes = {}  # in the host's API format
        self.made = {}  # type -> links to outputs of it
        self.prompt = self.random.choice(PROMPTS[:3] if self.random.random() < 0.9 else PROMPTS[3:])
        self.side = self.random.choice(SIDES)
        self.subject = subject or self.random.choice(ours(info))
        self.wrong = None  # what is wrong on purpose, in words
        name = self.build(self.subject, depth=0)
        self.use_all(name, depth=0)
        if self.random.random() < 0.3:
            self.spoil()
        # Without what nothing at an end needs: the host runs no such node, but it checks the others.
        self.nodes = {key: self.nodes[key] for key in self.needed()}

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
                if name in fixed:
                    inputs[name] = fixed[name]
                elif section == "required" or self.random.random() < LIKELY.get(name, 0.3):
                    self.fill(inputs, kind, name, spec, depth, fixed)
        if self.random.random() < 0.9:
            self.settle(kind, inputs, depth, fixed)
        return self.add(kind, inputs)

    def settle(self, kind, inputs, depth, fixed):
        """Mend what no type says and every user knows: which inputs go together, that a window ends after it begins."""
        for name in [name for name in inputs if name.endswith("start") or name == "start_percent"]:
            end = name.replace("start", "end")
            if end in inputs and not isinstance(inputs[name], list):
                inputs[name], inputs[end] = self.random.choice([(0.0, 1.0), (0.0, 0.6), (0.2, 1.0), (0.3, 0.7)])
        named = self.info[kind]["input"].get("optional", {})
        if {"latent", "image", "vae"} <= set(named):  # the picture comes from one source
            if "latent" in fixed or ("image" not in fixed and "vae" not in fixed and self.random.random() < 0.6):
                inputs["latent"] = fixed.get("latent") or self.encoded(depth)
                inputs.pop("image", None)
            else:
                inputs.pop("latent", None)
                inputs |= {"image": fixed.get("image") or self.link("IMAGE", depth + 1)} | {"vae": self.toy("VAE")}
        elif kind == "BoxwrightInvert" and "latent" not in fixed:
            inputs["latent"] = self.encoded(depth)
        if {"width", "height"} <= set(named):
            inputs.pop("width", None), inputs.pop("height", None)
        if kind == "BoxwrightAttentionRecorder":
            if self.random.random() < 0.7:
                inputs["layout"] = fixed.get("layout") or self.link("BOXWRIGHT_LAYOUT", depth + 1)
                inputs.pop("clip", None), inputs.pop("prompt", None)
            else:
                inputs |= {"clip": self.toy("CLIP"), "prompt": self.prompt}
                inputs.pop("layout", None)
        if "record" in inputs:
            inputs["images"] = self.recorded(inputs["record"], depth)
        if kind == "BoxwrightRegions" and not {"bounding_boxes", "elements", "masks"} & set(inputs):
            inputs |= {"phrases": "", "frame": 0}
        elif kind == "BoxwrightRegions":
            inputs |= {"phrases": self.random.choice(["", "red circle"]), "frame": 0}
        if {"layout", "positive"} <= set(inputs) and "positive" not in fixed:
            inputs["positive"] = [inputs["layout"][0], 0]
        if "denoise" in inputs:
            inputs["denoise"] = self.random.choice([1.0, 1.0, 0.6])
        if "sampler" in inputs and "Boxwright" in inputs["sampler"][0] and "latent_image" not in fixed:
            inputs["latent_image"] = self.encoded(depth)
        if kind.startswith("Boxwright") and "model" in inputs and "model" not in fixed and self.random.random() < 0.7:
            inputs["model"] = self.toy("MODEL")
        if "append_missing" in inputs:
            inputs["append_missing"] = self.random.random() < 0.9
        if kind == "BoxwrightDiffMask" and "negative" not in inputs:
            inputs["mode"] = "paper"
        if kind == "BoxwrightBoxEditor":
            inputs["regions_json"] = self.regions()
        if kind == "BoxwrightInvert" and inputs["cfg"] > 1:
            inputs["negative"] = self.link("CONDITIONING", depth + 1)
        if kind in ("BoxwrightDiffEdit", "BoxwrightDiffMask", "BoxwrightFlowEdit", "BoxwrightHSpace"):
            for name, text in (("source", self.prompt), ("target", "a " + self.random.choice(PHRASES))):
                if name not in fixed:
                    own = {"clip": self.toy("CLIP"), "text": text}
                    inputs[name] = [self.add("CLIPTextEncode", own), 0]
        if kind == "BoxwrightClipLoss":
            inputs |= {"mode": "image", "image": fixed.get("image") or [self.build("EmptyImage", 9, batch_size=1), 0]}
        if kind == "BoxwrightPromptToPrompt":
            inputs |= {"mode": "auto", "subtract_words": ""}
        if kind == "BoxwrightLossGuidance" and "mask" in inputs:
            inputs.pop("regions", None), inputs.update(phrase="")
        if kind == "BoxwrightRegionLora":
            inputs |= {"lora": LORA, "region": self.random.choice([0, 1])}
        if kind == "BoxwrightReweight":
            inputs |= {"region": self.random.choice([0, 1]), "renormalize": False}
        if kind == "BoxwrightPromptToRegions":
            inputs |= {"format": "auto", "text": self.regions()}

    def encoded(self, depth):
        """A latent with a picture in it."""
        pixels = {"pixels": self.link("IMAGE", depth + 1), "vae": self.toy("VAE")}
        return [self.add("VAEEncode", pixels), 0]

    def recorded(self, record, depth):
        """A picture drawn with the recorder that made a record."""
        recorder = self.nodes[record[0]]
        settings = {"model": [record[0], 0]}
        if "layout" in recorder["inputs"]:
            settings["positive"] = [recorder["inputs"]["layout"][0], 0]
        else:
            text = {"clip": self.toy("CLIP"), "text": recorder["inputs"].get("prompt", "")}
            settings["positive"] = [self.add("CLIPTextEncode", text), 0]
        drawn = self.build("KSampler", depth + 1, **settings)
        return [self.add("VAEDecode", {"samples": [drawn, 0], "vae": self.toy("VAE")}), 0]

    def toy(self, type_):
        kind, slot = PLAIN[type_]
        return [self.build(kind, 9), slot]

    def fill(self, inputs, kind, name, spec, depth, fixed):
        type_, options = spec[0], (spec[1] if len(spec) > 1 else {})
        if isinstance(type_, list):
            inputs[name] = self.random.choice([option for option in type_ if option not in SLOW])
        elif name == "lora":
            inputs[name] = self.random.choice([options["options"][0], LORA])
        elif type_ == "COMBO":
            inputs[name] = self.random.choice([o for o in options["options"] if o not in SLOW])
        elif type_ == "COMFY_DYNAMICCOMBO_V3":
            choice = self.random.choice(options["options"])
            inputs[name] = choice["key"]
            for part in choice["inputs"].values():
                for own, own_spec in part.items():
                    self.fill(inputs, kind, f"{name}.{own}", own_spec, depth, fixed)
        elif type_ in ("INT", "FLOAT") and not options.get("forceInput"):
            inputs[name] = self.number(kind, name, type_, options)
        elif type_ == "BOOLEAN":
            inputs[name] = self.random.random() < 0.5
        elif type_ == "STRING" and not options.get("forceInput"):
            inputs[name] = self.text(kind, name)
        else:
            link = self.link(self.random.choice(type_.split(",")), depth + 1, name, inputs)
            if link is not None:
                inputs[name] = link

    def number(self, kind, name, type_, options):
        own = name.rsplit(".", 1)[-1]
        if own in ("width", "height") and kind in ("EmptyLatentImage", "EmptyImage", "SolidMask"):
            return self.side if self.random.random() < 0.9 else self.random.choice(SIDES)
        if own in ("width", "height") and kind.startswith("Boxwright"):
            sides = [side for side in (0, 64, 100) if options["min"] <= side <= options["max"]]
            return self.random.choice(sides)
        low, high = SMALL.get(own, (options.get("min", 0), options.get("max", 10)))
        low, high = max(low, options.get("min", low)), min(high, options.get("max", high))
        if own in ("seed", "noise_seed") and not kind.startswith("Boxwright"):
            high = 2**32  # some samplers of the host take no larger one
        if type_ == "INT":
            choices = [options.get("default", low), low, high, self.random.randint(int(low), int(high))]
            return min(max(int(self.random.choice(choices)), int(low)), int(high))
        if (own in ("start", "start_percent") and self.random.random() < 0.7) or high - low > 1e6:
            return options.get("default", low)
        if own in ("end", "end_percent"):
            return self.random.choice([1.0, 1.0, options.get("default", 1.0), 0.6])
        choices = [options.get("default", low), low, high, *[self.random.uniform(low, high)] * 3]
        return min(max(round(float(self.random.choice(choices)), 6), low), high)

    def text(self, kind, name):
        own = name.rsplit(".", 1)[-1]
        if own == "regions_json":
            return self.regions() if kind == "BoxwrightRegions" or self.random.random() < 0.8 else ""
        if kind == "BoxwrightPromptToRegions" and own == "text":
            return self.random.choice(
                [
                    "",
                    self.regions(),
                    self.prompt,
                    "red circle: [10, 20, 300, 400]",
                    'Bounding boxes: [{"label": "star", "bbox": [1, 2, 3, 4]}]',
                ]
            )
        if own == "negative_prompt" or (kind == "CLIPTextEncode" and self.random.random() < 0.3):
            return self.random.choice(["", "a moon", "red circle"])
        return self.random.choice(TEXTS[own]) if own in TEXTS else self.prompt

    def regions(self):
        """regions_json: one to three regions, most of them boxes."""
        found = []
        for _ in range(self.random.choice([1, 2, 2, 3])):
            width, height = (self.random.choice([1.0, 0.5, round(self.random.uniform(0.02, 1.0), 3)]) for _ in "wh")
            x, y = (self.random.choice([0.0, 1.0 - side]) for side in (width, height))
            words = [phrase for phrase in PHRASES if phrase in self.prompt]
            phrase = self.random.choice(words if words and self.random.random() < 0.95 else PHRASES)
            region = {"phrase": phrase, "x": x, "y": y, "width": width, "height": height}
            for key, values in (
                ("strength", (0.0, 0.3, 1.0)), ("feather", (0.0, 0.2)), ("opacity", (0.0, 0.5, 1.0)),
                ("negative", ("", "moon")), ("start", (0.0, 0.3)), ("end", (0.7, 1.0)), ("color", ("#ff0000",)),
                ("lora", (LORA,)), ("note", ("kept", [1, {"a": None}])), ("enabled", (True,)),
            ):  # fmt: skip
                if self.random.random() < 0.12:
                    region[key] = self.random.choice(values)
            found.append(region)
        return json.dumps({"type": "boxwright.regions", "version": 1, "regions": found})

    # --- wiring ---

    def link(self, type_, depth, name="", inputs=None):
        """An output of a type; None where nothing in the pool makes one."""
        companion = self.companion(name, inputs or {})
        if companion and self.random.random() < 0.9:
            return companion
        known = self.made.get(type_, ())
        if known and self.random.random() < 0.75:
            return list(self.random.choice(known))
        if type_ in PLAIN:
            kind, slot = PLAIN[type_]
            if depth > 2 or kind not in self.info and type_ != "MODEL" or self.random.random() < 0.75:
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

    def companion(self, name, inputs):
        """The output that belongs to what an input's neighbours are wired to."""
        if name in ("source", "target", "negative") and self.random.random() < 0.8:
            plain = [link for link in self.made.get("CONDITIONING", ()) if "CLIPTextEncode" in link[0]]
            return list(self.random.choice(plain)) if plain and self.random.random() < 0.5 else None
        for origin in self.upstream(inputs):
            slots = COMPANIONS.get(self.nodes[origin]["class_type"], {})
            if name in slots:
                return [origin, slots[name]]
        return None

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
        if type_ in SEEN or depth > 4:
            self.add(END, {"value": link})
            return
        takers = [
            (kind, own)
            for kind, info in self.info.items()
            for section in info["input"].values()
            for own, spec in section.items()
            if isinstance(spec, list | tuple) and isinstance(spec[0], str) and type_ in spec[0].split(",")
        ]
        if type_ in ("MODEL", "CONDITIONING") and self.random.random() < 0.7:
            takers = [("KSampler", "model" if type_ == "MODEL" else "positive")]
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
