"""RWKV models: one file an architecture, their initial weights, checkpoints, loss and sampling."""
