from types import SimpleNamespace

import numpy as np
import pytest
import torch
from f3_training import ablate_bottleneck
from f3_training.ablate_bottleneck import ALPHAS, VARIANTS, PlainAutoencoder, SigmaVaeStep, robustness, table
from f3_training.autoencoder_step import AutoencoderStep
from tiny import noise, tiny_config, tiny_model


@pytest.fixture
def correlation(monkeypatch):
    """Scores that cost nothing."""

    def score(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
        return float(np.corrcoef(reference, estimate)[0, 1])

    monkeypatch.setattr(ablate_bottleneck, "SCORES", {"pesq": score, "stoi": score})


def test_only_the_plain_variants_keep_the_scale_of_the_latents():
    torch.manual_seed(0)
    plain, normalised = PlainAutoencoder(tiny_config()).eval(), tiny_model()
    audio = noise(1, 1, 800)
    assert (normalised.encode(audio).latents.square().mean(-1) - 1).abs().max() < 1e-2
    assert (plain.encode(audio).latents.square().mean(-1) - 1).abs().min() > 1e-2


def test_noise_is_as_large_as_the_latents_it_is_added_to(monkeypatch, correlation):
    torch.manual_seed(0)
    model = PlainAutoencoder(tiny_config()).eval()
    held_out = SimpleNamespace(clips=[noise(800)], sampling_rate=800)
    latents = model.encode(noise(1, 1, 800)).latents
    given, decode = [], model.decode
    monkeypatch.setattr(model, "decode", lambda z, *rest: given.append(z) or decode(z, *rest))
    curve = robustness(model, held_out, normalised=False)
    assert [point["alpha"] for point in curve] == list(ALPHAS)
    assert torch.equal(given[0], latents)
    added = (given[-1] - latents)[0].std(0) / latents[0].std(0)
    assert 0.6 < added.min() and added.max() < 1.5


def test_the_four_variants_differ_in_their_bottleneck_alone():
    assert list(VARIANTS) == ["plain", "normalised", "normalised + noise", "sigma-VAE"]
    latents = torch.full((2, 3, 4), 2.0)
    assert AutoencoderStep.latent_losses(None, latents) == {}
    assert SigmaVaeStep.latent_losses(None, latents)["kl"].tolist() == [2.0, 2.0]


def test_the_table_has_a_row_for_every_variant_and_score():
    curve = [{"alpha": alpha, "pesq": 2 - alpha, "stoi": 0.9 - alpha / 2} for alpha in ALPHAS]
    text = table({"plain": curve, "sigma-VAE": curve})
    assert text.count("| plain |") == 2 and text.count("| sigma-VAE |") == 2 and "0.400" in text
