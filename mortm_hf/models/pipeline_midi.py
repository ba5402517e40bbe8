"""What the pipelines share: options of a call, lists of songs, opening a song, saving.

Design decisions
- A MIDI file is parsed once a call: what it holds and its image on the grid are made together.
- A folder that a pipeline saves carries the model, what reads its inputs and all code. The configuration writes its
  family's tasks (`families`); only a task that somebody else registered is added here.

Knows: transformers' pipelines, MIDI files. Must not know: models, tokens, what a pipeline answers.
"""

from __future__ import annotations

import os

import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines import PIPELINE_REGISTRY

from .errors_mortm import PromptError
from .families import TASKS
from .midi_files import open_midi
from .music_score import is_score


class MusicPipeline(Pipeline):
    """Base of all pipelines of the suite; a subclass names its options and answers in transformers' three steps."""

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = False  # ours call it themselves, window by window

    # names of the options of `preprocess`, `_forward` and `postprocess`
    _options: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] = ((), (), ())
    _more_options = ""  # end of the message that refuses an unknown one

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # `transformers.pipeline` leaves classes where the configuration had names, and wants names the next time
        if getattr(self.model.config, "custom_pipelines", None):
            self.model.config.custom_pipelines = self.model.config.to_dict()["custom_pipelines"]

    def _sanitize_parameters(self, **kwargs):
        known = [name for names in self._options for name in names]
        for name in kwargs:
            if name not in known:
                takes = ", ".join(sorted(known)) + self._more_options
                raise TypeError(f"{self.task} has no argument {name!r}; it takes {takes}")
        return tuple({name: kwargs[name] for name in names if name in kwargs} for names in self._options)

    def __call__(self, inputs=None, **kwargs):
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if not isinstance(inputs, list):
            return super().__call__(inputs, **kwargs)
        if not inputs:
            return []
        # iterating over a list draws from the global generator inside a data loader: give it back as it was
        state = torch.get_rng_state()
        try:
            return super().__call__(inputs, **kwargs)
        finally:
            torch.set_rng_state(state)

    def _forward(self, model_inputs, **options):
        """`_answers` of the list of pieces that a batch is, or of one piece."""
        piece = model_inputs["piece"]
        if isinstance(piece, list):
            return {"answer": self._answers(piece, **options)}
        return {"answer": self._answers([piece], **options)[0]}

    def _answers(self, pieces: list, **options) -> list:
        """One answer of the model for every piece that `preprocess` gave."""
        raise NotImplementedError

    def open_song(self, midi):
        """A song as it is in its file, and on the grid.

        Args:
            midi: path, MIDI bytes, `symusic.Score`, `MetricScore` or `OpenedMidi`.

        Returns:
            `symusic.Score` in ticks (None for a `MetricScore`), and the `MetricScore`.

        Raises:
            PromptError: None was given (`prompt.material`).
            MidiError: the file cannot be used.
        """
        if midi is None:
            raise PromptError(f"{self.task} needs a MIDI file, but the input is None")
        if hasattr(midi, "score") and hasattr(midi, "music"):  # an `OpenedMidi` of whatever copy of the code
            return midi.score, midi.music
        return (None, midi) if is_score(midi) else open_midi(midi)

    def save_pretrained(self, save_directory, **kwargs):
        """Save model, what reads its inputs, all code and a card; the folder offers every task of the model's family.

        Args:
            save_directory: folder, made where there is none.
            kwargs: those of transformers' `save_pretrained`.
        """
        config, registered = self.model.config, PIPELINE_REGISTRY.supported_tasks.get(self.task)
        own = getattr(config, "custom_pipelines", None) or {}
        if registered is not None and registered["impl"] is type(self) and self.task not in {*TASKS, *own}:
            entry = {"impl": f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"}
            entry |= {"pt": [auto.__name__ for auto in registered["pt"]], "type": registered["type"]}
            config.custom_pipelines = {**own, self.task: entry}
        os.makedirs(save_directory, exist_ok=True)
        custom_object_save(self, save_directory)
        for part in (self.model, self.tokenizer, self.feature_extractor):
            if part is not None:
                part.save_pretrained(save_directory, **kwargs)
