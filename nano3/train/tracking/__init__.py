"""What a run writes down and shows: metrics.jsonl, trackers, charts, the display; and runs found again and compared."""
