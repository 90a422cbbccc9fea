"""The public functions of arrays as compiled programs, NumPy out: a test that runs eagerly, down to
a slice of a result, compiles a program for every operation."""

import functools
import inspect
from types import SimpleNamespace

import jax

import objectives

FUNCTIONS = {
    name: function
    for name, function in vars(objectives).items()
    if inspect.isfunction(function) and "Array" in str(inspect.signature(function))
}


def compiled(function):
    """One program per shape and options."""

    @functools.cache
    def program(**options):
        return jax.jit(functools.partial(function, **options))

    return lambda *arrays, **options: jax.device_get(program(**options)(*arrays))


def value_and_grad(function):
    """A scalar function's value and its gradient in the first argument."""
    return compiled(jax.value_and_grad(function))


o = SimpleNamespace(**{name: compiled(function) for name, function in FUNCTIONS.items()})
