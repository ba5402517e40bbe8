"""V_MORTM: a causal decoder over patches of mel frames that predicts the next patch (SPEC 4.6).

Design decisions
- The layers are MORTM's own, run on embeddings of patches: attention interfaces, experts, cache and checkpointing
  come with them.
- The target of a patch is the whole patch after it. Upstream shifted by one frame, so that most of the target was
  visible (SPEC D-V1).
- Beside the patch a stop head says whether the sound ends after this patch. It is only trained where the end of a
  recording is known (`ends`).
- `generate` is a loop of its own: transformers' expects token ids.

Knows: frames [batch, frames, mel bins], patches, masks. Must not know: wave forms, files.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_vmortm import VMortmConfig
from .modeling_mortm import MortmModel, MortmPreTrainedModel, load_balancing_loss


@dataclass
class VMortmOutput(ModelOutput):
    r"""Output of [`VMortmForSpectrogramGeneration`].

    Attributes:
        loss: regression of the next patch, and the other losses asked for.
        regression_loss: mean squared error of the next patch in standardised units.
        stop_loss: binary cross entropy of the stop head, if `ends` were given.
        aux_loss: load-balancing loss of the experts, where it is part of `loss`.
        predictions: [batch, frames, num_mel_bins], the patch after each patch.
        stop_logits: [batch, patches], whether the sound ends after the patch (before the sigmoid).
        past_key_values: cache, where it is used.
        hidden_states: of each layer [batch, patches, hidden_size], where they were asked for.
        attentions: weights of each layer [batch, heads, patches, patches], where they were asked for.
        router_logits: of each sparse layer [batch * patches, experts], where they were asked for.
    """

    loss: torch.FloatTensor | None = None
    regression_loss: torch.FloatTensor | None = None
    stop_loss: torch.FloatTensor | None = None
    aux_loss: torch.FloatTensor | None = None
    predictions: torch.FloatTensor | None = None
    stop_logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    router_logits: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VMortmGenerateOutput(ModelOutput):
    """What `generate` gives: the given frames right-aligned and the new ones after them.

    Attributes:
        features: [batch, frames, num_mel_bins].
        attention_mask: [batch, frames], 1 for real frames.
        new_frames: [batch], how many frames of each row are new.
    """

    features: torch.FloatTensor | None = None
    attention_mask: torch.LongTensor | None = None
    new_frames: torch.LongTensor | None = None


class VMortmPatchEmbedding(nn.Module):
    """Frames [batch, patches * p, D] -> embeddings [batch, patches, hidden_size]; a patch is read frame by frame."""

    def __init__(self, config: VMortmConfig):
        super().__init__()
        self.width = config.num_mel_bins * config.patch_size
        self.mixer = nn.Linear(self.width, self.width)
        self.projection = nn.Linear(self.width, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        patches = features.reshape(features.shape[0], -1, self.width)
        return self.projection(self.dropout(self.mixer(patches)))


class VMortmPatchHead(nn.Module):
    """States [batch, patches, hidden_size] -> frames [batch, patches * p, D]."""

    def __init__(self, config: VMortmConfig):
        super().__init__()
        bins, width = config.num_mel_bins, config.num_mel_bins * config.patch_size
        self.bins = bins
        self.projection = nn.Linear(config.hidden_size, width)
        self.mixer = nn.Linear(width, width)
        self.frame_in = nn.Linear(bins, bins)
        self.frame_out = nn.Linear(bins, bins)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        patches = self.dropout(self.mixer(self.projection(hidden_states)))
        frames = patches.reshape(patches.shape[0], -1, self.bins)
        return self.frame_out(F.gelu(self.dropout(self.frame_in(frames))))


class VMortmPreTrainedModel(MortmPreTrainedModel):
    """What both V_MORTM classes share."""

    config_class = VMortmConfig
    config: VMortmConfig
    main_input_name = "input_features"
    accepts_loss_kwargs = False  # means over a batch, not sums over tokens
    input_modalities = ("audio",)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the experts' decorator in this file; they are in `modeling_mortm`
        return True


class VMortmModel(VMortmPreTrainedModel, MortmModel):
    """The layers without a head, over patches."""

    def __init__(self, config: VMortmConfig):
        super().__init__(config)
        del self.embed_tokens
        self.patch_embedding = VMortmPatchEmbedding(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """What takes the place of a token table."""
        return self.patch_embedding

    def set_input_embeddings(self, value: nn.Module):
        self.patch_embedding = value

    def _patch_mask(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Mask of frames [batch, frames] -> mask of patches: a patch with one real frame is real."""
        if attention_mask is None:
            return None
        size = self.config.patch_size
        if attention_mask.shape[-1] % size:
            raise ValueError(_uneven(attention_mask.shape[-1], size))
        return attention_mask.unflatten(-1, (-1, size)).ne(0).any(-1).long()

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeModelOutputWithPast:
        """Frames [batch, frames, num_mel_bins] -> states [batch, frames / patch_size, hidden_size].

        `attention_mask` [batch, frames] is 1 for real frames, cached ones included. The number of frames must be a
        multiple of the patch size.

        Raises:
            ValueError: another number of mel bins, or frames that do not fill their patches.
        """
        if input_features is None:
            raise ValueError("V_MORTM reads input_features [batch, frames, num_mel_bins]: none were given")
        size, bins = self.config.patch_size, self.config.num_mel_bins
        if input_features.dim() != 3 or input_features.shape[-1] != bins:
            raise ValueError(
                f"input_features must be [batch, frames, {bins}], got {tuple(input_features.shape)}: use the feature "
                "extractor of this checkpoint"
            )
        if input_features.shape[1] % size:
            raise ValueError(_uneven(input_features.shape[1], size))
        features = (input_features - self.config.mel_mean) / self.config.mel_std
        if attention_mask is not None:  # what stands in the padding of a partly filled patch must not matter
            here = attention_mask[:, -features.shape[1] :, None]
            features = features.masked_fill(here == 0, 0.0)
        return super().forward(
            inputs_embeds=self.patch_embedding(features.to(self.patch_embedding.mixer.weight.dtype)),
            attention_mask=self._patch_mask(attention_mask),
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class VMortmForSpectrogramGeneration(VMortmPreTrainedModel):
    """V_MORTM with heads for the next patch and for the end of the sound."""

    def __init__(self, config: VMortmConfig):
        super().__init__(config)
        self.model = VMortmModel(config)
        self.patch_head = VMortmPatchHead(config)
        self.stop_head = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.patch_embedding

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        ends: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VMortmOutput:
        """Predict the patch after each patch.

        Args:
            input_features: [batch, frames, num_mel_bins], frames a multiple of the patch size.
            attention_mask: [batch, frames], 1 for real frames.
            labels: [batch, frames, num_mel_bins], usually the input itself: patch i + 1 is the target of patch i.
            ends: bool [batch], whether a row's last real frame is the end of the recording; trains the stop head.
            past_key_values: cache of the patches before.
            use_cache: return the cache; the configuration's choice by default.
            output_router_logits: return the router's logits; the configuration's choice by default.
            kwargs: of transformers' attention functions.

        Returns:
            [`VMortmOutput`]; `loss` only with `labels`.
        """
        config = self.config
        router = config.output_router_logits if output_router_logits is None else output_router_logits
        balance = router or (self.training and labels is not None and config.router_balancing == "loss")
        balance = bool(balance) and "sparse" in config.mlp_layer_types
        outputs = self.model(
            input_features=input_features,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_router_logits=balance,
            **kwargs,
        )
        states = outputs.last_hidden_state
        predictions = self.patch_head(states).float() * config.mel_std + config.mel_mean
        if config.predict_difference:
            predictions = predictions - config.mel_mean + input_features
        stop_logits = self.stop_head(states).squeeze(-1).float()
        loss = regression = stop = aux = None
        if labels is not None:
            regression = self._regression(predictions, labels, attention_mask)
            loss = regression
            if ends is not None:
                stop = self._stop(stop_logits, ends, attention_mask)
                loss = loss + config.stop_loss_weight * stop
            if balance and config.router_balancing == "loss":
                aux = load_balancing_loss(outputs.router_logits, config, self.model._patch_mask(attention_mask))
                loss = loss + config.router_aux_loss_coef * aux
        return VMortmOutput(
            loss=loss,
            regression_loss=regression,
            stop_loss=stop,
            aux_loss=aux,
            predictions=predictions,
            stop_logits=stop_logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if router else None,
        )

    def _regression(self, predictions, labels, attention_mask) -> torch.Tensor:
        """Mean squared error of every patch that follows a real one, over its real frames."""
        size = self.config.patch_size
        error = ((predictions[:, :-size] - labels[:, size:]) / self.config.mel_std).square()
        if attention_mask is None:
            return error.mean()
        real = (attention_mask[:, size:] != 0) & self._patches(attention_mask)[:, :-1].repeat_interleave(size, 1)
        return (error * real[..., None]).sum() / (real.sum() * error.shape[-1]).clamp(min=1)

    def _patches(self, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model._patch_mask(attention_mask).bool()

    def _stop(self, stop_logits, ends, attention_mask) -> torch.Tensor:
        """Binary cross entropy of the end after each real patch."""
        real = torch.ones_like(stop_logits, dtype=torch.bool)
        if attention_mask is not None:
            real = self._patches(attention_mask)
        last = real & (real.long().flip(-1).cumsum(-1).flip(-1) == 1)
        target = (last & ends.bool()[:, None]).to(stop_logits.dtype)
        # where a row does not end with the recording, its last patch has no target
        known = real & (~last | ends.bool()[:, None])
        losses = F.binary_cross_entropy_with_logits(stop_logits, target, reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1)

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        max_new_frames: int = 128,
        stop_threshold: float = 1.0,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        callback=None,
    ) -> VMortmGenerateOutput:
        """Continue spectrograms patch by patch.

        Args:
            input_features: [batch, frames, num_mel_bins]; any number of frames.
            attention_mask: [batch, frames], padding on either side.
            max_new_frames: upper bound of new frames (whole patches).
            stop_threshold: a row ends when the stop head's probability exceeds this; 1: never before the bound.
            noise: standard deviation, in standardised units, of Gaussian noise on each predicted patch: a regression
                alone drifts to the mean of what it was given.
            generator: source of that noise.
            use_cache: keep keys and values of the patches before.
            callback: called with the number of patches made so far.

        Returns:
            [`VMortmGenerateOutput`].

        Raises:
            ValueError: nothing to continue, or more patches than the context holds (message with the numbers).
        """
        size = self.config.patch_size
        patches = -(-max_new_frames // size)
        if max_new_frames < 1:
            raise ValueError(f"max_new_frames must be at least 1, got {max_new_frames}")
        if input_features.shape[1] == 0 or (attention_mask is not None and not attention_mask.any(-1).all()):
            raise ValueError("each row needs at least one given frame to continue")
        features, mask = align_right(input_features, attention_mask, size)
        total = features.shape[1] // size + patches
        if total > self.config.max_position_embeddings:
            raise ValueError(
                f"{features.shape[1] // size} given and {patches} new patches exceed the context of "
                f"{self.config.max_position_embeddings}: give the last frames only, or ask for fewer"
            )
        was_training = self.training
        self.eval()
        try:
            cache = DynamicCache(config=self.config) if use_cache else None
            running = torch.ones(features.shape[0], dtype=torch.bool, device=features.device)
            new_frames = torch.zeros_like(running, dtype=torch.long)
            step = features
            for made in range(patches):
                output = self(
                    input_features=step,
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=use_cache,
                )
                stopped = output.stop_logits[:, -1].sigmoid() > stop_threshold
                if made:
                    running &= ~stopped
                    if not running.any():
                        break
                patch = output.predictions[:, -size:].to(features.dtype)
                if noise:
                    spread = torch.randn(patch.shape, generator=generator, device=patch.device, dtype=patch.dtype)
                    patch = patch + noise * self.config.mel_std * spread
                patch = patch.clamp(min=0.0)  # log1p of a power is never negative
                alive = running[:, None].expand(-1, size)
                features = torch.cat([features, patch.masked_fill(~alive[..., None], 0.0)], 1)
                mask = torch.cat([mask, alive.long()], 1)
                new_frames += running * size
                step = patch if use_cache else features
                if callback is not None:
                    callback(made + 1)
        finally:
            self.train(was_training)
        return VMortmGenerateOutput(features=features, attention_mask=mask, new_frames=new_frames)


def align_right(features: torch.Tensor, attention_mask: torch.Tensor | None, patch_size: int):
    """Rows moved to the right end of whole patches.

    Frames are padded in front, so that the last given frame is the last of its patch.

    Args:
        features: [batch, frames, D].
        attention_mask: [batch, frames], 0 at padding, or None.
        patch_size: frames of a patch.

    Returns:
        Features [batch, frames', D] and mask [batch, frames'], frames' a multiple of the patch size.
    """
    batch, frames, _ = features.shape
    if attention_mask is None:
        attention_mask = torch.ones(batch, frames, dtype=torch.long, device=features.device)
    attention_mask = (attention_mask != 0).long()
    last = frames - attention_mask.flip(-1).argmax(-1)  # one past the last real frame
    width = -(-frames // patch_size) * patch_size
    index = torch.arange(width, device=features.device)[None] + (last - width)[:, None]
    mask = attention_mask.gather(1, index.clamp(min=0)) * (index >= 0)
    moved = features.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, features.shape[-1]))
    return moved.masked_fill(mask[..., None] == 0, 0.0), mask


def _uneven(frames: int, size: int) -> str:
    return (
        f"{frames} frames do not fill patches of {size}: pad with the feature extractor's pad_to_multiple_of={size} "
        "(its default), or cut"
    )


__all__ = ["VMortmModel", "VMortmForSpectrogramGeneration", "VMortmPreTrainedModel"]
