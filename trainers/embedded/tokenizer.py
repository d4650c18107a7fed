"""The tokenizer of `toys`: CLIP's class with a vocabulary of its own.

Byte-pair merges are learned from the words that captions use until each of them is one token. Any other text is spelled
in bytes, so every prompt has tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

LENGTH = 32
"""Tokens of a prompt, start and end included."""


def build_tokenizer(words: Iterable[str], length: int = LENGTH) -> CLIPTokenizer:
    """Return a tokenizer that has each of these lower-case words as one token.

    Args:
        words: Without spaces.
        length: Tokens of a prompt, start and end included; longer prompts are cut.
    """
    alphabet = list(bytes_to_unicode().values())
    merges = learn_merges(words)
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=cast(Any, merges), model_max_length=length)


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges, most frequent pair first (ties by spelling), until every word is one piece."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for word in pieces for pair in pairwise(word))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
