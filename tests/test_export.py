"""Promises of exported parts: they equal the model at every size, and one that does not is never left behind."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from f3_training import export as export_module
from f3_training.audio_dataset import decode_audio
from f3_training.export import FORMATS, export, load_onnx, parts_of
from f3_training.quantize import PARTS, measure, quantize
from tiny import TINY, tiny_audio_lm, tiny_flow_config, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A model with all parts, of one layer each: it is tracing that takes the time of these tests."""
    model = tiny_audio_lm(tmp_path_factory.mktemp("speaker"), flow_config=tiny_flow_config())
    body, flow_head = model.audio_model.encoder.body, model.flow_head
    body.layers, flow_head.blocks = body.layers[:1], flow_head.blocks[:1]
    with torch.no_grad():
        flow_head.velocity.weight.normal_()  # a new one starts at zero, whatever its conditions
    return model


@pytest.fixture(scope="module")
def exported(speaker, tmp_path_factory):
    """The folder of its parts in a format and how far each is from the model; every format is exported once."""

    @cache
    def exported_to(file_format: str) -> tuple[Path, dict[str, float]]:
        folder = tmp_path_factory.mktemp(file_format)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(export_module, "CHECKED", ((1, 2), (4, 33)))
            for module in ("modeling_autoencoder", "modeling_f3"):
                patched.setattr(f"modeling_f3.{module}.FRAMES_PER_PIECE", 10)
            return folder, export(speaker, folder, file_format)

    return exported_to


def test_parts_are_those_of_the_class(speaker):
    assert list(parts_of(tiny_model())) == ["encoder", "decoder"]
    assert list(parts_of(tiny_tokenizer())) == ["encoder", "decoder", "representation_encoder"]
    assert list(parts_of(speaker)) == ["encoder", "decoder", "representation_encoder", "flow_head"]
    assert list(parts_of(speaker.flow_head)) == ["flow_head"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_exported_parts_equal_eager_at_other_lengths(speaker, exported, file_format):
    """Also at those that the model works through in pieces."""
    folder, differences = exported(file_format)
    assert list(differences) == list(parts_of(speaker)) and max(differences.values()) < 1e-5
    assert {path.stem for path in folder.iterdir()} == set(differences)


@pytest.mark.parametrize(
    "error, named", [(2e-4, "decoder differs by 2.0e-04"), (float("nan"), "decoder differs by inf")]
)
def test_a_part_that_differs_is_refused_and_its_file_removed(error, named, monkeypatch, tmp_path):
    parts = parts_of(tiny_model())

    def load(path):
        wrong = error if path.stem == "decoder" else 0.0
        return lambda inputs: {name: values + wrong for name, values in parts[path.stem](**inputs).items()}

    monkeypatch.setitem(FORMATS, "onnx", (".onnx", lambda part, path: path.write_bytes(b"graph"), load))
    with pytest.raises(ValueError, match=named):
        export(tiny_model(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]


def test_weights_are_quantised_and_fourier_transforms_are_not(speaker, exported, tmp_path):
    parts = parts_of(speaker)
    for name in PARTS:
        quantize(exported("onnx")[0] / f"{name}.onnx", tmp_path / f"{name}.onnx", TINY["stft_window"])
        graph = onnx.load(tmp_path / f"{name}.onnx").graph
        operations = [node.op_type for node in graph.node]
        assert operations.count("ConvInteger") >= 5 and "Conv" not in operations
        assert operations.count("MatMul") == 2 and "MatMulInteger" in operations
        inputs = parts[name].examples(2, 9)
        with torch.no_grad():
            expected, actual = parts[name](**inputs), load_onnx(tmp_path / f"{name}.onnx")(inputs)
        (output,) = [output for output in ("latents", "audio_values") if output in expected]
        error = (actual[output] - expected[output]).square().mean() / expected[output].square().mean()
        assert 0 < error < 0.05


def test_scores_are_of_each_codec_and_differences_from_the_first():
    samples = decode_audio(Path(__file__).parent / "fixtures" / "tt-allbusy.flac", 16_000)

    def codec(noise: float):
        generator = np.random.default_rng(0)

        def encode(inputs):
            audio = inputs["input_values"]
            return {"latents": audio + noise * torch.from_numpy(generator.standard_normal(audio.shape, "float32"))}

        return encode, lambda encoded: {"audio_values": encoded["latents"]}

    results = measure({"exact": codec(0.0), "noisy": codec(0.01)}, samples, 16_000, rounds=2)
    assert results["exact"]["latents_difference"] == 0 and 0.02 < results["noisy"]["latents_difference"] < 0.1
    assert results["exact"]["pesq"] > 4.6 and results["exact"]["stoi"] > 0.999
    assert results["noisy"]["pesq"] < 4 and results["noisy"]["stoi"] < results["exact"]["stoi"]
    assert all(0 < row["fastest_ms_per_second"] <= row["ms_per_second"] for row in results.values())
