"""What a state dict is: the kind of model, the upstream releases it may come from, its sizes and its parts.

Design decisions
- Tensors are the truth; the JSON options are needed for what leaves no trace in them (heads, positions, chosen
  experts, groups, scoring, LoRA's alpha) and must not contradict them.
- A release is named as far as the keys tell: a tuple of candidates whose layers compute the same. Nothing is guessed.
- Upstream's options are read as upstream reads them: by truth value, so that 0 means the default.
- Kinds that read no tokens (`PERCEPTION`) are examined by their own module; what they share are the decoder's layers.

Knows: upstream's keys, shapes and options (SPEC 4 and 5). Must not know: our parameter names, files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import torch

from ..models.errors_mortm import ConversionError
from ..models.upstream_vocabulary import VERSIONS


EARLY, RESEARCH, MIDDLE, LATE = VERSIONS[:2], VERSIONS[2:3], VERSIONS[3:6], VERSIONS[6:]

# kind -> a tensor that only this kind has, and what it is; in this order
KINDS = {
    "live": (("vision.encoder.conv1.conv.weight",), "MORTM Live (vision encoder and decoder)"),
    "live_vae": (("encoder.conv1.conv.weight",), "the vision VAE of MORTM Live"),
    "vmortm": (("unvision.linear.weight", "conv_d_spect.weight"), "V_MORTM (audio)"),
    "actorcritic": (("critic_hidden.weight",), "ActorCritic (policy and value)"),
    "bertm": (("attn_pool.attention_scorer.weight",), "BERTM"),
    "mortm": (("Wout.weight",), "MORTM"),
}
PERCEPTION = ("vmortm", "live", "live_vae")

DEFAULTS = {
    "vocab_size": 128,
    "d_layer": 12,
    "position_length": 512,
    "num_experts": 12,
    "topk_experts": 2,
    "num_groups": 1,
    "topk_groups": 1,
    "lora_r": 8,
    "lora_alpha": 16,
}
REQUIRED = ("num_heads", "d_model", "dim_feedforward", "dropout")
NORMS = ("tanh", "layernorm", "rmsnorm")


@dataclass(frozen=True)
class Options:
    """Upstream's JSON options with its defaults.

    Attributes:
        num_heads: attention heads.
        d_model: channels.
        dim_feedforward: hidden units of a feed-forward layer, or of one expert.
        dropout: probability.
        vocab_size: rows of the embedding.
        d_layer: layers.
        position_length: greatest number of tokens.
        num_experts: experts of a layer.
        topk_experts: experts that a token is sent to.
        num_groups: groups of experts.
        topk_groups: groups that a token may choose from.
        lora_r: rank of the deltas.
        lora_alpha: their scale times the rank.
        use_moe_decoder: experts instead of dense layers.
        use_silu: gated dense layers.
        use_rope: rotary positions instead of ALiBi.
        use_cross_attention: a second attention, which nothing feeds.
        use_bias: biases of linear layers.
        norm_type: one of `NORMS`.
        score_type: scores of the router, "softmax" or "sigmoid".
        use_gate_bias: biases that balance the router (4.7 and later).
        asks_lora: whether any part shall have low-rank deltas.
    """

    num_heads: int
    d_model: int
    dim_feedforward: int
    dropout: float
    vocab_size: int
    d_layer: int
    position_length: int
    num_experts: int
    topk_experts: int
    num_groups: int
    topk_groups: int
    lora_r: int
    lora_alpha: float
    use_moe_decoder: bool
    use_silu: bool
    use_rope: bool
    use_cross_attention: bool
    use_bias: bool
    norm_type: str
    score_type: str
    use_gate_bias: bool
    asks_lora: bool

    @classmethod
    def read(cls, raw: dict, name: str = "config.json") -> Options:
        """From upstream's JSON object.

        Args:
            raw: the object.
            name: of its file, for messages.

        Raises:
            ConversionError: `conversion.config`: a required option is missing or has the wrong type.
        """
        missing = [key for key in REQUIRED if raw.get(key) is None]
        if missing:
            raise ConversionError(
                f"{name} lacks {', '.join(missing)}: give upstream's JSON options of this checkpoint with --config",
                "conversion.config",
            )
        found = {}
        for key in (*REQUIRED, *DEFAULTS):
            value = raw.get(key) or DEFAULTS.get(key, raw.get(key))
            real = key in ("dropout", "lora_alpha")
            if isinstance(value, bool) or not isinstance(value, (int, float) if real else int) or value < 0:
                raise ConversionError(
                    f"{name}: {key} must be a {'number' if real else 'whole number'}, got {value!r}",
                    "conversion.config",
                )
            if value == 0 and key != "dropout":
                raise ConversionError(f"{name}: {key} must not be 0", "conversion.config")
            found[key] = value
        norm = raw.get("norm_type") or "tanh"
        if norm not in NORMS:
            raise ConversionError(
                f"{name}: norm_type must be one of {', '.join(NORMS)}, got {norm!r}", "conversion.config"
            )
        lora = ("use_lora", "use_attn_lora", "use_gate_lora", "use_ffn_lora")
        return cls(
            **found,
            use_moe_decoder=bool(raw.get("use_moe_decoder", True)),
            use_silu=bool(raw.get("use_silu", False)),
            use_rope=bool(raw.get("use_rope", False)),
            use_cross_attention=bool(raw.get("use_cross_attention", False)),
            use_bias=bool(raw.get("use_bias", True)),
            norm_type=norm,
            score_type=str(raw.get("score_type") or "softmax"),
            use_gate_bias=bool(raw.get("use_gate_bias", True)),
            asks_lora=any(raw.get(key) for key in lora),
        )


@dataclass(frozen=True)
class Anatomy:
    """What the tensors of a checkpoint show.

    Attributes:
        kind: a key of `KINDS`.
        versions: the upstream releases that write such keys.
        layers: number of layers.
        hidden: channels.
        rows: rows of the embedding.
        feed_forward: "moe", "silu" or "relu".
        norm: one of `NORMS`.
        width: hidden units of the feed-forward layers, or of one expert.
        experts: experts of a layer; 0: dense layers.
        shared: hidden units of the shared expert.
        gate: key of the router.
        attention_bias: biases of query, key and value.
        output_bias: bias of attention's output.
        mlp_bias: biases of feed-forward layers.
        norm2: a second norm, which nothing reads.
        routing_bias: biases and counters that balance the router.
        rank: rank of the low-rank deltas; 0: there are none.
        lora: names (without suffix) of the weights that have a low-rank delta.
    """

    kind: str
    versions: tuple[str, ...]
    layers: int
    hidden: int
    rows: int
    feed_forward: str
    norm: str
    width: int
    experts: int = 0
    shared: int = 0
    gate: str = ""
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norm2: bool = False
    routing_bias: bool = False
    rank: int = 0
    lora: tuple[str, ...] = field(default=(), repr=False)

    @property
    def late(self) -> bool:
        """4.7 or later: other router maths, wider shared expert."""
        return set(self.versions) <= set(LATE)

    @property
    def version_name(self) -> str:
        """The releases in words, e.g. "4.5.116 to 4.6.57"."""
        first, last = self.versions[0], self.versions[-1]
        return first if first == last else f"{first} to {last}"


def detect_kind(keys) -> str:
    """The kind of model that a set of keys belongs to, one of `KINDS`.

    Args:
        keys: upstream's names of the tensors.

    Raises:
        ConversionError: `conversion.kind`: none of them.
    """
    for kind, (signs, _) in KINDS.items():
        if any(sign in keys for sign in signs):
            return kind
    if any(key.startswith(("decoder.layers.", "layers.0.self_attention.")) for key in keys):
        raise ConversionError(
            "these are a decoder's layers without embedding and output layer: give the checkpoint of the whole MORTM",
            "conversion.kind",
        )
    shown = ", ".join(list(keys)[:3])
    raise ConversionError(f"no upstream model has these tensors ({shown}, ...): is it a MORTM?", "conversion.kind")


def examine(tensors: dict[str, torch.Tensor], version: str | None = None) -> Anatomy:
    """Kind, releases, sizes and parts of a state dict (upstream's names).

    Args:
        tensors: tensors by upstream's names.
        version: the release it is known to come from; narrows the candidates.

    Raises:
        ConversionError: another kind of model, keys of no release, or a `version` that they rule out.
    """
    kind = detect_kind(tensors)
    embedding = shape_of(tensors, "embedding.weight", 2)
    return examine_layers(tensors, kind, embedding[1], embedding[0], version)


def examine_layers(tensors, kind: str, hidden: int, rows: int, version: str | None = None) -> Anatomy:
    """`examine` for the layers `decoder.*` alone.

    Args:
        tensors: tensors by upstream's names.
        kind: a key of `KINDS`.
        hidden: channels.
        rows: rows of the embedding.
        version: as in `examine`.

    Raises:
        ConversionError: as `examine`.
    """
    if any(".cross_attention." in key for key in tensors):
        raise ConversionError(
            "this decoder has cross attention, which upstream's MORTM never feeds (its forward raises): "
            "there is nothing it could be converted to",
            "conversion.kind",
        )
    numbers = sorted({int(m[1]) for key in tensors if (m := re.match(r"decoder\.layers\.(\d+)\.", key))})
    if not numbers or numbers != list(range(len(numbers))):
        raise ConversionError(f"the decoder's layers are numbered {numbers}: layers are missing", "conversion.keys")
    first = "decoder.layers.0"
    lora = tuple(key.removesuffix(".lora_A") for key in tensors if key.endswith(".lora_A"))
    bare = {key for key in tensors if key.startswith(f"{first}.")}
    moe = any(f"{first}.ffn.{part}" in key for key in bare for part in ("experts.", "gate."))
    if moe:
        experts = len({key.split(".")[5] for key in bare if key.startswith(f"{first}.ffn.experts.")})
        width = shape_of(tensors, f"{first}.ffn.experts.0.w1.weight", 2)[0]
        shared = shape_of(tensors, f"{first}.ffn.shared_experts.w1.weight", 2)[0]
        feed_forward, mlp_bias = "moe", f"{first}.ffn.experts.0.w1.bias" in tensors
    else:
        experts = shared = 0
        feed_forward = "silu" if f"{first}.ffn.w1.weight" in tensors else "relu"
        name = "w1" if feed_forward == "silu" else "linear1"
        width = shape_of(tensors, f"{first}.ffn.{name}.weight", 2)[0]
        mlp_bias = f"{first}.ffn.{name}.bias" in tensors
    norm2 = f"{first}.norm2.weight" in tensors
    gate = "gate.gate_proj" if f"{first}.ffn.gate.gate_proj.weight" in tensors else "gate"
    facts = Anatomy(
        kind=kind,
        versions=(),
        layers=len(numbers),
        hidden=hidden,
        rows=rows,
        feed_forward=feed_forward,
        norm=_norm(tensors, first),
        width=width,
        experts=experts,
        shared=shared,
        gate=gate if moe else "",
        attention_bias=f"{first}.self_attention.qkv_block.qkv_weight.bias" in tensors,
        output_bias=f"{first}.self_attention.qkv_block.W_o.bias" in tensors,
        mlp_bias=mlp_bias,
        norm2=norm2,
        routing_bias=f"{first}.ffn.gate.routing_bias" in tensors,
        rank=shape_of(tensors, f"{lora[0]}.lora_A", 2)[0] if lora else 0,
        lora=lora,
    )
    candidates = _versions(facts)
    if f"{first}.ffn.gate.bias" in tensors:
        raise ConversionError("the router has a bias (ffn.gate.bias), which is not supported", "conversion.version")
    if version is not None:
        known = [v for v in VERSIONS if v == version or v.startswith(version + ".")]
        if not known:
            raise ConversionError(f"no upstream release {version!r}: {', '.join(VERSIONS)}", "conversion.version")
        kept = tuple(v for v in candidates if v in known)
        if not kept:
            found = replace(facts, versions=candidates).version_name
            raise ConversionError(
                f"these keys cannot come from {version}: they are those of {found} "
                "(leave out --version, or check the file)",
                "conversion.version",
            )
        candidates = kept
    return replace(facts, versions=candidates)


def shape_of(tensors, name: str, dims: int | None = None) -> tuple[int, ...]:
    """The shape of a tensor.

    Args:
        tensors: tensors by upstream's names.
        name: the tensor.
        dims: how many dimensions it must have; None: any number.

    Raises:
        ConversionError: `conversion.keys`: it is missing or has another number of dimensions.
    """
    if name not in tensors:
        raise ConversionError(f"the checkpoint has no {name}: it is not complete", "conversion.keys")
    if dims is not None and tensors[name].dim() != dims:
        raise ConversionError(
            f"{name} has the shape {list(tensors[name].shape)}, not {dims} dimensions", "conversion.keys"
        )
    return tuple(tensors[name].shape)


def _norm(tensors, layer: str) -> str:
    for name in (f"{layer}.norm1", f"{layer}.norm3"):
        if f"{name}.alpha" in tensors:
            return "tanh"
        if f"{name}.bias" in tensors:
            return "layernorm"
        if f"{name}.weight" in tensors:
            if "decoder.norm.weight" not in tensors:
                break
            return "rmsnorm"
    raise ConversionError(
        "the decoder has no norms, or no final one: upstream's rmsnorm of 4.5 and 4.5.116 is broken so and never "
        "ran; there is nothing to convert",
        "conversion.version",
    )


def _versions(facts: Anatomy) -> tuple[str, ...]:
    """The releases whose layers have these keys (SPEC 5)."""
    if facts.attention_bias:
        return EARLY
    late = facts.routing_bias or not facts.norm2
    if facts.feed_forward == "moe":
        if facts.gate == "gate":
            return RESEARCH
        late = late or (facts.shared == facts.hidden != facts.width)
        return LATE if late else MIDDLE
    if late:
        return LATE
    # dense layers of 4.5 have the same keys and maths, but always biases
    return RESEARCH + MIDDLE if facts.output_bias and facts.norm != "rmsnorm" else MIDDLE


def reconcile(facts: Anatomy, options: Options, name: str = "config.json") -> tuple[Anatomy, list[str]]:
    """Check the options against the tensors.

    Args:
        facts: what the tensors show.
        options: upstream's options.
        name: of their file, for messages.

    Returns:
        The facts, with fewer releases where the options rule some out, and remarks for the reader.

    Raises:
        ConversionError: `conversion.config`, listing every contradiction.
    """
    notes, wrong = [], []
    early = set(facts.versions) <= set(EARLY)

    def compare(option: str, given, found) -> None:
        if given != found:
            wrong.append(f"{option} is {given!r}, the tensors say {found!r}")

    compare("vocab_size", options.vocab_size, facts.rows)
    compare("d_model", options.d_model, facts.hidden)
    compare("d_layer", options.d_layer, facts.layers)
    compare("dim_feedforward", options.dim_feedforward, facts.width)
    compare("use_moe_decoder", options.use_moe_decoder, facts.feed_forward == "moe")
    if facts.feed_forward == "moe":
        compare("num_experts", options.num_experts, facts.experts)
        shared = facts.hidden if facts.late else facts.width
        if facts.shared != shared:
            wrong.append(f"the shared expert has {facts.shared} hidden units, {facts.version_name} gives it {shared}")
        if options.topk_experts > facts.experts:
            wrong.append(f"topk_experts is {options.topk_experts}, more than the {facts.experts} experts")
        if not facts.late and options.num_groups > 1 and facts.experts % options.num_groups:
            wrong.append(f"num_groups is {options.num_groups}, which does not divide the {facts.experts} experts")
    elif not early:
        compare("use_silu", options.use_silu, facts.feed_forward == "silu")
    if early:
        ignored = [k for k in ("use_rope", "use_silu", "use_cross_attention") if getattr(options, k)]
        ignored += ["norm_type"] if options.norm_type != "tanh" else []
        ignored += ["use_bias"] if not options.use_bias else []
        if ignored:
            notes.append(f"upstream {facts.version_name} ignores {', '.join(ignored)}, and so does the conversion")
    else:
        compare("norm_type", options.norm_type, facts.norm)
        if facts.output_bias and not options.use_bias and "4.5" in facts.versions:
            facts = replace(facts, versions=RESEARCH)
            notes.append("use_bias is false but there are biases: that is 4.5, which does not heed it")
        else:
            compare("use_bias", options.use_bias, facts.output_bias)
    if options.use_cross_attention and not early:
        wrong.append("use_cross_attention is true, the tensors have no cross attention")
    if facts.lora and options.lora_r != facts.rank:
        wrong.append(f"lora_r is {options.lora_r}, the deltas have rank {facts.rank}")
    if not facts.lora and options.asks_lora:
        notes.append("the options ask for LoRA, the checkpoint has none: its weights are taken as they are")
    if facts.hidden % options.num_heads:
        wrong.append(f"num_heads is {options.num_heads}, which does not divide d_model {facts.hidden}")
    elif options.use_rope and not early and facts.hidden // options.num_heads % 2:
        wrong.append(f"num_heads is {options.num_heads}: rotary positions need an even size of heads")
    if options.score_type not in ("softmax", "sigmoid"):
        wrong.append(f"score_type is {options.score_type!r}, neither softmax nor sigmoid")
    elif options.score_type == "sigmoid" and facts.feed_forward == "moe" and not facts.late:
        notes.append(f"upstream {facts.version_name} never passes score_type on: experts are scored by softmax")
    if wrong:
        raise ConversionError(
            f"{name} contradicts the checkpoint: {'; '.join(wrong)}. Give the options it was trained with (--config)",
            "conversion.config",
        )
    return facts, notes
