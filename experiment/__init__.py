"""What both scripts need: configuration, scoring, checkpoints, the run's log and curves, plots."""
