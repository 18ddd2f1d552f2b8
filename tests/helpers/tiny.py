"""Tiny checkpoints of the real classes, with random weights and processors of their own, as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = [
    "a", "the", "of", "and", "on", "in", "at", "near", "with", "two", "is", "are", "there", "red", "white", "dark",
    "street", "house", "tree", "sky", "road", "man", "woman", "person", "people", "car", "cars", "bus", "lamp", "truck",
    "motorcycle", "bicycle", "dog", "image", "background",
]  # fmt: skip
LOCATIONS = 1000
SENTENCES = (["word"] * 5 + ["stop or end"]) * 4
_BOX = ["low", "low", "high", "high"]
GROUNDED = (["word"] * 2 + _BOX + ["word"] + _BOX * 2) * 2


def florence(path: Path, grounds: bool = False, seed: int = 4) -> Path:
    """Florence-2 that answers with 24 tokens at most, mostly words; with `grounds`, with four phrases and six boxes.

    What kind of token comes at which place is in its position embeddings, whatever it is asked; which one of its kind,
    the picture has a say in.
    """
    from transformers import Florence2ForConditionalGeneration

    processor = _florence_processor()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = Florence2ForConditionalGeneration(_florence_config(processor.tokenizer))
        _set_answers(model, processor.tokenizer, GROUNDED if grounds else SENTENCES)
    model.eval().save_pretrained(path)
    processor.save_pretrained(path)
    return path


def grounding_dino(path: Path, seed: int = 3) -> Path:
    """Grounding DINO with 30 queries, on pictures of 64 x 112 pixels at most."""
    from transformers import (
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        GroundingDinoProcessor,
    )

    tokenizer = _bert_tokenizer()
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
            "window_size": 4, "out_indices": [2, 3, 4], "drop_path_rate": 0.0,
        },
        text_config={
            "model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.5,
        },
        num_queries=30, d_model=32, encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2,
        decoder_layers=2, decoder_ffn_dim=32, decoder_attention_heads=2, init_std=0.2,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = GroundingDinoForObjectDetection(config)
        for name, parameter in model.named_parameters():
            # Zero at first, so that every box would be the anchor it starts from.
            if "bbox_embed" in name and "layers.2" in name:
                torch.nn.init.normal_(parameter, std=0.3)
            # Scores shall differ.
            if name == "model.decoder.layer_norm.weight":
                parameter.data *= 0.4
            # Anchors are small: the proposals shall overlap.
            if name == "model.encoder_output_bbox_embed.layers.2.bias":
                parameter.data[2:] += 2
    model.eval().save_pretrained(path)
    image_processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 112})
    GroundingDinoProcessor(image_processor, tokenizer).save_pretrained(path)
    return path


def _florence_config(tokenizer: Any) -> Any:
    from transformers import BartConfig, Florence2Config
    from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

    vision = Florence2VisionConfig(
        depths=(1, 1, 1, 1), embed_dim=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), num_groups=(1, 1, 2, 2),
        window_size=4, projection_dim=32, max_position_embeddings=8, drop_path_rate=0.0,
    )  # fmt: skip
    text = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=96,
        init_std=0.3, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    return Florence2Config(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=tokenizer.image_token_id,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip


def _florence_processor() -> Any:
    from tokenizers import AddedToken
    from transformers import BartTokenizer, CLIPImageProcessorPil, Florence2Processor

    # Byte-level BPE in which each word of ours, with the space before it, is a token.
    letters = [chr(c) for c in range(33, 127)] + ["Ġ"]
    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    merges = []
    for word in WORDS:
        left = "Ġ"
        for letter in word:
            if left + letter not in vocab:
                merges.append((left, letter))
                vocab[left + letter] = len(vocab)
            left += letter
    tokenizer = BartTokenizer(vocab=vocab, merges=merges, extra_special_tokens={"image_token": "<image>"})
    places = [AddedToken(f"<loc_{i}>", special=False) for i in range(LOCATIONS)]
    tokenizer.add_tokens(places)
    image_processor = CLIPImageProcessorPil(
        size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64}, do_center_crop=False
    )
    image_processor.image_seq_length = 5
    tasks = ("pure_text", "description_with_bboxes", "description_with_polygons", "polygons", "bboxes",
             "description_with_bboxes_or_polygons")  # fmt: skip
    parsing = {task: {} for task in tasks} | {"phrase_grounding": {"banned_grounding_tokens": ["the image"]}}
    parsing["ocr"] = {"PATTERN": None, "AREA_THRESHOLD": 0.0}
    return Florence2Processor(image_processor, tokenizer, post_processor_config=parsing)


def _set_answers(model: Any, tokenizer: Any, answer: list[str]) -> None:
    """Let the decoder's positions choose between kinds of tokens; which one of a kind is up to the rest."""
    embeddings = model.model.language_model.shared.weight.data
    width = embeddings.shape[1]
    kinds = {
        "word": [tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in WORDS],
        "stop": [tokenizer.convert_tokens_to_ids(".")],
        "low": tokenizer.convert_tokens_to_ids([f"<loc_{i}>" for i in range(LOCATIONS // 2)]),
        "high": tokenizer.convert_tokens_to_ids([f"<loc_{i}>" for i in range(LOCATIONS // 2, LOCATIONS)]),
        "end": [tokenizer.eos_token_id],
    }  # fmt: skip
    basis = torch.linalg.qr(torch.cat([torch.ones(width, 1), torch.randn(width, len(kinds))], dim=1)).Q
    # Nothing but the positions may speak in the directions of the kinds (nor in that which LayerNorm takes out).
    rest = torch.eye(width) - basis @ basis.T
    directions = dict(zip(kinds, basis.T[1:], strict=True))
    directions["stop or end"] = (directions["stop"] + directions["end"]) / 2**0.5
    embeddings.copy_(1.5 * torch.nn.functional.normalize(torch.randn_like(embeddings) @ rest, dim=1))
    for kind, tokens in kinds.items():
        embeddings[tokens] += 8 * directions[kind]
    decoder = model.model.language_model.decoder
    layer = decoder.layers[0]
    for part, scale in ((layer.encoder_attn.out_proj, 0.8), (layer.self_attn.out_proj, 0.2), (layer.fc2, 0.2)):
        part.weight.data = scale * rest @ part.weight.data
    positions = decoder.embed_positions.weight.data
    # BART's positions start at 2. Whatever a beam has said before, it ends.
    for place, kind in enumerate([*answer, *["end"] * (len(positions) - 2 - len(answer))], start=2):
        positions[place] = 16 * directions[kind] + 3 * torch.randn(width) @ rest


def _bert_tokenizer() -> Any:
    from transformers import BertTokenizer

    # The model finds the ends of phrases by these very ids.
    fixed = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [word for word in WORDS if len(word) > 1]
    vocab = {fixed.get(i, f"[unused{i}]"): i for i in range(1030)}
    for token in [*letters, *(f"##{letter}" for letter in letters), *words, "fork", "##lift"]:
        vocab[token] = len(vocab)
    return BertTokenizer(vocab=vocab)
