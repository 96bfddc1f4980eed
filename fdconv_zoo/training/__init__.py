"""What the training scripts share: the command line, the run folder, checkpoints, evaluation.

The loops themselves live in `scripts/`, one readable file a task.
"""
