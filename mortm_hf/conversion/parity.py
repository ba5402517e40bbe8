"""Converted models against upstream's own numbers.

Design decisions
- A case is a folder with `model.pth`, `config.json`, `inputs.npz`, `expected.npz` and perhaps
  `greedy_generation.json`: what upstream computed. It is converted as a user would, loaded with `from_pretrained`,
  and everything the case holds is compared.
- fp32 cases must agree within `TOLERANCE`. A case whose name starts with `native_bf16` was computed in bf16, where
  upstream's router flips choices: there the mean difference and the agreement of the best token count (BF16_*).
- A case that cannot be converted because upstream could not run it either is listed: neither passed nor failed.

Knows: the files of a case, models. Must not know: how a checkpoint is converted.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..models.errors_mortm import ConversionError
from ..models.modeling_bertm import BertmForSequenceClassification
from ..models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification
from ..models.modeling_mortm_live import MortmLiveVision
from ..models.modeling_vmortm import VMortmForSpectrogramGeneration
from .anatomy import PERCEPTION
from .checkpoint_files import read_json
from .from_upstream import convert_checkpoint


TOLERANCE = 1e-4
BF16_MEAN, BF16_AGREEMENT = 0.06, 0.85
NATIVE = "native_bf16"


@dataclass
class ParityRow:
    """What one case gave.

    Attributes:
        case: name of its folder.
        kind: a key of `anatomy.KINDS`, or "not converted".
        version: upstream releases in words.
        vocabulary: name of the token table.
        differences: quantity -> greatest absolute difference.
        greedy: whether greedy decoding wrote the same tokens; None: the case holds none.
        native: of a bf16 case: mean difference of the logits, and share of positions with the same best token.
        reason: why it was not converted.
        passed: None: nothing was compared.
    """

    case: str
    kind: str = ""
    version: str = ""
    vocabulary: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    greedy: bool | None = None
    native: tuple[float, float] | None = None
    reason: str = ""
    passed: bool | None = None

    def as_dict(self) -> dict:
        """Plain JSON types."""
        return asdict(self)


def check_folder(folder, names: list[str] | None = None) -> list[ParityRow]:
    """Every case in a folder, or the folder itself, if it is a case.

    Args:
        folder: the folder.
        names: only the cases of these names.

    Raises:
        ConversionError: `conversion.parity`: there is no case.
    """
    folder = Path(folder)
    cases = [folder] if (folder / "model.pth").is_file() else sorted(p.parent for p in folder.glob("*/model.pth"))
    cases = [case for case in cases if names is None or case.name in names]
    if not cases:
        raise ConversionError(f"{folder} holds no case (model.pth with expected.npz)", "conversion.parity")
    return [check_case(case) for case in cases]


def check_case(case) -> ParityRow:
    """Converts a case in a temporary folder and compares all it holds.

    Args:
        case: folder of the case.
    """
    case = Path(case)
    row = ParityRow(case.name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "converted"
        try:
            report = convert_checkpoint(case / "model.pth", folder)
        except ConversionError as error:
            if error.code != "conversion.kind":
                raise
            row.kind, row.reason = "not converted", str(error).split(",")[0]
            return row
        row.kind, row.version, row.vocabulary = report.kind, report.version_name, report.vocabulary
        compare(row, case, folder)
    return row


def compare(row: ParityRow, case: Path, folder: Path) -> None:
    """Fills `row` with what the converted models compute of the case's inputs.

    Args:
        row: the row of the case.
        case: folder of the case.
        folder: folder of the converted models.

    Raises:
        ConversionError: `conversion.parity`: the case's files cannot be read.
    """
    try:
        want = dict(np.load(case / "expected.npz"))
        given = dict(np.load(case / "inputs.npz")) if (case / "inputs.npz").is_file() else want
        if row.kind in PERCEPTION:
            for name, values in perception(row.kind, folder, given).items():
                row.differences[name] = float(np.abs(values - want[name].astype(np.float32)).max())
            row.passed = bool(row.differences) and max(row.differences.values()) <= TOLERANCE
            return
        ids, mask = torch.from_numpy(given["input_ids"]), torch.from_numpy(given["attention_mask"])
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(f"{case} is no case: {error}", "conversion.parity") from None
    with torch.no_grad():
        if row.kind == "bertm":
            model = BertmForSequenceClassification.from_pretrained(folder).eval()
            found = {"score": model(ids, attention_mask=mask).logits}
            found["score"], want["score"] = found["score"].numpy(), want["score"].reshape(found["score"].shape)
        else:
            model = MortmForCausalLM.from_pretrained(folder).eval()
            found = language_model(model, ids, mask, want)
            if row.kind == "actorcritic":
                value = MortmForSequenceClassification.from_pretrained(folder / "value").eval()
                found |= critic(value, ids, mask, found["log_probs"], want)
            greedy = case / "greedy_generation.json"
            if greedy.is_file():
                row.greedy = generates(model, read_json(greedy, "greedy generation", "conversion.parity"))
    for name, values in found.items():
        if name in want:
            row.differences[name] = float(np.abs(values - want[name].astype(np.float32)).max())
    if row.case.startswith(NATIVE):
        real = mask.numpy() != 0
        difference = np.abs(found["logits"] - want["logits"])[real].mean()
        agreement = (found["logits"].argmax(-1) == want["logits"].argmax(-1))[real].mean()
        row.native = float(difference), float(agreement)
        row.passed = bool(difference <= BF16_MEAN and agreement >= BF16_AGREEMENT)
    else:
        row.passed = bool(row.differences) and max(row.differences.values()) <= TOLERANCE and row.greedy is not False


def perception(kind: str, folder: Path, given: dict) -> dict[str, np.ndarray]:
    """What V_MORTM or the vision VAE makes of the case's inputs.

    Args:
        kind: a key of `anatomy.KINDS`.
        folder: folder of the converted model.
        given: inputs by name.
    """
    given = {name: torch.from_numpy(values) for name, values in given.items()}
    with torch.no_grad():
        if kind == "vmortm":
            model = VMortmForSpectrogramGeneration.from_pretrained(folder).eval()
            return {"output": model(given["spectrogram"]).predictions.numpy()}
        model = MortmLiveVision.from_pretrained(folder).eval()
        output = model(given["pianoroll"], eps=given["eps"])
        return {"recon": output.logits.numpy(), "mu": output.mean.numpy(), "log_var": output.log_var.numpy()}


def language_model(model, ids: torch.Tensor, mask: torch.Tensor, want: dict) -> dict[str, np.ndarray]:
    """Logits (0 at pads), log-probabilities of the next token (0 where it is a pad), cached decoding.

    A case may hold `positions` of the logits and `decode_steps` of the last eight steps only, to keep its file small.

    Args:
        model: the converted model.
        ids: [batch, tokens].
        mask: [batch, tokens], 0 at pads.
        want: what upstream computed, by name.
    """
    logits = model(ids, attention_mask=mask).logits.float()
    real = mask.bool()
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    found = {"logits": logits * real[..., None], "log_probs": chosen * real[:, 1:]}
    if "positions" in want:
        found["logits"] = found["logits"][:, want["positions"]]
    if "decode_logits" in want:
        chosen = want.get("decode_steps", np.arange(want["decode_logits"].shape[1]))
        steps = max(len(chosen), int(chosen.max()) + 1)
        decoded = torch.cat([decode(model, row[keep], steps) for row, keep in zip(ids, real, strict=True)])
        found["decode_logits"] = decoded[:, chosen.tolist()]
    return {name: tensor.numpy() for name, tensor in found.items()}


def decode(model, row: torch.Tensor, steps: int) -> torch.Tensor:
    """Logits [1, steps, vocabulary] of the last tokens, one at a time after the others.

    Args:
        model: the converted model.
        row: ids [tokens] without pads.
        steps: how many tokens are decoded.
    """
    cut = len(row) - steps
    cache = model(row[None, :cut], use_cache=True).past_key_values
    logits = []
    for index in range(cut, len(row)):
        output = model(row[None, index : index + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits[:, -1])
    return torch.stack(logits, dim=1).float()


def critic(model, ids, mask, log_probs: np.ndarray, want: dict) -> dict[str, np.ndarray]:
    """Values of every position, and what upstream's `evaluate` gives back for the actions taken.

    Args:
        model: the converted value model.
        ids: [batch, tokens].
        mask: [batch, tokens], 0 at pads.
        log_probs: log-probabilities of the next token by the policy, [batch, tokens - 1].
        want: what upstream computed, by name; values at pads are set to 0 in it.
    """
    states = model.model(ids, attention_mask=mask).last_hidden_state
    values = model.score(states).float() * mask[..., None]
    found = {"values": values.numpy()}
    if "evaluate_values" in want:
        # upstream's padding has a value too, the head's biases, which means nothing
        length = want["evaluate_values"].shape[1]
        want["evaluate_values"] = want["evaluate_values"] * mask[:, :length].numpy()
        found["evaluate_values"] = values[:, :length, 0].numpy()
        found["evaluate_log_probs"] = log_probs
    return found


def generates(model, case: dict) -> bool:
    """Whether greedy decoding writes the same tokens.

    Args:
        model: the converted model.
        case: `prompt` and `output_ids` of upstream's decoding.
    """
    prompt = torch.tensor([case["prompt"]])
    want = case["output_ids"]
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        top_p=None,
        top_k=None,
        temperature=None,
        max_length=None,
        max_new_tokens=len(want) - prompt.shape[1],
    )
    return output[0].tolist() == want


def table(rows: list[ParityRow]) -> str:
    """A Markdown table of the greatest absolute differences.

    Args:
        rows: a row a case.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.differences))
    head = ["case", "kind", "upstream", "tokens", *names, "greedy", ""]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        numbers = [f"{row.differences[name]:.1e}" if name in row.differences else "" for name in names]
        greedy = "" if row.greedy is None else "same" if row.greedy else "DIFFERS"
        result = "ok" if row.passed else "FAILED"
        if row.native is not None:
            result += f" (bf16: mean {row.native[0]:.3f}, best token the same {row.native[1]:.0%})"
        lines.append([row.case, row.kind, row.version, row.vocabulary, *numbers, greedy, row.reason or result])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_rows(rows: list[ParityRow], path) -> None:
    """Write the rows as JSON.

    Args:
        rows: a row a case.
        path: the file to write.
    """
    Path(path).write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n", encoding="utf-8")
