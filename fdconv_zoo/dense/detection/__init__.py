"""Detection and instance segmentation: data, models, evaluation."""
