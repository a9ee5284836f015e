"""The node that encodes a prompt and says which of its words belong to which region."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..attention_patches.core.marks import without_orders
from ..attention_patches.core.types import Layout, TokenMap
from ..attention_patches.host.region_lora import text_encoders
from ..attention_patches.host.text.conditioning import text_notes
from ..attention_patches.host.text.layout import encode_layout, missing_phrases
from .parts import schema
from .parts.checks import counted, shortened
from .parts.lora_files import named_by
from .parts.phrases import texts_of
from .parts.sized_regions import prompt_of

MAX_SHOWN = 80  # characters of a phrase, or of the words found for it


class BoxwrightLayoutPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BoxwrightLayoutPrompt",
            display_name="Layout Prompt",
            category=schema.CATEGORY,
            description=(
                "Encodes a prompt like CLIP Text Encode and finds the words of each region in it. Wire positive to the "
                "sampler and layout to the methods."
            ),
            search_aliases=["regional prompt", "clip text encode", "layout", "phrase grounding", "box prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model that will be patched."),
                schema.Regions.Input("regions", tooltip="From Box Editor or Regions: what belongs where."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "The whole picture in words. It should hold each region's phrase word for word. Emphasis such "
                        "as (red:1.2) and embedding:name work as in CLIP Text Encode, here and in phrases. Empty = "
                        "the prompt of the Box Editor that the regions come from."
                    ),
                ),
                io.Boolean.Input(
                    "append_missing",
                    default=True,
                    tooltip=(
                        "On: a phrase that the prompt lacks is added at its end, after a comma. Off: it is an error "
                        "that names the closest words."
                    ),
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="What must not be in the picture, for the negative output. Empty = nothing in particular.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The encoded prompt. It carries the mark of this layout."),
                schema.Layout.Output("layout", tooltip="The prompt, the regions, and which words each region owns."),
                io.Conditioning.Output("negative", tooltip="negative_prompt encoded, as CLIP Text Encode does."),
            ],
        )

    @classmethod
    def execute(cls, clip, regions, prompt, append_missing, negative_prompt="") -> io.NodeOutput:
        prompt = prompt if prompt.strip() else prompt_of(regions)
        drawn = without_orders(prompt)[0]
        encoders = text_encoders(clip, named_by(regions))
        positive, layout = encode_layout(clip, drawn, regions, append_missing, encoders)
        report = [
            ownership_report(layout, missing_phrases(clip, drawn, regions)),
            *text_notes(clip, [("The prompt", prompt), *texts_of(regions)]),
            *(f"Region {n + 1}: its own text is encoded with {regions[n].lora}." for n in sorted(encoders)),
        ]
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(negative_prompt))
        return io.NodeOutput(positive, layout, negative, ui=ui.PreviewText("\n".join(report)))


def _characters(tokens: TokenMap, first: int, last: int) -> str:
    """What two columns of words and those between them stand for in the text."""
    begin, end = tokens.spans[first], tokens.spans[last]
    return tokens.text[begin[0] : end[1]] if begin and end else ""


def ownership_report(layout: Layout, appended: list[str]) -> str:
    """Which words and columns of the conditioning each region owns, one line per region, and what was appended."""
    tokens = layout.prompt.tokens
    lines = [f"{counted(len(layout.regions), 'region')}, {counted(len(tokens), 'column')} of text."]
    for number, (region, row) in enumerate(zip(layout.regions, layout.columns.tolist(), strict=True), 1):
        runs = runs_of(row)
        columns = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
        words = ", ".join(_characters(tokens, first, last) for first, last in runs)
        name = "column" if sum(row) == 1 else "columns"
        lines.append(
            f"{number}. {shortened(region.phrase, MAX_SHOWN)}: {name} {columns} ({shortened(words, MAX_SHOWN)})"
        )
    if appended:
        lines.append(f"Appended to the prompt: {', '.join(shortened(phrase, MAX_SHOWN) for phrase in appended)}")
    return "\n".join(lines)


def runs_of(row: list[bool]) -> list[tuple[int, int]]:
    """The first and last index of every unbroken run of true values."""
    owned = [index for index, own in enumerate(row) if own]
    firsts = [index for index in owned if index - 1 not in owned]
    lasts = [index for index in owned if index + 1 not in owned]
    return list(zip(firsts, lasts, strict=True))


NODES = [BoxwrightLayoutPrompt]
