"""LoRA files by the names under which the host lists them."""

from __future__ import annotations

from collections.abc import Sequence

import folder_paths

from ...attention_patches.core.types import BoxwrightError, Region
from .checks import checked_file, shortened

FOLDER = "loras"


def listed() -> list[str]:
    """The names of all LoRA files, as the LoRA loader lists them."""
    return folder_paths.get_filename_list(FOLDER)


def path_of(name: str, where: str) -> str:
    """Where the file lies that the host lists under a name, its folders parted by either slash.

    Raises BoxwrightError, which begins with `where`, for a name that the host does not list.
    """
    wanted = checked_file(name, where)
    found = next((each for each in listed() if each.replace("\\", "/") == wanted), None)
    path = found and folder_paths.get_full_path(FOLDER, found)
    if not path:
        raise BoxwrightError(
            f'{where} is "{shortened(wanted, 80)}", and there is no such file. Put it into models/loras and refresh, '
            "or choose one that is there."
        )
    return path


def named_by(regions: Sequence[Region], strength: float = 1.0) -> dict[int, tuple[str, str, float]]:
    """Number of the region, from 0 -> (name, path, strength) of the LoRA that it names; `strength` multiplies its own.

    Raises BoxwrightError for a name that the host does not list.
    """
    return {
        number: (region.lora, path_of(region.lora, f"The LoRA of region {number + 1}"), strength * region.lora_strength)
        for number, region in enumerate(regions)
        if region.lora
    }
