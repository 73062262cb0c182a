"""Convolutions over [batch, channels, time, frequency] maps: causal in time, symmetric in frequency."""

import torch
import torch.nn.functional as F
from torch import nn

from .streaming_state import F3StreamingState


class CausalConv2d(nn.Conv2d):
    """
    A strided convolution whose output frame j sees input frames up to (j + 1) * stride - 1.

        kernel 4, stride 2:   . . | 0 1 2 3        `.` is silence, or the stream's memory
                              [------]             -> frame 0
                                  [------]         -> frame 1
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)):
        context, spread = kernel[0] - stride[0], kernel[1] - stride[1]
        super().__init__(in_channels, out_channels, tuple(kernel), tuple(stride), padding=(context, spread // 2))
        self.context = context
        self.more_bins = spread % 2  # above, where the spread has no middle
        self.state_name = ""  # set once by the model: the module's path

    def forward(self, maps: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        frames, padding = maps.shape[2] // self.stride[0], self.padding
        if state is not None and self.context > 0:
            maps = state.extend(self.state_name, maps, self.context, dim=2)
            padding = (0, self.padding[1])
        if self.more_bins:
            maps = F.pad(maps, (0, self.more_bins))
        # The convolution pads with silence after the last frame as well. What it makes of that is dropped, which takes less
        # time than a padded copy of the maps.
        return F.conv2d(maps, self.weight, self.bias, self.stride, padding)[:, :, :frames]


class CausalConvTranspose2d(nn.ConvTranspose2d):
    """
    The mirror of [`CausalConv2d`]: input frame j adds to output frames j * stride, ..., j * stride + kernel - 1, and
    the frames that later inputs still add to are held back by cropping.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], stride: tuple[int, int]):
        crop = (kernel[1] - stride[1]) // 2
        super().__init__(in_channels, out_channels, tuple(kernel), tuple(stride), padding=(0, crop))
        self.context = -(-kernel[0] // stride[0]) - 1
        self.state_name = ""  # set once by the model: the module's path

    def forward(self, maps: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        frames, bins = maps.shape[2] * self.stride[0], maps.shape[3] * self.stride[1]
        start = 0
        if state is not None and self.context > 0:
            maps = state.extend(self.state_name, maps, self.context, dim=2)
            start = self.context * self.stride[0]
        maps = super().forward(maps)
        return maps[:, :, start : start + frames, :bins]


class CausalConv1d(nn.Conv1d):
    """A stride-1 convolution over [batch, time, channels] sequences that sees the present and the past."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__(in_channels, out_channels, kernel)
        self.context = kernel - 1
        self.state_name = ""  # set once by the model: the module's path

    def forward(self, sequence: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        if self.context == 0:
            return F.linear(sequence, self.weight[..., 0], self.bias)
        if state is not None:
            sequence = state.extend(self.state_name, sequence, self.context, dim=1)
        else:
            sequence = F.pad(sequence, (0, 0, self.context, 0))
        return super().forward(sequence.transpose(1, 2)).transpose(1, 2)


def name_streaming_layers(model: nn.Module) -> None:
    """Tells every layer of `model` that keeps a memory the name it keeps it under: its own path."""
    for path, module in model.named_modules():
        if hasattr(module, "state_name"):
            module.state_name = path
