# SPDX-License-Identifier: Apache-2.0
"""What comes back beside the model: AIMET's attributes, and what slimrank knows in addition."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from slimrank._result import Result
from slimrank.scores import Scores


class GreedyCompressionRatioSelectionStats:
    """The scores that the greedy selection chose by.

    Attributes:
        eval_scores_dictionary: layer -> {ratio that was tried, counted: score}.
    """

    def __init__(self, eval_scores_dict: Mapping[str, Mapping[Decimal, float]]) -> None:
        self.eval_scores_dictionary = eval_scores_dict

    def __str__(self) -> str:
        lines = ["Scores with one layer compressed at a time"]
        for name, scores in self.eval_scores_dictionary.items():
            lines.append(f"    {name}")
            lines += [f"        ratio {ratio}: {scores[ratio]:.6f}" for ratio in sorted(scores)]
        return "\n".join(lines)


class CompressionStats:
    """Statistics of a compression.

    Attributes:
        baseline_model_accuracy: what the callback returned for the original, as text with six digits.
        compressed_model_accuracy: the same for the compressed model.
        memory_compression_ratio: params after / before, counted on the model that is returned, as text.
        mac_compression_ratio: MACs after / before, likewise.
        per_layer_stats: name and ratio of each layer that was asked for or could be compressed, counted on
            the model that is returned; None for a layer that was left as it was.
        compression_ratio_selection_stats: the scores of automatic mode; None in manual mode.
        notes: what the user should know: where inputs came from, what was read in another way than in AIMET.
        result: slimrank's result: ``save``, ``report``, ``export``, costs by layer, divergence.
        scores: the score table of automatic mode; None in manual mode.
    """

    class LayerStats:
        """Name and ratio of one layer."""

        def __init__(self, name: str, comp_ratio: Decimal | None) -> None:
            self.name = name
            self.compression_ratio = comp_ratio

    def __init__(
        self,
        *,
        baseline: float,
        compressed: float,
        ratios: Mapping[str, Decimal | None],
        selection: GreedyCompressionRatioSelectionStats | None,
        notes: Sequence[str],
        result: Result,
        scores: Scores | None,
    ) -> None:
        self.baseline_model_accuracy = f"{baseline:.6f}"
        self.compressed_model_accuracy = f"{compressed:.6f}"
        self.memory_compression_ratio = f"{result.keep_ratio('params'):.6f}"
        self.mac_compression_ratio = f"{result.keep_ratio('macs'):.6f}"
        self.per_layer_stats = [self.LayerStats(name, ratio) for name, ratio in ratios.items()]
        self.compression_ratio_selection_stats = selection
        self.notes = tuple(notes)
        self.result = result
        self.scores = scores

    def __str__(self) -> str:
        lines = [
            "Compression statistics",
            f"Accuracy: original {self.baseline_model_accuracy}, compressed {self.compressed_model_accuracy}",
            f"Ratio: memory {self.memory_compression_ratio}, mac {self.mac_compression_ratio}",
            "",
            "Ratio of each layer, counted",
        ]
        lines += [f"    {layer.name}: {layer.compression_ratio}" for layer in self.per_layer_stats]
        if self.compression_ratio_selection_stats is not None:
            lines += ["", str(self.compression_ratio_selection_stats)]
        lines += ["", "Notes", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join((*lines, ""))
