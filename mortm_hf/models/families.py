"""The families of models: the classes of each, what reads its inputs, what it can be asked to do.

Design decisions
- This table is the only one: registration with transformers, `auto_map` and `custom_pipelines` of saved folders, and
  what can be exported are made from it. A new pipeline is a file of its own, a row here and a line in `TRAVELLERS`.
- A saved folder carries all of `models/`, so that it works where the package is missing. transformers saves with a
  class every file that the class's file imports, and finds imports by a regular expression over the text: import
  lines in a string count, too, and make no import circle.

Knows: names of modules and classes. Must not know: what is in them.
"""

from typing import NamedTuple


# Each line is followed further by transformers, from file to file. Compiled files are loaded by name, not imported.
TRAVELLERS = """
from .feature_extraction_vmortm import VMortmFeatureExtractor
from .generation_choice import choose
from .generation_kernels import step
from .modeling_bertm import BertmModel
from .modeling_mortm import MortmModel
from .modeling_mortm_live import MortmLiveModel
from .modeling_vmortm import VMortmModel
from .pipeline_bertm import MidiClassificationPipeline
from .pipeline_mortm import MidiGenerationPipeline
from .pipeline_vmortm import AudioContinuationPipeline
from .processing_mortm_live import MortmLiveProcessor
from .reward_bertm import BertmReward
from .tokenization_mortm import MortmTokenizer
"""


class Task(NamedTuple):
    """What a family can be asked to do, by a pipeline of ours.

    Attributes:
        pipeline: its class, as "module.Class".
        auto: name of the Auto class that loads its model.
        reads: kind of input in the words of transformers' registry: "text" (a tokenizer reads it) or "audio".
    """

    pipeline: str
    auto: str
    reads: str


class Family(NamedTuple):
    """One kind of configuration (`model_type`) and all that belongs to it. Classes are named "module.Class".

    Attributes:
        title: its name for people.
        config: the configuration's class.
        models: Auto class -> class of the model.
        readers: Auto class -> class that makes a model's inputs.
        tasks: task -> pipeline.
    """

    title: str
    config: str
    models: dict[str, str]
    readers: dict[str, str]
    tasks: dict[str, Task]


_TOKENIZER = {"AutoTokenizer": "tokenization_mortm.MortmTokenizer"}
_MEL = "feature_extraction_vmortm.VMortmFeatureExtractor"
_ROLL = "processing_mortm_live.MortmLiveProcessor"

# model_type -> family
FAMILIES = {
    "mortm": Family(
        title="MORTM",
        config="configuration_mortm.MortmConfig",
        models={
            "AutoModel": "modeling_mortm.MortmModel",
            "AutoModelForCausalLM": "modeling_mortm.MortmForCausalLM",
            "AutoModelForSequenceClassification": "modeling_mortm.MortmForSequenceClassification",
        },
        readers=_TOKENIZER,
        tasks={
            "midi-generation": Task("pipeline_mortm.MidiGenerationPipeline", "AutoModelForCausalLM", "text"),
            "chord-estimation": Task("pipeline_mortm.ChordEstimationPipeline", "AutoModelForCausalLM", "text"),
        },
    ),
    "bertm": Family(
        title="BERTM",
        config="configuration_bertm.BertmConfig",
        models={
            "AutoModel": "modeling_bertm.BertmModel",
            "AutoModelForMaskedLM": "modeling_bertm.BertmForMaskedLM",
            "AutoModelForSequenceClassification": "modeling_bertm.BertmForSequenceClassification",
            "AutoModelForTokenClassification": "modeling_bertm.BertmForTokenClassification",
        },
        readers=_TOKENIZER,
        tasks={
            "midi-classification": Task(
                "pipeline_bertm.MidiClassificationPipeline", "AutoModelForSequenceClassification", "text"
            ),
            "midi-feature-extraction": Task("pipeline_bertm.MidiFeatureExtractionPipeline", "AutoModel", "text"),
        },
    ),
    "vmortm": Family(
        title="V_MORTM",
        config="configuration_vmortm.VMortmConfig",
        models={
            "AutoModel": "modeling_vmortm.VMortmModel",
            "AutoModelForTextToSpectrogram": "modeling_vmortm.VMortmForSpectrogramGeneration",
        },
        readers={"AutoFeatureExtractor": _MEL, "AutoProcessor": _MEL},
        tasks={
            "audio-continuation": Task(
                "pipeline_vmortm.AudioContinuationPipeline", "AutoModelForTextToSpectrogram", "audio"
            )
        },
    ),
    "mortm_live": Family(
        title="MORTM Live",
        config="configuration_mortm_live.MortmLiveConfig",
        models={"AutoModel": "modeling_mortm_live.MortmLiveForCausalGeneration"},
        readers={"AutoFeatureExtractor": _ROLL, "AutoProcessor": _ROLL},
        tasks={},
    ),
}
TASKS = {task: row for family in FAMILIES.values() for task, row in family.tasks.items()}


def class_names() -> list[str]:
    """Every class of the table, each once.

    Returns:
        "module.Class", in the order of the table.
    """
    found = []
    for family in FAMILIES.values():
        pipelines = [row.pipeline for row in family.tasks.values()]
        found += [family.config, *family.models.values(), *family.readers.values(), *pipelines]
    return list(dict.fromkeys(found))


def auto_map(model_type: str) -> dict[str, str]:
    """`auto_map` of a saved configuration; a tokenizer names itself in its own file.

    Args:
        model_type: of the configuration.

    Returns:
        Auto class -> "module.Class"; empty for an unknown type.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        return {}
    readers = {auto: name for auto, name in family.readers.items() if auto != "AutoTokenizer"}
    return {"AutoConfig": family.config, **family.models, **readers}


def custom_pipelines(model_type: str) -> dict[str, dict]:
    """`custom_pipelines` of a saved configuration, in the form of transformers.

    Args:
        model_type: of the configuration.

    Returns:
        Task -> dict of `impl`, `pt`, `type`; empty for an unknown type.
    """
    tasks = FAMILIES[model_type].tasks if model_type in FAMILIES else {}
    return {task: {"impl": row.pipeline, "pt": [row.auto], "type": row.reads} for task, row in tasks.items()}


# in a card that nobody wrote by hand: such a one gives way to any other
CARD_MARK = "<!-- written when this folder was saved -->"


def model_card(model_type: str | None, architecture: str) -> str:
    """The card of a saved folder that has none yet.

    Args:
        model_type: of the configuration.
        architecture: class of the saved model, "MortmForCausalLM".

    Returns:
        Markdown with a YAML head that the Hub accepts; FOLDER stands for where the model is.
    """
    head = f"---\nlibrary_name: transformers\ntags:\n- symbolic-music\n---\n\n{CARD_MARK}\n"
    family = FAMILIES.get(model_type)
    if family is None:
        return f"{head}# A checkpoint for symbolic music, of the MORTM family\n"
    auto = next((auto for auto, name in family.models.items() if name.endswith(f".{architecture}")), "AutoModel")
    lines = [
        f'pipe = pipeline("{task}", model=FOLDER, trust_remote_code=True)'
        for task, row in family.tasks.items()
        if row.auto in ("AutoModel", auto)
    ]
    name = "pipeline" if lines else auto
    code = "\n".join(lines or [f"model = {auto}.from_pretrained(FOLDER, trust_remote_code=True)"])
    return (
        f"{head}# {architecture}\n\nA checkpoint of {family.title} for music, with all of its code.\n\n"
        f"```python\nfrom transformers import {name}\n\n{code}\n```\n"
    )
