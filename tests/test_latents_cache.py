"""Promises of the latents written once for many trainings."""

import argparse
import io
import json
from contextlib import contextmanager
from threading import Barrier, Thread

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, DatasetDict, load_dataset
from f3_training import latents_cache
from f3_training.audio_dataset import decode_audio
from f3_training.latents_cache import (
    LatentsCacheError,
    autoencoder_fingerprint,
    batches_by_length,
    cache_latents,
    latents_of,
    load_autoencoder,
    load_latents,
)
from tiny import TINY, noise, tiny_audio_lm, tiny_model, tiny_tokenizer


RATE = TINY["sampling_rate"]
LENGTHS = {"train": (500, 90, 33, 700, 32, 410, 250), "test": (64, 300)}  # samples


def cells(lengths, rate=RATE):
    """Audio cells of noise, every second one at twice the rate."""
    rows = []
    for index, length in enumerate(lengths):
        factor, file = 1 + index % 2, io.BytesIO()
        soundfile.write(file, noise(factor * length, seed=index).numpy(), factor * rate, format="WAV")
        rows.append({"bytes": file.getvalue(), "path": f"{index}.wav"})
    return rows


def save_dataset(folder, audio):
    """`audio`: cells by split."""
    splits = {
        split: Dataset.from_dict({"audio": rows, "text": [f"{split} {index}" for index in range(len(rows))]})
        for split, rows in audio.items()
    }
    DatasetDict(splits).cast_column("audio", Audio(decode=False)).save_to_disk(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two autoencoders, a dataset, and what an uninterrupted run made of it."""
    root = tmp_path_factory.mktemp("latents")
    for seed in (0, 1):
        tiny_model(seed).save_pretrained(root / f"model-{seed}")
    save_dataset(root / "sounds", {split: cells(lengths) for split, lengths in LENGTHS.items()})
    cache(root, root / "whole")
    return root


def arguments(folder, output, **options):
    defaults = {"model": folder / "model-0", "dataset": folder / "sounds", "splits": ["train", "test"]}
    values = {**defaults, "output_dir": output, "batch_seconds": 1.0, "shard_rows": 3, **options}
    return argparse.Namespace(**{name: str(v) if hasattr(v, "parts") else v for name, v in values.items()})


class Process:
    """One of several, as an `Accelerator` shows itself."""

    device = torch.device("cpu")

    def __init__(self, index, barrier):
        self.process_index, self.num_processes = index, barrier.parties
        self.is_main_process = index == 0
        self.wait_for_everyone = barrier.wait

    @contextmanager
    def main_process_first(self):
        if not self.is_main_process:
            self.wait_for_everyone()
        yield
        if self.is_main_process:
            self.wait_for_everyone()


def cache(folder, output, process=None, **options):
    cache_latents(arguments(folder, output, **options), process or Process(0, Barrier(1)))


def contents(output):
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_every_row_holds_what_encoding_it_alone_gives_and_its_columns(folder):
    model = tiny_model(0)
    for split, lengths in LENGTHS.items():
        rows = load_dataset(str(folder / "whole"), split=split)  # without code of ours
        assert rows.column_names == ["latents", "frames", "audio_length", "text"]
        assert rows.features["latents"].dtype == "float16"
        assert rows["text"][:] == [f"{split} {index}" for index in range(len(lengths))]
        for row, cell in zip(rows, cells(lengths)):
            samples = torch.from_numpy(decode_audio(cell, RATE))
            with torch.inference_mode():
                expected = model.encode(samples[None, None]).latents[0].numpy()
            latents = latents_of(row)
            assert latents.dtype == np.float32
            assert (row["frames"], row["audio_length"]) == (len(expected), len(samples))
            np.testing.assert_allclose(latents, expected, rtol=1e-3, atol=1e-4)  # one step of fp16


def test_loaded_latents_are_fp32_arrays_beside_plain_columns(folder):
    rows = load_latents(folder / "whole", "train", tiny_model(0))
    plain = load_dataset(str(folder / "whole"), split="train")
    assert rows[3]["text"] == "train 3" and isinstance(rows[3]["latents"], np.ndarray)
    for index in range(len(rows)):
        np.testing.assert_array_equal(latents_of(rows[index]), latents_of(plain[index]))


def test_the_record_says_what_the_latents_are(folder):
    record = json.loads((folder / "whole" / "latents.json").read_text())
    assert (record["frame_rate"], record["hop_length"], record["latent_dim"]) == (25, 32, 4)
    assert (record["model"], record["dataset"]) == ("model-0", "sounds")
    assert record["autoencoder"] == autoencoder_fingerprint(tiny_model(0))
    assert record["splits"]["train"]["rows"] == 7 and record["splits"]["train"]["skipped"] == []


def dying_at(monkeypatch, count):
    """The process dies while it writes shard `count`, if there are so many. Returns the list of those it begins."""
    begun = []

    class DyingWriter(latents_cache.pq.ParquetWriter):
        def write_table(self, table):
            begun.append(table)
            super().write_table(table)
            if len(begun) == count:
                raise KeyboardInterrupt

    monkeypatch.setattr(latents_cache.pq, "ParquetWriter", DyingWriter)
    return begun


def test_a_killed_run_goes_on_to_the_files_of_an_uninterrupted_one(folder, tmp_path, monkeypatch):
    output = tmp_path / "whole"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        dying_at(patch, 3)
        cache(folder, output)
    assert sum(name.endswith(".parquet") for name in contents(output)) == 2
    with pytest.raises(LatentsCacheError, match="unfinished: run the command"):
        load_latents(output, "train")
    begun = dying_at(monkeypatch, None)
    cache(folder, output)
    assert len(begun) == 2  # of four
    assert contents(output) == contents(folder / "whole")


def test_processes_write_together_what_one_writes(folder, tmp_path, monkeypatch):
    # Threads stand in for processes, and `from_pretrained` patches Transformers while it loads: threads that load at the
    # same time would leave the patch behind.
    model = load_autoencoder(str(folder / "model-0"))
    monkeypatch.setattr(latents_cache, "load_autoencoder", lambda name: model)
    barrier = Barrier(3, timeout=30)
    threads = [Thread(target=cache, args=(folder, tmp_path / "whole", Process(rank, barrier))) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path / "whole") == contents(folder / "whole")


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"model": "model-1"}, r"differs in autoencoder"),
        ({"dataset": "louder/sounds"}, r"differs in rows of train .* rows of test"),
        ({"shard_rows": 4}, r"differs in shard_rows \(3 there, 4 now\)"),
    ],
)
def test_a_folder_begun_with_something_else_is_refused_and_left_alone(folder, changed, named):
    if not (folder / "louder").exists():
        save_dataset(folder / "louder" / "sounds", {split: cells([99, 98]) for split in LENGTHS})
    before = contents(folder / "whole")
    options = {name: folder / value if isinstance(value, str) else value for name, value in changed.items()}
    with pytest.raises(LatentsCacheError, match=f"{named}.*pass another --output_dir"):
        cache(folder, folder / "whole", **options)
    assert contents(folder / "whole") == before


def test_a_folder_of_other_files_is_refused_and_left_alone(folder):
    before = contents(folder / "sounds")
    with pytest.raises(LatentsCacheError, match="no latents.json: pass a new or an empty folder"):
        cache(folder, folder / "sounds")
    assert contents(folder / "sounds") == before


def test_a_part_of_a_split_is_refused(folder, tmp_path):
    with pytest.raises(LatentsCacheError, match="not the name of a split"):
        cache(folder, tmp_path / "new", splits=["train[:2]"])
    assert not (tmp_path / "new").exists()


def test_latents_that_are_not_there_or_not_of_the_autoencoder_are_refused(folder):
    with pytest.raises(LatentsCacheError, match="no latents.json: write the latents with"):
        load_latents(folder / "sounds", "train")
    with pytest.raises(LatentsCacheError, match="has the splits train, test, not 'validation': add it"):
        load_latents(folder / "whole", "validation")
    with pytest.raises(LatentsCacheError, match=r"another autoencoder, model-0 .* load that one, in fp32"):
        load_latents(folder / "whole", "train", tiny_model(1))


def test_a_split_whose_shard_is_lost_is_refused_until_it_is_written_again(folder, tmp_path):
    output = tmp_path / "whole"
    cache(folder, output, splits=["test"])
    next((output / "data").glob("test-*")).unlink()
    with pytest.raises(LatentsCacheError, match="unfinished"):
        load_latents(output, "test")
    cache(folder, output, splits=["test"])
    assert len(load_latents(output, "test")) == 2


def test_splits_may_be_added_later(folder, tmp_path):
    for split in LENGTHS:
        cache(folder, tmp_path / "whole", splits=[split])
        assert len(load_latents(tmp_path / "whole", split)) == len(LENGTHS[split])
    assert sorted(load_dataset(str(tmp_path / "whole"))) == sorted(LENGTHS)


def test_audio_that_cannot_be_read_is_left_out_named_and_listed(folder, tmp_path, caplog):
    audio = cells([100, 200, 300, 400])
    audio[1] = {"bytes": b"no sound", "path": "broken.wav"}
    audio[3] = {"bytes": b"no sound", "path": "last.wav"}  # alone in its shard
    save_dataset(tmp_path / "sounds", {"train": audio})
    options = {"dataset": tmp_path / "sounds", "splits": ["train"]}
    cache(folder, tmp_path / "out", **options)
    assert "row 1 of train is left out" in caplog.text and "broken.wav" in caplog.text
    cache(folder, tmp_path / "out", **options)  # nothing left to do, and nothing forgotten
    skipped = json.loads((tmp_path / "out" / "latents.json").read_text())["splits"]["train"]["skipped"]
    assert [row["row"] for row in skipped] == [1, 3] and "broken.wav" in skipped[0]["error"]
    assert load_latents(tmp_path / "out", "train")["text"][:] == ["train 0", "train 2"]


def test_folders_of_one_name_are_not_taken_for_each_other(folder, tmp_path):
    cache(folder, tmp_path / "whole", model=folder / "model-1")
    one, other = (load_latents(root / "whole", "train") for root in (folder, tmp_path))
    assert not np.allclose(latents_of(one[0]), latents_of(other[0]))


def test_the_autoencoder_is_found_alone_and_inside_other_models(folder, tmp_path):
    tokenizer, speaker = tiny_tokenizer(), tiny_audio_lm(tmp_path / "parts")
    for name, model, inside in (
        ("tokenizer", tokenizer, tokenizer.autoencoder),
        ("speaker", speaker, speaker.audio_model.autoencoder),
    ):
        model.save_pretrained(tmp_path / name)
        assert autoencoder_fingerprint(load_autoencoder(str(tmp_path / name))) == autoencoder_fingerprint(inside)
    assert autoencoder_fingerprint(load_autoencoder(str(folder / "model-0"))) == autoencoder_fingerprint(tiny_model(0))
    damaged = tmp_path / "speaker" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    with pytest.raises(LatentsCacheError, match="damaged or incomplete"):
        load_autoencoder(str(tmp_path / "speaker"))


def test_the_fingerprint_sees_all_that_changes_latents_and_nothing_else():
    fingerprint = autoencoder_fingerprint(tiny_model(0))
    assert autoencoder_fingerprint(tiny_model(0, noise_scale=0.3)) == fingerprint
    assert autoencoder_fingerprint(tiny_model(0, hidden_act="gelu")) != fingerprint
    model = tiny_model(0)
    model.decoder.requires_grad_(False).head.weight += 1
    assert autoencoder_fingerprint(model) == fingerprint
    model.encoder.requires_grad_(False).stem.weight[0, 0, 0, 0] += 1e-6
    assert autoencoder_fingerprint(model) != fingerprint


def test_batches_hold_items_of_similar_length_within_the_limit():
    lengths = [5, 50, 6, 7, 49, 120]
    assert list(batches_by_length(lengths, 100)) == [[0, 2, 3], [4, 1], [5]]
