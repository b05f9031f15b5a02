"""The full training state on disk: sharded, checked, atomic; and whether a run may go on from it."""
