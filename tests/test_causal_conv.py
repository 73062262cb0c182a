import pytest
import torch
import torch.nn.functional as F
from modeling_f3.causal_conv import CausalConv2d, CausalConvTranspose2d
from tiny import noise


# The last two have kernels with one tap more above the bins of a stride than below.
SIZES = [((3, 3), (1, 1)), ((4, 4), (2, 2)), ((3, 6), (1, 3)), ((6, 3), (3, 2))]


@pytest.mark.parametrize("kernel, stride", SIZES)
def test_a_convolution_sees_silence_before_the_first_frame_and_beside_all(kernel, stride):
    conv, maps = CausalConv2d(2, 3, kernel, stride), noise(2, 2, 6, 12)
    spread = kernel[1] - stride[1]
    padded = F.pad(maps, (spread // 2, spread - spread // 2, kernel[0] - stride[0], 0))
    torch.testing.assert_close(conv(maps), F.conv2d(padded, conv.weight, conv.bias, stride))


@pytest.mark.parametrize("kernel, stride", SIZES)
def test_a_transposed_convolution_keeps_the_bins_in_the_middle_and_the_frames_that_are_final(kernel, stride):
    conv, maps = CausalConvTranspose2d(2, 3, kernel, stride), noise(2, 2, 6, 12)
    whole = F.conv_transpose2d(maps, conv.weight, conv.bias, stride)
    low = (kernel[1] - stride[1]) // 2
    torch.testing.assert_close(conv(maps), whole[:, :, : 6 * stride[0], low : low + 12 * stride[1]])
