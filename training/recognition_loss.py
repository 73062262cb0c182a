"""What a speech recogniser hears of a reconstruction, against what it hears of the original: a loss of stage 0."""

import torch
from torch import nn
from transformers import WhisperModel
from transformers.audio_utils import mel_filter_bank

from .losses import feature_matching_loss


# of Whisper: seconds of a window and from one to the next, hertz of the highest band, decades below the loudest that count
WHISPER_WINDOW = 0.025
WHISPER_HOP = 0.01
WHISPER_TOP = 8000
WHISPER_RANGE = 8.0
WHISPER_POWER_SCALE = 400**2  # its windows have 400 samples; power grows with their square


class RecognitionLoss(nn.Module):
    """
    L1 distance of the states at the end of Whisper's frozen encoder, relative to the mean size of the original's. The spectral
    distances and STOI weigh all of a sound alike; this weighs what tells words apart. A crop is heard as it is, not padded to
    30 s, and its log-mel picture is taken at the sampling rate as it is.

    Args:
        recognizer: a Hub id or folder of a [`WhisperModel`].
        sampling_rate: Hz of the samples.
    """

    def __init__(self, recognizer: str, sampling_rate: int):
        super().__init__()
        self.encoder = WhisperModel.from_pretrained(recognizer, dtype=torch.float32).encoder
        self.encoder.eval().requires_grad_(False)
        self.register_buffer("positions", self.encoder.embed_positions.weight.data, persistent=False)
        self.hop, window = round(WHISPER_HOP * sampling_rate), round(WHISPER_WINDOW * sampling_rate)
        filters = mel_filter_bank(
            window // 2 + 1,
            self.encoder.config.num_mel_bins,
            0.0,
            min(WHISPER_TOP, sampling_rate / 2),
            sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("taper", torch.hann_window(window), persistent=False)

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[B] of [B, N] samples, at most 30 s."""
        with torch.no_grad():
            wanted = self.states(target)
        return feature_matching_loss([[wanted]], [[self.states(estimate)]])

    def states(self, samples: torch.Tensor) -> torch.Tensor:
        """What the encoder makes of [B, N] samples: [B, N / 20 ms, width]."""
        bands = self.log_mel(samples)
        frames = bands.shape[2] // 2
        self.encoder.config.max_source_positions = frames
        self.encoder.embed_positions = nn.Embedding.from_pretrained(self.positions[:frames])
        return self.encoder(bands[:, :, : 2 * frames]).last_hidden_state

    def log_mel(self, samples: torch.Tensor) -> torch.Tensor:
        """Whisper's picture of [B, N] samples: [B, bands, N / 10 ms]."""
        window = len(self.taper)
        spectrum = torch.stft(samples, window, self.hop, window=self.taper, return_complex=True)[:, :, :-1]
        power = torch.view_as_real(spectrum).square().sum(-1) * (WHISPER_POWER_SCALE / window**2)
        decades = (self.filters.T @ power).clamp(min=1e-10).log10()
        return (torch.maximum(decades, decades.amax((1, 2), keepdim=True) - WHISPER_RANGE) + 4) / 4
