"""A small ControlNet for the tiny models."""

import comfy.controlnet
import torch


class Control(comfy.controlnet.ControlBase):
    """A network of inference tensors whose output the host adds to the model's features."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(4, 4, 3, padding=1)

    def get_control(self, x, *args):
        value = self.net(x).mean().expand(1, 1, 1, 1)
        return {"input": [], "middle": [value], "output": [value, value]}

    def copy(self):
        return self
