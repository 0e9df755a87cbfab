"""pybuild: an image build toolkit and Dockerfile interpreter.

This package itself imports nothing, so that ``pybuild --version`` starts as fast as Python does.
"""

__version__ = "0.1.0"
