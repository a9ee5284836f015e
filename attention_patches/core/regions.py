"""The fields of a region: which are options, and what tells regions apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from .types import Region

OPTIONS = tuple(option for option in fields(Region) if option.kw_only)  # optional keys of its JSON, by the same name


def regions_digest(regions: Sequence[Region]) -> str:
    """SHA-256 of the regions: with the same prompt, other boxes make another layout.

    Of every field that is not declared as not counting, so that none can be forgotten.
    """
    digest = hashlib.sha256()
    for region in regions:
        for field in fields(region):
            if field.metadata.get("counts", True):
                digest.update(f"{field.name}\0".encode() + _bytes_of(getattr(region, field.name)) + b"\0")
    return digest.hexdigest()


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}".encode() + value.detach().float().cpu().numpy().tobytes()
    return repr(value).encode()
