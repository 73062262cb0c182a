import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from configuration_f3 import F3AudioLMConfig
from f3_training.audio_lm import AudioLMArguments
from f3_training.audio_lm_training import speaking_model, train_audio_lm, with_lora
from f3_training.latents_batches import TaskMix
from f3_training.prompts import TASKS, conversation
from f3_training.representation import RepresentationArguments
from f3_training.representation_training import train_representation
from modeling_f3 import F3AudioLMForConditionalGeneration, F3Processor
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from tiny import noise, tiny_audio_lm, tiny_model, tiny_processor, write_latents


# Accelerate offers FSDP where there are accelerators; PyTorch shards over processors as well.
ON_PROCESSORS = """
import os
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from f3_training.audio_lm import train

prepare = AcceleratorState.__init__

def sharded(self, *arguments, **options):
    prepare(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP"):
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()

AcceleratorState.__init__ = sharded
train()
"""


def row(index: int, **values) -> dict:
    common = {"kind": "speech", "language": "en", "text": "hi", "caption": "", "source": "game"}
    return {"audio": noise(320 + 32 * (index % 3), seed=index).numpy(), **common, **values}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Latents, and a model of stage 1 that they are of."""
    folder = tmp_path_factory.mktemp("data")
    effect = {"kind": "effect", "language": "", "text": "", "caption": "a bell"}
    music = {"kind": "music", "language": "", "text": ""}
    rows = [row(index) for index in range(8)] + [row(8, **effect), row(9, **music)]
    write_latents(folder, tiny_model(), {"train": rows, "validation": rows[:2] + rows[8:9]})
    model = tiny_audio_lm(folder)
    model.audio_model.autoencoder.load_state_dict(tiny_model().state_dict())
    model.save_pretrained(folder / "listener")
    tiny_processor().save_pretrained(folder / "listener")
    return folder


def arguments(data, output_dir, **values) -> AudioLMArguments:
    defaults = {
        "latents": [str(data / "latents")], "init_from": str(data / "listener"), "output_dir": str(output_dir),
        "max_steps": 4, "batch_size": 4, "warmup_steps": 0, "evaluation_steps": 2, "logging_steps": 1, "bf16": False,
        "flow_hidden_size": 16, "flow_layers": 1,
    }  # fmt: skip
    return AudioLMArguments(**{**defaults, **values})


def test_all_tasks_are_learned_together_and_the_language_model_stays_frozen(data, tmp_path):
    before = speaking_model(arguments(data, tmp_path)).state_dict()
    trained = train_audio_lm(arguments(data, tmp_path, max_steps=30, learning_rate=5e-3))
    after = trained.state_dict()
    for name in before:
        if name.startswith(("language_model.", "audio_model.")):
            assert torch.equal(after[name], before[name]), name
    history = json.loads((tmp_path / "history.json").read_text())
    losses = {"transcribe_text_loss", "speak_flow_loss", "speak_stop_loss", "caption_text_loss", "sound_flow_loss"}
    assert losses <= history[-1].keys()
    assert history[-1]["speak_stop_loss"] < history[0]["speak_stop_loss"]
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "model")
    inputs = tiny_processor().apply_chat_template([{"role": "user", "content": "Say: hi"}], speak=True)
    assert loaded.eval().generate(**inputs, max_new_patches=3).audio[0].numel() > 0


def test_lora_comes_along_can_be_switched_off_and_merged(data, tmp_path):
    base = speaking_model(arguments(data, tmp_path)).eval()
    text_weights = {name: tensor.clone() for name, tensor in base.language_model.state_dict().items()}
    train_audio_lm(arguments(data, tmp_path, lora_rank=2, learning_rate=1e-2))
    folder = tmp_path / "model"
    assert not any(name.startswith("language_model.") for name in load_file(folder / "model.safetensors"))
    batch = TaskMix(tiny_processor(), {"transcribe": 1.0}, 99)(
        [{**row(0), "frames": 12, "latents": noise(12, 4).numpy()}]
    )
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(folder).eval()
    adapted = loaded(**batch).logits
    loaded.disable_adapters()
    bare = loaded(**batch).logits
    assert not torch.allclose(adapted, bare, atol=1e-3)
    found = {name.replace(".base_layer.", "."): weight for name, weight in loaded.language_model.state_dict().items()}
    assert all(torch.equal(found[name], weight) for name, weight in text_weights.items())
    loaded.enable_adapters()
    merged = loaded.merge_adapter()
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    merged.save_pretrained(tmp_path / "merged")
    for model in (merged, F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()):
        torch.testing.assert_close(model(**batch).logits, adapted, atol=1e-4, rtol=1e-4)
    assert "adapter_config.json" not in {path.name for path in (tmp_path / "merged").iterdir()}


def test_weights_sharded_over_processes_learn_what_copies_of_them_do_and_are_saved_whole(data, tmp_path):
    (tmp_path / "run.py").write_text(ON_PROCESSORS)
    histories, adapters = [], []
    for way in ("ddp", "fsdp"):
        options = vars(
            arguments(
                data, tmp_path / way, latents=str(data / "latents"), batch_size=2, lora_rank=2, own_history_share=0.5
            )
        )
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        config = Path(__file__).parents[1] / "examples" / "accelerate" / f"{way}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
        launcher += ["--main_process_port", "0"]  # a free one
        done = subprocess.run(
            [sys.executable, *launcher, "--mixed_precision", "no", tmp_path / "run.py", *given],
            capture_output=True, text=True, timeout=300,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        history = json.loads((tmp_path / way / "history.json").read_text())
        histories.append([value for row in history for name, value in row.items() if name.endswith("_loss")])
        model = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / way / "model")
        adapters.append({name: weight for name, weight in model.state_dict().items() if ".lora_B." in name})
    copies, sharded = adapters
    assert histories[0] == pytest.approx(histories[1], rel=1e-5) and len(histories[0]) == 3 * 6
    assert copies.keys() == sharded.keys() and all(weight.any() for weight in copies.values())
    for name, weight in copies.items():
        torch.testing.assert_close(sharded[name], weight, rtol=1e-3, atol=1e-6, msg=name)


def test_a_speaker_with_an_adapter_goes_on_with_it_and_is_saved_whole(data, tmp_path):
    train_audio_lm(arguments(data, tmp_path / "first", lora_rank=2, learning_rate=1e-2))
    first = tmp_path / "first" / "model"
    batch = TaskMix(tiny_processor(), {"transcribe": 1.0}, 99)(
        [{**row(0), "frames": 12, "latents": noise(12, 4).numpy()}]
    )
    loaded = F3AudioLMForConditionalGeneration.from_pretrained(first).eval()
    expected = loaded(**batch).logits
    loaded.save_pretrained(tmp_path / "copy")
    copy = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "copy").eval()
    assert torch.equal(copy(**batch).logits, expected)
    again = arguments(data, tmp_path / "second", init_from=str(first), lora_rank=8, learning_rate=1e-2)
    started = with_lora(speaking_model(again), 8).eval()
    assert torch.equal(started(**batch).logits, expected)
    assert next(weight for name, weight in started.named_parameters() if "lora_A" in name).shape[0] == 2
    train_audio_lm(again)
    trained = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "second" / "model").eval()
    assert not torch.allclose(trained(**batch).logits, expected, atol=1e-3)
    for name, weight in loaded.language_model.state_dict().items():
        assert ".lora_" in name or torch.equal(trained.language_model.state_dict()[name], weight), name


def test_a_language_model_that_lies_elsewhere_may_be_named(data, tmp_path):
    shutil.copytree(data / "listener", tmp_path / "listener")
    config = tmp_path / "listener" / "config.json"
    config.write_text(config.read_text().replace(str(data / "language-model"), "nobody/nothing"))
    with pytest.raises(OSError, match="nobody/nothing"):
        speaking_model(arguments(data, tmp_path, init_from=str(tmp_path / "listener")))
    named = {"init_from": str(tmp_path / "listener"), "language_model": str(data / "language-model")}
    model = speaking_model(arguments(data, tmp_path, **named))
    expected = speaking_model(arguments(data, tmp_path)).language_model.state_dict()
    assert all(torch.equal(expected[name], weight) for name, weight in model.language_model.state_dict().items())


def test_a_peft_model_of_ours_is_saved_and_loaded_by_peft(data, tmp_path):
    trained = train_audio_lm_without_saving(arguments(data, tmp_path, lora_rank=2, learning_rate=1e-2)).eval()
    batch = TaskMix(tiny_processor(), {"transcribe": 1.0}, 99)(
        [{**row(0), "frames": 12, "latents": noise(12, 4).numpy()}]
    )
    trained.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(speaking_model(arguments(data, tmp_path)), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**batch).logits, trained(**batch).logits)
    with loaded.disable_adapter():
        base = speaking_model(arguments(data, tmp_path)).eval()
        assert torch.equal(loaded(**batch).logits, base(**batch).logits)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, trained(**batch).logits, atol=1e-4, rtol=1e-4)


def train_audio_lm_without_saving(options) -> PeftModel:
    """The model as `Trainer` leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("f3_training.audio_lm_training.save", lambda *parts: None)
        return train_audio_lm(options)


def test_lora_touches_the_language_model_and_the_parts_around_it_only(data, tmp_path):
    adapted = with_lora(speaking_model(arguments(data, tmp_path)), 2)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any("language_model" in name and "lora_A" in name for name in trained)
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert not any("audio_model" in name for name in trained)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_parts_around_the_language_model_may_stay_as_they_are(data, tmp_path, lora_rank):
    options = arguments(
        data,
        tmp_path,
        lora_rank=lora_rank,
        frozen="connector,flow_head",
        learning_rate=1e-2,
        representation_loss_weight=0.5,
        own_history_share=0.5,
    )
    torch.manual_seed(options.seed)
    before = speaking_model(options).state_dict()  # new heads are drawn as they will be
    train_audio_lm(options)
    after = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "model").state_dict()
    for part, stays in (("connector", True), ("flow_head", True), ("stop_head", False), ("representation_head", False)):
        same = [torch.equal(after[name], weight) for name, weight in before.items() if name.startswith(part)]
        assert same and all(same) is stays, part
    assert "speak_representation_loss" in json.loads((tmp_path / "history.json").read_text())[-1]
    assert F3AudioLMConfig.from_pretrained(tmp_path / "model").own_history_share == 0.5
    with pytest.raises(ValueError, match="--frozen names ears: choose from connector, residual_lm, flow_head"):
        train_audio_lm(arguments(data, tmp_path / "other", frozen="ears"))


def test_a_residual_lm_learns_to_speak_while_an_adapted_language_model_stays_as_it_is(data, tmp_path):
    new = {"residual_layers": 1, "residual_hidden_size": 16, "tasks": '{"speak": 1}'}
    train_audio_lm(arguments(data, tmp_path / "listener", lora_rank=2, learning_rate=1e-2, tasks='{"transcribe": 1}'))
    options = {"frozen": "connector", "learning_rate": 1e-2, "init_from": str(tmp_path / "listener" / "model"), **new}
    train_audio_lm(arguments(data, tmp_path / "speaker", **options))
    before, after = (
        F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("listener", "speaker")
    )
    for name, weight in before.items():
        if name.startswith(("audio_model.", "connector.", "language_model.")):
            assert torch.equal(after[name], weight), name
    assert any("lora_" in name for name in after) and after["residual_lm.residual.weight"].abs().sum() > 0
    further = speaking_model(arguments(data, tmp_path, **{**options, "init_from": str(tmp_path / "speaker" / "model")}))
    assert torch.equal(further.state_dict()["residual_lm.residual.weight"], after["residual_lm.residual.weight"])
    from_stage_1 = speaking_model(arguments(data, tmp_path, **new))
    assert from_stage_1.residual_lm is not None and from_stage_1.flow_head is not None


def test_a_listener_learns_letters_while_all_else_stays_as_it_is(data, tmp_path):
    """Stage 1 after stage 2: a model with an adapter that writes and speaks gets a listener."""
    tasks = '{"transcribe": 1, "speak": 1}'
    train_audio_lm(arguments(data, tmp_path / "adapted", lora_rank=2, learning_rate=1e-2, tasks=tasks))
    options = {
        "latents": [str(data / "latents")], "batch_size": 4, "warmup_steps": 0, "evaluation_steps": 20, "bf16": False,
        "max_steps": 20, "learning_rate": 1e-2, "code_loss_weight": 0.0, "text_loss_weight": 0.0,
        "letter_loss_weight": 1.0, "frozen": "encoder,connector",
    }  # fmt: skip
    new = {"listener_layers": 1, "listener_hidden_size": 16}
    folders = [tmp_path / name for name in ("adapted", "once", "twice")]
    for before, folder, more in zip(folders, folders[1:], (new, {})):
        given = {**options, **more, "init_from": str(before / "model"), "output_dir": str(folder)}
        train_representation(RepresentationArguments(**given))
    once, twice = (json.loads((folder / "history.json").read_text()) for folder in folders[1:])
    assert once[-1]["letters_loss"] < 0.8 * once[0]["letters_loss"]
    assert twice[0]["letters_loss"] == pytest.approx(once[-1]["letters_loss"], rel=1e-3)
    before, after = (
        F3AudioLMForConditionalGeneration.from_pretrained(folders[index] / "model").state_dict() for index in (0, 2)
    )
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"listener"}
    speaking = speaking_model(arguments(data, tmp_path, init_from=str(folders[2] / "model")))
    assert not any(weight.requires_grad for weight in speaking.listener.parameters())


def test_a_checkpoint_with_an_adapter_that_lacks_weights_of_the_rest_is_refused(data, tmp_path):
    train_audio_lm(arguments(data, tmp_path, lora_rank=2, tasks='{"transcribe": 1}'))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if name != "connector.output.bias"},
              tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(RuntimeError, match="lacks 1 weights of .*connector.output.bias"):
        F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "model")


def test_a_model_that_speaks_without_an_adapter_can_get_a_residual_lm(data, tmp_path):
    train_audio_lm(arguments(data, tmp_path / "speaker", tasks='{"speak": 1}'))
    given = {"init_from": str(tmp_path / "speaker" / "model"), "residual_layers": 1, "residual_hidden_size": 16}
    before = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "speaker" / "model").state_dict()
    after = speaking_model(arguments(data, tmp_path, **given)).state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"residual_lm"}


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(data, tmp_path):
    def losses(folder):
        state = json.loads((sorted(folder.glob("checkpoint-*"))[-1] / "trainer_state.json").read_text())
        return [entry["loss"] for entry in state["log_history"] if "loss" in entry]

    train_audio_lm(arguments(data, tmp_path / "whole"))
    train_audio_lm(arguments(data, tmp_path / "parts", max_minutes=0))
    train_audio_lm(arguments(data, tmp_path / "parts"))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_tasks_are_drawn_by_weight_among_those_that_fit():
    mix = TaskMix(tiny_processor(), {"transcribe": 1.0, "speak": 3.0, "sound": 5.0}, 99)
    generator = torch.Generator().manual_seed(0)
    drawn = [mix.task_for({**row(0), "frames": 12}, generator).name for _ in range(400)]
    assert set(drawn) == {"transcribe", "speak"} and 0.68 < drawn.count("speak") / 400 < 0.82
    assert mix.tasks_of({**row(0, kind="music", text=""), "frames": 12}) == []
    with pytest.raises(ValueError, match="unknown tasks sing: choose from transcribe"):
        TaskMix(tiny_processor(), {"sing": 1.0}, 99)


def test_a_batch_without_speech_says_so_where_others_have_some():
    batch = [{**row(0), "frames": 12, "latents": noise(12, 4).numpy()}]
    assert TaskMix(tiny_processor(), {"transcribe": 1.0, "speak": 1.0}, 99)(batch)["spoken"].tolist() == [False]
    assert "spoken" not in TaskMix(tiny_processor(), {"transcribe": 1.0}, 99)(batch)


def test_other_voices_than_the_chosen_ones_are_only_listened_to():
    mix = TaskMix(tiny_processor(), {"transcribe": 1.0, "speak": 1.0, "sound": 1.0}, 99, voices=["joe"])
    effect = {"kind": "effect", "text": "", "caption": "a bell", "language": ""}
    for values, expected in (
        ({"source": "joe"}, ["transcribe", "speak"]),
        ({"source": "queen"}, ["transcribe"]),
        ({"source": "game", **effect}, ["sound"]),
    ):
        assert [task.name for task in mix.tasks_of({**row(0, **values), "frames": 12})] == expected


def test_a_speaker_learns_from_rows_that_tell_the_ends_of_their_words_and_from_others(data, tmp_path):
    told = [row(index, text="so be it", word_ends=[0.1, 0.2, 0.4]) for index in range(4)]
    write_latents(tmp_path, tiny_model(), {"train": told})
    latents = [str(data / "latents"), str(tmp_path / "latents")]
    train_audio_lm(arguments(data, tmp_path / "run", latents=latents, word_by_word=True, tasks='{"speak": 1}'))
    processor = F3Processor.from_pretrained(tmp_path / "run" / "model")
    speaker = F3AudioLMForConditionalGeneration.from_pretrained(tmp_path / "run" / "model").eval()
    request = processor.apply_speech_request("so be it")
    assert "script_ids" in request and speaker.generate(**request, max_new_patches=4).audio[0].numel() > 0
    rows = [
        {**told[0], "frames": 10, "latents": noise(10, 4).numpy()},
        {**row(0), "frames": 4, "latents": noise(4, 4).numpy()},
    ]
    first, second = map(processor.decode, TaskMix(processor, {"speak": 1.0}, 99)(rows)["input_ids"])
    assert " s o<repo_name><file_sep> b e<repo_name><file_sep> i t<repo_name><file_sep><file_sep><file_sep>" in first
    assert " h i<repo_name><file_sep><file_sep><filename>" in second


def test_what_is_said_is_in_the_question_and_the_audio_is_the_answer():
    question, answer = conversation(TASKS["speak"], row(0, word_ends=[0.3]), "latents", 0)
    said = {"text": "hi", "word_ends": [0.3]}
    assert question["content"] == "Say: hi" and answer["content"] == [{"type": "audio", "latents": "latents", **said}]
