"""Training that is killed while it saves. `python -m scripts.killing`, or scripts/kill_training."""
