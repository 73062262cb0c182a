import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from f3_training.following import (
    FORMER,
    Following,
    PairsCollator,
    exchange_autoencoder,
    least_squares,
    paired,
    read_estimates,
)
from f3_training.latents_batches import BatchRandomness, LatentsCollator
from f3_training.latents_cache import LatentsCacheError, load_latents
from f3_training.latents_training import described
from f3_training.representation import RepresentationArguments
from f3_training.representation_training import train_representation
from modeling_f3 import F3AudioLMForConditionalGeneration, F3AutoencoderModel, F3ForPreTraining
from tiny import (
    noise,
    tiny_audio_lm,
    tiny_flow_config,
    tiny_listener_config,
    tiny_model,
    tiny_processor,
    tiny_text_tokenizer,
    tiny_tokenizer,
    write_latents,
)


def learned_on() -> F3AutoencoderModel:
    """The tiny autoencoder after some training, as it were: all it hears is still there, elsewhere; its decoder is shorter."""
    model, angle = tiny_model(decoder_stages=((2, 2, 4),)), 0.6
    model.encoder.load_state_dict(tiny_model().encoder.state_dict())
    turn = torch.eye(4) * math.cos(angle) + torch.tensor([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]]) * (
        math.sin(angle)
    )
    with torch.no_grad():
        for layer in (model.encoder.projection.shortcut, model.encoder.projection.output):
            layer.weight.copy_(torch.einsum("ij,j...->i...", turn, layer.weight))
            layer.bias.copy_(turn @ layer.bias)
        model.decoder.head.bias.add_(0.1)
    return model


def sounds(count: int, seed: int) -> list[dict]:
    return [
        {"audio": noise(400 + 32 * index, seed=seed + index).numpy(), "kind": "speech", "language": "en",
         "text": "yes", "caption": "", "source": "game"}
        for index in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Latents of the same rows by the former autoencoder, in `former`, and by the new one, in `new`."""
    folder = tmp_path_factory.mktemp("data")
    rows = {"train": sounds(20, seed=0), "validation": sounds(4, seed=100)}
    for name, autoencoder in (("former", tiny_model()), ("new", learned_on())):
        write_latents(folder / name, autoencoder, rows)
    return folder


def arguments(data, init_from, output_dir, **values) -> RepresentationArguments:
    defaults = {
        "latents": [str(data / "new" / "latents")], "former_latents": [str(data / "former" / "latents")],
        "autoencoder": str(data / "new" / "autoencoder"), "init_from": str(init_from), "output_dir": str(output_dir),
        "max_steps": 30, "batch_size": 4, "warmup_steps": 0, "evaluation_steps": 30, "learning_rate": 1e-2, "bf16": False,
    }  # fmt: skip
    return RepresentationArguments(**{**defaults, **values})


def history(output_dir) -> list[dict]:
    return json.loads((output_dir / "training.json").read_text())["history"]


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name


def test_a_tokenizer_follows_to_the_autoencoder_that_learned_on(data, tmp_path):
    former = tiny_tokenizer(F3ForPreTraining)
    former.model.autoencoder.load_state_dict(tiny_model().state_dict())
    former.save_pretrained(tmp_path / "tokenizer")
    train_representation(arguments(data, tmp_path / "tokenizer", tmp_path / "run"))
    after = history(tmp_path / "run")[-1]
    assert "following_loss" in after and "code_ce_1" in after
    followed = F3ForPreTraining.from_pretrained(tmp_path / "run" / "model").eval()
    assert_same(followed.model.autoencoder.state_dict(), learned_on().state_dict())
    waveform = noise(1, 1, 640, seed=200)  # the loss says of held-out audio what users of the folder get
    with torch.no_grad():
        wanted = former.model(waveform).last_hidden_state
        found = followed.model(waveform).last_hidden_state
        unfollowed = former.model(latents=followed.model.autoencoder.encode(waveform).latents).last_hidden_state
    error, unfollowed_error = ((other - wanted).square().mean() for other in (found, unfollowed))
    assert error < 0.5 * unfollowed_error


def test_a_model_that_speaks_hears_both_kinds_of_latents_and_says_what_it_said(data, tmp_path):
    parts = {"flow_config": tiny_flow_config(), "listener_config": tiny_listener_config()}
    speaker = tiny_audio_lm(tmp_path / "parts", **parts, code_loss_weight=0.0)
    speaker.listener.learn_spelling(tiny_text_tokenizer())
    speaker.audio_model.autoencoder.load_state_dict(tiny_model().state_dict())
    speaker.save_pretrained(tmp_path / "speaker")
    tiny_processor().save_pretrained(tmp_path / "speaker")
    options = {"text_loss_weight": 0.0, "code_loss_weight": 0.0, "letter_loss_weight": 0.3, "frozen": "connector"}
    train_representation(arguments(data, tmp_path / "speaker", tmp_path / "run", **options))
    before, after = history(tmp_path / "run")
    assert before["former_loss"] < 1e-6  # it begins as what it was
    assert after["following_loss"] < 0.7 * before["following_loss"] and after["former_loss"] < 0.1
    assert after["letters_loss"] < before["letters_loss"]  # of the listener, which reads latents as well
    weights = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "run" / "model").state_dict()
    encoder, learned = "audio_model.autoencoder.encoder.", ("audio_model.encoder.", "listener.")
    new = {f"audio_model.autoencoder.{name}": weight for name, weight in learned_on().state_dict().items()}
    for name, weight in speaker.state_dict().items():
        if not name.startswith(learned):
            assert torch.equal(weights[name], new[name] if name.startswith(encoder) else weight), name
    with pytest.raises(ValueError, match="--text_loss_weight 0"):
        train_representation(arguments(data, tmp_path / "speaker", tmp_path / "refused"))


def test_the_loss_is_the_error_of_the_representations_relative_to_their_spread():
    tokenizer = tiny_tokenizer(F3ForPreTraining)
    former = exchange_autoencoder(tokenizer.model, learned_on(), keep_decoder=False)
    with torch.no_grad():
        tokenizer.model.encoder.projection.weight.mul_(1.1)
    latents, old, mask = noise(2, 6, 4), noise(2, 6, 4, seed=1), torch.arange(6) < torch.tensor([[6], [4]])
    batch = {"latents": latents, "latents_mask": mask}
    alone = tokenizer(**batch)
    helper = Following(tokenizer, tokenizer.model, former, speaks=False)
    output = tokenizer(**batch, **{FORMER: old})
    wanted = former(latents=old, latents_mask=mask).last_hidden_state[mask]
    found = tokenizer.model(**batch).last_hidden_state[mask]
    expected = (found - wanted).square().mean() / wanted.var(0).mean()
    torch.testing.assert_close(output.following_loss, expected)
    torch.testing.assert_close(output.loss, alone.loss + helper.weight * expected)
    assert not any(weight.requires_grad for weight in former.parameters())
    helper.detach()
    assert torch.equal(tokenizer(**batch).loss, alone.loss)


def test_an_encoder_begins_with_what_least_squares_tell_of_the_former_latents():
    tokenizer = tiny_tokenizer(F3ForPreTraining)
    former = F.layer_norm(noise(2, 50, 4), (4,))
    latents = former @ noise(4, 4, seed=2)
    latents = 2 * (latents - latents.mean(-1, keepdim=True)) + torch.tensor([1.0, -1.0, 2.0, -2.0])
    tokenizer.prediction.quantizer.calibrate(former.flatten(0, 1))
    wanted, heard = tokenizer(latents=former), tokenizer.model(latents=former).last_hidden_state
    read_estimates(tokenizer, tokenizer.model, latents.flatten(0, 1), former.flatten(0, 1))
    found = tokenizer(latents=latents)
    torch.testing.assert_close(tokenizer.model(latents=latents).last_hidden_state, heard, atol=1e-3, rtol=1e-3)
    quantizer = tokenizer.prediction.quantizer
    in_16_bits = copy.deepcopy(quantizer).half().float()  # as published
    for codes in (found.codes, in_16_bits(latents)):
        assert (codes == wanted.codes).float().mean() > 0.95
    assert quantizer.is_calibrated and quantizer.mean.abs().max() < 5


def test_what_16_bits_leave_of_sums_that_are_zero_is_no_direction_of_its_own():
    latents = F.layer_norm(noise(200, 4), (4,)).half().float()  # as a cache keeps them
    torch.testing.assert_close(least_squares(latents, latents), torch.eye(4) - 1 / 4, atol=1e-3, rtol=0)


def test_the_exchange_keeps_the_decoder_of_a_model_that_speaks_and_refuses_other_layers():
    for keep_decoder in (True, False):
        tokenizer = tiny_tokenizer()
        before, new = copy.deepcopy(tokenizer.state_dict()), learned_on().state_dict()
        former = exchange_autoencoder(tokenizer, learned_on(), keep_decoder)
        assert_same(former.state_dict(), before)
        for name, weight in tokenizer.autoencoder.state_dict().items():
            kept = keep_decoder and name.startswith("decoder.")
            assert torch.equal(weight, before[f"autoencoder.{name}"] if kept else new[name]), name
    wider = tiny_model(encoder_projection=10)
    before = copy.deepcopy(tokenizer.state_dict())
    with pytest.raises(ValueError, match="the encoder of the autoencoder has other layers .* --init_from"):
        exchange_autoencoder(tokenizer, wider, keep_decoder=False)
    assert_same(tokenizer.state_dict(), before)


def test_both_latents_of_a_row_are_cut_at_the_same_place(data):
    new, former = (described(load_latents(data / name / "latents", "train")) for name in ("new", "former"))
    rows = paired(new, former)
    assert not np.array_equal(rows[3]["latents"], rows[3][FORMER])
    collator = PairsCollator(LatentsCollator(5, BatchRandomness(0)))
    for _ in range(5):
        batch = collator([rows[index] for index in range(4)])
        for index in range(4):
            starts = [
                start
                for start in range(len(rows[index]["latents"]) - 4)
                if np.array_equal(rows[index]["latents"][start : start + 5], batch["latents"][index])
            ]
            assert starts and any(
                np.array_equal(rows[index][FORMER][start : start + 5], batch[FORMER][index]) for start in starts
            )
    with pytest.raises(LatentsCacheError, match="not of the same rows"):
        paired(new, former.select(range(len(former) - 1, -1, -1)))


@pytest.mark.parametrize("missing", ["autoencoder", "init_from"])
def test_following_needs_a_model_and_another_autoencoder(data, tmp_path, missing):
    with pytest.raises(ValueError, match="pass both"):
        train_representation(replace(arguments(data, tmp_path, tmp_path / "run"), **{missing: None}))


def test_a_model_with_another_autoencoder_needs_the_former_latents(data, tmp_path):
    tiny_tokenizer(F3ForPreTraining).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="--former_latents"):
        train_representation(arguments(data, tmp_path / "tokenizer", tmp_path / "run", former_latents=[]))


def test_former_latents_must_be_those_of_the_model(data, tmp_path):
    stranger = tiny_tokenizer(F3ForPreTraining)
    stranger.model.autoencoder.load_state_dict(tiny_model(seed=5).state_dict())
    stranger.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(LatentsCacheError, match="latents of another autoencoder"):
        train_representation(arguments(data, tmp_path / "tokenizer", tmp_path / "run"))
