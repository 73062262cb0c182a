"""Training, data preparation and evaluation of the F3 models; installed as `f3_training`."""
