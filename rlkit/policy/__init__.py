"""What online algorithms share: rollouts, rewards, the grouped forward, and the trainer."""
