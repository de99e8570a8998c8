"""Corpora as SeqIO Tasks; importing this registers those that need no settings, and reads nothing."""

from tasks import c4, python_stdlib, text_files, wikipedia

__all__ = ["c4", "python_stdlib", "text_files", "wikipedia"]
