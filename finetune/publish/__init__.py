"""A checkpoint as a repository that others can use.

    checkpoint + results.json + statements -> export.py: a folder -> check.py: refuses what must not leave
                                           -> probe.py: opened by a fresh process, same outputs -> upload.py: a hub

The folder is also what `--ckpt USER/NAME` opens, and `transformers.AutoModel` after `import finetune.automodel`.
"""
