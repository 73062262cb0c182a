import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from f3_training.ctc_helpers import CTCUnits, spelled
from modeling_f3 import F3AudioLMForConditionalGeneration, letter_prefixes
from modeling_f3.letter_prefixes import LETTER_WEIGHT, LETTER_WORTH, LetterPrefixes
from modeling_f3.listener import LETTERS
from modeling_f3.model_outputs import F3Output
from tiny import noise, tiny_audio_lm, tiny_listener_config, tiny_processor, tiny_text_tokenizer
from transformers import GenerationConfig


@pytest.fixture
def model(tmp_path) -> F3AudioLMForConditionalGeneration:
    listener = tiny_audio_lm(tmp_path, listener_config=tiny_listener_config())
    listener.listener.learn_spelling(tiny_text_tokenizer())
    return listener


def request(*lengths: int):
    """What is asked about one recording of each length."""
    recordings = [noise(length, seed=length).numpy() for length in lengths]
    return tiny_processor().apply_transcription_request(recordings, sampling_rate=800)


def heard(*texts: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores `[A, T, 1 + letters]` that are nearly sure of one text each, a frame for each letter and one after it."""
    frames = torch.tensor([2 * len(text) for text in texts])
    scores = torch.zeros(len(texts), int(frames.max()), 1 + len(LETTERS))
    scores[:, :, 0] = 5.0
    for row, text in enumerate(texts):
        for place, letter in enumerate(text):
            scores[row, 2 * place, 1 + LETTERS.index(letter)] = 10.0
    return scores.log_softmax(-1), frames


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_frame_knows_what_comes_after_it(model, attention):
    model.listener.body.set_attn_implementation(attention)
    latents, representations = noise(1, 10, 4), noise(1, 10, 16)
    mask = torch.ones(1, 10, dtype=torch.bool)
    before = model.listener(F3Output(last_hidden_state=representations, latents=latents, latents_mask=mask))
    representations[:, -1] += 1
    after = model.listener(F3Output(last_hidden_state=representations, latents=latents, latents_mask=mask))
    assert (after - before)[0, 0].abs().max() > 1e-4


def test_a_padded_batch_gives_what_single_items_give(model):
    lengths = (400, 333, 65)
    asked = request(*lengths)
    together = model.listener(model.audio_model(asked["input_values"], asked["padding_mask"]))
    for row, length in enumerate(lengths):
        asked = request(length)
        alone = model.listener(model.audio_model(asked["input_values"], asked["padding_mask"]))
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], atol=1e-4, rtol=0)


def prefixes(scores: torch.Tensor, frames: torch.Tensor, model, **options) -> LetterPrefixes:
    given = {"prompt_length": 0, "end_token_ids": [tiny_text_tokenizer().eos_token_id], "max_length": 50} | options
    return LetterPrefixes(scores, frames, model.listener.spelling, **given)


@pytest.mark.parametrize("text", ["aa", "a b", "b", "ab"])
def test_a_prefix_is_as_likely_as_all_paths_that_begin_with_it(model, text):
    scores = noise(1, 5, 1 + len(LETTERS), seed=3).mul(3)
    wanted = [LETTERS.index(letter) + 1 for letter in text]
    kept = [0, *(LETTERS.index(letter) + 1 for letter in " abc")]
    scores[:, :, [number for number in range(1 + len(LETTERS)) if number not in kept]] = -20.0
    scores, frames = scores.log_softmax(-1), torch.tensor([4])  # the fifth is padding
    begun, all_of_it = torch.tensor(0.0), torch.tensor(0.0)
    for path in itertools.product(kept, repeat=4):
        said = [number for number, _ in itertools.groupby(path) if number]
        chance = sum(scores[0, place, number] for place, number in enumerate(path)).exp()
        begun = begun + chance * (said[: len(wanted)] == wanted)
        all_of_it = all_of_it + chance * (said == wanted)
    following = prefixes(scores, frames, model)
    written = following.empty(torch.tensor([0]))
    for token in tiny_text_tokenizer().encode(text):
        written, _ = following._write(written, torch.tensor([[token]]))
    torch.testing.assert_close(written.likelihood.exp(), begun[None], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(following.whole(written).exp(), all_of_it[None], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("text", ["she saw it", "Don't!  Stop - here.", " too", "?", "", "zzzz"])
def test_scores_of_an_answer_sum_to_both_likelihoods_and_the_worth_of_its_letters(model, monkeypatch, text):
    """The listener learns `spelled` texts, by the numbers of their letters, and reads tokens."""
    monkeypatch.setattr(letter_prefixes, "CHOICES", len(model.listener.spelling))
    units = CTCUnits("letters", spelled, [" ".join(LETTERS.strip())])
    assert units.vocabulary == list(LETTERS)
    letters = torch.tensor(units(text), dtype=torch.long)
    scores, frames = noise(1, 60, 1 + len(LETTERS), seed=5).log_softmax(-1), torch.tensor([50])
    answer = torch.tensor([*tiny_text_tokenizer().encode(text), tiny_text_tokenizer().eos_token_id])
    following, total = prefixes(scores, frames, model), torch.zeros(())
    for place, token in enumerate(answer.tolist()):
        written = noise(1, len(model.listener.spelling), seed=place).log_softmax(-1)
        total = total + following(answer[None, :place], written)[0, token] - written[0, token]
    likelihood = -F.ctc_loss(scores[0], letters, frames[0], torch.tensor(len(letters)), reduction="sum")
    torch.testing.assert_close(total, LETTER_WEIGHT * likelihood + LETTER_WORTH * len(letters), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_what_is_heard_is_written(model, monkeypatch, num_beams):
    texts = ["she saw it", "he saw"]
    scores, frames = heard(*texts)
    hop = model.config.audio_config.autoencoder_config.hop_length
    asked = request(*(hop * int(length) for length in frames))
    model.language_model.get_output_embeddings().weight.data.zero_()  # which has no preference
    monkeypatch.setattr(model.listener, "forward", lambda audio: (20 * scores).log_softmax(-1))
    written = model.generate(**asked, num_beams=num_beams, max_new_tokens=20, do_sample=False, by_letters=True)
    answers = tiny_text_tokenizer().batch_decode(written[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [" ".join(re.findall("[a-z]+", answer.lower())) for answer in answers] == texts


def test_an_answer_that_is_cut_off_pays_for_what_it_leaves_out(model):
    tokenizer = tiny_text_tokenizer()
    token = tokenizer.encode("he")[0]
    uniform = torch.zeros(1, len(model.listener.spelling))
    nothing = torch.zeros(1, 0, dtype=torch.long)
    free, cut = (
        prefixes(*heard("he saw it"), model, max_length=length)(nothing, uniform)[0, token] for length in (9, 1)
    )
    assert cut < free - 1


def test_what_cannot_be_heard_is_not_written(model):
    vocabulary, nothing = len(model.listener.spelling), torch.zeros(1, 0, dtype=torch.long)
    scores = prefixes(*heard("he"), model)(nothing, torch.zeros(1, vocabulary))[0]
    assert all(scores[tiny_text_tokenizer().encode(sign)[0]] == -torch.inf for sign in "7\n\u00e9(")
    assert scores[tiny_text_tokenizer().encode("h")[0]].isfinite()


def test_transcripts_are_chosen_by_letters_where_there_is_a_listener(model):
    asked = request(400)
    options = model.transcription_options(asked["input_ids"])
    assert options["by_letters"] and options["num_beams"] > 3
    written = model.generate(**asked, **options)
    assert written.shape[0] == 1 and written.shape[1] > asked["input_ids"].shape[1]
    model.listener = None
    assert "by_letters" not in model.transcription_options(asked["input_ids"])


def test_a_generation_config_holds_as_it_is_given(model):
    options = {"num_beams": 4, "max_new_tokens": 5, "do_sample": False}
    given = GenerationConfig(**options)
    found = model.generate(**request(400), generation_config=given, by_letters=True)
    assert torch.equal(found, model.generate(**request(400), **options, by_letters=True))
    assert given.length_penalty != 0.0 and given.suppress_tokens is None
    asked = request(400)
    letters = model._letter_prefixes(asked["input_ids"], given, asked)
    assert letters.ends.nonzero().tolist() == [[model.generation_config.eos_token_id]], (
        "what it leaves open is the model's"
    )


def test_what_cannot_be_chosen_by_letters_is_refused(model):
    text = tiny_processor().apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    with pytest.raises(ValueError, match="each row needs one audio"):
        model.generate(**text, by_letters=True, num_beams=2, max_new_tokens=2)
    model.listener.spelling.zero_()
    with pytest.raises(ValueError, match="learn_spelling"):
        model.generate(**request(400), by_letters=True, num_beams=2, max_new_tokens=2)
    model.listener = None
    with pytest.raises(ValueError, match="listener_config"):
        model.generate(**request(400), by_letters=True, num_beams=2, max_new_tokens=2)


def test_it_is_saved_and_loaded_with_its_spelling(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert loaded.listener.spelling.any() and torch.equal(loaded.listener.spelling, model.listener.spelling)
    asked = request(400)
    audio = model.audio_model(asked["input_values"], asked["padding_mask"])
    torch.testing.assert_close(loaded.listener(audio), model.listener(audio), atol=1e-4, rtol=0)
