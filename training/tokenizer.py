"""The bundled models' CLIPTokenizer: byte-level BPE, learnt on the captions of this little world."""

from __future__ import annotations

import numpy as np
from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .captions import plain_caption, styled_caption
from .scene import random_scene

CONTEXT = 64
VOCABULARY = 1100


def make_tokenizer(captions: int = 20_000) -> CLIPTokenizer:
    """Deterministic; any text can be encoded, since all bytes are in the vocabulary, in and at the end of a word."""
    rng = np.random.default_rng(5)
    texts = []
    for index in range(captions):
        scene = random_scene(rng)
        texts.append((styled_caption if index % 2 else plain_caption)(scene, index))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|startoftext|>", "<|endoftext|>"]
    blank = CLIPTokenizer(vocab={token: i for i, token in enumerate(special)}, merges=[])
    backend = blank.backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    import json

    learnt = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    vocabulary = alphabet + [byte + "</w>" for byte in alphabet]
    known = set(vocabulary)
    for left, right in merges:
        if left + right not in known:
            known.add(left + right)
            vocabulary.append(left + right)
    vocabulary += special
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges, model_max_length=CONTEXT
    )
