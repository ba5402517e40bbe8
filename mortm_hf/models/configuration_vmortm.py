"""The configuration of V_MORTM: MORTM's decoder over patches of mel frames instead of tokens.

Design decisions
- Every option of MORTM's layers is an option here; only what replaces the token table is written down.
- The shape of a frame (mel bins, patch) is the model's; how sound becomes frames is the feature extractor's.
- Upstream's V_MORTM is the point `predict_difference=False, mel_mean=0, mel_std=1` of this space.

Knows: shapes and options. Must not know: files, sampling rates, Fourier transforms.
"""

from .configuration_mortm import MortmConfig, strict_configuration


@strict_configuration
class VMortmConfig(MortmConfig):
    r"""Configuration of [`VMortmModel`] and [`VMortmForSpectrogramGeneration`]: the options of [`MortmConfig`], and

    Args:
        num_mel_bins: values of one frame.
        patch_size: consecutive frames that make one step of the decoder.
        mel_mean: subtracted from the features inside the model (0: nothing is).
        mel_std: what they are divided by then (1: nothing).
        predict_difference: the head predicts what changes from the last patch to the next instead of the next patch.
        stop_loss_weight: weight of the stop head's binary cross entropy beside the regression loss.
        max_position_embeddings: context length in patches.
        vocab_size: unused (there is no token table).
    """

    model_type = "vmortm"
    base_model_pp_plan = {
        "patch_embedding": (["input_features"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    base_model_fsdp_plan = {
        "patch_embedding": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    vocab_size: int = 1
    num_mel_bins: int = 80
    patch_size: int = 4
    mel_mean: float | int = 0.0
    mel_std: float | int = 1.0
    predict_difference: bool = False
    stop_loss_weight: float | int = 0.1
    max_position_embeddings: int = 1024
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def validate_vmortm(self):
        """Refuse frames that no layer could carry (runs with the other checks of transformers)."""
        if self.num_mel_bins < 1 or self.patch_size < 1:
            raise ValueError(
                f"num_mel_bins ({self.num_mel_bins}) and patch_size ({self.patch_size}) must be at least 1."
            )
        if not self.mel_std > 0:
            raise ValueError(f"mel_std must be positive, got {self.mel_std}.")
        if not self.is_causal:
            raise ValueError("V_MORTM continues what it is given: is_causal=False would show it its own answer.")


__all__ = ["VMortmConfig"]
