"""Search over pictures: an index made once, queries answered in milliseconds.

pictures -> gallery.py -> encoder.py -> embeddings -> nearest.py (exact, hnsw, ivfpq, binary) -> tune.py
         -> index.py: a folder that appears whole
pairs    -> encoder.py -> learn.py: a head for short binary codes -> head.py: a folder that appears whole
query    -> encoder.py -> nearest.py -> cosine of the candidates -> matching head (re-rank) -> hits: query.py
         -> batcher.py, server.py, heat.py: the local page
"""
