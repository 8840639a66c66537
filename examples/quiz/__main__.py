"""Starts the quiz: `python -m examples.quiz`, or `make quiz`."""

from pathlib import Path

from examples.quiz.app import application
from examples.running import run

if __name__ == "__main__":
    run("quiz", application, Path(__file__).parent / "pages")
