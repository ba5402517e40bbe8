"""The configuration of MORTM Live: MORTM's decoder over latents of piano-roll chunks.

Design decisions
- Every option of MORTM's layers is an option here; the fields below describe the roll and the vision part.
- `vision_channels` and `velocity` make upstream's vision VAE a point of this space (2 channels a slot, sustained).

Knows: shapes and options. Must not know: MIDI, clocks.
"""

from typing import Literal

from .configuration_mortm import MortmConfig, strict_configuration


@strict_configuration
class MortmLiveConfig(MortmConfig):
    r"""Configuration of [`MortmLiveVision`] and [`MortmLiveForCausalGeneration`]: the options of [`MortmConfig`], and

    Args:
        instruments: General MIDI program of each slot of the roll, 128 for drums.
        chunk_ticks: ticks of a chunk (24 a quarter), a multiple of 4.
        ticks_per_measure: ticks of the bar that the phase of a chunk is counted in; 0: the model knows no phase.
        velocity: "onset" writes a velocity where a note begins (exact), "sustain" as long as it sounds (upstream).
        vision_channels: channels after the input; 2 a slot by default, then twice and four times as many.
        pitch_weight: weight of a sounding cell in the pitch loss.
        velocity_weight: of the loss of velocities.
        latent_weight: of the loss of predicted latents.
        kl_weight: of the latents' divergence from the prior.
        reconstruction_weight: of the chunk decoded from its own latent.
        max_position_embeddings: context length in chunks.
        vocab_size: unused (there is no token table).
    """

    model_type = "mortm_live"
    base_model_pp_plan = {
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    base_model_fsdp_plan = {"layers.*": "free_full_weight", "norm": "keep_full_weight"}

    vocab_size: int = 1
    instruments: list[int] | None = None
    chunk_ticks: int = 16
    ticks_per_measure: int = 96
    velocity: Literal["onset", "sustain"] = "onset"
    vision_channels: int | None = None
    pitch_weight: float | int = 1.0
    velocity_weight: float | int = 1.0
    latent_weight: float | int = 0.1
    kl_weight: float | int = 1e-4
    reconstruction_weight: float | int = 1.0
    max_position_embeddings: int = 512
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.instruments is None:
            self.instruments = [1, 5, 19, 27, 34, 65, 10, 74]
        if self.vision_channels is None:
            self.vision_channels = 2 * len(self.instruments)
        super().__post_init__(**kwargs)

    @property
    def num_slots(self) -> int:
        """Instruments of the roll."""
        return len(self.instruments)

    @property
    def chunks_per_measure(self) -> int:
        """Phases of a chunk; 0 where the bar is no multiple of it."""
        return 0 if self.ticks_per_measure % self.chunk_ticks else self.ticks_per_measure // self.chunk_ticks

    def validate_mortm_live(self):
        """Refuse rolls that no layer could carry (runs with the other checks of transformers)."""
        if not self.instruments or any(not 0 <= program <= 128 for program in self.instruments):
            raise ValueError(f"instruments must be programs 0 to 127, or 128 for drums, got {self.instruments}.")
        if self.chunk_ticks < 4 or self.chunk_ticks % 4:
            raise ValueError(f"chunk_ticks must be a positive multiple of 4, got {self.chunk_ticks}.")
        if not self.is_causal:
            raise ValueError("MORTM Live answers what was played: is_causal=False would show it its own answer.")


__all__ = ["MortmLiveConfig"]
