"""What no type says and every user knows: which outputs belong together, and which inputs and numbers.

Nearly all nodes of a random graph are put right by this; the others say what happens to who did not know.
"""

import json

from graph_texts import LONG, LORA

VISION = "RobustVision"  # a CLIP_VISION and the CLIP of the same pair
KSAMPLERS = ("KSampler", "KSamplerAdvanced")
SAMPLERS = (*KSAMPLERS, "SamplerCustom", "SamplerCustomAdvanced")
EDITS = ("BoxwrightDiffEdit", "BoxwrightDiffMask", "BoxwrightFlowEdit", "BoxwrightHSpace", "BoxwrightFlowEditSampler")
SAMPLING = (
    *SAMPLERS, "BoxwrightArrangeNoise", "BoxwrightDiffEdit", "BoxwrightDiffMask", "BoxwrightFindWord",
    "BoxwrightFlowEdit", "BoxwrightInvert", "BoxwrightPromptFit",
)  # fmt: skip
# Nodes whose latent has a picture in it, whatever comes in; others pass on what they get.
DRAWERS = (
    *SAMPLERS, "VAEEncode", "VAEEncodeForInpaint", "InpaintModelConditioning", "BoxwrightDiffEdit", "BoxwrightFlowEdit",
)  # fmt: skip
P2P, RECORDER, LAYOUT = "BoxwrightPromptToPrompt", "BoxwrightAttentionRecorder", "BoxwrightLayoutPrompt"
INVERT, ARRANGE = "BoxwrightInvert", "BoxwrightArrangeNoise"
# Nodes of ours whose outputs belong together: names of inputs of who gets the first -> number of the output.
COMPANIONS = {
    P2P: {"positive": 1, "negative": 2, "latent_image": 3},
    "BoxwrightRegionStrength": {"latent_image": 1},
    LAYOUT: {"positive": 0, "negative": 2},
    ARRANGE: {},
}
# Nodes of the host that stand between a prompt and a sampler, and where the prompt goes in.
BETWEEN = (
    ("ConditioningCombine", "conditioning_1"), ("ConditioningAverage", "conditioning_to"),
    ("ConditioningConcat", "conditioning_to"), ("ConditioningSetMask", "conditioning"),
    ("ConditioningSetTimestepRange", "conditioning"), ("ConditioningSetAreaStrength", "conditioning"),
)  # fmt: skip
ONE_STEP = ("kl_optimal",)  # schedulers of the host that make NaN of one step


def in_our_range(low, high, options):
    """A range cut to what the widget allows."""
    return max(low, options.get("min", low)), min(high, options.get("max", high))


class Sense:
    """The part of a graph that puts inputs right."""

    def is_link(self, value):
        return isinstance(value, list) and len(value) == 2 and value[0] in self.nodes

    def kind(self, link):
        return self.nodes[link[0]]["class_type"]

    def before(self, link):
        """Names of the node of a link and of those before it, the nearest first."""
        return [link[0], *self.upstream(self.nodes[link[0]]["inputs"])]

    def companion(self, type_, name, inputs):
        """The output that belongs to what an input's neighbours are wired to."""
        if type_ == "CONDITIONING" and name in ("source", "target", "negative") and self.random.random() < 0.8:
            plain = [link for link in self.made.get("CONDITIONING", ()) if "CLIPTextEncode" in link[0]]
            return list(self.random.choice(plain)) if plain and self.random.random() < 0.5 else None
        for origin in self.upstream(inputs):
            slots = COMPANIONS.get(self.nodes[origin]["class_type"], {})
            if name in slots and self.info[self.nodes[origin]["class_type"]]["output"][slots[name]] == type_:
                return [origin, slots[name]]
        return None

    def encoded(self, depth):
        """A latent with a picture in it."""
        pixels = {"pixels": self.link("IMAGE", depth + 1), "vae": self.toy("VAE")}
        return [self.add("VAEEncode", pixels), 0]

    def written(self, text):
        return [self.add("CLIPTextEncode", {"clip": self.toy("CLIP"), "text": text}), 0]

    def painted(self):
        """A mask that is white in one part of the picture."""
        part = lambda value, width, height: [  # noqa: E731
            self.add("SolidMask", {"value": value, "width": width, "height": height}), 0
        ]  # fmt: skip
        x, y = self.random.choice([(0, 0), (self.width // 2, 0), (8, 8), (0, self.height // 2)])
        inputs = dict(destination=part(0.0, self.width, self.height), x=x, y=y, operation="add")
        inputs["source"] = part(self.random.choice([1.0, 1.0, 0.5]), self.width // 2, self.height // 2)
        return [self.add("MaskComposite", inputs), 0]

    def has_picture(self, link):
        """Whether there is more than zeros in a latent, as far as its wires tell."""
        waiting = [link]
        while waiting:
            here = waiting.pop()
            kind, inputs = self.kind(here), self.nodes[here[0]]["inputs"]
            if kind in DRAWERS or (kind == "BoxwrightRegionStrength" and "image" in inputs):
                return True
            latents = ("samples", "latent", "latents", "samples1", "latent_image", "destination")
            waiting += [inputs[name] for name in latents if self.is_link(inputs.get(name))]
        return False

    # --- all nodes ---

    def settle(self, kind, inputs, depth, fixed):
        """Put right the inputs of a node that is about to be made."""
        self.settle_windows(inputs, fixed)
        self.settle_source(kind, inputs, depth, fixed)
        own = getattr(self, f"settle_{kind.removeprefix('Boxwright')}", None)
        if own:
            own(inputs, depth, fixed)
        if kind in EDITS:
            self.settle_edit(inputs, fixed)
        if "model" in inputs:
            self.settle_model(kind, inputs, depth, fixed)
        if kind in SAMPLERS:
            self.settle_sampler(kind, inputs, depth, fixed)
        if "denoise" in inputs:
            inputs["denoise"] = self.random.choice([1.0, 1.0, 0.6])
        if inputs.get("scheduler") in ONE_STEP and "scheduler" not in fixed:
            inputs["scheduler"] = "karras"
        if "append_missing" in inputs and "append_missing" not in fixed:
            inputs["append_missing"] = self.random.random() < 0.9
        if kind.startswith("ConditioningSetArea") and "width" in inputs:
            share = kind.endswith("Percentage")
            inputs |= {"x": 0.0, "y": 0.0} if share else {"x": 0, "y": 0}
            inputs |= {"width": 1.0 if share else self.width, "height": self.random.choice([0.5, 1.0]) if share else 64}

    def settle_windows(self, inputs, fixed):
        for name in [name for name in inputs if name.endswith("start") or name == "start_percent"]:
            end = name.replace("start", "end")
            if end in inputs and not self.is_link(inputs[name]):
                inputs[name], inputs[end] = self.random.choice([(0.0, 1.0), (0.0, 0.6), (0.2, 1.0), (0.3, 0.7)])
        for name in ("mode.dense_end", "bound.bound_end"):
            if name in inputs:
                inputs[name] = self.random.choice([0.5, 1.0])

    def settle_source(self, kind, inputs, depth, fixed):
        """The picture that a node works on comes from one source, and there is one."""
        named = self.info[kind]["input"].get("optional", {})
        if {"latent", "image", "vae"} <= set(named):
            if "latent" in fixed or ("image" not in fixed and "vae" not in fixed and self.random.random() < 0.6):
                inputs["latent"] = fixed.get("latent") or self.encoded(depth)
                inputs.pop("image", None)
            else:
                inputs.pop("latent", None)
                inputs |= {"image": fixed.get("image") or self.link("IMAGE", depth + 1), "vae": self.toy("VAE")}
        elif kind == INVERT and "latent" not in fixed:
            inputs["latent"] = self.encoded(depth)
        if (kind == INVERT or {"latent", "image", "vae"} <= set(named)) and self.is_link(inputs.get("latent")):
            if not self.has_picture(inputs["latent"]):
                inputs["latent"] = self.encoded(depth)
        if kind in ("BoxwrightRegionsPreview", "BoxwrightLayoutToPrompt", "BoxwrightPromptToRegions"):
            side = self.random.choice([0, 100])
            inputs |= {"width": side, "height": side}

    def settle_edit(self, inputs, fixed):
        if "threshold" in inputs and "threshold" not in fixed:
            inputs["threshold"] = self.random.choice([0.1, 0.3, 0.5])
        for name, text in (("source", self.prompt), ("target", self.other_prompt())):
            if name in inputs and name not in fixed:
                inputs[name] = self.written(text)

    # --- a model, and the prompt that goes with it ---

    def needs(self, model):
        """What a model's patches want of the prompt: ("layout", node), ("pair", node), ("text", its text)."""
        found = []
        for name in self.before(model):
            node = self.nodes[name]
            layout = node["inputs"].get("layout")
            if node["class_type"] == P2P:
                found.append(("pair", name))
            elif layout and self.type_is_model(node):
                found.append(("layout", layout[0]))
            elif node["class_type"] == RECORDER:
                found.append(("text", node["inputs"].get("prompt")))
        return list(dict.fromkeys(found))

    def type_is_model(self, node):
        return "MODEL" in self.info[node["class_type"]]["output"]

    def settle_model(self, kind, inputs, depth, fixed):
        """A model whose patches know the prompt of this node, or the prompt that they know."""
        for name in [name for name in inputs if name in ("model", "model1", "model2", "model_negative")]:
            if not self.is_link(inputs[name]):
                continue
            needs = self.needs(inputs[name])
            if not needs:
                continue
            if not self.agreed(kind, inputs, needs, fixed):
                if name not in fixed:
                    inputs[name] = self.toy("MODEL")

    def agreed(self, kind, inputs, needs, fixed):
        """Give the node what a model wants, where it takes that; whether it has it now."""
        if "layout" in inputs and kind != ARRANGE:
            ((sort, name),) = needs if len(needs) == 1 else [(None, None)]
            if sort != "layout" or ("layout" in fixed and fixed["layout"][0] != name):
                return False
            inputs["layout"] = [name, 1]
            return True
        if kind in (RECORDER, P2P, "ModelMergeSimple"):
            return False
        if "positive" not in inputs:
            return self.type_is_model({"class_type": kind})  # passes it on
        ((sort, name),) = needs if len(needs) == 1 else [(None, None)]
        if sort is None:
            return False
        if "positive" in fixed and name not in self.before(fixed["positive"]):
            return False
        if sort == "pair":
            inputs |= {"positive": fixed.get("positive") or [name, 1]}
            if "negative" in inputs:
                inputs["negative"] = fixed.get("negative") or [name, 2]
            for latent in ("latent_image", "latent"):
                if latent in inputs:
                    inputs[latent] = fixed.get(latent) or [name, 3]
            return kind in (*SAMPLERS, "CFGGuider")
        if "positive" not in fixed and (sort == "text" or name not in self.before(inputs["positive"])):
            inputs["positive"] = self.written(name) if sort == "text" else self.dressed([name, 0])
        return True

    def dressed(self, positive):
        """A layout's prompt as it is, or behind a node of the host that stands between."""
        if self.random.random() < 0.6:
            return positive
        kind, first = self.random.choice(BETWEEN)
        return [self.build(kind, 5, **{first: positive}), 0]

    # --- samplers ---

    def settle_sampler(self, kind, inputs, depth, fixed):
        if self.is_link(inputs.get("guider")):
            self.settle_guided(inputs, fixed)
        if self.is_link(inputs.get("sigmas")) and "sigmas" not in fixed:
            self.settle_stage(kind, inputs, depth, fixed)
        if self.is_link(inputs.get("sampler")) and self.kind(inputs["sampler"]).startswith("Boxwright"):
            self.settle_our_sampler(inputs, depth, fixed)
        if self.is_link(inputs.get("noise")):
            for name in self.before(inputs["noise"]):
                node = self.nodes[name]
                if node["class_type"] in (ARRANGE, INVERT) and "latent_image" not in fixed:
                    inputs["latent_image"] = list(node["inputs"]["latent"])
                    if node["class_type"] == ARRANGE and self.is_link(node["inputs"].get("sigmas")):
                        inputs["sigmas"] = list(node["inputs"]["sigmas"])
                    break

    def settle_guided(self, inputs, fixed):
        """Prompt to Prompt in a guider wants its own latent at the sampler."""
        for sort, name in self.needs_of_guider(inputs["guider"]):
            if sort == "pair" and "latent_image" not in fixed:
                inputs["latent_image"] = [name, 3]

    def needs_of_guider(self, guider):
        model = self.nodes[guider[0]]["inputs"].get("model")
        return self.needs(model) if self.is_link(model) else []

    def settle_stage(self, kind, inputs, depth, fixed):
        """The second part of a schedule goes on where a first sampler has stopped."""
        split = self.nodes[inputs["sigmas"][0]]
        if not split["class_type"].startswith("SplitSigmas") or inputs["sigmas"][1] == 0 or "latent_image" in fixed:
            return
        first = {**inputs, "sigmas": [inputs["sigmas"][0], 0]}
        inputs["latent_image"] = [self.add(kind, first), 0]
        if kind == "SamplerCustomAdvanced":
            inputs["noise"] = [self.build("DisableNoise", 9), 0]
        else:
            inputs["add_noise"] = False

    def settle_our_sampler(self, inputs, depth, fixed):
        """A picture to start from, a schedule of some steps, and a mask where the sampler lives of one."""
        sampler = self.nodes[inputs["sampler"][0]]
        kind, own = sampler["class_type"], sampler["inputs"]
        inverted = next((n for n in self.before(inputs["sampler"]) if self.nodes[n]["class_type"] == INVERT), None)
        if "latent_image" not in fixed:
            if inverted:
                inputs["latent_image"] = list(self.nodes[inverted]["inputs"]["latent"])
            elif not self.has_picture(inputs["latent_image"]):
                inputs["latent_image"] = self.encoded(depth)
        if "sigmas" not in fixed:
            if inverted:
                inputs["sigmas"] = list(self.nodes[inverted]["inputs"]["sigmas"])
            elif self.is_link(own.get("sigmas")):
                inputs["sigmas"] = list(own["sigmas"])
            elif self.random.random() < 0.8:
                inputs["sigmas"] = self.schedule()
        masks = "BoxwrightRePaint", "BoxwrightBlendedLatents"
        if kind in masks and "mask" not in own and "latent_image" not in fixed:
            masked = {"samples": inputs["latent_image"], "mask": self.painted()}
            inputs["latent_image"] = [self.add("SetLatentNoiseMask", masked), 0]

    def schedule(self):
        steps, scheduler = self.random.choice([2, 3, 4]), self.random.choice(["normal", "karras", "simple", "beta"])
        settings = dict(model=self.toy("MODEL"), scheduler=scheduler, steps=steps, denoise=1.0)
        return [self.add("BasicScheduler", settings), 0]

    # --- the host's nodes ---

    def settle_SplitSigmas(self, inputs, depth, fixed):
        if "sigmas" not in fixed:
            inputs["sigmas"] = self.schedule()

    settle_SplitSigmasDenoise = settle_SplitSigmas

    def settle_LatentBlend(self, inputs, depth, fixed):
        """It takes two batches of one size only."""
        first = "samples1" if "samples1" in fixed or "samples2" not in fixed else "samples2"
        flipped = {"samples": inputs[first], "flip_method": "x-axis: vertically"}
        inputs["samples2" if first == "samples1" else "samples1"] = [self.add("LatentFlip", flipped), 0]

    def settle_AddNoise(self, inputs, depth, fixed):
        if self.is_link(inputs["noise"]) and self.kind(inputs["noise"]).startswith("Boxwright"):
            inputs["noise"] = self.toy("NOISE")

    def settle_CreateBoundingBoxes(self, inputs, depth, fixed):
        inputs["bboxes"] = fixed.get("bboxes") or [
            self.add("PrimitiveBoundingBox", {"x": 0, "y": 0, "width": 40, "height": 64}), 0
        ]  # fmt: skip

    def settle_PrimitiveBoundingBox(self, inputs, depth, fixed):
        inputs |= {"width": self.width // 2, "height": self.height // 2}

    # --- ours ---

    def settle_Regions(self, inputs, depth, fixed):
        """Boxes of the host carry no text and masks none; ours do."""
        unnamed = 0
        for name in ("bounding_boxes", "elements", "masks"):
            link = inputs.get(name)
            if self.is_link(link):
                unnamed += 0 if name != "masks" and self.kind(link).startswith("Boxwright") else 1
        if self.is_link(inputs.get("bounding_boxes")) and not self.kind(inputs["bounding_boxes"]).startswith("Box"):
            inputs |= {"width": self.width, "height": self.height}
        inputs |= {"phrases": "\n".join(self.word() for _ in range(unnamed))}
        if "frame" in inputs:
            inputs["frame"] = 0

    def settle_BoxEditor(self, inputs, depth, fixed):
        inputs["regions_json"] = self.regions()
        if self.is_link(inputs.get("boxes")) and "boxes" not in fixed:
            if self.kind(inputs["boxes"]) not in ("BoxwrightRegions", "BoxwrightBoxEditor", "MaskComposite"):
                inputs["boxes"] = self.toy("BOXWRIGHT_REGIONS")

    def settle_AttentionRecorder(self, inputs, depth, fixed):
        if "clip" not in fixed and ("layout" in fixed or self.random.random() < 0.7):
            inputs["layout"] = fixed.get("layout") or self.link("BOXWRIGHT_LAYOUT", depth + 1)
            inputs.pop("clip", None), inputs.pop("prompt", None)
        else:
            inputs |= {"clip": self.toy("CLIP"), "prompt": self.prompt}
            inputs.pop("layout", None)

    def settle_AttentionHeatmap(self, inputs, depth, fixed):
        recorder = self.nodes[inputs["record"][0]]["inputs"]
        known = recorder.get("phrases")
        words = known.splitlines() if isinstance(known, str) and known else [self.word()]
        for name in ("phrase", "phrases"):
            if name in inputs:
                inputs[name] = self.random.choice(["", *words] if name == "phrases" else words)
        if "images" not in fixed:
            inputs["images"] = self.recorded(inputs["record"], depth)

    settle_MaskFromWord = settle_AttentionHeatmap

    def recorded(self, record, depth):
        """A picture drawn with the recorder that made a record."""
        recorder = self.nodes[record[0]]
        settings = {"model": [record[0], 0]}
        if "layout" in recorder["inputs"]:
            settings["positive"] = [recorder["inputs"]["layout"][0], 0]
        else:
            settings["positive"] = self.written(recorder["inputs"].get("prompt", ""))
        drawn = self.build("KSampler", depth + 1, **settings)
        return [self.add("VAEDecode", {"samples": [drawn, 0], "vae": self.toy("VAE")}), 0]

    def settle_ArrangeNoise(self, inputs, depth, fixed):
        if "positive" not in fixed:
            inputs["positive"] = [inputs["layout"][0], 0]
        for name in self.before(inputs["noise"]):
            if self.nodes[name]["class_type"] in (INVERT, ARRANGE) and "latent" not in fixed:
                inputs["latent"] = list(self.nodes[name]["inputs"]["latent"])
                break

    def settle_BoxConstraint(self, inputs, depth, fixed):
        none = {"fast": ("published", "fill"), "attend_excite": ("fill",)}
        if inputs["preset"] in none.get(inputs["mode"], ()):
            inputs["preset" if "preset" not in fixed else "mode"] = "standard" if "preset" not in fixed else "boxdiff"

    def settle_DiffMask(self, inputs, depth, fixed):
        if inputs["mode"] == "cfg" and "negative" not in inputs:
            inputs["negative"] = self.written("")

    def settle_DiffEditSampler(self, inputs, depth, fixed):
        if "mask" not in fixed:
            inputs["mask"] = self.painted()

    def settle_Invert(self, inputs, depth, fixed):
        if "negative" not in inputs:
            inputs["negative"] = self.link("CONDITIONING", depth + 1)
        if "sigmas" not in fixed and self.random.random() < 0.8:
            inputs["sigmas"] = self.schedule()

    def settle_ClipLoss(self, inputs, depth, fixed):
        mode = inputs["mode"]
        inputs["clip"] = [inputs["clip_vision"][0], 1]
        if mode != "text":
            inputs["image"] = fixed.get("image") or [self.build("EmptyImage", 9, batch_size=1), 0]
        if inputs["text"] == LONG:  # CLIP compares no more than it reads at once
            inputs["text"] = "a red circle"
        if mode == "direction":
            inputs |= {"source_text": "a " + self.word(), "text": "a moon"}

    def settle_PromptToPrompt(self, inputs, depth, fixed):
        if inputs["mode"] == "replace":  # as many words on both sides
            inputs["targets"] = " ".join("moon" if word in ("star", "circle") else word for word in self.prompt.split())
        kept = [
            word for word in self.prompt.split() if all(word in t.split() for t in str(inputs["targets"]).split("\n"))
        ]
        word = self.random.choice(kept) if kept else None
        some = lambda chance, text: text if word and self.random.random() < chance else ""  # noqa: E731
        inputs["weights"] = some(0.6, f"{word}: {self.random.choice([2, 0, -1.5])}")
        inputs["word_windows"] = some(0.3, f"{word}: 0 0.5")
        inputs["blend_words"] = some(0.5, word)
        inputs["subtract_words"] = some(0.3, self.random.choice(kept or [""])) if inputs["blend_words"] else ""

    def settle_LossGuidance(self, inputs, depth, fixed):
        if "mask" in inputs:
            inputs.pop("regions", None), inputs.update(phrase="")
        elif "regions" not in inputs:
            inputs["phrase"] = ""
        else:
            inputs["phrase"] = self.random.choice(["", *self.phrases_of(inputs["regions"])])

    def phrases_of(self, regions):
        """The phrases of a node's own regions; () where others are wired to it."""
        inputs = self.nodes[regions[0]]["inputs"]
        wired = any(self.is_link(value) for value in inputs.values())
        text = inputs.get("regions_json")
        if wired or not isinstance(text, str) or not text.startswith("{"):
            return ()
        return tuple(region["phrase"] for region in json.loads(text)["regions"])

    def settle_RegionLora(self, inputs, depth, fixed):
        if "subject_after" in inputs:
            inputs["subject_after"] = self.random.choice([0.25, 0.34])
        regions = self.nodes[inputs["layout"][0]]["inputs"].get("regions")
        text = self.nodes[regions[0]]["inputs"].get("regions_json") if self.is_link(regions) else ""
        if "lora" not in fixed and not (isinstance(text, str) and '"lora"' in text):
            inputs["lora"] = LORA
        inputs["region"] = self.random.choice([0, 1])

    def settle_Reweight(self, inputs, depth, fixed):
        inputs["region"] = self.random.choice([0, 1])
        if inputs["renormalize"] is True:
            inputs["weights"] = f"{self.word()}: 3"

    def settle_RegionPrompt(self, inputs, depth, fixed):
        regions = self.nodes[inputs["layout"][0]]["inputs"].get("regions")
        self.settle_texts(inputs, "mode.region_texts", regions, "mode.region_texts" in fixed)

    def settle_RegionConditioning(self, inputs, depth, fixed):
        if "method" not in fixed and self.is_link(inputs["regions"]) and not self.phrases_of(inputs["regions"]):
            inputs["method"] = "mask"
        self.settle_texts(inputs, "region_texts", inputs["regions"], "region_texts" in fixed)

    def settle_texts(self, inputs, name, regions, fixed):
        """One text for each region."""
        if name not in inputs or fixed:
            return
        count = len(self.phrases_of(regions)) if self.is_link(regions) else 0
        if not count:
            del inputs[name]
            return
        texts = self.written("a " + self.word())
        for _ in range(count - 1):
            pair = {"conditioning_1": texts, "conditioning_2": self.written("a " + self.word())}
            texts = [self.add("ConditioningCombine", pair), 0]
        inputs[name] = texts

    def settle_RegionStrength(self, inputs, depth, fixed):
        count = len(self.phrases_of(inputs["regions"])) if self.is_link(inputs["regions"]) else 0
        inputs["strengths"] = ", ".join(["0.7", "0.4", "0.9"][:count]) if self.random.random() < 0.4 else ""

    def settle_LayoutToPrompt(self, inputs, depth, fixed):
        if "unsupported" not in fixed and self.random.random() < 0.7:
            inputs["unsupported"] = "leave out"
        if "source" not in fixed and inputs["format"] != "FLUX.3":
            inputs.pop("source", None)
        if "regions" not in inputs:
            inputs["regions"] = self.toy("BOXWRIGHT_REGIONS")
        if inputs["format"] == "Ming-Image":
            inputs |= {"width": self.width, "height": self.height}

    def settle_PromptToRegions(self, inputs, depth, fixed):
        """Most often it reads what our other node writes."""
        if "text" in fixed or self.random.random() < 0.2:
            return
        format_ = inputs["format"] if inputs["format"] not in ("auto", "any") else "FLUX.3"
        regions, own = self.toy("BOXWRIGHT_REGIONS"), dict(width=self.width, height=self.height)
        written = dict(regions=regions, format=format_, prompt=self.prompt, background="", style="", **own)
        written["unsupported"] = "leave out"
        if format_ == "template":
            inputs["template"] = written["template"] = "{prompt}\n{phrase}: [{x1}, {y1}, {x2}, {y2}]"
        inputs |= {"text": [self.add("BoxwrightLayoutToPrompt", written), 0], **own}
