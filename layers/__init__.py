"""Content-addressed bytes: digests and descriptors, images and their parts, the store that keeps them, tar in and out, compression,
snapshots and differences. Knows nothing of Dockerfiles, registries or processes; imports no other folder of pybuild.
"""
