"""What the frozen language model is asked about a recording, and what it should answer."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """
    One kind of question.

    Args:
        name: in logs and reports.
        answer: the text to be learned from a row of the dataset, "" when the row doesn't fit the task.
        prompts: ways to ask; `{language}` is replaced by the name of the row's language.
    """

    name: str
    answer: Callable[[dict], str]
    prompts: tuple[str, ...]


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


TASKS = (
    Task(
        "transcribe",
        _transcript,
        (
            "Transcribe the {language} speech.",
            "Write down what is said in {language}.",
            "What are the {language} words in this recording?",
            "Repeat the {language} sentence you hear.",
        ),
    ),
    Task("caption", _caption, ("What makes this sound?", "Describe the sound.", "Name what you hear.")),
    Task("kind", _kind, ("What kind of audio is this?", "Is this speech, music or a sound effect?")),
)


def task_of(row: dict) -> Task | None:
    """The first task that the row has an answer to."""
    return next((task for task in TASKS if task.answer(row).strip()), None)


def conversation(row: dict, latents, choice: int) -> list[dict]:
    """
    A question about the row's audio and its answer, for [`F3Processor`]; `choice` picks the wording.

    Raises:
        `ValueError`: when no task fits the row, such as speech without a text.
    """
    task = task_of(row)
    if task is None:
        raise ValueError(
            f"a row of kind {row['kind']!r} has neither a text in a known language nor a caption, so there is nothing to "
            "learn from it: leave out rows without one"
        )
    prompt = task.prompts[choice % len(task.prompts)].format(language=LANGUAGES.get(row["language"], ""))
    question = [{"type": "audio", "latents": latents}, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": task.answer(row)}]
