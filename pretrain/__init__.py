"""Pretraining: shards -> data -> Batch -> models -> objectives -> task -> engine -> checkpoint."""
