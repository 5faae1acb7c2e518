"""Fine-tuning and evaluation of image-text retrieval: checkpoint -> retrieval -> results.json -> table, report."""
