"""Registries: credentials, transport, pull, push, copies and edits of images there.

Knows nothing of Dockerfiles or the store; what it needs of a store it declares in ``stores.py``.
"""
