import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from f3_training import publish as publish_module
from f3_training.publish import problems_of, publish
from tiny import tiny_audio_lm, tiny_feature_extractor, tiny_model, tiny_processor


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: audio-to-audio
tags: [f3]
---
# Tiny

## Use

![waves](waves.png)

## Training

## Limits

None known.
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "waves.png").write_bytes(b"png")
    return folder


def test_a_complete_folder_is_pushed_whole(good, monkeypatch):
    pushed = {}

    class FakeApi:
        def create_repo(self, repo_id, private, exist_ok):
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            pushed[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())

    monkeypatch.setattr(publish_module, "HfApi", FakeApi)
    assert publish(good, None) is None and not pushed
    assert publish(good, "someone/tiny") == "https://hub/someone/tiny"
    assert {"model.safetensors", "README.md", "modeling_autoencoder.py", "waves.png"} <= set(pushed["someone/tiny"])


def test_an_audio_language_model_is_checked_with_the_language_model_at_hand(tmp_path):
    folder = tmp_path / "listener"
    tiny_audio_lm(tmp_path).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    (folder / "README.md").write_text(CARD.replace("![waves](waves.png)", ""))
    (tmp_path / "language-model").rename(tmp_path / "moved")
    assert any("language model" in problem for problem in problems_of(folder))
    assert problems_of(folder, str(tmp_path / "moved")) == []


def test_an_adapter_is_pointed_at_the_repository_that_it_lies_in(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "base_model_name_or_path": null}')
    monkeypatch.setattr(publish_module, "problems_of", lambda folder, language_model: [])
    monkeypatch.setattr(publish_module, "HfApi", MagicMock())
    publish(tmp_path, None)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    publish(tmp_path, "someone/tiny")
    expected = {"r": 2, "base_model_name_or_path": "someone/tiny"}
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == expected


def damaged(folder: Path, how: str) -> None:
    if how == "pickle":
        (folder / "optimizer.pt").write_bytes(b"")
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "no code":
        (folder / "modeling_autoencoder.py").unlink()
    elif how == "no auto_map":
        settings = json.loads((folder / "config.json").read_text())
        del settings["auto_map"]
        (folder / "config.json").write_text(json.dumps(settings))
    elif how == "local record":
        (folder / "card.json").write_text('{"arguments": {"latents": "/home/me/latents"}}')
    elif how == "no card":
        (folder / "README.md").unlink()
    else:
        (folder / "README.md").write_text(CARD.replace(*how))


@pytest.mark.parametrize(
    "how, problem",
    [
        ("pickle", "optimizer.pt would be unpickled"),
        ("no weights", "there are no weights"),
        ("no code", "modeling_autoencoder.py"),
        ("no auto_map", "code is missing .auto_map"),
        ("no card", "there is no card"),
        (("license: apache-2.0\n", ""), "does not say its license"),
        (("## Limits", "## Other"), "lacks the section '## Limits'"),
        (("waves.png", "lost.png"), "shows lost.png, which is missing"),
        (("None known", "See /home/me/notes"), "a folder of this machine: /home/me/notes"),
        ("local record", "a folder of this machine: /home/me/latents"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_pushed(good, tmp_path, monkeypatch, how, problem):
    monkeypatch.setattr(publish_module, "HfApi", lambda: pytest.fail("pushed"))
    folder = tmp_path / "tiny"
    shutil.copytree(good, folder)
    damaged(folder, how)
    with pytest.raises(ValueError, match=problem):
        publish(folder, "someone/tiny")


def test_a_folder_that_needs_this_package_is_refused(good, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(good, folder)
    code = folder / "modeling_autoencoder.py"
    code.write_text("import f3_training\n" + code.read_text())
    (problem,) = problems_of(folder)
    assert "does not load without this package" in problem and "f3_training" in problem
