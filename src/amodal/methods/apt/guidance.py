"""The two corrections of stage 1 that look at what is known (section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...diffusion.denoiser import Denoise


def pull(denoise: Denoise, present: Tensor, images: Tensor, strength: float) -> Denoise:
    """x0 <- x0 - strength * grad_{x_t} ||A(x0) - y||, through the network (Eq. 4); 0 leaves `denoise` as it is.

    Eq. 4 has the squared norm; with it the paper's strength of 20 would throw the image out of its range, so the norm
    itself is meant (as in diffusion posterior sampling), one norm a sample. `strength` is for a slice of 256 x 256; the
    length of the step grows with the root of the area, so that it is the same for every voxel.
    """
    if strength == 0:
        return denoise
    step = strength * (images.shape[-2] * images.shape[-1]) ** 0.5 / 256

    def bent(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0 = denoise(x, t)
            miss = torch.where(present, x0 - images, torch.zeros_like(x0)).flatten(1).norm(dim=1)
            (slope,) = torch.autograd.grad(miss.sum(), x)
        return (x0 - step * slope).detach()

    return bent
