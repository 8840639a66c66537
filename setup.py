"""What setup.cfg cannot say: a module in C, for where there is a compiler."""

from setuptools import Extension, setup

SOURCES = ("module.c", "fanout.c", "heartbeat.c")

setup(
    ext_modules=[
        Extension(
            "handlers._native",
            [f"handlers/native_src/{name}" for name in SOURCES],
            depends=["handlers/native_src/native.h"],
            extra_compile_args=["-O2", "-Wall", "-Wextra", "-Werror"],
            optional=True,
        )
    ]
)
