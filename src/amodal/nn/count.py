"""How large a network is and how much it computes."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


def parameters(module: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters."""
    counts = [(p.numel(), p.numel() * p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in counts), sum(n for _, n in counts)


def flops(module: nn.Module, *inputs: Any) -> tuple[int, int]:
    """(layers, layers and attention) of one forward pass: 2 per multiply-add of convolutions and matrix products.

    Nothing is computed and the module is left alone: a copy runs on the meta device, in seconds for any size. "Layers"
    are what has weights; attention is the two products q k' and p v of `scaled_dot_product_attention`.
    """
    net = copy.deepcopy(module).to("meta")
    arguments = [x.to("meta") if torch.is_tensor(x) else x for x in inputs]
    with torch.no_grad(), FlopCounterMode(display=False) as layers, _Attention() as attention:
        net(*arguments)
    return layers.get_total_flops(), layers.get_total_flops() + attention.flops


class _Attention(TorchFunctionMode):
    """Counts fused attention, which has no kernel of its own on the meta device, and skips it."""

    flops = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key, value = args[:3]  # [B, heads, N, D], [B, heads, M, D], [B, heads, M, V]
        self.flops += 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return query.new_empty((*query.shape[:-1], value.shape[-1]))
