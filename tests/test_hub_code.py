import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from configuration_f3.hub_code import PACKAGES, collect_sources, export_code
from f3_training.publish import NOT_INSTALLED
from huggingface_hub.errors import EntryNotFoundError
from modeling_f3 import F3AutoencoderModel, F3ForCTC, F3ForPreTraining, F3SpeechRecognitionPipeline
from tiny import (
    noise,
    tiny_audio_lm,
    tiny_config,
    tiny_feature_extractor,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_imports, get_relative_import_files
from transformers.utils import hub


ROOT = Path(__file__).parent.parent
CONFIG_CODE = {"configuration_autoencoder.py", "hub_code.py"}
MODEL_CODE = CONFIG_CODE | {
    "causal_conv.py",
    "ladder.py",
    "latent_bottleneck.py",
    "model_outputs.py",
    "modeling_autoencoder.py",
    "pretrained_model.py",
    "spectrogram.py",
    "streaming_state.py",
}
EXTRACTOR_CODE = {"feature_extraction_f3.py", "hub_code.py", "resampling.py"}
AUTO_MAP = {
    "AutoConfig": "configuration_autoencoder.F3AutoencoderConfig",
    "AutoModel": "modeling_autoencoder.F3AutoencoderModel",
    "AutoModelForAudioTokenization": "modeling_autoencoder.F3AutoencoderModel",
}

# What somebody runs who has never installed us: every Auto class, the same outputs, and saving again.
STRANGER = """
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

folder, answers, target = sys.argv[1:]
expected = torch.load(answers)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
inputs = extractor(expected["audio"], sampling_rate=config.sampling_rate)
for auto_class in (AutoModel, AutoModelForAudioTokenization):
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == "F3AutoencoderModel", type(model)
    with torch.no_grad():
        latents = model.encode(**inputs)
        audio = model.decode(**latents).audio_values
    assert torch.equal(latents.latents, expected["latents"])
    assert torch.equal(audio, expected["audio_values"])
    assert torch.equal(AutoModel.from_config(config, trust_remote_code=True).encoder.spectrogram.analysis_window,
                       model.encoder.spectrogram.analysis_window)
model.save_pretrained(target)
extractor.save_pretrained(target)
config.save_pretrained(target + "-config")
"""

# The same for text and audio together; the language model stays where it was.
STRANGER_TO_LANGUAGE_MODELS = """
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

folder, answers, target = sys.argv[1:]
expected = torch.load(answers)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
assert not any(parameter.requires_grad for parameter in model.language_model.parameters())
inputs = processor("<file_sep>?", expected["audio"].numpy(), 800)
with torch.no_grad():
    torch.testing.assert_close(model(**inputs).logits, expected["logits"])
transcribe = pipeline("automatic-speech-recognition", model=folder, trust_remote_code=True)
assert transcribe(expected["audio"].numpy(), max_new_tokens=4) == expected["transcript"]
model.save_pretrained(target)
processor.save_pretrained(target)
"""


@pytest.fixture
def saved(tmp_path) -> Path:
    """A model and a feature extractor in one folder."""
    tiny_model().save_pretrained(tmp_path / "first")
    tiny_feature_extractor().save_pretrained(tmp_path / "first")
    return tmp_path / "first"


def files_of(folder: Path, suffix: str = "") -> set[str]:
    return {file.name for file in folder.iterdir() if file.name.endswith(suffix)}


def contents_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def auto_map_of(file: Path) -> dict[str, str]:
    return json.loads(file.read_text())["auto_map"]


def visit_as_a_stranger(folder: Path, target: Path) -> None:
    """Runs `STRANGER` on `folder` in a process that cannot import the project."""
    model, audio = tiny_model(), noise(100)
    with torch.no_grad():
        encoded = model.encode(audio[None, None])
        expected = {"audio": audio, "latents": encoded.latents, "audio_values": model.decode(**encoded).audio_values}
    run_as_a_stranger(STRANGER, folder, expected, target)


def run_as_a_stranger(script: str, folder: Path, expected: dict, target: Path) -> None:
    """Runs a script in a process that cannot import the project."""
    answers = target.parent / "answers.pt"
    torch.save(expected, answers)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HOME": str(target.parent / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", NOT_INSTALLED + script, folder, answers, target],
        env=environment,
        cwd=target.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_folder_holds_all_code_and_auto_classes(saved):
    assert files_of(saved, ".py") == MODEL_CODE | EXTRACTOR_CODE
    assert auto_map_of(saved / "config.json") == AUTO_MAP
    assert auto_map_of(saved / "preprocessor_config.json") == {
        "AutoFeatureExtractor": "feature_extraction_f3.F3FeatureExtractor"
    }


def test_three_generations_load_without_the_package(saved):
    second, third = saved.with_name("second"), saved.with_name("third")
    visit_as_a_stranger(saved, second)
    assert contents_of(second) == contents_of(saved)
    assert files_of(second.with_name("second-config")) == CONFIG_CODE | {"config.json"}
    visit_as_a_stranger(second, third)
    assert contents_of(third) == contents_of(saved)


def test_the_audio_language_model_loads_without_the_package_and_can_be_saved_again(tmp_path):
    model, audio = tiny_audio_lm(tmp_path), noise(300)
    model.save_pretrained(tmp_path / "0")
    tiny_processor().save_pretrained(tmp_path / "0")
    with torch.no_grad():
        logits = model(**tiny_processor()("<file_sep>?", audio.numpy(), 800)).logits
    transcribe = F3SpeechRecognitionPipeline(model=model, processor=tiny_processor())
    expected = {"audio": audio, "logits": logits, "transcript": transcribe(audio.numpy(), max_new_tokens=4)}
    for generation in (0, 1):
        target = tmp_path / str(generation + 1)
        run_as_a_stranger(STRANGER_TO_LANGUAGE_MODELS, tmp_path / str(generation), expected, target)
        assert files_of(target, ".py") == files_of(tmp_path / "0", ".py")


@pytest.mark.parametrize("model_class, options", [(F3ForPreTraining, {}), (F3ForCTC, {"vocab_size": 5})])
def test_every_head_is_named_in_the_folder_of_its_relatives(model_class, options, tmp_path):
    tiny_tokenizer(model_class, **options).save_pretrained(tmp_path)
    auto_map = auto_map_of(tmp_path / "config.json")
    assert auto_map["AutoModel"] == "modeling_f3.F3Model" and auto_map["AutoConfig"] == "configuration_f3.F3Config"
    for auto_class in model_class.auto_classes:
        assert auto_map[auto_class] == f"modeling_f3.{model_class.__name__}"
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "F3Model"


def test_only_imports_are_rewritten(saved):
    sources = {path.name: path for package in PACKAGES for path in (ROOT / package).glob("*.py")}
    for name in files_of(saved, ".py"):
        exported = (saved / name).read_bytes().split(b"\n")
        original = sources[name].read_bytes().split(b"\n")
        assert len(exported) == len(original)
        for ours, theirs in zip(original, exported):
            if ours != theirs:
                package = next(package for package in PACKAGES if ours.startswith(f"from {package}.".encode()))
                assert theirs == ours.replace(f"from {package}.".encode(), b"from .")


def test_transformers_finds_every_import_in_the_folder(saved):
    for name in files_of(saved, ".py"):
        needed = {Path(file).name for file in get_relative_import_files(saved / name)}
        assert needed <= files_of(saved)


def test_only_what_inference_needs_is_imported():
    """Transformers refuses code with an import, anywhere but in a `try`, of what is not installed where it is loaded."""
    light = set(sys.stdlib_module_names) | {"huggingface_hub", "transformers"} | set(PACKAGES)
    for package in PACKAGES:
        for path in (ROOT / package).glob("*.py"):
            allowed = light if package == "configuration_f3" else light | {"numpy", "safetensors", "torch"}
            assert set(get_imports(path)) <= allowed, path


def test_a_config_alone_brings_its_own_code(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert files_of(tmp_path) == CONFIG_CODE | {"config.json"}
    assert auto_map_of(tmp_path / "config.json") == {"AutoConfig": AUTO_MAP["AutoConfig"]}


def test_entries_of_the_repository_loaded_from_are_replaced(tmp_path):
    model = tiny_model()
    model.config.auto_map = {name: f"someone/else--{reference}" for name, reference in AUTO_MAP.items()}
    model.save_pretrained(tmp_path)
    assert auto_map_of(tmp_path / "config.json") == AUTO_MAP


def test_a_class_of_somebody_else_is_not_passed_off_as_ours(tmp_path):
    class Derived(F3AutoencoderModel):
        pass

    Derived(tiny_config()).save_pretrained(tmp_path)
    assert auto_map_of(tmp_path / "config.json") == {"AutoConfig": AUTO_MAP["AutoConfig"]}
    assert files_of(tmp_path, ".py") == CONFIG_CODE
    F3AutoencoderModel.from_pretrained(tmp_path)


def test_only_the_main_process_writes(tmp_path):
    tiny_model().save_pretrained(tmp_path, is_main_process=False)
    assert files_of(tmp_path) == set()


# pushing


class FakeHub:
    """The two calls of `HfApi` that a push makes; the repository is a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def create_repo(self, repo_id: str, **kwargs):
        self.folder.mkdir(exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self, repo_id: str, operations: list, **kwargs):
        for operation in operations:
            content = Path(operation.path_or_fileobj).read_bytes()
            (self.folder / operation.path_in_repo).write_bytes(content)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    def no_card(*args, **kwargs):
        raise EntryNotFoundError("no card yet")

    monkeypatch.setattr(hub, "_hf_api", FakeHub(tmp_path / "repository"))
    monkeypatch.setattr(hub.ModelCard, "load", no_card)
    return tmp_path / "repository"


def test_push_to_hub_uploads_everything(repository, saved):
    tiny_model().push_to_hub("someone/f3")
    tiny_feature_extractor().push_to_hub("someone/f3")
    uploaded = contents_of(repository)
    assert uploaded.pop("README.md")
    assert uploaded == contents_of(saved)
    visit_as_a_stranger(repository, repository.with_name("from-repository"))


def test_saving_with_push_to_hub_uploads_everything(repository, saved, tmp_path):
    folder = str(tmp_path / "pushed")
    tiny_model().save_pretrained(folder, push_to_hub=True, repo_id="someone/f3")
    assert files_of(repository) == MODEL_CODE | {"config.json", "model.safetensors", "README.md"}
    tiny_feature_extractor().save_pretrained(folder, push_to_hub=True, repo_id="someone/f3")
    uploaded = contents_of(repository)
    assert uploaded.pop("README.md")
    assert uploaded == contents_of(saved)


def test_pushing_again_uploads_code_that_an_older_folder_lacks(repository, saved):
    tiny_model().save_pretrained(str(saved), push_to_hub=True, repo_id="someone/f3")
    assert files_of(repository, ".py") == MODEL_CODE


def test_a_config_is_pushed_with_its_code(repository):
    tiny_config().push_to_hub("someone/f3")
    assert files_of(repository) == CONFIG_CODE | {"config.json", "README.md"}


# the rules of the house that flattening relies on


def test_file_names_are_unique_across_the_packages():
    names = [path.name for package in PACKAGES for path in (ROOT / package).glob("*.py") if path.stem != "__init__"]
    assert len(names) == len(set(names))


def test_every_file_can_be_flattened():
    for package in PACKAGES:
        for path in (ROOT / package).glob("*.py"):
            if path.stem != "__init__":
                assert path.name in collect_sources(path)


def test_no_class_is_called_a_tokenizer():
    """Transformers writes an `auto_map` that it cannot read for such names."""
    for package in PACKAGES:
        for path in (ROOT / package).glob("*.py"):
            classes = [line for line in path.read_text().splitlines() if line.startswith("class ")]
            assert not any("Tokenizer" in line.split("(")[0] for line in classes), path


def test_a_saved_configuration_does_not_tell_where_the_parts_lay(tmp_path):
    model = tiny_audio_lm(tmp_path / "parts", text_model_name_or_path="somebody/language-model")
    assert str(tmp_path) in model.config.text_config._name_or_path
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("card", sorted(path.parent.name for path in (ROOT / "model_cards").glob("*/config.json")))
def test_published_folders_carry_the_present_code(card, tmp_path):
    folder = ROOT / "model_cards" / card
    AutoModel.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(tmp_path)
    has_processor = (folder / "processor_config.json").is_file()
    (AutoProcessor if has_processor else AutoFeatureExtractor).from_pretrained(folder).save_pretrained(tmp_path)
    for name in files_of(tmp_path, ".py"):
        same = (folder / name).is_file() and (folder / name).read_bytes() == (tmp_path / name).read_bytes()
        assert same, f"{name} of {card} is older than its source: load the folder and save it again"


@pytest.mark.parametrize(
    "line",
    [
        "from ..configuration_f3.b import x",
        "from . import b",
        "from .folder.b import x",
        "from .missing import x",
        "from configuration_f3 import x",
        "from configuration_f3.missing import x",
        "import configuration_f3.b",
        "def lazily():\n    from configuration_f3 import x",
    ],
)
def test_imports_that_cannot_be_flattened_are_refused(line, tmp_path):
    (tmp_path / "modeling_f3").mkdir()
    file = tmp_path / "modeling_f3" / "a.py"
    file.write_text(f'"""A module."""\n\n{line}\n')
    with pytest.raises(ImportError, match=r"a\.py, line \d: .*cannot be flattened"):
        collect_sources(file)


def test_imports_of_every_form_are_followed(tmp_path):
    for package in ("configuration_f3", "modeling_f3"):
        (tmp_path / package).mkdir()
    (tmp_path / "configuration_f3" / "b.py").write_text("from .c import z\n")
    (tmp_path / "configuration_f3" / "c.py").write_text("import os\n")
    (tmp_path / "modeling_f3" / "d.py").write_text("from .a import y\n")
    file = tmp_path / "modeling_f3" / "a.py"
    file.write_text(
        "from configuration_f3.b import (\n    x,\n    y,\n)\nimport torch\n\n\n"
        "def lazily():\n    from .d import w  # configuration_f3.b stays in comments\n    return w\n"
    )
    assert set(collect_sources(file)) == {"a.py", "b.py", "c.py", "d.py"}

    sys.modules["modeling_f3_fake"] = SimpleNamespace(__file__=str(file))
    try:
        names = export_code(type("Fake", (), {"__module__": "modeling_f3_fake"}), tmp_path)
    finally:
        del sys.modules["modeling_f3_fake"]
    assert names == ["a.py", "b.py", "c.py", "d.py"]
    assert (tmp_path / "a.py").read_text() == file.read_text().replace(
        "from configuration_f3.b import", "from .b import"
    )


def test_files_of_one_name_are_refused(tmp_path):
    for package in ("configuration_f3", "modeling_f3"):
        (tmp_path / package).mkdir()
    (tmp_path / "configuration_f3" / "a.py").write_text("")
    (tmp_path / "modeling_f3" / "a.py").write_text("from configuration_f3.a import x\n")
    with pytest.raises(ValueError, match="rename one"):
        collect_sources(tmp_path / "modeling_f3" / "a.py")
