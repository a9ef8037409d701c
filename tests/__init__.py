"""Tests of the bundle; they run from a clone, without a network connection and without a GPU."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
