import re
import shutil
import subprocess
import sys
from pathlib import Path

from f3_training.pinned_wheels import unpacked
from f3_training.prepare_language_model import GGUF, SMOLLM2, convert


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
assert learned == {"language_model", "flow_head"}, learned
assert all(".lora_" in name or torch.equal(weight, published[name]) for name, weight in pushed.items()
           if name.startswith("language_model."))
"""


def test_the_python_of_the_readme_runs_from_top_to_bottom(tmp_path):
    for name in ("model_cards", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    convert(unpacked(SMOLLM2, None) / GGUF, tmp_path / "data" / "smollm2")
    (tmp_path / "my-voice").mkdir()
    shutil.copy(ROOT / "tests" / "fixtures" / "tt-allbusy.flac", tmp_path / "my-voice")
    (tmp_path / "my-voice" / "metadata.csv").write_text("file_name,text\ntt-allbusy.flac,Please hold.\n")
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
