"""
Your recordings and their texts -> a language model that speaks in that voice, by LoRA.

    python -m f3_training.align_words --dataset my-voice --output_dir my-voice-aligned
    python examples/finetune_voice.py --dataset my-voice-aligned --text_column text --model runs/speaker/model \\
        --output_dir runs/my-voice --repo_id me/f3-my-voice

`my-voice` is a folder with the recordings and a `metadata.csv` with the columns `file_name` and `text`, or a dataset of
the Hub. The first command is for models that speak word by word, and finds out when each word ends. What is pushed opens
with `from_pretrained`: the adapter and the parts around the language model, which itself is fetched from where it is.
Train on a voice only if its owner agrees.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from f3_training.audio_dataset import decode_audio, load_audio_dataset
from f3_training.audio_lm_training import save, with_lora
from f3_training.evaluate_reconstruction import public_name
from f3_training.model_card import HEADER, USE_AUDIO_LM, card
from f3_training.publish import publish
from modeling_f3 import F3AudioLMForConditionalGeneration, F3Processor
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class Arguments:
    """What this script needs to know beside the options of `Trainer`."""

    dataset: str = field(metadata={"help": "folder with a metadata.csv, or name of a dataset of the Hub"})
    model: str = field(metadata={"help": "audio language model that speaks already: folder or Hub name"})
    repo_id: str | None = field(default=None, metadata={"help": "where to push; without it the result is only checked"})
    licence: str = field(
        default="apache-2.0", metadata={"help": "of what is pushed: that of the recordings may decide it"}
    )
    text_column: str = field(default="text", metadata={"help": "column of the words that are said"})
    max_seconds: float = field(default=15.0, metadata={"help": "longer recordings are left out"})
    lora_rank: int = 16
    sample_text: str = field(default="Good morning.", metadata={"help": "said in sample.wav"})


class VoiceCollator:
    """Rows to conversations: a user asks for the text, and the recording is what the assistant answers."""

    def __init__(self, processor: F3Processor, text_column: str):
        self.processor, self.text_column = processor, text_column

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        rate = self.processor.feature_extractor.sampling_rate
        conversations = []
        for row in rows:
            text, recording = row[self.text_column], decode_audio(row["audio"], rate)
            request = self.processor.speech_request(text)
            # a model that speaks word by word reads them, and learns most where the dataset tells their ends
            answer = {"type": "audio", "audio": recording, "text": text, "word_ends": row.get("word_ends")}
            conversations.append([{"role": "user", "content": request}, {"role": "assistant", "content": [answer]}])
        return dict(self.processor.apply_chat_template(conversations, return_labels=True, sampling_rate=rate))


def main(arguments: Arguments, training: TrainingArguments) -> None:
    set_seed(training.seed)
    processor = F3Processor.from_pretrained(arguments.model)
    speaker = F3AudioLMForConditionalGeneration.from_pretrained(arguments.model)
    # a PeftModel: of the language model it trains an adapter, of what is around it connector, flow head and stop head
    voice = with_lora(speaker, arguments.lora_rank)

    rate = processor.feature_extractor.sampling_rate

    def can_be_learned(row: dict) -> bool:
        seconds = len(decode_audio(row["audio"], rate)) / rate
        return bool(row[arguments.text_column]) and seconds <= arguments.max_seconds

    rows = load_audio_dataset(arguments.dataset, "train")
    known = {"audio", arguments.text_column, "word_ends"} & set(rows.column_names)
    rows = rows.select_columns(sorted(known))
    rows = rows.filter(can_be_learned).train_test_split(test_size=0.05, seed=training.seed)
    trainer = Trainer(
        model=voice,
        args=training,
        data_collator=VoiceCollator(processor, arguments.text_column),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]

    folder = Path(training.output_dir) / "model"
    save(voice, processor, folder)
    speaker = F3AudioLMForConditionalGeneration.from_pretrained(folder).eval()
    request = processor.apply_speech_request(arguments.sample_text)
    spoken = speaker.generate(**request, generator=torch.Generator().manual_seed(0))
    processor.save_audio(spoken.audio[0], str(folder / "sample.wav"))
    name, base = arguments.repo_id or folder.parent.name, public_name(arguments.model)
    language_model = public_name(speaker.config.text_model_name_or_path)
    text = card(
        HEADER.format(task="text-to-speech", name=name, licence=arguments.licence),
        f"`{base}` with the voice of `{public_name(arguments.dataset)}`: [{arguments.sample_text}](sample.wav)",
        "## Use",
        USE_AUDIO_LM.format(name=name, language_model=language_model),
        "## Training",
        f"{training.max_steps} steps of LoRA. Loss on {len(rows['test'])} held-out recordings: {loss:.3f}.",
        "## Limits",
        "It imitates the voice of a person who has said none of this: do not use it to make others believe so.",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(publish(folder, arguments.repo_id) or folder)


if __name__ == "__main__":
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(max_steps=1000, per_device_train_batch_size=8, learning_rate=2e-4, lr_scheduler_type="cosine")
    parser.set_defaults(warmup_steps=50, save_strategy="no", report_to="none")
    parser.set_defaults(remove_unused_columns=False, label_names=["labels"], prediction_loss_only=True)
    main(*parser.parse_args_into_dataclasses())
