import copy

import pytest
import torch
from modeling_f3 import F3AudioLMForConditionalGeneration, F3ForPreTraining
from safetensors.torch import load_file
from tiny import noise, saved_parts, tiny_audio_lm, tiny_language_model, tiny_processor
from transformers import AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq


def question(seconds: float, answer: str | None = None, seed: int = 0) -> list[dict]:
    audio = {"type": "audio", "audio": noise(int(800 * seconds), seed=seed).numpy()}
    messages = [{"role": "user", "content": [audio, {"type": "text", "text": "What?"}]}]
    return messages + ([{"role": "assistant", "content": answer}] if answer else [])


def training_batch(*answers: str) -> dict:
    conversations = [question(0.3 + 0.2 * index, answer, index) for index, answer in enumerate(answers)]
    return dict(tiny_processor().apply_chat_template(conversations, return_labels=True, sampling_rate=800))


@pytest.fixture
def model(tmp_path) -> F3AudioLMForConditionalGeneration:
    return tiny_audio_lm(tmp_path)


def test_the_heads_of_pre_training_come_along(tmp_path):
    audio, text = saved_parts(tmp_path)
    pretrained = F3ForPreTraining.from_pretrained(audio)
    pretrained.prediction.quantizer.calibrate(2 * noise(50, 4) + 1)
    pretrained.save_pretrained(audio)
    model = F3AudioLMForConditionalGeneration.from_audio_text_pretrained(audio, text, **tiny_processor().token_ids)
    assert model.prediction.quantizer.is_calibrated
    for name, tensor in pretrained.prediction.state_dict().items():
        assert torch.equal(model.prediction.state_dict()[name], tensor), name


def test_audio_tokens_take_the_places_that_the_text_keeps_for_them(model):
    inputs = tiny_processor().apply_chat_template(question(0.5), add_generation_prompt=True, sampling_rate=800)
    tokens = model.get_audio_features(inputs["input_values"], inputs["padding_mask"]).pooler_output
    places = inputs["input_ids"][0] == model.config.audio_token_id
    assert tokens.shape == (int(places.sum()), 24) == (7, 24)  # 400 samples, 13 frames
    embeds = model._embed(inputs["input_ids"], tokens)[0]
    torch.testing.assert_close(embeds[places], tokens)
    start = inputs["input_ids"][0].tolist().index(model.config.audio_start_token_id)
    assert torch.equal(embeds[start], model.connector.start) and torch.equal(embeds[start + 8], model.connector.end)


def test_the_loss_is_the_mean_over_rows_of_the_mean_over_their_answers(model):
    batch = training_batch("yes", "a longer answer")
    output = model(**batch)
    rows = []
    for row in range(2):
        kept = batch["labels"][row, 1:] != -100
        logits, wanted = output.logits[row, :-1][kept], batch["labels"][row, 1:][kept]
        rows.append(torch.nn.functional.cross_entropy(logits, wanted))
    torch.testing.assert_close(output.text_loss, torch.stack(rows).mean())
    torch.testing.assert_close(output.loss, output.text_loss + output.code_loss)


def test_rows_of_a_batch_do_not_see_each_other(model):
    together = training_batch("yes", "a longer answer")
    logits = model(**together).logits
    for row, answer in enumerate(("yes", "a longer answer")):
        conversation = [question(0.3 + 0.2 * row, answer, row)]
        alone = tiny_processor().apply_chat_template(conversation, return_labels=True, sampling_rate=800)
        length = alone["input_ids"].shape[1]
        # how sums of a batch are rounded depends on the processor
        torch.testing.assert_close(logits[row, :length], model(**alone).logits[0], atol=1e-4, rtol=0)


def test_audio_without_text_is_not_read_by_the_language_model(tmp_path, monkeypatch):
    model = tiny_audio_lm(tmp_path).eval()
    latents = noise(2, 9, 4)
    alone = F3ForPreTraining.from_pretrained(tmp_path / "tokenizer").eval()(latents=latents)
    monkeypatch.setattr(type(model.language_model), "forward", None)
    output = model(latents=latents)
    assert output.logits is None
    torch.testing.assert_close(output.loss, model.config.code_loss_weight * alone.loss)
    model.prediction = None
    assert model(latents=latents).loss is None


def test_in_training_logits_are_computed_for_the_answers_only_and_the_loss_is_the_same(tmp_path):
    model = tiny_audio_lm(tmp_path)
    model.config.audio_config.latent_noise_scale = 0.0
    batch = training_batch("yes", "no")
    whole = model(**batch)
    model.train()
    short = model(**batch)
    assert short.logits.shape[1] < whole.logits.shape[1] / 2
    torch.testing.assert_close(short.loss, whole.loss)


def test_the_text_loss_trains_encoder_and_connector_through_the_frozen_language_model(tmp_path):
    model = tiny_audio_lm(tmp_path, code_loss_weight=0.0).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        model(**training_batch("yes", "no")).loss.backward()
        optimizer.step()
    after = model.state_dict()
    frozen = [name for name in before if name.startswith("language_model.") or "autoencoder." in name]
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learned and all(not torch.equal(after[name], before[name]) for name in learned)
    assert {name.split(".")[0] for name in learned} == {"audio_model", "connector"}


def test_a_batch_cut_into_smaller_ones_gives_the_same_gradient(tmp_path):
    model = tiny_audio_lm(tmp_path)
    gradients = []
    for parts in ([[0, 1]], [[0], [1]]):
        model.zero_grad()
        for rows in parts:
            answers = ("yes", "a longer answer")
            conversations = [question(0.3 + 0.2 * row, answers[row], row) for row in rows]
            batch = tiny_processor().apply_chat_template(conversations, return_labels=True, sampling_rate=800)
            (model(**batch).loss / len(parts)).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-4, rtol=1e-3)


def test_the_language_model_stays_out_of_the_checkpoint_and_comes_back_from_where_it_is(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert stored and not any(name.startswith("language_model.") for name in stored)
    for auto_class in (AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq):
        loaded = auto_class.from_pretrained(tmp_path / "saved").eval()
        assert type(loaded) is F3AudioLMForConditionalGeneration
        assert not any(parameter.requires_grad for parameter in loaded.language_model.parameters())
        for name, tensor in {**model.state_dict(), **dict(model.named_buffers())}.items():
            kept = loaded.get_parameter_or_buffer(name)
            assert torch.equal(kept, tensor), name
        batch = training_batch("yes")
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
        embeddings, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
        assert embeddings.weight is head.weight


def test_a_self_contained_checkpoint_needs_no_other_folder(tmp_path):
    model = tiny_audio_lm(tmp_path, save_language_model=True)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "language-model").rename(tmp_path / "gone")
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    batch = training_batch("yes")
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_a_language_model_that_is_missing_or_another_one_is_an_error(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(OSError, match="(?s)cannot be loaded .*pass text_model_name_or_path"):
        F3AudioLMForConditionalGeneration.from_pretrained(
            tmp_path / "saved", text_model_name_or_path=str(tmp_path / "nowhere")
        )
    other = tiny_language_model()
    other.resize_token_embeddings(300)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(OSError, match="is not the language model of this checkpoint"):
        F3AudioLMForConditionalGeneration.from_pretrained(
            tmp_path / "saved", text_model_name_or_path=str(tmp_path / "other")
        )
    model.config.text_model_name_or_path = None
    with pytest.raises(ValueError, match="would be lost"):
        model.save_pretrained(tmp_path / "again")


def test_greedy_answers_of_a_left_padded_batch_equal_those_of_the_items_alone(model):
    processor = tiny_processor()
    conversations = [question(0.3, seed=1), question(0.8, seed=2)]
    batch = processor.apply_chat_template(conversations, add_generation_prompt=True, sampling_rate=800)
    options = {"max_new_tokens": 6, "do_sample": False}
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, conversation in enumerate(conversations):
        alone = processor.apply_chat_template(conversation, add_generation_prompt=True, sampling_rate=800)
        answer = model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(together[row, : len(answer)], answer)
    uncached = model.generate(**batch, **options, use_cache=False)[:, batch["input_ids"].shape[1] :]
    assert torch.equal(uncached, together)


def test_places_and_audio_that_do_not_match_are_refused(model):
    batch = training_batch("yes", "no")
    with pytest.raises(ValueError, match="places for 11 audio tokens"):
        model(batch["input_ids"], batch["attention_mask"])
    with pytest.raises(ValueError, match="and the audio has 4"):
        model(batch["input_ids"], batch["attention_mask"], batch["input_values"][:1], batch["padding_mask"][:1])


def test_a_text_beyond_the_context_of_the_language_model_names_its_row(model):
    conversations = [question(0.3, "yes"), question(0.3, "x" * 300)]
    batch = tiny_processor().apply_chat_template(conversations, return_labels=True, sampling_rate=800)
    with pytest.raises(ValueError, match=r"reads 256 tokens, and rows \[1\] have"):
        model(**batch)


def test_a_batch_without_any_answer_is_refused(model):
    batch = training_batch("yes", "no")
    with pytest.raises(ValueError, match="none of the 2 rows has a label"):
        model(**{**batch, "labels": torch.full_like(batch["labels"], -100)})


def test_token_ids_must_be_three_of_the_language_models(tmp_path):
    audio, text = saved_parts(tmp_path)
    with pytest.raises(Exception, match="must be three different tokens of the language model's 262"):
        F3AudioLMForConditionalGeneration.from_audio_text_pretrained(audio, text)
