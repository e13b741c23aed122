"""The suite that holds every backend to the numerics contract; see README.md, "Conformance"."""
