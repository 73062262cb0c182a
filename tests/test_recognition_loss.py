from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from f3_training.audio_dataset import decode_audio
from f3_training.pinned_wheels import unpacked
from f3_training.prepare_recognizer import WEIGHTS, WHISPER_TINY, convert
from f3_training.recognition_loss import RecognitionLoss
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory) -> str:
    """A Whisper that has learned nothing."""
    layers = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    folder = str(tmp_path_factory.mktemp("whisper"))
    config = WhisperConfig(vocab_size=60_000, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, **layers)
    WhisperModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loss(recognizer) -> RecognitionLoss:
    return RecognitionLoss(recognizer, 16_000)


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    recording = Path(__file__).parent / "fixtures" / "tt-allbusy.flac"
    return torch.from_numpy(decode_audio({"bytes": recording.read_bytes(), "path": recording.name}, 16_000))


def whisper_features(samples: torch.Tensor) -> torch.Tensor:
    return WhisperFeatureExtractor()(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_features


def test_it_hears_what_whisper_hears(loss, recognizer, speech):
    padded = torch.nn.functional.pad(speech, (0, 480_000 - len(speech)))
    features = whisper_features(speech)
    assert torch.allclose(loss.log_mel(padded[None]), features, atol=1e-5)
    with torch.no_grad():
        states = WhisperModel.from_pretrained(recognizer).encoder(features).last_hidden_state
        assert torch.allclose(loss.states(padded[None]), states, atol=1e-4)


def test_a_sound_looks_alike_at_any_sampling_rate(loss, recognizer):
    seconds = torch.arange(48_000) / 48_000
    chord = sum(0.1 * torch.sin(2 * torch.pi * pitch * seconds) for pitch in (220, 550, 1300, 4100))[None]
    pictures = [RecognitionLoss(recognizer, 16_000 * k).log_mel(chord[:, :: 3 // k]) for k in (1, 3)]
    # those bands that anything is in: what leaks into the others is where rates differ
    heard = pictures[0][:, :, 5:-5] > 0.5
    assert heard.any() and (pictures[0] - pictures[1])[:, :, 5:-5][heard].abs().max() < 0.05


def test_equal_sounds_have_no_distance_and_silence_has_finite_gradients(loss, speech):
    assert loss(speech[None, :20_480], speech[None, :20_480]).item() == 0
    silence = torch.zeros(2, 4801, requires_grad=True)
    loss(silence, 0.1 * torch.randn(2, 4801)).sum().backward()
    assert torch.isfinite(silence.grad).all()


def test_only_the_estimate_learns(loss, speech):
    estimate, target = (speech[None, start : start + 8000].clone().requires_grad_() for start in (0, 8000))
    loss(estimate, target).backward()
    assert estimate.grad.abs().max() > 0 and target.grad is None
    assert not any(weight.requires_grad for weight in loss.parameters())


def test_items_of_a_batch_do_not_hear_each_other(loss, speech):
    estimates, targets = speech[:16_000].view(2, 8000), speech[16_000:32_000].view(2, 8000)
    each = [loss(estimates[k : k + 1], targets[k : k + 1]) for k in range(2)]
    assert torch.allclose(loss(estimates, targets), torch.cat(each), rtol=1e-4)


@pytest.fixture(scope="module")
def whisper_tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recognizer") / "whisper-tiny.en"
    convert(unpacked(WHISPER_TINY) / WEIGHTS, folder)
    return folder


def test_the_converted_whisper_is_the_one_of_the_wheel(whisper_tiny, speech):
    features = whisper_features(speech)
    original = ctranslate2.models.Whisper(str((unpacked(WHISPER_TINY) / WEIGHTS).parent), compute_type="float32")
    wanted = torch.from_numpy(np.array(original.encode(ctranslate2.StorageView.from_array(features.numpy()))))
    converted = WhisperModel.from_pretrained(whisper_tiny).eval()
    with torch.no_grad():
        assert torch.allclose(converted.encoder(features).last_hidden_state, wanted, atol=1e-2)
        prompt = torch.tensor([[50257, 50362]])  # start of transcript, no timestamps; `align` adds the latter
        logits = (
            converted(features, decoder_input_ids=prompt).last_hidden_state @ converted.decoder.embed_tokens.weight.T
        )
    probability, token = logits[0, -1].softmax(-1).max(0)
    heard = ctranslate2.StorageView.from_array(features.numpy())
    (aligned,) = original.align(heard, [50257], [[token.item()]], 300)
    assert probability > 0.1 and aligned.text_token_probs[0] == pytest.approx(probability.item(), abs=0.002)


def test_whisper_hears_less_of_what_is_worse(whisper_tiny, speech):
    loss = RecognitionLoss(str(whisper_tiny), 16_000)
    noise = torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heard = [loss((speech + level * noise)[None], speech[None]).item() for level in (0.001, 0.01, 0.1)]
        quieter = loss(0.7 * speech[None], speech[None]).item()
    assert 0 < quieter < heard[0] < heard[1] < heard[2] < 2
