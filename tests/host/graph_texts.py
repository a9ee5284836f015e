"""The texts of random graphs: prompts, words of them, regions, and what several inputs want to read."""

import json

PROMPTS = (
    "a red circle and a blue star",
    "a red circle and a blue star on a white background",
    "a large green triangle and an orange circle on a gray background",
)
LONG = "a red (circle:1.3) and a blue star, " + "a small moon, " * 30
PHRASES = ("red circle", "blue star", "a", "star", "green triangle", "white background", "moon", "orange circle")
OTHERS = {"red": "green", "blue": "orange", "green": "blue", "orange": "red", "circle": "square", "star": "heart"}
LORA = "robust.safetensors"  # what the folder of LoRAs is to hold
TEXTS = {
    "colors": ("#d02020", "red, gold", "teal"),
    "strengths": ("", "", "", "0.2, 0.9"),
    "template": ("{prompt}\n{phrase}: [{x1}, {y1}, {x2}, {y2}]", "{phrase} at {x1},{y1}"),
    "style": ("", "lighting: soft"),
    "background": ("", "white"),
}
LAYOUTS = (
    "red circle: [10, 20, 300, 400]",
    'Bounding boxes: [{"label": "star", "bbox": [1, 2, 3, 4]}]',
    'a picture [{"id": "obj_1", "bbox": [10, 20, 300, 400], "desc": "a red circle"}]',
)


class Texts:
    """The part of a graph that writes."""

    def choose_prompt(self):
        self.prompt = self.random.choice(PROMPTS) if self.random.random() < 0.9 else LONG

    def word(self):
        """A phrase of the prompt; now and then one that may not be there."""
        own = [phrase for phrase in PHRASES if phrase in self.prompt]
        return self.random.choice(own if own and self.random.random() < 0.97 else PHRASES)

    def text(self, kind, name):
        own = name.rsplit(".", 1)[-1]
        one = self.random.choice
        if own == "regions_json":
            return self.regions() if kind == "BoxwrightRegions" or self.random.random() < 0.8 else ""
        if kind == "BoxwrightPromptToRegions" and own == "text":
            return one(["", self.regions(), self.prompt, *LAYOUTS])
        if own == "negative_prompt" or (kind == "CLIPTextEncode" and self.random.random() < 0.3):
            return one(["", "a moon", "red circle"])
        if own == "phrase":
            return self.word()
        if own == "phrases":
            return one(["", "", self.word(), f"{self.word()}\n{self.word()}"])
        if own == "weights":
            return f"{self.word()}: {one([2, 0, 10, -1.5, 0.5])}"
        if own == "word_windows":
            return one(["", "", f"{self.word()}: 0 0.5"])
        if own in ("blend_words", "subtract_words"):
            return one(["", "", self.word()])
        if own == "targets":
            return "\n".join(self.other_prompt() for _ in range(one([1, 1, 2])))
        return one(TEXTS[own]) if own in TEXTS else self.prompt

    def other_prompt(self):
        """The prompt with one word exchanged, or now and then one that has nothing to do with it."""
        words = [word for word in OTHERS if word in self.prompt.split()]
        if not words or self.random.random() < 0.2:
            return self.random.choice(["a moon", "a red square and a blue star"])
        word = self.random.choice(words)
        return " ".join(OTHERS[word] if own == word else own for own in self.prompt.split())

    def regions(self):
        """regions_json: one to three regions, most of them boxes."""
        found = []
        for _ in range(self.random.choice([1, 2, 2, 3])):
            width, height = (self.random.choice([1.0, 0.5, round(self.random.uniform(0.02, 1.0), 3)]) for _ in "wh")
            x, y = (self.random.choice([0.0, 1.0 - side]) for side in (width, height))
            region = {"phrase": self.word(), "x": x, "y": y, "width": width, "height": height}
            for key, values in (
                ("strength", (0.0, 0.3, 1.0)), ("feather", (0.0, 0.2)), ("opacity", (0.0, 0.5, 1.0)),
                ("negative", ("", "moon")), ("start", (0.0, 0.3)), ("end", (0.7, 1.0)), ("color", ("#ff0000",)),
                ("lora", (LORA,)), ("note", ("kept", [1, {"a": None}])), ("enabled", (True,)),
            ):  # fmt: skip
                if self.random.random() < 0.12:
                    region[key] = self.random.choice(values)
            found.append(region)
        return json.dumps({"type": "boxwright.regions", "version": 1, "regions": found})
