"""
Checks a folder that is to be published, and pushes it.

    python -m f3_training.publish model_cards/f3-autoencoder-nano-16khz                        # checks
    python -m f3_training.publish model_cards/f3-autoencoder-nano-16khz --repo_id someone/f3   # checks, then pushes

It must load through the Auto classes in a process that has never heard of this package, hold its weights as safetensors and
nothing that is unpickled, and explain itself: a card with metadata, its sections and pictures.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from configuration_f3.hub_code import PACKAGES
from huggingface_hub import HfApi, ModelCard

from .model_card import RECORD, SHOWN


PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
METADATA = ("license", "library_name", "pipeline_tag", "tags")
SECTIONS = ("## Use", "## Training", "## Limits")
LOCAL_PATH = re.compile(r"""(?<![\w.:/-])/(?:home|root|tmp|Users|mnt|work)/[\w./-]*""")

# The process of somebody who has not installed us.
NOT_INSTALLED = f"""
import sys

class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {(*PACKAGES, "f3_training", "f3_command_line")}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInstalled)
"""
LOADING = """
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor

folder, processor, *language_model = sys.argv[1:]
elsewhere = {"text_model_name_or_path": language_model[0]} if language_model else {}
AutoModel.from_pretrained(folder, trust_remote_code=True, **elsewhere)
(AutoProcessor if processor == "yes" else AutoFeatureExtractor).from_pretrained(folder, trust_remote_code=True)
"""


def problems_of(folder: Path, language_model: str | None = None) -> list[str]:
    """
    What is wrong with a folder, in words; nothing when it can be published. It is tried with `language_model`, if that is not
    to be fetched from where the folder says.
    """
    found = [*_problems_of_files(folder), *_problems_of_card(folder)]
    return found or _problems_of_loading(folder, language_model)


def _problems_of_files(folder: Path) -> list[str]:
    found = [
        f"{path.name} would be unpickled: save it as safetensors" for path in _files(folder) if path.suffix in PICKLES
    ]
    if not any(path.suffix == ".safetensors" for path in _files(folder)):
        found.append("there are no weights: save the model into this folder")
    if not (folder / "config.json").is_file():
        return [*found, "there is no config.json: save the model into this folder"]
    settings = json.loads((folder / "config.json").read_text())
    missing = {
        f"{reference.partition('.')[0]}.py"
        for reference in settings.get("auto_map", {}).values()
        if not (folder / f"{reference.partition('.')[0]}.py").is_file()
    }
    if missing or "auto_map" not in settings:
        found.append(
            f"code is missing ({', '.join(sorted(missing)) or 'auto_map'}): save the model with save_pretrained"
        )
    return found


def _problems_of_card(folder: Path) -> list[str]:
    path = folder / "README.md"
    if not path.is_file():
        return ["there is no card: write it with python -m f3_training.model_card"]
    card = ModelCard.load(path)
    found = [f"the card does not say its {name}" for name in METADATA if not card.data.get(name)]
    found += [f"the card lacks the section {name!r}" for name in SECTIONS if f"\n{name}\n" not in card.text]
    found += [
        f"the card shows {name}, which is missing" for name in SHOWN.findall(card.text) if not (folder / name).is_file()
    ]
    told = card.text + "".join(path.read_text("utf-8") for path in folder.glob(RECORD))
    return found + [f"the card names a folder of this machine: {place}" for place in LOCAL_PATH.findall(told)]


def _problems_of_loading(folder: Path, language_model: str | None) -> list[str]:
    """In a process of its own, with a cache of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as cache:
        has_processor = "yes" if (folder / "processor_config.json").is_file() else "no"
        given = [folder, has_processor, *filter(None, [language_model])]
        done = subprocess.run(
            [sys.executable, "-I", "-c", NOT_INSTALLED + LOADING, *given],
            env={**environment, "HF_MODULES_CACHE": cache},
            capture_output=True,
            text=True,
        )
    if done.returncode == 0:
        return []
    return [f"it does not load without this package: {done.stderr.strip().splitlines()[-1]}"]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def publish(folder: Path, repo_id: str | None, private: bool = False, language_model: str | None = None) -> str | None:
    """
    Checks, and with `repo_id` pushes. Returns the address.

    Raises:
        `ValueError`: when something is wrong; nothing is pushed then.
    """
    if found := problems_of(folder, language_model):
        raise ValueError(f"{folder} cannot be published:\n" + "\n".join(f"- {problem}" for problem in found))
    if repo_id is None:
        return None
    _point_adapter_at(repo_id, folder)
    api = HfApi()
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Upload {folder.name}")
    return str(address)


def _point_adapter_at(repo_id: str, folder: Path) -> None:
    """On the Hub, Transformers looks for the model below an adapter where the adapter says, though it lies beside it."""
    path = folder / "adapter_config.json"
    if path.is_file():
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": repo_id}, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repo_id", help="where to push to; without it the folder is only checked")
    parser.add_argument("--private", action="store_true")
    parser.add_argument(
        "--language_model", help="of an audio language model: the copy to check with, where the Hub is out of reach"
    )
    arguments = parser.parse_args()
    try:
        address = publish(arguments.folder, arguments.repo_id, arguments.private, arguments.language_model)
    except ValueError as error:
        sys.exit(str(error))
    print(address or f"{arguments.folder} can be published")


if __name__ == "__main__":
    main()
