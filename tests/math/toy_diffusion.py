"""A world where the perfect denoiser is known: every pixel is normal, with one mean and one standard deviation."""

import torch
from pack.attention_patches.samplers.noise import Level
from pack.attention_patches.samplers.scene import Scene

LEVELS = {
    "eps": lambda sigma: Level(1.0, sigma),
    "flow": lambda sigma: Level(1.0 - sigma, sigma),
}
SIGMAS = {"eps": [14.6, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0], "flow": [1.0, 0.9, 0.75, 0.6, 0.4, 0.25, 0.1, 0.0]}
FINE = {
    "eps": [*(15.0 * (1 - i / 60) ** 3 for i in range(59)), 0.0],
    "flow": [1 - i / 60 for i in range(61)],
}


class Gaussian:
    """The denoiser E[clean | noisy]; counts its calls and keeps the sigmas."""

    def __init__(self, kind, mean=0.0, spread=1.0):
        self.levels, self.mean, self.spread, self.sigmas = LEVELS[kind], mean, spread, []

    def __call__(self, x, sigma):
        self.sigmas.append(sigma)
        level = self.levels(sigma)
        gain = level.signal * self.spread**2 / (level.signal**2 * self.spread**2 + level.noise**2)
        return self.mean + gain * (x - level.signal * self.mean)


def picture(batch=2, size=(6, 9), channels=4, seed=3):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def half_mask(like):
    """1 in the right half."""
    mask = torch.zeros_like(like[:, :1])
    mask[..., like.shape[-1] // 2 :] = 1.0
    return mask


def scene(kind, source, mask=None, draw=torch.randn_like, progress=lambda sigma: 0.0):
    return Scene(source, torch.ones_like(source[:, :1]) if mask is None else mask, LEVELS[kind], draw, progress)
