"""Accelerated kernels, one package per array library; see CONTRIBUTING.md for how to add one."""
