"""
F3 as an encoder that X-ARES (https://pypi.org/project/xares) can run. In a checkout of X-ARES, which brings the tasks:

    F3_MODEL=PATH/TO/model python -m xares.run f3_training/xares_encoder.py src/tasks/*.py

X-ARES takes the one name in this module that ends with "Encoder" and calls it without arguments.
"""

import os
from pathlib import Path

import torch
from modeling_f3.modeling_f3 import F3Model
from torch import nn


class F3XaresEncoder(nn.Module):
    """
    The representations of a frozen F3Model. `sampling_rate` is in hertz, `hop_size_in_ms` in milliseconds between
    frames, `output_dim` the width of a frame.

    Args:
        model: folder or Hub name of an F3Model; by default what the environment variable `F3_MODEL` names.

    Raises:
        `ValueError`: when neither names a model.
    """

    def __init__(self, model: str | Path | None = None):
        super().__init__()
        model = model or os.environ.get("F3_MODEL")
        if not model:
            raise ValueError("no model: set the environment variable F3_MODEL to the folder or Hub name of an F3Model")
        self.model = F3Model.from_pretrained(model).eval()
        self.sampling_rate = self.model.config.sampling_rate
        self.output_dim = self.model.config.hidden_size
        self.hop_size_in_ms = 1000 / self.model.config.autoencoder_config.frame_rate

    @torch.no_grad()
    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Samples `[B, N]` or `[N]` at `sampling_rate`, of any length, to representations `[B, T, output_dim]`."""
        return self.model.encode(audio.reshape(-1, 1, audio.shape[-1])).last_hidden_state
