import copy

import pytest
import torch
from modeling_f3.packed_layers import PackedAttention, PackedMLP, PackedRMSNorm, is_packed, pack_layers
from torch import nn
from transformers import AutoConfig, AutoModel, DynamicCache
from transformers.models.llama.modeling_llama import LlamaRMSNorm


SIZES = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
DECODERS = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 5},
    "qwen3": {"head_dim": 8},  # has norms of its own within attention
}

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="PyTorch has no FBGEMM for this processor"
)


def decoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **SIZES, **DECODERS[name])
    model = AutoModel.from_config(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model


@torch.no_grad()
def read(model: nn.Module, steps: tuple[int, ...], padding: int) -> torch.Tensor:
    """Hidden states of two rows, the first padded on the left, read in `steps`. Without padding, models need no mask."""
    embeds = torch.randn(2, sum(steps), SIZES["hidden_size"], generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, sum(steps), dtype=torch.long)
    mask[0, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, found, start = DynamicCache(config=model.config), [], 0
    for end in torch.tensor(steps).cumsum(0).tolist():
        given = {"attention_mask": mask[:, :end], "position_ids": positions[:, start:end], "use_cache": True}
        output = model(inputs_embeds=embeds[:, start:end], past_key_values=cache, **given)
        found.append(output.last_hidden_state)
        start = end
    return torch.cat(found, 1)[mask.bool()]


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("steps", [(12,), (7, 1, 3, 1)])
@pytest.mark.parametrize("name", DECODERS)
def test_packed_decoders_read_the_same_but_for_rounding(name, steps, padding):
    model = decoder(name)
    packed = copy.deepcopy(model)
    pack_layers(packed)
    torch.testing.assert_close(read(packed, steps, padding), read(model, steps, padding), atol=1e-2, rtol=1e-2)
    assert is_packed(packed) and not is_packed(model)
    assert [parameter for parameter, _ in packed.named_parameters() if "_proj" in parameter] == []
    kinds = {type(module) for module in packed.modules()}
    assert ({PackedAttention, PackedMLP, PackedRMSNorm} <= kinds) == (name != "qwen3")


@pytest.mark.parametrize("norm", [LlamaRMSNorm(16, eps=1e-2), nn.RMSNorm(16, eps=1e-2), nn.RMSNorm(16)])
def test_packed_norms_equal_norms_also_where_inputs_are_as_small_as_epsilon(norm):
    nn.init.normal_(norm.weight)
    packed = nn.Sequential(copy.deepcopy(norm))
    pack_layers(packed)
    assert isinstance(packed[0], PackedRMSNorm)
    inputs = torch.randn(5, 3, 16) * torch.tensor([0, 1e-3, 0.1, 1, 100]).view(-1, 1, 1)
    torch.testing.assert_close(packed(inputs), norm(inputs))
