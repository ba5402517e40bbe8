"""MORTM Live: a VAE encodes chunks of a piano roll as latents, a causal decoder predicts the next chunk (SPEC 4.5).

Design decisions
- The vision part is upstream's, layer by layer; a latent is sampled in training only (upstream: always).
- What upstream never wrote: MORTM's layers run over the latents; the state after chunk t becomes the latent of chunk
  t + 1, which the vision's own decoder draws. All slots are predicted; the caller takes those that the model plays
  (`play`) and gives the others as they were played, so that an answer follows the other players.
- Targets are transposed to the decoder's orientation [slots * 2, 128, ticks] before they are compared (SPEC D-L2).

Knows: rolls [batch, chunks, ticks, 128, slots * 2], masks. Must not know: MIDI, clocks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_mortm_live import MortmLiveConfig
from .modeling_mortm import MortmModel, MortmPreTrainedModel, load_balancing_loss


PITCHES = 128


@dataclass
class MortmLiveVisionOutput(ModelOutput):
    """Output of [`MortmLiveVision`].

    Attributes:
        loss: weighted sum of the terms, if labels were given.
        logits: [batch, slots * 2, 128, ticks]; even channels pitch, odd velocity (both before the sigmoid).
        mean: [batch, hidden_size] mean of the latent.
        log_var: [batch, hidden_size] logarithm of its variance.
        latent: [batch, hidden_size] as decoded: a sample in training, else the mean.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    mean: torch.FloatTensor | None = None
    log_var: torch.FloatTensor | None = None
    latent: torch.FloatTensor | None = None


@dataclass
class MortmLiveOutput(ModelOutput):
    r"""Output of [`MortmLiveForCausalGeneration`].

    Attributes:
        loss: sum of `losses`, if labels were given.
        losses: the weighted terms by name, scalars.
        logits: [batch, chunks, slots * 2, 128, ticks], the chunk after each chunk; even channels pitch, odd velocity
            (both before the sigmoid).
        reconstruction_logits: of the same shape, the chunk itself, out of its latent (with labels only).
        latents: [batch, chunks, hidden_size] means of the chunks' latents.
        past_key_values: cache of the decoder, where it is used.
        hidden_states: of each layer [batch, chunks, hidden_size], where they were asked for.
        attentions: weights of each layer [batch, heads, chunks, chunks], where they were asked for.
        router_logits: of each sparse layer [batch * chunks, experts], where they were asked for.
    """

    loss: torch.FloatTensor | None = None
    losses: dict | None = None
    logits: torch.FloatTensor | None = None
    reconstruction_logits: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    router_logits: tuple[torch.FloatTensor, ...] | None = None


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 8), channels)


class MortmLiveDownBlock(nn.Module):
    """Convolution, group norm, SiLU.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        stride: over pitches and ticks.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, int]):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm = _group_norm(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.norm(self.conv(x)))


class MortmLiveEncoder(nn.Module):
    """Roll [batch, slots * 2, 128, ticks] -> mean and log variance [batch, hidden_size]."""

    def __init__(self, config: MortmLiveConfig):
        super().__init__()
        base = config.vision_channels
        self.conv1 = MortmLiveDownBlock(2 * config.num_slots, 2 * base, (2, 2))
        self.conv2 = MortmLiveDownBlock(2 * base, 2 * base, (2, 2))
        self.conv3 = MortmLiveDownBlock(2 * base, 4 * base, (2, 1))
        flat = 4 * base * (PITCHES // 8) * (config.chunk_ticks // 4)
        self.fc_mu = nn.Linear(flat, config.hidden_size)
        self.fc_log_var = nn.Linear(flat, config.hidden_size)

    def forward(self, roll: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = self.conv3(self.conv2(self.conv1(roll))).flatten(1)
        return self.fc_mu(flat), self.fc_log_var(flat)


class MortmLiveDecoder(nn.Module):
    """Latent [batch, hidden_size] -> logits [batch, slots * 2, 128, ticks]."""

    def __init__(self, config: MortmLiveConfig):
        super().__init__()
        base = config.vision_channels
        self.shape = (4 * base, PITCHES // 8, config.chunk_ticks // 4)
        self.fc = nn.Linear(config.hidden_size, self.shape[0] * self.shape[1] * self.shape[2])

        def up(channels_in, channels_out, stride, extra):
            return nn.ConvTranspose2d(
                channels_in, channels_out, 3, stride, padding=1, output_padding=extra, bias=False
            )

        self.deconv1 = nn.Sequential(up(4 * base, 2 * base, (2, 1), (1, 0)), _group_norm(2 * base), nn.SiLU())
        self.deconv2 = nn.Sequential(up(2 * base, 2 * base, 2, 1), _group_norm(2 * base), nn.SiLU())
        self.deconv3 = nn.Sequential(up(2 * base, 2 * config.num_slots, 2, 1))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.deconv3(self.deconv2(self.deconv1(self.fc(latent).unflatten(1, self.shape))))


class MortmLivePreTrainedModel(MortmPreTrainedModel):
    """What the Live classes share."""

    config_class = MortmLiveConfig
    config: MortmLiveConfig
    main_input_name = "rolls"
    accepts_loss_kwargs = False  # means over a batch, not sums over tokens
    input_modalities = ("audio",)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the experts' decorator in this file; they are in `modeling_mortm`
        return True


class MortmLiveVision(MortmLivePreTrainedModel):
    """The VAE over single chunks, upstream's `LiveVision`."""

    _can_record_outputs = {}
    main_input_name = "roll"

    def __init__(self, config: MortmLiveConfig):
        super().__init__(config)
        self.encoder = MortmLiveEncoder(config)
        self.decoder = MortmLiveDecoder(config)
        self.post_init()
        # the configuration's plans are about layers that it has not
        self._tp_plan, self._ep_plan, self._pp_plan, self._fsdp_plan = {}, {}, {}, {}

    def encode(self, roll: torch.Tensor, eps: torch.Tensor | None = None):
        """The latents of chunks.

        Args:
            roll: [batch, ticks, 128, slots * 2].
            eps: [batch, hidden_size] noise of the sample; None: drawn in training, outside the latent is the mean.

        Returns:
            Latent, mean and log variance, each [batch, hidden_size].
        """
        roll = roll.to(self.encoder.fc_mu.weight.dtype)  # rolls come in fp32, whatever the model is kept in
        mean, log_var = self.encoder(roll.permute(0, 3, 2, 1))
        if eps is None and self.training:
            eps = torch.randn_like(mean)
        latent = mean if eps is None else mean + (0.5 * log_var).exp() * eps
        return latent, mean, log_var

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent [batch, hidden_size] -> logits [batch, slots * 2, 128, ticks]."""
        return self.decoder(latent)

    @can_return_tuple
    def forward(
        self,
        roll: torch.Tensor,
        eps: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> MortmLiveVisionOutput:
        """Reconstruct chunks.

        Args:
            roll: [batch, ticks, 128, slots * 2].
            eps: noise of the sample, see `encode`.
            labels: of the shape of `roll`, usually the input itself; give the loss.
            kwargs: not used.

        Returns:
            [`MortmLiveVisionOutput`].
        """
        latent, mean, log_var = self.encode(roll, eps)
        logits = self.decode(latent)
        loss = None
        if labels is not None:
            terms = roll_losses(logits, labels.permute(0, 3, 2, 1), self.config)
            loss = terms["pitch"] + self.config.velocity_weight * terms["velocity"]
            loss = loss + self.config.kl_weight * kl_divergence(mean, log_var).mean()
        return MortmLiveVisionOutput(loss=loss, logits=logits, mean=mean, log_var=log_var, latent=latent)


class MortmLiveModel(MortmLivePreTrainedModel, MortmModel):
    """MORTM's layers over latents [batch, chunks, hidden_size], given as `inputs_embeds`."""

    def __init__(self, config: MortmLiveConfig):
        super().__init__(config)
        del self.embed_tokens
        self.post_init()

    def get_input_embeddings(self) -> None:
        """There is no token table."""
        return None


class MortmLiveForCausalGeneration(MortmLivePreTrainedModel):
    """Reads chunks of all slots and predicts the next ones."""

    def __init__(self, config: MortmLiveConfig):
        super().__init__(config)
        self.vision = MortmLiveVision(config)
        self.model = MortmLiveModel(config)
        self.slots = nn.Linear(config.num_slots, config.hidden_size, bias=False)
        self.phase = nn.Embedding(config.chunks_per_measure + 1, config.hidden_size)
        self.next_latent = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> None:
        """There is no token table."""
        return None

    @can_return_tuple
    def forward(
        self,
        rolls: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        play: torch.Tensor | None = None,
        phase_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        last_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MortmLiveOutput:
        """Predict the chunk after each chunk.

        Args:
            rolls: [batch, chunks, ticks, 128, slots * 2] with values 0 to 1.
            attention_mask: [batch, chunks] with cached ones, 1 for real chunks.
            play: bool [batch, slots], the slots that the model plays (all by default). In training they carry the
                loss of the next chunk.
            phase_ids: [batch, chunks] place of the chunk in its bar, `chunks_per_measure` for unknown (default).
            labels: rolls, usually the input itself: chunk t + 1 is the target of chunk t. Where they differ (parts of
                the input were silenced) the input is what is reconstructed.
            past_key_values: cache of the chunks before.
            use_cache: return the cache; the configuration's choice by default.
            output_router_logits: return the router's logits; the configuration's choice by default.
            last_only: draw the next chunk of the last chunk only (while generating).
            kwargs: of transformers' attention functions.

        Returns:
            [`MortmLiveOutput`].

        Raises:
            ValueError: rolls of another shape.
        """
        config = self.config
        batch, chunks = rolls.shape[:2]
        expected = (config.chunk_ticks, PITCHES, 2 * config.num_slots)
        if rolls.dim() != 5 or tuple(rolls.shape[2:]) != expected:
            raise ValueError(
                f"rolls must be [batch, chunks, {', '.join(map(str, expected))}], got {tuple(rolls.shape)}: use the "
                "processor of this checkpoint"
            )
        flat = rolls.flatten(0, 1)
        latent, mean, log_var = (x.unflatten(0, (batch, chunks)) for x in self.vision.encode(flat))
        if play is None:
            play = torch.ones(batch, config.num_slots, dtype=torch.bool, device=rolls.device)
        if phase_ids is None:
            phase_ids = torch.full((batch, chunks), config.chunks_per_measure, device=rolls.device)
        embeds = latent + self.slots(play.to(latent.dtype))[:, None] + self.phase(phase_ids)
        router = config.output_router_logits if output_router_logits is None else output_router_logits
        balance = router or (self.training and labels is not None and config.router_balancing == "loss")
        balance = bool(balance) and "sparse" in config.mlp_layer_types
        outputs = self.model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_router_logits=balance,
            **kwargs,
        )
        states = outputs.last_hidden_state[:, -1:] if last_only else outputs.last_hidden_state
        predicted = self.next_latent(states)
        logits = self.vision.decode(predicted.flatten(0, 1)).unflatten(0, predicted.shape[:2])
        loss = losses = reconstruction = None
        if labels is not None:
            reconstruction = self.vision.decode(latent.flatten(0, 1)).unflatten(0, (batch, chunks))
            losses = self._losses(
                logits, reconstruction, rolls, labels, play, attention_mask, predicted, mean, log_var
            )
            if balance and config.router_balancing == "loss":
                losses["router"] = config.router_aux_loss_coef * load_balancing_loss(
                    outputs.router_logits, config, attention_mask
                )
            loss = sum(losses.values())
        return MortmLiveOutput(
            loss=loss,
            losses=losses,
            logits=logits,
            reconstruction_logits=reconstruction,
            latents=mean,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if router else None,
        )

    def _losses(self, logits, reconstruction, rolls, labels, play, attention_mask, predicted, mean, log_var) -> dict:
        """The weighted terms; padded chunks carry none."""
        config = self.config
        target, given = (x.permute(0, 1, 4, 3, 2) for x in (labels, rolls))  # to the decoder's orientation
        batch, chunks = labels.shape[:2]
        real = torch.ones(batch, chunks, device=labels.device)
        if attention_mask is not None:
            real = attention_mask[:, -chunks:].to(real.dtype)
        following = real[:, :-1] * real[:, 1:]
        ahead = roll_losses(logits[:, :-1], target[:, 1:], config, following, play)
        own = roll_losses(reconstruction, given, config, real)
        distance = (predicted[:, :-1] - mean[:, 1:].detach()).square().mean(-1)
        # the latent of a silenced chunk is not the one to come
        whole = following * (rolls == labels).flatten(2).all(-1)[:, 1:]
        return {
            "next_pitch": ahead["pitch"],
            "next_velocity": config.velocity_weight * ahead["velocity"],
            "next_latent": config.latent_weight * (distance * whole).sum() / whole.sum().clamp(min=1),
            "pitch": config.reconstruction_weight * own["pitch"],
            "velocity": config.reconstruction_weight * config.velocity_weight * own["velocity"],
            "kl": config.kl_weight * (kl_divergence(mean, log_var) * real).sum() / real.sum().clamp(min=1),
        }


def kl_divergence(mean: torch.Tensor, log_var: torch.Tensor) -> torch.Tensor:
    """KL divergence of normal distributions from the standard one, summed over the last dimension.

    Args:
        mean: [..., hidden_size].
        log_var: [..., hidden_size] logarithm of the variance.

    Returns:
        [...].
    """
    return -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1)


def roll_losses(logits, target, config: MortmLiveConfig, chunks=None, play=None) -> dict[str, torch.Tensor]:
    """Losses of rolls: pitch (binary cross entropy of the even channels) and velocity (squared error of the odd ones).

    The velocity's error counts on sounding cells only, as it is audible nowhere else. Both are means over the cells
    that count.

    Args:
        logits: [..., slots * 2, 128, ticks] before the sigmoid.
        target: of the same shape, 0 to 1.
        config: `pitch_weight`.
        chunks: [...] weight of each chunk; all 1 by default.
        play: bool [batch, slots], the slots that count; all by default.

    Returns:
        Scalars "pitch" and "velocity".
    """
    pitch, velocity = target[..., 0::2, :, :], target[..., 1::2, :, :]
    weight = torch.ones(pitch.shape[:-2], device=logits.device, dtype=logits.dtype)
    if chunks is not None:
        weight = weight * chunks[..., None]
    if play is not None:
        weight = weight * play.to(weight.dtype)[:, None]
    positive = torch.as_tensor(float(config.pitch_weight), device=logits.device, dtype=logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(
        logits[..., 0::2, :, :], pitch, pos_weight=positive, reduction="none"
    ).mean((-1, -2))
    error = (logits[..., 1::2, :, :].sigmoid() - velocity).square() * pitch
    cells = (pitch.sum((-1, -2)) * weight).sum().clamp(min=1)
    return {
        "pitch": (entropy * weight).sum() / weight.sum().clamp(min=1),
        "velocity": (error.sum((-1, -2)) * weight).sum() / cells,
    }


__all__ = ["MortmLiveForCausalGeneration", "MortmLiveModel", "MortmLivePreTrainedModel", "MortmLiveVision"]
