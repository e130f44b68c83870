"""The patch critic of adversarial training, 2-D and 3-D: a convolutional network that judges overlapping patches.

Isola et al. 2017 (pix2pix), section 3.2.2, in the layout of VQGAN (Esser et al. 2021).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CONV
from .embed import full_precision

BATCH_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
Norm = Literal["batch", "group"]


class Critic(nn.Module):
    """A convolution of stride 2, `layers` more (the last of stride 1) with a norm, and one logit per patch.

    Kernels of 4, leaky ReLU of 0.2, `width` channels doubled at every layer. `norm`: "batch" as published; "group"
    (one group) does not depend on the batch, which small batches and several processes are better off with.
    """

    def __init__(
        self, dims: int, channels: int = 1, width: int = 32, layers: int = 3, norm: Norm = "batch", slope: float = 0.2
    ):
        super().__init__()
        kind, widths = CONV[dims], [width * 2**i for i in range(layers + 1)]
        norms = {"batch": BATCH_NORM[dims], "group": lambda n: nn.GroupNorm(1, n)}[norm]
        self.slope = slope
        self.first = kind(channels, width, 4, 2, 1)
        strides = [2] * (layers - 1) + [1]
        self.convs = nn.ModuleList(kind(a, b, 4, s, 1, bias=False) for a, b, s in zip(widths, widths[1:], strides))
        self.norms = nn.ModuleList(norms(n) for n in widths[1:])
        self.last = kind(widths[-1], 1, 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, *spatial] -> logits [B, 1, *patches], float32."""
        x = F.leaky_relu(self.first(x), self.slope)
        for conv, norm in zip(self.convs, self.norms):
            x = F.leaky_relu(norm(conv(x)), self.slope)
        # in bf16 the gradient of torch's kernel for one channel holds numbers never written
        with full_precision(x.device):
            return self.last(x.float())


def judged(critic: nn.Module, x: Tensor) -> Tensor:
    """The critic's logits of x with its own parameters held fixed: gradients reach x alone."""
    return torch.func.functional_call(critic, {name: p.detach() for name, p in critic.named_parameters()}, (x,))
