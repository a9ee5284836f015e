"""The types every method shares. All frozen: a node's output is cached by the host and may be used by several graphs.

Shape letters, everywhere: B batch rows, H heads, N image tokens (h * w, row-major), T text tokens (columns of the
conditioning), R regions, C channels. Positions are fractions of the image: origin top-left, x right, y down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from torch import Tensor

MAX_REGIONS = 64
MAX_PHRASE = 1000  # characters
MAX_LORA = 10.0  # strength of a LoRA, either sign

NOT_IN_KEY = {"counts": False}  # metadata of a field that changes no picture

TokenRole = Literal["start", "word", "end", "padding", "template"]


class BoxwrightError(ValueError):
    """Bad input. The message names the value, the rule and the remedy."""


class PhraseNotFoundError(BoxwrightError):
    """A phrase that does not occur in the prompt."""


class UnsupportedModelError(BoxwrightError):
    """A model whose attention no adapter reaches."""


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises BoxwrightError unless the value lies from `low` to `high`, both included; NaN never does."""
    if not low <= value <= high:
        raise BoxwrightError(f"{name} is {value:g}; choose {low:g} to {high:g}.")


def counted(count: int, noun: str) -> str:
    """How many, in words, for messages: "1 region", "2 regions"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True)
class Box:
    """A rectangle inside the image: 0 <= x < x + width <= 1, the same for y and height."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class View:
    """The rectangle of the image that a token grid covers, in fractions; reaches past 1 where the model pads."""

    x: float = 0.0
    y: float = 0.0
    width: float = 1.0
    height: float = 1.0


@dataclass(frozen=True)
class Region:
    """A region says: "this phrase belongs here".

    Every field counts in the key of a layout (see regions.regions_digest) but those marked NOT_IN_KEY. Those that are
    given by name are optional keys of the same name in the user's JSON; None leaves the matter to the method.
    """

    phrase: str
    area: Box | Tensor  # Tensor: painted mask [H_img, W_img], float32 in [0, 1]
    strength: float = 1.0  # 0 = the region binds nothing, 1 = as in the paper
    extra: Mapping[str, Any] = field(default_factory=dict, metadata=NOT_IN_KEY)  # all other keys of the JSON, kept
    _: KW_ONLY
    negative: str = ""  # what the negative prompt says there; "" = what it says everywhere
    start: float | None = None  # its own part of the schedule, see StepWindow and window_of
    end: float | None = None
    feather: float | None = None  # width of the ramp outside it, in fractions of the image's width and height
    opacity: float = 1.0  # what it hides of the regions before it where regions occlude each other: 0 = nothing
    color: str | None = field(default=None, metadata=NOT_IN_KEY)  # "#rrggbb"; None = that of its number
    # The pictures of a film that it holds in, counted from 0: from start_frame to before end_frame; None = no limit.
    start_frame: int | None = None
    end_frame: int | None = None
    enabled: bool = True  # what reads regions from text leaves those out that are not; no method sees one
    lora: str = ""  # a LoRA of its own: a file as the host lists it; "" = none
    lora_strength: float = 1.0  # of that LoRA, -MAX_LORA to MAX_LORA


@dataclass(frozen=True)
class TokenMap:
    """What each text column of one encoded prompt stands for."""

    text: str  # the prompt as the encoder read it: emphasis marks and escapes removed
    spans: tuple[tuple[int, int] | None, ...]  # length T: characters [start, end) of text; None for every other role
    roles: tuple[TokenRole, ...]  # length T
    filled_with_end: bool = True  # padding is the end token again (CLIP-L), and not a token of its own

    def __len__(self) -> int:
        return len(self.spans)


@dataclass(frozen=True)
class EncodedText:
    """A text as the model will see it."""

    tokens: TokenMap
    embedding: Tensor  # float [1, T, C]


@dataclass(frozen=True)
class Layout:
    """A prompt, its regions, and which text columns each region owns. The same for any model with this text encoder."""

    prompt: EncodedText
    regions: tuple[Region, ...]
    columns: Tensor  # bool [R, T]; row r marks the text columns of regions[r]
    region_texts: tuple[EncodedText, ...]  # length R: each phrase encoded alone
    key: str  # same tokens and regions, same key; the conditioning encoded with the layout carries it
    region_negatives: tuple[EncodedText | None, ...] = ()  # length R, None for regions without; () = no region has one


class Moment(float):
    """A fraction of the denoising schedule at which a run of few steps evaluates the model, and where the next lies."""

    until: float

    def __new__(cls, value: float, until: float) -> Moment:
        moment = super().__new__(cls, value)
        moment.until = until
        return moment

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]  # float takes one, this two
        """For copies: options of a run hold moments, and other packs may copy them deeply."""
        return float(self), self.until


@dataclass(frozen=True)
class StepWindow:
    """Fraction of the denoising schedule, half-open: 0 = the noisiest sigma, 1 = after the last.

    Where a run has no step inside, because it takes few (4 steps of a distilled model), the step before counts: the one
    that goes from before the window to behind it (given a Moment: H-Space Edit shares its strength over the steps, and
    the loops of ILVR and others count their steps themselves).
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise BoxwrightError(
                f"The schedule window {self.start:g} to {self.end:g} is empty or outside 0 to 1; "
                "choose start below end, both between 0 and 1."
            )

    def contains(self, progress: float) -> bool:
        """Whether the window holds at this point of the schedule, 0 to 1."""
        return is_open(self.start, self.end, progress)


def is_open(start: Any, end: Any, progress: float) -> Any:
    """Whether the window from `start` to `end`, or each of many in two tensors, holds at this point of the schedule.

    An empty one never does.
    """
    until = getattr(progress, "until", progress)
    inside = (start <= progress) & (progress < end)
    return inside | ((start < end) & (progress < start) & (end <= until))


def window_of(region: Region, default: StepWindow) -> StepWindow:
    """The region's own schedule window (`start` and `end`), each end that of the method if absent.

    Raises BoxwrightError where the two make an empty window.
    """
    start = default.start if region.start is None else region.start
    end = default.end if region.end is None else region.end
    try:
        return StepWindow(start, end)
    except BoxwrightError as error:
        raise BoxwrightError(f'Region "{region.phrase}": {error}') from error


def is_timed(layout: Layout) -> bool:
    """Whether some region holds in some frames of a film only."""
    return any(region.start_frame is not None or region.end_frame is not None for region in layout.regions)


def holds_in(region: Region, frames: tuple[int, int] | None) -> bool:
    """Whether the region holds in some of the frames from frames[0] to before frames[1]; None: a picture, or all."""
    if frames is None:
        return True
    start = 0 if region.start_frame is None else region.start_frame
    return start < frames[1] and (region.end_frame is None or frames[0] < region.end_frame)


def feather_of(region: Region, default: float) -> float:
    """The region's own feather, that of the method if absent."""
    return default if region.feather is None else region.feather


def widest_window(layout: Layout, default: StepWindow) -> StepWindow:
    """From the first to the last moment at which one of the layout's regions is at work."""
    windows = [window_of(region, default) for region in layout.regions] or [default]
    return StepWindow(min(w.start for w in windows), max(w.end for w in windows))
