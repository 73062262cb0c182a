"""Every walk-through of `examples/`, run as its users run it, on a handful of sounds; the Hub is a folder."""

import inspect
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from datasets import ClassLabel
from f3_training import publish as publish_module
from f3_training.audio_dataset import decode_audio, load_audio_dataset
from f3_training.latents_cache import autoencoder_fingerprint
from modeling_f3 import (
    F3AudioLMForConditionalGeneration,
    F3AutoencoderModel,
    F3FeatureExtractor,
    F3ForAudioClassification,
    F3ForPreTraining,
    F3Model,
)
from test_hub_code import contents_of, run_as_a_stranger
from tiny import (
    noise,
    tiny_audio_lm,
    tiny_feature_extractor,
    tiny_flow_config,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)
from transformers import pipeline


EXAMPLES = Path(__file__).parents[1] / "examples"
RATE = 8000  # of the recordings, and of the autoencoder that is fine-tuned on them; the other models resample
AUTOENCODER = {"sampling_rate": RATE, "stft_window": 64, "stft_hop": 32, "stem_stride": 4, "stem_kernel": (3, 8)}
WORDS = {"low": "Ab!", "high": "c d"}
UNFIT = ("", "a sentence far too long for a puzzled zebra")  # no text, and more letters than latent frames

SHORT = {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
OPTIONS = {
    "finetune_autoencoder": {
        "model": "autoencoder", "max_steps": 2, "warmup_steps": 0, "batch_size": 2, "mixed_precision": "no",
        "discriminator_channels": 4,
    },
    "train_representation": {"autoencoder": "autoencoder", "max_seconds": 0.5, **SHORT},
    "finetune_voice": {"model": "speaker", "text_column": "words", "lora_rank": 2, **SHORT, "learning_rate": 1e-2},
    "finetune_classification": {
        "model": "tokenizer", "label_column": "animal", **SHORT, "max_steps": 25, "learning_rate": 1e-2,
    },
    "finetune_ctc": {"model": "tokenizer", "text_column": "words", **SHORT, "max_steps": 350, "learning_rate": 5e-3},
}  # fmt: skip
PATHS = ("dataset", "output_dir", "autoencoder", "model")


class FakeHub:
    """The two calls of `HfApi` that `publish` makes; repositories are folders."""

    def __init__(self, folder: Path):
        self.folder = folder

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
        return f"https://hub/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, self.folder / repo_id)


def clip(pitch: float, seconds: float, rate: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Recordings as people have them, with columns of their own, and the models that the walk-throughs start from."""
    root = tmp_path_factory.mktemp("examples")
    (root / "sounds").mkdir()
    lines = ["file_name,words,animal"]
    for index in range(16):
        animal = ("low", "high")[index % 2]
        pitch = {"low": 50, "high": 200}[animal] + index
        soundfile.write(root / "sounds" / f"{index}.wav", clip(pitch, 0.6 + 0.02 * index, RATE), RATE)
        lines.append(f"{index}.wav,{UNFIT[index - 14] if index >= 14 else WORDS[animal]},{animal}")
    (root / "sounds" / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    tiny_model(**AUTOENCODER).save_pretrained(root / "autoencoder")
    F3FeatureExtractor(sampling_rate=RATE).save_pretrained(root / "autoencoder")
    tiny_tokenizer().save_pretrained(root / "tokenizer")
    tiny_feature_extractor().save_pretrained(root / "tokenizer")
    speaker = tiny_audio_lm(root / "parts", flow_config=tiny_flow_config(), code_loss_weight=0.0)
    speaker.generation_config.max_new_patches = 5
    speaker.save_pretrained(root / "speaker")
    tiny_processor().save_pretrained(root / "speaker")
    return root


@pytest.fixture(scope="module")
def pushed(root):
    """Runs a walk-through, once, and returns the repository that it has pushed to."""

    def push(name: str) -> Path:
        if not (root / "hub" / "me" / name).exists():
            run(root, name)
        return root / "hub" / "me" / name

    return push


def run(root: Path, name: str, **changes) -> None:
    """From its command line on, in this process."""
    options = {"dataset": "sounds", "output_dir": f"runs/{name}", "repo_id": f"me/{name}", **OPTIONS[name], **changes}
    places = {key: str(root / options[key]) for key in PATHS if key in options}
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish_module, "HfApi", lambda: FakeHub(root / "hub"))
        patch.setattr(
            publish_module, "_problems_of_loading", lambda folder, language_model: []
        )  # a stranger opens all of them below
        patch.setattr(sys, "argv", [name, *(f"--{key}={value}" for key, value in {**options, **places}.items())])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def changed(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    """Names of the weights that differ."""
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return {name for name, weight in old.items() if not torch.equal(weight, new[name])}


def outputs(pattern: str) -> dict:
    """What every variant makes of one sound or text, opened as somebody who finds it on the Hub would."""
    import torch
    from transformers import (
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForAudioClassification,
        AutoModelForCTC,
        AutoModelForTextToWaveform,
        AutoProcessor,
    )

    def opened(auto_class, name: str):
        return auto_class.from_pretrained(pattern.format(name), trust_remote_code=True)

    def heard(name: str) -> dict:
        extractor = opened(AutoFeatureExtractor, name)
        return extractor(torch.sin(torch.arange(700) / 5), sampling_rate=extractor.sampling_rate)

    with torch.no_grad():
        autoencoder = opened(AutoModel, "finetune_autoencoder")
        tokenizer = opened(AutoModel, "train_representation")
        classifier = opened(AutoModelForAudioClassification, "finetune_classification")
        writer = opened(AutoModelForCTC, "finetune_ctc")
        speaker, processor = (opened(auto, "finetune_voice") for auto in (AutoModelForTextToWaveform, AutoProcessor))
        request, noise = processor.apply_speech_request("Ab!"), torch.Generator().manual_seed(0)
        return {
            "decoded": autoencoder.decode(**autoencoder.encode(**heard("finetune_autoencoder"))).audio_values,
            "representations": tokenizer.encode(**heard("train_representation")).last_hidden_state,
            "classes": classifier(**heard("finetune_classification")).logits,
            "letters": writer(**heard("finetune_ctc")).logits,
            "spoken": speaker.generate(**request, generator=noise).audio[0],
        }


STRANGER = f"""
{inspect.getsource(outputs)}
import torch

pattern, answers, _ = sys.argv[1:]
found = outputs(pattern)
for name, expected in torch.load(answers).items():
    torch.testing.assert_close(found[name], expected, msg=name)
"""


def test_the_decoder_learns_and_latents_stay_what_they_were(root, pushed):
    before, after = (
        F3AutoencoderModel.from_pretrained(at) for at in (root / "autoencoder", pushed("finetune_autoencoder"))
    )
    names = changed(before, after)
    assert names and all(name.startswith("decoder.") for name in names)
    assert autoencoder_fingerprint(after) == autoencoder_fingerprint(before)


def test_the_encoder_learns_as_well_if_it_is_to(root):
    run(root, "finetune_autoencoder", output_dir="runs/both", repo_id="me/both", train_encoder=True)
    before, after = (F3AutoencoderModel.from_pretrained(root / at) for at in ("autoencoder", "hub/me/both"))
    assert {name.split(".")[0] for name in changed(before, after)} == {"encoder", "decoder"}


def test_a_new_encoder_learns_on_the_autoencoder_as_it_is(root, pushed):
    trained = F3ForPreTraining.from_pretrained(pushed("train_representation"))
    assert not changed(F3AutoencoderModel.from_pretrained(root / "autoencoder"), trained.model.autoencoder)
    norms = [weight for name, weight in trained.model.encoder.named_parameters() if name.endswith("norm.weight")]
    assert norms and not any(torch.equal(weight, torch.ones_like(weight)) for weight in norms)  # as they began
    assert not torch.equal(
        trained.prediction.quantizer.deviation, torch.ones_like(trained.prediction.quantizer.deviation)
    )


def test_adapter_and_speech_learn_and_the_language_model_stays_what_it_was(root, pushed):
    before, after = (
        F3AudioLMForConditionalGeneration.from_pretrained(at) for at in (root / "speaker", pushed("finetune_voice"))
    )
    adapter = [weight for name, weight in after.state_dict().items() if ".lora_B." in name]
    assert len(adapter) == 14 and all(weight.any() for weight in adapter)  # they begin at zero
    bare = {name.replace(".base_layer.", "."): weight for name, weight in after.language_model.state_dict().items()}
    for name, weight in before.language_model.state_dict().items():
        assert torch.equal(bare[name], weight), name
    assert not changed(before.audio_model, after.audio_model)
    assert all(changed(getattr(before, part), getattr(after, part)) for part in ("connector", "flow_head", "stop_head"))


def test_the_pushed_voice_can_be_heard_and_finds_what_it_adapts(pushed):
    repository = pushed("finetune_voice")
    samples, rate = soundfile.read(repository / "sample.wav")
    assert rate == 800 and len(samples) > 0 and "(sample.wav)" in (repository / "README.md").read_text()
    adapter = json.loads((repository / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "me/finetune_voice"


def test_a_voice_is_taught_the_words_and_the_sound_of_each_row(root):
    collator = runpy.run_path(str(EXAMPLES / "finetune_voice.py"))["VoiceCollator"](tiny_processor(), "words")
    rows = load_audio_dataset(root / "sounds", "train").select(range(2))
    batch = collator(list(rows))
    for row, ids, heard, mask in zip(rows, batch["input_ids"], batch["input_values"], batch["padding_mask"]):
        assert f"Say: {row['words']}<|im_end|>" in tiny_processor().decode(ids)
        np.testing.assert_array_equal(heard[0, mask.bool()], decode_audio(row["audio"], 800))
    assert batch["spoken"].tolist() == [True, True] and (batch["labels"] == -100).all()


def test_a_classifier_learns_its_names_and_the_pipeline_takes_it(root, pushed):
    repository = pushed("finetune_classification")
    before, after = F3Model.from_pretrained(root / "tokenizer"), F3ForAudioClassification.from_pretrained(repository)
    names = changed(before, after.model)
    assert names and all(name.startswith("encoder.") for name in names)
    assert "Accuracy on 2 held-out recordings: 1.000" in (repository / "README.md").read_text()
    best = pipeline("audio-classification", model=str(repository))({"raw": clip(205, 0.8, 800), "sampling_rate": 800})[
        0
    ]
    assert best["label"] == "high"


def test_names_that_a_dataset_has_numbered_keep_their_numbers(root):
    rows = load_audio_dataset(root / "sounds", "train")
    rows.cast_column("animal", ClassLabel(names=["low", "high"])).save_to_disk(root / "numbered")
    run(root, "finetune_classification", dataset="numbered", output_dir="runs/few", repo_id="me/few", max_steps=1)
    assert F3ForAudioClassification.from_pretrained(root / "hub/me/few").config.id2label == {0: "low", 1: "high"}


def test_letters_are_learned_and_the_pipeline_takes_the_result(pushed):
    transcribe = pipeline("automatic-speech-recognition", model=str(pushed("finetune_ctc")))
    assert transcribe({"raw": clip(205, 0.7, 800), "sampling_rate": 800})["text"] == "c d"
    assert transcribe(clip(54, 0.68, 800))["text"] == "ab"


def test_texts_that_audio_has_no_frames_for_are_left_out(pushed):
    vocabulary = json.loads((pushed("finetune_ctc") / "vocab.json").read_text())
    assert set(vocabulary) == {"<pad>", "<unk>", "|", *"abcd"}


def test_labels_stop_where_the_text_stops(root, tmp_path):
    script = runpy.run_path(str(EXAMPLES / "finetune_ctc.py"))
    tokenizer = script["letters"](["a b", "abc"], tmp_path)
    soundfile.write(tmp_path / "noise.wav", noise(800).numpy(), 800)
    rows = [{"audio": str(tmp_path / "noise.wav"), "said": text} for text in ("a", "abc")]
    labels = script["CTCCollator"](tiny_feature_extractor(), tokenizer, "said")(rows)["labels"]
    assert labels.tolist() == [[3, -100, -100], [3, 4, 5]] and tokenizer.pad_token_id == 0
    assert labels.dtype == torch.int64


def test_all_that_was_trained_was_pushed_and_gives_the_same_where_we_are_not_installed(root, pushed, tmp_path):
    for name in OPTIONS:
        assert contents_of(pushed(name)) == contents_of(root / "runs" / name / "model")
    expected = outputs(f"{root}/runs/{{}}/model")
    run_as_a_stranger(STRANGER, f"{root}/hub/me/{{}}", expected, tmp_path / "unused")


def test_every_walk_through_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == OPTIONS.keys()
