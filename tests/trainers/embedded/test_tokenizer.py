"""Every word of the captions is one token; everything else is spelled."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTokenizer

from lrdiff.rng import stream
from lrdiff.world.captions import WORDS, caption
from lrdiff.world.toys import sample_scenes
from trainers.embedded.tokenizer import LENGTH, build_tokenizer, learn_merges


def test_every_caption_word_is_one_token() -> None:
    tokenizer = build_tokenizer(WORDS)
    lengths = {word: len(tokenizer(word).input_ids) - 2 for word in WORDS}
    assert {word for word, length in lengths.items() if length != 1} == set()
    assert len({tuple(tokenizer(word).input_ids) for word in WORDS}) == len(WORDS)


def test_unknown_words_are_spelled_and_differ() -> None:
    tokenizer = build_tokenizer(WORDS)
    unknown = tokenizer.unk_token_id
    for word in ("sks", "zwx", "Ünïcode", "日本"):
        inner = tokenizer(word).input_ids[1:-1]
        assert inner
        assert unknown not in inner
    assert tokenizer("sks").input_ids != tokenizer("skt").input_ids


def test_captions_fit_the_length() -> None:
    tokenizer = build_tokenizer(WORDS)
    texts = [caption(scene, stream(0, "caption", i)) for i, scene in enumerate(sample_scenes(5, range(300)))]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= LENGTH
    assert tokenizer.model_max_length == LENGTH


def test_round_trip_through_a_folder(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(WORDS)
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a photo of a red striped mug on a wooden table", "a photo of sks duck, at night", ""]
    first, second = (
        t(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
        for t in (tokenizer, again)
    )
    assert torch.equal(first, second)
    assert first.shape == (3, LENGTH)
    assert again.model_max_length == LENGTH


def test_merges_are_in_order_and_complete() -> None:
    assert learn_merges(["ab", "abc"]) == [("a", "b"), ("a", "b</w>"), ("ab", "c</w>")]
    assert learn_merges(["a"]) == []
