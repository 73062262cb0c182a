import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

from f3_training import align_words
from f3_training.pinned_wheels import unpacked
from f3_training.prepare_language_model import GGUF, SMOLLM2, convert
from test_align_words import Whisper
from transformers import TrainingArguments


ROOT = Path(__file__).parents[1]


# Before the snippets: a Hub that is a folder, and a model trained for one step only.
PRELUDE = """
import sys

sys.path.insert(0, "tests")
from pathlib import Path
from test_hub_code import EntryNotFoundError, FakeHub
from transformers.utils import hub

def no_card(*arguments, **options):
    raise EntryNotFoundError("no card yet")

hub._hf_api, hub.ModelCard.load = FakeHub(Path("pushed")), no_card
"""
CHECKS = """
assert inputs["input_values"].shape[-1] == len(waveform) == soundfile.info("decoded.wav").frames
assert torch.equal(frames.latents, encoded.latents) and frames.last_hidden_state.shape[-1] == 256
assert speech.finish_reasons == ["stop"] and soundfile.info("speech.wav").duration > 0.5
pushed = AutoModelForMultimodalLM.from_pretrained("pushed", trust_remote_code=True).state_dict()
published = AutoModelForMultimodalLM.from_pretrained(checkpoint, text_model_name_or_path="data/smollm2").state_dict()
assert AutoProcessor.from_pretrained("pushed", trust_remote_code=True).token_ids == processor.token_ids
learned = {name.split(".")[0] for name, weight in pushed.items() if not torch.equal(weight, published[name])}
assert learned == {"language_model", "residual_lm", "flow_head"}, learned
assert all(".lora_" in name or torch.equal(weight, published[name]) for name, weight in pushed.items()
           if name.startswith("language_model."))
"""


def test_the_python_of_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch):
    for name in ("model_cards", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    convert(unpacked(SMOLLM2, None) / GGUF, tmp_path / "data" / "smollm2")
    (tmp_path / "my-voice").mkdir()
    shutil.copy(ROOT / "tests" / "fixtures" / "tt-allbusy.flac", tmp_path / "my-voice")
    (tmp_path / "my-voice" / "metadata.csv").write_text("file_name,text\ntt-allbusy.flac,Please hold.\n")
    monkeypatch.setattr(align_words, "load_whisper", Whisper)
    align_words.align_words(str(tmp_path / "my-voice"), tmp_path / "my-voice-aligned", ["train"], "text", "en")
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = "\n".join([PRELUDE, *snippets, CHECKS]).replace("max_steps=1000", "max_steps=1")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert len(snippets) == 7 and done.returncode == 0, done.stderr


def test_the_table_of_commands_is_complete():
    table = (ROOT / "README.md").read_text().split("| to | commands |")[1].split("\n\n")[0]
    runnable = {path.stem for path in (ROOT / "training").glob("*.py") if "__main__" in path.read_text()}
    assert set(re.findall(r"`(\w+)`", table)) == runnable - {"demo"}


def test_every_file_the_readme_names_exists():
    named = re.findall(r"`((?:tests|model_cards|training|examples)/[\w./-]+)`", (ROOT / "README.md").read_text())
    assert named and not [name for name in named if not (ROOT / name).exists()]


def test_the_commands_of_the_readme_have_the_options_that_it_gives_them():
    """Those of `f3_training`, of walk-throughs, `f3` and the page, in blocks of commands and in the table of figures."""
    readme = (ROOT / "README.md").read_text().replace("\\\n", " ")
    figures = re.findall(r"`((?:evaluate_\w+|probe) --.*?)`", readme)
    blocks = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
    sources = {path.stem: path.read_text() for name in ("training", "examples") for path in (ROOT / name).glob("*.py")}
    sources["f3"] = (ROOT / "command_line" / "f3.py").read_text()
    sources["f3_gradio_demo"] = (ROOT / "gradio_demo" / "__main__.py").read_text()
    trainer = set(inspect.signature(TrainingArguments).parameters)
    checked = 0
    for line in [line for block in blocks for line in block.splitlines()] + figures:
        called = re.search(rf"(?:-m f3_training\.|-m |examples/|^)({'|'.join(sources)})(?:\.py)? ", line)
        if called is None:
            continue
        for option in re.findall(r" --([\w-]+)", line[called.end() :]):
            name = option.replace("-", "_")
            assert re.search(rf"\b{name}\b", sources[called[1]]) or name in trainer, f"{called[1]} has no --{option}"
            checked += 1
    assert checked > 60
