"""The public functions of arrays, each compiled once per shape and options: quicker than eagerly,
where every operation is a program of its own."""

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
    @functools.cache
    def program(**options):
        return jax.jit(functools.partial(function, **options))

    return lambda *arrays, **options: program(**options)(*arrays)


o = SimpleNamespace(**{name: compiled(function) for name, function in FUNCTIONS.items()})
