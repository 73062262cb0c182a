import torch
from datasets import Dataset
from f3_training.latents_training import COLUMNS, LatentsTrainer, described, trainer_arguments
from f3_training.representation import RepresentationArguments


def test_rows_need_no_column_but_their_latents_and_what_has_a_text_is_speech():
    bare = {"latents": [[[0.0]], [[1.0]]], "frames": [1, 1]}
    sounds = described(Dataset.from_dict(bare))
    assert sounds.column_names == list(COLUMNS)
    assert sounds[1] == {**dict.fromkeys(COLUMNS, ""), "latents": [[1.0]], "frames": 1, "word_ends": []}
    talk = described(
        Dataset.from_dict({**bare, "text": ["hello", ""], "language": ["en", "en"], "mood": ["good", "bad"]})
    )
    assert [(row["kind"], row["text"], row["language"]) for row in talk] == [("speech", "hello", "en"), ("", "", "en")]


def test_what_a_dataset_says_of_its_rows_is_kept():
    said = {"kind": ["music"], "language": [""], "text": ["la la"], "caption": ["a song"], "source": ["radio"]}
    said["word_ends"] = [[0.25, 0.5]]
    rows = Dataset.from_dict({"latents": [[[0.0]]], "frames": [1], **said})
    assert described(rows).to_dict() == rows.to_dict()


def test_lengths_of_rows_are_a_list_for_the_sampler(tmp_path):
    rows = Dataset.from_dict({"latents": [[[0.0]] * 3, [[0.0]], [[0.0]] * 2], "frames": [3, 1, 2]})
    arguments = trainer_arguments(RepresentationArguments(latents=[], output_dir=str(tmp_path), bf16=False))
    sampler = LatentsTrainer(model=torch.nn.Linear(1, 1), args=arguments, train_dataset=rows)._get_train_sampler()
    assert sampler.lengths == [3, 1, 2] and isinstance(sampler.lengths, list)
