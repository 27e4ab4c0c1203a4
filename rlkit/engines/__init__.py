"""Where a training stage runs: in this process, in several, or under DeepSpeed."""
