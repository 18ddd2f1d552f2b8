"""Tiny checkpoints of segment-anything's network and of T5's encoder: the real builders, random weights."""

from __future__ import annotations

from pathlib import Path

import torch


def sam(path: Path, width: int = 32, depth: int = 2, seed: int = 0) -> Path:
    """A checkpoint by the package's own builder, `width` and `depth` being those of its picture encoder.

    The decoder and the 1024 pixels are the builder's; the head of its masks is made to tell pixels apart.
    """
    from rwkvfusion.stages.guidance.pretrained.sam import build

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build(
            encoder_embed_dim=width,
            encoder_depth=depth,
            encoder_num_heads=2,
            encoder_global_attn_indexes=[depth - 1],
        )
        for name, parameter in model.named_parameters():
            if "output_upscaling" in name or "hypernetworks" in name or "iou_prediction_head" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), path)
    return path


def t5(path: Path, seed: int = 0) -> Path:
    """T5's encoder of width 32 with a tokenizer of its kind, trained on a few sentences."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    sentences = [
        "The image shows a street at night with cars and people.",
        "A warm region is at the lower left; the sky is dark.",
        "Two pedestrians cross in front of a bus near a lamp.",
        "It is a photograph of a brain with bright and dark regions.",
    ]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(sentences * 20, trainer)
    learned = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    pieces = [(piece, 0.0 if piece in special else -float(i)) for i, piece in enumerate(learned)]
    pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    words = T5Tokenizer(vocab=pieces)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=len(words), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
        T5EncoderModel(config).eval().save_pretrained(path)
    words.save_pretrained(path)
    return path
