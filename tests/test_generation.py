import copy

import pytest
import soundfile
import torch
from modeling_f3 import F3AudioLMForConditionalGeneration, F3SpeechRecognitionPipeline
from modeling_f3.generation_f3 import OPTIONS, audios_by_row
from modeling_f3.packed_layers import is_packed
from modeling_f3.speech_recognition_pipeline import cut_at_pauses
from tiny import noise, tiny_audio_lm, tiny_flow_config, tiny_processor, tiny_residual_config
from transformers import GenerationConfig, pipeline


@pytest.fixture
def model(tmp_path) -> F3AudioLMForConditionalGeneration:
    """Speaks at random, and hardly ever stops by itself."""
    speaker = tiny_audio_lm(tmp_path, flow_config=tiny_flow_config(), residual_config=tiny_residual_config())
    with torch.no_grad():
        torch.nn.init.normal_(speaker.flow_head.velocity.weight, std=0.3)
        torch.nn.init.normal_(speaker.residual_lm.residual.weight, std=0.3)
        torch.nn.init.constant_(speaker.stop_head.bias, -20.0)
    return speaker


def say(*texts: str) -> dict:
    conversations = [[{"role": "user", "content": text}] for text in texts]
    return dict(tiny_processor().apply_chat_template(conversations, speak=True))


def prompted(text: str, seconds: float, seed: int = 0) -> list[dict]:
    voice = {"type": "audio", "audio": noise(int(800 * seconds), seed=seed).numpy()}
    return [{"role": "user", "content": text}, {"role": "assistant", "content": [voice]}]


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def test_a_prompt_that_ends_in_audio_start_is_answered_in_speech(model):
    output = model.generate(**say("hello"), max_new_patches=5)
    assert output.audio[0].shape == (5 * 2 * 32,) and output.audio_lengths.tolist() == [320]
    assert output.latents[0].shape == (10, 4) and output.finish_reasons == ["length"]
    torch.testing.assert_close(output.latents[0].square().mean(-1), torch.ones(10), atol=1e-3, rtol=0)  # Eq. 1


def test_the_same_seed_gives_the_same_speech(model):
    first, again, other = (model.generate(**say("hi"), max_new_patches=4, generator=seeds(s)[0]) for s in (0, 0, 1))
    assert torch.equal(first.audio[0], again.audio[0]) and not torch.equal(first.audio[0], other.audio[0])


def test_rows_of_a_left_padded_batch_are_spoken_as_they_are_alone(model):
    texts = ("hi", "a much longer text")
    together = model.generate(**say(*texts), max_new_patches=6, generator=seeds(1, 2))
    for row, text in enumerate(texts):
        alone = model.generate(**say(text), max_new_patches=6, generator=seeds(row + 1))
        torch.testing.assert_close(together.audio[row], alone.audio[0], atol=1e-4, rtol=0)


def test_streamed_chunks_together_are_the_audio(model):
    inputs = say("hi", "a much longer text")
    whole = model.generate(**inputs, max_new_patches=6, generator=seeds(1, 2))
    chunks = list(model.stream_audio(**inputs, max_new_patches=6, generator=seeds(1, 2)))
    for row in range(2):
        torch.testing.assert_close(torch.cat([chunk[row] for chunk in chunks]), whole.audio[row], atol=1e-4, rtol=0)


def test_the_first_chunk_comes_before_the_second_step_of_the_language_model(model, monkeypatch):
    steps, read = [], model._read
    monkeypatch.setattr(model, "_read", lambda *args: steps.append(1) or read(*args))
    first = next(model.stream_audio(**say("hi"), max_new_patches=6))
    assert len(steps) == 1 and first[0].numel() > 0


def test_rows_stop_by_themselves_and_say_so(model, monkeypatch):
    class Clock(torch.nn.Module):
        """Ends the first row after three patches and the second after five."""

        weight, count = torch.zeros(1), 0

        def forward(self, hidden):
            self.count += 1
            return torch.tensor([[9.0 if self.count >= 3 else -9.0], [9.0 if self.count >= 5 else -9.0]])

    model.stop_head = Clock()
    output = model.generate(**say("hi", "ho"), max_new_patches=20)
    assert output.audio_lengths.tolist() == [3 * 64, 5 * 64] and output.finish_reasons == ["stop", "stop"]
    model.stop_head = Clock()
    assert model.generate(**say("hi", "ho"), max_new_patches=4).finish_reasons == ["stop", "length"]
    model.stop_head = Clock()
    assert model.generate(**say("hi", "ho"), min_new_patches=4).audio_lengths.tolist() == [4 * 64, 5 * 64]


def test_options_of_speech_that_were_saved_with_a_model_hold_when_it_is_loaded(model, tmp_path):
    model.generation_config.num_flow_steps, model.generation_config.noise_temperature = 3, 0.5
    model.generation_config.max_new_patches = 4
    model.save_pretrained(tmp_path / "saved")
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    options = loaded._speech_options(None, {})
    assert (options.num_flow_steps, options.noise_temperature) == (3, 0.5)
    wanted, found = (speaker.generate(**say("hi"), generator=seeds(0)[0]) for speaker in (model, loaded))
    assert wanted.finish_reasons == found.finish_reasons == ["length"]
    torch.testing.assert_close(wanted.audio[0], found.audio[0], atol=1e-6, rtol=0)


def test_options_of_speech_have_names_of_their_own():
    """A `guidance_scale` that was meant for the flow head would guide the text of the same model."""
    assert not set(OPTIONS) & vars(GenerationConfig()).keys()


def test_what_the_configuration_was_told_is_not_saved_among_the_options_of_generation(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    told = {"text_model_name_or_path": model.config.text_model_name_or_path, "previous_noise_scale": 0.1}
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "saved", **told)
    loaded.save_pretrained(tmp_path / "again")
    saved, again = ((tmp_path / name / "generation_config.json").read_text() for name in ("saved", "again"))
    assert again == saved and "text_model" not in again


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_listens_and_speaks(model, tmp_path, dtype):
    model.save_pretrained(tmp_path / "saved")
    half = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype=dtype)
    precise = {name for name, parameter in half.named_parameters() if parameter.dtype != dtype}
    assert precise == {f"audio_model.autoencoder.{name}" for name, _ in model.audio_model.autoencoder.named_parameters()
                       if name.startswith("decoder.")}  # fmt: skip
    inputs = tiny_processor().apply_chat_template([prompted("hi", 0.5)], speak=True, sampling_rate=800)
    expected, spoken = (speaker.generate(**inputs, max_new_patches=3, generator=seeds(0)) for speaker in (model, half))
    assert torch.cosine_similarity(spoken.latents[0].float(), expected.latents[0], dim=-1).mean() > 0.95
    question = tiny_processor().apply_transcription_request(noise(400).numpy(), sampling_rate=800)
    assert half.generate(**question, do_sample=False, max_new_tokens=3).shape[1] > question["input_ids"].shape[1]


def test_a_model_packed_for_the_cpu_says_and_writes_the_same_but_for_rounding(model):
    question = tiny_processor().apply_transcription_request(noise(400).numpy(), sampling_rate=800)
    packed = copy.deepcopy(model).pack_for_cpu()
    said, written = [], []
    for speaker in (model, packed):
        said.append(speaker.generate(**say("hi"), max_new_patches=3, generator=seeds(0)).latents[0])
        written.append(speaker(**question).logits[0, -1])
    torch.testing.assert_close(*said, atol=1e-2, rtol=0)
    torch.testing.assert_close(*written, atol=1e-2, rtol=0)
    kept = {name for name, _ in packed.named_parameters()}
    dropped = [name for name, _ in model.named_parameters() if name not in kept]
    assert any(name.startswith("flow_head.") for name in dropped) == is_packed(packed)  # where there is FBGEMM
    assert all(name.startswith("audio_model.encoder.body.") for name in dropped if "audio_model" in name)


def test_a_packed_model_cannot_be_saved(model, tmp_path):
    packed = model.pack_for_cpu()
    if not is_packed(packed):
        pytest.skip("PyTorch has no FBGEMM for this processor")
    with pytest.raises(ValueError, match="load it again, and save that"):
        packed.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_only_models_in_fp32_are_packed(model):
    with pytest.raises(
        ValueError, match="only models in float32 on the CPU can be packed, this one is torch.bfloat16 on cpu"
    ):
        model.to(torch.bfloat16).pack_for_cpu()


def test_solver_and_sway_are_options_of_speech(model):
    def said(**options):
        return model.generate(**say("hi"), max_new_patches=2, generator=seeds(0), num_flow_steps=2, **options).latents[
            0
        ]

    default = said()
    assert torch.equal(said(flow_solver="euler", flow_sway=-1.0), default)
    for options in ({"flow_sway": 0.0}, {"flow_solver": "midpoint"}, {"flow_solver": "adams_bashforth"}):
        assert not torch.equal(said(**options), default), options


def test_without_a_cap_the_length_of_the_text_is_one(model):
    inputs = say("hi")
    output = model.generate(**inputs, patches_per_token=1)
    assert output.audio_lengths.tolist() == [(inputs["input_ids"].shape[1] + 25) * 64]
    assert output.finish_reasons == ["length"]
    script = torch.tensor([[7, 8, 3, 5], [5, 5, 5, 5]])  # the second row writes nothing, as for sounds
    output = model.generate(**say("hi", "hi"), script_ids=script, patches_per_token=1)
    assert output.audio_lengths.tolist() == [(3 + 25) * 64, (inputs["input_ids"].shape[1] + 25) * 64]


def test_tokens_made_step_by_step_are_those_of_the_whole(model):
    """What the language model reads while it speaks is what it would read of the finished audio."""
    inputs, read, embedded = say("hi"), model._read, []
    model._read = lambda embeds, *rest: embedded.append(embeds) or read(embeds, *rest)
    output = model.generate(**inputs, max_new_patches=6)
    whole = model.get_audio_features(latents=output.latents[0][None]).pooler_output
    torch.testing.assert_close(torch.cat(embedded[1:], dim=1)[0], whole[:5], atol=1e-4, rtol=0)


def learned_states(model, **inputs) -> torch.Tensor:
    """The states that the losses of speech would be made from."""
    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_speech_losses", lambda ids, hidden, *rest: states.append(hidden) or {})
        model(**inputs, spoken=torch.ones(1, dtype=torch.bool))
    return states[0]


def test_hidden_states_made_step_by_step_are_those_of_teacher_forcing(model):
    inputs, read, states = say("hi"), model._read, []
    model._read = lambda *args: states.append(read(*args)) or states[-1]
    output = model.generate(**inputs, max_new_patches=4)
    placeholder = torch.full((1, 3), model.config.audio_token_id)
    ids = torch.cat([inputs["input_ids"], placeholder], dim=1)
    forced = learned_states(model, input_ids=ids, latents=output.latents[0][None, :6])
    torch.testing.assert_close(torch.stack(states, dim=1), forced[:, -4:], atol=1e-4, rtol=0)


class Turns(torch.nn.Module):
    """A stop head that ends something in each row after the patches that its set names."""

    weight = torch.zeros(1)

    def __init__(self, *patches: set[int]):
        super().__init__()
        self.patches, self.count = patches, 0

    def forward(self, hidden):
        self.count += 1
        return torch.tensor([[9.0 if self.count in patches else -9.0] for patches in self.patches])


def word_by_word(*texts: str, **options) -> dict:
    processor = tiny_processor()
    processor.word_by_word = True
    return dict(processor.apply_speech_request(list(texts), **options))


def test_words_are_said_after_the_letters_that_training_puts_before_them(model, monkeypatch):
    model.stop_head, conditions, sample = Turns({2, 3, 6}), [], model.flow_head.sample
    monkeypatch.setattr(
        model.flow_head,
        "sample",
        lambda hidden, *rest, **options: conditions.append(hidden) or sample(hidden, *rest, **options),
    )
    output = model.generate(**word_by_word("To be, so."))
    assert output.finish_reasons == ["stop"] and output.audio_lengths.tolist() == [6 * 64]
    processor = tiny_processor()
    processor.word_by_word = True
    said = {"type": "audio", "latents": output.latents[0], "text": "To be, so.", "word_ends": [0.17, 0.25, 0.48]}
    talk = [{"role": "user", "content": "Say: To be, so."}, {"role": "assistant", "content": [said]}]
    batch = processor.apply_chat_template([talk], return_labels=True)
    assert (
        "<repo_name> t o<repo_name><file_sep><file_sep> b e ,<repo_name><file_sep> s o .<repo_name><file_sep>"
        in processor.decode(batch["input_ids"][0])
    )
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "latents", "latents_mask")}
    forced = learned_states(model, **inputs)
    before = (batch["input_ids"] == model.config.audio_token_id)[0].nonzero()[:, 0] - 1
    torch.testing.assert_close(torch.cat(conditions), forced[0, before], atol=1e-4, rtol=0)


@pytest.mark.parametrize("voice", [None, 0.4])
def test_rows_that_turn_to_their_words_at_different_times_are_spoken_as_they_are_alone(model, voice):
    options = (
        {} if voice is None else {"voice": noise(int(800 * voice)).numpy(), "voice_text": "oh", "sampling_rate": 800}
    )
    texts, turns = ("a long one", "so be it now", "hm"), ({1, 5, 8}, {3, 5, 6, 9}, {2})
    model.stop_head = Turns(*turns)
    inputs = word_by_word(*texts, **options)
    together = model.generate(**inputs, generator=seeds(1, 2, 3))
    assert together.audio_lengths.tolist() == [8 * 64, 9 * 64, 2 * 64] and set(together.finish_reasons) == {"stop"}
    model.stop_head = Turns(*turns)
    chunks = list(model.stream_audio(**inputs, generator=seeds(1, 2, 3)))
    for row, text in enumerate(texts):
        model.stop_head = Turns(turns[row])
        alone = model.generate(**word_by_word(text, **options), generator=seeds(row + 1))
        torch.testing.assert_close(together.audio[row], alone.audio[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.cat([chunk[row] for chunk in chunks]), together.audio[row], atol=1e-4, rtol=0)


def test_a_voice_prompt_is_gone_on_with_and_not_repeated(model):
    processor = tiny_processor()
    inputs = processor.apply_chat_template([prompted("one two", 0.4)], speak=True, sampling_rate=800)
    assert inputs["input_ids"][0, -1] == model.config.audio_token_id
    output = model.generate(**inputs, max_new_patches=3, generator=seeds(0))
    assert output.audio_lengths.tolist() == [3 * 64]
    other = processor.apply_chat_template([prompted("one two", 0.4, seed=5)], speak=True, sampling_rate=800)
    assert not torch.equal(output.audio[0], model.generate(**other, max_new_patches=3, generator=seeds(0)).audio[0])


def test_voice_prompts_of_different_lengths_share_a_batch(model):
    processor = tiny_processor()
    conversations = [prompted("one", 0.2, 1), prompted("one two three", 0.7, 2)]
    batch = processor.apply_chat_template(conversations, speak=True, sampling_rate=800)
    together = model.generate(**batch, max_new_patches=5, generator=seeds(1, 2))
    for row, conversation in enumerate(conversations):
        single = processor.apply_chat_template([conversation], speak=True, sampling_rate=800)
        alone = model.generate(**single, max_new_patches=5, generator=seeds(row + 1))
        torch.testing.assert_close(together.audio[row], alone.audio[0], atol=1e-4, rtol=0)


def test_rows_with_several_audios_can_be_answered_with_beams(model):
    processor = tiny_processor()
    audio = [noise(int(800 * seconds), seed=i).numpy() for i, seconds in enumerate((0.2, 0.5, 0.3))]
    batch = processor(["a <file_sep> b <file_sep>", "a <file_sep>"], audio, 800)
    together = model.generate(**batch, num_beams=3, max_new_tokens=4, do_sample=False)
    alone = processor("a <file_sep>", audio[2:], 800)
    single = model.generate(**alone, num_beams=3, max_new_tokens=4, do_sample=False)
    assert torch.equal(together[1, -4:], single[0, -4:])
    assert audios_by_row(torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]), [1, 2, 3]) == [[0, 1], [2]]


class Heard:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


def test_answers_in_text_can_be_streamed_and_speculated_about(model, tmp_path):
    request = tiny_processor().apply_transcription_request(noise(400).numpy(), sampling_rate=800)
    options, heard = {"max_new_tokens": 8, "do_sample": False}, Heard()
    answer = model.generate(**request, **options, streamer=heard)
    assert heard.tokens == [*answer[0].tolist(), "end"]
    assert torch.equal(model.generate(**request, **options, prompt_lookup_num_tokens=3), answer)
    assistant = tiny_audio_lm(tmp_path / "assistant", seed=1)
    assert torch.equal(model.generate(**request, **options, assistant_model=assistant), answer)
    assert torch.equal(model.generate(**request, **options, use_cache=False), answer)


def test_answers_in_text_never_hold_places_of_audio(model):
    with torch.no_grad():
        model.get_output_embeddings().weight[model.config.audio_token_id] *= 100
    batch = tiny_processor()(["hello"])
    answer = model.generate(**batch, max_new_tokens=8, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert not torch.isin(answer, torch.tensor([3, 4, 5])).any()


def test_speech_is_learned_with_text_in_one_call_and_cut_batches_add_up(tmp_path):
    model = tiny_audio_lm(tmp_path, flow_config=tiny_flow_config(), representation_loss_weight=0.3)
    voice = {"type": "audio", "audio": noise(400, seed=1).numpy()}
    heard = {"type": "audio", "audio": noise(300, seed=2).numpy()}
    conversations = [
        [{"role": "user", "content": "Say: hi"}, {"role": "assistant", "content": [voice]}],
        [{"role": "user", "content": [heard]}, {"role": "assistant", "content": "ho"}],
    ]

    def losses(rows) -> dict:
        batch = tiny_processor().apply_chat_template(
            [conversations[row] for row in rows], return_labels=True, sampling_rate=800
        )
        assert ("spoken" in batch) is (0 in rows)
        assert batch.setdefault("spoken", torch.tensor([False])).tolist() == [row == 0 for row in rows]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return model(**batch)

    both, speech, text = losses([0, 1]), losses([0]), losses([1])
    assert speech.text_loss == 0 and text.flow_loss is None
    for name in ("flow_loss", "stop_loss", "representation_loss"):
        torch.testing.assert_close(getattr(both, name), getattr(speech, name) / 2)
    torch.testing.assert_close(both.text_loss, text.text_loss / 2)
    weighted = both.text_loss + both.code_loss + both.flow_loss + 0.5 * both.stop_loss + 0.3 * both.representation_loss
    torch.testing.assert_close(both.loss, weighted)
    model.train()
    losses([0]).loss.backward()
    speaking = (model.flow_head.velocity, model.stop_head, model.representation_head)
    assert all(layer.weight.grad.abs().sum() > 0 for layer in speaking)
    model.zero_grad()
    losses([1]).loss.backward()  # nothing to learn, but gradients, as on other processes that have speech
    assert all(not parameter.grad.any() for layer in speaking for parameter in layer.parameters())


def test_in_training_recorded_patches_may_be_learned_after_the_models_own(tmp_path, monkeypatch):
    parts = {"flow_config": tiny_flow_config(), "residual_config": tiny_residual_config()}
    model = tiny_audio_lm(tmp_path, **parts, previous_noise_scale=0.0, own_history_share=1.0)
    model.config.audio_config.latent_noise_scale = 0.0
    voice, heard = ({"type": "audio", "audio": noise(300 + 100 * seed, seed=seed).numpy()} for seed in (1, 2))
    conversations = [
        [{"role": "user", "content": "Say: hi"}, {"role": "assistant", "content": [voice]}],
        [{"role": "user", "content": [heard]}, {"role": "assistant", "content": "ho"}],
    ]
    batch = tiny_processor().apply_chat_template(conversations, return_labels=True, sampling_rate=800)
    head, given = model.flow_head, []
    torch.nn.init.normal_(head.velocity.weight)
    loss = head.loss
    monkeypatch.setattr(head, "loss", lambda *values: given.append(values) or loss(*values))
    monkeypatch.setattr(head, "sample", lambda condition, *_, **__: noise(len(condition), 2, head.config.latent_dim))
    recorded, own = model.eval()(**batch), model.train()(**batch)
    (patch, _, representation, previous, known), (*_, wanted_known) = given[1], given[0]
    assert torch.equal(patch, given[0][0]) and torch.equal(known, wanted_known)
    said = model.audio_model.autoencoder.normalize(noise(len(patch), 2, head.config.latent_dim))
    torch.testing.assert_close(previous[1:], said[:-1])
    assert (representation[1:] - given[0][2][1:]).abs().max() > 1e-3
    torch.testing.assert_close(own.text_loss, recorded.text_loss)  # what is listened to stays as it is
    own.loss.backward()
    assert all(part.grad.abs().sum() > 0 for part in (head.condition.weight, model.residual_lm.residual.weight))


@pytest.mark.parametrize("word_by_word, residual", [(False, None), (True, None), (True, tiny_residual_config())])
def test_speech_is_learned_by_heart_and_ends_where_it_ended(tmp_path, word_by_word, residual):
    parts = {"flow_config": tiny_flow_config(), "residual_config": residual}
    model = tiny_audio_lm(tmp_path, **parts, code_loss_weight=0.0, previous_noise_scale=0.0).train()
    model.config.audio_config.latent_noise_scale = 0.0
    processor = tiny_processor()
    processor.word_by_word = word_by_word
    voice = {"type": "audio", "latents": model.audio_model.autoencoder.encode(noise(1, 1, 256)).latents[0].detach()}
    said = {**voice, "text": "hi ho", "word_ends": [0.25, 0.32]}
    conversation = [{"role": "user", "content": "Say: hi ho"}, {"role": "assistant", "content": [said]}]
    batch = processor.apply_chat_template([conversation], return_labels=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    options = {"flow_guidance_scale": 1.0, "noise_temperature": 0.5, "max_new_patches": 12}
    spoken = model.eval().generate(**processor.apply_speech_request("hi ho"), **options)
    assert spoken.finish_reasons == ["stop"] and spoken.latents[0].shape == voice["latents"].shape
    assert (spoken.latents[0] - voice["latents"]).square().mean() < 0.3


def test_the_pipeline_speaks_a_prompt_that_asks_for_it(model, monkeypatch):
    processor = tiny_processor()
    speak = pipeline("text-to-audio", model=model, tokenizer=processor.tokenizer, processor=processor)
    prompt = processor.apply_chat_template([{"role": "user", "content": "hi"}], speak=True, tokenize=False)
    spoken = speak(prompt, generate_kwargs={"max_new_patches": 3})
    assert spoken["audio"].size == 192 and spoken["sampling_rate"] == 800
    processor.word_by_word, generate, given = True, model.generate, []
    monkeypatch.setattr(model, "generate", lambda **inputs: given.append(inputs["script_ids"]) or generate(**inputs))
    speak(processor.apply_chat_template([{"role": "user", "content": "Say: hi"}], speak=True, tokenize=False))
    assert torch.equal(given[0], processor.apply_speech_request("hi")["script_ids"])


def test_the_mode_makes_speech_of_any_prompt(model):
    written = tiny_processor().apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    options = {"max_new_patches": 3, "generator": seeds(1)[0]}
    spoken = model.generate(**written, generation_mode="audio", **options)
    assert torch.equal(spoken.audio[0], model.generate(**say("hi"), **{**options, "generator": seeds(1)[0]}).audio[0])


def test_the_any_to_any_pipeline_answers_in_text_and_in_speech(model):
    processor = tiny_processor()
    ask = pipeline("any-to-any", model=model, processor=processor, tokenizer=processor.tokenizer)
    recording = {"type": "audio", "audio": noise(400).numpy(), "sampling_rate": 800}
    messages = [{"role": "user", "content": [recording, {"type": "text", "text": "What?"}]}]
    written = ask(messages, max_new_tokens=4, return_full_text=False)
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True)
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert written[0]["generated_text"] == processor.decode(expected, skip_special_tokens=True)
    spoken = ask(messages, generation_mode="audio", generate_kwargs={"max_new_patches": 3})
    assert spoken[0]["generated_audio"].shape == (192,)


def test_the_transcribing_pipeline_asks_in_the_words_of_the_training(model, tmp_path):
    processor, path = tiny_processor(), str(tmp_path / "clip.wav")
    processor.save_audio(noise(400), path)
    transcribe = F3SpeechRecognitionPipeline(model=model, processor=processor)
    samples = soundfile.read(path, dtype="float32")[0]
    request = processor.apply_transcription_request(samples, language="Czech", sampling_rate=800)
    assert "Transcribe the Czech speech." in processor.decode(request["input_ids"][0])
    options = model.transcription_options(request["input_ids"])
    assert options["max_new_tokens"] == int((request["input_ids"] == model.config.audio_token_id).sum()) + 10
    dictionary = {"raw": samples, "sampling_rate": 800}
    for given in ({}, {"max_new_tokens": 4}):
        written = model.generate(**request, **{**options, **given})[0, request["input_ids"].shape[1] :]
        expected = {"text": processor.decode(written, skip_special_tokens=True).strip()}
        assert transcribe([path, samples, dictionary], language="Czech", **given) == [expected] * 3
    assert len(processor.apply_transcription_request([samples, samples], sampling_rate=800)["input_ids"]) == 2


def test_long_recordings_are_transcribed_in_pieces_that_end_in_pauses(model):
    processor = tiny_processor()
    transcribe = F3SpeechRecognitionPipeline(model=model, processor=processor)
    samples = 0.1 * noise(3200, seed=3)  # 4 s
    pauses = [(1400, 1600), (2450, 2650)]
    for first, last in pauses:
        samples[first:last] = 0
    pieces = cut_at_pauses(samples, 800, 2.0)
    assert torch.equal(torch.cat(pieces), samples) and len(pieces) == 3
    for (first, last), cut in zip(pauses, (len(pieces[0]), len(pieces[0]) + len(pieces[1]))):
        assert first < cut < last
    alone = [transcribe(piece.numpy(), max_new_tokens=5)["text"] for piece in pieces]
    assert transcribe(samples.numpy(), max_new_tokens=5, chunk_length_s=2.0)["text"] == " ".join(filter(None, alone))
    assert (
        transcribe([samples.numpy()], max_new_tokens=5, chunk_length_s=2.0)[0]["text"].split()
        == " ".join(alone).split()
    )
    request = processor.apply_transcription_request(samples.numpy(), sampling_rate=800)
    options = {**model.transcription_options(request["input_ids"]), "max_new_tokens": 5}
    whole = model.generate(**request, **options)[0, request["input_ids"].shape[1] :]
    expected = processor.decode(whole, skip_special_tokens=True).strip()
    assert transcribe(samples.numpy(), max_new_tokens=5, chunk_length_s=None)["text"] == expected
    with pytest.raises(ValueError, match="chunk_length_s of 1 or more"):
        transcribe(samples.numpy(), chunk_length_s=0.5)


def test_rows_with_and_without_a_voice_prompt_share_a_batch(model):
    processor = tiny_processor()
    texts = ["one <repo_name>", "two <repo_name><file_sep>"]
    ids = [processor.tokenizer(text)["input_ids"] for text in texts]
    ids[1] += [model.config.audio_token_id] * 4  # ten frames of audio to go on with
    pad = len(ids[1]) - len(ids[0])
    mask = torch.tensor([[0] * pad + [1] * len(ids[0]), [1] * len(ids[1])])
    latents = model.audio_model.autoencoder.encode(noise(1, 1, 320)).latents
    batch = {"input_ids": torch.tensor([[0] * pad + ids[0], ids[1]]), "attention_mask": mask, "latents": latents}
    together = model.generate(**batch, max_new_patches=4, generator=seeds(1, 2))
    first = model.generate(torch.tensor([ids[0]]), max_new_patches=4, generator=seeds(1))
    second = model.generate(torch.tensor([ids[1]]), latents=latents, max_new_patches=4, generator=seeds(2))
    torch.testing.assert_close(together.audio[0], first.audio[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(together.audio[1], second.audio[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"generation_mode": "text"}, "the prompt asks for speech"),
        ({"generation_mode": "song"}, "'text' or 'audio'"),
        ({"flow_solver": "heun", "max_new_patches": 2}, "unknown solver"),
        ({"max_new_tokens": 5}, "speech takes no max_new_tokens"),
    ],
)
def test_options_that_contradict_the_prompt_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**say("hi"), **options)


def test_prompts_that_ask_for_speech_in_vain_are_refused(model, tmp_path):
    mixed = tiny_processor()(["hello", "hello <repo_name>"])
    with pytest.raises(ValueError, match=r"rows \[1\] ask for speech"):
        model.generate(**mixed)
    silent = tiny_audio_lm(tmp_path / "silent")
    with pytest.raises(ValueError, match="has no flow head"):
        silent.generate(**say("hi"))
