"""Dense prediction: segmentation and detection on the backbones of the zoo."""
