"""python -m examples.chess: the example at http://127.0.0.1:8000."""

from pathlib import Path

from examples.chess.backend import application
from examples.running import run

run("chess", application, Path(__file__).parent / "web" / "dist")
