"""Linear layers for speech on CPUs: weights in half precision, packed for FBGEMM, between activations in fp32."""

import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as PackedLinear


def pack_linears(module: nn.Module) -> None:
    """
    Puts a packed layer in the place of every `nn.Linear` inside `module`. A packed layer is for inference: it has no
    parameters and takes fp32 on the CPU. On processors that PyTorch has no FBGEMM for, `module` stays as it is.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return
    linears = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    for name, layer in linears:
        packed = PackedLinear(layer.in_features, layer.out_features, dtype=torch.float16)
        packed.set_weight_bias(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
        module.set_submodule(name, packed)


def is_packed(module: nn.Module) -> bool:
    """Whether any layer inside is."""
    return any(isinstance(layer, PackedLinear) for layer in module.modules())
