# SPDX-License-Identifier: Apache-2.0
"""Collect the texts of the text task and train its head; both are committed under ``data/``.

The texts are first sentences of docstrings of public functions and classes of Python and seven installed
packages; the topic is the subpackage. Names of all packages, and of the text's own module, class and
function, are struck out, and so are addresses. Licences, kept in the file: Python PSF-2.0; transformers
Apache-2.0; networkx, numpy, scikit-learn, scipy, sympy and torch BSD-3-Clause.

Run from the repository root (other versions of the packages give other texts)::

    python -m benchmarks.tasks.make_text --texts
    python -m benchmarks.tasks.make_text --head
"""

import argparse
import ast
import gzip
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression

from benchmarks.tasks.text import HEAD, TEXTS, TextClassifier, embed, labelled_texts

TOPICS = (
    "asyncio",
    "idlelib",
    "tkinter",
    "networkx.algorithms",
    "numpy",
    "scipy.optimize",
    "scipy.stats",
    "sklearn",
    "sympy.combinatorics",
    "sympy.physics",
    "sympy.polys",
    "torch.ao",
    "torch.distributed",
    "torch.fx",
    "torch.nn",
    "transformers.generation",
)
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
TRAIN, TEST, CALIBRATION = 75, 100, 34
LONGEST, SHORTEST_WORDS, KEY_WORDS = 320, 6, 6
_HEADING = re.compile(
    r"(args|arguments|parameters|returns?|yields|raises|examples?|notes?|see also)\s*:?$", re.I
)
_MARKUP = re.compile(
    r":[a-z:]+:`~?\.?([^`<]*)[^`]*`|<?https?://\S+|%\(\w+\)s|[`*$\\]"
    # Words made of a package's name, as idleConf and torchrun.
    r"|\b(?:[Ii]dle[A-Z_.]|[Tt]orch)\w*[._]*"
)
# As the packages are written in running text.
_WRITTEN = (
    "IDLE",
    "Idle",
    "Hugging Face",
    "HuggingFace",
    "NetworkX",
    "NumPy",
    "PyTorch",
    "SciPy",
    "Scikit-learn",
    "SymPy",
    "scikit-learn",
)
_SPELLED = ("huggingface", "pytorch", "tk", "tcl", *(topic.split(".")[0] for topic in TOPICS))


def folder_of(topic: str) -> Path:
    """Where a package lies; it is not imported."""
    top, *rest = topic.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"no package {top!r} is installed")
    return Path(spec.submodule_search_locations[0], *rest)


def first_sentences(docstring: str) -> str:
    """The running text that a docstring starts with, without markup.

    Args:
        docstring: as it stands.

    Returns:
        At most 320 characters; "" where there is none.
    """
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines = paragraph.strip().splitlines()
        is_underlined = len(lines) > 1 and set(lines[1].strip()) <= set("-=~^")
        if (
            not lines
            or is_underlined
            or _HEADING.match(lines[0])
            or re.match(r"\s*(>>>|\.\.|@|:(param|type|return|raise|rtype))", paragraph)
        ):
            break
        kept.append(" ".join(line.strip() for line in lines))
    text = _MARKUP.sub(lambda found: found.group(1) or "", " ".join(kept))
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0]


def without_names(text: str, names: set[str]) -> str:
    """The text without some words, written just so.

    Args:
        text: any.
        names: the words; dotted or underscored parts of the text count as words.

    Returns:
        The text, spaces tidied.
    """
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return " ".join(re.sub(rf"(?<![^\W_])(?:{pattern})(?![^\W_])[._]*", "", text).split())


def docstrings_of(tree: ast.AST, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Docstrings of public classes and functions.

    Args:
        tree: of a file.
        names: of the classes around it.

    Yields:
        Names of class and function, and the docstring.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring and not node.name.startswith("_"):
                yield (*names, node.name), docstring
            if isinstance(node, ast.ClassDef):
                yield from docstrings_of(node, (*names, node.name))


def texts_of(topic: str) -> list[str]:
    """All usable texts of a package, sorted; one of those that start alike."""
    found: dict[str, str] = {}
    folder = folder_of(topic)
    for path in sorted(folder.rglob("*.py")):
        if {"tests", "test", "testing"} & set(path.relative_to(folder).parts[:-1]):
            continue
        words = {*_SPELLED, *topic.split("."), path.stem}
        words |= {cased for word in words for cased in (word.capitalize(), word.upper())}
        words |= set(_WRITTEN)
        for names, docstring in docstrings_of(ast.parse(path.read_text(encoding="utf-8"))):
            text = without_names(first_sentences(docstring), words.union(names))
            if len(text.split()) >= SHORTEST_WORDS:
                found.setdefault(key_of(text), text)
    return sorted(found.values())


def key_of(text: str) -> str:
    """What two texts that start alike have in common."""
    return " ".join(re.findall(r"[a-z]+", text.lower())[:KEY_WORDS])


def licence_of(package: str) -> str:
    """The licence of a package itself, without those of what its wheel bundles."""
    if package == "python":
        return Path(sysconfig.get_path("stdlib"), "LICENSE.txt").read_text(encoding="utf-8")
    for file in importlib.metadata.files(package) or ():
        if file.name.startswith(("LICENSE", "COPYING")) and (
            ".dist-info" in file.parts[0] and len(file.parts) <= 3
        ):
            return re.split(r"\n-{4,}\n", file.read_text(encoding="utf-8"))[0]
    raise FileNotFoundError(f"{package} brings no licence file")


def write_texts(seed: int) -> None:
    """Collects the texts and writes ``data/texts.json.gz``.

    Args:
        seed: of the choice among the texts, and of the split.
    """
    rng = np.random.default_rng(seed)
    found = {topic: texts_of(topic) for topic in TOPICS}
    topics_by_key = Counter(key_of(text) for texts in found.values() for text in texts)
    train, test, calibration = [], [], []
    for label, topic in enumerate(TOPICS):
        # A start that two topics share tells nothing of either.
        texts = [text for text in found[topic] if topics_by_key[key_of(text)] == 1]
        print(topic, len(found[topic]), len(texts), flush=True)
        if len(texts) < TRAIN + TEST + CALIBRATION:
            raise ValueError(f"{topic} has only {len(texts)} texts")
        pairs = [(label, texts[i]) for i in rng.permutation(len(texts))]
        train += pairs[:TRAIN]
        test += pairs[TRAIN : TRAIN + TEST]
        calibration += [text for _, text in pairs[TRAIN + TEST : TRAIN + TEST + CALIBRATION]]
    packages = sorted({topic.split(".")[0] for topic in TOPICS} - sys.stdlib_module_names)
    packages = [DISTRIBUTIONS.get(package, package) for package in packages]
    content = {
        "topics": TOPICS,
        "train": train,
        "test": test,
        "calibration": [calibration[i] for i in rng.permutation(len(calibration))],
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "licences": {package: licence_of(package) for package in ("python", *packages)},
    }
    raw = json.dumps(content, indent=0, ensure_ascii=False).encode()
    TEXTS.write_bytes(gzip.compress(raw, mtime=0))
    print(
        f"{len(train)} train, {len(test)} test, {len(calibration)} calibration; {TEXTS.stat().st_size} bytes"
    )


def train_head(seed: int) -> None:
    """Fits the head to the original encoder's embeddings and writes ``data/text_head.safetensors``.

    Args:
        seed: of the solver.
    """
    model = TextClassifier().eval()
    texts, labels = labelled_texts("train")
    head = LogisticRegression(max_iter=5000, random_state=seed)
    head.fit(embed(model, texts).double().numpy(), labels.numpy())
    tensors = {
        "weight": torch.from_numpy(head.coef_).float(),
        "bias": torch.from_numpy(head.intercept_).float(),
    }
    HEAD.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    model.head.load_state_dict(tensors)
    for split in ("train", "test"):
        texts, labels = labelled_texts(split)
        with torch.inference_mode():
            right = model.head(embed(model, texts)).argmax(1).eq(labels)
        print(f"{split}: {100 * float(right.double().mean()):.2f} % of {len(right)}")


def main() -> None:
    """Makes what was asked for."""
    parser = argparse.ArgumentParser(description="Texts and head of the text task.")
    parser.add_argument("--texts", action="store_true")
    parser.add_argument("--head", action="store_true")
    args = parser.parse_args()
    if args.texts:
        write_texts(seed=0)
    if args.head:
        train_head(seed=0)


if __name__ == "__main__":
    main()
