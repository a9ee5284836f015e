"""Boxwright: boxes that text-to-image models obey."""

from .nodes import BoxwrightExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> BoxwrightExtension:
    return BoxwrightExtension()
