#!/bin/sh
# Makes src/pybuild/<folder> -> ../../<folder>, so that mypy (and editors) see the package as it installs.
set -eu
cd "$(dirname "$0")/.."
for folder in parser layers builder registry_client daemon; do
    ln -sfn "../../$folder" "src/pybuild/$folder"
done
