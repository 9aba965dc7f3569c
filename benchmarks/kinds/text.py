# SPDX-License-Identifier: Apache-2.0
"""Kinds that write text: language models, translation."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import TransformerBlock, accuracy, cross_entropy, fixed

_N_LETTERS, _N_WORDS, _MASK = 30, 60, 60
_PAD, _BEGIN, _END, _FIRST_WORD, _N_TARGET_WORDS = 0, 1, 2, 3, 83


def _letters(n_samples: int, n_steps: int, generator: torch.Generator) -> Tensor:
    """Texts (N, T) in which the two letters before decide about the next one."""
    chances = (2.2 * fixed(_N_LETTERS, _N_LETTERS, _N_LETTERS, seed=51)).softmax(-1)
    usual = (2.0 * fixed(_N_LETTERS, _N_LETTERS, seed=52)).softmax(-1)
    # Half of the pairs follow the last letter alone, which is learnt first.
    chances[:, ::2] = usual[::2]
    text = [torch.randint(0, _N_LETTERS, (n_samples,), generator=generator) for _ in range(2)]
    for _ in range(n_steps - 2):
        text.append(torch.multinomial(chances[text[-2], text[-1]], 1, generator=generator).squeeze(1))
    return torch.stack(text, 1)


class LanguageModel(nn.Module):
    """A causal transformer whose embedding is its last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_N_LETTERS, 48)
        self.position = nn.Parameter(0.1 * torch.randn(32, 48))
        self.blocks = nn.ModuleList(TransformerBlock(48, 4, 128, is_causal=True) for _ in range(2))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, _N_LETTERS, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.2)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(N, T, 30) logits."""
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _language_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    text = _letters(size, 33, generator)
    return cross_entropy(model(text[:, :-1]), text[:, 1:])


def _language_score(model: nn.Module, generator: torch.Generator) -> float:
    text = _letters(1500, 33, generator)
    return float(cross_entropy(model(text[:, :-1]), text[:, 1:]).exp())


def _masked_words(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts with masked words (N, 24), and the words that were masked, -100 elsewhere."""
    chances = (3.0 * fixed(_N_WORDS, _N_WORDS, seed=53)).softmax(-1)
    text = [torch.randint(0, _N_WORDS, (n_samples,), generator=generator)]
    for _ in range(23):
        text.append(torch.multinomial(chances[text[-1]], 1, generator=generator).squeeze(1))
    words = torch.stack(text, 1)
    is_masked = torch.rand(words.shape, generator=generator) < 0.15
    return torch.where(is_masked, _MASK, words), torch.where(is_masked, words, -100)


class MaskedLanguageModel(nn.Module):
    """A transformer that looks both ways, with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_N_WORDS + 1, 40)
        self.position = nn.Embedding(24, 40)
        self.blocks = nn.ModuleList(TransformerBlock(40, 2, 96, is_causal=False) for _ in range(2))
        self.dense, self.norm = nn.Linear(40, 40), nn.LayerNorm(40)
        self.decoder = nn.Linear(40, _N_WORDS)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Under ``logits`` (N, T, 60)."""
        x = self.embedding(input_ids) + self.position.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return {"logits": self.decoder(self.norm(functional.gelu(self.dense(x))))}


def _masked_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    x, words = _masked_words(size, generator)
    return cross_entropy(model(x)["logits"], words)


def _masked_score(model: nn.Module, generator: torch.Generator) -> float:
    x, words = _masked_words(2500, generator)
    return float(cross_entropy(model(x)["logits"], words).exp())


def _sentences(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sentences (N, 12) and their translations (N, 12), from the begin sign on, padded.

    Every word has two forms, which the word before decides about, and one in eight has a synonym instead; two
    words swap where the first is a verb (of every third number).
    """
    dictionary = _FIRST_WORD + fixed(80, seed=56).argsort()
    lengths = torch.randint(5, 11, (n_samples, 1), generator=generator)
    source = torch.randint(0, 40, (n_samples, 10), generator=generator)
    swapped = source.clone()
    for place in range(0, 10, 2):
        swaps = (source[:, place] % 3 == 0) & (place + 1 < lengths[:, 0])
        swapped[:, place] = torch.where(swaps, source[:, place + 1], source[:, place])
        swapped[:, place + 1] = torch.where(swaps, source[:, place], source[:, place + 1])
    places = torch.arange(10)
    form = functional.pad(swapped[:, :-1] % 2, (1, 0))
    has_synonym = torch.rand(swapped.shape, generator=generator) < 0.125
    said = torch.where(has_synonym, (swapped + 7) % 40, swapped)
    source = torch.where(places < lengths, source + _FIRST_WORD, _PAD)
    target = torch.where(places < lengths, dictionary[2 * said + form], _PAD)
    target = torch.where(places == lengths, _END, target)
    last = torch.where(lengths == 10, _END, _PAD)
    begin = torch.full((n_samples, 1), _BEGIN)
    return functional.pad(source, (0, 2)), torch.cat([begin, target, last], 1)


class Translation(nn.Module):
    """An encoder and a decoder that looks at it; the words so far stand in its input."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(43, 40), nn.Embedding(_N_TARGET_WORDS, 40)
        self.position = nn.Parameter(0.3 * torch.randn(12, 40))
        self.encoder = TransformerBlock(40, 2, 96, is_causal=False)
        self.decoder = TransformerBlock(40, 2, 96, is_causal=True)
        self.query, self.memory, self.out = nn.Linear(40, 40), nn.Linear(40, 80), nn.Linear(40, 40)
        self.up, self.down = nn.Linear(40, 96), nn.Linear(96, 40)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(40), nn.LayerNorm(40), nn.LayerNorm(40)
        self.head = nn.Linear(40, _N_TARGET_WORDS)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """(N, T, 83) logits."""
        position = self.position
        memory = self.norm1(self.encoder(self.source(input_ids) + position))
        x = self.decoder(self.target(decoder_input_ids) + position[: decoder_input_ids.shape[1]])
        key, value = self.memory(memory).chunk(2, -1)
        x = x + self.out(functional.scaled_dot_product_attention(self.query(self.norm2(x)), key, value))
        x = x + self.down(self.up(self.norm3(x)).relu())
        return self.head(x)


def _translation_inputs(n_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
    source, target = _sentences(n_samples, generator)
    return {"input_ids": source, "decoder_input_ids": target[:, :-1]}


def _translation_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    source, target = _sentences(size, generator)
    labels = torch.where(target[:, 1:] == _PAD, -100, target[:, 1:])
    return cross_entropy(model(source, target[:, :-1]), labels, label_smoothing=0.1)


def _translation_score(model: nn.Module, generator: torch.Generator) -> float:
    source, target = _sentences(3000, generator)
    counts = target[:, 1:] != _PAD
    return accuracy(model(source, target[:, :-1])[counts], target[:, 1:][counts])


KINDS: tuple[Kind, ...] = (
    Kind(
        name="language-model",
        build=LanguageModel,
        loss=_language_loss,
        inputs=lambda n, generator: _letters(n, 32, generator),
        measure=_language_score,
        measured="perplexity",
        higher_is_better=False,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=2000,
        batch=32,
        lr=4e-3,
        macs=0.45,
    ),
    Kind(
        name="masked-lm",
        build=MaskedLanguageModel,
        loss=_masked_loss,
        inputs=lambda n, generator: _masked_words(n, generator)[0],
        measure=_masked_score,
        measured="perplexity of masked words",
        higher_is_better=False,
        right={"logits": "categorical"},
        harmless={"logits": ("bernoulli", "gaussian")},
        steps=2500,
        batch=48,
        lr=3e-3,
        macs=0.7,
    ),
    Kind(
        name="translation",
        build=Translation,
        loss=_translation_loss,
        inputs=_translation_inputs,
        measure=_translation_score,
        measured="words that are right, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=2500,
        batch=48,
        macs=0.45,
    ),
)
