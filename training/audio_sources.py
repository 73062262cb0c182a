"""Where the audio comes from: pinned Debian packages and one small parser per source.

A parser walks unpacked packages and yields `Utterance` records; it reads names and transcripts only, so a
whole corpus can be planned (which row goes to which split) before one sample is decoded. Every package is
pinned by version and sha256: the same code always builds the same rows.
"""

import gzip
import re
import struct
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .debian_packages import Package


AUDIO_SUFFIXES = {".ogg", ".wav", ".mp3", ".flac"}


@dataclass(frozen=True)
class Utterance:
    """One recording as its package ships it, not decoded yet.

    `read` returns the encoded bytes. `text` is what is said, "" when unknown; `caption` tells in English what
    an effect sounds like. `group` names recordings that must stay in one split although no text says so.
    """

    id: str
    read: Callable[[], bytes]
    kind: str
    text: str = ""
    speaker: str = ""
    language: str = ""
    caption: str = ""
    codec: str = ""
    group: str = ""


@dataclass(frozen=True)
class Source:
    """A named set of recordings: packages, licence, parser and how much of it is held out.

    `parse` takes the folders of the unpacked packages in the order of `packages`. Fractions are of texts
    (or of files, where there is no text); speakers named here are held out whole.
    """

    packages: tuple[Package, ...]
    licence: str
    parse: Callable[..., Iterator[Utterance]]
    test_fraction: float = 0.0
    validation_fraction: float = 0.0
    test_speakers: frozenset[str] = frozenset()
    validation_speakers: frozenset[str] = frozenset()


def audio_files(root: Path) -> list[Path]:
    """All audio files below `root` that soundfile can read, in a stable order."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())


def parse_files(root: Path, folder: str, kind: str) -> Iterator[Utterance]:
    """Every audio file below `folder` as one recording without text."""
    for path in audio_files(root / folder):
        yield Utterance(str(path.relative_to(root / folder).with_suffix("")), path.read_bytes, kind)


def parse_colobot(root: Path) -> Iterator[Utterance]:
    """Music and effects of one game."""
    yield from parse_files(root, "usr/share/games/colobot/music", "music")
    yield from parse_files(root, "usr/share/games/colobot/sounds", "effect")


def parse_zip(root: Path, member: str) -> Iterator[Utterance]:
    """Every audio file inside a game's zip container as a sound effect."""
    archive = root / member
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if Path(name).suffix.lower() in AUDIO_SUFFIXES)
    for name in names:
        yield Utterance(str(Path(name).with_suffix("")), partial(_read_member, archive, name), "effect")


def _read_member(archive: Path, name: str) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        return opened.read(name)


def parse_asterisk(audio: Path, texts: Path, language: str) -> Iterator[Utterance]:
    """Telephone prompts: headerless G.722 files and one text file of `name: words` lines.

    What stands in brackets describes a tone, a scream or silence; a prompt of nothing else is left out.
    """
    (listing,) = texts.rglob(f"core-sounds-{language}.txt.gz")
    spoken = {}
    for line in gzip.decompress(listing.read_bytes()).decode("utf-8").splitlines():
        name, colon, text = line.partition(":")
        words = re.sub(r"\([^)]*\)|<[^>]*>|^\s*\[[^]]*\]\s*$", "", text)
        if colon and not line.startswith(";"):
            spoken[name.strip()] = re.sub(r"[\[\]]", "", words).strip()
    for path in sorted(audio.rglob("*.g722")):
        voice = path.relative_to(audio / "usr/share/asterisk/sounds").parts[0]
        name = str(path.relative_to(audio / "usr/share/asterisk/sounds" / voice).with_suffix(""))
        if spoken.get(name):
            yield Utterance(name, path.read_bytes, "speech", spoken[name], voice, language, codec="g722")


_DIALOG = re.compile(r'dialogId\("([^"]+)",\s*"[^"]+",\s*"(?:[^"\\]|\\.)*"\)\s*dialogStr\("((?:[^"\\]|\\.)*)"\)')
_FISH = {"m": "small_fish", "v": "big_fish"}


def parse_fillets(audio: Path, scripts: Path, language: str) -> Iterator[Utterance]:
    """Acted game dialogue: `sound/LEVEL/LANG/NAME.ogg`, its words in `script/LEVEL/dialogs_LANG.lua`.

    A field of most names tells who speaks: the small or the big fish; all other roles have no label.
    """
    game = "usr/share/games/fillets-ng"
    spoken, anywhere = {}, {}
    for script in sorted((scripts / game / "script").rglob(f"*dialogs_{language}.lua")):
        level = str(script.parent.relative_to(scripts / game / "script"))
        for name, text in _DIALOG.findall(script.read_text("utf-8")):
            spoken[level, name] = anywhere[name] = re.sub(r"\\(.)", r"\1", text).strip()
    for path in audio_files(audio / game / "sound"):
        level = str(path.parent.parent.relative_to(audio / game / "sound"))
        text = spoken.get((level, path.stem)) or anywhere.get(path.stem)
        if text and path.parent.name == language:
            role = next((_FISH[part] for part in path.stem.split("-")[:2] if part in _FISH), "")
            yield Utterance(f"{level}/{path.stem}", path.read_bytes, "speech", text, role, language)


_STAMPS = "usr/share/tuxpaint/stamps"


def parse_tuxpaint(root: Path) -> Iterator[Utterance]:
    """Names of drawing stamps: `X_desc[_LANG].ogg` says the line of that language in `X.txt`.

    Several volunteers recorded each language and none is named, so the speaker stays unknown.
    """
    stamps = root / _STAMPS
    for path in audio_files(stamps):
        spoken = re.fullmatch(r"(.+)_desc(?:_([a-z]{2}))?", path.stem)
        if spoken:
            language = spoken[2] or "en"
            text = _stamp_texts(path.with_name(f"{spoken[1]}.txt")).get(language, "")
            if text:
                name = str(path.relative_to(stamps).with_suffix(""))
                yield Utterance(name, path.read_bytes, "speech", text, language=language)


def parse_tuxpaint_effects(root: Path) -> Iterator[Utterance]:
    """Sounds that the drawn things make: `X.ogg`, with the English line of `X.txt` as caption."""
    stamps = root / _STAMPS
    for path in audio_files(stamps):
        if "_desc" not in path.stem:
            caption = _stamp_texts(path.with_suffix(".txt")).get("en", "")
            yield Utterance(str(path.relative_to(stamps).with_suffix("")), path.read_bytes, "effect", caption=caption)


def _stamp_texts(path: Path) -> dict[str, str]:
    """Words of a stamp by language code (first line English, others `LANG.utf8=words`); empty without a file."""
    if not path.is_file():
        return {}
    first, *others = path.read_text("utf-8", errors="replace").splitlines() or [""]
    texts = {"en": first.strip()}
    for line in others:
        key, _, text = line.partition("=")
        texts[key.removesuffix(".utf8").strip()] = text.strip()
    return texts


def parse_klettres(root: Path) -> Iterator[Utterance]:
    """Letters and syllables: each language folder has a `sounds.xml` naming the written sign of every file."""
    letters = root / "usr/share/klettres"
    for listing in sorted(letters.glob("*/sounds.xml")):
        signs = {sound.get("file"): sound.get("name") or "" for sound in ET.parse(listing).iter("sound")}
        for path in audio_files(listing.parent):
            name = path.relative_to(letters)
            language = listing.parent.name.split("_")[0]
            text = signs.get(str(name), "").strip()
            yield Utterance(str(name.with_suffix("")), path.read_bytes, "speech", text, language=language)


def parse_ktuberling(root: Path) -> Iterator[Utterance]:
    """Names of toys and body parts; the sound themes give English names, so only English rows have a text.

    A name with an underscore tells the picture it belongs to instead of the words.
    """
    sounds = root / "usr/share/ktuberling/sounds"
    theme = (sounds / "en.soundtheme").read_text("utf-8")
    english = {file: name for name, file in re.findall(r'name="([^"_]+)"\s+file="([^"]+)"', theme)}
    for path in audio_files(sounds):
        name = path.relative_to(sounds)
        text = english.get(str(name), "")
        yield Utterance(str(name), path.read_bytes, "speech", text, language=name.parts[0].split("_")[0])


def parse_gcin(root: Path) -> Iterator[Utterance]:
    """Mandarin syllables: the folder is the syllable in bopomofo with its tone, the file name the voice."""
    voices = root / "usr/share/gcin-voice/ogg"
    for path in audio_files(voices):
        syllable = path.parent.name
        yield Utterance(f"{syllable}/{path.stem}", path.read_bytes, "speech", syllable, path.stem, "zh")


def parse_hedgewars(root: Path) -> Iterator[Utterance]:
    """Music, effects and voice packs; packs act the same events, so an event is kept in one split."""
    data = root / "usr/share/games/hedgewars/Data"
    for path in audio_files(data / "Music"):
        yield Utterance(f"music/{path.stem}", path.read_bytes, "music")
    for path in audio_files(data / "Sounds"):
        pack = path.relative_to(data / "Sounds").parts[:-1]
        if pack[:1] == ("voices",):
            _, _, suffix = pack[1].partition("_")
            language = suffix or ("" if pack[1] == "Russian" else "en")
            name = f"voices/{pack[1]}/{path.stem}"
            event = path.stem.casefold()
            yield Utterance(name, path.read_bytes, "speech", speaker=pack[1], language=language, group=event)
        else:
            yield Utterance(f"effects/{path.stem}", path.read_bytes, "effect")


def parse_queen(root: Path) -> Iterator[Utterance]:
    """Acted English dialogue of an adventure game, one container of MP3 clips, scripts and line tables.

    Dialogue scripts and the hero's line table give exact words. Clips of the hero without words are kept as
    speech without text; clips whose speaker is unknown are left out, since a held-out one could be among them.
    Scripts are numbered when a character is met again, so the number is no part of the speaker's label.
    """
    path = root / "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"
    entries = _queen_entries(path.read_bytes())
    lines = _queen_lines(entries)
    for file_name, data in sorted(entries.items()):
        name = file_name.removesuffix(".SB")
        hero = re.fullmatch(r"JOE\d{4}[0-9A-F]", name)
        if file_name.endswith(".SB") and len(data) > 200 and (hero or lines.get(name)):
            text, speaker = lines.get(name, ("", "joe"))
            yield Utterance(name, partial(bytes, data), "speech", text, speaker, "en")


def _queen_entries(blob: bytes) -> dict[str, memoryview]:
    """Directory of the container: 21-byte records (12 name, 1 flag, 4 offset, 4 size) after a 15-byte header."""
    (count,) = struct.unpack_from(">H", blob, 13)
    entries = {}
    for record in range(15, 15 + 21 * count, 21):
        name = blob[record : record + 12].split(b"\0")[0].decode("latin1")
        offset, size = struct.unpack_from(">II", blob, record + 13)
        entries[name] = memoryview(blob)[offset : offset + size]
    return entries


def _queen_lines(entries: dict[str, memoryview]) -> dict[str, tuple[str, str]]:
    """Clip name -> (words, speaker), from the dialogue scripts and the hero's table of remarks."""
    lines = {}
    for name, data in entries.items():
        if name.endswith(".DOG"):
            lines.update(_queen_dialogue(bytes(data[20:]), name.removesuffix(".DOG").rstrip("0123456789").lower()))
    # Clips of the table start at number 41 and count its lines.
    for number, line in enumerate(bytes(entries["QUEEN2.JAS"]).decode("latin1").split("\r\n"), start=41):
        for part, words in enumerate(_queen_segments(line), start=1):
            lines[f"JOE{number:04d}{part:X}"] = (words, "joe")
    return {name: line for name, line in lines.items() if line[0]}


def _queen_dialogue(data: bytes, person: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """(clip name, (words, speaker)) pairs of one script: the hero's lines, then those of the person met."""
    levels, _, key, hero_count, person_count = struct.unpack_from(">5h", data, 0)
    (person_start,) = struct.unpack_from(">H", data, 22)
    hero_start = 32 + 96 * abs(levels)
    for start, count, letter, speaker in (
        (hero_start, hero_count, "J", "joe"),
        (person_start, person_count, "P", person),
    ):
        position = start
        for _ in range(count):
            if position + 5 > len(data):
                break
            (number,) = struct.unpack_from(">H", data, position + 2)
            length, position = data[position + 4], position + 5
            line = data[position : position + length].decode("latin1")
            if length:
                position = (position + length + 3) & ~3
            for part, words in enumerate(_queen_segments(line), start=1):
                yield f"{key:02d}{number:04X}{letter}{part:X}", (words, speaker)


def _queen_segments(line: str) -> list[str]:
    """Split a line at its stage commands (`*` and two letters, `*XY` and eleven): each part is its own clip."""
    parts = re.split(r"(?s)\*(?:XY.{0,11}|.{0,2})", line)
    # What remains besides words: a trademark sign (^_), notes (@@) and noises such as (sigh) or <gulp>.
    return [re.sub(r"\s*(?:\^_|@@|\([^)]*\)|<[^>]*>)", "", part).strip() for part in parts]


_PINS = """
asterisk-core-sounds-en 1.6.1-1 973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50
asterisk-core-sounds-en-g722 1.6.1-1 38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806
asterisk-core-sounds-es 1.6.1-1 9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74
asterisk-core-sounds-es-g722 1.6.1-1 e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8
asterisk-core-sounds-fr 1.6.1-1 04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056
asterisk-core-sounds-fr-g722 1.6.1-1 7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0
colobot-common-sounds 0.2.0-2 819e799542eac69c95b072567b5584eb3e0b2bb900de13efa3684915747b1644
fillets-ng-data 1.0.1-1.1 25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84
fillets-ng-data-cs 1.0.1-1.1 3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14
fillets-ng-data-nl 1.0.1-1.1 afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10
flight-of-the-amazon-queen 1.0.0-9 40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1
gcin-voice 0~20170223-3 6a0353f0294d06f7bd901bada3d5d9eec63b66c2ec029f92da3124d93d45de70
hedgewars-data 1.0.2-6 722225903a72604403e6e0026e40e9a6953f47a74d94efc5f55504bc05bb4761
klettres-data 4:22.12.3-1 1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8
ktuberling-data 4:22.12.3-1 fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed
openarena-data 0.8.5split-14 fa68862434f02a826b7ef22008f25f406623abf4e37113c1bfab5460065483c8
tuxpaint-stamps-default 2022.06.04-1 6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34
ufoai-sound 2.5-2 0224308c10e1265581d1829f19eaef031175390fd0eafeb4a1d558ac6561ed4e
wesnoth-1.16-music 1:1.16.9-1 f9bc3cde92b4ab30db5d7b85f89b4bcc3d788dd92602956d0347250850bf59bb
"""
PACKAGES = {package.name: package for package in (Package(*line.split()) for line in _PINS.split("\n") if line)}


def _packages(*names: str) -> tuple[Package, ...]:
    return tuple(PACKAGES[name] for name in names)


def _asterisk(language: str, test_fraction: float) -> Source:
    name = f"asterisk-core-sounds-{language}"
    parse = partial(parse_asterisk, language=language)
    return Source(_packages(f"{name}-g722", name), "CC-BY-SA-3.0", parse, test_fraction, 0.04)


def _fillets(language: str) -> Source:
    parse = partial(parse_fillets, language=language)
    return Source(_packages(f"fillets-ng-data-{language}", "fillets-ng-data"), "GPL-2.0", parse, 0.08, 0.04)


_QUEEN_LICENCE = "freeware: free to copy and modify, not to be sold as a game"
_MUSIC = "usr/share/games/wesnoth/1.16/data/core/music"

# Speech in these languages is only ever tested, whatever the source: no model has heard them.
TEST_LANGUAGES = frozenset({"ro", "el"})

SOURCES = {
    "queen": Source(
        _packages("flight-of-the-amazon-queen"),
        _QUEEN_LICENCE,
        parse_queen,
        test_speakers=frozenset({"naomi", "frank", "tam", "klunk"}),
        validation_speakers=frozenset({"oracle", "henry"}),
    ),
    "asterisk_en": _asterisk("en", 0.11),
    "asterisk_es": _asterisk("es", 0.08),
    "asterisk_fr": _asterisk("fr", 0.08),
    "fillets_cs": _fillets("cs"),
    "fillets_nl": _fillets("nl"),
    "tuxpaint": Source(_packages("tuxpaint-stamps-default"), "GPL-2.0", parse_tuxpaint, 0.0, 0.03),
    "tuxpaint_effects": Source(_packages("tuxpaint-stamps-default"), "GPL-2.0", parse_tuxpaint_effects, 0.1, 0.05),
    "klettres": Source(_packages("klettres-data"), "GPL-2.0-or-later", parse_klettres, 0.0, 0.03),
    "ktuberling": Source(_packages("ktuberling-data"), "GPL-2.0-or-later", parse_ktuberling, 0.0, 0.03),
    "gcin": Source(_packages("gcin-voice"), "CC-BY-3.0", parse_gcin, 0.0, 0.03),
    "hedgewars": Source(_packages("hedgewars-data"), "GPL-2.0", parse_hedgewars, 0.1, 0.05),
    "wesnoth": Source(
        _packages("wesnoth-1.16-music"), "GPL-2.0", partial(parse_files, folder=_MUSIC, kind="music"), 0.1, 0.05
    ),
    "fillets_music": Source(
        _packages("fillets-ng-data"),
        "GPL-2.0",
        partial(parse_files, folder="usr/share/games/fillets-ng/music", kind="music"),
        0.1,
        0.05,
    ),
    "colobot": Source(_packages("colobot-common-sounds"), "GPL-3.0-or-later", parse_colobot, 0.1, 0.05),
    "ufoai": Source(
        _packages("ufoai-sound"),
        "GPL-2.0-or-later and CC-BY-SA-3.0",
        partial(parse_zip, member="usr/share/games/ufoai/base/0snd.pk3"),
        0.1,
        0.05,
    ),
    "openarena": Source(
        _packages("openarena-data"),
        "GPL-2.0-or-later",
        partial(parse_zip, member="usr/share/games/openarena/baseoa/pak0.pk3"),
        0.1,
        0.05,
    ),
}
