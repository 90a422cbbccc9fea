"""Every program of this room's tests runs a few times on a few numbers: compile it quickly."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
