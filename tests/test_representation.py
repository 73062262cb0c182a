import copy
import json
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
import torch
from datasets import load_dataset
from f3_training import ablate_representation, latents_training, machine
from f3_training.ctc_helpers import CTCCollator, CTCHelper, CTCUnits, EmbeddingHead, spelled
from f3_training.evaluate_codes import build_parser, evaluate_codes
from f3_training.latents_batches import BatchRandomness, LatentsCollator, TaskMix
from f3_training.latents_cache import LatentsCacheError
from f3_training.latents_training import load_rows
from f3_training.malloc_settings import give_free_memory_back
from f3_training.prompts import TASKS, conversation
from f3_training.representation import RepresentationArguments
from f3_training.representation_report import CodeCollapseError, check_codes, held_out_scores, swapped
from f3_training.representation_training import train_representation
from modeling_f3 import F3AudioLMForConditionalGeneration, F3Config, F3ForPreTraining, F3Model
from safetensors.torch import load_file
from tiny import TINY_ENCODER, noise, saved_parts, tiny_model, tiny_processor, tiny_tokenizer, write_latents


def tone(pitch: float, seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(800 * seconds)) / 800)).astype(np.float32)


def speech(index: int) -> dict:
    """Two words, each with a sound of its own."""
    word = ("yes", "no")[index % 2]
    return {
        "audio": tone((60, 180)[index % 2] + index, 0.5 + 0.05 * (index % 5)),
        "kind": "speech", "language": "en", "text": word, "caption": "", "source": "game",
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    unlabelled = {**speech(0), "text": "", "source": "radio"}
    rows = {"train": [speech(index) for index in range(20)] + [unlabelled], "validation": [speech(i) for i in range(4)]}
    write_latents(folder, tiny_model(), rows)
    return folder


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    small = tiny_tokenizer().config
    values = {"num_codebooks": 2, "codebook_size": 16, "codebook_dim": 3, "num_future_frames": 2}
    monkeypatch.setattr(
        F3Config,
        "preset",
        lambda name, autoencoder_config: F3Config(
            autoencoder_config=autoencoder_config, encoder_config=dict(TINY_ENCODER), **values
        ),
    )
    return small


def arguments(data, output_dir, **values) -> RepresentationArguments:
    defaults = {
        "latents": [str(data / "latents")], "autoencoder": str(data / "autoencoder"), "output_dir": str(output_dir),
        "max_steps": 4, "batch_size": 4, "warmup_steps": 0, "evaluation_steps": 2, "logging_steps": 1, "bf16": False,
    }  # fmt: skip
    return RepresentationArguments(**{**defaults, **values})


def losses(output_dir) -> list[float]:
    state = json.loads((sorted(output_dir.glob("checkpoint-*"))[-1] / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def test_rq_mtp_learns_from_the_cache_and_leaves_a_tokenizer_behind(data, tmp_path):
    train_representation(arguments(data, tmp_path, max_steps=40, evaluation_steps=20, learning_rate=1e-2))
    history = json.loads((tmp_path / "training.json").read_text())["history"]
    assert [row["step"] for row in history] == [0, 20, 40]
    assert history[-1]["code_ce_1"] < history[0]["code_ce_1"] - 0.3
    assert {"code_ce_2", "code_unigram", "code_usage", "code_perplexity"} <= history[-1].keys()
    rows = load_dataset("parquet", data_files=str(data / "latents/data/train-*.parquet"))["train"]
    frames = np.asarray(rows["frames"])
    assert 40 * 4 * frames.min() < history[-1]["audio_hours"] * 3600 * 25 < 40 * 4 * frames.max()
    assert history[1]["audio_hours"] == pytest.approx(history[2]["audio_hours"] / 2, rel=0.05)
    assert 0 == history[0]["minutes"] < history[1]["minutes"] < history[2]["minutes"]
    state = json.loads((tmp_path / "checkpoint-40" / "trainer_state.json").read_text())
    assert [row["step"] for row in state["log_history"] if "eval_code_ce_1" in row] == [0, 20]  # saved, then scored
    trained = F3ForPreTraining.from_pretrained(tmp_path / "model")
    assert not torch.equal(trained.prediction.quantizer.deviation, torch.ones(4))
    for name, tensor in tiny_model().state_dict().items():
        assert torch.equal(trained.model.autoencoder.state_dict()[name], tensor), name
    assert isinstance(F3Model.from_pretrained(tmp_path / "model"), F3Model)


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_gives_way_where_it_is_slow(data, tmp_path, monkeypatch, fast):
    monkeypatch.setattr(machine, "fast_in_bf16", lambda: fast)
    train_representation(arguments(data, tmp_path, max_steps=1, bf16=True))
    assert json.loads((tmp_path / "training.json").read_text())["arguments"]["bf16"] == fast


def test_training_gives_memory_back_now_and_then(data, tmp_path, monkeypatch):
    given_back = []
    monkeypatch.setattr(latents_training, "give_free_memory_back", lambda: given_back.append(give_free_memory_back()))
    train_representation(arguments(data, tmp_path, max_steps=2 * latents_training.STEPS_BETWEEN_TRIMS + 1))
    assert len(given_back) == 2


def test_encoders_of_an_ablation_differ_in_their_teachers_alone(data, tmp_path):
    _, text = saved_parts(tmp_path)
    options = {
        "latents": data / "latents", "autoencoder": data / "autoencoder", "language_model": text, "dataset": "mixture",
        "output_dir": tmp_path / "ablation", "max_steps": 10, "batch_size": 4, "evaluation_items": 4,
    }  # fmt: skip
    command = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    given = ablate_representation.build_parser().parse_args([*command, "--no-bf16"])
    encoders = ablate_representation.ablate(given)
    assert list(encoders) == ["untrained", "RQ only", "LLM only", "RQ + LLM"]
    weights = [F3Model.from_pretrained(folder).encoder.projection.weight for folder in encoders.values()]
    assert all(not torch.equal(one, other) for one, other in combinations(weights, 2))
    learned = {}
    for name in list(encoders)[1:]:
        lessons = [
            json.loads((tmp_path / "ablation" / name.replace(" ", "") / lesson / "training.json").read_text())
            for lesson in ("words", "answers")
        ]
        assert [lesson["steps"] for lesson in lessons] == [9, 1]
        learned[name] = [{"code_ce_1", "letters_loss", "tokens_loss", "text_ce"} & lesson["history"][-1].keys()
                         for lesson in lessons]  # fmt: skip
    weights = json.loads((tmp_path / "ablation/RQ+LLM/words/training.json").read_text())["arguments"]
    assert (weights["code_loss_weight"], weights["token_loss_weight"]) == (1.0, 0.3)
    run = {"chance": 0.25, "accuracy": {"RQ only": 0.5, "LLM only": 0.75}}
    probed = {"conditions": {"dimensions": {"RQ only": 8, "LLM only": 8}}, "tasks": {"digit": {"runs": [run]}}}
    wrong = {"RQ only": 8, "LLM only": 5}
    sources = {name: {"joe": {"errors": errors, "words": 10, "wer": errors / 10}} for name, errors in wrong.items()}
    losses = {"own": 3.0, "swapped": 3.5}
    read = {"features": {name: {"sources": found, "text_loss": losses} for name, found in sources.items()}}
    text = ablate_representation.markdown(given, probed, read)
    assert "10 steps of 4 rows" in text and "| LLM only | 8 | 75.0 | 75.0 |" in text
    assert "| LLM only | 50.0 | 50.0 | 3.000 | 3.500 |" in text and "| LLM only | 75.0 | 50.0 | 62.5 |" in text
    given.features = [(name, str(folder)) for name, folder in encoders.items()]
    asked = ablate_representation.reading(given)
    assert [name for name, _ in asked.features] == ["RQ only", "LLM only", "RQ + LLM"] and not asked.bf16
    spelled_out = {"letters_loss", "tokens_loss"}
    assert learned == {
        "RQ only": [{"code_ce_1"}, {"code_ce_1"}],
        "LLM only": [spelled_out, spelled_out | {"text_ce"}],
        "RQ + LLM": [spelled_out | {"code_ce_1"}, spelled_out | {"code_ce_1", "text_ce"}],
    }


@pytest.mark.parametrize("given", [{"frozen": "encoder"}, {"listener_layers": 1}])
def test_parts_of_an_audio_language_model_are_refused_without_one(data, tmp_path, given):
    with pytest.raises(ValueError, match="pass one as --init_from"):
        train_representation(arguments(data, tmp_path, **given))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(data, tmp_path):
    crops = {"max_seconds": 0.2}
    train_representation(arguments(data, tmp_path / "whole", **crops))
    train_representation(arguments(data, tmp_path / "parts", max_minutes=0, **crops))  # one step
    train_representation(arguments(data, tmp_path / "parts", **crops))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_cache_of_another_autoencoder_is_refused(data, tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(LatentsCacheError, match="latents of another autoencoder"):
        train_representation(arguments(data, tmp_path / "run", autoencoder=str(tmp_path / "other")))


def test_joint_training_teaches_the_encoder_and_leaves_the_language_model_as_it_was(data, tmp_path):
    audio, text = saved_parts(tmp_path)
    run = arguments(
        data, tmp_path / "run", autoencoder=None, init_from=str(audio), language_model=str(text),
        connector_hidden_size=20, max_steps=40, evaluation_steps=40, learning_rate=1e-2,
    )  # fmt: skip
    before = F3AudioLMForConditionalGeneration.from_audio_text_pretrained(
        audio, text, connector_hidden_size=20, **tiny_processor().token_ids
    ).state_dict()
    trained = train_representation(run)
    after = trained.state_dict()
    for name in before:
        if name.startswith("language_model.") or ".autoencoder." in name:
            assert torch.equal(after[name], before[name]), name
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert history[-1]["text_ce"] < history[0]["text_ce"] - 1
    assert {"text_ce_swapped", "code_ce_1"} <= history[-1].keys()
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    tokenizer = F3Model.from_pretrained(tmp_path / "run" / "tokenizer")
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(loaded.audio_model.state_dict()[name], tensor), name


def test_letters_help_and_are_thrown_away(data, tmp_path):
    """RQ-MTP with letters: their loss falls, resuming changes nothing, and the result is a tokenizer as without them."""
    options = {"letter_loss_weight": 1.0, "max_steps": 30, "evaluation_steps": 30, "learning_rate": 1e-2}
    train_representation(arguments(data, tmp_path / "parts", **options, max_minutes=0))
    train_representation(arguments(data, tmp_path / "parts", **options))
    trained = train_representation(arguments(data, tmp_path / "whole", **options))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    history = json.loads((tmp_path / "whole" / "history.json").read_text())
    assert history[-1]["letters_loss"] < 0.7 * history[0]["letters_loss"]
    assert type(trained) is F3ForPreTraining
    stored = F3ForPreTraining.from_pretrained(tmp_path / "whole" / "model").state_dict()
    assert stored.keys() == tiny_tokenizer(F3ForPreTraining).state_dict().keys()


def test_letters_are_of_whole_rows_of_speech_only():
    collator = CTCCollator(LatentsCollator(10), CTCUnits("letters", spelled, ["Ab, don't!"]), max_frames=10)
    row = {"latents": np.zeros((8, 4), dtype=np.float32), "frames": 8, "kind": "speech", "text": "B a?"}
    long, music = {**row, "frames": 20}, {**row, "kind": "music"}
    letters = collator([row, long, music])["letters"]
    characters = sorted(" abdno't")
    assert letters.tolist() == [[1 + characters.index(sign) for sign in "b a"], [-100] * 3, [-100] * 3]


def test_the_letters_loss_is_ctc_per_letter_and_the_mean_of_the_rows():
    model = tiny_tokenizer(F3ForPreTraining)
    latents, mask = noise(3, 6, 4), torch.arange(6) < torch.tensor([6, 4, 5])[:, None]
    batch = {"latents": latents, "latents_mask": mask}
    alone = model(**batch)
    helper = CTCHelper(model, model.model, "letters", torch.nn.Linear(model.config.hidden_size, 6), 0.5)
    letters = torch.tensor([[1, 2, -100], [3, 3, 5], [-100] * 3])
    output = model(**batch, letters=letters)
    scores = model.letters_head(model.model(**batch).last_hidden_state).log_softmax(-1)
    expected = [
        torch.nn.functional.ctc_loss(scores[row, :frames], letters[row, :count], [frames], [count], reduction="sum")
        / count
        for row, frames, count in ((0, 6, 2), (1, 4, 3))
    ]
    torch.testing.assert_close(output.letters_loss, sum(expected) / 3)
    torch.testing.assert_close(output.loss, alone.loss + 0.5 * output.letters_loss)
    helper.own_weight = 0.25
    torch.testing.assert_close(model(**batch, letters=letters).loss, 0.25 * alone.loss + 0.5 * output.letters_loss)
    helper.own_weight = 0
    assert model.train()(**batch, letters=letters).code_losses is None
    assert model.eval()(**batch, letters=letters).code_losses is not None
    helper.detach()
    assert torch.equal(model(**batch).loss, alone.loss) and "letters_head.weight" not in model.state_dict()


def test_tokens_teach_the_connector_and_are_thrown_away(data, tmp_path, monkeypatch):
    """
    The loss of the language model's own tokens falls without it being run, its embeddings stay, the result has no other
    weights, and can be gone on with by the language model itself.
    """
    audio, text = saved_parts(tmp_path)
    options = {"autoencoder": None, "connector_hidden_size": 20, "learning_rate": 1e-2}
    aligning = arguments(
        data, tmp_path / "run", init_from=str(audio), language_model=str(text), max_steps=30, evaluation_steps=30,
        token_loss_weight=1.0, text_loss_weight=0.0, **options,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("transformers.LlamaForCausalLM.forward", None)
        train_representation(aligning)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    for loss in ("tokens_loss", "embedding_distance"):
        assert history[-1][loss] < 0.7 * history[0][loss], loss
    without = F3AudioLMForConditionalGeneration.from_audio_text_pretrained(
        audio, text, connector_hidden_size=20, **tiny_processor().token_ids
    )
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    assert loaded.state_dict().keys() == without.state_dict().keys()
    for name, weights in loaded.language_model.state_dict().items():
        assert torch.equal(weights, without.language_model.state_dict()[name]), name
    going_on = arguments(data, tmp_path / "on", init_from=str(tmp_path / "run" / "model"), max_steps=1, **options)
    trained = train_representation(going_on)
    assert trained.config.text_loss_weight == 1
    begun = json.loads((tmp_path / "on" / "history.json").read_text())[0]
    assert begun["text_ce"] > 0 and begun["code_ce_1"] == pytest.approx(history[-1]["code_ce_1"], rel=1e-3)


def test_tokens_alone_teach_without_codes_and_without_the_language_model(data, tmp_path):
    audio, text = saved_parts(tmp_path)
    run = arguments(
        data, tmp_path / "run", autoencoder=None, init_from=str(audio), language_model=str(text), max_steps=30,
        evaluation_steps=30, connector_hidden_size=20, learning_rate=1e-2, token_loss_weight=1.0, text_loss_weight=0.0,
        code_loss_weight=0.0,
    )  # fmt: skip
    train_representation(run)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert history[-1]["tokens_loss"] < 0.7 * history[0]["tokens_loss"] and "code_ce_1" not in history[-1]
    names = load_file(tmp_path / "run" / "tokenizer" / "model.safetensors").keys()
    assert names and not any("prediction" in name for name in names)  # random heads are no use to anybody
    assert isinstance(F3Model.from_pretrained(tmp_path / "run" / "tokenizer"), F3Model)


def test_an_audio_token_at_an_embedding_is_sure_of_its_token_and_has_nowhere_to_go():
    embeddings = torch.nn.functional.normalize(noise(5, 8), dim=1)
    head = EmbeddingHead(embeddings)
    scores = head(embeddings)
    assert scores.argmax(-1).tolist() == list(range(5)) and head.distance(embeddings, 100 * scores).max() < 1e-3
    between = embeddings[:2].mean(0)
    sure_of_one = torch.tensor([100.0, 0, 0, 0, 0])
    centred = embeddings - embeddings.mean(0)
    expected = (between - embeddings[0]).square().sum() / centred.square().sum(1).mean()
    torch.testing.assert_close(head.distance(between, sure_of_one), expected)
    assert "embeddings" not in head.state_dict()


def test_a_language_model_that_teaches_nothing_is_refused(data, tmp_path):
    audio, text = saved_parts(tmp_path)
    options = {"autoencoder": None, "init_from": str(audio), "language_model": str(text)}
    with pytest.raises(ValueError, match="--token_loss_weight"):
        train_representation(arguments(data, tmp_path / "run", text_loss_weight=0.0, **options))


def test_tokens_need_a_language_model(data, tmp_path):
    with pytest.raises(ValueError, match="--language_model"):
        train_representation(arguments(data, tmp_path, token_loss_weight=1.0))


def test_accumulated_gradients_make_the_step_of_the_whole_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(BatchRandomness, "generator", lambda self: None)  # the same questions, however rows are batched
    audio, text = saved_parts(tmp_path, latent_noise_scale=0.0)
    weights = []
    for batch_size, parts in ((4, 1), (2, 2)):
        run = arguments(
            data, tmp_path / str(parts), autoencoder=None, init_from=str(audio), language_model=str(text), max_steps=1,
            batch_size=batch_size, gradient_accumulation_steps=parts, connector_hidden_size=20,
        )  # fmt: skip
        torch.manual_seed(0)
        weights.append(copy.deepcopy(train_representation(run).connector.state_dict()))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=2e-4, rtol=0)


def test_a_folder_may_be_for_training_alone_beside_one_with_held_out_rows(data, tmp_path):
    write_latents(tmp_path, tiny_model(), {"train": [speech(index) for index in range(3)]})
    both = arguments(data, tmp_path, latents=[str(tmp_path / "latents"), str(data / "latents")])
    rows = {split: len(load_rows(both, split, tiny_model())) for split in ("train", "validation")}
    assert rows == {"train": 3 + 21, "validation": 4}
    write_latents(tmp_path / "held-out", tiny_model(), {"validation": [speech(0)]})
    swapped_roles = arguments(data, tmp_path, latents=[str(data / "latents"), str(tmp_path / "held-out" / "latents")])
    with pytest.raises(LatentsCacheError, match="has the splits validation, not 'train'"):
        load_rows(swapped_roles, "train", tiny_model())
    alone = arguments(data, tmp_path, latents=[str(tmp_path / "latents")])
    with pytest.raises(LatentsCacheError, match="has the splits train, not 'validation'"):
        load_rows(alone, "validation", tiny_model())


def test_texts_in_other_languages_are_not_learned_but_their_audio_is(tmp_path):
    write_latents(tmp_path, tiny_model(), {"train": [speech(0), {**speech(1), "language": "de"}]})
    everything, english = (
        load_rows(arguments(tmp_path, tmp_path, languages=languages), "train", tiny_model()) for languages in ("", "en")
    )
    assert everything["text"] == [speech(0)["text"], speech(1)["text"]] and english["text"] == [speech(0)["text"], ""]
    assert english["kind"] == ["speech", "speech"] and english["frames"] == everything["frames"]


def test_the_report_of_codes_says_of_the_saved_model_what_training_said(data, tmp_path):
    train_representation(arguments(data, tmp_path / "run"))
    options = ["--model", tmp_path / "run" / "model", "--latents", data / "latents", "--output_dir", tmp_path / "codes"]
    report = evaluate_codes(build_parser().parse_args([*map(str, options), "--split", "validation"]))
    said = json.loads((tmp_path / "run" / "history.json").read_text())[-1]
    assert report["scores"].keys() == {"code_ce_1", "code_ce_2", "code_unigram", "code_usage", "code_perplexity"}
    for name, value in report["scores"].items():
        assert value == pytest.approx(said[name], rel=1e-4), name
    text = (tmp_path / "codes" / "codes.md").read_text()
    assert f"| 1 | {said['code_ce_1']:.2f} | {said['code_unigram'] - said['code_ce_1']:.2f} |" in text


def test_swapped_audio_is_that_of_the_next_row_at_the_length_of_the_own():
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0, 7.0, 8.0])
    latents = torch.stack([torch.cat([first, torch.zeros(2)]), second]).unsqueeze(-1)
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    assert swapped(latents, mask)[..., 0].tolist() == [[4, 5, 6, 0, 0], [1, 2, 3, 1, 2]]


def test_speech_without_a_text_is_left_out_and_in_a_batch_it_is_named():
    mix = TaskMix(tiny_processor(), {"transcribe": 1.0, "kind": 1.0}, 99)
    known = {"frames": 5, "latents": np.zeros((5, 4), dtype=np.float16)}
    row = {**speech(0), **known, "text": ""}
    assert mix.tasks_of(row) == [] and [task.name for task in mix.tasks_of({**speech(1), **known})] == ["transcribe"]
    with pytest.raises(ValueError, match="no task fits a row of kind 'speech', language 'en', text '' and 5 frames"):
        mix([{**speech(0), **known}, row])


def test_a_part_of_a_long_row_is_enough_to_name_it_and_not_to_write_it_down():
    mix = TaskMix(tiny_processor(), {"transcribe": 1.0, "language": 1.0, "kind": 1.0}, 6, BatchRandomness(0))
    long = {**speech(0), "frames": 20, "latents": noise(20, 4).numpy()}
    assert [task.name for task in mix.tasks_of(long)] == ["language"]
    assert [task.name for task in mix.tasks_of({**long, "frames": 6})] == ["transcribe", "language"]
    batch = mix([long, {**long, "kind": "music"}])
    assert batch["latents_mask"].sum(1).tolist() == [6, 6]
    assert (batch["latents"][0, :1] == torch.from_numpy(long["latents"])).all(-1).any()


def test_questions_are_asked_in_several_ways_about_each_kind():
    music = {"kind": "music", "language": "", "text": "", "caption": ""}
    effect = {**music, "kind": "effect", "caption": "a dog"}
    transcribe = TASKS["transcribe"]
    first, second = (conversation(transcribe, speech(0), None, choice)[0]["content"][1]["text"] for choice in (0, 1))
    assert first != second and "English" in first
    assert conversation(TASKS["kind"], music, None, 0)[1]["content"] == "This is music."
    assert conversation(TASKS["caption"], effect, None, 0)[1]["content"] == "a dog"
    assert conversation(TASKS["language"], speech(0), None, 0)[1]["content"] == "This is English."


def test_long_rows_are_cut_at_random_in_training_and_at_their_start_otherwise():
    row = {"latents": np.arange(40, dtype=np.float32).reshape(20, 2)}
    cut = LatentsCollator(5, BatchRandomness(0))
    starts = {cut([row])["latents"][0, 0, 0].item() for _ in range(20)}
    assert len(starts) > 3
    batch = LatentsCollator(5)([row, {"latents": row["latents"][:3]}])
    assert batch["latents"][0, 0, 0] == 0 and batch["latents_mask"].sum(1).tolist() == [5, 3]


def test_collapsed_codes_stop_the_training_with_a_message():
    check_codes({"code_usage": 0.5})
    with pytest.raises(CodeCollapseError, match="only 3.0% of the codes"):
        check_codes({"code_usage": 0.03})


def test_scores_do_not_depend_on_how_rows_are_batched(data):
    from f3_training.latents_cache import load_latents

    rows = load_latents(data / "latents", "validation")
    model = tiny_tokenizer(F3ForPreTraining)
    whole, single = (held_out_scores(model, LatentsCollator(50), rows, size) for size in (4, 1))
    for name in whole:
        assert whole[name] == pytest.approx(single[name], abs=2e-2), name


def test_a_language_model_needs_a_tokenizer_to_join(data, tmp_path):
    with pytest.raises(ValueError, match="train RQ-MTP first"):
        train_representation(arguments(data, tmp_path, language_model="some/model"))
    with pytest.raises(ValueError, match="either --autoencoder"):
        train_representation(arguments(data, tmp_path, init_from="x"))
    assert asdict(arguments(data, tmp_path))["preset"] == "nano"
