"""Figures on held-out recordings while the autoencoder trains: learning is judged by them, not by the loss."""

import numpy as np
import torch
from modeling_f3.modeling_autoencoder import F3AutoencoderModel

from .audio_dataset import decode_audio, load_audio_dataset
from .losses import MultiScaleSpectralLoss, log_mel, stft
from .reconstruction_metrics import pesq_wideband, stoi
from .reconstruction_scores import Scores


NOISE = 0.5  # alpha of the robustness figure
MIN_SECONDS, MAX_SECONDS = 1.5, 8.0  # PESQ and STOI mean little on shorter clips, and take long on longer ones


class HeldOut:
    """The same few clips of the validation split, spread over it; speech only where a column `kind` tells."""

    def __init__(self, arguments, sampling_rate: int):
        self.sampling_rate = sampling_rate
        self.spectral_loss = MultiScaleSpectralLoss(sampling_rate)
        self.clips = self._clips(arguments) if arguments.validation_split else []

    def _clips(self, arguments) -> list[torch.Tensor]:
        rows = load_audio_dataset(
            arguments.dataset, arguments.validation_split, streaming=arguments.streaming, name=arguments.dataset_name
        )
        if not arguments.streaming:
            rows = rows.shuffle(seed=0)  # neighbours are alike
        clips = []
        for row in rows:
            if row.get("kind", "speech") != "speech" or len(clips) == arguments.evaluation_items:
                continue
            samples = decode_audio(row["audio"], self.sampling_rate)
            if MIN_SECONDS <= len(samples) / self.sampling_rate <= MAX_SECONDS and np.abs(samples).max() > 0.01:
                clips.append(torch.from_numpy(samples))
            if len(clips) == arguments.evaluation_items:
                break
        return clips

    @torch.inference_mode()
    def score(self, model: F3AutoencoderModel) -> dict[str, float]:
        """Means over the clips; empty without clips. A clip that PESQ or STOI refuse counts as missing."""
        collected: dict[str, list[float]] = {}
        generator = torch.Generator().manual_seed(0)
        for clip in self.clips:
            encoded = model.encode(clip[None, None].to(model.device))
            noise = NOISE * torch.randn(encoded.latents.shape, generator=generator).to(model.device)
            decoded = model.decode(**encoded).audio_values[0, 0].cpu()
            noisy = model.decode(encoded.latents + noise, encoded.latents_mask, encoded.audio_lengths)
            distances = self.spectral_loss(decoded[None], clip[None])
            scores = Scores({name: distance.item() for name, distance in distances.items()})
            scores.add("pesq", pesq_wideband, clip.numpy(), decoded.numpy(), self.sampling_rate)
            scores.add("stoi", stoi, clip.numpy(), decoded.numpy(), self.sampling_rate)
            noisy_samples = noisy.audio_values[0, 0].cpu().numpy()
            scores.add(f"stoi_noise_{NOISE}", stoi, clip.numpy(), noisy_samples, self.sampling_rate)
            for name, value in scores.values.items():
                if value is not None:
                    collected.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in collected.items()}

    @torch.inference_mode()
    def show(self, model: F3AutoencoderModel, writer, step: int, items: int = 2) -> None:
        """Sound and spectrograms (original above reconstruction) of the first clips for TensorBoard."""
        for index, clip in enumerate(self.clips[:items]):
            decoded = model.decode(**model.encode(clip[None, None].to(model.device))).audio_values[0, 0].cpu()
            picture = torch.cat([picture_of(samples) for samples in (clip, decoded)], dim=0)
            writer.add_image(f"held_out/{index}", picture, step, dataformats="HW")
            writer.add_audio(f"held_out/{index}", decoded.clamp(-1, 1), step, self.sampling_rate)


def picture_of(samples: torch.Tensor, window: int = 512) -> torch.Tensor:
    """Log-magnitude spectrogram of [N] samples as grey values [window / 2 + 1, frames] in [0, 1], low pitches below."""
    identity = torch.eye(window // 2 + 1)
    magnitude = log_mel(stft(samples[None], window, torch.hann_window(window)), identity)[0]
    return (magnitude.T.flip(0) + 5).div(6).clamp(0, 1)
