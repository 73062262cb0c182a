"""The causal transformer between latents and representations."""

import torch
from .configuration_f3 import F3Config
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast


class F3RepresentationEncoder(nn.Module):
    """
    Latents [B, T, D] to representations [B, T, d], frame t from frames up to t. The body is a causal decoder of
    Transformers, which brings its cache, attention kernels and checkpointing along.
    """

    def __init__(self, config: F3Config):
        super().__init__()
        self.projection = nn.Linear(config.autoencoder_config.latent_dim, config.hidden_size)
        # the dtype being loaded, which Transformers does not tell configurations as deep down as this one
        self.body = AutoModel.from_config(config.encoder_config, dtype=torch.get_default_dtype())
        self.body.set_input_embeddings(None)  # it is fed with projected latents

    def forward(
        self,
        latents: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """`attention_mask` [B, cached + T] is needed only where padding comes before audio; all else as in Transformers."""
        return self.body(
            inputs_embeds=self.projection(latents.to(self.projection.weight.dtype)),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
