"""From MIDI to training documents: data sets of songs, tasks and windows, packed rows.

Every name is imported from its own module: a process that only reads MIDI never loads torch.

Knows: MIDI files and labels, the token language through `mortm_hf.models`. Must not know: training, evaluation.
"""

from ..models.errors_mortm import DataError as DataError  # the error of all data sets
