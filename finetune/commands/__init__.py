"""The commands of `finetune`, a file for each group. Torch is imported when a command needs it."""
