"""Pure functions of tensors and arrays: log-probs, advantages, losses, ranking metrics, intervals."""
