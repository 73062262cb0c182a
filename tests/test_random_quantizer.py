import pytest
import torch
from modeling_f3 import F3ForPreTraining
from modeling_f3.multi_token_prediction import multi_token_losses
from modeling_f3.random_quantizer import code_counts, code_usage
from tiny import tiny_tokenizer


def quantizer(seed: int = 0, **overrides):
    return tiny_tokenizer(F3ForPreTraining, seed, **overrides).prediction.quantizer


def frames(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_projections_and_codebooks_come_from_the_seed_of_the_configuration_alone():
    first, second, other = quantizer(0), quantizer(1), quantizer(0, codebook_seed=7)
    assert torch.equal(first.codebooks, second.codebooks) and torch.equal(first.projections, second.projections)
    assert not torch.equal(first.codebooks, other.codebooks)
    torch.testing.assert_close(first.codebooks.norm(dim=-1), torch.ones(2, 16))


def test_the_code_is_the_nearest_entry_of_the_codebook():
    model, z = quantizer(), frames(50)
    codes = model(z[None])[0]
    for book in range(2):
        projected = torch.nn.functional.normalize(z @ model.projections[book], dim=-1)
        distances = torch.cdist(projected, model.codebooks[book])
        assert torch.equal(codes[:, book], distances.argmin(-1))


def test_calibration_saves_the_codes_from_an_offset_of_the_channels():
    z = frames(2000) * torch.tensor([1.0, 0.3, 0.1, 1.0]) + torch.tensor([5.0, -3.0, 0.0, 2.0])
    model = quantizer()
    collapsed, _ = code_usage(code_counts(model(z[None]), None, 16))
    model.calibrate(z)
    spread, entropy = code_usage(code_counts(model(z[None]), None, 16))
    assert collapsed.max() < 0.6 and spread.min() > 0.9 and entropy.min() > 2.0


def test_calibration_is_saved_with_the_model(tmp_path):
    model = tiny_tokenizer(F3ForPreTraining)
    model.prediction.quantizer.calibrate(3 * frames(100) + 1)
    model.save_pretrained(tmp_path)
    loaded = F3ForPreTraining.from_pretrained(tmp_path).prediction.quantizer
    assert torch.equal(loaded.mean, model.prediction.quantizer.mean) and loaded.mean.abs().min() > 0.5
    assert torch.equal(loaded.deviation, model.prediction.quantizer.deviation)


def test_statistics_of_too_little_are_refused():
    with pytest.raises(ValueError, match="3 frames are too few"):
        quantizer().calibrate(frames(3))
    with pytest.raises(ValueError, match=r"channels \[2\] of the latents never change"):
        quantizer().calibrate(frames(100) * torch.tensor([1.0, 1.0, 0.0, 1.0]))


def test_counts_leave_padding_out():
    codes = torch.tensor([[[0, 1], [2, 1], [3, 3]]])
    counts = code_counts(codes, torch.tensor([[1, 1, 0]]), 4)
    assert counts.tolist() == [[1, 0, 1, 0], [0, 2, 0, 0]]
    usage, entropy = code_usage(counts)
    assert usage.tolist() == [0.5, 0.25]
    torch.testing.assert_close(entropy, torch.tensor([2.0, 1.0]).log())


def test_the_head_for_k_frames_ahead_is_scored_with_the_code_k_frames_ahead():
    codes = torch.arange(8).view(1, 8, 1)
    logits = torch.zeros(1, 8, 3, 1, 12)
    for ahead in (1, 2, 3):
        for frame in range(8):
            logits[0, frame, ahead - 1, 0, frame + ahead] = 50.0
    assert multi_token_losses(logits, codes).max() < 1e-4
    assert multi_token_losses(logits, codes + 1).min() > 10


def test_the_loss_of_a_batch_is_the_mean_of_its_items_and_ignores_padding():
    generator = torch.Generator().manual_seed(0)
    logits, codes = torch.randn(3, 9, 2, 2, 5, generator=generator), torch.randint(5, (3, 9, 2), generator=generator)
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    together = multi_token_losses(logits, codes, mask)
    alone = [multi_token_losses(logits[i : i + 1, :n], codes[i : i + 1, :n]) for i, n in enumerate((9, 4, 1))]
    torch.testing.assert_close(together, torch.stack(alone).mean(0))
    assert alone[2].eq(0).all()
