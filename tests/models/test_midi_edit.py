"""Writing into files: kept notes stay what they are. Whole files: `test_pipeline_mortm`."""

import numpy as np

from mortm_hf.models.midi_edit import fit_between


def test_kept_notes_survive_first_in_first_out_pairing():
    rng = np.random.default_rng(0)
    for _ in range(200):
        # kept notes without nesting on one pitch, around a gap in which the new ones start
        before = np.sort(rng.integers(0, 50, 4))
        after = np.sort(rng.integers(100, 150, 4))
        kept_on = np.unique(np.concatenate([before, after]))
        kept_off = np.maximum.accumulate(kept_on + rng.integers(1, 70, len(kept_on)))
        onset = np.unique(rng.integers(50, 100, 5))
        offset = np.maximum.accumulate(onset + rng.integers(1, 90, len(onset)))
        pitch = np.full(len(onset), 60)
        fitted = fit_between(onset, offset, pitch, kept_on, kept_off, np.full(len(kept_on), 60))
        ons = np.concatenate([kept_on, onset])
        offs = np.sort(np.concatenate([kept_off, fitted]))  # what a reader pairs with the onsets in order
        order = np.argsort(ons, kind="stable")
        paired = dict(zip(ons[order].tolist(), offs.tolist()))
        assert [paired[on] for on in kept_on.tolist()] == kept_off.tolist()
