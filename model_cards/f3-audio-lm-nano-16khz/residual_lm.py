"""The residual language model: what speech needs of a hidden state, beyond what the language model knows of it."""

import torch
import torch.nn.functional as F
from .configuration_audio_lm import F3AudioLMConfig
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache


class F3ResidualLM(nn.Module):
    """
    H_i = h_i + R([h | x]_{<=i}), with the language model's hidden states h and what it read, x: letters of the words to be
    said, and the audio tokens so far (VoxCPM, arXiv 2509.24650, has such a part as well). R is a small causal decoder of
    Transformers. It can learn to speak while the language model, frozen, goes on to listen and write as before.
    """

    def __init__(self, config: F3AudioLMConfig):
        super().__init__()
        width, inner = config.text_config.hidden_size, config.residual_config.hidden_size
        self.hidden = nn.Linear(width, inner)
        self.read = nn.Linear(width, inner)
        # the dtype being loaded, which Transformers does not tell configurations as deep down as this one
        self.body = AutoModel.from_config(config.residual_config, dtype=torch.get_default_dtype())
        self.body.set_input_embeddings(None)
        self.residual = nn.Linear(inner, width)

    def forward(
        self,
        hidden: torch.Tensor,
        embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
    ) -> tuple[torch.Tensor, Cache | None]:
        """
        H `[B, L, width]`, and the cache.

        Args:
            hidden: `[B, L, width]`, h, after the last norm of the language model.
            embeds: `[B, L, width]`, x.
            attention_mask, position_ids, past_key_values, use_cache: as for the language model.
        """
        dtype, size = self.hidden.weight.dtype, hidden.shape[-1:]
        hidden, embeds = hidden.to(dtype), embeds.to(dtype)
        output = self.body(  # embeddings are far smaller than hidden states, hence the norms
            inputs_embeds=self.hidden(F.rms_norm(hidden, size)) + self.read(F.rms_norm(embeds, size)),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        return hidden + self.residual(output.last_hidden_state), output.past_key_values
