"""All planted faults, each with the tests that have to catch it."""

from __future__ import annotations

import faults_checks
import faults_dispatch
import faults_family
import faults_jax
import faults_kernels
import faults_numpy_channels
import faults_numpy_dispatch
import faults_numpy_instances
import faults_numpy_powers
import faults_numpy_rows
import faults_numpy_strided
import faults_numpy_tanh
import faults_numpy_vectors
import faults_numpy_windows
import faults_operations
import faults_torch
from fault import Fault

FAULTS: tuple[Fault, ...] = (
    *faults_kernels.FAULTS,
    *faults_family.FAULTS,
    *faults_dispatch.FAULTS,
    *faults_checks.FAULTS,
    *faults_operations.FAULTS,
    *faults_numpy_rows.FAULTS,
    *faults_numpy_vectors.FAULTS,
    *faults_numpy_channels.FAULTS,
    *faults_numpy_dispatch.FAULTS,
    *faults_numpy_instances.FAULTS,
    *faults_numpy_strided.FAULTS,
    *faults_numpy_powers.FAULTS,
    *faults_numpy_tanh.FAULTS,
    *faults_numpy_windows.FAULTS,
    *faults_torch.FAULTS,
    *faults_jax.FAULTS,
)
