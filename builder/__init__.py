"""From a syntax tree to an image: contexts, checks, lowering to a graph, cache keys, the solver, exporters, attestations.

Makes no system calls of its own and knows no registry: what it needs of the machine it declares in ``protocols.py``.
"""
