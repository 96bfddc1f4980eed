"""Semantic segmentation: data, models, evaluation."""
