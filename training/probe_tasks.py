"""
What a probe asks of a recording, and which recordings it learns from: tasks read off the columns of the data mixture.

The mixture's own `split` is ignored, all its rows are put together. Each task splits them again by groups of its own, so
that a voice, a text, a recording or a source met in training cannot answer for it in the test; `apart` says which. Two
wishes the mixture does not grant: a sentence said by many known speakers, and an effect named by many sources alike.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


Row = Mapping[
    str, Any
]  # columns of the mixture, and `path`, the name of the clip: source/folders/recording-number.flac
COLUMNS = ("path", "duration", "text", "caption", "speaker", "language", "kind", "source", "split")
TEST_SHARE = 0.3  # of a class at most, where groups are small enough


@dataclass(frozen=True)
class ProbeTask:
    """
    A question with one answer per recording.

    Args:
        name: its column in the table.
        label: the answer for a row; None or "" where the question does not apply.
        group: rows of one group are on the same side of the split.
        apart: what the two sides do not share, for the report.
        min_examples: classes with fewer rows are left out.
    """

    name: str
    label: Callable[[Row], str | None]
    group: Callable[[Row], str]
    apart: str
    min_examples: int = 8


@dataclass(frozen=True)
class Example:
    """What a task knows of a row."""

    label: str
    group: str


def select_examples(task: ProbeTask, rows: Sequence[Row], max_items: int) -> dict[int, Example]:
    """
    The rows that a task uses, by their position in `rows`: at most `max_items`, of its largest classes, as evenly from
    the classes, and within a class from its groups, as they allow. A class of a single group cannot be held out and is
    left out. Empty when fewer than two classes remain.
    """
    examples = {index: Example(label, task.group(row)) for index, row in enumerate(rows) if (label := task.label(row))}
    classes = defaultdict(list)
    for index in sorted(examples, key=lambda index: _lot(rows[index]["path"])):
        classes[examples[index].label].append(index)
    usable = [
        members
        for members in classes.values()
        if len(members) >= task.min_examples and len({examples[index].group for index in members}) > 1
    ]
    usable = sorted(usable, key=len, reverse=True)[: max_items // task.min_examples]
    if len(usable) < 2:
        return {}
    per_class = max_items // len(usable)
    return {index: examples[index] for members in usable for index in _by_turns(members, examples)[:per_class]}


def split_examples(examples: Mapping[int, Example], seed: int) -> tuple[list[int], list[int]]:
    """
    Positions to train on and positions to test on. Groups go to the test whole, in an order drawn from `seed`, unless a
    class would lose more than `TEST_SHARE` of its rows; where every group is too large, the smallest one is the test.
    Classes that either side lacks are left out of both.

    Raises:
        `ValueError`: when the two sides share fewer than two classes.
    """
    sizes = Counter(example.label for example in examples.values())
    groups = defaultdict(Counter)
    for example in examples.values():
        groups[example.group][example.label] += 1
    order = sorted(groups, key=lambda group: _lot(f"{seed}/{group}"))
    held_out, taken = set(), Counter()
    for group in order:
        if all(taken[label] + count <= TEST_SHARE * sizes[label] for label, count in groups[group].items()):
            held_out.add(group)
            taken += groups[group]
    held_out = held_out or {min(order, key=lambda group: groups[group].total())}
    sides = [], []
    for index, example in examples.items():
        sides[example.group in held_out].append(index)
    shared = set.intersection(*({examples[index].label for index in side} for side in sides))
    if len(shared) < 2:
        raise ValueError(f"no split of {len(examples)} rows has two classes on both sides: allow more items per task")
    train, test = ([index for index in side if examples[index].label in shared] for side in sides)
    return train, test


def _by_turns(members: list[int], examples: Mapping[int, Example]) -> list[int]:
    """The members, none of a group before all other groups had as many turns."""
    turns, drawn = [], Counter()
    for index in members:
        turns.append(drawn[examples[index].group])
        drawn[examples[index].group] += 1
    return [index for _, index in sorted(zip(turns, members), key=lambda pair: pair[0])]


def _lot(text: str) -> str:
    """A key to sort by that is random, and the same everywhere."""
    return hashlib.sha256(text.encode()).hexdigest()


def _recording(row: Row) -> str:
    """The recording that the clip was cut from."""
    return row["path"].rsplit("-", 1)[0]


def _words(row: Row) -> str:
    return " ".join(re.findall(r"\w+", row["text"].casefold()))


_DIGIT = re.compile(r"/(?:math|digits)/(\d)(?:_([a-z]{2})\w*)?-\d+\.")  # 3_pt_BR-000.flac


def _digit(row: Row) -> str | None:
    """Spoken digits of Tux Paint, which come without text among its effects, and of the telephone prompts."""
    match = _DIGIT.search(row["path"])
    return match and match[1]


def _digit_language(row: Row) -> str:
    return row["language"] or _DIGIT.search(row["path"])[2] or "en"


def _letter(row: Row) -> str | None:
    """
    Names of Latin letters. They differ from language to language ("y" most of all), so that no model can know them all;
    in the digits, too, only related languages help each other.
    """
    match = re.fullmatch("[a-z]", row["text"].strip().casefold())
    return match and re.search("/(alpha|letters)/", row["path"]) and match[0]


def _rime(row: Row) -> str | None:
    """What is left of a Mandarin syllable in bopomofo without its initial and its tone."""
    return re.sub("[ㄅ-ㄙ0-9]", "", row["text"]) if row["source"] == "gcin" else None


def _prompt(row: Row) -> str | None:
    """The event that a voice pack acts. Packs choose their own words for it: often the same, sometimes a mere cry."""
    spoken = row["source"] == "hedgewars" and row["kind"] == "speech" and row["language"] == "en"
    return _recording(row).rsplit("/", 1)[1].casefold() if spoken else None


def _character(row: Row) -> str | None:
    """Who speaks in an adventure game: one studio and one codec for all, so the channel tells nothing."""
    return row["speaker"] if row["source"] == "queen" and row["text"] else None


def _fish(row: Row) -> str | None:
    """The small or the big fish, played by other actors in Czech and in Dutch: what is common is the kind of voice."""
    return row["speaker"].rsplit("/", 1)[1] if row["speaker"].endswith("_fish") else None


def _language(row: Row) -> str | None:
    """Words recorded by volunteers of two projects: the other one's channel is of no use."""
    return row["language"] if row["source"] in ("tuxpaint", "ktuberling") else None


def _kind(row: Row) -> str | None:
    """Without the letters and numbers that Tux Paint keeps among its effects."""
    return None if "/symbols/" in row["path"] else row["kind"]


def _music_source(row: Row) -> str | None:
    """The game that the music is of. Each has its own composers, but its own encoder settings, too: an easy task."""
    return row["source"] if row["kind"] == "music" else None


def _music_piece(row: Row) -> str | None:
    """
    The piece that a clip is of, within one game: unlike its source, the channel does not give it away. Clips are 20 s
    long and probed by their first half, so ten seconds at least lie between two of a piece.
    """
    return _recording(row) if row["source"] == "wesnoth" else None


_CAPTIONED = {"bird": "/birds/", "mammal": "/mammals/", "thing": "/(hobbies|household|naturalforces|vehicles)/"}
_GAME_SOUNDS = {
    "weapon": "/weapons/",
    "footsteps": "/footsteps/",
    "voice": "/(soldiers|civilians|sarge)/",
    "ambience": "/(ambience|world)/",
}


def _captioned_sound(row: Row) -> str | None:
    """The family of what the caption names. Fewer than a hundred recordings: one test item is several percent."""
    return _first_match(_CAPTIONED, row["path"]) if row["caption"] else None


def _game_sound(row: Row) -> str | None:
    """The folder that two games file an effect under; these have no captions."""
    return _first_match(_GAME_SOUNDS, row["path"]) if row["source"] in ("ufoai", "openarena") else None


def _first_match(patterns: Mapping[str, str], path: str) -> str | None:
    return next((label for label, pattern in patterns.items() if re.search(pattern, path)), None)


TASKS = (
    ProbeTask("digit", _digit, _digit_language, "languages and voices"),
    ProbeTask("letter", _letter, lambda row: row["language"], "languages and voices"),
    ProbeTask("Mandarin rime", _rime, lambda row: row["speaker"], "voices"),
    ProbeTask("prompt", _prompt, lambda row: row["speaker"], "voices"),
    ProbeTask("speaker", _character, _words, "texts", min_examples=40),
    ProbeTask("voice type", _fish, lambda row: row["language"], "languages and voices"),
    ProbeTask("language", _language, lambda row: row["source"], "sources"),
    # asterisk_en and asterisk_es, or fillets_cs and fillets_music, are one source
    ProbeTask("speech/music/effect", _kind, lambda row: row["source"].split("_")[0], "sources"),
    ProbeTask("music source", _music_source, _recording, "recordings"),
    ProbeTask("music piece", _music_piece, lambda row: row["path"], "clips, not recordings"),
    ProbeTask("captioned sound", _captioned_sound, lambda row: row["caption"], "captions and recordings"),
    ProbeTask("game sound", _game_sound, lambda row: row["source"], "sources"),
)
