"""What setup.cfg cannot say: a module in C, for where there is a compiler."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("handlers._fanout", ["handlers/_fanout.c"], extra_compile_args=["-O2"], optional=True)
    ]
)
