"""The training loop (`loop.fit`) and what it needs: batches, optimizer, norms, run folder, checkpoints, evaluation."""
