"""
The paper's claim at our scale: four autoencoders that differ only between encoder and decoder, trained alike.

    python -m f3_training.ablate_bottleneck --dataset data/f3mix --output_dir runs/bottleneck --max_steps 1500

Every variant sees the same crops in the same order for the same number of steps. Afterwards held-out speech is decoded
from z + alpha * s * e, where s is 1 for normalised latents and otherwise the standard deviation of each channel of z, so
that alpha means the same for all. Writes ablation.json, ablation.md and ablation.png. Started again, it goes on.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from configuration_f3.configuration_autoencoder import F3AutoencoderConfig
from modeling_f3.modeling_autoencoder import F3AutoencoderModel

from .autoencoder import AutoencoderArguments
from .autoencoder_step import AutoencoderStep, LossWeights
from .autoencoder_trainer import AutoencoderTrainer
from .held_out import HeldOut
from .reconstruction_metrics import pesq_wideband, stoi
from .reconstruction_scores import Scores


ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
SIGMA = 0.5  # of the sigma-VAE, as in VibeVoice
SCORES = {"pesq": pesq_wideband, "stoi": stoi}


class PlainAutoencoder(F3AutoencoderModel):
    """Without normalisation."""

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.float()


@dataclass
class SigmaVaeWeights(LossWeights):
    """With the weight of the KL divergence per latent value."""

    kl: float = 0.1


class SigmaVaeStep(AutoencoderStep):
    """KL(N(z, sigma^2) || N(0, 1)) with a fixed sigma, without the part that does not depend on z."""

    def latent_losses(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"kl": 0.5 * latents.square().flatten(1).mean(1)}


class PlainTrainer(AutoencoderTrainer):
    """Of latents that are not normalised."""

    model_class = PlainAutoencoder


class SigmaVaeTrainer(PlainTrainer):
    """Noise of a fixed size on latents that a KL term keeps near the unit Gaussian."""

    def _draw_noise(self, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
        ramp = min(1.0, self.step / max(1, self.arguments.noise_ramp_steps))
        return ramp * SIGMA * torch.randn(shape, generator=generator)

    def _step(self, *parts) -> AutoencoderStep:
        return SigmaVaeStep(
            self.accelerator, *parts, SigmaVaeWeights(), SigmaVaeWeights(), max_grad_norm=self.arguments.max_grad_norm
        )


VARIANTS = {  # trainer, and what differs from the preset; without the noise of Eq. 2 its gamma is zero
    "plain": (PlainTrainer, {"noise_scale": 0.0}),
    "normalised": (AutoencoderTrainer, {"noise_scale": 0.0}),
    "normalised + noise": (AutoencoderTrainer, {}),
    "sigma-VAE": (SigmaVaeTrainer, {"noise_scale": 0.0}),
}


def robustness(model: F3AutoencoderModel, held_out: HeldOut, normalised: bool) -> list[dict[str, float]]:
    """Mean scores of the held-out clips decoded at every noise level."""
    with torch.inference_mode():
        encoded = [model.encode(clip[None, None]) for clip in held_out.clips]
        spread = torch.cat([item.latents[0] for item in encoded]).std(0)
        scale = torch.ones_like(spread) if normalised else spread
        curve = []
        for alpha in ALPHAS:
            generator = torch.Generator().manual_seed(0)
            records = []
            for clip, item in zip(held_out.clips, encoded):
                noise = alpha * scale * torch.randn(item.latents.shape, generator=generator)
                decoded = model.decode(item.latents + noise, item.latents_mask, item.audio_lengths).audio_values[0, 0]
                scores = Scores()
                for name, score in SCORES.items():
                    scores.add(name, score, clip.numpy(), decoded.numpy(), held_out.sampling_rate)
                records.append(scores.values)
            means = {name: np.mean([row[name] for row in records if row[name] is not None]) for name in SCORES}
            curve.append({"alpha": alpha, **{name: float(mean) for name, mean in means.items()}})
    return curve


def ablate(arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Trains what is not trained yet and returns the curve of every variant."""
    curves = {}
    for name, (trainer_class, overrides) in VARIANTS.items():
        config = F3AutoencoderConfig.preset(arguments.preset, **overrides)
        run = AutoencoderArguments(
            dataset=arguments.dataset,
            output_dir=str(arguments.output_dir / name.replace(" ", "-")),
            preset=arguments.preset,
            max_steps=arguments.max_steps,
            decay_steps=arguments.max_steps // 3,
            noise_ramp_steps=arguments.max_steps // 3,
            magnitude_ramp_steps=arguments.max_steps // 3,
            discriminator_start=arguments.max_steps,  # reconstruction losses alone
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            evaluation_items=arguments.evaluation_items,
            torch_compile=arguments.torch_compile,
        )
        model = trainer_class(run, config).train()
        curves[name] = robustness(model, HeldOut(run, config.sampling_rate), normalised="normalised" in name)
    return curves


def report(arguments: argparse.Namespace, curves: dict[str, list[dict[str, float]]]) -> str:
    """What was done, the table and the picture, in Markdown."""
    return (
        "# What normalisation and noise do\n\n"
        f"Preset {arguments.preset}, each variant from the same random weights for {arguments.max_steps} steps of "
        f"{arguments.batch_size} crops, reconstruction losses alone, the same crops in the same order; "
        f"{arguments.evaluation_items} held-out speech clips. Latents that are not normalised get noise relative to the "
        f"standard deviation of each channel.\n\n{table(curves)}\n![scores against noise](ablation.png)\n"
    )


def table(curves: dict[str, list[dict[str, float]]]) -> str:
    """STOI and PESQ by variant and noise level, in Markdown."""
    lines = []
    for score in SCORES:
        lines += [
            f"| {score.upper()} at α = | {' | '.join(f'{alpha:g}' for alpha in ALPHAS)} |",
            f"|{'---|' * (1 + len(ALPHAS))}",
        ]
        lines += [
            f"| {name} | {' | '.join(f'{point[score]:.3f}' for point in curve)} |" for name, curve in curves.items()
        ]
        lines.append("")
    return "\n".join(lines)


def plot(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """One panel per score, one line per variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, score in zip(figure.subplots(1, len(SCORES)), SCORES):
        for name, curve in curves.items():
            axis.plot([point["alpha"] for point in curve], [point[score] for point in curve], marker="o", label=name)
        axis.set_xlabel("noise level α")
        axis.set_ylabel(score.upper())
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--max_steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=5e-3)
    parser.add_argument("--evaluation_items", type=int, default=24)
    parser.add_argument("--torch_compile", action="store_true")
    arguments = parser.parse_args()
    curves = ablate(arguments)
    (arguments.output_dir / "ablation.json").write_text(json.dumps(curves, indent=2))
    (arguments.output_dir / "ablation.md").write_text(report(arguments, curves))
    plot(curves, arguments.output_dir / "ablation.png")
    print(report(arguments, curves))


if __name__ == "__main__":
    main()
