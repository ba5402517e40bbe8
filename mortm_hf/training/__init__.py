"""Training recipes on `transformers.Trainer`: `python -m mortm_hf.training.pretrain RECIPE.yaml`."""
