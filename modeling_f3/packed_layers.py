"""
Layers of transformers for speech on CPUs. Weights in half precision, packed for FBGEMM, between activations in fp32, halve
what is read for a token. A token alone is so little work that starting operations takes much of the time: these take fewer.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, rotate_half
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm


def pack_layers(module: nn.Module) -> None:
    """
    Puts packed layers in the place of all inside `module` that there are packed ones for: norms, attention and MLP of
    decoders like Llama, and every other `nn.Linear`. They have no parameters, and take fp32 on the CPU. On processors that
    PyTorch has no FBGEMM for, `module` stays as it is.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return
    for name, layer in module.named_children():
        packed = PACKED.get(type(layer))  # what inherits from these may compute something else
        if packed is None:
            pack_layers(layer)
        else:
            setattr(module, name, packed(layer))


def is_packed(module: nn.Module) -> bool:
    """Whether any layer inside is."""
    return any(isinstance(layer, PackedLinear) for layer in module.modules())


class PackedLinear(nn.Module):
    """`nn.Linear` layers of the same input, whose outputs lie side by side."""

    def __init__(self, *layers: nn.Linear):
        super().__init__()
        biases = [layer.bias for layer in layers]
        bias = None if biases[0] is None else torch.cat(biases).detach()
        self.packed = torch.ops.quantized.linear_prepack_fp16(
            torch.cat([layer.weight for layer in layers]).detach(), bias
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(inputs, self.packed)


class PackedRMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) w in four operations, as x / sqrt(|x|^2 + n eps) (sqrt(n) w) for n channels."""

    def __init__(self, norm: nn.RMSNorm | LlamaRMSNorm | MistralRMSNorm):
        super().__init__()
        width = norm.weight.numel()
        eps = norm.eps if isinstance(norm, nn.RMSNorm) else norm.variance_epsilon
        eps = torch.finfo(norm.weight.dtype).eps if eps is None else eps
        self.register_buffer("scale", math.sqrt(width) * norm.weight.detach(), persistent=False)
        self.register_buffer("least", self.scale.new_tensor(math.sqrt(width * eps)), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
        return inputs / torch.hypot(length, self.least) * self.scale


class PackedMLP(nn.Module):
    """SwiGLU of Llama, with one product for gate and up."""

    def __init__(self, mlp: LlamaMLP | MistralMLP):
        super().__init__()
        self.gate_up, self.down = PackedLinear(mlp.gate_proj, mlp.up_proj), PackedLinear(mlp.down_proj)
        self.act_fn = mlp.act_fn

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(inputs).chunk(2, dim=-1)
        return self.down(self.act_fn(gate) * up)


class PackedAttention(nn.Module):
    """Attention of Llama, with one product for queries, keys and values, and one rotation."""

    def __init__(self, attention: LlamaAttention | MistralAttention):
        super().__init__()
        self.layer_idx, self.head_dim = attention.layer_idx, attention.head_dim
        self.heads = attention.config.num_attention_heads, attention.config.num_key_value_heads
        self.qkv = PackedLinear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = PackedLinear(attention.o_proj)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, None]:
        """As in Transformers, `[B, L, width]`."""
        queries, others = self.heads
        parts = self.qkv(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        turned, value = parts.split((queries + others, others), dim=1)
        cos, sin = (part.unsqueeze(1) for part in position_embeddings)
        turned = torch.addcmul(turned * cos, rotate_half(turned), sin)
        query, key = turned.split(self.heads, dim=1)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        causal = attention_mask is None and query.shape[2] > 1
        attended = F.scaled_dot_product_attention(query, key, value, attention_mask, is_causal=causal, enable_gqa=True)
        return self.output(attended.transpose(1, 2).flatten(2)), None


PACKED = {
    nn.Linear: PackedLinear,
    nn.RMSNorm: PackedRMSNorm,
    LlamaRMSNorm: PackedRMSNorm,
    LlamaMLP: PackedMLP,
    LlamaAttention: PackedAttention,
    MistralRMSNorm: PackedRMSNorm,
    MistralMLP: PackedMLP,
    MistralAttention: PackedAttention,
}
