"""Upstream's models that read no tokens -> folders: V_MORTM, MORTM Live and its vision VAE (SPEC 4.5, 4.6).

Design decisions
- Their decoder's layers are those of MORTM and take the same table of names; what stands around them is written here.
- Upstream's V_MORTM cannot be constructed and its Live model has no forward, so checkpoints are rare: what a model of
  ours has beyond them (stop head, slots, phases, the step to the next latent) starts at zero or as the identity, and
  the report says so.
- There is no way back: nothing of upstream's could run such a file.

Knows: both sets of names, options, folders. Must not know: tokens, pickles.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..models.configuration_mortm_live import MortmLiveConfig
from ..models.configuration_vmortm import VMortmConfig
from ..models.errors_mortm import ConversionError
from ..models.feature_extraction_vmortm import VMortmFeatureExtractor
from ..models.modeling_mortm_live import MortmLiveForCausalGeneration, MortmLiveVision
from ..models.modeling_vmortm import VMortmForSpectrogramGeneration
from ..models.processing_mortm_live import MortmLiveProcessor
from .anatomy import Anatomy, Options, detect_kind, examine_layers, reconcile, shape_of
from .architecture import layer_options
from .checkpoint_files import Checkpoint, new_folder, read_json
from .conversion_report import ConversionReport, write_card
from .mapping import Group, decoder_groups, to_ours


SAMPLING_RATE = 44100  # upstream reads its sound at this rate (SPEC 4.6, D-V2)
AROUND = (
    ("vision.linear", "model.patch_embedding.mixer"),
    ("conv_d_model", "model.patch_embedding.projection"),
    ("conv_d_spect", "patch_head.projection"),
    ("unvision.linear", "patch_head.mixer"),
    ("unvision.Wout", "patch_head.frame_in"),
    ("Wout", "patch_head.frame_out"),
)


def convert_perception(
    checkpoint: Checkpoint,
    output: str | os.PathLike,
    config: str | os.PathLike | None = None,
    version: str | None = None,
    allow: bool = False,
    overwrite: bool = False,
) -> ConversionReport:
    """A checkpoint of one of `anatomy.PERCEPTION` -> a folder for `from_pretrained`.

    Args:
        checkpoint: upstream's state dict.
        output: the folder to write.
        config: upstream's JSON options; by default `config.json` beside the file.
        version: the release it comes from, where it is known and the keys leave a choice.
        allow: accept missing tensors (neutral ones) and unused ones (left out).
        overwrite: replace a folder that exists.

    Returns:
        What was found and done.

    Raises:
        ConversionError: missing, unused or misshapen tensors, options that contradict them.
    """
    kind = detect_kind(checkpoint.tensors)
    path = Path(config) if config is not None else checkpoint.path.parent / "config.json"
    raw = read_json(path, "options (--config)")
    options = Options.read(raw, path.name)
    tensors = checkpoint.tensors
    notes: list[str] = []
    if kind == "vmortm":
        model, reader, groups, aside, facts = _vmortm(tensors, raw, options, version, notes, path.name)
    else:
        model, reader, groups, aside, facts = _live(kind, tensors, raw, options, version, notes, path.name)
        if kind == "live":
            tensors = _as_decoder(tensors)
    report = ConversionReport(
        kind=kind,
        versions=facts.versions if facts else ("4.6.18",),
        version_name=facts.version_name if facts else "4.6.18 or later",
        file=checkpoint.path.name,
        sha256=checkpoint.sha256,
        vocabulary="none: it reads no tokens",
        tensors=len(tensors),
        notes=notes,
    )
    report.account(checkpoint.path, tensors, [name for group in groups for name in group.sources], aside, allow)
    _load(model, to_ours(groups, tensors))
    with new_folder(output, overwrite) as staged:
        model.save_pretrained(staged)
        reader.save_pretrained(staged)
        write_card(staged, report, classes=(type(model).__name__, type(reader).__name__))
    return report


def _vmortm(tensors, raw: dict, options: Options, version, notes: list[str], name: str):
    bins, patch = int(raw.get("d_spect") or 128), int(raw.get("patch_size") or 4)
    width = shape_of(tensors, "vision.linear.weight")[0]
    if width != bins * patch:
        raise ConversionError(
            f"{name} contradicts the checkpoint: d_spect {bins} x patch_size {patch} is not the {width} values of a "
            "patch. Give the options it was trained with (--config)",
            "conversion.config",
        )
    facts = examine_layers(tensors, "vmortm", shape_of(tensors, "conv_d_model.weight")[0], options.vocab_size, version)
    facts, remarks = reconcile(facts, options, name)
    notes += remarks
    notes.append("the stop head is new: it never stops before the bound")
    fields = _fields(facts, options)
    try:
        config = VMortmConfig(**fields, num_mel_bins=bins, patch_size=patch)
    except ValueError as error:
        raise ConversionError(f"the options make no model: {error}", "conversion.config") from None
    groups, aside = decoder_groups(facts)
    for theirs, ours in AROUND:
        groups += [Group((f"{theirs}.{k}",), (f"{ours}.{k}",)) for k in ("weight", "bias")]
    reader = VMortmFeatureExtractor(feature_size=bins, patch_size=patch, sampling_rate=SAMPLING_RATE)
    return VMortmForSpectrogramGeneration(config).eval(), reader, groups, aside, facts


def _live(kind: str, tensors, raw: dict, options: Options, version, notes: list[str], name: str):
    ticks = int(raw.get("pianoroll_time_step") or 16)
    instruments = list(raw.get("inst_list") or [1, 5, 19, 27, 34, 65, 10, 74])[: int(raw.get("instrument_num") or 8)]
    stem = "vision." if kind == "live" else ""
    if shape_of(tensors, f"{stem}encoder.conv1.conv.weight")[1] != 2 * len(instruments):
        raise ConversionError(
            f"{name} contradicts the checkpoint: {len(instruments)} instruments are not the "
            f"{shape_of(tensors, f'{stem}encoder.conv1.conv.weight')[1]} channels of the roll",
            "conversion.config",
        )
    shape = dict(
        instruments=instruments,
        chunk_ticks=ticks,
        ticks_per_measure=int(raw.get("ticks_per_measure") or 96),
        velocity="sustain",
    )
    reader = MortmLiveProcessor(**shape)
    names = [key for key in tensors if key.startswith((f"{stem}encoder.", f"{stem}decoder."))]
    facts = None
    if kind == "live":
        tensors = _as_decoder(tensors)
        hidden = shape_of(tensors, "decoder.norm.weight")[0]
        facts = examine_layers(tensors, kind, hidden, options.vocab_size, version)
        facts, remarks = reconcile(facts, options, name)
        notes += remarks
        notes.append("slots and phases are new (zero), the step to the next latent is the identity: train it first")
        groups, aside = decoder_groups(facts)
        config = MortmLiveConfig(**_fields(facts, options), **shape)
        model = MortmLiveForCausalGeneration(config).eval()
    else:
        groups, aside = [], ()
        layers = dict(hidden_size=options.d_model, num_hidden_layers=options.d_layer, dtype="float32")
        config = MortmLiveConfig(**layers, num_attention_heads=options.num_heads, **shape)
        model = MortmLiveVision(config).eval()
    groups = [*groups, *(Group((key,), (key,)) for key in names)]
    return model, reader, groups, aside, facts


def _fields(facts: Anatomy, options: Options) -> dict:
    unused = ("vocab_size", "tie_word_embeddings")
    return {k: v for k, v in layer_options(facts, options).items() if k not in unused}


def _as_decoder(tensors) -> dict[str, torch.Tensor]:
    """The decoder of a Live checkpoint under the names that MORTM gives it."""
    return {("decoder." + k.removeprefix("mortm.") if k.startswith("mortm.") else k): v for k, v in tensors.items()}


def _load(model, state: dict[str, torch.Tensor]) -> None:
    """Fills the model; what upstream does not have starts neutral."""
    own = model.state_dict()
    wrong = [k for k in state if k not in own or own[k].shape != state[k].shape]
    if wrong:
        found = (
            f"{list(state[wrong[0]].shape)} instead of {list(own[wrong[0]].shape)}" if wrong[0] in own else "unknown"
        )
        raise ConversionError(f"tensors of the wrong shape: {wrong[0]}: {found}", "conversion.keys")
    for name, tensor in own.items():
        if name not in state:
            state[name] = torch.zeros_like(tensor)
            if name == "next_latent.weight":
                state[name] = torch.eye(*tensor.shape)
    model.load_state_dict(state, strict=True)
