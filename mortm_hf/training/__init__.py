"""Training from recipes on `transformers.Trainer`.

The parts: `recipe` (the parser of every recipe) and `arguments` (the fields of a run), `run` (folder, log, resuming,
signals, `final/`), `tasks` (one module a task: its sections, model, data, validation), `songs` (the data a recipe
names), `weights`, `adapters`, `trainer`, `validation`, `runlog`, `routing`; `finetune` (a folder of one's own songs);
`rlmf` (reinforcement learning). Several processes: `torchrun -m mortm_hf.training.pretrain RECIPE.yaml`.
"""
