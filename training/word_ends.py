"""When each word of a sentence ends: its words matched with what an engine of speech pronounced, and for how long."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


MOST_WORDS = 3  # that engines run together, as in "of the"


class Pronounced(NamedTuple):
    """
    What an engine said without a gap: a word, or several that it runs together.

    Args:
        sounds: how many.
        end: in seconds.
    """

    sounds: int
    end: float


def pronounced(phonemes: Iterable[tuple[str, float]]) -> list[Pronounced]:
    """What lies between the spaces among `phonemes`, each with its seconds. A space belongs half to what it follows."""
    parts, sounds, now = [], 0, 0.0
    for phoneme, seconds in phonemes:
        if phoneme.isspace():
            parts.append(Pronounced(sounds, now + seconds / 2))
            sounds = 0
        sounds += count_sounds(phoneme)
        now += seconds
    return [*parts, Pronounced(sounds, now)]


def count_sounds(phonemes: str) -> int:
    """Of a transcription in IPA, without marks of stress and length and without punctuation."""
    return sum(unicodedata.category(sign) in ("Ll", "Lo") for sign in phonemes)


def word_ends(words: Sequence[str], parts: Sequence[Pronounced], sounds: Callable[[str], int]) -> list[float]:
    """
    The ends of `words` in seconds; none where the parts that were pronounced cannot be matched with them.

    Args:
        sounds: how many a word has alone; words that were run together share their time by it.
    """
    sizes = [max(1, sounds(word)) for word in words]
    ends, began, first = [], 0.0, 0
    for part, count in zip(parts, _words_of_each(sizes, [part.sounds for part in parts])):
        shares = sizes[first : first + count]
        ends += [began + (part.end - began) * sum(shares[: index + 1]) / sum(shares) for index in range(count)]
        began, first = part.end, first + count
    return ends


def _words_of_each(sizes: Sequence[int], counts: Sequence[int]) -> list[int]:
    """How many words each part of `counts` sounds has, so that the numbers of sounds differ least; none if it can't be."""
    best = {0: (0, [])}  # of so many words: how much the numbers of sounds differ, and how many words each part has
    for count in counts:
        longer = {}
        for used, (distance, numbers) in best.items():
            for more in range(1, min(MOST_WORDS, len(sizes) - used) + 1):
                found = (distance + abs(count - sum(sizes[used : used + more])), [*numbers, more])
                longer[used + more] = min(longer.get(used + more, found), found)
        best = longer
    return best.get(len(sizes), (0, []))[1]
