"""Promises of the command `f3`."""

import re
from pathlib import Path
from threading import Barrier, Lock

import numpy as np
import pytest
import soundfile
import torch
from datasets import load_from_disk
from f3_command_line import file_jobs as jobs_module
from f3_command_line.f3 import app
from f3_command_line.file_jobs import file_jobs
from f3_command_line.latents_file import load_latents
from safetensors.torch import save_file
from tiny import noise, tiny_audio_lm, tiny_feature_extractor, tiny_flow_config, tiny_model, tiny_processor
from typer.testing import CliRunner


RATE = 800
LENGTHS = {"a.wav": 500, "deep/b.flac": 33, "deep/c.wav": 700}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A model, and sound files of which one is at twice the rate and in stereo."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    tiny_feature_extractor().save_pretrained("model")
    Path("sounds/deep").mkdir(parents=True)
    for seed, (name, length) in enumerate(LENGTHS.items()):
        soundfile.write(Path("sounds") / name, 0.1 * noise(length, seed=seed).numpy(), RATE)
    soundfile.write("sounds/d.wav", 0.1 * noise(400, 2, seed=9).numpy(), 2 * RATE)
    return tmp_path


def run(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == (1 if fails else 0), result.output
    return result.output


def test_a_folder_becomes_latents_and_sound_of_the_same_length_again(folder):
    run("encode", "sounds", "--output", "latents", "--model", "model", "--dataset", "gathered")
    latents, metadata = load_latents(Path("latents/deep/b.safetensors"))
    samples = soundfile.read("sounds/deep/b.flac", dtype="float32")[0]
    expected = tiny_model().encode(torch.from_numpy(samples)[None, None]).latents[0]
    torch.testing.assert_close(latents, expected)
    assert metadata == {"samples": "33", "sampling_rate": "800", "model": "model"}
    run("decode", "latents", "--output", "decoded", "--model", "model")
    for name, length in {**LENGTHS, "d.wav": 200}.items():
        assert soundfile.info(Path("decoded") / Path(name).with_suffix(".wav")).frames == length
    rows = load_from_disk("gathered")
    assert sorted(rows["file"]) == ["sounds/a.wav", "sounds/d.wav", "sounds/deep/b.flac", "sounds/deep/c.wav"]
    assert np.asarray(rows[0]["latents"]).shape[1] == 4


def test_a_killed_run_goes_on_and_nothing_is_done_twice(folder, monkeypatch):
    done, replace, lock = [], jobs_module.os.replace, Lock()

    def dying(part, target):
        with lock:
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(target)
        replace(part, target)

    command = ("encode", "sounds", "--output", "latents", "--model", "model")
    with monkeypatch.context() as patch:
        patch.setattr(jobs_module.os, "replace", dying)
        assert CliRunner().invoke(app, command).exit_code != 0
    finished = {path: path.stat().st_mtime_ns for path in Path("latents").rglob("*.safetensors") if path.name[0] != "."}
    assert len(finished) == 2
    assert "2 done, 2 done before, 0 failed" in run(*command)
    files = [path for path in Path("latents").rglob("*") if path.is_file() and path.name != jobs_module.RECORD]
    assert len(files) == 4 and not any(path.name.startswith(".") for path in files)
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())


def test_files_of_another_model_do_not_count_as_done(folder):
    run("encode", "sounds/a.wav", "--output", "latents", "--model", "model")
    tiny_model().save_pretrained("other")
    tiny_feature_extractor().save_pretrained("other")
    result = CliRunner().invoke(app, ["encode", "sounds", "--output", "latents", "--model", "other"])
    assert result.exit_code == 2 and "use another output folder" in " ".join(result.output.split())
    assert [path.name for path in Path("latents").rglob("*.safetensors")] == ["a.safetensors"]


def test_a_bad_file_is_reported_and_the_others_are_done(folder):
    Path("sounds/bad.wav").write_bytes(b"RIFF no sound")
    output = run("encode", "sounds", "--output", "latents", "--model", "model", fails=True)
    assert "sounds/bad.wav" in output and "4 done, 0 done before, 1 failed" in output
    assert not list(Path("latents").rglob("*bad*"))
    save_file({"other": torch.ones(2)}, "latents/strange.safetensors")
    assert "holds no latents" in run("decode", "latents", "--output", "decoded", "--model", "model", fails=True)
    assert len(list(Path("decoded").rglob("*.wav"))) == 4


def test_patterns_and_names_are_found_and_mistakes_are_named(folder):
    names = [str(job.target) for job in file_jobs(["sounds/*.wav", "sounds/deep/b.flac"], (".wav",), Path("o"), ".txt")]
    assert sorted(names) == ["o/a.txt", "o/b.txt", "o/d.txt"]
    with pytest.raises(ValueError, match="'nothing' names no .wav file"):
        file_jobs(["nothing"], (".wav",), Path("o"), ".txt")
    Path("sounds/a.flac").write_bytes(Path("sounds/deep/b.flac").read_bytes())
    with pytest.raises(ValueError, match="would both become o/a.txt"):
        file_jobs(["sounds"], (".wav", ".flac"), Path("o"), ".txt")


def test_as_many_files_are_worked_on_at_once_as_asked_for_and_no_more(folder):
    both_are_there, present, most = Barrier(2, timeout=60), set(), []

    def work(source, target):
        present.add(source)
        most.append(len(present))
        both_are_there.wait()  # breaks, and fails the file, unless there is another one
        present.discard(source)
        both_are_there.wait()
        target.touch()

    jobs = [jobs_module.FileJob(Path(str(index)), Path("out") / str(index)) for index in range(20)]
    assert jobs_module.run_jobs(jobs, work, jobs_module.Console(quiet=True), at_once=2) == 0
    assert max(most) == 2


def test_a_language_model_transcribes_and_speaks(folder):
    tiny_audio_lm(folder, flow_config=tiny_flow_config()).save_pretrained("speaker")
    tiny_processor().save_pretrained("speaker")
    run("transcribe", "sounds/a.wav", "--output", "texts", "--model", "speaker")
    assert Path("texts/a.txt").is_file()
    said = run("speak", "hi", "--output", "said.wav", "--model", "speaker", "--voice", "sounds/a.wav", "--steps", "1")
    assert "ended by" in said and soundfile.info("said.wav").frames > 0
    told = run("speak", "One. Two!", "--output", "two.wav", "--model", "speaker", "--steps", "1")
    counted = [float(seconds) for seconds in re.findall(r"([\d.]+) s, ended by", told)]
    assert len(counted) == 2 and soundfile.info("two.wav").duration == pytest.approx(sum(counted), abs=0.01)
    Path("language-model").rename("moved")  # the one that the checkpoint names
    run("transcribe", "sounds/a.wav", "--output", "again", "--model", "speaker", "--language-model", "moved")
    assert Path("again/a.txt").read_text() == Path("texts/a.txt").read_text()


def test_info_tells_what_a_model_is(folder):
    told = run("info", "model")
    assert "F3AutoencoderModel" in told and "800 Hz" in told and "25 Hz x 4" in told
