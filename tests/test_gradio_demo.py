"""Promises of the page: of the functions behind it, and of what a visitor meets in a real browser."""

import os
import re
import runpy
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
import yaml
from f3_gradio_demo import __main__ as command
from f3_gradio_demo.page import page
from f3_gradio_demo.reconstruct import reconstruct
from f3_gradio_demo.sounds import playable
from f3_gradio_demo.speak import speak
from f3_gradio_demo.transcribe import transcribe
from f3_training.audio_dataset import decode_audio
from modeling_f3 import F3AudioLMForConditionalGeneration, F3FeatureExtractor, F3SpeechRecognitionPipeline
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tiny import noise, tiny_audio_lm, tiny_flow_config, tiny_model, tiny_processor


ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "tests" / "fixtures" / "tt-allbusy.flac"
SPACE = ROOT / "gradio_demo" / "space"
UNPACKED = Path(sys.prefix) / "browser"  # where `make test` puts one
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PATIENCE = 120_000  # milliseconds that anything on the page may take


def tiny_autoencoder(folder: Path) -> Path:
    """At a rate that browsers play."""
    tiny_model(sampling_rate=16_000).save_pretrained(folder)
    F3FeatureExtractor(sampling_rate=16_000).save_pretrained(folder)
    return folder


def tiny_speaker(folder: Path, stops: float = -20.0) -> F3AudioLMForConditionalGeneration:
    """Never stops by itself, or at once."""
    model = tiny_audio_lm(folder, flow_config=tiny_flow_config())
    torch.nn.init.constant_(model.stop_head.bias, stops)
    return model


def tabs(blocks: gr.Blocks) -> list[str]:
    return [block.label for block in blocks.blocks.values() if isinstance(block, gr.Tab)]


def test_a_recording_comes_back_as_long_as_it_was_beside_its_spectrogram():
    model, extractor = tiny_model(sampling_rate=16_000), F3FeatureExtractor(sampling_rate=16_000)
    (rate, sound), picture, facts = reconstruct(model, extractor, str(RECORDING))
    length = len(decode_audio(RECORDING, rate))
    assert rate == 16_000 and sound.shape == (length,) and sound.dtype == np.int16
    assert [axis.get_title() for axis in picture.axes] == ["original", "reconstruction"]
    assert f"{-(-length // 32)} latents of 4 values" in facts and f"{length} samples, of {length}" in facts


def test_sound_keeps_its_volume():
    assert playable(np.array([0.1, -0.5, 2.0]), 800)[1].tolist() == [3276, -16383, 32767]


def test_a_transcript_is_that_of_the_pipeline(tmp_path):
    pipeline = F3SpeechRecognitionPipeline(model=tiny_speaker(tmp_path), processor=tiny_processor())
    file = str(tmp_path / "clip.wav")
    pipeline.processor.save_audio(noise(400), file)
    assert transcribe(pipeline, file, "Czech") == pipeline(decode_audio(file, 800), language="Czech")["text"]


def test_portions_are_the_speech_and_come_while_it_is_made(tmp_path, monkeypatch):
    model, steps = tiny_speaker(tmp_path), []
    expected = model.generate(**tiny_processor().apply_speech_request("hi"), max_new_patches=15).audio[0]
    read = model._read
    monkeypatch.setattr(model, "_read", lambda *arguments: steps.append(1) or read(*arguments))
    torch.manual_seed(0)
    said = speak(model, tiny_processor(), " hi ", seconds=1.2)
    first = next(said)
    assert len(steps) < 10
    *others, (nothing, picture, facts) = said
    rates, portions = zip(*(sound for sound, _, _ in [first, *others]))
    np.testing.assert_allclose(np.concatenate(portions), playable(expected.numpy(), 800)[1], atol=4)
    assert set(rates) == {800} and min(map(len, portions[:-1])) >= 400
    assert nothing is None and facts == "1.20 s, ended by length"
    assert [axis.get_title() for axis in picture.axes] == ["speech"]


def test_speech_that_stops_by_itself_says_so(tmp_path):
    *_, (_, _, facts) = speak(tiny_speaker(tmp_path, stops=20.0), tiny_processor(), "hi", seconds=2)
    assert facts == "0.16 s, ended by stop"


def test_sentences_are_said_one_after_another_until_the_time_is_over(tmp_path):
    model, text = tiny_speaker(tmp_path, stops=20.0), "One. Two! Three?"
    *_, (_, _, facts) = speak(model, tiny_processor(), text, seconds=2)
    assert facts == "0.48 s, ended by stop"
    *_, (_, _, facts) = speak(model, tiny_processor(), text, seconds=0.33)
    assert facts == "0.32 s, ended by length"


def test_wrong_input_is_answered_in_the_words_of_the_error(tmp_path):
    model, broken = tiny_speaker(tmp_path), tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF no sound")
    extractor = F3FeatureExtractor(sampling_rate=16_000)
    for call, words in (
        (lambda: reconstruct(tiny_model(), extractor, None), "no recording yet"),
        (lambda: reconstruct(tiny_model(), extractor, str(broken)), "can read broken.wav"),
        (lambda: next(speak(model, tiny_processor(), "  ", 2)), "write a text"),
        (lambda: next(speak(model, tiny_processor(), "a <file_sep>", 2)), "'&lt;file_sep&gt;' in it"),
    ):
        with pytest.raises(gr.Error) as caught:
            call()
        assert words in caught.value.message and str(tmp_path) not in caught.value.message


def test_tabs_without_a_model_are_not_there(tmp_path):
    autoencoder = str(tiny_autoencoder(tmp_path / "autoencoder"))
    assert tabs(page(autoencoder)) == ["Reconstruct"]
    tiny_audio_lm(tmp_path).save_pretrained(tmp_path / "listener")
    tiny_processor().save_pretrained(tmp_path / "listener")
    assert tabs(page(autoencoder, str(tmp_path / "listener"))) == ["Reconstruct", "Transcribe"]


def test_the_command_and_the_space_serve_the_page(tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(gr.Blocks, "launch", lambda blocks: served.append(tabs(blocks)))
    autoencoder = str(tiny_autoencoder(tmp_path / "autoencoder"))
    monkeypatch.setattr(sys, "argv", ["f3_gradio_demo", "--autoencoder", autoencoder])
    command.main()
    card = yaml.safe_load((SPACE / "README.md").read_text("utf-8").split("---")[1])
    monkeypatch.setenv("F3_AUTOENCODER", autoencoder)
    runpy.run_path(str(SPACE / card["app_file"]))
    assert served == [["Reconstruct"]] * 2
    assert (card["sdk"], card["sdk_version"]) == ("gradio", gr.__version__)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    unpacked = UNPACKED / "usr" / "lib" / "chromium" / "chromium-headless-shell"
    program = str(unpacked) if unpacked.is_file() else next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("there is no browser: `make test` gets one where apt-get is, elsewhere install Chromium")
    libraries = os.pathsep.join(sorted({str(file.parent) for file in UNPACKED.rglob("*.so*")}))
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=program,
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            args=["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],  # a microphone that beeps
            timeout=PATIENCE,
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory) -> Iterator[str]:
    """Where the page is served, with a tab for everything."""
    folder = tmp_path_factory.mktemp("models")
    tiny_speaker(folder).save_pretrained(folder / "speaker")
    tiny_processor().save_pretrained(folder / "speaker")
    blocks = page(str(tiny_autoencoder(folder / "autoencoder")), str(folder / "speaker"))
    yield blocks.launch(prevent_thread_lock=True, quiet=True)[1]
    blocks.close()


@pytest.fixture
def visit(browser, address) -> Iterator[Page]:
    """A visitor on the page."""
    visitor = browser.new_page()
    visitor.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    visitor.goto(address, wait_until="domcontentloaded")
    yield visitor
    visitor.close()


def press(visit: Page, name: str) -> None:
    visit.get_by_role("button", name=name, exact=True).click()


def test_a_visitor_hears_and_sees_what_becomes_of_an_uploaded_recording(visit):
    visit.locator("input[type=file]").first.set_input_files(RECORDING)
    visit.get_by_test_id("waveform-Recording").first.wait_for()  # two, once it can be played
    press(visit, "Reconstruct")
    expect(visit.get_by_text("latents of 4 values")).to_be_visible()
    expect(visit.get_by_test_id("matplotlib").locator("img")).to_be_visible()
    duration = visit.get_by_test_id("waveform-Reconstruction").locator("#duration")  # known once the sound is decoded
    expect(duration).to_have_text(re.compile("0:0[89]"))


def test_a_visitor_records_with_the_microphone(visit):
    visit.get_by_label("Record audio").first.click()
    visit.get_by_role("button", name="Record", exact=True).first.click()
    visit.get_by_text(re.compile(r"0:0[2-9]|0:[1-5]\d")).first.wait_for()
    visit.get_by_role("button", name="Stop", exact=True).first.click()
    visit.locator("a[href*='gradio_api/file=']").first.wait_for()  # the page shows the sound before the server has it
    press(visit, "Reconstruct")
    expect(visit.get_by_text("latents of 4 values")).to_be_visible()


def test_a_visitor_hears_speech_before_it_is_finished(visit, monkeypatch):
    heard, stream = threading.Event(), F3AudioLMForConditionalGeneration.stream_audio

    def held_back(*arguments, **options):
        """Goes on after two seconds only when they are heard."""
        for count, piece in enumerate(stream(*arguments, **options)):
            assert count < 25 or heard.wait(PATIENCE / 1000)
            yield piece

    monkeypatch.setattr(F3AudioLMForConditionalGeneration, "stream_audio", held_back)
    visit.get_by_role("tab", name="Speak").click()
    visit.get_by_label("Text").fill("hello")
    visit.get_by_label("number input for Cut off after (s)").fill("3")
    press(visit, "Speak")
    player = visit.get_by_test_id("audio-player-Speech").element_handle()
    visit.wait_for_function("audio => audio.currentTime > 0", arg=player)
    heard.set()
    expect(visit.get_by_text("2.96 s, ended by length")).to_be_visible()
    expect(visit.get_by_test_id("matplotlib").locator("img")).to_be_visible()
    visit.wait_for_function("audio => Math.abs(audio.duration - 2.96) < 0.5", arg=player)


def test_a_visitor_is_told_what_is_wrong(visit):
    visit.get_by_role("tab", name="Speak").click()
    visit.get_by_label("Text").fill("a <file_sep>")
    press(visit, "Speak")
    expect(visit.get_by_test_id("toast-body")).to_contain_text("a text has '<file_sep>' in it")
