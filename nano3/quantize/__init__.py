"""Fewer bits after training: which matrices, calibration, folders and what they cost in quality (report section 4)."""
