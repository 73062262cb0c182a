import copy

import numpy as np
import pytest
import torch
from modeling_f3 import F3ForAudioClassification, F3ForCTC, F3ForPreTraining, F3Model, F3StreamingState
from modeling_f3 import modeling_f3 as module
from tiny import TINY, noise, tiny_feature_extractor, tiny_tokenizer, tiny_tokenizer_config
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForPreTraining,
    Qwen3Config,
    pipeline,
)


HOP = 32


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normalised, as the autoencoder makes them."""
    drawn = torch.randn(*shape, TINY["latent_dim"], generator=torch.Generator().manual_seed(seed))
    return (drawn - drawn.mean(-1, keepdim=True)) / drawn.std(-1, unbiased=False, keepdim=True)


def test_encode_gives_latents_and_representations_of_the_same_frames():
    model = tiny_tokenizer()
    output = model.encode(noise(2, 1, 10 * HOP + 1))
    assert output.last_hidden_state.shape == (2, 11, 16) and output.latents.shape == (2, 11, 4)
    assert output.latents_mask.all() and output.audio_lengths.tolist() == [10 * HOP + 1] * 2
    audio = model.decode(output.latents, output.latents_mask, output.audio_lengths).audio_values
    assert audio.shape == (2, 1, 10 * HOP + 1)


def test_latents_that_are_known_give_the_same_representations():
    model, audio = tiny_tokenizer(), noise(2, 1, 300)
    whole = model(audio)
    again = model(latents=whole.latents, latents_mask=whole.latents_mask)
    torch.testing.assert_close(again.last_hidden_state, whole.last_hidden_state)
    assert torch.equal(again.latents, whole.latents)


def test_an_item_of_a_padded_batch_equals_the_item_alone():
    model = tiny_tokenizer()
    waveforms = [noise(length, seed=length).numpy() for length in (700, 333, 64)]
    batch = model(**tiny_feature_extractor()(waveforms, sampling_rate=800))
    for index, waveform in enumerate(waveforms):
        alone = model(**tiny_feature_extractor()(waveform, sampling_rate=800))
        frames = alone.latents.shape[1]
        torch.testing.assert_close(
            batch.last_hidden_state[index, :frames], alone.last_hidden_state[0], atol=1e-5, rtol=0
        )
        assert batch.last_hidden_state[index, frames:].abs().sum() == 0 and not batch.latents_mask[index, frames:].any()


def test_a_representation_depends_on_no_later_frame():
    model, z = tiny_tokenizer(), latents(1, 12)
    changed = z.clone()
    changed[:, 7:] = latents(1, 5, seed=1)
    before, after = (model(latents=item).last_hidden_state for item in (z, changed))
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.equal(before[:, 7:], after[:, 7:])


def test_the_window_limits_how_far_a_representation_looks_back():
    model, z = tiny_tokenizer(), latents(1, 20)
    changed = z.clone()
    changed[:, 0] = latents(1, 1, seed=1)[:, 0]
    before, after = (model(latents=item).last_hidden_state for item in (z, changed))
    reach = 2 * (6 - 1)  # two layers, each of which sees five frames back
    assert torch.allclose(before[:, reach + 1 :], after[:, reach + 1 :], atol=1e-6)
    assert not torch.allclose(before[:, :reach], after[:, :reach], atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_streaming_equals_offline_for_any_chunking(seed):
    model, audio = tiny_tokenizer(), noise(2, 1, 900)
    whole = model(audio)
    rng, position, cache, state, streamed = np.random.default_rng(seed), 0, None, F3StreamingState(), []
    while position < 900:
        size = int(rng.choice([0, 1, 7, 31, 100, 400]))
        position, start = min(900, position + size), position
        output = model.stream_encode(audio[:, :, start:position], state, cache, flush=position == 900)
        cache = output.past_key_values
        streamed.append(output)
    for name in ("last_hidden_state", "latents"):
        together = torch.cat([getattr(output, name) for output in streamed], dim=1)
        torch.testing.assert_close(together, getattr(whole, name), atol=1e-5, rtol=0)


def test_the_memory_of_a_stream_does_not_grow():
    model, cache, state, sizes = tiny_tokenizer(), None, F3StreamingState(), []
    for seed in range(12):
        cache = model.stream_encode(noise(1, 1, 4 * HOP, seed=seed), state, cache).past_key_values
        sizes.append(sum(layer.keys.numel() for layer in cache.layers) + sum(t.numel() for t in state.tensors.values()))
    assert len(set(sizes[2:])) == 1


def test_a_copied_stream_goes_on_independently():
    model, audio = tiny_tokenizer(), noise(1, 1, 20 * HOP)
    state = F3StreamingState()
    cache = model.stream_encode(audio[..., : 10 * HOP], state).past_key_values
    copied, copied_cache = state.copy(), copy.deepcopy(cache)
    first = model.stream_encode(audio[..., 10 * HOP :], state, cache, flush=True)
    second = model.stream_encode(audio[..., 10 * HOP :], copied, copied_cache, flush=True)
    assert torch.equal(first.last_hidden_state, second.last_hidden_state)


def test_long_audio_is_read_in_pieces_with_the_same_result(monkeypatch):
    model, z = tiny_tokenizer(), latents(2, 33)
    whole = model(latents=z).last_hidden_state
    monkeypatch.setattr(module, "FRAMES_PER_PIECE", 8)
    with torch.no_grad():
        pieces = model.encode(latents=z)
    torch.testing.assert_close(pieces.last_hidden_state, whole, atol=1e-5, rtol=0)
    assert pieces.past_key_values is None


def test_eager_and_sdpa_attention_agree_and_layers_can_be_seen():
    model, z = tiny_tokenizer(), latents(2, 15)
    fused = model(latents=z).last_hidden_state
    model.set_attn_implementation("eager")
    output = model(latents=z, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(output.last_hidden_state, fused, atol=1e-5, rtol=0)
    assert len(output.hidden_states) == 3 and output.hidden_states[0].shape == (2, 15, 16)
    assert len(output.attentions) == 2 and output.attentions[0].shape == (2, 4, 15, 15)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_can_be_chosen_on_loading(attention, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    model = F3Model.from_pretrained(tmp_path, attn_implementation=attention)
    assert model.encoder.body.config._attn_implementation == attention


def test_bf16_keeps_the_decoder_in_fp32_and_stays_close(tmp_path):
    model = tiny_tokenizer()
    model.save_pretrained(tmp_path)
    half = F3Model.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {p.dtype for p in half.autoencoder.decoder.parameters()} == {torch.float32}
    assert {p.dtype for p in half.encoder.parameters()} == {torch.bfloat16}
    z = latents(1, 10)
    close = torch.nn.functional.cosine_similarity(
        half(latents=z).last_hidden_state.float(), model(latents=z).last_hidden_state, dim=-1
    )
    assert close.min() > 0.99


def test_any_causal_decoder_can_be_the_body():
    config = tiny_tokenizer_config()
    body = Qwen3Config(
        vocab_size=1, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4,
    )  # fmt: skip
    config = type(config)(autoencoder_config=dict(TINY), encoder_config=body.to_dict())
    model = F3Model(config).eval()
    z = latents(1, 9)
    whole = model(latents=z, use_cache=True)
    start = model(latents=z[:, :4], use_cache=True)
    rest = model(latents=z[:, 4:], past_key_values=start.past_key_values, use_cache=True)
    torch.testing.assert_close(rest.last_hidden_state, whole.last_hidden_state[:, 4:], atol=1e-5, rtol=0)


def test_waveform_and_latents_together_are_refused():
    with pytest.raises(ValueError, match="either input_values"):
        tiny_tokenizer()(noise(1, 1, 100), latents=latents(1, 3))
    with pytest.raises(ValueError, match="either input_values"):
        tiny_tokenizer()()
    with pytest.raises(ValueError, match=r"\[batch, frames, 4\]"):
        tiny_tokenizer()(latents=torch.randn(1, 3, 5))


@pytest.mark.parametrize(
    "auto_class, model_class, options",
    [
        (AutoModel, F3Model, {}),
        (AutoModelForPreTraining, F3ForPreTraining, {}),
        (AutoModelForAudioClassification, F3ForAudioClassification, {"num_labels": 3}),
        (AutoModelForCTC, F3ForCTC, {"vocab_size": 7}),
    ],
)
def test_each_class_loads_by_its_auto_class_with_the_autoencoder_frozen(auto_class, model_class, options, tmp_path):
    model = tiny_tokenizer(model_class, **options)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is model_class
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    trainable = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trainable and not any("autoencoder." in name for name in trainable)


def test_a_head_may_start_at_random_and_nothing_else(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert F3ForCTC.from_pretrained(tmp_path / "tokenizer", vocab_size=7).lm_head.out_features == 7
    lacking = tiny_tokenizer(F3ForCTC, vocab_size=7)
    weights = {name: tensor for name, tensor in lacking.state_dict().items() if "layers.1" not in name}
    lacking.save_pretrained(tmp_path / "lacking", state_dict=weights)
    with pytest.raises(RuntimeError, match="lacks 9 weights of F3ForCTC"):
        F3ForCTC.from_pretrained(tmp_path / "lacking")


def test_codes_are_predicted_only_if_asked_for():
    model = tiny_tokenizer(F3ForPreTraining).eval()
    latents = noise(2, 9, 4)
    output = model(latents=latents, return_loss=False, output_hidden_states=True)
    assert output.loss is output.logits is output.codes is None
    expected = model(latents=latents, output_hidden_states=True)
    assert expected.loss > 0 and torch.equal(output.hidden_states[-1], expected.hidden_states[-1])


def test_training_leaves_the_autoencoder_as_it_was(tmp_path):
    model = tiny_tokenizer(F3ForPreTraining).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        model(noise(2, 1, 400)).loss.backward()
        optimizer.step()
    frozen = [name for name in before if "autoencoder." in name or "quantizer." in name]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in frozen)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(not torch.equal(model.state_dict()[name], before[name]) for name in learned)


def test_gradient_checkpointing_changes_no_gradient():
    z, gradients = latents(2, 12), []
    for checkpointing in (False, True):
        model = tiny_tokenizer(F3ForPreTraining).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(latents=z, noise=torch.zeros_like(z)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_noise_reaches_the_encoder_in_training_only():
    model, z = tiny_tokenizer(F3ForPreTraining, latent_noise_probability=1.0), latents(2, 12)
    assert torch.equal(model(latents=z).loss, model(latents=z).loss)
    model.train()
    first, second = model(latents=z), model(latents=z)
    assert not torch.equal(first.loss, second.loss) and torch.equal(first.codes, second.codes)


def test_classes_of_a_padded_batch_equal_those_of_the_items_alone():
    model = tiny_tokenizer(F3ForAudioClassification, num_labels=3)
    waveforms = [noise(length, seed=length).numpy() for length in (700, 100)]
    batch = model(**tiny_feature_extractor()(waveforms, sampling_rate=800), labels=torch.tensor([0, 2]))
    alone = [model(**tiny_feature_extractor()(waveform, sampling_rate=800)).logits for waveform in waveforms]
    torch.testing.assert_close(batch.logits, torch.cat(alone), atol=1e-5, rtol=0)
    assert batch.loss > 0


def test_ctc_learns_an_utterance_by_heart():
    model = tiny_tokenizer(F3ForCTC, vocab_size=5).train()
    z, labels = latents(2, 16), torch.tensor([[1, 2, 3, 4], [4, 4, -100, -100]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = model(latents=z, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    best = model.eval()(latents=z).logits.argmax(-1)
    for row, wanted in zip(best.tolist(), ([1, 2, 3, 4], [4, 4])):
        collapsed = [token for token, previous in zip(row, [None, *row]) if token != previous]
        assert [token for token in collapsed if token != 0] == wanted


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.ones(3, 4, dtype=torch.long), r"must be \[2, tokens\]"),
        (torch.full((2, 4), 9), "beyond the vocabulary of 5"),
        (torch.ones(2, 20, dtype=torch.long), r"labels of rows \[0, 1\] are longer"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_tokenizer(F3ForCTC, vocab_size=5)(latents=latents(2, 16), labels=labels)


def test_class_labels_that_do_not_fit_and_a_missing_vocabulary_are_refused():
    with pytest.raises(ValueError, match="one class for each of 2 items"):
        tiny_tokenizer(F3ForAudioClassification)(latents=latents(2, 16), labels=torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="needs config.vocab_size"):
        tiny_tokenizer(F3ForCTC)


def test_the_pipeline_classifies_audio():
    model = tiny_tokenizer(F3ForAudioClassification, num_labels=2)
    model.config.id2label, model.config.label2id = {0: "speech", 1: "music"}, {"speech": 0, "music": 1}
    classify = pipeline("audio-classification", model=model, feature_extractor=tiny_feature_extractor())
    found = classify({"raw": noise(800).numpy(), "sampling_rate": 800})
    assert {row["label"] for row in found} == {"speech", "music"}
    assert sum(row["score"] for row in found) == pytest.approx(1.0, abs=1e-4)
