"""Test-wide switches, set before jax is imported anywhere."""

import os
import resource
from contextlib import contextmanager

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices of one CPU; and LLVM told not to try hard, for tests compile more than they compute.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)
# The hub cannot be asked by accident: every checkpoint that a test reads, it has made.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def full_disk():
    """A context in which no file takes more than so many bytes, which the system makes sure of."""

    @contextmanager
    def full(limit):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full
