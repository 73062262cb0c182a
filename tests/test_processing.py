import json
import sys

import pytest
import soundfile
import torch
from feature_extraction_f3 import split_sentences
from modeling_f3 import F3FeatureExtractor, F3Processor
from tiny import noise, tiny_feature_extractor, tiny_processor, tiny_text_tokenizer
from transformers import AutoFeatureExtractor, AutoProcessor


def audio(seconds: float, seed: int = 0):
    return noise(int(800 * seconds), seed=seed).numpy()


def test_each_placeholder_becomes_as_many_tokens_as_its_audio_has():
    processor = tiny_processor()
    inputs = processor(["one <file_sep> two <file_sep>", "<file_sep>"], [audio(0.1), audio(0.2), audio(1.0)], 800)
    counts = (inputs["input_ids"] == processor.token_ids["audio_token_id"]).sum(1)
    assert counts.tolist() == [2 + 3, 13]  # of 3, 5 and 25 frames
    assert inputs["input_values"].shape == (3, 1, 800) and inputs["attention_mask"].shape == inputs["input_ids"].shape


def test_latents_take_the_place_of_waveforms():
    processor, messages = (
        tiny_processor(),
        [{"role": "user", "content": [{"type": "audio", "latents": torch.ones(5, 4)}]}],
    )
    inputs = processor.apply_chat_template([messages, messages], add_generation_prompt=True)
    assert inputs["latents"].shape == (2, 5, 4) and inputs["latents_mask"].all()
    assert (inputs["input_ids"][0] == processor.token_ids["audio_token_id"]).sum() == 3


def test_labels_are_the_answers_and_nothing_else():
    processor = tiny_processor()
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What? "}, {"type": "audio", "audio": audio(0.3)}]},
        {"role": "assistant", "content": "a bell"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    inputs = processor.apply_chat_template(messages, return_labels=True, sampling_rate=800)
    labels, ids = inputs["labels"][0], inputs["input_ids"][0]
    assert processor.decode(labels[labels != -100]) == "a bell<|im_end|>\nyes<|im_end|>\n"
    assert torch.equal(labels[labels != -100], ids[labels != -100])
    whole = processor.apply_chat_template(messages, tokenize=False)
    assert (
        processor.decode(ids).replace("<repo_name><file_sep><file_sep><file_sep><file_sep><filename>", "<file_sep>")
        == whole
    )


def test_a_file_is_read_and_brought_to_the_rate_of_the_model(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, audio(1.0), 1600)  # half a second
    from_file, given = (
        tiny_processor().apply_chat_template([{"role": "user", "content": [{"type": "audio", **part}]}])
        for part in ({"path": str(path)}, {"audio": {"array": audio(0.5), "sampling_rate": 800}})
    )
    assert from_file["input_values"].shape == (1, 1, 400)
    assert torch.equal(from_file["input_ids"], given["input_ids"])


def test_the_last_message_is_gone_on_with():
    processor = tiny_processor()
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hel"}]
    ids = processor.apply_chat_template(messages, continue_final_message=True)["input_ids"][0]
    assert processor.decode(ids).endswith("<|im_start|>assistant\nhel")
    voice = [{"role": "assistant", "content": [{"type": "audio", "latents": torch.ones(4, 4)}]}]
    ids = processor.apply_chat_template(messages[:1] + voice, continue_final_message=True)["input_ids"][0]
    assert ids[-2:].tolist() == [processor.token_ids["audio_token_id"]] * 2


def test_padding_is_left_to_generate_and_right_to_train():
    processor = tiny_processor()
    batch = [[{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}] for text in ("a", "longer")]
    assert processor.apply_chat_template(batch)["attention_mask"][0, 0] == 0
    trained = processor.apply_chat_template(batch, return_labels=True)
    assert trained["attention_mask"][0, -1] == 0 and trained["labels"][0, -1] == -100


def test_a_processor_comes_back_from_its_folder_again_and_again(tmp_path):
    processor, folder = tiny_processor(), tmp_path / "0"
    processor.save_pretrained(folder)
    for generation in (1, 2):
        loaded = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        assert isinstance(loaded, F3Processor) and isinstance(loaded.feature_extractor, F3FeatureExtractor)
        assert loaded.token_ids == processor.token_ids and loaded.hop_length == 32
        assert loaded.feature_extractor.sampling_rate == 800
        folder = tmp_path / str(generation)
        loaded.save_pretrained(folder)
    auto_map = json.loads((folder / "processor_config.json").read_text())["auto_map"]
    assert auto_map["AutoProcessor"] == "processing_f3.F3Processor"
    assert AutoFeatureExtractor.from_pretrained(folder).sampling_rate == 800


def talk(seconds: float, **said) -> list[dict]:
    answer = {"type": "audio", "latents": torch.zeros(round(seconds * 25), 4), **said}
    return [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": [answer]}]


def test_words_stand_before_the_patches_that_say_them(tmp_path):
    """A patch, 80 ms, in which a word ends and the next begins belongs to the next; every word has one."""
    processor = tiny_processor()
    start, patch, end = processor.start_token, processor.placeholder_token, processor.end_token
    said = {"text": "Hi, a Jo", "word_ends": [0.2, 0.21, 0.48]}

    def answer(**said) -> str:
        batch = processor.apply_chat_template(talk(0.48, **said), return_labels=True)
        assert batch["labels"].eq(-100).all()
        return processor.decode(batch["input_ids"][0]).rpartition("assistant\n")[2].partition("<|im_end|>")[0]

    assert answer(**said) == f"{start}{patch * 6}{end}"  # of a model that does not speak word by word
    processor.word_by_word = True
    processor.save_pretrained(tmp_path)
    processor = F3Processor.from_pretrained(tmp_path)
    assert answer(**said) == f"{start} h i ,{start}{patch * 2} a{start}{patch} j o{start}{patch * 3}{end}"
    heard = processor.apply_chat_template([{**talk(0.48, **said)[1], "role": "user"}])
    assert " h" not in processor.decode(heard["input_ids"][0])
    assert answer(text="Hi Jo") == f"{start} h i   j o{start}{patch * 6}{end}"
    assert answer() == f"{start}{patch * 6}{end}"


def test_ends_of_words_that_cannot_be_are_refused():
    processor = tiny_processor()
    processor.word_by_word = True
    with pytest.raises(ValueError, match="2 word_ends are given for the 3 words of 'a b c'"):
        processor.apply_chat_template(talk(0.48, text="a b c", word_ends=[0.2, 0.4]), return_labels=True)
    with pytest.raises(ValueError, match="3 words do not fit into 2 patches"):
        processor.apply_chat_template(talk(0.16, text="a b c", word_ends=[0.05, 0.1, 0.16]), return_labels=True)


def test_what_is_to_be_said_word_by_word_comes_as_a_script():
    processor = tiny_processor()
    assert "script_ids" not in processor.apply_speech_request("So be it")
    plain = processor.apply_speech_request(["So be it", "Oh"])["input_ids"]
    processor.word_by_word = True
    request = processor.apply_speech_request(["So be it", "Oh"])
    assert torch.equal(request["input_ids"], plain)
    start, end = processor.start_token, processor.end_token
    first, second = map(processor.decode, request["script_ids"])
    assert first == f" s o{start} b e{start} i t{start}{end}" and second.startswith(f" o h{start}{end}{end}")
    talks = [[{"role": "user", "content": content}] for content in ("Say: Hm. Say: so", "Sing.")]
    asked = processor.apply_chat_template(talks, speak=True)
    assert list(map(processor.decode, asked["script_ids"])) == [f" s o{start}{end}", end * 6]
    answered = [*talks[0], {"role": "assistant", "content": "so"}, *talks[1]]
    assert processor.decode(processor.apply_chat_template(answered, speak=True)["script_ids"][0]) == end
    assert "script_ids" not in processor.apply_chat_template(talks, add_generation_prompt=True)
    prompts = processor.apply_chat_template(talks, speak=True, tokenize=False)
    assert torch.equal(processor(prompts)["script_ids"], asked["script_ids"])


def test_sentences_end_where_a_reader_stops():
    for text, expected in (
        (" Good morning.  How are you? ", ["Good morning.", "How are you?"]),
        ("Mr. Smith met Dr. No at J. Doe's. He left!", ["Mr. Smith met Dr. No at J. Doe's.", "He left!"]),
        ("It was 3.5 m, e.g. there\nA line\n\n", ["It was 3.5 m, e.g. there", "A line"]),
        ('He said "Go." "Why?"', ['He said "Go." "Why?"']),
        ("  ", []),
    ):
        assert split_sentences(text) == expected


def test_mistakes_are_named():
    processor = tiny_processor()
    with pytest.raises(ValueError, match="the texts name 1 audios"):
        processor("a <file_sep>")
    with pytest.raises(ValueError, match="of type 'video'"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])
    with pytest.raises(ValueError, match="conversation 0 has no answer"):
        processor.apply_chat_template([[{"role": "user", "content": "a"}]], return_labels=True)
    mixed = [{"type": "audio", "audio": audio(0.1)}, {"type": "audio", "latents": torch.ones(5, 4)}]
    with pytest.raises(ValueError, match="some audio is given as latents"):
        processor.apply_chat_template([{"role": "user", "content": mixed}])
    with pytest.raises(ValueError, match="has '<file_sep>' in it, which stands for audio"):
        processor.apply_chat_template([{"role": "user", "content": "a <file_sep>"}])
    with pytest.raises(ValueError, match="one of 'audio', 'path' and 'latents'"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}])
    with pytest.raises(ValueError, match="leave out one of the two options"):
        processor.apply_chat_template(
            [{"role": "user", "content": "a"}], continue_final_message=True, return_labels=True
        )
    with pytest.raises(ValueError, match=r"no tokens \['<audio>'\]"):
        F3Processor(tiny_feature_extractor(), tiny_text_tokenizer(), 32, "<repo_name>", "<audio>", "<filename>")
    with pytest.raises(ValueError, match="got 400 Hz"):
        processor("<file_sep>", audio(0.1), 400)


def test_saving_audio_without_soundfile_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match="pip install soundfile"):
        tiny_processor().save_audio(torch.zeros(3), str(tmp_path / "speech.wav"))


def test_audio_of_nobody_known_and_speech_of_no_words_are_refused():
    processor = tiny_processor()
    with pytest.raises(ValueError, match="role 'robot' has audio: say who is heard, one of system, user"):
        processor.apply_chat_template([{"role": "robot", "content": [{"type": "audio", "audio": audio(0.1)}]}])
    with pytest.raises(ValueError, match=r"2 spoken answers are to say \['hi', ' '\]: give each"):
        processor.apply_speech_request(["hi", " "])
    with pytest.raises(ValueError, match=r"1 spoken answers are to say \['a', 'b'\]"):
        processor.apply_chat_template([{"role": "user", "content": "hi"}], speak=True, script=["a", "b"])
