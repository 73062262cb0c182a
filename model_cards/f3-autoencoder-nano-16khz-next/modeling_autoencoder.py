"""F3 autoencoder: waveform to normalised continuous latents and back (arXiv 2606.06357, Eq. 1 and 2)."""

import torch
import torch.nn.functional as F
from .configuration_autoencoder import F3AutoencoderConfig
from torch import nn
from transformers import initialization as init
from transformers.utils import is_torchdynamo_exporting

from .causal_conv import CausalConv2d, name_streaming_layers
from .ladder import ACTIVATIONS, DecoderProjection, DownStage, EncoderProjection, UpStage
from .latent_bottleneck import draw_noise, normalize_latents
from .model_outputs import F3AutoencoderDecoderOutput, F3AutoencoderEncoderOutput, F3AutoencoderOutput
from .pretrained_model import F3PreTrainedModel
from .spectrogram import Spectrogram
from .streaming_state import F3StreamingState


# `encode` and `decode` work through longer audio in pieces of this many latent frames, with a state between them.
FRAMES_PER_PIECE = 500


class F3AutoencoderPreTrainedModel(F3PreTrainedModel):
    config: F3AutoencoderConfig
    base_model_prefix = "autoencoder"
    _no_split_modules = ["DownStage", "UpStage"]
    # It has no attention, and so goes along with any kind of it that is asked of a model around it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            # Uniform within 1 / sqrt(fan in): two of them make a residual branch that starts quieter than its shortcut.
            init.kaiming_uniform_(module.weight, a=5**0.5)
            init.zeros_(module.bias)
        elif isinstance(module, Spectrogram):
            analysis, synthesis = module.windows()
            init.copy_(module.analysis_window, analysis)
            init.copy_(module.synthesis_window, synthesis)


class F3AutoencoderEncoder(nn.Module):
    """Samples [B, N], N a multiple of the hop, to unnormalised latents z_0 [B, N / hop, D]."""

    def __init__(self, config: F3AutoencoderConfig):
        super().__init__()
        self.spectrogram = Spectrogram(config.stft_window, config.stft_hop, config.spectrum_exponent)
        widths = [config.encoder_channels] + [row[2] for row in config.encoder_stages]
        self.stem = CausalConv2d(2, widths[0], config.stem_kernel, (1, config.stem_stride))
        self.stages = nn.ModuleList(
            DownStage(width, row, config.hidden_act, config.shortcut)
            for width, row in zip(widths, config.encoder_stages)
        )
        self.projection = EncoderProjection(
            widths[-1] * config.latent_bins,
            config.encoder_projection,
            config.latent_dim,
            config.projection_kernel,
            config.hidden_act,
        )

    def forward(self, samples: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        maps = self.spectrogram.analyze(samples, state)  # [B, 2, frames, bins]
        maps = self.stem(channels_last(maps.to(self.stem.weight.dtype)), state)
        for stage in self.stages:
            maps = stage(maps, state)
        return self.projection(maps.transpose(1, 2).flatten(2), state)  # [B, T, C * F] -> [B, T, D]


class F3AutoencoderDecoder(nn.Module):
    """Latents [B, T, D] to samples [B, T * hop] that come `lookahead` latent frames late."""

    def __init__(self, config: F3AutoencoderConfig):
        super().__init__()
        widths = [config.decoder_channels] + [row[2] for row in config.decoder_stages]
        self.bins, self.stem_stride = config.latent_bins, config.stem_stride
        self.projection = DecoderProjection(
            config.latent_dim,
            config.decoder_projection,
            widths[0] * config.latent_bins,
            config.projection_kernel,
            config.hidden_act,
        )
        self.stages = nn.ModuleList(
            UpStage(width, row, config.hidden_act, config.shortcut) for width, row in zip(widths, config.decoder_stages)
        )
        self.act = ACTIVATIONS[config.hidden_act]()
        self.head = CausalConv2d(widths[-1], 2 * config.stem_stride, (config.stem_kernel[0], head_bins(config)))
        self.spectrogram = Spectrogram(config.stft_window, config.stft_hop, config.spectrum_exponent)

    def forward(self, latents: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        sequence = self.projection(latents.to(self.head.weight.dtype), state)
        maps = channels_last(sequence.unflatten(2, (-1, self.bins)).transpose(1, 2))  # [B, C, T, F]
        for stage in self.stages:
            maps = stage(maps, state)
        maps = self.head(self.act(maps), state).unflatten(1, (2, self.stem_stride))  # sub-pixel along frequency
        maps = maps.permute(0, 1, 3, 4, 2).flatten(3)  # [B, 2, frames, positions * stride = bins]
        return self.spectrogram.synthesize(maps, state)


def channels_last(maps: torch.Tensor) -> torch.Tensor:
    """The same maps with all channels of a point side by side, as convolutions want them; what follows keeps that order."""
    return maps.contiguous(memory_format=torch.channels_last)


def head_bins(config: F3AutoencoderConfig) -> int:
    """Frequency taps of the last convolution: the reach of the first one, at least 3, an odd number."""
    return max(3, 2 * (config.stem_kernel[1] // config.stem_stride // 2) + 1)


class F3AutoencoderModel(F3AutoencoderPreTrainedModel):
    """
    The autoencoder of F3: `encode` gives latents at `config.frame_rate` (25 Hz) x `config.latent_dim` (64), normalised
    per frame (Eq. 1) and deterministic; `decode` gives the waveform back with its exact length. Both are causal but for
    `config.decoder_lookahead` latent frames in the decoder. In training mode `forward` decodes noisy latents (Eq. 2).
    """

    _keep_in_fp32_modules_strict = ["decoder"]  # half precision is audible in the synthesis
    auto_classes = ("AutoModel", "AutoModelForAudioTokenization")

    def __init__(self, config: F3AutoencoderConfig):
        super().__init__(config)
        self.encoder = F3AutoencoderEncoder(config)
        self.decoder = F3AutoencoderDecoder(config)
        name_streaming_layers(self)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> F3AutoencoderOutput | tuple:
        """
        Reconstructs `input_values [B, 1, N]` from its latents plus `noise [B, T, D]`, the alpha * e of Eq. 2. Without
        `noise`, training mode draws it (see `draw_noise`) and evaluation mode adds none. Meant for training: memory grows
        with the length, unlike that of `encode` and `decode`.
        """
        samples, lengths = self._samples_and_lengths(input_values, padding_mask)
        latents = self.normalize(self.encoder(self._pad_to_hop(samples)))  # Eq. 1
        latents_mask = self._frame_mask(lengths, latents.shape[1])
        if noise is None and self.training:
            noise = draw_noise(latents.shape, self.config.noise_scale, self.config.clean_probability)
        decoded = latents if noise is None else latents + noise.to(latents)  # Eq. 2
        decoded = self._wait_for_lookahead(decoded * latents_mask.unsqueeze(-1))
        audio_values = _trim(self.decoder(decoded)[:, self._delay :], lengths)
        output = F3AutoencoderOutput(audio_values, latents, latents_mask, lengths)
        return self._returned(output, return_dict)

    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> F3AutoencoderEncoderOutput | tuple:
        """
        Waveform to latents; the same input always gives the same latents. Memory beyond input and output does not grow
        with the length.

        Args:
            input_values: samples `[B, 1, N]` at `config.sampling_rate`, from [`F3FeatureExtractor`].
            padding_mask: `[B, N]`, non-zero on samples, zero on the padding after them.

        Raises:
            `ValueError`: for another shape, a type that is not floating point, no samples, or a mask that does not fit.
        """
        samples, lengths = self._samples_and_lengths(input_values, padding_mask)
        latents = self.normalize(
            _in_pieces(self.encoder, self._pad_to_hop(samples), FRAMES_PER_PIECE * self.config.hop_length)
        )
        latents_mask = self._frame_mask(lengths, latents.shape[1])
        output = F3AutoencoderEncoderOutput(latents * latents_mask.unsqueeze(-1), latents_mask, lengths)
        return self._returned(output, return_dict)

    def decode(
        self,
        latents: torch.Tensor,
        latents_mask: torch.Tensor | None = None,
        audio_lengths: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> F3AutoencoderDecoderOutput | tuple:
        """
        Latents to waveform; `model.decode(**model.encode(...))` returns as many samples as were encoded.

        Args:
            latents: `[B, T, D]`, as `encode` returns them.
            latents_mask: `[B, T]`, non-zero on frames, zero on the padding after them.
            audio_lengths: `[B]` samples to return per item; without it, all samples of the item's frames.

        Raises:
            `ValueError`: for another shape, or a mask or lengths that do not fit.
        """
        frames = self._check_latents(latents, latents_mask)
        if latents.numel() == 0:
            raise ValueError(f"latents of shape {list(latents.shape)} hold no frames")
        lengths = frames * self.config.hop_length
        if audio_lengths is not None:
            fits = tuple(audio_lengths.shape) == tuple(lengths.shape)
            if not fits or _any((audio_lengths < 1) | (audio_lengths > lengths)):
                raise ValueError(
                    f"audio_lengths {audio_lengths.tolist()} do not fit latents of {frames.tolist()} frames x "
                    f"{self.config.hop_length} samples: pass one length per item, from 1 to that many samples"
                )
            lengths = audio_lengths.to(lengths)
        valid = latents.float() * _length_mask(frames, latents.shape[1]).unsqueeze(-1)
        samples = _in_pieces(self.decoder, self._wait_for_lookahead(valid), FRAMES_PER_PIECE)[:, self._delay :]
        output = F3AutoencoderDecoderOutput(_trim(samples, lengths), lengths)
        return self._returned(output, return_dict)

    def stream_encode(
        self, input_values: torch.Tensor, state: F3StreamingState, flush: bool = False
    ) -> F3AutoencoderEncoderOutput:
        """
        The next chunk `[B, 1, n]` of a stream, of any length n >= 0, to the latents that became complete. The chunks'
        latents together equal `encode` of the whole. `flush=True` ends the stream: the last, started frame is completed
        with silence and `state` is cleared.
        """
        self._check_samples(input_values, allow_empty=True)
        samples = input_values[:, 0].float()
        samples = torch.cat([state.recall("pending", samples, 0, dim=1), samples], dim=1)
        ready = samples.shape[1] // self.config.hop_length * self.config.hop_length
        samples, rest = (
            (self._pad_to_hop(samples), samples[:, :0]) if flush else (samples[:, :ready], samples[:, ready:])
        )
        if samples.shape[1] > 0:
            latents = self.normalize(self.encoder(samples, state))
        else:
            latents = samples.new_zeros(samples.shape[0], 0, self.config.latent_dim)
        state.tensors["pending"] = rest.clone()
        if flush:
            state.clear()
        return F3AutoencoderEncoderOutput(latents, latents.new_ones(latents.shape[:2], dtype=torch.bool))

    def stream_decode(
        self, latents: torch.Tensor, state: F3StreamingState, flush: bool = False
    ) -> F3AutoencoderDecoderOutput:
        """
        The next latents `[B, t, D]` of a stream, t >= 0, to the samples that became final: `config.decoder_lookahead`
        frames late, and exactly those of `decode` in the end. `flush=True` ends the stream: the samples held back are
        returned and `state` is cleared.
        """
        self._check_latents(latents, None)
        if flush:
            latents = self._wait_for_lookahead(latents)
        samples = latents.new_zeros(latents.shape[0], 0, dtype=torch.float32)
        if latents.shape[1] > 0:
            samples = self.decoder(latents.float(), state)
            to_drop = state.tensors.get("to_drop", torch.tensor(self._delay))
            dropped = min(int(to_drop), samples.shape[1])
            samples = samples[:, dropped:]
            state.tensors["to_drop"] = to_drop - dropped
        if flush:
            state.clear()
        lengths = torch.full((samples.shape[0],), samples.shape[1], device=samples.device)
        return F3AutoencoderDecoderOutput(samples[:, None], lengths)

    def checked_latents_mask(self, latents: torch.Tensor, latents_mask: torch.Tensor | None) -> torch.Tensor:
        """The mask `[B, T]` of latents that came from outside; all frames without one. Raises what `decode` raises."""
        return _length_mask(self._check_latents(latents, latents_mask), latents.shape[1])

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Eq. 1."""
        return normalize_latents(latents, self.config.normalization_eps)

    @property
    def _delay(self) -> int:
        """Samples that the decoder is late."""
        return self.config.decoder_lookahead * self.config.hop_length

    def _wait_for_lookahead(self, latents: torch.Tensor) -> torch.Tensor:
        return F.pad(latents, (0, 0, 0, self.config.decoder_lookahead))

    def _pad_to_hop(self, samples: torch.Tensor) -> torch.Tensor:
        return F.pad(samples, (0, -samples.shape[1] % self.config.hop_length))

    def _frame_mask(self, lengths: torch.Tensor, frames: int) -> torch.Tensor:
        return _length_mask(-(-lengths // self.config.hop_length), frames)

    def _samples_and_lengths(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples [B, N] in fp32 with silence on the padding, and the number of samples of each item."""
        self._check_samples(input_values)
        samples = input_values[:, 0].float()
        if padding_mask is None:
            return samples, torch.full((samples.shape[0],), samples.shape[1], device=samples.device)
        lengths = _checked_lengths(padding_mask, samples.shape, "padding_mask", "samples")
        return samples * _length_mask(lengths, samples.shape[1]), lengths

    def _check_samples(self, input_values: torch.Tensor, allow_empty: bool = False) -> None:
        if input_values.ndim != 3 or input_values.shape[1] != 1 or not input_values.is_floating_point():
            raise ValueError(
                f"input_values must be floating point of shape [batch, 1, samples], got {input_values.dtype} "
                f"{list(input_values.shape)}: F3FeatureExtractor makes it from waveforms"
            )
        if 0 in input_values.shape[: 2 if allow_empty else 3]:
            raise ValueError(f"input_values of shape {list(input_values.shape)} hold no audio")

    def _check_latents(self, latents: torch.Tensor, latents_mask: torch.Tensor | None) -> torch.Tensor:
        """The number of frames of each item."""
        if latents.ndim != 3 or latents.shape[2] != self.config.latent_dim or not latents.is_floating_point():
            raise ValueError(
                f"latents must be floating point of shape [batch, frames, {self.config.latent_dim}], got "
                f"{latents.dtype} {list(latents.shape)}"
            )
        if latents_mask is None:
            return torch.full((latents.shape[0],), latents.shape[1], device=latents.device)
        return _checked_lengths(latents_mask, latents.shape[:2], "latents_mask", "frames")

    def _returned(self, output, return_dict: bool | None):
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


def _in_pieces(network: nn.Module, steps: torch.Tensor, size: int) -> torch.Tensor:
    """
    What `network` makes of steps [B, n, ...], `size` at a time with a state between them. An exported graph has no loop: it
    takes all of them at once.
    """
    if is_torchdynamo_exporting() or steps.shape[1] <= size:
        return network(steps)
    state = F3StreamingState()
    return torch.cat([network(piece, state) for piece in steps.split(size, dim=1)], dim=1)


def _checked_lengths(mask: torch.Tensor, shape: torch.Size, name: str, unit: str) -> torch.Tensor:
    """Items' lengths from a mask that must be ones, then zeros."""
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name} {list(mask.shape)} does not fit {list(shape)} = [batch, {unit}]")
    kept = mask != 0
    lengths = kept.sum(1)
    if _any(kept != _length_mask(lengths, shape[1])):
        raise ValueError(f"{name} must be ones followed by zeros: pad at the end of each item")
    if _any(lengths == 0):
        raise ValueError(f"{name} leaves no {unit} of item {int((lengths == 0).nonzero()[0, 0])}")
    return lengths


def _any(wrong: torch.Tensor) -> bool:
    """Whether any element is true; no values are known, so none is, while a graph is traced."""
    return not torch.compiler.is_compiling() and bool(wrong.any())


def _length_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _trim(samples: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[B, N] to [B, 1, longest item], zero after the end of each item."""
    samples = samples[:, : lengths.max().item()]
    return (samples * _length_mask(lengths, samples.shape[1]))[:, None]
