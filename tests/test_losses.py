import math
from pathlib import Path

import pytest
import torch
from f3_training.audio_dataset import decode_audio
from f3_training.losses import (
    IntelligibilityLoss,
    LoudnessLoss,
    MultiScaleSpectralLoss,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
)
from f3_training.reconstruction_metrics import pesq_wideband, stoi


@pytest.fixture
def loss():
    return MultiScaleSpectralLoss(sampling_rate=16_000)


def tone(hertz: float, phase: float = 0.0) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(8000) / 16_000 + phase)[None]


def test_equal_signals_have_no_distance(loss):
    assert [distance.item() for distance in loss(tone(440), tone(440)).values()] == [0, 0, 0]


def test_only_the_complex_distance_hears_the_phase(loss):
    turned, other_pitch = loss(tone(440, phase=math.pi), tone(440)), loss(tone(880), tone(440))
    assert turned["mel"] < 0.02 and turned["magnitude_spectrum"] < 0.02
    assert turned["complex_spectrum"] > 0.5 * other_pitch["complex_spectrum"]


@pytest.mark.parametrize("perceptual", [IntelligibilityLoss(16_000), LoudnessLoss(16_000)])
@pytest.mark.parametrize("target", [torch.zeros(2, 8192), tone(440)[:, :8192]], ids=["silent", "heard"])
def test_silence_has_finite_gradients(loss, perceptual, target):
    estimate = torch.zeros_like(target, requires_grad=True)
    (sum(loss(estimate, target).values()) + perceptual(estimate, target)).sum().backward()
    assert torch.isfinite(estimate.grad).all()


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    recording = Path(__file__).parent / "fixtures" / "tt-allbusy.flac"
    return torch.from_numpy(decode_audio({"bytes": recording.read_bytes(), "path": recording.name}, 16_000))


@pytest.mark.parametrize("noise", [0.003, 0.03, 0.3])
def test_unintelligible_by_as_much_as_stoi_says(speech, noise):
    noisy = speech + noise * torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))
    loss = IntelligibilityLoss(16_000)(noisy[None], speech[None]).item()
    assert loss == pytest.approx(1 - stoi(speech.numpy(), noisy.numpy(), 16_000), abs=0.015)


def test_intelligibility_is_blind_to_loudness_and_counts_items_alike(speech):
    loss = IntelligibilityLoss(16_000)
    assert loss(0.3 * speech[None], speech[None]).item() == pytest.approx(0, abs=1e-3)
    clean, noisy = (
        speech[:16_000],
        speech[:16_000] + 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)),
    )
    of_both = loss(torch.stack([noisy, clean]), torch.stack([clean, clean]))
    assert of_both.tolist() == pytest.approx([loss(noisy[None], clean[None]).item(), 0], abs=1e-3)


def test_speech_between_silences_is_as_intelligible_as_without_them(speech):
    loss, noise = (
        IntelligibilityLoss(16_000),
        0.03 * torch.randn(speech.shape, generator=torch.Generator().manual_seed(0)),
    )
    padded = torch.nn.functional.pad(torch.stack([speech + noise, speech]), (16_000, 16_000))
    assert loss(padded[:1], padded[1:]).item() == pytest.approx(
        loss((speech + noise)[None], speech[None]).item(), abs=0.02
    )


def test_crops_shorter_than_a_segment_have_a_loss(speech):
    loss, clean = IntelligibilityLoss(16_000), speech[4000:8000]
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert loss(clean[None], clean[None]).item() < 1e-3 < loss(noisy[None], clean[None]).item()


def test_errors_are_as_loud_as_pesq_finds_them(speech):
    noise = torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))
    smooth = torch.ones(1, 1, 5) / 5
    worse = [speech + level * noise for level in (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)]
    worse += [speech + level * noise * speech.abs() for level in (0.1, 0.3, 1.0)]
    worse += [speech.clamp(-level, level) for level in (0.05, 0.2)]
    worse += [torch.nn.functional.conv1d(speech[None, None], smooth, padding=2)[0, 0], (speech * 64).round() / 64]
    judged = torch.tensor([pesq_wideband(speech.numpy(), sound.numpy(), 16_000) for sound in worse])
    heard = torch.cat([LoudnessLoss(16_000)(sound[None], speech[None]) for sound in worse])
    ranks = torch.stack([judged, -heard]).argsort(1).argsort(1).float()
    assert torch.corrcoef(ranks)[0, 1] > 0.9


def test_loudness_is_blind_to_the_level_and_to_items_that_are_silent(speech):
    loss = LoudnessLoss(16_000)
    noisy = speech + 0.01 * torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))
    assert loss(0.3 * speech[None], speech[None]).item() == pytest.approx(
        loss(speech[None], speech[None]).item(), abs=1e-3
    )
    assert loss(0.3 * noisy[None], speech[None]).item() == pytest.approx(
        loss(noisy[None], speech[None]).item(), rel=1e-3
    )
    beside_silence = loss(torch.stack([noisy, noisy]), torch.stack([speech, torch.zeros_like(speech)]))
    assert beside_silence.tolist() == pytest.approx([loss(noisy[None], speech[None]).item(), 0], rel=1e-3)


def test_what_is_added_disturbs_more_than_what_is_missing():
    low, high = tone(440), 0.3 * tone(2000)
    loss = LoudnessLoss(16_000)
    assert loss(low + high, low) > 1.1 * loss(low, low + high)


def test_gradient_steps_recover_a_waveform(loss):
    target = tone(300) + tone(710)
    estimate = (target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    before = sum(loss(estimate, target).values()).item()
    optimizer = torch.optim.Adam([estimate], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(loss(estimate, target).values()).backward()
        optimizer.step()
    assert sum(loss(estimate, target).values()).item() < 0.8 * before


def test_perfect_discriminator_has_no_loss_and_a_fooled_one_has():
    right, wrong = [torch.full((2, 1, 4, 4), 2.0)], [torch.full((2, 1, 4, 4), -2.0)]
    assert discriminator_loss(right, wrong).item() == 0
    assert discriminator_loss(wrong, right).item() == 6
    assert (adversarial_loss(right) < adversarial_loss(wrong)).all()


def test_feature_matching_of_an_item_is_the_same_in_any_batch():
    generator = torch.Generator().manual_seed(0)
    real = [[torch.randn(4, 3, 5, 5, generator=generator) * torch.arange(1, 5).view(4, 1, 1, 1)]]
    fake = [[torch.randn(4, 3, 5, 5, generator=generator)]]
    halves = [feature_matching_loss([[real[0][0][part]]], [[fake[0][0][part]]]) for part in (slice(2), slice(2, 4))]
    assert torch.allclose(feature_matching_loss(real, fake), torch.cat(halves), rtol=1e-6)
    assert not feature_matching_loss(real, real).any()
