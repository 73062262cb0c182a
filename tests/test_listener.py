import pytest
import torch
from f3_training.ctc_helpers import CTCUnits, spelled
from modeling_f3 import F3AudioLMForConditionalGeneration
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


def spell(model, text: str) -> str:
    ids = torch.tensor(tiny_text_tokenizer().encode(text), dtype=torch.long)
    return "".join(LETTERS[number - 1] for number in model.listener.spelled(ids).tolist())


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


@pytest.mark.parametrize("text", ["Don't!  Stop - here.", " leading", "caf\u00e9 24 A", "?", ""])
def test_what_is_written_is_spelled_as_what_is_learned(model, text):
    """The listener learns `spelled` texts, by the numbers of their letters, and reads tokens."""
    units = CTCUnits("letters", spelled, [" ".join(LETTERS.strip())])
    assert units.vocabulary == list(LETTERS)
    learned = "".join(LETTERS[number - 1] for number in units(text))
    assert spell(model, text) == " ".join(learned.split())  # a word of digits alone leaves two spaces


def test_the_text_that_is_heard_is_likelier_than_others(model):
    tokenizer = tiny_text_tokenizer()
    texts = ["he saw it", "she saw it", "he saw", "", "much longer than all that is heard in so few frames"]
    answers = [[torch.tensor(tokenizer.encode(text), dtype=torch.long) for text in texts]] * 2
    likelihoods = model.listener.likelihoods(*heard("she saw it", "he saw"), answers)
    assert likelihoods.argmax(1).tolist() == [1, 2]
    assert likelihoods[0, 4] == -torch.inf and likelihoods[:, :4].isfinite().all()


def test_of_the_answers_of_all_beams_the_one_that_is_heard_is_returned(model):
    asked, options = request(400, 300), {"num_beams": 4, "max_new_tokens": 5, "do_sample": False}
    start = asked["input_ids"].shape[1]
    detailed = {
        "num_return_sequences": 4,
        "length_penalty": 0.0,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    found = model.generate(**asked, **options, **detailed)
    every, written = found.sequences.unflatten(0, (2, 4)), found.sequences_scores.unflatten(0, (2, 4))
    audio = model.audio_model(asked["input_values"], asked["padding_mask"])
    chosen = []
    for sureness in (1.0, 20.0):
        with torch.no_grad():
            model.listener.letters.weight.mul_(sureness)
        heard = model.listener.likelihoods(model.listener(audio), audio.latents_mask.sum(1), every[:, :, start:])
        chosen.append((written + heard).argmax(1))
        assert torch.equal(model.generate(**asked, **options, by_letters=True), every[torch.arange(2), chosen[-1]])
    assert any(bool((row != written.argmax(1)).any()) for row in chosen), "the listener had no say"


def test_one_beam_leaves_no_choice(model):
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(
        model.generate(**request(400), **options, by_letters=True), model.generate(**request(400), **options)
    )


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
    assert given.num_return_sequences != 4 and not given.return_dict_in_generate


def test_what_cannot_be_chosen_by_letters_is_refused(model):
    text = tiny_processor().apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    with pytest.raises(ValueError, match="each row needs one audio"):
        model.generate(**text, by_letters=True, num_beams=2, max_new_tokens=2)
    model.listener = None
    with pytest.raises(ValueError, match="listener_config"):
        model.generate(**request(400), by_letters=True, num_beams=2, max_new_tokens=2)


def test_it_is_saved_and_loaded_with_its_spelling(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert spell(loaded, "Stop here.") == "stop here"
    asked = request(400)
    audio = model.audio_model(asked["input_values"], asked["padding_mask"])
    torch.testing.assert_close(loaded.listener(audio), model.listener(audio), atol=1e-4, rtol=0)
