"""What the language model is asked about a recording or to say, and what it should answer."""

from collections.abc import Callable
from dataclasses import dataclass

from feature_extraction_f3.processing_f3 import SPEECH_REQUEST, TRANSCRIPTION_REQUEST


@dataclass(frozen=True)
class Task:
    """
    One kind of question.

    Args:
        name: in logs and reports.
        text: the words of a row that the task is about, "" when the row doesn't fit it.
        prompts: ways to ask; `{language}` is replaced by the name of the row's language, and `{text}`, in tasks that are
            answered with the row's audio, by the words.
        spoken: whether the answer is the audio, and the words are in the question, not the other way round.
        whole: whether all of the audio belongs to the words; if not, a part of it may stand for it.
    """

    name: str
    text: Callable[[dict], str]
    prompts: tuple[str, ...]
    spoken: bool = False
    whole: bool = True


LANGUAGES = {
    "be": "Belarusian",
    "bg": "Bulgarian",
    "ca": "Catalan",
    "cs": "Czech",
    "da": "Danish",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "nl": "Dutch",
    "ro": "Romanian",
    "ru": "Russian",
}


def _transcript(row: dict) -> str:
    return row["text"] if row["kind"] == "speech" and row["language"] in LANGUAGES else ""


def _caption(row: dict) -> str:
    return row["caption"]


def _kind(row: dict) -> str:
    return {"music": "This is music.", "effect": "This is a sound effect."}.get(row["kind"], "")


def _language(row: dict) -> str:
    return f"This is {LANGUAGES[row['language']]}." if row["kind"] == "speech" and row["language"] in LANGUAGES else ""


def _english(row: dict) -> str:
    return row["text"] if row["kind"] == "speech" and row["language"] == "en" else ""


_ALL = (
    Task(
        "transcribe",
        _transcript,
        (
            TRANSCRIPTION_REQUEST,
            "Write down what is said in {language}.",
            "What are the {language} words in this recording?",
            "Repeat the {language} sentence you hear.",
        ),
    ),
    Task("caption", _caption, ("What makes this sound?", "Describe the sound.", "Name what you hear."), whole=False),
    Task("kind", _kind, ("What kind of audio is this?", "Is this speech, music or a sound effect?"), whole=False),
    Task("language", _language, ("Which language is this?", "Name the language that is spoken."), whole=False),
    Task("speak", _english, (SPEECH_REQUEST, "Read aloud: {text}", "Speak this sentence: {text}"), spoken=True),
    Task("sound", _caption, ("Make this sound: {text}", "What does this sound like? {text}"), spoken=True),
)
TASKS = {task.name: task for task in _ALL}


def conversation(task: Task, row: dict, latents, choice: int) -> list[dict]:
    """A question and its answer, one of them about the row's audio, for [`F3Processor`]; `choice` picks the wording."""
    audio, text = {"type": "audio", "latents": latents}, task.text(row)
    prompt = task.prompts[choice % len(task.prompts)].format(language=LANGUAGES.get(row["language"], ""), text=text)
    if task.spoken:
        said = {"text": row["text"], "word_ends": row.get("word_ends")}
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": [{**audio, **said}]}]
    question = [audio, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
