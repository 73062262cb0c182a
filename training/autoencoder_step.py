"""One step of stage 0: the discriminators' update, then the autoencoder's, in one visible order."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from torch import nn

from .held_out import NOISE
from .losses import (
    IntelligibilityLoss,
    LoudnessLoss,
    MultiScaleSpectralLoss,
    adversarial_loss,
    discriminator_loss,
    distance,
    feature_matching_loss,
)
from .recognition_loss import RecognitionLoss


# losses that do not see the phase, and those by the discriminators
PHASELESS = ("mel", "magnitude_spectrum", "intelligibility", "loudness", "recognition")
JUDGEMENTS = ("adversarial", "feature_matching")


@dataclass
class LossWeights:
    """
    Weights of the autoencoder's loss; the names are those of the log. Once phase is learned, magnitudes lead. Loudness is for a
    model that sounds right already: before, it outweighs what the others have to teach.
    """

    mel: float = 30.0
    complex_spectrum: float = 5.0
    magnitude_spectrum: float = 100.0
    waveform: float = 1.0
    adversarial: float = 1.0
    feature_matching: float = 12.0
    intelligibility: float = 30.0
    loudness: float = 0.0
    recognition: float = 3.0  # where there is a recogniser
    drift: float = 0.0


@dataclass
class Batch:
    """
    Args:
        samples: [B, N] waveforms.
        noise: [B, T, D], alpha * e of Eq. 2.
        judged: (item, first sample) of each crop that the discriminators see; empty for a step without them.
        judged_samples: length of these crops.
        magnitude_share: how much of their weights the losses that don't see the phase have at this step. It starts small:
            a network that may first please the magnitudes settles on a phase of its own and takes very long to leave it.
    """

    samples: torch.Tensor
    noise: torch.Tensor
    judged: list[tuple[int, int]]
    judged_samples: int
    magnitude_share: float = 1.0

    @property
    def noisiness(self) -> torch.Tensor:
        """How far each item [B] is from having no noise, 0, to having that of the robustness figure or more, 1."""
        return (self.noise.square().mean((1, 2)).sqrt() / NOISE).clamp(max=1)

    def crops(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.stack([samples[item, start : start + self.judged_samples] for item, start in self.judged])


class AutoencoderStep:
    """
    Two players and their optimizers; calling it with a batch makes one step and returns the losses by name. The more noise
    latents get, the more do `noisy_weights` count in place of `weights`. With an `anchor`, the mean square by which the latents
    differ from those that it makes is one of the losses, `drift`; with a `recognition_loss`, that.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        autoencoder: nn.Module,
        discriminator: nn.Module,
        optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer,
        spectral_loss: MultiScaleSpectralLoss,
        intelligibility_loss: IntelligibilityLoss,
        loudness_loss: LoudnessLoss,
        weights: LossWeights,
        noisy_weights: LossWeights,
        max_grad_norm: float,
        anchor: F3AutoencoderModel | None = None,
        recognition_loss: RecognitionLoss | None = None,
    ):
        self.accelerator, self.autoencoder, self.discriminator = accelerator, autoencoder, discriminator
        self.optimizer, self.discriminator_optimizer = optimizer, discriminator_optimizer
        self.spectral_loss, self.intelligibility_loss = spectral_loss, intelligibility_loss
        self.loudness_loss, self.recognition_loss = loudness_loss, recognition_loss
        self.weights, self.noisy_weights = weights, noisy_weights
        self.max_grad_norm, self.anchor = max_grad_norm, anchor
        self.skipped = 0  # updates left out because a gradient was not finite

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        output = self.autoencoder(batch.samples[:, None], noise=batch.noise)
        estimate = output.audio_values[:, 0].float()
        losses = self.latent_losses(output.latents)
        if self.anchor is not None:
            with torch.no_grad(), self.accelerator.autocast():
                anchored = self.anchor.encode(batch.samples[:, None]).latents
            losses["drift"] = (output.latents - anchored).square().mean((1, 2))
        if batch.judged:
            real, fake = batch.crops(batch.samples), batch.crops(estimate)

            # 1. the discriminators learn to tell real from decoded
            self.discriminator.requires_grad_(True)
            real_scores, _ = self.discriminator(real)
            fake_scores, _ = self.discriminator(fake.detach())
            losses["discriminator"] = discriminator_loss(real_scores, fake_scores)
            losses["discriminator_grad_norm"] = self.update(
                losses["discriminator"], self.discriminator, self.discriminator_optimizer
            )

            # 2. the autoencoder is judged by the updated discriminators, which get no gradient from it
            self.discriminator.requires_grad_(False)
            with torch.no_grad():
                _, real_features = self.discriminator(real)
            fake_scores, fake_features = self.discriminator(fake)
            losses["adversarial"] = adversarial_loss(fake_scores)
            losses["feature_matching"] = feature_matching_loss(real_features, fake_features)

        losses |= self.spectral_loss(estimate, batch.samples)
        losses["intelligibility"] = self.intelligibility_loss(estimate, batch.samples)
        losses["loudness"] = self.loudness_loss(estimate, batch.samples)
        if self.recognition_loss is not None:
            losses["recognition"] = self.recognition_loss(estimate, batch.samples)
        losses["waveform"] = distance(estimate, batch.samples)
        losses["total"] = self.total(losses, batch)
        losses["grad_norm"] = self.update(losses["total"], self.autoencoder, self.optimizer)
        return {name: loss.detach().mean() for name, loss in losses.items()}

    def total(self, losses: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """The mean over items of their weighted losses; those by the discriminators are of the judged ones."""
        judged, noisiness = [item for item, _ in batch.judged], batch.noisiness
        total = 0.0
        for name, weight in vars(self.weights).items():
            noisy_weight = getattr(self.noisy_weights, name)
            if name not in losses or weight == noisy_weight == 0:
                continue
            weights = weight + (noisy_weight - weight) * noisiness
            loss = losses[name] * (weights[judged] if name in JUDGEMENTS else weights)
            total = total + loss.mean() * (batch.magnitude_share if name in PHASELESS else 1.0)
        return total

    def latent_losses(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """None: normalisation and noise replace them. Bottlenecks of other kinds have some, [B] each."""
        return {}

    def update(self, loss: torch.Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """One optimizer step on `loss`, skipped and counted when the gradient is not finite. Returns the gradient norm."""
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(module.parameters(), self.max_grad_norm)
        if torch.isfinite(norm):
            optimizer.step()
        else:
            self.skipped += 1
        return norm
