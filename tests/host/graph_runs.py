"""What the tests share that run graphs by the host's own executor."""

from execution import CacheType


def caches(lru):
    """Name -> kind and arguments of every way in which the host keeps outputs; `lru` of them in that way."""
    return {
        "classic": (CacheType.CLASSIC, {}),
        "lru": (CacheType.LRU, {"lru": lru}),
        "none": (CacheType.NONE, {}),
        "ram": (CacheType.RAM_PRESSURE, {"ram": 0.0, "ram_inactive": 0.0}),
        # as where memory is short: after each node what earlier prompts have left, and what this one has made
        "ram, short": (CacheType.RAM_PRESSURE, {"ram": 1e6, "ram_inactive": 1e6}),
    }


class Given:
    """A node that gives what a test has put into it."""

    FUNCTION = "load"
    parts: tuple = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        return self.parts


class Toy(Given):
    """The toy's model, text encoder and VAE, without reading the file again."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")


class Silent:
    """The server that an executor talks to, where nobody listens."""

    client_id = last_node_id = None

    def send_sync(self, *args):
        pass
