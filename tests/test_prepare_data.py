"""Promises of the data preparation, on packages of a few kilobytes built here: no network, no apt."""

import gzip
import hashlib
import io
import shutil
import struct
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from datasets import load_dataset
from f3_training import debian_packages, prepare_data
from f3_training.audio_sources import (
    SOURCES,
    Source,
    Utterance,
    parse_asterisk,
    parse_files,
    parse_fillets,
    parse_hedgewars,
    parse_queen,
    parse_tuxpaint,
    parse_tuxpaint_effects,
    parse_zip,
)
from f3_training.debian_packages import Package


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb builds the test packages")


def encode_noise(seconds=0.5, rate=16_000, channels=1, amplitude=0.3, seed=0, format="WAV"):
    """Noise as an encoded file; another seed is another recording."""
    noise = np.random.default_rng(seed).uniform(-amplitude, amplitude, (round(seconds * rate), channels))
    file = io.BytesIO()
    sf.write(file, noise, rate, format=format)
    return file.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def build_package(cache, name, files):
    """A pinned .deb in `cache` holding `files` (path -> bytes)."""
    root = cache.parent / f"{name}-tree"
    for path, data in files.items():
        write(root / path, data)
    write(
        root / "DEBIAN/control", f"Package: {name}\nVersion: 1:2-3\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    cache.mkdir(exist_ok=True)
    package = Package(name, "1:2-3", "")
    subprocess.run(["dpkg-deb", "--build", root, cache / package.file_name], check=True, capture_output=True)
    return Package(name, "1:2-3", hashlib.sha256((cache / package.file_name).read_bytes()).hexdigest())


def folder_source(cache, name, files, **options):
    """A source of untranscribed effects, packaged."""
    package = build_package(cache, name, {f"sounds/{file}": data for file, data in files.items()})
    return Source((package,), "CC0-1.0", partial(parse_files, folder="sounds", kind="effect"), **options)


def spoken_source(lines, first_seed=0, **options):
    """A source without packages that says `lines`: (speaker, language, text) each its own recording."""

    def parse(*_):
        for index, (speaker, language, text) in enumerate(lines):
            data = encode_noise(seconds=2, seed=first_seed + index)
            yield Utterance(f"line{index}", partial(bytes, data), "speech", text, speaker, language)

    return Source((), "CC0-1.0", parse, **options)


def planned_splits(sources, tmp_path):
    """(source, text) -> split of every row that is kept."""
    plans = prepare_data.plan(sources, tmp_path)
    return {(name, utterance.text): split for name, plan in plans.items() for utterance, split in plan.rows}


# Packages


@needs_dpkg
def test_cached_package_is_unpacked_once_and_never_downloaded(tmp_path, monkeypatch):
    package = build_package(tmp_path / "cache", "beeps", {"sounds/a.wav": encode_noise()})
    monkeypatch.setattr(debian_packages, "_download", lambda *_: pytest.fail("downloaded a cached package"))
    folder = debian_packages.unpack(package, tmp_path / "cache")
    assert (folder / "sounds/a.wav").is_file()
    marker = folder / "kept"
    marker.touch()
    assert debian_packages.unpack(package, tmp_path / "cache") == folder and marker.exists()


@needs_dpkg
def test_workers_may_unpack_a_package_at_the_same_time(tmp_path):
    package = build_package(tmp_path, "beeps", {f"sounds/{index}.wav": encode_noise() for index in range(20)})
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: debian_packages.unpack(package, tmp_path), range(4)))
    assert len(folders) == 1 and len(list((folders.pop() / "sounds").iterdir())) == 20
    assert len(list((tmp_path / "unpacked").iterdir())) == 1, "something half-unpacked was left behind"


def test_checksum_mismatch_names_the_package(tmp_path):
    package = Package("beeps", "1-1", "0" * 64)
    write(tmp_path / package.file_name, b"something else")
    with pytest.raises(debian_packages.PackageCorruptError, match="beeps: sha256 .* Delete the file"):
        debian_packages.fetch(package, tmp_path)


def test_machine_without_apt_is_told_which_file_to_bring(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(debian_packages.PackageUnavailableError, match=r"beeps: apt-get .* put beeps_1%3a2-3_all.deb"):
        debian_packages.fetch(Package("beeps", "1:2-3", ""), tmp_path)


def test_removed_package_names_version_and_fix(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 100, stdout="", stderr="E: Version '1-1' for 'beeps' was not found")
    monkeypatch.setattr(debian_packages.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(debian_packages.PackageUnavailableError, match="beeps=1-1 .*apt-get update.* was not found"):
        debian_packages.fetch(Package("beeps", "1-1", ""), tmp_path)


@needs_dpkg
def test_package_that_is_no_deb_leaves_no_folder(tmp_path):
    data = b"not an archive"
    package = Package("beeps", "1-1", hashlib.sha256(data).hexdigest())
    write(tmp_path / package.file_name, data)
    with pytest.raises(debian_packages.PackageCorruptError, match="beeps: dpkg can't unpack"):
        debian_packages.unpack(package, tmp_path)
    assert not [path for path in (tmp_path / "unpacked").iterdir() if not path.name.startswith(".")]


def test_every_source_pins_its_packages():
    for source in SOURCES.values():
        assert source.packages and source.licence
        assert all(len(package.sha256) == 64 and package.version for package in source.packages)


# Splits


def test_no_text_of_test_is_in_train(tmp_path):
    lines = [("joe", "en", f"Sentence number {index}.") for index in range(200)]
    shouted = [("ann", "en", f"  SENTENCE, number {index}!") for index in range(200)]
    sources = {
        "half": spoken_source(lines, test_fraction=0.5, validation_fraction=0.1),
        "tenth": spoken_source(shouted, 1000, test_fraction=0.1),
    }
    words = {"test": set(), "validation": set(), "train": set()}
    for (_, text), split in planned_splits(sources, tmp_path).items():
        words[split].add(prepare_data.normalise(text))
    assert len(words["test"]) > 50 and words["train"] and words["validation"]
    assert not words["test"] & (words["train"] | words["validation"])
    assert not words["validation"] & words["train"]


def test_held_out_speaker_takes_the_line_that_the_hero_says_too(tmp_path):
    lines = [("hero", "en", "Yes!"), ("villain", "en", "Yes."), ("hero", "en", "No.")]
    source = spoken_source(lines, test_speakers=frozenset({"villain"}))
    assert planned_splits({"game": source}, tmp_path) == {("game", "Yes."): "test", ("game", "No."): "train"}


def test_held_out_language_is_only_tested(tmp_path):
    splits = planned_splits({"stamps": spoken_source([("", "ro", "O capră."), ("", "fr", "Une chèvre.")])}, tmp_path)
    assert splits == {("stamps", "O capră."): "test", ("stamps", "Une chèvre."): "train"}


def test_splits_do_not_depend_on_the_order_of_recordings(tmp_path):
    lines = [("joe", "en", f"Sentence number {index}.") for index in range(50)]
    options = {"test_fraction": 0.3, "validation_fraction": 0.2}
    forward = planned_splits({"game": spoken_source(lines, **options)}, tmp_path)
    assert forward == planned_splits({"game": spoken_source(lines[::-1], **options)}, tmp_path)


def test_recording_that_comes_twice_is_kept_once_in_the_stronger_split(tmp_path):
    data = encode_noise()

    def parse():
        yield Utterance("copy", lambda: data, "speech", "One.", "joe", "en")
        yield Utterance("original", lambda: data, "speech", "Two.", "ann", "en")

    sources = {"game": Source((), "CC0-1.0", parse, test_speakers=frozenset({"ann"}))}
    plan = prepare_data.plan(sources, tmp_path)["game"]
    assert [(utterance.id, split) for utterance, split in plan.rows] == [("original", "test")]
    assert plan.dropped == {"duplicate": 1}


def test_signs_of_all_scripts_stay_apart_when_normalised():
    assert prepare_data.normalise("  Ça, c'est  BON !") == "ça c est bon"
    assert prepare_data.normalise("കാ") != prepare_data.normalise("കി")


# Decoding


def test_audio_comes_out_mono_and_at_most_24_khz():
    wave, rate = prepare_data.decode(encode_noise(1.0, 44_100, channels=2))
    assert (wave.shape, wave.dtype, rate) == ((24_000,), np.float32, 24_000)


def test_low_native_rate_is_kept():
    assert prepare_data.decode(encode_noise(1.0, 11_025))[1] == 11_025


def test_headerless_g722_decodes_at_16_khz():
    wave, rate = prepare_data.decode(bytes(range(256)) * 8, codec="g722")
    assert rate == 16_000 and len(wave) == 2 * 2048  # 8000 bytes are one second


def rows_of(data, text=""):
    utterance = Utterance("clip", lambda: data, "speech", text)
    return prepare_data.rows_of(utterance, "train", "game", Source((), "CC0-1.0", parse_files))


def test_long_track_is_cut_into_consecutive_clips_of_20_seconds():
    data = encode_noise(45, 8000)
    rows, _ = rows_of(data)
    assert [row["duration"] for row in rows] == [20.0, 20.0, 5.0]
    joined = np.concatenate([sf.read(io.BytesIO(row["audio"]["bytes"]))[0] for row in rows])
    np.testing.assert_allclose(joined, sf.read(io.BytesIO(data))[0], atol=1e-4)


def test_transcribed_recording_is_never_cut():
    rows, _ = rows_of(encode_noise(25, 8000), text="A very long sentence.")
    assert [row["duration"] for row in rows] == [25.0]


@pytest.mark.parametrize(
    ("data", "text", "reason"),
    [
        (b"no audio at all", "", "corrupt"),
        (encode_noise(0.05), "", "short"),
        (encode_noise(0), "", "short"),
        (encode_noise(0.5, amplitude=1e-4), "", "silent"),
        (encode_noise(0.5), "A sentence that nobody can say within half a second.", "text too long for its audio"),
    ],
)
def test_unusable_recording_is_counted_not_fatal(data, text, reason):
    rows, left_out = rows_of(data, text)
    assert (rows, left_out) == ([], {reason: 1})


# The run as a whole


@needs_dpkg
def test_result_loads_with_datasets_and_decodes(tmp_path):
    files = {f"{index}.wav": encode_noise(seed=index) for index in range(20)} | {"broken.wav": b"?"}
    sources = {"beeps": folder_source(tmp_path / "cache", "beeps", files, test_fraction=0.3, validation_fraction=0.3)}
    reports = prepare_data.prepare(sources, tmp_path / "out", tmp_path / "cache")
    mix = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "hf"))
    assert set(mix) == {"train", "validation", "test"} and sum(mix.num_rows.values()) == 20
    row = mix["train"][0]
    wave, rate = sf.read(io.BytesIO(row["audio"]["bytes"]))
    assert rate == row["sampling_rate"] == 16_000 and len(wave) == 8000 and row["duration"] == 0.5
    assert (row["source"], row["licence"], row["kind"], row["split"]) == ("beeps", "CC0-1.0", "effect", "train")
    assert mix["train"].features["audio"].decode is False
    assert reports["beeps"]["left_out"] == {"corrupt": 1}
    assert load_dataset(str(tmp_path / "out"), "beeps", split="test", cache_dir=str(tmp_path / "hf")).num_rows > 0
    assert "| beeps | beeps 1:2-3 | CC0-1.0 |" in (tmp_path / "out/README.md").read_text()


@needs_dpkg
def test_killed_run_continues_without_redoing_finished_sources(tmp_path, monkeypatch):
    cache, out = tmp_path / "cache", tmp_path / "out"
    sources = {
        "first": folder_source(cache, "first", {"a.wav": encode_noise(seed=1), "b.wav": encode_noise(seed=2)}),
        "second": folder_source(cache, "second", {"c.wav": encode_noise(seed=3), "d.wav": encode_noise(seed=4)}),
    }
    original, decoded = prepare_data.rows_of, []

    def killed_at_d(utterance, *others):
        if utterance.id == "d" and "d" not in decoded:
            decoded.append("d")
            raise KeyboardInterrupt
        decoded.append(utterance.id)
        return original(utterance, *others)

    monkeypatch.setattr(prepare_data, "rows_of", killed_at_d)
    with pytest.raises(KeyboardInterrupt):
        prepare_data.prepare(sources, out, cache, num_workers=1)
    assert [path.name for path in (out / "data").iterdir()] == ["first"]

    decoded[:] = ["d"]
    prepare_data.prepare(sources, out, cache, num_workers=1)
    assert decoded == ["d", "c", "d"]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "data"]


@needs_dpkg
def test_source_is_rebuilt_when_its_plan_changes(tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out"
    source = folder_source(cache, "beeps", {f"{i}.wav": encode_noise(seed=i) for i in range(4)})
    assert set(prepare_data.prepare({"beeps": source}, out, cache)["beeps"]["splits"]) == {"train"}
    held_out = Source(source.packages, source.licence, source.parse, test_fraction=1.0)
    assert set(prepare_data.prepare({"beeps": held_out}, out, cache)["beeps"]["splits"]) == {"test"}
    assert [path.name[:10] for path in (out / "data/beeps").glob("*.parquet")] == ["test-00000"]


@needs_dpkg
def test_rebuilt_source_is_read_anew_although_the_old_one_is_cached(tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out"
    source = folder_source(cache, "beeps", {f"{i}.wav": encode_noise(seed=i) for i in range(4)})
    prepare_data.prepare({"beeps": source}, out, cache)
    assert load_dataset(str(out), split="train", cache_dir=str(tmp_path / "hf")).num_rows == 4
    fewer = Source(source.packages, source.licence, lambda root: list(source.parse(root))[:3])
    prepare_data.prepare({"beeps": fewer}, out, cache)
    assert load_dataset(str(out), split="train", cache_dir=str(tmp_path / "hf")).num_rows == 3


def test_files_that_differ_but_sound_the_same_are_written_once(tmp_path):
    versions = [encode_noise(format="WAV"), encode_noise(format="AIFF")]

    def parse():
        for index, data in enumerate(versions):
            yield Utterance(str(index), partial(bytes, data), "effect")

    report = prepare_data.prepare({"beeps": Source((), "CC0-1.0", parse)}, tmp_path / "out", tmp_path)["beeps"]
    assert report["splits"]["train"]["clips"] == 1 and report["left_out"] == {"duplicate": 1}


def test_full_shard_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, "SHARD_BYTES", 1)
    monkeypatch.setattr(prepare_data, "ROWS_PER_GROUP", 2)
    source = spoken_source([("joe", "en", f"Sentence {index}.") for index in range(5)])
    prepare_data.prepare({"game": source}, tmp_path / "out", tmp_path)
    shards = sorted(path.name[:11] for path in (tmp_path / "out/data/game").glob("*.parquet"))
    assert shards == [f"train-{index:05d}" for index in range(3)]
    assert load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "hf")).num_rows == 5


@needs_dpkg
def test_package_without_recordings_is_an_error(tmp_path):
    sources = {"empty": folder_source(tmp_path / "cache", "empty", {"readme.txt": b"moved"})}
    with pytest.raises(debian_packages.PackageCorruptError, match="empty: no recording found"):
        prepare_data.prepare(sources, tmp_path / "out", tmp_path / "cache")


# Parsers


def test_asterisk_prompts_get_their_words_and_tones_are_left_out(tmp_path):
    for name in ("hello", "digits/1", "beep", "silence/1"):
        write(tmp_path / f"audio/usr/share/asterisk/sounds/en_voice/{name}.g722", b"\0" * 80)
    listing = "; comment\nhello: Hello: you. (a tone follows)\ndigits/1: one\nbeep: [tone]\nsilence/1: (silence)\n"
    write(tmp_path / "texts/usr/share/doc/core-sounds-en.txt.gz", gzip.compress(listing.encode()))
    prompts = list(parse_asterisk(tmp_path / "audio", tmp_path / "texts", "en"))
    assert [(prompt.id, prompt.text) for prompt in prompts] == [("digits/1", "one"), ("hello", "Hello: you.")]
    assert {(prompt.speaker, prompt.codec, prompt.language) for prompt in prompts} == {("en_voice", "g722", "en")}


def test_fillets_lines_are_found_by_level_and_name(tmp_path):
    game = "usr/share/games/fillets-ng"
    for level, said in (("cave", "Tma."), ("ship", 'Voda \\"tam\\".')):
        script = f'dialogId("a-m-x", "font_small", "It\'s \\"English\\".")\ndialogStr("{said}")\n'
        write(tmp_path / f"data/{game}/script/{level}/dialogs_cs.lua", script)
        write(tmp_path / f"cs/{game}/sound/{level}/cs/a-m-x.ogg", b"")
    write(tmp_path / f"cs/{game}/sound/cave/cs/unknown.ogg", b"")
    found = [(u.id, u.text, u.speaker) for u in parse_fillets(tmp_path / "cs", tmp_path / "data", "cs")]
    assert found == [("cave/a-m-x", "Tma.", "small_fish"), ("ship/a-m-x", 'Voda "tam".', "small_fish")]


def test_tuxpaint_stamps_say_the_line_of_their_language(tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps/animals"
    write(stamps / "goat.txt", "A goat.\nfr.utf8=Une chèvre.\n")
    for name in ("goat.ogg", "goat_desc.ogg", "goat_desc_fr.ogg", "goat_desc_ru.ogg"):
        write(stamps / name, b"")
    spoken = {(u.id, u.language, u.text) for u in parse_tuxpaint(tmp_path)}
    assert spoken == {("animals/goat_desc", "en", "A goat."), ("animals/goat_desc_fr", "fr", "Une chèvre.")}
    (effect,) = parse_tuxpaint_effects(tmp_path)
    assert (effect.id, effect.kind, effect.caption, effect.text) == ("animals/goat", "effect", "A goat.", "")


def test_hedgewars_event_stays_in_one_group_across_voice_packs(tmp_path):
    data = tmp_path / "usr/share/games/hedgewars/Data"
    for name in (
        "Music/Castle.ogg",
        "Sounds/bang.ogg",
        "Sounds/voices/Pirate/Ouch.ogg",
        "Sounds/voices/Default_pl/ouch.ogg",
    ):
        write(data / name, b"")
    found = {u.id: (u.kind, u.language, u.group) for u in parse_hedgewars(tmp_path)}
    assert found == {
        "music/Castle": ("music", "", ""),
        "effects/bang": ("effect", "", ""),
        "voices/Pirate/Ouch": ("speech", "en", "ouch"),
        "voices/Default_pl/ouch": ("speech", "pl", "ouch"),
    }


def test_effects_inside_a_zip_are_read_by_member(tmp_path):
    with zipfile.ZipFile(tmp_path / "sounds.pk3", "w") as archive:
        archive.writestr("sound/bang.wav", b"bang")
        archive.writestr("textures/wall.png", b"wall")
    (effect,) = parse_zip(tmp_path, "sounds.pk3")
    assert (effect.id, effect.read(), effect.kind) == ("sound/bang", b"bang", "effect")


def queen_dialogue(key, person_lines):
    """A dialogue script without answers of the hero: header, then (number, words) lines of the person."""
    body = bytearray(52)
    struct.pack_into(">5h", body, 20, 0, 0, key, 0, len(person_lines))
    struct.pack_into(">H", body, 42, 32)
    for number, words in person_lines:
        body += struct.pack(">2HB", 0, number, len(words)) + words.encode("latin1")
        body += bytes(-(len(body) - 20) % 4)  # the next line starts at a multiple of 4 bytes
    return bytes(body)


def test_queen_clips_get_the_words_of_scripts_and_remarks(tmp_path):
    mp3 = b"m" * 300
    members = {
        "LOLA2.DOG": queen_dialogue(12, [(7, "Hello there.*AB Wait (sigh)!"), (8, "Bye^_.")]),
        "QUEEN2.JAS": b"It's locked.\r\nA door.*XY12345678901Again.\r\n",
    }
    clips = ("120007P1", "120007P2", "120008P1", "JOE00411", "JOE00421", "JOE00422", "JOE09991", "CUT00011")
    members |= {f"{clip}.SB": mp3 for clip in clips}
    offset = 15 + 21 * len(members)
    directory, content = b"", b""
    for name, data in members.items():
        directory += name.encode().ljust(13, b"\0") + struct.pack(">II", offset + len(content), len(data))
        content += data
    container = Path("usr/share/scummvm/flight-of-the-amazon-queen/queen.1c")
    write(tmp_path / container, bytes(13) + struct.pack(">H", len(members)) + directory + content)
    assert {u.id: (u.speaker, u.text) for u in parse_queen(tmp_path)} == {
        "120007P1": ("lola", "Hello there."),
        "120007P2": ("lola", "Wait!"),
        "120008P1": ("lola", "Bye."),
        "JOE00411": ("joe", "It's locked."),
        "JOE00421": ("joe", "A door."),
        "JOE00422": ("joe", "Again."),
        "JOE09991": ("joe", ""),
    }
