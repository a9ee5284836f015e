"""Which of a sampler's model calls start a step: before those a latent may be moved."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

# Evaluations inside a step, after the one at its start, unless the step ends at 0. Their sigma may be that of the next
# step, and what they move would be thrown away.
STAGES = {
    "sample_heun": 1,
    "sample_dpm_2": 1,
    "sample_dpm_2_ancestral": 1,
    "sample_dpmpp_2s_ancestral": 1,
    "sample_dpmpp_2s_ancestral_cfg_pp": 1,
    "sample_dpmpp_sde": 1,
    "sample_dpmpp_sde_gpu": 1,
    "sample_exp_heun_2_x0": 1,
    "sample_exp_heun_2_x0_sde": 1,
    "sample_seeds_2": 1,
    "sample_seeds_3": 2,
}
# As many as it likes, the first of them at the next sigma.
TRIES_THE_NEXT = {"sample_heunpp2"}
# Follows sigmas of its own.
FREE_STEPS = {"dpm_fast_function"}
# These go on from a latent other than the one that the model is given.
KEEPS_ITS_LATENT = {
    "sample_unipc",
    "sample_unipc_bh2",
    "sample_sa_solver",
    "sample_sa_solver_pece",
    "dpm_adaptive_function",
}


def step_at(sigmas: Sequence[float], sigma: float) -> int:
    """The step that a model call at a sigma belongs to, 0 = the first; `sigmas` fall, and may be rounded otherwise."""
    return sum(other > sigma * 1.0001 for other in sigmas)


class Steps:
    """Tells which of a sampler's model calls start a step; the others are evaluations on the way."""

    def __init__(self, sigmas: Tensor, name: str) -> None:
        self.sigmas = sigmas.tolist()
        self.stages = STAGES.get(name, 0)
        self.tries = name in TRIES_THE_NEXT
        self.free: bool | None = True if name in FREE_STEPS else None
        self.finished = 0  # callbacks: one for each step, after its first evaluation
        self.started = -1
        self.tried = 0
        self.to_come = 0  # evaluations of the step under way

    def evaluated(self) -> None:
        """The start of a step has been evaluated."""
        self.finished += 1
        ends_at = self.sigmas[self.finished] if self.finished < len(self.sigmas) else 0.0
        self.to_come = self.stages if ends_at > 0 else 0

    def starts(self, sigma: float) -> bool:
        """Whether the model call that comes now, at this sigma, starts a step. To be asked once for each call."""
        if self.to_come:
            self.to_come -= 1
            return False
        if self.free is None:  # noise added before a step (churn) puts every evaluation beside the schedule
            self.free = not self._is(sigma, 0)
        if self.free:
            step = step_at(self.sigmas[:-1], sigma)
        elif self.finished < len(self.sigmas) and self._is(sigma, self.finished):
            step = self.finished
        else:
            return False
        if step <= self.started:
            return False
        if self.tries and not self.free and step > self.tried:
            self.tried = step
            return False
        self.started = step
        return True

    def _is(self, sigma: float, step: int) -> bool:
        return abs(sigma - self.sigmas[step]) <= 1e-4 * self.sigmas[step]
