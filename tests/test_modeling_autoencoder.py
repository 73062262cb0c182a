import json
import random

import modeling_f3.modeling_autoencoder as modeling_autoencoder
import pytest
import torch
from modeling_f3 import F3AutoencoderModel, F3FeatureExtractor, F3StreamingState
from safetensors.torch import load_file, save_file
from tiny import TINY_LADDER, noise, tiny_config, tiny_feature_extractor, tiny_model
from transformers import AutoModel, AutoModelForAudioTokenization


TOLERANCE = 1e-4
VARIANTS = [{}, TINY_LADDER]


@pytest.fixture(params=VARIANTS, ids=["tiny", "tiny ladder"])
def model(request) -> F3AutoencoderModel:
    return tiny_model(**request.param)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual, expected, atol=TOLERANCE, rtol=0)


# encode and decode


def test_encode_is_deterministic_in_both_modes(model):
    audio = noise(1, 1, 200)
    first = model.encode(audio).latents
    torch.rand(7)
    assert torch.equal(model.encode(audio).latents, first)
    assert torch.equal(model.train().encode(audio).latents, first)


def test_latents_are_normalised_per_frame(model):
    latents = model.encode(noise(2, 1, 500)).latents
    torch.testing.assert_close(latents.mean(-1), torch.zeros(latents.shape[:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(-1, unbiased=False), torch.ones(latents.shape[:2]), atol=2e-2, rtol=0)


def test_every_length_comes_back_exactly(model):
    for samples in range(1, 3 * model.config.hop_length + 2):
        encoded = model.encode(noise(1, 1, samples))
        assert encoded.latents.shape == (1, -(-samples // model.config.hop_length), model.config.latent_dim)
        assert encoded.latents_mask.all() and encoded.audio_lengths.tolist() == [samples]
        decoded = model.decode(**encoded)
        assert decoded.audio_values.shape == (1, 1, samples)
        assert close(model(noise(1, 1, samples)).audio_values, decoded.audio_values)


def test_decode_without_lengths_gives_whole_frames(model):
    latents = model.encode(noise(1, 1, 1)).latents
    assert model.decode(latents).audio_values.shape == (1, 1, model.config.hop_length)


def test_a_padded_batch_equals_one_by_one(model):
    hop = model.config.hop_length
    waveforms = [noise(samples, seed=samples) for samples in (1, hop - 1, hop, 2 * hop + 5, 7 * hop, 7 * hop + 1)]
    extractor = F3FeatureExtractor(model.config.sampling_rate)
    batch = extractor([waveform.numpy() for waveform in waveforms], sampling_rate=model.config.sampling_rate)
    batch["input_values"][0, 0, 1:] = 0.5  # what lies on the padding must not matter
    encoded, reconstructed = model.encode(**batch), model(**batch)
    decoded = model.decode(**encoded)
    for index, waveform in enumerate(waveforms):
        single = model.encode(waveform[None, None])
        frames, samples = single.latents.shape[1], len(waveform)
        assert encoded.latents_mask[index].tolist() == [True] * frames + [False] * (
            len(encoded.latents[index]) - frames
        )
        assert close(encoded.latents[index, :frames], single.latents[0])
        assert not encoded.latents[index, frames:].any()
        audio = model.decode(**single).audio_values[0, 0]
        for output in (decoded, reconstructed):
            assert output.audio_lengths[index] == samples
            assert close(output.audio_values[index, 0, :samples], audio)
            assert not output.audio_values[index, 0, samples:].any()


def test_the_future_does_not_reach_back(model):
    hop = model.config.hop_length
    audio, changed = noise(1, 1, 8 * hop), noise(1, 1, 8 * hop)
    changed[..., 5 * hop :] = 0
    assert close(model.encode(audio).latents[:, :5], model.encode(changed).latents[:, :5])
    latents = model.encode(audio).latents
    heard = (8 - model.config.decoder_lookahead - 1) * hop
    shorter = model.decode(latents[:, :-1]).audio_values
    assert close(model.decode(latents).audio_values[..., :heard], shorter[..., :heard])


def test_long_audio_in_pieces_equals_the_whole(model, monkeypatch):
    hop = model.config.hop_length
    audio = noise(2, 1, 23 * hop + 3)
    mask = torch.ones(2, audio.shape[-1])
    mask[1, 9 * hop + 1 :] = 0
    whole = model.encode(audio, mask)
    whole_audio = model.decode(**whole).audio_values
    for frames in (1, 2, 5, 23):
        monkeypatch.setattr(modeling_autoencoder, "FRAMES_PER_PIECE", frames)
        pieces = model.encode(audio, mask)
        assert close(pieces.latents, whole.latents)
        assert close(model.decode(**pieces).audio_values, whole_audio)


def test_ten_minutes_are_worked_through_in_pieces_of_one_size():
    model = tiny_model()
    longest = 0

    def record(module, inputs):
        nonlocal longest
        longest = max(longest, inputs[0].shape[1])

    model.encoder.register_forward_pre_hook(record)
    audio = noise(1, 1, 600 * model.config.sampling_rate)
    encoded = model.encode(audio)
    assert longest == modeling_autoencoder.FRAMES_PER_PIECE * model.config.hop_length
    longest = 0
    model.decoder.register_forward_pre_hook(record)
    assert model.decode(**encoded).audio_values.shape == audio.shape
    assert longest == modeling_autoencoder.FRAMES_PER_PIECE


def test_training_mode_decodes_noisy_latents():
    model = tiny_model(clean_probability=0.0).train()
    audio = noise(2, 1, 300)
    torch.manual_seed(1)
    first = model(audio)
    torch.manual_seed(1)
    assert torch.equal(model(audio).audio_values, first.audio_values)
    torch.manual_seed(2)
    assert not close(model(audio).audio_values, first.audio_values)
    assert torch.equal(first.latents, model.eval()(audio).latents)
    assert close(model(audio).audio_values, model.decode(**model.encode(audio)).audio_values)


def test_noise_can_be_given():
    model = tiny_model().train()
    audio = noise(2, 1, 300)
    clean = model(audio, noise=torch.zeros(2, 10, 4))
    assert close(clean.audio_values, model.decode(**model.encode(audio)).audio_values)
    assert torch.equal(
        model(audio, noise=noise(2, 10, 4)).audio_values, model(audio, noise=noise(2, 10, 4)).audio_values
    )


# streaming


def cut(total: int, seed: int) -> list[int]:
    """Chunk sizes that add up to `total`: many single samples, some empty chunks, some long ones."""
    draw, sizes = random.Random(seed), []
    while sum(sizes) < total:
        sizes.append(min(draw.choice([0, 1, 1, 2, 7, 31, 100]), total - sum(sizes)))
    return sizes


def stream_encode(model, audio, sizes, state=None) -> torch.Tensor:
    state = F3StreamingState() if state is None else state
    latents = [model.stream_encode(chunk, state).latents for chunk in audio.split(sizes, dim=-1)]
    return torch.cat([*latents, model.stream_encode(audio[..., :0], state, flush=True).latents], dim=1)


def stream_decode(model, latents, sizes, state=None) -> torch.Tensor:
    state = F3StreamingState() if state is None else state
    audio = [model.stream_decode(chunk, state).audio_values for chunk in latents.split(sizes, dim=1)]
    return torch.cat([*audio, model.stream_decode(latents[:, :0], state, flush=True).audio_values], dim=-1)


@pytest.mark.parametrize("seed", range(5))
def test_streaming_equals_offline_for_random_chunks(model, seed):
    samples = 9 * model.config.hop_length + random.Random(seed).randrange(model.config.hop_length)
    audio = noise(2, 1, samples, seed=seed)
    encoded = model.encode(audio)
    assert close(stream_encode(model, audio, cut(samples, seed)), encoded.latents)
    frames = encoded.latents.shape[1]
    assert close(
        stream_decode(model, encoded.latents, cut(frames, seed))[..., :samples], model.decode(**encoded).audio_values
    )


def test_streaming_equals_offline_sample_by_sample(model):
    samples = 2 * model.config.hop_length + 1
    audio = noise(1, 1, samples)
    encoded = model.encode(audio)
    assert close(stream_encode(model, audio, [1] * samples), encoded.latents)
    decoded = stream_decode(model, encoded.latents, [1] * 3)
    assert decoded.shape[-1] == 3 * model.config.hop_length
    assert close(decoded[..., :samples], model.decode(**encoded).audio_values)


def test_the_last_chunk_may_come_with_the_flush(model):
    audio = noise(1, 1, 100)
    state = F3StreamingState()
    latents = [model.stream_encode(audio[..., :40], state).latents]
    latents.append(model.stream_encode(audio[..., 40:], state, flush=True).latents)
    assert close(torch.cat(latents, dim=1), model.encode(audio).latents)
    assert not state.tensors


def test_samples_come_out_as_soon_as_the_lookahead_has_passed(model):
    latents = model.encode(noise(1, 1, 6 * model.config.hop_length)).latents
    state = F3StreamingState()
    lengths = [model.stream_decode(latents[:, t : t + 1], state).audio_values.shape[-1] for t in range(6)]
    lookahead = model.config.decoder_lookahead
    assert lengths == [0] * lookahead + [model.config.hop_length] * (6 - lookahead)


def test_a_flushed_state_starts_another_stream(model):
    audio, state = noise(1, 1, 150), F3StreamingState()
    first = stream_encode(model, audio, [150], state)
    assert torch.equal(stream_encode(model, audio, [150], state), first)
    latents, state = first, F3StreamingState()
    first = stream_decode(model, latents, [latents.shape[1]], state)
    assert torch.equal(stream_decode(model, latents, [latents.shape[1]], state), first)


@pytest.mark.parametrize("way", ["copy", "save and load"])
def test_a_stream_goes_on_from_a_copied_or_saved_state(model, way, tmp_path):
    def continued(state: F3StreamingState) -> F3StreamingState:
        if way == "copy":
            return state.copy()
        state.save(tmp_path / "state.safetensors")
        return F3StreamingState.load(tmp_path / "state.safetensors")

    audio = noise(2, 1, 5 * model.config.hop_length + 3)
    half = 2 * model.config.hop_length + 11
    encoded = model.encode(audio)

    state = F3StreamingState()
    before = model.stream_encode(audio[..., :half], state).latents
    twin = continued(state)
    for branch in (state, twin):  # the first must not disturb the second
        after = stream_encode(model, audio[..., half:], [audio.shape[-1] - half], branch)
        assert close(torch.cat([before, after], dim=1), encoded.latents)

    state = F3StreamingState()
    before = model.stream_decode(encoded.latents[:, :3], state).audio_values
    twin = continued(state)
    for branch in (state, twin):
        after = stream_decode(model, encoded.latents[:, 3:], [encoded.latents.shape[1] - 3], branch)
        whole = torch.cat([before, after], dim=-1)[..., : audio.shape[-1]]
        assert close(whole, model.decode(**encoded).audio_values)


def test_a_state_does_not_grow_with_the_stream(model):
    def numbers(state: F3StreamingState) -> int:
        return sum(tensor.numel() for tensor in state.tensors.values())

    hop = model.config.hop_length
    encoder_state, decoder_state, encoder_sizes, decoder_sizes = F3StreamingState(), F3StreamingState(), set(), set()
    for step in range(30):
        latents = model.stream_encode(noise(1, 1, hop), encoder_state).latents
        model.stream_decode(latents, decoder_state)
        if step >= 5:
            encoder_sizes.add(numbers(encoder_state))
            decoder_sizes.add(numbers(decoder_state))
    assert len(encoder_sizes) == len(decoder_sizes) == 1
    storage = sum(tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in encoder_state.tensors.values())
    assert storage == numbers(encoder_state)  # no view that keeps a whole chunk alive


def test_another_batch_size_in_mid_stream_is_refused(model):
    state = F3StreamingState()
    model.stream_encode(noise(2, 1, 3 * model.config.hop_length + 1), state)
    before = state.copy()
    with pytest.raises(ValueError, match="one state per batch"):
        model.stream_encode(noise(1, 1, 50), state)
    assert state.tensors.keys() == before.tensors.keys()

    state = F3StreamingState()
    model.stream_decode(noise(2, 3, model.config.latent_dim), state)
    with pytest.raises(ValueError, match="one state per batch"):
        model.stream_decode(noise(1, 3, model.config.latent_dim), state)


# input that does not fit


@pytest.mark.parametrize(
    "audio",
    [noise(100), noise(1, 100), noise(1, 2, 100), noise(1, 1, 1, 100), torch.ones(1, 1, 100, dtype=torch.int16)],
)
def test_audio_of_another_shape_or_type_is_refused(audio):
    model = tiny_model()
    for call in (model.encode, model, lambda wrong: model.stream_encode(wrong, F3StreamingState())):
        with pytest.raises(ValueError, match=r"\[batch, 1, samples\].*F3FeatureExtractor"):
            call(audio)


def test_empty_audio_is_refused():
    for shape in ((1, 1, 0), (0, 1, 10)):
        with pytest.raises(ValueError, match="no audio"):
            tiny_model().encode(torch.zeros(shape))


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.ones(2, 99), "does not fit"),
        (torch.ones(1, 100), "does not fit"),
        (torch.ones(2, 1, 100), "does not fit"),
        (torch.zeros(2, 100), "no samples of item 0"),
        (torch.ones(2, 100).index_fill(1, torch.tensor([0]), 0), "pad at the end"),
        (torch.ones(2, 100).index_fill(1, torch.tensor([50]), 0), "pad at the end"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=f"padding_mask.*{message}"):
        tiny_model().encode(noise(2, 1, 100), mask)


@pytest.mark.parametrize(
    "latents", [noise(3, 4), noise(1, 3, 5), noise(1, 4, 3), torch.ones(1, 3, 4, dtype=torch.int64)]
)
def test_latents_of_another_width_or_type_are_refused(latents):
    model = tiny_model()
    for call in (model.decode, lambda wrong: model.stream_decode(wrong, F3StreamingState())):
        with pytest.raises(ValueError, match=r"\[batch, frames, 4\]"):
            call(latents)


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.ones(2, 4), "does not fit"),
        (torch.zeros(2, 3), "no frames"),
        (torch.tensor([[0, 1, 1], [1, 1, 1]]), "pad at the end"),
    ],
)
def test_latents_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=f"latents_mask.*{message}"):
        tiny_model().decode(noise(2, 3, 4), mask)


@pytest.mark.parametrize("lengths", [[97, 1], [10], [10, -1], [[10, 10]]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="audio_lengths"):
        tiny_model().decode(noise(2, 3, 4), audio_lengths=torch.tensor(lengths))


def test_no_latents_are_refused():
    with pytest.raises(ValueError, match="no frames"):
        tiny_model().decode(noise(1, 0, 4))


# save and load


def test_saved_and_loaded_models_are_equal(model, tmp_path):
    audio = noise(1, 1, 200)
    model.save_pretrained(tmp_path)
    assert sorted(file.suffix for file in tmp_path.iterdir() if file.suffix != ".py") == [".json", ".safetensors"]
    for auto_class in (F3AutoencoderModel, AutoModel, AutoModelForAudioTokenization):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is F3AutoencoderModel and not loaded.training
        for actual, expected in zip(loaded(audio).to_tuple(), model(audio).to_tuple()):
            assert torch.equal(actual, expected)


def test_feature_extractor_and_model_go_together():
    features = tiny_feature_extractor()([[0.1, 0.2], [0.3]], sampling_rate=800)
    assert tiny_model()(**features).audio_lengths.tolist() == [2, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_the_decoder_in_fp32(model, dtype, tmp_path):
    audio = noise(1, 1, 200)
    model.save_pretrained(tmp_path)
    half = F3AutoencoderModel.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.encoder.parameters()} == {dtype}
    assert {parameter.dtype for parameter in half.decoder.parameters()} == {torch.float32}
    latents = model.encode(audio).latents
    assert close(half.decode(latents).audio_values, model.decode(latents).audio_values)
    encoded = half.encode(audio.to(dtype))
    assert (encoded.latents - latents).abs().mean() < 0.05
    assert half(audio).audio_values.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_are_right_after_loading(model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = F3AutoencoderModel.from_pretrained(tmp_path, dtype=dtype)
    expected = dict(model.named_buffers())
    assert expected
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, expected[name]), name


def test_saving_over_an_older_checkpoint_replaces_it(tmp_path):
    tiny_model(seed=0).save_pretrained(tmp_path)
    newer = tiny_model(seed=1)
    newer.save_pretrained(tmp_path)
    loaded = F3AutoencoderModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.stem.weight, newer.encoder.stem.weight)


def test_saving_to_a_file_is_refused(tmp_path):
    file = tmp_path / "model"
    file.write_text("")
    for saved in (tiny_model(), tiny_config(), tiny_feature_extractor()):
        with pytest.raises(NotADirectoryError, match="is a file"):
            saved.save_pretrained(file)


# checkpoints that cannot be trusted


@pytest.fixture
def weights(tmp_path):
    """The weights file of a saved model."""
    tiny_model().save_pretrained(tmp_path)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("auto_class", [F3AutoencoderModel, AutoModel])
@pytest.mark.parametrize("kept", [0, 4, 500, 0.5, 0.999])
def test_truncated_weights_are_refused(weights, kept, auto_class):
    content = weights.read_bytes()
    weights.write_bytes(content[: int(kept if isinstance(kept, int) else kept * len(content))])
    with pytest.raises(OSError, match="download or save them again"):
        auto_class.from_pretrained(weights.parent)


def test_garbage_instead_of_weights_is_refused(weights):
    weights.write_bytes(b"\x80\x02}q\x00." * 100)
    with pytest.raises(OSError, match="download or save them again"):
        F3AutoencoderModel.from_pretrained(weights.parent)


@pytest.mark.parametrize("auto_class", [F3AutoencoderModel, AutoModel])
def test_missing_weights_are_refused_not_drawn(weights, auto_class):
    tensors = load_file(weights)
    del tensors["encoder.stem.weight"], tensors["decoder.head.bias"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(RuntimeError, match="lacks 2 weights .*decoder.head.bias, encoder.stem.weight"):
        auto_class.from_pretrained(weights.parent)
    model, info = auto_class.from_pretrained(weights.parent, output_loading_info=True)
    assert info["missing_keys"] == {"encoder.stem.weight", "decoder.head.bias"}
    assert torch.equal(model.encoder.stem.bias, tensors["encoder.stem.bias"])  # its sibling survives


def test_renamed_weights_are_refused(weights):
    tensors = load_file(weights)
    tensors["encoder.stem.renamed"] = tensors.pop("encoder.stem.weight")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(RuntimeError, match="encoder.stem.weight"):
        F3AutoencoderModel.from_pretrained(weights.parent)


def test_weights_of_another_shape_are_refused(weights):
    tensors = load_file(weights)
    tensors["encoder.stem.bias"] = torch.zeros(5)
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        F3AutoencoderModel.from_pretrained(weights.parent)


def test_a_config_of_another_model_is_refused(weights):
    file = weights.parent / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "encoder_channels": 8}))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        F3AutoencoderModel.from_pretrained(weights.parent)


def test_a_folder_without_weights_is_refused(weights):
    weights.unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        F3AutoencoderModel.from_pretrained(weights.parent)
