# SPDX-License-Identifier: Apache-2.0
"""Kinds that read text: tags of words, intents with slots, topics."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.series_parts import TransformerBlock, accuracy, cross_entropy, fixed

_N_TAGS, _N_ENTITY_WORDS = 9, 120
_N_INTENTS, _N_SLOTS = 8, 12
_N_TOPICS = 5


def _tagged(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts (N, 30) of 200 words and the tag of every word: 0 outside, then begin and inside of four classes.

    A word that opens an entity tells its class together with the word before it.
    """
    words = torch.randint(_N_ENTITY_WORDS, 200, (n_samples, 30), generator=generator)
    tags = torch.zeros(n_samples, 30, dtype=torch.long)
    rows = torch.arange(n_samples)
    for start in (3, 11, 20):
        entity = torch.randint(0, _N_ENTITY_WORDS, (n_samples,), generator=generator)
        first = start + torch.randint(0, 4, (n_samples,), generator=generator)
        length = torch.randint(1, 4, (n_samples,), generator=generator)
        is_there = torch.rand(n_samples, generator=generator) < 0.45
        before = words[rows, first - 1]
        # The words before of even number move the class on by one.
        group = (entity % 4 + (before % 2 == 0) * (entity < 60)) % 4
        for offset in range(3):
            here = is_there & (offset < length)
            place = first + offset
            inner = (entity + 4 * torch.randint(0, 30, (n_samples,), generator=generator)) % _N_ENTITY_WORDS
            word = entity if offset == 0 else inner
            words[rows, place] = torch.where(here, word, words[rows, place])
            tags[rows, place] = torch.where(here, 1 + 2 * group + (offset > 0), tags[rows, place])
    return words, tags


class Tagger(nn.Module):
    """Convolutions over embedded words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 40)
        self.conv1, self.conv2 = nn.Conv1d(40, 64, 3, padding=1), nn.Conv1d(64, 64, 5, padding=2)
        self.norm1, self.norm2 = nn.BatchNorm1d(64), nn.BatchNorm1d(64)
        self.dense, self.head = nn.Linear(64, 48), nn.Linear(48, _N_TAGS)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, T, 9) logits."""
        x = self.norm1(self.conv1(self.embedding(ids).transpose(1, 2))).relu()
        x = x + self.norm2(self.conv2(x)).relu()
        return self.head(self.dense(x.transpose(1, 2)).relu())


def _tagged_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    words, tags = _tagged(size, generator)
    return cross_entropy(model(words), tags)


def _tagged_score(model: nn.Module, generator: torch.Generator) -> float:
    words, tags = _tagged(3000, generator)
    found = model(words).argmax(-1)
    right = float(((found == tags) & (tags > 0)).sum())
    return 100 * 2 * right / float((found > 0).sum() + (tags > 0).sum())


def _requests(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Requests (N, 16) of 150 words, their intents (N,), the slots of their words (N, 16)."""
    intents = torch.multinomial(
        (0.7 * fixed(_N_INTENTS, seed=54)).softmax(0), n_samples, replacement=True, generator=generator
    )
    words = torch.randint(100, 150, (n_samples, 16), generator=generator)
    slots = torch.zeros(n_samples, 16, dtype=torch.long)
    # Words 60 to 99 tell the intent, and many tell several of them.
    clue = (1.5 * fixed(_N_INTENTS, 40, seed=55)).softmax(-1)[intents]
    clues = 60 + torch.multinomial(clue, 16, replacement=True, generator=generator)
    words = torch.where(torch.rand(words.shape, generator=generator) < 0.25, clues, words)
    for place in (2, 6, 10, 13):
        value = torch.randint(0, 60, (n_samples,), generator=generator)
        is_there = torch.rand(n_samples, generator=generator) < 0.6
        # The same values fill another slot when the request is of another intent.
        slot = 1 + (value % 6 + 3 * (intents % 2)) % (_N_SLOTS - 1)
        words[:, place] = torch.where(is_there, value, words[:, place])
        slots[:, place] = torch.where(is_there, slot, 0)
    return words, intents, slots


class IntentAndSlots(nn.Module):
    """One transformer block on the words of a request; the intent from their mean, a slot for each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(150, 48), nn.Parameter(0.1 * torch.randn(16, 48))
        self.blocks = nn.ModuleList(TransformerBlock(48, 3, 80, is_causal=False) for _ in range(2))
        self.norm = nn.LayerNorm(48)
        self.pooler = nn.Linear(48, 48)
        self.intent, self.slots = nn.Linear(48, _N_INTENTS), nn.Linear(48, _N_SLOTS)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Logits: ``intent`` (N, 8) and ``slots`` (N, 16, 12)."""
        x = self.embedding(ids) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {"intent": self.intent(self.pooler(x.mean(1)).tanh()), "slots": self.slots(x)}


def _requests_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    words, intents, slots = _requests(size, generator)
    found = model(words)
    return cross_entropy(found["intent"], intents) + cross_entropy(found["slots"], slots)


def _requests_score(model: nn.Module, generator: torch.Generator) -> float:
    words, intents, slots = _requests(4000, generator)
    found = model(words)
    filled = slots > 0
    return (accuracy(found["intent"], intents) + accuracy(found["slots"][filled], slots[filled])) / 2


def _texts(n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts (N, 28) of 80 words, and the topic of each (N,)."""
    topics = torch.randint(0, _N_TOPICS, (n_samples,), generator=generator)
    usual, own = 1.2 * fixed(80, 80, seed=57), 1.0 * fixed(_N_TOPICS, 80, 80, seed=58)
    chances = (usual + own).softmax(-1)
    words = [torch.randint(0, 80, (n_samples,), generator=generator)]
    for _ in range(27):
        words.append(torch.multinomial(chances[topics, words[-1]], 1, generator=generator).squeeze(1))
    return torch.stack(words, 1), topics


class SequenceClasses(nn.Module):
    """Convolutions, a recurrent layer over every second place, its mean state read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(80, 48)
        self.conv1, self.conv2 = nn.Conv1d(48, 80, 3), nn.Conv1d(80, 64, 3, stride=2)
        self.recurrent = nn.GRU(64, 24, batch_first=True)
        self.dense1, self.dense2 = nn.Linear(24, 64), nn.Linear(64, 40)
        self.head = nn.Linear(40, _N_TOPICS)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, 5) logits."""
        x = functional.elu(self.conv1(self.embedding(ids).transpose(1, 2)))
        x = functional.elu(self.conv2(x))
        states, _ = self.recurrent(x.transpose(1, 2))
        x = functional.elu(self.dense1(states.mean(1)))
        return self.head(functional.elu(self.dense2(x)))


def _texts_loss(model: nn.Module, size: int, generator: torch.Generator) -> Tensor:
    words, topics = _texts(size, generator)
    return cross_entropy(model(words), topics, label_smoothing=0.1)


def _texts_score(model: nn.Module, generator: torch.Generator) -> float:
    words, topics = _texts(6000, generator)
    return accuracy(model(words), topics)


KINDS: tuple[Kind, ...] = (
    Kind(
        name="tagging",
        build=Tagger,
        loss=_tagged_loss,
        inputs=lambda n, generator: _tagged(n, generator)[0],
        measure=_tagged_score,
        measured="F1 of tagged words, %",
        higher_is_better=True,
        right={"": "categorical"},
        steps=1500,
        batch=32,
        macs=0.1,
    ),
    Kind(
        name="intent-slots",
        build=IntentAndSlots,
        loss=_requests_loss,
        inputs=lambda n, generator: _requests(n, generator)[0],
        measure=_requests_score,
        measured="mean of the accuracies of intents and of filled slots, %",
        higher_is_better=True,
        right={"intent": "categorical", "slots": "categorical"},
        harmless={"intent": ("bernoulli", "gaussian"), "slots": ("bernoulli",)},
        steps=1500,
        batch=32,
        macs=0.2,
    ),
    Kind(
        name="sequence-classes",
        build=SequenceClasses,
        loss=_texts_loss,
        inputs=lambda n, generator: _texts(n, generator)[0],
        measure=_texts_score,
        measured="top-1 accuracy, %",
        higher_is_better=True,
        right={"": "categorical"},
        harmless={"": ("bernoulli", "gaussian")},
        steps=2000,
        batch=32,
    ),
)
