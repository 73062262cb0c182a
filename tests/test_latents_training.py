from datasets import Dataset
from f3_training.latents_training import COLUMNS, described


def test_rows_need_no_column_but_their_latents_and_what_has_a_text_is_speech():
    bare = {"latents": [[[0.0]], [[1.0]]], "frames": [1, 1]}
    sounds = described(Dataset.from_dict(bare))
    assert sounds.column_names == list(COLUMNS)
    assert sounds[1] == {"latents": [[1.0]], "frames": 1, **dict.fromkeys(COLUMNS[2:], "")}
    talk = described(
        Dataset.from_dict({**bare, "text": ["hello", ""], "language": ["en", "en"], "mood": ["good", "bad"]})
    )
    assert [(row["kind"], row["text"], row["language"]) for row in talk] == [("speech", "hello", "en"), ("", "", "en")]


def test_what_a_dataset_says_of_its_rows_is_kept():
    said = {"kind": ["music"], "language": [""], "text": ["la la"], "caption": ["a song"], "source": ["radio"]}
    rows = Dataset.from_dict({"latents": [[[0.0]]], "frames": [1], **said})
    assert described(rows).to_dict() == rows.to_dict()
