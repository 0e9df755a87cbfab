"""The machine side: sandbox and executor, the engine that puts everything together, and the Docker Engine API.

The only place that constructs concrete parts, and the only one that makes namespace and mount calls (``sandbox.py``).
"""
