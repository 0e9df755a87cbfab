"""The messages of BuildKit's API: ``*.proto`` are written by hand, ``*_pb2.py`` and ``*_pb2.pyi`` made by ``tools/protocol_messages.py``."""
