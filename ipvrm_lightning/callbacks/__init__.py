"""What a Trainer does beside training: tables of results, exports, plots."""
