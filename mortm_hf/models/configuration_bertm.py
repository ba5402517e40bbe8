"""The configuration of BERTM: MORTM's layers run in both directions, with heads that judge instead of continue.

Design decisions
- Every option of MORTM's layers is an option here; only what a bidirectional model changes is written down.
- Nothing is decided by a model name: a converted checkpoint is a point of the same space (ALiBi, dynamic tanh, ...).

Knows: shapes and options. Must not know: tokens' meaning, MIDI, which label stands for what.
"""

from typing import Literal

from .configuration_mortm import MortmConfig, strict_configuration


@strict_configuration
class BertmConfig(MortmConfig):
    r"""Configuration of [`BertmModel`] and its heads: the options of [`MortmConfig`], and

    Args:
        classifier_pooling: how a piece becomes one vector: "attention" (softmax of a learned score of each token) or
            "mean", over its real tokens.
        classifier_hidden_size: width of the hidden layer between that vector and the labels; half of `hidden_size`
                by default. `classifier_activation` follows it, `classifier_dropout` acts before it (in training only).
        window_bars: how many bars at a time a head was trained on; pipelines and rewards cut songs accordingly.
        window_form: what of them: their "tracks", or these "merged" into one pitched track, or their "drums" only,
            or "condensed" into one track of each.
            negative_label: name of the opposite of the label of a model with one logit.
        lm_head_bias: a bias per token in the output layer of the masked language model.
        is_causal: always False.
    """

    model_type = "bertm"
    keys_to_ignore_at_inference = []

    is_causal: bool = False
    use_cache: bool = False
    lm_head_bias: bool = True
    classifier_pooling: Literal["attention", "mean"] = "attention"
    window_bars: int = 8
    window_form: Literal["tracks", "merged", "drums", "condensed"] = "tracks"
    negative_label: str | None = None

    def __post_init__(self, **kwargs):
        if self.classifier_hidden_size is None:
            self.classifier_hidden_size = self.hidden_size // 2
        super().__post_init__(**kwargs)

    def validate_bertm(self):
        """Refuse what would make it another model (runs with the other checks of transformers)."""
        if self.is_causal or self.use_cache:
            raise ValueError("BERTM reads in both directions and has no cache: for is_causal=True use MortmConfig.")
        if self.window_bars < 1:
            raise ValueError(f"window_bars must be at least 1, got {self.window_bars}.")


__all__ = ["BertmConfig"]
